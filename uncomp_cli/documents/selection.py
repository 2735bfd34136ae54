"""What a path argument stands for: one file, the files below a folder, or the matches of a glob.

A folder is walked in sorted order; hidden entries, links to folders and what git ignores (gitignore.py) are not
entered. `--include` globs choose among its files, and take in what they name: `.*` hidden ones, `build/**` or `**/*`
what git ignores. A path that exists is never a glob, and a `~` that no shell has seen is the home folder.
"""

import difflib
import errno
import glob
import os
import re
import shlex
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from uncomp_cli.documents.formats import READABLE_SUFFIXES, kind_of
from uncomp_cli.documents.gitignore import Ignored, glob_pattern
from uncomp_cli.errors import DocumentError, UncompError, UsageError
from uncomp_cli.files import absolute

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]{1,20}://", re.IGNORECASE)
_REASONS_SHOWN = 3
_NAMED = 5
_UNPRINTED = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


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


def shown(path: str | Path) -> str:
    """The path as text that is one line: what is no letter of it becomes the replacement character."""
    return _UNPRINTED.sub("\ufffd", os.fsencode(path).decode("utf-8", "replace"))


def select(argument: str, *, include: Sequence[str] = ()) -> Selection:
    """The candidates of one argument; `include` filters inside folders.

    UsageError: nothing is there, or nothing matches. DocumentError: a device, or a folder that cannot be listed.
    """
    if not argument:
        raise UsageError("an empty path names no document", hint="name a file, a directory, a glob, or '-' for stdin")
    mode = _mode_of_argument(argument)
    if mode is None and argument.startswith("~"):
        argument = _from_home(argument)
        mode = _mode_of_argument(argument)
    if mode is None and ADDRESS.match(argument):
        hint = f"fetch it first: curl -L -o page.html {shlex.quote(argument)}; then -f page.html"
        raise UsageError(f"{argument!r} is an address on the network, and nothing is fetched", hint=hint)
    if mode is None and glob.has_magic(argument):
        return _glob(argument, _Wanted(tuple(include)))
    if mode is None:
        raise _missing(Path(argument))
    if stat.S_ISDIR(mode):
        return _folder(argument, _Wanted(tuple(include)))
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
        raise DocumentError(f"{shown(argument)!r} is a device or socket, not a file", hint="use '-' for standard input")
    return Selection(argument, True, (Candidate(Path(argument)),))


def candidates(argument: str, *, include: Sequence[str] = ()) -> Iterator[Candidate]:
    """The candidates of one argument, those below a folder as they are met: for folders of any size."""
    if Path(argument).is_dir():
        return _walk(Path(argument), _Wanted(tuple(include)))
    return iter(select(argument, include=include).candidates)


def nothing_readable(argument: str, refusals: Sequence[tuple[str, UncompError]]) -> UsageError:
    """Why no candidate of an argument could be read."""
    hints = {error.hint for _, error in refusals}
    shared_hint = hints.pop() if len(hints) == 1 else None
    return UsageError(
        f"nothing to read in {shown(argument)!r}{_listed(refusals) or ': it is empty'}",
        hint=shared_hint or "name a file, or choose files in a directory with --include '*.SUFFIX'",
    )


def _listed(refusals: Sequence[tuple[str, UncompError]]) -> str:
    """` (a.png: it is a PNG image; b.png: …; and 3 more)`."""
    if not refusals:
        return ""
    more = len(refusals) - _REASONS_SHOWN
    tail = f"; and {more:,} more" if more > 0 else ""
    return f" ({'; '.join(f'{path}: {error.message}' for path, error in refusals[:_REASONS_SHOWN])}{tail})"


class _Wanted:
    """The globs of --include; one without a slash is for the name alone, at any depth. Without globs all is wanted."""

    def __init__(self, globs: tuple[str, ...]) -> None:
        self.globs = globs
        clean = [each.removeprefix("./") for each in globs]
        self._files = [glob_pattern(each if "/" in each else f"**/{each}", hidden=False) for each in clean]
        parts = [each.split("/")[:end] for each in clean for end in range(1, each.count("/") + 1)]
        deep = [each.split("/") for each in clean if each.endswith("/**")]
        self._folders = [glob_pattern("/".join(each), hidden=False) for each in (*parts, *deep)]

    def names(self, below: str, *, is_folder: bool) -> bool:
        """Whether a glob names this very file, or with a slash in it what may lie in this folder."""
        return any(each.fullmatch(below) for each in (self._folders if is_folder else self._files))

    def without_dots(self, below: str) -> bool:
        """Whether a file is named but for the dot in front of it."""
        return any(each.fullmatch(re.sub(r"(^|/)\.+", r"\1", below)) for each in self._files)


def _folder(argument: str, wanted: _Wanted) -> Selection:
    candidates = tuple(_walk(Path(argument), wanted))
    if wanted.globs and all(candidate.refusal for candidate in candidates):
        why = _listed([(shown(each.path), DocumentError(each.refusal)) for each in candidates])
        globs = " or ".join(repr(each) for each in wanted.globs)
        hint = f"find {shlex.quote(shown(argument))}"
        raise UsageError(f"no file in {shown(argument)!r} matches --include {globs}{why}", hint=hint)
    return Selection(argument, False, candidates)


def _glob(argument: str, wanted: _Wanted) -> Selection:
    """Matches as a shell would expand them; pathlib's glob takes hidden files in, and differs between versions."""
    candidates: list[Candidate] = []
    for match in sorted(glob.glob(argument, recursive=True)):  # noqa: PTH207  # hidden files
        path = Path(match)
        mode = _mode(path)
        candidates += _walk_below(path, wanted) if stat.S_ISDIR(mode) else [Candidate(path, _irregular(mode))]
    if not candidates:
        hint = "'**' goes through directories, '*' stays within one"
        raise UsageError(f"no file matches {shown(argument)!r}", hint=hint)
    return Selection(argument, False, tuple(dict.fromkeys(candidates)))


def _walk_below(root: Path, wanted: _Wanted) -> list[Candidate]:
    try:
        return list(_walk(root, wanted))
    except DocumentError as error:
        return [Candidate(root, error.message)]


def _walk(root: Path, wanted: _Wanted) -> Iterator[Candidate]:
    """What lies below a folder, however deep, in order. Raises DocumentError where the folder cannot be listed."""
    top = absolute(root)
    waiting = [(iter(_entries(root)), Ignored.above(root).within(top), "")]
    while waiting:
        entries, ignored, folder = waiting[-1]
        entry = next(entries, None)
        if entry is None:
            waiting.pop()
            continue
        below = folder + entry.name
        found, is_folder = _look_at(entry, below, wanted, ignored, f"{top}/{below}")
        if is_folder and found is not None and not found.refusal:
            try:
                waiting.append((iter(_entries(entry)), ignored.within(f"{top}/{below}"), f"{below}/"))
            except DocumentError as error:
                yield Candidate(entry, error.message)
        elif found is not None:
            yield found


def _look_at(entry: Path, below: str, wanted: _Wanted, ignored: Ignored, path: str) -> tuple[Candidate | None, bool]:
    """What is to be done with an entry, and whether it is a folder; None with one that nobody asked for."""
    mode = _mode(entry)
    is_folder = stat.S_ISDIR(mode)
    if wanted.names(below, is_folder=is_folder):
        refusal = ""
    elif entry.name.startswith("."):
        if wanted.globs and (is_folder or not wanted.without_dots(below)):
            return None, is_folder
        refusal = "hidden"
    elif wanted.globs and not is_folder:
        return None, False
    else:
        refusal = "left out by .gitignore" if ignored.leaves_out(path, is_folder=is_folder) else ""
    if is_folder and not refusal:
        refusal = "a link to a directory, not followed" if entry.is_symlink() else ""
    elif not refusal:
        refusal = _irregular(mode) or ("" if wanted.globs else _unknown_suffix(entry))
    return Candidate(entry, refusal), is_folder


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise _denied(folder, error) from error


def _unknown_suffix(path: PurePath) -> str:
    suffix = path.suffix.lower()
    if not suffix or suffix in READABLE_SUFFIXES:
        return ""
    kind = kind_of(suffix)
    return f"suffix {suffix!r} is that of {kind}" if kind else f"suffix {suffix!r} is not known as a document"


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


def _from_home(argument: str) -> str:
    """`~/notes.md` as a shell would have given it; as it is where there is no such user."""
    try:
        return str(Path(argument).expanduser())
    except RuntimeError:
        return argument


def _denied(path: str | Path, error: OSError) -> DocumentError:
    return DocumentError(f"cannot read {shown(path)!r}: {error.strerror}", hint=f"ls -ld {shlex.quote(shown(path))}")


def _missing(path: Path) -> UsageError:
    target = _link_target(path)
    if target:
        hint, why = (
            f"ls -l {shlex.quote(shown(path))}",
            "which leads back to it" if _loops(path) else "which is not there",
        )
        return UsageError(f"{shown(path)!r} is a link to {shown(target)!r}, {why}", hint=hint)
    parent = next(folder for folder in path.parents if _mode(folder) or folder == folder.parent)
    missing = parent / path.relative_to(parent).parts[0]
    names = _names(parent)
    same = [name for name in names if name.casefold() == missing.name.casefold()]
    near = same or difflib.get_close_matches(missing.name, names, n=3, cutoff=0.6)
    if near:
        hint = "did you mean " + " or ".join(repr(shown(parent / name)) for name in near) + "?"
    else:
        hint = f"in {shown(parent)} there is {_some(names)}"
    return UsageError(f"no file or directory {shown(missing)!r}", hint=hint)


def _some(names: Sequence[str]) -> str:
    """`a.md, b.md, c.md and 12 more`, without what is hidden."""
    seen = sorted(shown(name) for name in names if not name.startswith("."))
    more = f" and {len(seen) - _NAMED} more" if len(seen) > _NAMED else ""
    return f"{', '.join(seen[:_NAMED])}{more}" if seen else "nothing"


def _link_target(path: Path) -> str:
    try:
        return str(path.readlink())
    except (OSError, ValueError):  # no link
        return ""


def _loops(path: Path) -> bool:
    try:
        path.stat()
    except OSError as error:
        return error.errno == errno.ELOOP
    return False


def _names(folder: Path) -> list[str]:
    try:
        return sorted(entry.name for entry in folder.iterdir())
    except OSError:
        return []
