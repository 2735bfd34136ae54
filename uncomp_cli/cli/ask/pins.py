"""Pins: `--pin FILE:10-40`, lines of a document that no head drops.

Pinned tokens are protected as the template is, and counted in the budget like all others: what they take, the rest of
the document does not get. So a budget that is too small for them is refused.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from os.path import normpath
from pathlib import PurePath
from typing import TYPE_CHECKING

from uncomp_cli.documents.places import Places
from uncomp_cli.errors import DoesNotFitError, UsageError

if TYPE_CHECKING:
    from uncomp_cli.engine.tokens.prompt import Prompt

__all__ = ["Pin", "blame", "parse_pin", "pinned_tokens", "protect", "resolve"]

_PIN = re.compile(r"(?P<path>.+):(?P<first>\d{1,9})(?:-(?P<last>\d{1,9}))?")


@dataclass(frozen=True, slots=True)
class Pin:
    """Lines `first_line` to `last_line`, the first is 1, of a document."""

    path: str
    first_line: int
    last_line: int

    def __str__(self) -> str:
        end = "" if self.first_line == self.last_line else f"-{self.last_line}"
        return f"{self.path}:{self.first_line}{end}"


def parse_pin(text: str) -> Pin:
    """The pin that `FILE:10-40` or `FILE:10` writes; raises UsageError for anything else."""
    match = _PIN.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"--pin '{text}' names no lines of a file", hint="write --pin FILE:10-40, or --pin FILE:10")
    first = int(match["first"])
    return Pin(match["path"], first, int(match["last"] or first))


def resolve(pins: Sequence[Pin], paths: Sequence[str]) -> tuple[Pin, ...]:
    """The pins with the documents' own `paths`: `./a.md` for `a.md`, or a file's name where one only has it."""
    return tuple(replace(pin, path=_path(pin.path, paths)) for pin in pins)


def _path(named: str, paths: Sequence[str]) -> str:
    same = [path for path in paths if path == named] or [path for path in paths if normpath(path) == normpath(named)]
    found = same or [path for path in paths if PurePath(path).name == named]
    return found[0] if len(found) == 1 else named


def pinned_tokens(pins: Sequence[Pin], places: Places) -> list[int]:
    """The tokens of all pins. Raises UsageError for a document or lines that are not there."""
    found: set[int] = set()
    for pin in pins:
        found.update(places.tokens_of(pin.path, pin.first_line, pin.last_line))
    return sorted(found)


def protect(prompt: "Prompt", tokens: Sequence[int]) -> "Prompt":
    """The prompt with these context tokens protected."""
    if not tokens:
        return prompt
    protected = prompt.context.protected.clone()
    protected[list(tokens)] = True
    return replace(prompt, context=replace(prompt.context, protected=protected))


def blame(
    error: DoesNotFitError,
    pins: Sequence[Pin],
    pinned: "Prompt",
    unpinned: "Prompt",
    *,
    plan: "Callable[[Prompt], object]",
) -> DoesNotFitError:
    """The refusal of a `pinned` prompt, with its pins named when `plan` does not refuse it without them."""
    if not pins:
        return error
    try:
        plan(unpinned)
    except DoesNotFitError:
        return error
    num_tokens = int(pinned.context.protected.sum()) - int(unpinned.context.protected.sum())
    message = f"{error.message}; {num_tokens:,} of them are pinned: {', '.join(map(str, pins))}"
    return DoesNotFitError(message, hint=f"pin fewer lines, or {error.hint}" if error.hint else "pin fewer lines")
