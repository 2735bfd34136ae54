"""Files of records that others made: JSON lines, plain or gzipped, read within limits, named by line where broken."""

import gzip
import hashlib
import zlib
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from uncomp_cli.documents.intake import take_file
from uncomp_cli.documents.text import NO_WISHES, Limits, Wishes
from uncomp_cli.errors import DocumentError
from uncomp_cli.files import parsed
from uncomp_cli.schema import inside
from uncomp_cli.steps import finished

_ENDINGS = (".jsonl", ".jsonl.gz")
_FETCH = "mend the line, or fetch the file again"


@dataclass(frozen=True, slots=True)
class Records:
    """The objects of a file, in its order; `sha256` is that of the file as it lies there.

    Documents that they name are read with the user's `wishes`.
    """

    path: Path
    sha256: str
    objects: tuple[dict[str, Any], ...] = field(repr=False)
    wishes: Wishes = NO_WISHES


def record_files(path: Path) -> list[Path]:
    """The files of a directory that hold records, by name; a file is meant itself."""
    return sorted(found for found in path.iterdir() if found.name.endswith(_ENDINGS)) if path.is_dir() else [path]


def read_records(path: Path) -> Records:
    """All objects of a file.

    Raises DocumentError for a file that is none or has a line that is no object, DoesNotFitError for too big a one.
    """
    limits = Limits()
    with inside(f"'{path}'"):
        try:
            packed = finished(take_file(path, limits.file_bytes))
            content = packed
            if path.suffix == ".gz":
                with gzip.open(BytesIO(packed)) as stream:
                    content = stream.read(limits.expanded_bytes + 1)
                limits.check_expanded(len(content))
        except (OSError, EOFError, zlib.error) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise DocumentError(f"it cannot be read: {reason}", hint="name a file of JSON lines") from error
        lines = enumerate(content.splitlines(), 1)
        objects = tuple(_object(line, number) for number, line in lines if line.strip())
    return Records(path, hashlib.sha256(packed).hexdigest(), objects)


def _object(line: bytes, number: int) -> dict[str, Any]:
    found = parsed(line)
    if not isinstance(found, dict):
        raise DocumentError(f"line {number:,} is no JSON object, or is cut off", hint=_FETCH)
    return found
