"""What a saved cache says of itself, read and checked without its tensors (and without torch).

A saved cache is one safetensors file: 8 bytes that count the header's, the JSON header, the tensors' bytes. In its
metadata is a manifest, and in that the sha256 of the whole file, in which the hash itself is written as 64 zeros. So
nothing in it can change unseen: names, shapes, what was saved of which document, or a single number.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, BinaryIO

from uncomp_cli.errors import UncompError, UsageError

SCHEMA_VERSION = 1
METADATA_KEY = "uncomp_cache"
NO_HASH = "0" * 64
TEMPORARY_PREFIX = ".saving-"
"""Of files that are being written; the id of the process that does so follows."""

_COUNT_BYTES = 8
_MOST_HEADER_BYTES = 100 * 2**20
"""The safetensors library refuses longer headers too."""
_BLOCK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is in the file: the cache's shape, and the `record` that the saver put there, which is JSON data.

    `tensor_bytes` counts the tensors alone; `sha256` is that of the file. It comes before anything that a user chose,
    so that its place in the file is known.
    """

    schema_version: int
    sha256: str
    num_layers: int
    num_rows: int
    num_kv_heads: int
    kv_bits: int
    dtype: str
    tensor_bytes: int
    record: dict[str, Any]

    def to_json(self) -> str:
        """The manifest as one JSON text."""
        return json.dumps(asdict(self), allow_nan=False)


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
        metadata = json.loads(header)["__metadata__"]
        data = json.loads(metadata[METADATA_KEY])
        version = data["schema_version"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise UncompError(f"{path.name} is no saved cache, or its beginning is damaged", hint=_AGAIN) from error
    if isinstance(version, int) and version > SCHEMA_VERSION:
        message = f"cache {path.name} has schema version {version}, this uncomp reads {SCHEMA_VERSION}"
        raise UsageError(message, hint="update uncomp, or save it again")
    return _build(data, path)


_AGAIN = "remove it and save it again: uncomp ask --save-cache NAME"


def _build(data: Mapping[str, Any], path: Path) -> Manifest:
    """The manifest from JSON data with exactly its keys and types."""
    types = {item.name: item.type for item in fields(Manifest)}
    wrong = set(types) ^ set(data) or {key for key, kind in types.items() if not _has_type(data[key], kind)}
    if wrong or len(data["sha256"]) != len(NO_HASH) or data["tensor_bytes"] < 0:
        raise UncompError(f"the manifest of {path.name} is damaged{_named(wrong)}", hint=_AGAIN)
    return Manifest(**data)


def _has_type(value: object, kind: Any) -> bool:
    return isinstance(value, getattr(kind, "__origin__", kind)) and not isinstance(value, bool)


def _named(keys: set[str]) -> str:
    return f": {', '.join(sorted(keys))}" if keys else ""
