"""Tables of a Word document, as a walk over its parts meets them: headers, spans, rows that are left out."""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from uncomp_cli.documents.text import DELETED, HIDDEN, Words
from uncomp_cli.documents.walk import Attributes, End, Walk
from uncomp_cli.documents.word.outline import integer, is_true


@dataclass(slots=True)
class _Table:
    """What is known of a table, its row and its cell so far."""

    has_header: bool = False
    rows: int = 0
    is_header: bool = False
    left_out: Words | None = None  # why the row is
    columns: int = 1
    above: bool = False


class Tables(Walk):
    """Hears of a part's tables; the outermost is the part itself."""

    def __init__(self, lost: Counter[Words]) -> None:
        super().__init__(lost)
        self._tables = [_Table()]

    def _table(self, _: Attributes) -> End:
        self.out.open_table()
        self._tables.append(_Table())
        return self._end_table

    def _end_table(self) -> None:
        self._tables.pop()
        self.out.close_table()

    def _table_look(self, attributes: Attributes) -> None:
        bits = attributes.get("val", "")
        by_bits = bool(int(bits, 16) & 0x20) if bits and all(c in "0123456789abcdefABCDEF" for c in bits) else False
        self._tables[-1].has_header = attributes.get("firstRow", str(int(by_bits))) in ("1", "true", "on")

    def _row(self, _: Attributes) -> End:
        table = self._tables[-1]
        table.rows += 1
        table.is_header, table.left_out = table.has_header and table.rows == 1, None
        self.out.open_row()
        return self.out.close_cell

    def _row_header(self, attributes: Attributes) -> None:
        self._tables[-1].is_header = self._tables[-1].is_header or is_true(attributes)

    def _columns_before(self, attributes: Attributes) -> None:
        self.out.open_cell(columns=max(integer(attributes.get("val", ""), 1), 1))

    def _row_left_out(self, attributes: Attributes, *, why: Words) -> None:
        if self._open and self._open[-1][0] == "trPr" and is_true(attributes):
            self._tables[-1].left_out = why

    def _cell(self, _: Attributes) -> End:
        table = self._tables[-1]
        if table.left_out is not None:
            self.leave_out(table.left_out)
            return None
        table.columns, table.above = 1, False
        self.out.open_cell(header=table.is_header)
        return self.out.close_cell

    def _columns(self, attributes: Attributes) -> None:
        self._tables[-1].columns = max(integer(attributes.get("val", ""), 1), 1)

    def _merged(self, attributes: Attributes) -> None:
        self._tables[-1].above = attributes.get("val", "continue") == "continue"

    def _cell_properties(self, _: Attributes) -> End:
        return lambda: self.out.span(columns=self._tables[-1].columns, above=self._tables[-1].above)

    def _delete(self, attributes: Attributes) -> None:
        """What was deleted: text, or where it is a property a row."""
        if not self._open or not self._open[-1][0].endswith("Pr"):
            self.leave_out(DELETED)
        else:
            self._row_left_out(attributes, why=DELETED)

    elements: ClassVar = {
        "tbl": _table,
        "tblLook": _table_look,
        "tr": _row,
        "tblHeader": _row_header,
        "gridBefore": _columns_before,
        **dict.fromkeys(("del", "moveFrom"), _delete),
        "hidden": partial(_row_left_out, why=HIDDEN),
        "tc": _cell,
        "tcPr": _cell_properties,
        "gridSpan": _columns,
        "vMerge": _merged,
    }
