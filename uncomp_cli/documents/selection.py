"""What a path argument stands for: one file, the files below a directory, or the matches of a glob.

Entries that are passed over stay in the selection with the reason, so that nothing is left out unseen. A directory is
walked in sorted order; hidden entries and links to directories are not entered. A path that exists is never a glob.
"""

import difflib
import glob
import shlex
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePath, PurePosixPath

from uncomp_cli.documents.formats import READABLE_SUFFIXES
from uncomp_cli.errors import DocumentError, UsageError


@dataclass(frozen=True, slots=True)
class Candidate:
    """A path, and, if it is not to be opened, why."""

    path: Path
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Selection:
    """What an argument stands for; `named` when the user named this very file, and not reading it is an error."""

    argument: str
    named: bool
    candidates: tuple[Candidate, ...]


def select(argument: str, *, include: Sequence[str] = ()) -> Selection:
    """The candidates of one argument; `include` filters inside directories.

    UsageError: nothing is there, or nothing matches. DocumentError: a device, or a directory that cannot be listed.
    """
    if not argument:
        raise UsageError("an empty path names no document", hint="name a file, a directory, a glob, or '-' for stdin")
    mode = _mode_of_argument(argument)
    if mode is None and glob.has_magic(argument):
        return _glob(argument, include)
    if mode is None:
        raise _missing(Path(argument))
    if stat.S_ISDIR(mode):
        return _directory(argument, include)
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
        raise DocumentError(f"{argument!r} is a device or socket, not a file", hint="use '-' to read standard input")
    return Selection(argument, True, (Candidate(Path(argument)),))


def _directory(argument: str, include: Sequence[str]) -> Selection:
    root = Path(argument)
    candidates = _walk(root, root, include)
    if include and all(candidate.refusal for candidate in candidates):
        patterns = " or ".join(repr(pattern) for pattern in include)
        raise UsageError(f"no file in {argument!r} matches --include {patterns}", hint=f"find {shlex.quote(argument)}")
    return Selection(argument, False, tuple(dict.fromkeys(candidates)))


def _glob(argument: str, include: Sequence[str]) -> Selection:
    """Matches as a shell would expand them; pathlib's glob takes hidden files in, and differs between versions."""
    candidates: list[Candidate] = []
    for match in sorted(glob.glob(argument, recursive=True)):  # noqa: PTH207  # hidden files
        path = Path(match)
        mode = _mode(path)
        candidates += _walk_below(path, path, include) if stat.S_ISDIR(mode) else [Candidate(path, _irregular(mode))]
    if not candidates:
        raise UsageError(f"no file matches {argument!r}", hint="'**' goes through directories, '*' stays within one")
    return Selection(argument, False, tuple(dict.fromkeys(candidates)))


def _walk(directory: Path, root: Path, include: Sequence[str]) -> list[Candidate]:
    try:
        entries = sorted(directory.iterdir())
    except OSError as error:
        raise _denied(str(directory), error) from error
    return [candidate for entry in entries for candidate in _visit(entry, root, include)]


def _walk_below(directory: Path, root: Path, include: Sequence[str]) -> list[Candidate]:
    try:
        return _walk(directory, root, include)
    except DocumentError as error:
        return [Candidate(directory, error.message)]


def _visit(entry: Path, root: Path, include: Sequence[str]) -> list[Candidate]:
    if entry.name.startswith("."):
        return [Candidate(entry, "hidden")]
    mode = _mode(entry)
    if stat.S_ISDIR(mode):
        if entry.is_symlink():
            return [Candidate(entry, "a link to a directory, not followed")]
        return _walk_below(entry, root, include)
    if include and not _included(entry.relative_to(root), include):
        return []
    return [Candidate(entry, _irregular(mode) or ("" if include else _unknown_suffix(entry)))]


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
    near = difflib.get_close_matches(missing.name, _names(parent), n=3, cutoff=0.6)
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
