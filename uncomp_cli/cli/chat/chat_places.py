"""Places in a conversation's documents: `FILE:10-40` as characters, and the sources that evidence is looked for in.

Characters count through the texts of all messages, one behind the other, system prompt first, as the engine's do.
"""

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from uncomp_cli.asking.material import resolve
from uncomp_cli.asking.request import parse_pin
from uncomp_cli.cli.chat.said import Dialogue, spoken
from uncomp_cli.errors import UsageError
from uncomp_cli.sessions.transcript import Pin

if TYPE_CHECKING:
    from uncomp_cli.documents.places import Source

__all__ = ["Page", "pages", "pin_of", "sources"]


@dataclass(frozen=True, slots=True)
class Page:
    """A document's text, blank lines in front included, in which entry and where it begins there, and among all."""

    path: str
    sha256: str
    text: str
    entry: int
    first_char: int
    base: int

    @property
    def lines(self) -> list[str]:
        """Without line ends."""
        return self.text.split("\n")

    def pin(self, first_line: int, last_line: int) -> Pin:
        """A pin of these lines."""
        begin = self.first_char + sum(len(line) + 1 for line in self.lines[: first_line - 1])
        text = "\n".join(self.lines[first_line - 1 : last_line])
        lines = str(first_line) if first_line == last_line else f"{first_line}-{last_line}"
        return Pin(self.entry, begin, begin + len(text), f"{self.path}:{lines}")


def pages(dialogue: Dialogue) -> list[Page]:
    """The documents of the conversation, in its order, those that wait for a question last."""
    return [
        Page(each.path, each.sha256, entry.text[each.first_char : each.last_char], number, each.first_char, base)
        for number, (base, entry) in enumerate(dialogue.placed(dialogue.waiting()))
        for each in entry.attachments
    ]


def sources(dialogue: Dialogue) -> "list[Source]":
    """Where evidence may lie: the documents, and what the user wrote before the latest question."""

    found = [_source(page.path, page.text, page.base + page.first_char) for page in pages(dialogue)]
    asked = [(base, entry) for base, entry in dialogue.placed() if entry.role == "user"]
    for number, (base, entry) in enumerate(asked[:-1], start=1):
        words = spoken(entry)
        found.append(_source(f"[turn {number}]", words, base + len(entry.text) - len(words)))
    return [source for source in found if source.text.strip()]


def pin_of(text: str, dialogue: Dialogue) -> Pin:
    """The pin that `FILE:10-40` or `FILE:10` names. Raises UsageError for what is not there."""
    found = pages(dialogue)
    (wanted,) = resolve([parse_pin(text)], list(dict.fromkeys(page.path for page in found)))
    page = _page(wanted.path, found)
    first, last = wanted.first_line, wanted.last_line
    count = len(page.lines)
    if not 1 <= first <= last <= count:
        low, high = sorted((min(max(first, 1), count), min(max(last, 1), count)))
        hint = f"/pin {page.path}:{low}-{high}"
        raise UsageError(f"{page.path} has lines 1 to {count}, not {first}-{last}", hint=hint)
    return page.pin(first, last)


def _source(path: str, text: str, first_char: int) -> "Source":
    """Of `text`, which begins at `first_char` among all messages."""
    from uncomp_cli.documents.places import Source

    return Source(path, text, first_char + len(text) - len(text.lstrip()))


def _page(name: str, known: list[Page]) -> Page:
    """The document of this path."""
    same = [page for page in known if page.path == name]
    if same:
        return same[-1]
    paths = [page.path for page in known]
    near = difflib.get_close_matches(name, paths, n=1)
    if near:
        hint = f"did you mean {near[0]}?"
    else:
        hint = f"there {'are' if len(paths) > 1 else 'is'} {', '.join(paths)}" if paths else "/file FILE adds one"
    raise UsageError(f"no document '{name}' is in the conversation", hint=hint)
