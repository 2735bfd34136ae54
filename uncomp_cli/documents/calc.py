"""Sheets of an OpenDocument workbook (.ods), as LibreOffice Calc saves them: a cell is what it shows as text."""

from typing import ClassVar

from uncomp_cli.documents.display import general
from uncomp_cli.documents.enumeration import count_of
from uncomp_cli.documents.ledger import Row, letters, lines_of, merged, place_name
from uncomp_cli.documents.styled import Styled
from uncomp_cli.documents.superscripts import resolve
from uncomp_cli.documents.text import HIDDEN_CELL, HIDDEN_ROW, HIDDEN_SHEET, UNCALCULATED
from uncomp_cli.documents.walk import Attributes, End, Walk

_MOST_COLUMNS = 16_384
_MOST_CELLS = 4_000_000
_REPEATED_ROW = ("repeated row", "repeated rows")
_REPEATED_CELL = ("repeated cell", "repeated cells")
_NAME_LINE = "\n## "


class Sheets(Styled):
    """The sheets of a workbook; a cell is its paragraphs, or its stored value where it has none."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[tuple[str, str]] = []
        self._rows: list[Row] = []
        self._cells: dict[int, str] = {}
        self._comments: list[str] = []
        self._name, self._value = "", ""
        self._number = self._column = 0
        self._row_repeats = self._cell_repeats = 1
        self._is_hidden = self._is_formula = False
        self._hidden_columns: set[int] = set()
        self._merged: list[tuple[int, int, int, int]] = []
        self._described = 0  # columns of the sheet, so far
        self._spare = _MOST_CELLS

    def parts(self) -> list[tuple[str, str]]:
        """The lines of all sheets; their names above them where there are several."""
        several = sum(text.startswith(_NAME_LINE) for _, text in self._lines) > 1
        return [(place, text) for place, text in self._lines if several or not text.startswith(_NAME_LINE)]

    def _sheet(self, attributes: Attributes) -> End:
        self._name, self._rows, self._comments, self._number = attributes.get("name", ""), [], [], 0
        self._hidden_columns, self._described, self._merged = set(), 0, []
        if self.style(attributes, "display") == "false":
            self.lost[HIDDEN_SHEET] += 1
            self.leave_out()
        return self._end_sheet

    def _end_sheet(self) -> None:
        prefix = place_name(self._name)
        lines = [
            (f"{prefix}!{letters(line.column)}{line.number}", line.text)
            for line in lines_of(merged(self._rows, self._merged))
        ]
        notes = [(prefix, "\n".join(["\nComments:", *self._comments]))] * bool(self._comments)
        if lines or notes:
            self._lines += [(prefix, f"{_NAME_LINE}{self._name}\n"), *lines, *notes]

    def _columns(self, attributes: Attributes) -> None:
        first, self._described = self._described + 1, self._described + count_of(attributes, "number-columns-repeated")
        if attributes.get("visibility", "visible") != "visible" and self._described <= _MOST_COLUMNS:
            self._hidden_columns |= set(range(first, self._described + 1))

    def _row(self, attributes: Attributes) -> End:
        self._cells, self._column = {}, 0
        self._number += 1
        self._row_repeats = count_of(attributes, "number-rows-repeated")
        self._is_hidden = attributes.get("visibility", "visible") != "visible"
        return self._end_row

    def _end_row(self) -> None:
        repeats, cells = self._row_repeats, self._cells
        for column in self._hidden_columns & cells.keys() if not self._is_hidden else ():
            del cells[column]
            self.lost[HIDDEN_CELL] += repeats
        if cells and self._is_hidden:
            self.lost[HIDDEN_ROW] += repeats
        elif cells:
            kept = min(repeats, max(1, self._spare // len(cells)))
            self._spare -= kept * len(cells)
            self._rows += [Row(self._number + more, cells) for more in range(kept)]
            self.lost[_REPEATED_ROW] += repeats - kept
        self._number += repeats - 1

    def _cell(self, attributes: Attributes) -> End:
        self._column += 1
        self._cell_repeats = count_of(attributes, "number-columns-repeated")
        self._value, self._is_formula = _value(attributes), "formula" in attributes
        columns, rows = (count_of(attributes, f"number-{name}-spanned") for name in ("columns", "rows"))
        if columns > 1 or rows > 1:
            self._merged.append((self._number, self._column, self._number + rows - 1, self._column + columns - 1))
        self.out.whole()
        return self._end_cell

    def _end_cell(self) -> None:
        shown = self._said() or self._value
        if shown:
            last = self._column + min(self._cell_repeats, max(1, _MOST_COLUMNS + 1 - self._column), max(1, self._spare))
            self._spare -= last - self._column - 1
            self.lost[_REPEATED_CELL] += self._column + self._cell_repeats - last
            self._cells |= dict.fromkeys(range(self._column, last), shown)
        elif self._is_formula:
            self.lost[UNCALCULATED] += self._cell_repeats
        self._column += self._cell_repeats - 1

    def _paragraph(self, _: Attributes) -> End:
        self.out.line_break()
        return self.hear(_)

    def _said(self) -> str:
        return resolve(self.out.whole().strip())

    def _comment(self, _: Attributes) -> End:
        self.begin_aside()
        return self._end_comment

    def _end_comment(self) -> None:
        said = " ".join(self.end_aside().split())
        self._comments += [f"- {letters(self._column)}{self._number}: {said}"] * bool(said)

    elements: ClassVar = {
        **Styled.elements, **dict.fromkeys(("title", "desc", "header", "footer", "shapes"), Walk.silence),
        "table-properties": Styled.properties, "table": _sheet, "table-row": _row, "table-column": _columns,
        "table-cell": _cell, "covered-table-cell": _cell, "p": _paragraph, "annotation": _comment,
    }  # fmt: skip


def _value(attributes: Attributes) -> str:
    """What is stored, for cells that have no text."""
    kind = attributes.get("value-type", "")
    if kind in ("float", "percentage", "currency"):
        return general(attributes.get("value", ""))
    return attributes.get(f"{kind}-value", "")
