"""Paths to documents: every path argument becomes texts in the order given, each file once.

An argument stands for one file, the files below a directory, or the matches of a glob. A directory is walked in sorted
order; hidden entries and links to directories are not entered. A path that exists is never a glob. A file that the user
names and that cannot be read is an error; one met in a directory or by a glob is left out and listed in
`DocumentSet.skipped` with the reason, as are pages without text. Formats are in formats.py.
"""

import array
import difflib
import glob
import hashlib
import os
import re
import shlex
import stat
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePath, PurePosixPath
from typing import BinaryIO, TextIO

from uncomp_cli.documents.formats import READABLE_SUFFIXES, extract
from uncomp_cli.documents.text import Place
from uncomp_cli.errors import DocumentError, UsageError

_REASONS_SHOWN = 3
_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]{1,20}://", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A path, and, if it is not to be opened, why."""

    path: Path
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class _Selection:
    """What an argument stands for; `named` when the user named this very file, and not reading it is an error."""

    argument: str
    named: bool
    candidates: tuple[_Candidate, ...]


@dataclass(frozen=True, slots=True)
class Document:
    """A document's text; `path` as shown to the user ("-" is stdin), `sha256` of the raw bytes, `\\n` line ends.

    `encoding` is None where the format, not the bytes, decides (PDF, Word), and where it is not known any more;
    `places` name pages and the like. In a conversation its name stands in front of it, unless it is `bare`.
    """

    path: str
    text: str
    sha256: str
    encoding: str | None = None
    places: tuple[Place, ...] = ()
    bare: bool = False


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
            reading.add(_select(path, include=include))
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

    def add(self, selection: _Selection) -> None:
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

    def _read(self, key: Hashable, shown: str, candidate: _Candidate) -> None:
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
        self.documents[key] = Document(shown, extracted.text, digest, extracted.encoding, extracted.places)
        self.losses += [(shown, str(loss)) for loss in extracted.losses]
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


def _select(argument: str, *, include: Sequence[str] = ()) -> _Selection:
    """The candidates of one argument; `include` filters inside directories.

    UsageError: nothing is there, or nothing matches. DocumentError: a device, or a directory that cannot be listed.
    """
    if not argument:
        raise UsageError("an empty path names no document", hint="name a file, a directory, a glob, or '-' for stdin")
    mode = _mode_of_argument(argument)
    if mode is None and glob.has_magic(argument):
        return _glob(argument, include)
    if mode is None and _ADDRESS.match(argument):
        hint = f"fetch it first: curl -L -o page.html {shlex.quote(argument)}; then -f page.html"
        raise UsageError(f"{argument!r} is an address on the network, and nothing is fetched", hint=hint)
    if mode is None:
        raise _missing(Path(argument))
    if stat.S_ISDIR(mode):
        return _directory(argument, include)
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
        raise DocumentError(f"{argument!r} is a device or socket, not a file", hint="use '-' to read standard input")
    return _Selection(argument, True, (_Candidate(Path(argument)),))


def _directory(argument: str, include: Sequence[str]) -> _Selection:
    root = Path(argument)
    candidates = _walk(root, root, include)
    if include and all(candidate.refusal for candidate in candidates):
        patterns = " or ".join(repr(pattern) for pattern in include)
        raise UsageError(f"no file in {argument!r} matches --include {patterns}", hint=f"find {shlex.quote(argument)}")
    return _Selection(argument, False, tuple(dict.fromkeys(candidates)))


def _glob(argument: str, include: Sequence[str]) -> _Selection:
    """Matches as a shell would expand them; pathlib's glob takes hidden files in, and differs between versions."""
    candidates: list[_Candidate] = []
    for match in sorted(glob.glob(argument, recursive=True)):  # noqa: PTH207  # hidden files
        path = Path(match)
        mode = _mode(path)
        candidates += _walk_below(path, path, include) if stat.S_ISDIR(mode) else [_Candidate(path, _irregular(mode))]
    if not candidates:
        raise UsageError(f"no file matches {argument!r}", hint="'**' goes through directories, '*' stays within one")
    return _Selection(argument, False, tuple(dict.fromkeys(candidates)))


def _walk(directory: Path, root: Path, include: Sequence[str]) -> list[_Candidate]:
    try:
        entries = sorted(directory.iterdir())
    except OSError as error:
        raise _denied(str(directory), error) from error
    return [candidate for entry in entries for candidate in _visit(entry, root, include)]


def _walk_below(directory: Path, root: Path, include: Sequence[str]) -> list[_Candidate]:
    try:
        return _walk(directory, root, include)
    except DocumentError as error:
        return [_Candidate(directory, error.message)]


def _visit(entry: Path, root: Path, include: Sequence[str]) -> list[_Candidate]:
    if entry.name.startswith("."):
        return [_Candidate(entry, "hidden")]
    mode = _mode(entry)
    if stat.S_ISDIR(mode):
        if entry.is_symlink():
            return [_Candidate(entry, "a link to a directory, not followed")]
        return _walk_below(entry, root, include)
    if include and not _included(entry.relative_to(root), include):
        return []
    return [_Candidate(entry, _irregular(mode) or ("" if include else _unknown_suffix(entry)))]


def _included(path: PurePath, include: Sequence[str]) -> bool:
    """A pattern without a slash is for the name alone, at any depth."""
    deep = [pattern if "/" in pattern else f"**/{pattern}" for pattern in include]
    return any(_matches(path.parts, PurePosixPath(pattern).parts) for pattern in deep)


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_matches(parts[start:], pattern[1:]) for start in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _unknown_suffix(path: PurePath) -> str:
    suffix = path.suffix.lower()
    return f"suffix {suffix!r} is not known as a document" if suffix and suffix not in READABLE_SUFFIXES else ""


def _irregular(mode: int) -> str:
    return "" if stat.S_ISREG(mode) else "a broken link, or not a regular file"


def _mode(path: Path) -> int:
    """The mode behind links; 0 when there is nothing, or nothing that can be reached."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return 0


def _mode_of_argument(argument: str) -> int | None:
    try:
        return Path(argument).stat().st_mode
    except PermissionError as error:
        raise _denied(argument, error) from error
    except (OSError, ValueError):  # nothing there, a file used as a directory, a link loop, an impossible name
        return None


def _denied(shown: str, error: OSError) -> DocumentError:
    return DocumentError(f"cannot read {shown!r}: {error.strerror}", hint=f"ls -ld {shlex.quote(shown)}")


def _missing(path: Path) -> UsageError:
    target = _link_target(path)
    if target:
        return UsageError(f"{str(path)!r} is a link to {target!r}, which is not there", hint=f"ls -l {path}")
    parent = next(folder for folder in path.parents if _mode(folder) or folder == folder.parent)
    missing = parent / path.relative_to(parent).parts[0]
    names = _names(parent)
    same = [name for name in names if name.casefold() == missing.name.casefold()]
    near = same or difflib.get_close_matches(missing.name, names, n=3, cutoff=0.6)
    if near:
        hint = "did you mean " + " or ".join(repr(str(parent / name)) for name in near) + "?"
    else:
        hint = f"see what is there: ls {shlex.quote(str(parent))}"
    return UsageError(f"no file or directory {str(missing)!r}", hint=hint)


def _link_target(path: Path) -> str:
    try:
        return str(path.readlink())
    except (OSError, ValueError):  # no link
        return ""


def _names(directory: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in directory.iterdir())
    except OSError:
        return []


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
