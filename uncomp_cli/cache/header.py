"""What a saved cache says of itself, read and checked without its tensors (and without torch).

A saved cache is one safetensors file: 8 bytes that count the header's, the JSON header, the tensors' bytes. In its
metadata is a manifest, and in that the sha256 of the whole file, in which the hash itself is written as 64 zeros. So
nothing in it can change unseen: names, shapes, what was saved of which document, or a single number.
"""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO

from uncomp_cli.budget.amount import Budget
from uncomp_cli.budget.values import Uncertainty
from uncomp_cli.config import ScorerConfig
from uncomp_cli.errors import UncompError, UsageError
from uncomp_cli.schema import Among, Count, Hash, Some, inside, parse_object, read, take_version

SCHEMA_VERSION = 2
METADATA_KEY = "uncomp_cache"
NO_HASH = "0" * 64
TEMPORARY_PREFIX = ".saving-"
"""Of files that are being written; the id of the process that does so follows."""

_AGAIN = "remove it and save it again: uncomp ask --cache NAME"
_COUNT_BYTES = 8
_MOST_HEADER_BYTES = 16 * 2**20
_BLOCK_BYTES = 2**20


class DamagedCacheError(UncompError):
    """A file that is no saved cache as this version writes them, whatever else it is."""


def _check_budget(value: str, place: str) -> None:
    with inside(place):
        Budget.parse(value)


KvBits = Annotated[int, Among((16, 8, 4))]


@dataclass(frozen=True, slots=True)
class MadeWith:
    """The model that computed a cache: its files by their hashes, and what else decides its numbers."""

    name: str
    weights_sha256: Hash
    config_sha256: Hash
    tokenizer_sha256: Hash
    rope: dict[str, Any]
    dtype: str
    quantization: str | None
    matmul: str


@dataclass(frozen=True, slots=True)
class MadeBy:
    """What decided which tokens a cache keeps, and in how many bits."""

    policy: str
    scorer: ScorerConfig
    budget: Annotated[str, _check_budget]
    floor_tokens: Count
    kv_bits: KvBits
    profile_sha256: Hash | None
    chunk_tokens: Count | None
    kv_mem_bytes: Count | None


@dataclass(frozen=True, slots=True)
class MadeFrom:
    """A document in the text of a cache; `truncated` when tokens were cut away, `losses` what its reader left out.

    Its text has `text_bytes` of those that were saved; from line `place_lines[i]` on it stands at `place_names[i]`.
    """

    path: str
    sha256: Hash
    tokens: Count
    truncated: bool
    text_bytes: Count
    losses: tuple[str, ...] = ()
    place_lines: tuple[int, ...] = ()
    place_names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """What a cache was made from, and what `uncomp cache show` tells; `key` is the hash of all that decides it."""

    key: Hash
    created: str
    model: MadeWith
    preset: str
    compression: MadeBy
    query_aware: bool
    context_sha256: Hash
    context_tokens: Some
    kept_entries: Count
    kv_full_bytes: Some
    uncertainty: Uncertainty | None
    documents: tuple[MadeFrom, ...] = ()
    system: str | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is in the file: the cache's shape, and the `record` of what it was made from.

    `tensor_bytes` counts the tensors alone; `sha256` is that of the file. It comes before anything that a user chose,
    so that its place in the file is known.
    """

    sha256: Hash
    num_layers: Some
    num_rows: Some
    num_kv_heads: Some
    kv_bits: KvBits
    dtype: Annotated[str, Among(("float32", "bfloat16", "float16", "float64"))]
    tensor_bytes: Count
    record: Record

    def to_json(self) -> str:
        """The manifest as one JSON text."""
        return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, allow_nan=False)


def read_manifest(path: Path) -> Manifest:
    """The manifest of a saved cache; nothing else of the file is checked.

    Raises FileNotFoundError when it is gone, DamagedCacheError when it is none, UncompError when it cannot be read,
    UsageError when a newer version wrote it.
    """
    with _opened(path) as file:
        return _parse(_read_header(file), path)


def find_damage(path: Path) -> str | None:
    """What is wrong with a saved cache, in words, or None when every byte is as it was written.

    Raises what `read_manifest` does but for damage.
    """
    with _opened(path) as file:
        header = _read_header(file)
        try:
            manifest = _parse(header, path)
        except DamagedCacheError as error:
            return error.message
        there, expected = os.fstat(file.fileno()).st_size, _COUNT_BYTES + len(header) + manifest.tensor_bytes
        if there != expected:
            return f"it has {there:,} bytes, {expected:,} were written"
        digest = hashlib.sha256(len(header).to_bytes(_COUNT_BYTES, "little"))
        digest.update(header.replace(manifest.sha256.encode(), NO_HASH.encode(), 1))
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return None if digest.hexdigest() == manifest.sha256 else "its checksum is not that of its contents"


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A file of the shelf, to be read: a regular one, since a pipe never ends.

    Raises FileNotFoundError when it is gone, UncompError when it cannot be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UncompError(f"cache {path} is not a regular file", hint="move it out of the folder")
        with path.open("rb") as file:
            yield file
    except FileNotFoundError:
        raise
    except OSError as error:
        message = f"cache {path} cannot be read: {error.strerror or error}"
        raise UncompError(message, hint="check its permissions: uncomp cache list") from error


def _read_header(file: BinaryIO) -> bytes:
    """The JSON header's bytes; what is too short or too long to be one comes back as it is, and does not parse."""
    count = int.from_bytes(file.read(_COUNT_BYTES), "little")
    return file.read(count) if count <= _MOST_HEADER_BYTES else b""


def _parse(header: bytes, path: Path) -> Manifest:
    """The manifest in a header; its version decides before anything else is looked at."""
    try:
        data = parse_object(parse_object(header)["__metadata__"][METADATA_KEY])
    except (KeyError, TypeError, UsageError) as error:
        message = f"{path.name} is no saved cache, or its beginning is damaged"
        raise DamagedCacheError(message, hint=_AGAIN) from error
    version = data.get("schema_version")
    if type(version) is int and version > SCHEMA_VERSION:
        with inside(f"cache {path.name}"):
            take_version(data, SCHEMA_VERSION, again=_AGAIN)
    with inside(f"the manifest of {path.name} is damaged", hint=_AGAIN, kind=DamagedCacheError):
        take_version(data, SCHEMA_VERSION, again=_AGAIN)
        return read(Manifest, data)
