"""Where glyphs stand on a page, to lines in the order in which they are read: runs, tables, columns, paragraphs.

A file says where each glyph stands, and not what it belongs to. Glyphs in the file's order make runs (no gap of an em
between them), runs on one baseline make a line. The file's order is kept, since most writers write as one reads, but
where lines with gaps stand under each other so that a gutter runs through them all: prose on both sides are columns,
read one after the other; anything else is a table, whose rows keep their empty cells. A line goes on in the next one
where the next one's first word would not have fitted. Lengths are in ems of a line's font, x grows to the right and
y upwards.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median, median_low
from typing import NamedTuple

HYPHEN = "\u00ad"  # stands for a hyphen at a line's end, until the whole document says whether it belongs to the word
_GAP, _GUTTER = 0.9, 1.0
_WIDE = 15
_LOOK_BACK = 300
_FAR = 4  # rows of one table are no further apart
_SCRIPT = 0.85  # smaller than this, it is an exponent or an index
_BULLET = r"[•‣◦▪●○■□–—*·-]|\(?(?:\d{1,3}|[A-Za-z]|[ivxIVX]{1,5})[.)]|\[[^\]\s]{1,12}\]|\d+(?:\.\d+)+\.?"
_MARKER, _ITEM = re.compile(rf"(?:{_BULLET})$"), re.compile(rf"(?:{_BULLET})\s")
_LEADER = re.compile(r"(?: ?\.){5,}|(?: \.){4,}")
_ACCENTS = dict(zip("¨´ˆ˜¸ˇ˚˝¯˙", "\u0308\u0301\u0302\u0303\u0327\u030c\u030a\u030b\u0304\u0307", strict=True))
_DOTLESS = {0x131: "i", 0x237: "j"}
_ADDRESS = re.compile(r"(?:https?:|(?:https?://|www\.)\S*[/.:_=?&#%-])$")
_BROKEN = re.compile(r"[^\W_][-\u2010]$")


class Glyph(NamedTuple):
    """A character, its left and right edge, its baseline, the size of its font; `turn` in quarters of a circle."""

    char: str
    left: float
    right: float
    base: float
    em: float
    turn: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """Text without gaps on one baseline."""

    text: str
    left: float
    right: float
    base: float
    em: float
    turn: int = 0


@dataclass(frozen=True, slots=True)
class Line:
    """Runs on one baseline, from left to right as the file has them."""

    runs: tuple[Run, ...]

    @property
    def text(self) -> str:
        """The runs with spaces between."""
        return " ".join(run.text for run in self.runs)

    @property
    def left(self) -> float:
        """The left edge."""
        return min(run.left for run in self.runs)

    @property
    def right(self) -> float:
        """The right edge."""
        return max(run.right for run in self.runs)

    @property
    def em(self) -> float:
        """Of the tallest run."""
        return max(run.em for run in self.runs)

    @property
    def base(self) -> float:
        """Of the tallest run."""
        return max(self.runs, key=lambda run: run.em).base


def page_text(glyphs: Iterable[Glyph], extra: Iterable[tuple[str, Run]] = ()) -> str:
    """A page's text; `extra` runs, by name (values of a form), join the lines that they stand beside."""
    lines = _with_extra(list(_lines(glyphs)), list(extra))
    turns = [line.runs[0].turn for line in lines for _ in line.text]
    upright = max(set(turns), key=turns.count, default=0)
    blocks = list(_blocks([line for line in lines if line.runs[0].turn == upright]))
    blocks += [line.text for line in lines if line.runs[0].turn != upright]
    return "\n\n".join(block for block in blocks if block.strip())


# --- glyphs to lines


class _Pen:
    """Writes glyphs into a run, and says what comes between two of them."""

    def __init__(self, glyph: Glyph) -> None:
        self._first, self._last, self._level = glyph, glyph, glyph
        self._parts = [glyph.char]
        self._left, self._right = glyph.left, glyph.right

    def goes_on(self, glyph: Glyph) -> bool:
        """Write a glyph that plainly stands next to the last one; False, and nothing written, for any other."""
        last = self._last
        if glyph.base != last.base or glyph.em != last.em or glyph.turn != last.turn:
            return False
        if not -0.3 * last.em < glyph.left - last.right < 0.2 * last.em:
            return False
        self._parts.append(glyph.char)
        self._right, self._last = max(self._right, glyph.right), glyph
        return True

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
        if between != " ":
            between = " " if self.gap(glyph) > (0.15 if between else 0.24) else ""
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
        text = _LEADER.sub(" … ", "".join(self._parts)).strip()
        return Run(text, self._left, self._right, self._level.base, self._level.em, self._first.turn)


def _accented(glyphs: Iterable[Glyph]) -> list[Glyph]:
    """Glyphs, accents made one with the letters that they stand over; a combining one over no letter is no text."""
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
        if waiting and glyph.char not in " \n":
            made = _composed(glyph, waiting[-1])
            found += [accent for accent in (waiting[:-1] if made else waiting) if not _is_combining(accent.char)]
            glyph, waiting = made or glyph, []
            if made and found and found[-1].char == " ":  # it parted the accent, and not the letter
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


def _lines(glyphs: Iterable[Glyph]) -> Iterator[Line]:
    """Lines in the file's order; glyphs that are white space part the others."""
    pen: _Pen | None = None
    runs: list[Run] = []
    between = ""
    for glyph in _accented(glyphs):
        if glyph.char in " \n":
            between = glyph.char if between != "\n" else between
            continue
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


def _with_extra(lines: list[Line], extra: list[tuple[str, Run]]) -> list[Line]:
    """The lines, and runs that have no order: beside what stands at the same height, else below, with a name."""
    for name, run in extra:
        beside = [i for i, line in enumerate(lines) if _beside(line, run)]
        if beside:
            i = min(beside, key=lambda i: min(abs(run.left - other.right) for other in lines[i].runs))
            lines[i] = Line(tuple(sorted((*lines[i].runs, run), key=lambda run: run.left)))
        else:
            above = [i for i, line in enumerate(lines) if line.base > run.base]
            lines.insert(above[-1] + 1 if above else 0, Line((replace(run, text=f"{name}: {run.text}"),)))
    return lines


def _beside(line: Line, run: Run) -> bool:
    return line.runs[0].turn == run.turn and abs(line.base - run.base) < 0.6 * max(line.em, run.em)


# --- lines to blocks


def _blocks(lines: Sequence[Line]) -> Iterator[str]:
    """Paragraphs, columns and tables in order."""
    begun = start = 0
    while start < len(lines):
        end = _band_end(lines, start)
        if end:
            yield from _paragraphs(lines[begun:start])
            yield from _band(lines[start:end])
            begun = end
        start = end or start + 1
    yield from _paragraphs(lines[begun:])


def _band_end(lines: Sequence[Line], start: int) -> int:
    """The line after the last of those, from `start` on, that one gutter runs through; 0 where there is no band."""
    if len(lines[start].runs) < 2:
        return 0
    inked = _inked([], lines[start])
    end = start + 1
    while end < len(lines) and 0 < lines[end - 1].base - lines[end].base < _FAR * lines[end].em:
        wider = _inked(inked, lines[end])
        if len(wider) < max(2, len(inked) * (0.5 if len(lines[end].runs) > 1 else 1)):
            break
        inked, end = wider, end + 1
    full = [i for i in range(start, end) if sum(bool(_within(lines[i], extent)) for extent in inked) > 1]
    gaps = [after - before for before, after in pairwise(full)]
    most = next((i for i, gap in enumerate(gaps, start=1) if gap > 3), len(full))
    return full[most - 1] + 1 if most > 1 else 0


def _inked(inked: Sequence[tuple[float, float]], line: Line) -> list[tuple[float, float]]:
    """The extents on x that have ink, with a line's added; those less than a gutter apart are one."""
    gutter = _GUTTER * line.em
    found: list[tuple[float, float]] = []
    for left, right in sorted((*inked, *((run.left, run.right) for run in line.runs))):
        if found and left - found[-1][1] < gutter:
            found[-1] = (found[-1][0], max(right, found[-1][1]))
        else:
            found.append((left, right))
    return found


def _band(lines: Sequence[Line]) -> Iterator[str]:
    """Lines with a common gutter: columns one after the other, or one table, or a list with its marks."""
    inked: list[tuple[float, float]] = []
    for line in lines:
        inked = _inked(inked, line)
    strips = [[_within(line, extent) for line in lines] for extent in inked]
    if len(strips) < 2 or all(_MARKER.match(run.text) for runs in strips[0] for run in runs):
        yield from _paragraphs(lines)
    elif all(_is_prose(strip) for strip in strips):
        for strip in strips:
            yield from _paragraphs([Line(tuple(runs)) for runs in strip if runs])
    else:
        yield _table([[" ".join(run.text for run in runs) for runs in row] for row in zip(*strips, strict=True)])


def _within(line: Line, extent: tuple[float, float]) -> list[Run]:
    return [run for run in line.runs if extent[0] <= run.left <= extent[1]]


def _is_prose(strip: Sequence[Sequence[Run]]) -> bool:
    texts = [" ".join(run.text for run in runs) for runs in strip if runs]
    letters = sum(char.isalpha() for text in texts for char in text)
    return median(len(text.split()) for text in texts) >= 4 and letters > 0.6 * sum(map(len, texts))


def _table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as Markdown, below a rule where the first row has all its cells; a cell's next lines join it."""
    merged: list[list[str]] = []
    for row in rows:
        cells = [cell.replace("|", r"\|") for cell in row]
        if merged and not cells[0] and _goes_on(merged[-1], cells):
            merged[-1] = [
                _joined(above, cell) if cell else above for above, cell in zip(merged[-1], cells, strict=True)
            ]
        else:
            merged.append(cells)
    shown = ["| " + " | ".join(row) + " |" for row in merged]
    if all(merged[0]):
        shown.insert(1, "|" + " --- |" * len(merged[0]))
    return "\n".join(shown)


def _goes_on(above: Sequence[str], cells: Sequence[str]) -> bool:
    return all(len(text.split()) > 2 for text, cell in zip(above, cells, strict=True) if cell)


# --- lines to paragraphs


def _paragraphs(lines: Sequence[Line]) -> Iterator[str]:
    """Lines that go down the page as blocks of text; one that flows into the next column goes on there."""
    if not lines:
        return
    pitches = [a.base - b.base for a, b in pairwise(lines) if 0 < a.base - b.base < 3 * a.em]
    pitch = median_low(pitches) if pitches else lines[0].em
    text, begun = "", 0
    for end in range(1, len(lines) + 1):
        if end < len(lines) and not _parted(lines[end - 1], lines[end], pitch):
            continue
        block = _flowed(lines[begun:end])
        if text and _flows(lines[begun - 1], lines[begun]):
            text = _joined(text, block)
        else:
            if text:
                yield text
            text = block
        begun = end
    yield text


def _parted(before: Line, line: Line, pitch: float) -> bool:
    down = before.base - line.base
    return down <= 0 or down > max(1.4 * pitch, 1.45 * before.em) or abs(line.em - before.em) > 0.15 * before.em


def _flows(before: Line, line: Line) -> bool:
    """Whether the text goes on at the top of the next column."""
    if line.base <= before.base or not line.text[:1].islower():
        return False
    return bool(_BROKEN.search(before.text)) or (
        before.text[-1:].isalpha() and before.right - before.left > _WIDE * before.em
    )


def _flowed(lines: Sequence[Line]) -> str:
    """A block's lines; those that only its width broke are one."""
    edge = max(line.right for line in lines)
    text, first = lines[0].text, lines[0]
    for before, line in pairwise(lines):
        if _broken(before, line, edge=edge, hanging=bool(_ITEM.match(first.text))):
            text = _joined(text, line.text)
        else:
            text, first = f"{text}\n{line.text}", line
    return text


def _broken(before: Line, line: Line, *, edge: float, hanging: bool) -> bool:
    """Whether a line goes on in the next one: its first word would not have fitted."""
    em, lower = before.em, line.text[:1].islower()
    if (
        _ITEM.match(line.text)
        or " … " in before.text
        or (line.left - before.left > 0.8 * em and not hanging and not lower)
    ):
        return False
    if lower and _BROKEN.search(before.text):
        return True
    if len(before.runs) > 1 or (before.right - before.left < _WIDE * em and not lower):
        return False
    word = len(line.text.split(maxsplit=1)[0]) * (line.right - line.left) / len(line.text)
    most = 8 if lower and (before.text[-1].isalpha() or before.text[-1] == ",") else 0.5
    return before.right + 0.3 * em + word >= edge - most * em


def _joined(text: str, more: str) -> str:
    """Two lines as one; a hyphen at the first one's end is one that may belong to no word."""
    if _BROKEN.search(text) and more[:1].isalnum():
        word = text[-2].isalpha() and (more[0].islower() or (text[-2].isupper() and more[:2].isupper()))
        return text[:-1] + HYPHEN + more if word else text + more
    return text + more if _ADDRESS.search(text) else f"{text} {more}"


# --- hyphens at line ends

_SPLIT = re.compile(rf"([^\W\d_]+){HYPHEN}([^\W\d_]+)")
_WORDS = re.compile(r"[^\W\d_]+(?:[-\u2010][^\W\d_]+)*")
_SUSPENDED = frozenset(
    ("und", "oder", "bzw", "sowie", "and", "or", "to", "et", "ou", "y", "o", "e", "ed", "en", "och", "og")
)


def rejoined(texts: Sequence[str]) -> list[str]:
    """The texts with each `HYPHEN` gone, or a hyphen, by what the words of all texts together say of both halves."""
    known = {word.casefold() for text in texts for word in _WORDS.findall(re.sub(rf"\S*{HYPHEN}\S*", " ", text))}

    def decide(match: re.Match[str]) -> str:
        left, right = match.groups()
        if right in _SUSPENDED and left + right not in known:
            return f"{left}- {right}"
        whole = (left + right).casefold() in known
        apart = {left.casefold(), right.casefold()} <= known or f"{left}-{right}".casefold() in known
        return f"{left}-{right}" if apart and not whole else left + right

    return [_SPLIT.sub(decide, text).replace(HYPHEN, "-") if HYPHEN in text else text for text in texts]
