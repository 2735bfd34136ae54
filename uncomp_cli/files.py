"""Files that outlive what ends a process: every replacing, renaming, adding and syncing of the package is done here.

    a file     its bytes go to another name in the same folder, are brought to the disk, and the file is renamed; then
               the folder is brought to the disk, so that the new name outlives a power cut too
    a line     is added by one write and waited for; when the disk is full nothing of it stays

So a kill or a full disk leaves what was there before, beside it at most a file that ends with `.new`, behind it at most
a torn line. A file is locked until it is in its place, and a lock ends with its process, wherever that is: containers
that share a folder do not know each other's processes. This module knows no error but OSError; its callers say what
could not be written and what helps.
"""

import errno
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

T = TypeVar("T")

_ANYBODY, _OWNER_ONLY = 0o666, 0o600


def absolute(path: str | Path) -> str:
    """Where it is, from wherever one looks, by the names that it was given: what is a link stays one."""
    return os.path.abspath(path)  # noqa: PTH100  # Path.resolve follows links, Path.absolute keeps `..`


def write_whole(path: Path, data: bytes, *, owner_only: bool = False) -> None:
    """`path` with the content `data`; raises OSError, and then `path` is as it was."""
    replace_file(path, lambda stream: stream.write(data), owner_only=owner_only)


def replace_file(
    path: Path,
    write: Callable[[BinaryIO], T],
    *,
    owner_only: bool = False,
    fresh: Path | None = None,
    renaming: AbstractContextManager[object] | None = None,
) -> T:
    """`path` with what `write` puts into the stream; returns what `write` does.

    `owner_only` gives it mode 0600 from its first byte on. `fresh` is its name until it takes the place, inside the
    context `renaming`, of what was there. Raises OSError or what `write` does, and then `path` is as it was.
    """
    fresh = fresh or path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    try:
        with os.fdopen(os.open(fresh, flags, _OWNER_ONLY if owner_only else _ANYBODY), "wb") as stream:
            with suppress(OSError):  # not every file system has locks
                fcntl.flock(stream, fcntl.LOCK_EX)
            written = write(stream)
            stream.flush()
            os.fsync(stream.fileno())
            with renaming or nullcontext():
                fresh.replace(path)
    finally:
        with suppress(OSError):  # not made, or in its place
            fresh.unlink()
    sync_folder(path.parent)
    return written


@contextmanager
def locked(path: Path, *, waits: bool = True) -> Iterator[None]:
    """Hold the lock of a file or folder; raises OSError, BlockingIOError where another holds it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def remove_leftovers(path: Path) -> None:
    """Remove what processes left that were killed while they wrote `path`; nobody may be writing it now."""
    for left in path.parent.glob(f".{path.name}.????????.new"):
        left.unlink(missing_ok=True)


def move(source: Path, target: Path) -> None:
    """Give a file or folder another name in one step, in place of what had it; raises OSError."""
    source.replace(target)
    sync_folder(target.parent)


def set_aside(*paths: Path, before_suffix: bool = False) -> list[Path]:
    """Rename files to NAME.1, or `before_suffix` to STEM.1.SUFFIX, with the first number that is free for all of them.

    Returns the new paths; raises OSError.
    """

    def numbered(path: Path, number: int) -> Path:
        name = f"{path.stem}.{number}{path.suffix}" if before_suffix else f"{path.name}.{number}"
        return path.with_name(name)

    number = 1
    while any(numbered(path, number).exists() for path in paths):
        number += 1
    targets = [numbered(path, number) for path in paths]
    for path, target in zip(paths, targets, strict=True):
        move(path, target)
    return targets


def sync_folder(folder: Path) -> None:
    """Bring the names in `folder` to the disk, where folders can be opened for it."""
    with suppress(OSError):
        _sync(folder)


def sync_tree(folder: Path) -> None:
    """Bring all files below `folder` to the disk, and their names; raises OSError."""
    if os.name == "posix":  # elsewhere only a file that was opened to be written can be waited for
        for path in [path for path in folder.rglob("*") if path.is_file()]:
            _sync(path)
    sync_folder(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append(descriptor: int, data: bytes) -> None:
    """Add all of `data` to an open file in one write, on the disk; or raise OSError, with the file as it was."""
    size = os.fstat(descriptor).st_size
    try:
        if os.write(descriptor, data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, size)
        raise


def cut(descriptor: int, size: int) -> None:
    """Leave the first `size` bytes of an open file, on the disk; raises OSError."""
    if os.fstat(descriptor).st_size > size:
        os.ftruncate(descriptor, size)
        os.fsync(descriptor)


def read_from(descriptor: int, start: int) -> bytes:
    """All bytes of an open file from `start` on; raises OSError."""
    with os.fdopen(os.dup(descriptor), "rb") as stream:
        stream.seek(start)
        return stream.read()


def to_line(record: dict[str, Any]) -> bytes:
    """One line of JSON. Raises ValueError for a number that is none."""
    return json.dumps(record, allow_nan=False).encode() + b"\n"


def parsed(line: bytes) -> Any:
    """The JSON value of a line, None when it is broken."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def journal_lines(data: bytes) -> tuple[list[Any], int]:
    """The JSON values of the lines in `data`, None for a broken one, and how many bytes those lines are.

    A torn last line, which a kill or a power cut leaves, is none of them.
    """
    lines = data.split(b"\n")
    lines.pop()  # what follows the last newline: nothing, or a line that was never finished
    if lines and parsed(lines[-1]) is None:
        lines.pop()
    return [parsed(line) for line in lines], sum(len(line) + 1 for line in lines)
