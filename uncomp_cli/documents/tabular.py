"""Tables of a Word document, as a walk over its parts meets them: headers, spans, rows that are left out."""

from collections import Counter
from collections.abc import Mapping

from uncomp_cli.documents.markdown import Markdown
from uncomp_cli.documents.outline import integer, is_true
from uncomp_cli.documents.story import Table
from uncomp_cli.documents.text import DELETED, HIDDEN, Words
from uncomp_cli.documents.walk import End, Walk

_Attributes = Mapping[str, str]


class Tables(Walk):
    """Hears of a part's tables; `out` is what the part says."""

    def __init__(self, lost: Counter[Words]) -> None:
        super().__init__(lost)
        self.out = Markdown()
        self._tables: list[Table] = []

    @property
    def _left_out_row(self) -> Words | None:
        """Why the row that is open is left out, if it is."""
        return self._tables[-1].left_out if self._tables else None

    def _table(self, _: _Attributes) -> End:
        self.out.open_table()
        self._tables.append(Table())
        return self._end_table

    def _end_table(self) -> None:
        self._tables.pop()
        self.out.close_table()

    def _look(self, attributes: _Attributes) -> End:
        if self._tables:
            bits = attributes.get("val", "")
            by_bits = bool(int(bits, 16) & 0x20) if bits and all(c in "0123456789abcdefABCDEF" for c in bits) else False
            self._tables[-1].has_header = attributes.get("firstRow", str(int(by_bits))) in ("1", "true", "on")
        return None

    def _row(self, _: _Attributes) -> End:
        table = self._tables[-1] if self._tables else Table()
        table.rows += 1
        table.is_header, table.left_out = table.has_header and table.rows == 1, None
        self.out.open_row()
        return self.out.close_cell

    def _row_header(self, attributes: _Attributes) -> End:
        if self._tables:
            self._tables[-1].is_header = self._tables[-1].is_header or is_true(attributes)
        return None

    def _columns_before(self, attributes: _Attributes) -> End:
        self.out.open_cell(columns=max(integer(attributes.get("val", ""), 1), 1))
        return None

    def _row_deleted(self, _: _Attributes) -> End:
        if self._tables and self._open and self._open[-1][0] == "trPr":
            self._tables[-1].left_out = DELETED
        return None

    def _row_hidden(self, attributes: _Attributes) -> End:
        if self._tables and self._open and self._open[-1][0] == "trPr" and is_true(attributes):
            self._tables[-1].left_out = HIDDEN
        return None

    def _cell(self, _: _Attributes) -> End:
        if self._tables:
            self._tables[-1].columns, self._tables[-1].above = 1, False
            self.out.open_cell(header=self._tables[-1].is_header)
        return self.out.close_cell

    def _columns(self, attributes: _Attributes) -> End:
        if self._tables:
            self._tables[-1].columns = max(integer(attributes.get("val", ""), 1), 1)
        return None

    def _merged(self, attributes: _Attributes) -> End:
        if self._tables:
            self._tables[-1].above = attributes.get("val", "continue") == "continue"
        return None

    def _cell_properties(self, _: _Attributes) -> End:
        return self._end_cell_properties

    def _end_cell_properties(self) -> None:
        if self._tables:
            self.out.span(columns=self._tables[-1].columns, above=self._tables[-1].above)
