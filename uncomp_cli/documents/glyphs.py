"""Where glyphs stand on a page, to runs and lines: spaces, accents, exponents and indices.

A file says where each glyph stands, and not what it belongs to. Glyphs in the file's order make runs (no gap of an em
between them), runs on one baseline make a line. Lengths are in ems of a line's font; x grows to the right, y upwards.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import NamedTuple

GUESSED = "\x1f"  # stands for a space that is not in the file, where PDFium sees one
WHITE = f" \n{GUESSED}"
_GAP = 0.9
_LETTERED, _EVEN = 0.2, 2.0  # of letters set wide: the most between two of them, and how unlike such gaps may be
_LOOK_BACK = 300
_SCRIPT = 0.85  # smaller than this, it is an exponent or an index
_LEADER = re.compile(r"(?: ?\.){5,}|(?: \.){4,}")
_ACCENTS = dict(zip("¨´ˆ˜¸ˇ˚˝¯˙", "\u0308\u0301\u0302\u0303\u0327\u030c\u030a\u030b\u0304\u0307", strict=True))
_DOTLESS = {0x131: "i", 0x237: "j"}


class Glyph(NamedTuple):
    """A character, its left and right edge, its baseline, the size of its font; `turn` in quarters of a circle."""

    char: str
    left: float
    right: float
    base: float
    em: float
    turn: int = 0


class Space(NamedTuple):
    """A space in a run: behind which character of its text, and its two edges."""

    at: int
    left: float
    right: float


@dataclass(frozen=True, slots=True)
class Run:
    """Text without gaps on one baseline; `spaces` are those between its words, where the file says where they are.

    `begins`: other lines say that a column begins with it (gutters.py).
    """

    text: str
    left: float
    right: float
    base: float
    em: float
    turn: int = 0
    spaces: tuple[Space, ...] = ()
    begins: bool = False

    def parted(self, at: Space) -> "tuple[Run, Run]":
        """What stands before one of its spaces, and behind it."""
        before = tuple(each for each in self.spaces if each.at < at.at)
        after = tuple(each._replace(at=each.at - at.at - 1) for each in self.spaces if each.at > at.at)
        return (
            replace(self, text=self.text[: at.at].rstrip(), right=at.left, spaces=before),
            replace(self, text=self.text[at.at + 1 :], left=at.right, spaces=after, begins=True),
        )


@dataclass(frozen=True)
class Line:
    """Runs on one baseline, from left to right as the file has them."""

    runs: tuple[Run, ...]

    @cached_property
    def text(self) -> str:
        """The runs with spaces between."""
        return " ".join(run.text for run in self.runs)

    @cached_property
    def left(self) -> float:
        """The left edge."""
        return min(run.left for run in self.runs)

    @cached_property
    def right(self) -> float:
        """The right edge."""
        return max(run.right for run in self.runs)

    @cached_property
    def em(self) -> float:
        """Of the tallest run."""
        return max(run.em for run in self.runs)

    @cached_property
    def base(self) -> float:
        """Of the tallest run."""
        return max(self.runs, key=lambda run: run.em).base


class _Pen:
    """Writes glyphs into a run, and says what comes between two of them."""

    def __init__(self, glyph: Glyph) -> None:
        self._first, self._last, self._level = glyph, glyph, glyph
        self._parts = [glyph.char]
        self._left, self._right = glyph.left, glyph.right
        self._spaces: list[tuple[int, float, float]] = []  # behind which part, and its edges
        self._pitch = 0.0  # the gap between the last two glyphs

    def goes_on(self, glyph: Glyph) -> bool:
        """Write a glyph that plainly stands next to the last one; False, and nothing written, for any other."""
        last = self._last
        if glyph.base != last.base or glyph.em != last.em or glyph.turn != last.turn:
            return False
        gap = glyph.left - last.right
        if not -0.3 * last.em < gap < 0.2 * last.em:
            return False
        self._parts.append(glyph.char)
        self._pitch, self._last = gap, glyph
        if glyph.right > self._right:
            self._right = glyph.right
        return True

    def is_even(self, glyph: Glyph) -> bool:
        """Whether a glyph stands about as near to the last one as that to the one before: there is no space."""
        last = self._last
        gap = glyph.left - last.right
        return glyph.base == last.base and 0 < gap < min(_EVEN * self._pitch, _LETTERED * last.em)

    def fits(self, glyph: Glyph, *, between: str) -> bool:
        """Whether a glyph is on this run's line: by what the file says, or by where it stands."""
        if glyph.turn != self._last.turn:
            return False
        em = max(glyph.em, self._last.em)
        down, gap = abs(glyph.base - self._last.base) / em, (glyph.left - self._last.right) / em
        return between != "\n" or (down < 0.5 and gap > -0.5) or (down < 0.8 and abs(gap) < 0.3)

    def gap(self, glyph: Glyph) -> float:
        """The space between the last glyph and this one, in ems; text that runs to the left has it too."""
        space = max(glyph.left - self._last.right, self._last.left - glyph.right)
        return space / max(glyph.em, self._last.em, 0.1)

    def write(self, glyph: Glyph, between: str) -> None:
        """Add a glyph of this run."""
        if between in ("", "\n"):
            between = " " if self.gap(glyph) > (0.15 if between else 0.24) else ""
        between = " " if between == GUESSED else between
        self._pitch = 0.0
        if between and glyph.left > self._last.right:
            self._spaces.append((len(self._parts), self._last.right, glyph.left))
        self._parts += (between or self._mark(glyph), glyph.char)
        self._left, self._right = min(self._left, glyph.left), max(self._right, glyph.right)
        self._last = glyph
        if glyph.em >= _SCRIPT * self._level.em:
            self._level = glyph

    def _mark(self, glyph: Glyph) -> str:
        """`^` or `_` before what stands smaller and higher or lower than the text before: 10^6, H_2O."""
        level, before = self._level, self._last
        if level.em < _SCRIPT * glyph.em and level.base > glyph.base + 0.1 * glyph.em:
            return " "  # a footnote's number before its text
        if glyph.em >= _SCRIPT * level.em or before.em < _SCRIPT * level.em:
            return ""
        if not (glyph.char.isdigit() or glyph.char in "+-−" or (glyph.char.islower() and before.char.isalpha())):
            return ""
        shift = (glyph.base - level.base) / level.em
        return "^" if shift > 0.2 else "_" if shift < -0.07 else ""

    def run(self) -> Run:
        """What was written."""
        whole = "".join(self._parts)
        text = _LEADER.sub(" … ", whole).strip()
        spaces = self._placed_spaces() if text == whole else ()
        return Run(text, self._left, self._right, self._level.base, self._level.em, self._first.turn, tuple(spaces))

    def _placed_spaces(self) -> Iterator[Space]:
        ends = [0, *accumulate(map(len, self._parts))]
        return (Space(ends[part], left, right) for part, left, right in self._spaces)


def _accented(glyphs: Iterable[Glyph]) -> list[Glyph]:
    """Glyphs, accents made one with the letters that they stand over; a combining one over no letter is no text."""
    glyphs = list(glyphs)
    if "".join(glyph.char for glyph in glyphs).isascii():
        return glyphs
    found: list[Glyph] = []
    waiting: list[Glyph] = []
    for glyph in glyphs:
        if glyph.char > "\x7f" and (glyph.char in _ACCENTS or _is_combining(glyph.char)):
            i = next(
                (i for i in range(len(found) - 1, max(len(found) - _LOOK_BACK, -1), -1) if _composed(found[i], glyph)),
                -1,
            )
            if i < 0:
                waiting.append(glyph)
            else:
                found[i] = _composed(found[i], glyph) or glyph
            continue
        if waiting and glyph.char not in WHITE:
            made = _composed(glyph, waiting[-1])
            found += [accent for accent in (waiting[:-1] if made else waiting) if not _is_combining(accent.char)]
            glyph, waiting = made or glyph, []
            if made and found and found[-1].char in (" ", GUESSED):  # it parted the accent, and not the letter
                found[-1] = found[-1]._replace(char="\n")
        found.append(glyph)
    return found


def _composed(letter: Glyph, accent: Glyph) -> Glyph | None:
    """A letter with the accent over it; None where the accent does not stand over it, or no such letter is known."""
    aside = abs(letter.left + letter.right - accent.left - accent.right) / 2
    if aside > 0.15 * letter.em or not letter.char.isalpha():
        return None
    if abs(letter.base - accent.base) > 0.7 * letter.em or letter.turn != accent.turn:
        return None
    char = unicodedata.normalize("NFC", letter.char.translate(_DOTLESS) + _ACCENTS.get(accent.char, accent.char))
    return letter._replace(char=char) if len(char) == 1 else None


def _is_combining(char: str) -> bool:
    return "\u0300" <= char <= "\u036f"


def lines_of(glyphs: Iterable[Glyph]) -> Iterator[Line]:
    """Lines in the file's order; glyphs that are white space part the others."""
    pen: _Pen | None = None
    runs: list[Run] = []
    between = ""
    for glyph in _accented(glyphs):
        if glyph.char in WHITE:
            between = glyph.char if between != "\n" else between
            continue
        if pen and between == GUESSED and pen.is_even(glyph):
            between = ""
        if pen and not between and pen.goes_on(glyph):
            continue
        if pen and pen.fits(glyph, between=between) and pen.gap(glyph) <= _GAP:
            pen.write(glyph, between)
        else:
            if pen:
                runs.append(pen.run())
                if not pen.fits(glyph, between="\n"):
                    yield Line(tuple(runs))
                    runs = []
            pen = _Pen(glyph)
        between = ""
    if pen:
        yield Line((*runs, pen.run()))
