"""Lines of JSON on the disk, written by one process at a time: what the results files share.

A line is written at once and waited for; when the disk is full nothing of it stays. What a kill leaves behind is a torn
last line at most, which `parsed` says is broken.
"""

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from uncomp_cli.errors import UncompError, UsageError

__all__ = [
    "IN_USE",
    "LONGEST_HEADER",
    "OTHER_FILE",
    "LineFile",
    "first_line",
    "lock",
    "writing",
]

LONGEST_HEADER = 1 << 20
OTHER_FILE = "give another file with --out"
IN_USE = "wait until that one has ended, or give this run another file with --out"


class LineFile:
    """A file open for appending, by this process alone. Close it, or use it in a `with`."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    def close(self) -> None:
        """Let go of the file, so that others may write it; twice does no harm."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Errors of the system while `path` is opened or written, as UncompError."""
    try:
        yield
    except OSError as error:
        hint = f"{OTHER_FILE}; what was written stays, and the run can be continued"
        raise UncompError(f"{path} cannot be written: {error.strerror or error}", hint=hint) from error


def first_line(path: Path, descriptor: int) -> bytes:
    """The first line, its end included where it has one. Raises UsageError for what is not a regular file."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise UsageError(f"{path} is not a regular file", hint=OTHER_FILE)
    with os.fdopen(os.dup(descriptor), "rb") as stream:
        stream.seek(0)
        return stream.readline(LONGEST_HEADER)


def lock(path: Path, descriptor: int, *, program: str) -> None:
    """Take the file for this process until it is closed; file systems and systems without locks go without."""
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UncompError(f"{path} is being written by another {program}", hint=IN_USE) from error
    except OSError:
        return
