"""What Tab does: it writes as much as is certain, then shows a menu; and the paths that a folder has to offer.

The candidates are looked up while the key is handled, so that what is typed right behind Tab comes after them.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from prompt_toolkit.buffer import Buffer, CompletionState
from prompt_toolkit.completion import Completion, get_common_complete_suffix

__all__ = ["complete", "paths_beginning"]


def complete(buffer: Buffer, candidates: Callable[[str], Sequence[str]]) -> None:
    """One press of Tab: the next choice of an open menu, or what the line up to the cursor may become.

    `candidates` is given that line and returns texts to stand in its place; a text of several lines has none.
    """
    if buffer.complete_state:
        buffer.complete_next()
        return
    line = buffer.document.text_before_cursor
    found = [] if "\n" in line else [_completion(line, candidate) for candidate in candidates(line)]
    if len(found) == 1:
        buffer.apply_completion(found[0])
    elif certain := get_common_complete_suffix(buffer.document, found):
        buffer.insert_text(certain)
    elif found:
        buffer.complete_state = CompletionState(buffer.document, found)


def _completion(line: str, candidate: str) -> Completion:
    return Completion(candidate, start_position=-len(line), display=_last_part(line, candidate))


def paths_beginning(fragment: str) -> list[str]:
    """The files and folders whose path begins with `fragment`, as it was written; a folder ends in `/`.

    A name that begins with a dot is offered when the fragment's does; what cannot be listed has none.
    """
    folder, slash, beginning = fragment.rpartition("/")
    try:
        names = sorted(_names(Path(folder + slash).expanduser()))
    except (OSError, RuntimeError, ValueError):  # not there, not readable, no home directory, a null character
        return []
    shown = (name for name in names if name.startswith(beginning) and (beginning or not name.startswith(".")))
    return [f"{folder}{slash}{name}" for name in shown]


def _names(folder: Path) -> Iterator[str]:
    for path in folder.iterdir():
        if path.name.isprintable():
            yield f"{path.name}/" if path.is_dir() else path.name


def _last_part(line: str, candidate: str) -> str:
    """What is new in `candidate`, from the beginning of the word (or of the path's last part) that it ends."""
    same = len(line) if candidate.startswith(line) else 0
    begin = max(candidate.rfind(mark, 0, same) + 1 for mark in " /")
    return candidate[begin:] or candidate
