"""OpenDocument (.odt, .ods, .odp, and their flat XML): the text in order, sheets row by row, slides one by one.

Sheets store what each cell shows as text, so that no number is formatted here. Footnotes and comments stand at the end
of their text; what is deleted but tracked, hidden, or has no text (pictures, charts, formulas' objects) is a loss.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from uncomp_cli.documents.archive import Archive
from uncomp_cli.documents.display import general
from uncomp_cli.documents.enumeration import OfficeLists, count_of
from uncomp_cli.documents.equation import Formula
from uncomp_cli.documents.ledger import Row, letters, lines_of, place_name
from uncomp_cli.documents.markdown import Markdown
from uncomp_cli.documents.parts import walk_xml, within
from uncomp_cli.documents.text import (
    FILM,
    HIDDEN_ROW,
    HIDDEN_SHEET,
    HIDDEN_SLIDE,
    MARGIN,
    OBJECT,
    PICTURE,
    UNCALCULATED,
    Text,
    Wishes,
    Words,
    counted,
    joined,
)
from uncomp_cli.errors import DocumentError

_KIND = "OpenDocument file"
_HEAD_BYTES = 4096
_MOST_COLUMNS = 16_384
_MOST_CELLS = 4_000_000
_PROPERTIES = ("text-position", "display", "visibility")
_UNSEEN = frozenset(("forms", "settings", "scripts", "meta", "table-source", "tracked-changes"))
_LOST: dict[str, Words] = {
    "image": PICTURE,
    "object": OBJECT,
    "object-ole": OBJECT,
    "plugin": FILM,
    "deletion": ("deleted passage", "deleted passages"),
    "shapes": ("drawing", "drawings"),
    "control": ("form field", "form fields"),
}
_REPEATED_ROW = ("repeated row", "repeated rows")
_NAME_LINE = "\n## "


def read(data: bytes, wishes: Wishes) -> Text:
    """The text of an OpenDocument file."""
    content, styles, archive = data, b"", None
    if data.startswith(b"PK"):
        archive = Archive(data, wishes.limits, kind=_KIND)
        names = archive.names
        if "META-INF/manifest.xml" in names and b"encryption-data" in archive.read("META-INF/manifest.xml"):
            hint = "open it in LibreOffice and save it without a password"
            raise DocumentError(f"it is an {_KIND} locked by a password", hint=hint)
        if "content.xml" not in names:
            raise DocumentError(f"it is no {_KIND} (it has no content)", hint="open it in a viewer and save it again")
        content = archive.read("content.xml")
        styles = archive.read("styles.xml") if "styles.xml" in names else b""
    is_sheets = b"opendocument.spreadsheet" in data[:_HEAD_BYTES] or b"<office:spreadsheet" in content
    walk: _Words | _Sheets = _Sheets() if is_sheets else _Words(archive)
    for part in filter(None, (styles, content)):
        walk_xml(part, walk, kind=_KIND)
    text, places = joined(walk.parts(), between="\n" if is_sheets else "\n\n")
    places = tuple(place for place in places if place.name)
    return Text(text.strip("\n"), places, counted(walk.lost))


class _Handler:
    """Hears elements by tables of what begins and what ends; what is in an unseen one is skipped."""

    starts: ClassVar[Mapping[str, Callable[[Any, Mapping[str, str]], None]]]
    ends: ClassVar[Mapping[str, Callable[[Any], None]]]

    def __init__(self) -> None:
        self.lost: Counter[Words] = Counter()
        self.skipped = 0
        self.styles: dict[str, dict[str, str]] = {}
        self._style: dict[str, str] = {}

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        """An element begins."""
        if tag in _LOST:
            self.lost[_LOST[tag]] += 1
        if self.skipped or tag in _UNSEEN:
            self.skipped += 1
        elif (begin := self.starts.get(tag)) is not None:
            begin(self, attributes)

    def end(self, tag: str) -> None:
        """It ends."""
        if self.skipped:
            self.skipped -= 1
        elif (finish := self.ends.get(tag)) is not None:
            finish(self)

    def new_style(self, attributes: Mapping[str, str]) -> None:
        """A style, which begins with what its parent says."""
        self._style = dict(self.styles.get(attributes.get("parent-style-name", ""), {}))
        self._style |= {name: attributes[name] for name in ("list-style-name",) if name in attributes}
        self.styles[attributes.get("name", "")] = self._style

    def properties(self, attributes: Mapping[str, str]) -> None:
        """What a style says, as far as it matters to the text."""
        self._style |= {name: attributes[name] for name in _PROPERTIES if name in attributes}

    def style(self, attributes: Mapping[str, str], name: str) -> str:
        """What an element's style says."""
        return self.styles.get(attributes.get("style-name", ""), {}).get(name, "")

    def skip(self, _: Mapping[str, str]) -> None:
        """Leave this element out, with all that is in it."""
        self.skipped = 1


class _Words(_Handler):
    """Text documents and slides. Where text goes is a stack: the document or a slide, and in it notes and comments."""

    def __init__(self, archive: Archive | None) -> None:
        super().__init__()
        self._archive = archive
        self._outs = [Markdown()]
        self._outer: list[int] = []
        self._spans: list[str] = []
        self._frames: list[bool] = []
        self._texts = self._pages = self._count = 0
        self._lists = OfficeLists()
        self._is_first_row = False
        self._repeats = 1
        self._notes: list[str] = []
        self._comments: list[str] = []
        self._parts: list[tuple[str, str]] = []

    def data(self, text: str) -> None:
        """Text: only paragraphs and headings have any."""
        if self._texts and not self.skipped:
            self._outs[-1].write(text)

    def parts(self) -> list[tuple[str, str]]:
        """The slides with their places, or the whole text."""
        return self._parts or [("", self._ended(self._outs[0].text()))]

    def _ended(self, text: str) -> str:
        """A text with its footnotes and comments behind it."""
        comments = ["\n".join(["Comments:", *self._comments])] * bool(self._comments)
        parts = [text, "\n".join(self._notes), *comments]
        self._notes, self._comments = [], []
        return "\n\n".join(filter(None, parts))

    # --- in the text

    def _paragraph(self, _: Mapping[str, str]) -> None:
        self._texts += 1
        self._outs[-1].block(gap=not self._lists)

    def _end_paragraph(self) -> None:
        self._texts -= 1
        self._outs[-1].block()

    def _heading(self, attributes: Mapping[str, str]) -> None:
        self._texts += 1
        level = count_of(attributes, "outline-level")
        self._outs[-1].open_heading(min(level, 6))
        named = self.styles.get(attributes.get("style-name", ""), {}).get("list-style-name")
        if not self._lists and named is None and attributes.get("is-list-header") != "true":
            label = self._lists.heading_label(level - 1)
            self._outs[-1].write(f"{label} " if label else "")

    def _end_heading(self) -> None:
        self._texts -= 1
        self._outs[-1].close_heading()

    def _span(self, attributes: Mapping[str, str]) -> None:
        position = self.style(attributes, "text-position").split(" ")[0]
        moved = "" if position in ("", "0%") else "low" if position.startswith(("sub", "-")) else "high"
        self._spans.append(moved)
        if moved:
            self._outs[-1].open_script()

    def _end_span(self) -> None:
        if moved := self._spans.pop():
            self._outs[-1].close_script(low=moved == "low")

    def _space(self, _: Mapping[str, str]) -> None:
        self._outs[-1].space()

    def _line_break(self, _: Mapping[str, str]) -> None:
        self._outs[-1].line_break()

    def _list(self, attributes: Mapping[str, str]) -> None:
        if not self._lists:
            self._outs[-1].block(gap=True)
        self._lists.begin(attributes)

    def _end_list(self) -> None:
        self._lists.end()
        if not self._lists:
            self._outs[-1].block(gap=True)

    def _item(self, attributes: Mapping[str, str]) -> None:
        self._outs[-1].open_item(self._lists.label(attributes))

    def _end_item(self) -> None:
        self._outs[-1].close_item()

    def _list_kind(self, attributes: Mapping[str, str]) -> None:
        self._lists.describe(attributes.get("name", ""))

    def _outline_kind(self, _: Mapping[str, str]) -> None:
        self._lists.describe("")

    def _numbers(self, attributes: Mapping[str, str]) -> None:
        self._lists.add_numbers(attributes)

    def _bullets(self, attributes: Mapping[str, str]) -> None:
        self._lists.add_bullets(attributes)

    # --- beside the text

    def _aside(self, _: Mapping[str, str]) -> None:
        """What has paragraphs of its own: who wrote a comment, and when, stands in none."""
        self._outs.append(Markdown())
        self._outer.append(self._texts)
        self._texts = 0

    def _end_aside(self) -> str:
        self._texts = self._outer.pop()
        return self._outs.pop().text().strip()

    def _end_note(self) -> None:
        self._count += 1
        self._notes.append(f"[^{self._count}]: {' '.join(self._end_aside().split())}")
        self._outs[-1].write(f"[^{self._count}]")

    def _end_comment(self) -> None:
        said = " ".join(self._end_aside().split())
        self._comments += [f"- {said}"] * bool(said)

    def _end_margin(self) -> None:
        """The end of a page's header or footer, which stands on every page, and is said."""
        self.lost[MARGIN] += bool(self._end_aside())

    def _object(self, attributes: Mapping[str, str]) -> None:
        """An object: a formula is read, and the numbers of a chart; the picture that stands for it is no loss then."""
        name = within("", attributes.get("href", "")) + "/content.xml"
        data = self._archive.read(name) if self._archive is not None and name in self._archive.names else b""
        if b"<math" in data[:_HEAD_BYTES]:
            formula = Formula()
            walk_xml(data, formula, kind=_KIND)
            self._outs[-1].write(f" {formula.text()} ")
        elif b"<chart:chart " in data:
            chart = _Words(None)
            walk_xml(data, chart, kind=_KIND)
            self._outs[-1].block(gap=True)
            self._outs[-1].paste(chart.parts()[0][1].split("\n"))
            self._outs[-1].block(gap=True)
        else:
            return
        self.lost[OBJECT] -= 1
        self.lost[PICTURE] -= 1

    # --- tables

    def _table(self, _: Mapping[str, str]) -> None:
        self._outs[-1].open_table()
        self._is_first_row = True

    def _end_table(self) -> None:
        self._outs[-1].close_table()

    def _row(self, _: Mapping[str, str]) -> None:
        self._outs[-1].open_row()

    def _end_row(self) -> None:
        self._is_first_row = False

    def _cell(self, attributes: Mapping[str, str]) -> None:
        columns, rows = (count_of(attributes, f"number-{name}-spanned") for name in ("columns", "rows"))
        self._repeats = count_of(attributes, "number-columns-repeated")
        self._outs[-1].open_cell(header=self._is_first_row, columns=columns, rows=rows)

    def _end_cell(self) -> None:
        self._outs[-1].close_cell(times=self._repeats)
        self._repeats = 1

    # --- slides

    def _page(self, attributes: Mapping[str, str]) -> None:
        self._pages += 1
        self._outs.append(Markdown())
        if self.style(attributes, "visibility") == "hidden":
            self.lost[HIDDEN_SLIDE] += 1
            self._outs.pop()
            self.skipped = 1

    def _end_page(self) -> None:
        self._parts.append((f"s{self._pages}", self._ended(self._outs.pop().text())))

    def _frame(self, attributes: Mapping[str, str]) -> None:
        is_title = attributes.get("class") == "title"
        self._frames.append(is_title)
        if is_title:
            self._outs[-1].open_heading(2)
        elif self._pages:
            self._outs[-1].block(gap=True)

    def _end_frame(self) -> None:
        if self._frames.pop():
            self._outs[-1].close_heading()

    def _end_speaker(self) -> None:
        said = self._end_aside()
        for number, line in enumerate(f"Notes: {said}".split("\n") if said else ()):
            self._outs[-1].block(gap=not number)
            self._outs[-1].write(line)
        self._outs[-1].block()

    starts: ClassVar = {
        "style": _Handler.new_style, "text-properties": _Handler.properties, "header": _aside, "footer": _aside,
        "drawing-page-properties": _Handler.properties, "p": _paragraph, "h": _heading, "span": _span, "s": _space,
        "tab": _space, "line-break": _line_break, "list": _list, "list-item": _item, "note-body": _aside,
        "note-citation": _Handler.skip, "annotation": _aside,
        "list-style": _list_kind, "outline-style": _outline_kind, "outline-level-style": _numbers,
        "list-level-style-number": _numbers, "list-level-style-bullet": _bullets, "list-level-style-image": _bullets,
        "table": _table, "table-row": _row, "table-cell": _cell, "page": _page, "frame": _frame, "object": _object,
        "custom-shape": _frame, "notes": _aside, "title": _Handler.skip, "desc": _Handler.skip,
        "page-number": _Handler.skip, "page-thumbnail": _Handler.skip,
    }  # fmt: skip
    ends: ClassVar = {
        "header": _end_margin, "footer": _end_margin, "p": _end_paragraph, "h": _end_heading, "span": _end_span,
        "list": _end_list, "list-item": _end_item, "note-body": _end_note, "annotation": _end_comment,
        "table": _end_table, "table-row": _end_row, "table-cell": _end_cell, "page": _end_page, "frame": _end_frame,
        "custom-shape": _end_frame, "notes": _end_speaker,
    }  # fmt: skip


class _Sheets(_Handler):
    """The sheets of a workbook; a cell is its paragraphs, or its stored value where it has none."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[tuple[str, str]] = []
        self._rows: list[Row] = []
        self._cells: dict[int, str] = {}
        self._comments: list[str] = []
        self._texts: list[list[str]] = [[]]
        self._name, self._value = "", ""
        self._number = self._column = self._paragraphs = 0
        self._row_repeats = self._cell_repeats = 1
        self._is_hidden = self._is_formula = False
        self._spare = _MOST_CELLS

    def data(self, text: str) -> None:
        """Text: only paragraphs have any."""
        if self._paragraphs and not self.skipped:
            self._texts[-1].append(text)

    def parts(self) -> list[tuple[str, str]]:
        """The lines of all sheets; their names above them where there are several."""
        several = sum(text.startswith(_NAME_LINE) for _, text in self._lines) > 1
        return [(place, text) for place, text in self._lines if several or not text.startswith(_NAME_LINE)]

    def _sheet(self, attributes: Mapping[str, str]) -> None:
        self._name, self._rows, self._comments, self._number = attributes.get("name", ""), [], [], 0
        if self.style(attributes, "display") == "false":
            self.lost[HIDDEN_SHEET] += 1
            self.skipped = 1

    def _end_sheet(self) -> None:
        prefix = place_name(self._name)
        lines = [(f"{prefix}!{letters(line.column)}{line.number}", line.text) for line in lines_of(self._rows)]
        notes = [(prefix, "\n".join(["\nComments:", *self._comments]))] * bool(self._comments)
        if lines or notes:
            self._lines += [(prefix, f"{_NAME_LINE}{self._name}\n"), *lines, *notes]

    def _row(self, attributes: Mapping[str, str]) -> None:
        self._cells, self._column = {}, 0
        self._number += 1
        self._row_repeats = count_of(attributes, "number-rows-repeated")
        self._is_hidden = attributes.get("visibility", "visible") != "visible"

    def _end_row(self) -> None:
        repeats, cells = self._row_repeats, self._cells
        if cells and self._is_hidden:
            self.lost[HIDDEN_ROW] += repeats
        elif cells:
            kept = min(repeats, max(1, self._spare // len(cells)))
            self._spare -= kept * len(cells)
            self._rows += [Row(self._number + more, cells) for more in range(kept)]
            self.lost[_REPEATED_ROW] += repeats - kept
        self._number += repeats - 1

    def _cell(self, attributes: Mapping[str, str]) -> None:
        self._column += 1
        self._cell_repeats = count_of(attributes, "number-columns-repeated")
        self._value, self._is_formula = _value(attributes), "formula" in attributes
        self._texts[-1].clear()

    def _end_cell(self) -> None:
        shown = "".join(self._texts[-1]).strip() or self._value
        if shown:
            last = self._column + min(self._cell_repeats, max(1, _MOST_COLUMNS - self._column), max(1, self._spare))
            self._spare -= last - self._column - 1
            self._cells |= dict.fromkeys(range(self._column, last), shown)
        elif self._is_formula:
            self.lost[UNCALCULATED] += self._cell_repeats
        self._column += self._cell_repeats - 1

    def _paragraph(self, _: Mapping[str, str]) -> None:
        self._paragraphs += 1
        self._texts[-1].append("\n")

    def _end_paragraph(self) -> None:
        self._paragraphs -= 1

    def _space(self, _: Mapping[str, str]) -> None:
        self._texts[-1].append(" ")

    def _break(self, _: Mapping[str, str]) -> None:
        self._texts[-1].append("\n")

    def _comment(self, _: Mapping[str, str]) -> None:
        self._texts.append([])

    def _end_comment(self) -> None:
        said = " ".join("".join(self._texts.pop()).split())
        self._comments += [f"- {letters(self._column)}{self._number}: {said}"] * bool(said)

    starts: ClassVar = {
        "style": _Handler.new_style, "table-properties": _Handler.properties, "table": _sheet, "table-row": _row,
        "table-cell": _cell, "covered-table-cell": _cell, "p": _paragraph, "s": _space, "tab": _space,
        "line-break": _break, "annotation": _comment,
        "title": _Handler.skip, "desc": _Handler.skip, "header": _Handler.skip, "footer": _Handler.skip,
        "shapes": _Handler.skip,
    }  # fmt: skip
    ends: ClassVar = {
        "table": _end_sheet, "table-row": _end_row, "table-cell": _end_cell, "covered-table-cell": _end_cell,
        "p": _end_paragraph, "annotation": _end_comment,
    }  # fmt: skip


def _value(attributes: Mapping[str, str]) -> str:
    """What is stored, for cells that have no text."""
    kind = attributes.get("value-type", "")
    if kind in ("float", "percentage", "currency"):
        return general(attributes.get("value", ""))
    return attributes.get(f"{kind}-value", "")
