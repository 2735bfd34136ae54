"""Markdown, written from what begins and ends: blocks, headings, lists, quotes, code, tables, raised and lowered text.

A walk over HTML or Word calls; nothing here knows either. How deep a file nests costs nothing: what is open is a stack
of boxes (a list item, a quote) whose prefixes stop growing, lines are written once into the innermost sink (the text,
or a cell), and tables in tables in tables are text. White space is a browser's: runs are one space, none at the ends.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from uncomp_cli.documents.grid import Cell, Grid
from uncomp_cli.documents.superscripts import lowered, raised, resolve
from uncomp_cli.documents.text import STRUCK

_SPACE = re.compile(r"[ \t\n\r\f]+")
_COLLAPSED = re.compile(r"[\t\n\r\f]|  ")
_UNSEEN = re.compile("[\xad\u200b\u2060\ufeff]")
_FENCE = re.compile("`{3,}")
_DEEPEST_PREFIX = 40
_MOST_TABLES = 6
_MOST_SCRIPTS = 4
_ROWS_HELD = 600
_MOST_REPEATED = 2000  # characters of a cell that stands there several times


@dataclass(frozen=True, slots=True)
class _Box:
    """What stands before the first line of a box, and before the others, all boxes around it included."""

    first: str
    rest: str


_NO_BOX = _Box("", "")


@dataclass(slots=True)
class _Sink:
    """Lines, and the boxes open in them; the first `used` boxes have had their first line."""

    lines: list[str] = field(default_factory=list)
    boxes: list[_Box] = field(default_factory=lambda: [_NO_BOX])
    used: int = 1
    gap: bool = False
    complex: bool = False


@dataclass(slots=True)
class _Table:
    grid: Grid = field(default_factory=Grid)
    rows: list[list[Cell]] = field(default_factory=list)
    open_cell: bool = False
    fresh: bool = False
    group: int = 0  # where in the rows their group began
    foot: list[list[Cell]] = field(default_factory=list)


class Phrase:
    """Pieces of a line, and which of them stand raised, lowered or struck out."""

    def __init__(self) -> None:
        self._pieces: list[str] = []
        self._scripts: list[tuple[int, bool]] = []  # where in the pieces each began, and whether nothing was before
        self._look = ("", False)

    def put(self, text: str) -> None:
        """Text as it is."""
        if text:
            self._pieces.append(text)

    def turn(self, shift: str = "", *, struck: bool = False) -> None:
        """What comes stands `high`, `low` or in the line, and is struck out or not; pieces of one look are one."""
        if (shift, struck) != self._look:
            (before, was_struck), self._look = self._look, (shift, struck)
            if before:
                self.close_script(low=before == "low")
            self.put(STRUCK * (struck != was_struck))
            if shift:
                self.open_script()

    def open_script(self) -> None:
        """Raised or lowered text begins."""
        self._scripts.append((len(self._pieces), not "".join(self._pieces[-2:]).strip()))

    def close_script(self, *, low: bool = False, linked: bool = False) -> None:
        """It ends; a paragraph's end within it has ended it before."""
        if self._scripts:
            begin, alone = self._scripts.pop()
            if len(self._scripts) < _MOST_SCRIPTS:
                content = self.taken(begin)
                self.put(lowered(content) if low else raised(content, alone=alone, linked=linked))

    @property
    def here(self) -> int:
        """Where in the line we are, for `taken`."""
        return len(self._pieces)

    def whole(self) -> str:
        """All of the line, which is empty then."""
        self.turn()
        self._scripts.clear()
        return self.taken(0)

    def taken(self, begin: int) -> str:
        """What was written since `here` was `begin`, taken back."""
        content = "".join(self._pieces[begin:])
        del self._pieces[begin:]
        return content


class Markdown(Phrase):
    """A text under construction; `text()` ends it."""

    def __init__(self) -> None:
        super().__init__()
        self._sinks = [_Sink()]
        self._tables: list[_Table | None] = []
        self._pre = 0
        self._heading = 0

    # --- in a line

    def write(self, text: str) -> None:
        """Text, its white space collapsed unless it is preformatted."""
        if not text.isascii():
            text = _UNSEEN.sub("", text)
        if not self._pre:
            text = text.replace("\xa0", " ")
            if _COLLAPSED.search(text):
                text = _SPACE.sub(" ", text)
            if text[:1] == " " and self._at_space:
                text = text[1:]
        self.put(text)

    def space(self) -> None:
        """At least one space between what was and what comes."""
        if not self._pre:
            self.write(" ")

    def say(self, words: str) -> None:
        """Words of something that stands by itself in the line; none are nothing."""
        if words.strip():
            self.space()
            self.write(words.strip())
            self.space()

    @property
    def last_character(self) -> str:
        """What stands last in the line, or nothing at its start."""
        return self._pieces[-1][-1] if self._pieces else ""

    @property
    def _at_space(self) -> bool:
        return not self._pieces or self._pieces[-1][-1] in " \n"

    def line_break(self) -> None:
        """A new line in the paragraph; in a heading a space."""
        if self._heading and not self._pre:
            self.space()
        else:
            self._pieces.append("\n")

    # --- blocks

    def block(self, *, gap: bool = False) -> None:
        """What comes begins a line; after an empty one if `gap`."""
        if self._pre:
            if self._pieces and self._pieces[-1][-1] != "\n":
                self._pieces.append("\n")
            return
        self._flush()
        sink = self._sinks[-1]
        sink.gap = sink.gap or (gap and sink.used == len(sink.boxes))

    def _flush(self) -> None:
        if text := self.whole():
            self._emit([line for line in map(str.strip, text.split("\n")) if line])

    def _emit(self, lines: list[str]) -> None:
        sink = self._sinks[-1]
        for line in lines:
            if sink.gap and sink.lines:
                sink.lines.append(sink.boxes[sink.used - 1].rest.rstrip())
            sink.gap = False
            prefix = sink.boxes[-1].rest if sink.used == len(sink.boxes) else self._prefix(sink)
            sink.lines.append((prefix + line).rstrip())

    def _prefix(self, sink: _Sink) -> str:
        before, fresh = sink.boxes[sink.used - 1].rest, sink.boxes[sink.used :][-_DEEPEST_PREFIX:]
        sink.used = len(sink.boxes)
        return before + "".join(box.first for box in fresh)

    def _open_box(self, first: str, rest: str) -> None:
        sink = self._sinks[-1]
        around = sink.boxes[-1].rest
        sink.boxes.append(_Box(first, around + rest if len(around) < _DEEPEST_PREFIX else around))

    def _close_box(self) -> None:
        sink = self._sinks[-1]
        if len(sink.boxes) > 1:
            sink.boxes.pop()
            sink.used = min(sink.used, len(sink.boxes))

    def open_heading(self, level: int) -> None:
        """A heading of level 1 to 6."""
        self.block(gap=True)
        self._sinks[-1].complex = True
        self._heading += 1
        self._open_box("#" * level + " ", "")

    def close_heading(self) -> None:
        """The end of `open_heading`."""
        self.block(gap=True)
        self._heading -= 1
        self._close_box()

    def paste(self, lines: Sequence[str]) -> None:
        """Lines that are finished."""
        self._flush()
        for line in lines:
            self._sinks[-1].gap = self._sinks[-1].gap or not line
            self._emit([line] * bool(line))

    def open_item(self, marker: str, *, level: int = 0, dense: bool = False) -> None:
        """An item of a list: `-`, `3.`; or a definition, `:`. Lists in others, and `dense` ones, have no empty lines.

        `level` is for lists that do not nest in each other, as Word's.
        """
        self.block()
        sink = self._sinks[-1]
        if dense or (sink.lines and sink.lines[-1] and len(sink.boxes) > 1):
            sink.gap = False
        self._open_box("  " * level + marker + " ", "  " * level + " " * (len(marker) + 1))

    def close_item(self) -> None:
        """The end of `open_item`."""
        self.block()
        self._sinks[-1].gap = False
        self._close_box()

    def open_quote(self) -> None:
        """A quoted block."""
        self.block(gap=True)
        self._open_box("> ", "> ")

    def close_quote(self) -> None:
        """The end of `open_quote`."""
        self.block()
        self._close_box()
        self.block(gap=True)

    def rule(self) -> None:
        """A line across."""
        self.block(gap=True)
        self.write("---")
        self.block(gap=True)

    def open_code(self) -> None:
        """Preformatted text."""
        self.block(gap=True)
        self._pre += 1

    def close_code(self) -> None:
        """The end of `open_code`: fenced, with a fence that its text does not have."""
        self._pre -= 1
        if self._pre:
            return
        lines = self.whole().strip("\n").rstrip().split("\n")
        if any(lines):
            fence = "`" * max([3, *(len(run) + 1 for run in _FENCE.findall("\n".join(lines)))])
            self._sinks[-1].complex = True
            self._emit([fence, *lines, fence])
        self.block(gap=True)

    # --- tables

    def open_table(self) -> None:
        """A table; in many tables, or in code, its cells are text."""
        self.block(gap=True)
        as_text = self._pre or len(self._tables) >= _MOST_TABLES
        self._sinks[-1].complex = self._sinks[-1].complex or not self._pre
        self._tables.append(None if as_text else _Table())

    def open_row(self) -> None:
        """A row of the table; outside of any, a block."""
        table = self._table
        if table is None:
            self.block()
        else:
            self.close_cell()
            self._flush()
            if len(table.rows) >= _ROWS_HELD:
                self._write_rows(table)
            table.rows.append([])

    def part_rows(self, *, foot: bool = False) -> None:
        """A group of rows begins or ends: no cell goes on below it. One that was a `foot` stands below all others."""
        table = self._table
        if table is not None:
            if foot:
                self.close_cell()
                table.foot += table.rows[table.group :]
                del table.rows[table.group :]
            table.group, table.fresh = len(table.rows), True

    def open_cell(self, *, header: bool = False, columns: int = 1, rows: int = 1) -> None:
        """A cell of the row; outside of any table, a block."""
        table = self._table
        if table is None:
            self.block()
            return
        if table.open_cell:
            self.close_cell()
        self._flush()
        if not table.rows:
            table.rows.append([])
        sink = _Sink()
        self._sinks.append(sink)
        table.rows[-1].append(Cell(sink.lines, columns, rows, header, fresh=table.fresh and not table.rows[-1]))
        table.fresh = False
        table.open_cell = True

    def span(self, *, columns: int, above: bool) -> None:
        """What is learnt of the open cell within it: over how many columns it goes, or that it goes on from above."""
        if self._table is not None and self._table.open_cell:
            cell = self._table.rows[-1][-1]
            cell.columns, cell.above = columns, above

    def close_cell(self, *, times: int = 1) -> None:
        """The end of `open_cell`, if one is open; the cell stands there so many times."""
        table = self._table
        if table is None:
            self.block()
        elif table.open_cell:
            self._flush()
            cell = table.rows[-1][-1]
            cell.complex = self._sinks.pop().complex
            table.rows[-1] += [cell] * (min(times, _MOST_REPEATED // (10 + sum(map(len, cell.lines)))) - 1)
            table.open_cell = False

    def close_table(self) -> None:
        """The end of `open_table`: its lines are written."""
        table = self._table
        if table is not None:
            self.close_cell()
            self._tables.pop()
            table.rows += table.foot
            self._write_rows(table)
        elif self._tables:
            self._tables.pop()
        self.block(gap=True)

    def _write_rows(self, table: _Table) -> None:
        rows, table.rows, table.group = table.rows, [], 0
        self.paste(table.grid.lines(rows))

    @property
    def _table(self) -> _Table | None:
        return self._tables[-1] if self._tables else None

    # --- the end

    def text(self) -> str:
        """All that was written."""
        while self._tables:
            self.close_table()
        self._flush()
        return resolve("\n".join(self._sinks[0].lines))
