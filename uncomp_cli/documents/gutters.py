"""Gutters: white strips that run down a page between columns, found where they are narrow too.

A gap of nearly an em parts two runs of a line (glyphs.py). Narrower ones may be spaces between words, and are gutters
where several lines say so: three or more have a space that is wide for its line at the same place, or the lines around
have their next column where a word begins. Lengths are as in glyphs.py.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from statistics import median
from typing import NamedTuple

from uncomp_cli.documents.glyphs import Line, Run, Space

FAR = 4  # rows of one table are no further apart
_GUTTER, _NARROW = 1.0, 0.2  # of columns that are known to begin there, a narrow one is enough
_STRIP = 0.3  # what three lines or more have in common of their wide spaces
_WIDE_SPACE, _TIMES_USUAL = 0.4, 1.5
_ALIGNED = 0.1
_MANY = 3
_LEAST_ROWS, _MOST_CROWDED = 3, 3


class Extent(NamedTuple):
    """Where a column has ink on x; `begins`: it is known to begin there."""

    left: float
    right: float
    begins: bool = False


def extents(inked: Sequence[Extent], line: Line) -> list[Extent]:
    """The extents on x that have ink, with a line's added; those less than a gutter apart are one."""
    found, em = list[Extent](), line.em
    begun = [each.left for each in inked if each.begins] + [run.left for run in line.runs if run.begins]
    for left, right in sorted((*(each[:2] for each in inked), *((run.left, run.right) for run in line.runs))):
        begins = any(abs(left - each) < _ALIGNED * em for each in begun)
        if found and left - found[-1].right < (_NARROW if begins else _GUTTER) * em:
            found[-1] = found[-1]._replace(right=max(right, found[-1].right))
        else:
            found.append(Extent(left, right, begins))
    return found


def parted(lines: Sequence[Line], *, marks: re.Pattern[str]) -> list[Line]:
    """The lines, their runs parted where a narrow gutter goes through; none behind what `marks` an item of a list."""
    found = list(lines)
    for start in range(len(found)):
        spaces = list(_wide_spaces(found[start], marks))
        through = [
            space for space in spaces if len(_rows(found[: start + _LEAST_ROWS], start, space, marks)) == _LEAST_ROWS
        ]
        if len(through) == len(spaces) or not _is_loose(found[start]):
            for row, here in [each for space in through for each in _rows(found, start, space, marks)]:
                found[row] = _cut(found[row], here)
    for i in range(1, len(found) - 1):
        found[i] = _uncrowded(found[i], found[i - 1], found[i + 1 : i + 1 + _MOST_CROWDED])
    return [_begun(line, found[max(i - 2, 0) : i], found[i + 1 : i + 3]) for i, line in enumerate(found)]


def _begun(line: Line, before: Sequence[Line], after: Sequence[Line]) -> Line:
    """The line, its runs marked that begin where those of two lines next to it do."""
    if len(line.runs) < 2:
        return line
    near, windows = _ALIGNED * line.em, ((*before,), (*after,), (*before[-1:], *after[:1]))

    def aligned(run: Run) -> bool:
        return any(
            len(window) > 1 and all(any(abs(run.left - each.left) < near for each in row.runs[1:]) for row in window)
            for window in windows
        )

    first, *others = line.runs
    return Line((first, *(replace(run, begins=True) if not run.begins and aligned(run) else run for run in others)))


def _widths(line: Line) -> list[float]:
    return [space.right - space.left for run in line.runs for space in run.spaces]


def _is_loose(line: Line) -> bool:
    """Whether all of a line's spaces are wide: it is stretched, or a row of cells, and then a gutter is at each."""
    widths = _widths(line)
    return len(widths) >= _MANY and min(widths) >= _WIDE_SPACE * line.em


def _wide_spaces(line: Line, marks: re.Pattern[str]) -> Iterator[Space]:
    """Spaces that are wide for their line, and none behind a mark."""
    widths = _widths(line)
    if not widths or max(widths) < _WIDE_SPACE * line.em:
        return
    usual = median(widths) if len(widths) >= _MANY and not _is_loose(line) else 0.0
    for run in (run for run in line.runs if run.spaces and not _is_typed(run)):
        least = max(_WIDE_SPACE * run.em, _TIMES_USUAL * usual)
        for space in run.spaces:
            if space.right - space.left >= least and not marks.match(run.text[: space.at]):
                yield space


def _is_typed(run: Run) -> bool:
    """Whether all of a run's spaces are as wide as so many letters, as in a typewriter's font."""
    widths = [space.right - space.left for space in run.spaces]
    letter = (run.right - run.left - sum(widths)) / max(len(run.text) - run.text.count(" "), 1)
    return all(abs(width - letter * max(round(width / max(letter, 1e-6)), 1)) < 0.01 * letter for width in widths)


def _rows(lines: Sequence[Line], start: int, space: Space, marks: re.Pattern[str]) -> list[tuple[int, Space]]:
    """The lines from `start` on that all have a wide space, or a gap, at the same place; by their numbers."""
    rows, left, right = [(start, space)], space.left, space.right
    for i in range(start + 1, len(lines)):
        line, least = lines[i], _STRIP * lines[i].em
        if not 0 < lines[i - 1].base - line.base < FAR * line.em:
            break
        gaps = [Space(-1, a.right, b.left) for a, b in pairwise(line.runs)]
        white = (*gaps, *_wide_spaces(line, marks))
        here = next((each for each in white if min(right, each.right) - max(left, each.left) >= least), None)
        if here is None:
            break
        left, right = max(left, here.left), min(right, here.right)
        rows.append((i, here))
    return rows


def _cut(line: Line, space: Space) -> Line:
    """The line, the run that has this space parted there."""
    runs: list[Run] = []
    for run in line.runs:
        here = next((each for each in run.spaces if each.left == space.left), None)
        runs += run.parted(here) if here is not None else (run,)
    return Line(tuple(runs))


def _uncrowded(line: Line, before: Line, following: Sequence[Line]) -> Line:
    """A line between rows of a table, parted where a word of it begins as the next column does above and below."""
    if not 0 < before.base - line.base < FAR * line.em:
        return line
    near = _ALIGNED * line.em
    for left in [run.left for run in before.runs[1:]]:
        below = any(abs(run.left - left) < near for row in following for run in row.runs[1:])
        space = next((space for run in line.runs for space in run.spaces if abs(space.right - left) < near), None)
        if below and space is not None:
            line = _cut(line, space)
    return line
