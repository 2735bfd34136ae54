"""Paths to documents: every path argument becomes texts in the order given, each file once.

A file that the user names and that cannot be read is an error; one met in a directory or by a glob is left out and
listed in `DocumentSet.skipped` with the reason, as are pages without text. Formats are in formats.py, directories and
globs in selection.py.
"""

import array
import hashlib
import os
import shlex
import stat
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TextIO

from uncomp_cli.documents.formats import extract
from uncomp_cli.documents.selection import Candidate, Selection, select
from uncomp_cli.errors import DocumentError, UsageError

_REASONS_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Document:
    """A document's text; `path` as shown to the user ("-" is stdin), `sha256` of the raw bytes, `\\n` line ends.

    `encoding` is None where the format, not the bytes, decides (PDF, Word), and where it is not known any more.
    """

    path: str
    text: str
    sha256: str
    encoding: str | None = None


@dataclass(frozen=True, slots=True)
class DocumentSet:
    """What was read, and what was not: (path, reason) for all files and pages that were left out."""

    documents: tuple[Document, ...]
    skipped: tuple[tuple[str, str], ...] = ()


def collect(*paths: str, include: Sequence[str] = ()) -> DocumentSet:
    """Files, directories and globs as texts: `read_documents` for who has no standard input to read."""
    return read_documents(paths, include=include)


def read_documents(paths: Sequence[str], *, include: Sequence[str] = (), stdin: BinaryIO | None = None) -> DocumentSet:
    """Read files, directories, globs and `-` (`stdin`); `include` globs choose inside directories.

    UsageError: a path that is not there, or under which nothing can be read. DocumentError: a named file that cannot
    be read, is binary, damaged, encrypted or empty.
    """
    reading = _Reading()
    for path in paths:
        if path == "-":
            reading.add_stdin(stdin)
        else:
            reading.add(select(path, include=include))
    return DocumentSet(tuple(reading.documents.values()), (*reading.skipped.values(), *reading.losses))


class _Reading:
    """Collects documents by resolved path, so that each is read once and a file that is read counts as not skipped."""

    def __init__(self) -> None:
        self.documents: dict[Hashable, Document] = {}
        self.skipped: dict[Hashable, tuple[str, str]] = {}
        self.losses: list[tuple[str, str]] = []

    def add_stdin(self, stdin: BinaryIO | None) -> None:
        if "-" in self.documents:
            return
        if stdin is None:
            raise UsageError(
                "'-' names standard input, which is not there", hint="pipe a document in: cat FILE | uncomp"
            )
        try:
            self._keep("-", "-", stdin.read(), suffix="")
        except DocumentError as error:
            raise DocumentError(f"cannot read standard input: {error.message}", hint=error.hint) from error

    def add(self, selection: Selection) -> None:
        refusals: list[tuple[str, DocumentError]] = []
        for candidate in selection.candidates:
            key = _identity(candidate.path)
            if key in self.documents:
                continue
            shown = _shown(candidate.path if not selection.named else selection.argument)
            try:
                self._read(key, shown, candidate)
            except DocumentError as error:
                if selection.named:
                    raise DocumentError(f"cannot read {shown!r}: {error.message}", hint=error.hint) from error
                refusals.append((shown, error))
                self.skipped[key] = (shown, error.message)
        if len(refusals) == len(selection.candidates):
            raise _nothing_readable(selection.argument, refusals)

    def _read(self, key: Hashable, shown: str, candidate: Candidate) -> None:
        if candidate.refusal:
            raise DocumentError(candidate.refusal)
        try:
            data = candidate.path.read_bytes()
        except OSError as error:
            raise DocumentError(error.strerror or str(error), hint=f"ls -l {shlex.quote(shown)}") from error
        self._keep(key, shown, data, suffix=candidate.path.suffix.lower())

    def _keep(self, key: Hashable, shown: str, data: bytes, *, suffix: str) -> None:
        extracted = extract(data, suffix=suffix)
        digest = hashlib.sha256(data).hexdigest()
        self.documents[key] = Document(shown, extracted.text, digest, extracted.encoding)
        self.losses += [(shown, loss) for loss in extracted.losses]
        self.skipped.pop(key, None)


def _identity(path: Path) -> Hashable:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # a loop of links
        return path.absolute()


def _shown(path: str | Path) -> str:
    """The path as text that can be printed: bytes of a name that are not UTF-8 become the replacement character."""
    return os.fsencode(path).decode("utf-8", "replace")


def _nothing_readable(argument: str, refusals: Sequence[tuple[str, DocumentError]]) -> UsageError:
    listed = "; ".join(f"{path}: {error.message}" for path, error in refusals[:_REASONS_SHOWN])
    more = len(refusals) - _REASONS_SHOWN
    tail = f"; and {more} more" if more > 0 else ""
    hints = {error.hint for _, error in refusals}
    shared_hint = hints.pop() if len(hints) == 1 else None
    return UsageError(
        f"nothing to read in {_shown(argument)!r}" + (f" ({listed}{tail})" if listed else ": it is empty"),
        hint=shared_hint or "name a file, or choose files in a directory with --include '*.SUFFIX'",
    )


def has_data(stdin: TextIO | None) -> bool:
    """Whether something waits on standard input: in a pipe, or in a file behind what was read of it."""
    try:
        descriptor = -1 if stdin is None else stdin.fileno()
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            return status.st_size > os.lseek(descriptor, 0, os.SEEK_CUR)
        return stat.S_ISFIFO(status.st_mode) and _waiting_bytes(descriptor) > 0
    except (OSError, ValueError):  # closed, or replaced by something that is no file
        return False


def _waiting_bytes(descriptor: int) -> int:
    try:
        import fcntl
        import termios
    except ImportError:  # not on this system
        return 0
    size = array.array("i", [0])
    fcntl.ioctl(descriptor, termios.FIONREAD, size)
    return size[0]
