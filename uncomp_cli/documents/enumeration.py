"""How the items of lists are numbered: what stands before each is nowhere in a file, and is counted.

A `Numbered` list counts by the pattern of each level ("%1.%2"), as Word and OpenDocument have them; the lists of a page
count by themselves, some down from their length.
"""

import re
from dataclasses import dataclass, field, replace

from uncomp_cli.documents.attributes import Attributes, integer_of

_FIRST_MARK, _MARKS = 0xFDD4, 12  # for the numbers of lists that count down, until their length is known
_ROMAN = ((1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"), (40, "xl"), (10, "x"))
_ROMAN_DIGITS = ("", "i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix")


def ordinal(kind: str, number: int) -> str:
    """A number as lists count: of kind `1`, `a`, `A`, `i` or `I`, as HTML names them; in figures where need be."""
    if kind in ("a", "A") and number > 0:
        text = chr(ord("a") + (number - 1) % 26) * ((number - 1) // 26 + 1) if number <= 26 * 9 else str(number)
    elif kind in ("i", "I") and 0 < number < 4000:
        text = ""
        for value, letters in _ROMAN:
            text += letters * (number // value)
            number %= value
        text += _ROMAN_DIGITS[number]
    else:
        return str(number)
    return text.upper() if kind in ("A", "I") else text


@dataclass(slots=True)
class Level:
    """A level of a list: its kind of numbers as HTML names them, `bullet` or `none`; and what is shown of which."""

    kind: str
    pattern: str
    start: int
    count: int | None = None

    @property
    def shown(self) -> str:
        """Its number; before the first item that of the first."""
        count = self.start if self.count is None else self.count
        if self.kind == "none":
            return ""
        return f"{count:02}" if self.kind == "01" else ordinal(self.kind, count)


@dataclass(slots=True)
class Numbered:
    """A list that counts; the first level is 0."""

    levels: dict[int, Level] = field(default_factory=dict)

    def label(self, level: int) -> str | None:
        """The label of its next item: `-` for a bullet; None for a level that it does not have."""
        here = self.levels.get(level)
        if here is None:
            return None
        here.count = here.start if here.count is None else here.count + 1
        for deeper, other in self.levels.items():
            if deeper > level:
                other.count = None
        if here.kind == "bullet":
            return "-"
        return re.sub(r"%([1-9])", lambda match: self._shown(int(match[1]) - 1), here.pattern).strip()

    def _shown(self, level: int) -> str:
        return self.levels[level].shown if level in self.levels else ""


def count_of(attributes: Attributes, name: str) -> int:
    """A number of 1 or more as OpenDocument's attributes have it; 1 where there is none."""
    text = attributes.get(name, "1")
    return max(int(text), 1) if text.isascii() and text.isdecimal() and len(text) < 8 else 1


class OfficeLists:
    """The lists of an OpenDocument text. Their styles, of which "" is that of headings, are described before them."""

    def __init__(self) -> None:
        self._styles: dict[str, dict[int, Level]] = {}
        self._levels: dict[int, Level] = {}  # of the style that is described
        self._open: list[tuple[str, Numbered]] = []  # with their styles' names
        self._known: dict[str, Numbered] = {}  # lists by their own names, and the last of each style by that

    def __len__(self) -> int:
        return len(self._open)

    def describe(self, style: str) -> None:
        """A style begins."""
        self._levels = self._styles[style] = {}

    def add_bullets(self, attributes: Attributes) -> None:
        """A level of it that is not numbered."""
        self._levels[count_of(attributes, "level") - 1] = Level("bullet", "", 1)

    def add_numbers(self, attributes: Attributes) -> None:
        """A level that is: its own number behind those of some levels above it."""
        level, kind = count_of(attributes, "level"), attributes.get("num-format", "")
        first = max(level - count_of(attributes, "display-levels"), 0) + 1
        shown = ".".join(f"%{number}" for number in range(first, level + 1)) if kind else ""
        pattern = attributes.get("num-prefix", "") + shown + attributes.get("num-suffix", "") if kind else ""
        start = attributes.get("start-value", "1")
        self._levels[level - 1] = Level(
            kind or "none", pattern, int(start == "1") if start in "01" else count_of(attributes, "start-value")
        )

    def begin(self, attributes: Attributes) -> None:
        """A list begins, in another one or by itself, which may go on with an earlier one."""
        name = attributes.get("style-name", "")
        if self._open and name in ("", self._open[-1][0]):
            self._open.append(self._open[-1])
            return
        known = attributes.get("continue-list") or (name if attributes.get("continue-numbering") == "true" else "-")
        levels = self._styles.get(name, {})
        made = self._known.get(known) or Numbered({level: replace(found) for level, found in levels.items()})
        self._known |= {name: made, attributes.get("id", name): made} if name else {}
        self._open.append((name, made))

    def end(self) -> None:
        """The innermost list ends."""
        self._open.pop()

    def label(self, attributes: Attributes) -> str:
        """What stands before the next item."""
        level, (_, numbered) = len(self._open) - 1, self._open[-1] if self._open else ("", Numbered())
        if "start-value" in attributes and level in numbered.levels:
            numbered.levels[level].count = count_of(attributes, "start-value") - 1
        return numbered.label(level) or "-"

    def heading_label(self, level: int) -> str | None:
        """What stands before the next heading of a level, of which the first is 0."""
        return self._known.setdefault("", Numbered(self._styles.get("", {}))).label(level)


@dataclass(slots=True)
class _PageList:
    """Its kind of numbers ("": none), the next, the step; a mark for each where only its length tells them."""

    kind: str
    number: int
    step: int = 1
    mark: str = ""
    items: int = 0


class PageLists:
    """The lists of an HTML page."""

    def __init__(self) -> None:
        self._open: list[_PageList] = []
        self._down: list[_PageList] = []  # whose length says their first number

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, attributes: Attributes, *, numbered: bool) -> None:
        """A list begins."""
        kind = attributes.get("type", "1") if numbered else ""
        found = _PageList(kind, integer_of(attributes.get("start", ""), 1))
        if kind and "reversed" in attributes:
            found.step = -1
            if "start" not in attributes:
                found.mark = chr(_FIRST_MARK + len(self._down) % _MARKS)
                self._down.append(found)
        self._open.append(found)

    def end(self) -> None:
        """The innermost list ends."""
        self._open.pop()

    def label(self, attributes: Attributes) -> str:
        """What stands before the next item."""
        found = self._open[-1] if self._open else _PageList("", 1)
        found.number = integer_of(attributes.get("value", ""), found.number)
        found.items += 1
        label = found.mark or ordinal(found.kind, found.number)
        found.number += found.step
        return f"{label}." if found.kind else "-"

    def settled(self, text: str) -> str:
        """The text with the numbers of lists whose length is known only now, for their marks."""
        for mark in {found.mark for found in self._down}:
            lists = (found for found in self._down if found.mark == mark)
            labels = [ordinal(found.kind, number) for found in lists for number in range(found.items, 0, -1)]
            parts = text.split(mark)
            text = parts[0] + "".join(label + part for label, part in zip(labels, parts[1:], strict=False))
        return text
