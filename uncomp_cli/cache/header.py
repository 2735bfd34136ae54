"""What a saved cache says of itself, read and checked without its tensors (and without torch).

A saved cache is one safetensors file: 8 bytes that count the header's, the JSON header, the tensors' bytes. In its
metadata is a manifest, and in that the sha256 of the whole file, in which the hash itself is written as 64 zeros. So
nothing in it can change unseen: names, shapes, what was saved of which document, or a single number.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from uncomp_cli.errors import UncompError, UsageError
from uncomp_cli.schema import Among, Count, Some, inside, parse_object, read, take_version

SCHEMA_VERSION = 1
METADATA_KEY = "uncomp_cache"
NO_HASH = "0" * 64
TEMPORARY_PREFIX = ".saving-"
"""Of files that are being written; the id of the process that does so follows."""

_AGAIN = "remove it and save it again: uncomp ask --save-cache NAME"
_COUNT_BYTES = 8
_MOST_HEADER_BYTES = 16 * 2**20
_BLOCK_BYTES = 2**20


def _is_hash(value: str, place: str) -> None:
    if len(value) != len(NO_HASH):
        raise UsageError(f"{place} is {value!r}", hint="it must be a hash of 64 letters")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is in the file: the cache's shape, and the `record` that the saver put there, which is JSON data.

    `tensor_bytes` counts the tensors alone; `sha256` is that of the file. It comes before anything that a user chose,
    so that its place in the file is known.
    """

    sha256: Annotated[str, _is_hash]
    num_layers: Some
    num_rows: Some
    num_kv_heads: Some
    kv_bits: Annotated[int, Among((16, 8, 4))]
    dtype: Annotated[str, Among(("float32", "bfloat16", "float16", "float64"))]
    tensor_bytes: Count
    record: dict[str, Any]

    def to_json(self) -> str:
        """The manifest as one JSON text."""
        return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, allow_nan=False)


def read_manifest(path: Path) -> Manifest:
    """The manifest of a saved cache; nothing else of the file is checked.

    Raises UncompError when it cannot be read or is none, UsageError when a newer version wrote it.
    """
    try:
        with path.open("rb") as file:
            header = _read_header(file)
    except OSError as error:
        raise UncompError(
            f"cache {path} cannot be read: {error.strerror or error}", hint="uncomp cache list"
        ) from error
    return _parse(header, path)


def find_damage(path: Path) -> str | None:
    """What is wrong with a saved cache, in words, or None when every byte is as it was written.

    Raises UsageError for a file of a newer version, OSError when it cannot be read.
    """
    with path.open("rb") as file:
        header = _read_header(file)
        try:
            manifest = _parse(header, path)
        except UsageError:
            raise
        except UncompError as error:
            return error.message
        there, expected = os.fstat(file.fileno()).st_size, _COUNT_BYTES + len(header) + manifest.tensor_bytes
        if there != expected:
            return f"it has {there:,} bytes, {expected:,} were written"
        digest = hashlib.sha256(len(header).to_bytes(_COUNT_BYTES, "little"))
        digest.update(header.replace(manifest.sha256.encode(), NO_HASH.encode(), 1))
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return None if digest.hexdigest() == manifest.sha256 else "its checksum is not that of its contents"


def _read_header(file: BinaryIO) -> bytes:
    """The JSON header's bytes; what is too short or too long to be one comes back as it is, and does not parse."""
    count = int.from_bytes(file.read(_COUNT_BYTES), "little")
    return file.read(count) if count <= _MOST_HEADER_BYTES else b""


def _parse(header: bytes, path: Path) -> Manifest:
    """The manifest in a header; its version decides before anything else is looked at."""
    try:
        data = parse_object(parse_object(header)["__metadata__"][METADATA_KEY])
    except (KeyError, TypeError, UsageError) as error:
        raise UncompError(f"{path.name} is no saved cache, or its beginning is damaged", hint=_AGAIN) from error
    with inside(f"cache {path.name}"):
        take_version(data, SCHEMA_VERSION, again=_AGAIN)
    with inside(f"the manifest of {path.name} is damaged", hint=_AGAIN, kind=UncompError):
        return read(Manifest, data)
