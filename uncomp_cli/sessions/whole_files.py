"""Write a file as a whole or not at all, whatever ends the process or the disk's space.

The bytes go to a file of another name in the same folder, are brought to the disk, and the file is renamed; then the
folder is brought to the disk, so that the rename outlives a power cut too.
"""

import os
import secrets
from contextlib import suppress
from pathlib import Path

__all__ = ["remove_leftovers", "write_whole"]


def write_whole(path: Path, data: bytes) -> None:
    """`path` with the content `data`, for its owner's eyes only; raises OSError, and then `path` is as it was."""
    fresh = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(path)
    finally:
        with suppress(OSError):  # not made, or in its place
            fresh.unlink()
    _sync_folder(path.parent)


def remove_leftovers(path: Path) -> None:
    """Remove what processes left that were killed while they wrote `path`; nobody may be writing it now."""
    for left in path.parent.glob(f".{path.name}.????????.new"):
        left.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Where folders can be opened for it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
