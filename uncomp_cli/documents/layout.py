"""Lines of a page to text in the order in which it is read: columns, tables, paragraphs, words broken at line ends.

The file's order is kept, since most writers write as one reads, but where lines with gaps stand under each other so
that a gutter runs through them all: prose on both sides are columns, read one after the other; anything else is a
table, whose rows keep their empty cells. Figures in columns that were written one by one are put on their rows first. A
line goes on in the next one where the next one's first word would not have fitted. Lengths are as in glyphs.py.

Whether a hyphen at a line's end belongs to its word is told by what the whole document says of the word; where that
says nothing halves decide that a hyphen nearly always stands between (well-known, two-thirds, day-to-day, e-mail).
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median, median_low

from uncomp_cli.documents.glyphs import Glyph, Line, Run, lines_of
from uncomp_cli.documents.gutters import FAR, Extent, extents, parted

_WIDE = 15
_ROW = 0.3  # baselines no further apart are one
_BULLET = r"[•‣◦▪●○■□–—*·-]|\(?(?:\d{1,3}|[A-Za-z]|[ivxIVX]{1,5})[.)]|\[[^\]\s]{1,12}\]|\d+(?:\.\d+)+\.?"
_MARKER, _ITEM = re.compile(rf"(?:{_BULLET})$"), re.compile(rf"(?:{_BULLET})\s")
_ADDRESS = re.compile(r"(?:https?:|(?:https?://|www\.)\S*[/.:_=?&#%-])$")
_IDEOGRAPHS = "\u2e80"  # from here on, scripts without spaces
_LONGEST_ADDRESS = 300
_BROKEN = re.compile(r"[^\W_][-\u2010]$")
_YES = re.compile(r"(?:yes|on|ja|oui|s[iíì]|true)?", re.IGNORECASE)
_NAMELESS_CHOICE = re.compile(rf"{_YES.pattern}|(?:choice|button|option|radio|box|auswahl)?[\W_]*\d*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Field:
    """A form's field: its name, its value where it stands, and which choice a button that may be pressed stands for."""

    name: str
    run: Run
    choice: str = ""

    def beside(self, line: Line) -> Run:
        """What is shown on a line: of a button its choice too, unless that stands next to it, or says nothing."""
        near = sorted(line.runs, key=lambda other: max(other.left - self.run.right, self.run.left - other.right))[:2]
        labelled = any(other.text.casefold().startswith(self.choice.casefold()) for other in near)
        return self.run if labelled or _NAMELESS_CHOICE.fullmatch(self.choice) else self._chosen()

    def alone(self) -> Run:
        """What is shown below the lines."""
        run = self.run if _YES.fullmatch(self.choice) else self._chosen()
        return replace(run, text=f"{self.name}: {run.text}")

    def _chosen(self) -> Run:
        return replace(self.run, text=f"{self.run.text} {self.choice}".strip())


def page_text(glyphs: Iterable[Glyph], extra: Iterable[Field]) -> str:
    """A page's text; `extra` fields of a form join the lines that they stand beside."""
    lines = _with_extra(list(lines_of(glyphs)), list(extra))
    turns = [line.runs[0].turn for line in lines for _ in line.text]
    upright = max(set(turns), key=turns.count, default=0)
    ordered = _in_rows([line for line in lines if line.runs[0].turn == upright])
    blocks = list(_blocks(parted(_with_figures(ordered), marks=_MARKER)))
    blocks += [line.text for line in lines if line.runs[0].turn != upright]
    return "\n\n".join(block for block in blocks if block.strip())


def _with_extra(lines: list[Line], extra: list[Field]) -> list[Line]:
    """The lines, and fields, which have no order: beside what stands at the same height, else below, with a name."""
    printed = list(lines)
    for field in extra:
        run = field.run
        beside = [i for i, line in enumerate(lines) if _beside(line, run)]
        if beside:
            i = min(beside, key=lambda i: min(abs(run.left - other.right) for other in lines[i].runs))
            lines[i] = Line(tuple(sorted((*lines[i].runs, field.beside(printed[i])), key=lambda run: run.left)))
        else:
            above = [i for i, line in enumerate(lines) if line.base > run.base]
            at = above[-1] + 1 if above else 0
            for each in (lines, printed):
                each.insert(at, Line((field.alone(),)))
    return lines


def _beside(line: Line, run: Run) -> bool:
    return line.runs[0].turn == run.turn and abs(line.base - run.base) < 0.6 * max(line.em, run.em)


def _in_rows(lines: Sequence[Line]) -> Sequence[Line]:
    """The lines; where more than a fourth of them do not go down the page, in rows from top to bottom."""
    astray = sum(line.base > before.base - _ROW * line.em for before, line in pairwise(lines))
    if astray <= max(3, len(lines) / 4):
        return lines
    rows: list[list[Run]] = []
    for run in sorted((run for line in lines for run in line.runs), key=lambda run: -run.base):
        if rows and rows[-1][0].base - run.base < _ROW * run.em:
            rows[-1].append(run)
        else:
            rows.append([run])
    return [Line(tuple(sorted(row, key=lambda run: run.left))) for row in rows]


def _with_figures(lines: Sequence[Line]) -> list[Line]:
    """The lines; columns of figures that were written one after the other are on the lines of their rows."""
    found: list[Line] = []
    i = 0
    while i < len(lines):
        column = _column(lines, i) if found and lines[i].base > found[-1].base else ()
        beside = [row for row in range(len(found)) if column and _shares_row(found[row], column)]
        if len(beside) < 2 or lines[i].left < max(found[row].right for row in beside):
            found.append(lines[i])
            i += 1
            continue
        for line in column:
            row = min(beside, key=lambda row: abs(found[row].base - line.base))
            found[row] = Line((*found[row].runs, *line.runs))
        i += len(column)
    return found


def _column(lines: Sequence[Line], start: int) -> Sequence[Line]:
    """Figures below each other, from `start` on, below their head; empty where there are none."""
    end = start + 1
    while end < len(lines) and lines[end].base < lines[end - 1].base and lines[end].left < lines[end - 1].right:
        if lines[end].right < lines[end - 1].left or sum(map(str.isalpha, lines[end].text)) > 2:
            break
        end += 1
    return lines[start:end] if end - start > 1 else ()


def _shares_row(line: Line, column: Sequence[Line]) -> bool:
    return any(abs(line.base - other.base) < _ROW * line.em for other in column)


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
    inked = extents([], lines[start])
    end = start + 1
    while end < len(lines) and 0 < lines[end - 1].base - lines[end].base < FAR * lines[end].em:
        wider = extents(inked, lines[end])
        if len(wider) < max(2, len(inked) * (0.5 if len(lines[end].runs) > 1 else 1)):
            break
        inked, end = wider, end + 1
    full = [i for i in range(start, end) if sum(bool(_within(lines[i], extent)) for extent in inked) > 1]
    gaps = [after - before for before, after in pairwise(full)]
    most = next((i for i, gap in enumerate(gaps, start=1) if gap > 3), len(full))
    return full[most - 1] + 1 if most > 1 else 0


def _band(lines: Sequence[Line]) -> Iterator[str]:
    """Lines with a common gutter: columns one after the other, or one table, or a list with its marks."""
    inked: list[Extent] = []
    for line in lines:
        inked = extents(inked, line)
    strips = [[_within(line, extent) for line in lines] for extent in inked]
    if len(strips) < 2 or all(_MARKER.match(run.text) for runs in strips[0] for run in runs):
        yield from _paragraphs(lines)
    elif all(_is_prose(strip) for strip in strips):
        for strip in strips:
            yield from _paragraphs([Line(tuple(runs)) for runs in strip if runs])
    else:
        yield _table([[" ".join(run.text for run in runs) for runs in row] for row in zip(*strips, strict=True)])


def _within(line: Line, extent: Extent) -> list[Run]:
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
    if _BROKEN.search(text[-2:]) and more[:1].isalnum():
        word = text[-2].isalpha() and (more[0].islower() or (text[-2].isupper() and more[:2].isupper()))
        return text[:-1] + HYPHEN + more if word else text + more
    glued = _ADDRESS.search(text, max(len(text) - _LONGEST_ADDRESS, 0)) or (
        text[-1:] >= _IDEOGRAPHS and more[:1] >= _IDEOGRAPHS
    )
    return text + more if glued else f"{text} {more}"


HYPHEN = "\u00ad"  # stands for a hyphen at a line's end, until the whole document says whether it belongs to the word
_SPLIT = re.compile(rf"([-\u2010]?)(?<![^\W\d_])([^\W\d_]+){HYPHEN}([^\W\d_]+)(?=([-\u2010]?))")
_WORDS = re.compile(r"[^\W\d_]+(?:[-\u2010][^\W\d_]+)*")
_CLOSED = re.compile(
    r"self(?:ish|less|ie|hood|same)|well(?:ness|ing|er)|cross(?:ing|ed|es|over|word|road|bar|bow|wise|talk|fire)"
    r"|ill(?:ness|us|eg|it|og)|half(?:way|penny|back|heart|time)|quarter(?:ly|ing|ed|back|master|final|deck)"
    r"|multi(?:p|tud|medi|nation|lingual|later|cultur|color|colour|core|thread|process|dimension|fari)"
)
_NUMBER_ENDS = re.compile(r"fold|teen|ty$|some|score|pence|penny|ths?$")
_SUSPENDED_WORDS = "und oder bzw sowie and or to et ou y o e ed en och og"
_LINK_WORDS = "of the to in on up at by and or for a an de du la le"
_FIRST_HALVES = "well self cross ill half quarter multi quasi"
_NUMBER_WORDS = "two three four five six seven eight nine twenty thirty forty fifty sixty seventy eighty ninety"
_SECOND_HALVES = (
    "known based called old term level free related driven specific oriented aware defined sized dependent like ended "
    "made led style scale side class quality"
)
_CLOSED_HALVES = (
    "over under inter multi auto super counter semi anti infra intra trans mini micro meta nation world bath busi like "
    "home hand news after fore child"
)
_SUSPENDED, _LINKS = frozenset(_SUSPENDED_WORDS.split()), frozenset(_LINK_WORDS.split())
_FIRST, _NUMBERS = frozenset(_FIRST_HALVES.split()), frozenset(_NUMBER_WORDS.split())
_SECOND, _PREFIXES = frozenset(_SECOND_HALVES.split()), frozenset(_CLOSED_HALVES.split())
_BEFORE_SECOND = 4  # letters: un-known, in-dependent, dis-oriented and re-defined are one word


def rejoined(texts: Sequence[str]) -> list[str]:
    """The texts with each `HYPHEN` gone, or a hyphen, by what the words of all texts together say of both halves."""
    whole_words = (word for text in texts for word in text.split() if HYPHEN not in word)
    known = {part.casefold() for word in whole_words for part in _WORDS.findall(word)}

    def decide(match: re.Match[str]) -> str:
        before, left, right, after = match.groups()
        if right in _SUSPENDED and left + right not in known and not after:
            return f"{before}{left}- {right}"
        whole = (left + right).casefold() in known
        apart = {left.casefold(), right.casefold()} <= known or f"{left}-{right}".casefold() in known
        compound = apart or _is_compound(left.casefold(), right.casefold(), before=bool(before), after=bool(after))
        return f"{before}{left}-{right}" if compound and not whole else before + left + right

    return [_SPLIT.sub(decide, text).replace(HYPHEN, "-") if HYPHEN in text else text for text in texts]


def _is_compound(left: str, right: str, *, before: bool, after: bool) -> bool:
    """Whether two halves have a hyphen between them in any document; `before` and `after`: others stand around them."""
    if len(left) == 1 or len(right) == 1:  # no line is broken behind a word's first letter, nor before its last
        return True
    if (before and left in _LINKS) or (after and right in _LINKS):
        return True
    if left in _FIRST:
        return not _CLOSED.match(left + right)
    if left in _NUMBERS:
        return not _NUMBER_ENDS.match(right)
    return right in _SECOND and len(left) >= _BEFORE_SECOND and left not in _PREFIXES
