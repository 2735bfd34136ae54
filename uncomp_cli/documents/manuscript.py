"""A part of a Word document (its body, a header, the notes) as Markdown, element by element: ECMA-376 part 1, 17.

Of changes that are tracked the new text is read and the old one counted; pictures are never opened.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial

from uncomp_cli.documents.equation import Equation
from uncomp_cli.documents.markdown import Markdown
from uncomp_cli.documents.outline import integer, is_true
from uncomp_cli.documents.signs import sign_of
from uncomp_cli.documents.story import NO_STYLE, Paragraph, Story, Table
from uncomp_cli.documents.superscripts import clean
from uncomp_cli.documents.text import CHART, HIDDEN, OBJECT, PICTURE, Words
from uncomp_cli.documents.walk import End, Walk

_Attributes = Mapping[str, str]

_DELETED = ("deleted passage of a tracked change", "deleted passages of tracked changes")
_SIGN = ("sign of a picture font", "signs of a picture font")
_LOST = {
    "relIds": ("diagram", "diagrams"),
    "OLEObject": OBJECT,
    "altChunk": ("embedded document", "embedded documents"),
}
_SILENT_TAGS = (
    "tabs rPrChange pPrChange tcPrChange tblPrChange trPrChange sectPrChange tblGridChange tblPrExChange Fallback "
    "instrText delInstrText fldData sectPr sdtPr sdtEndPr tblGrid binData"
)
_SILENT = frozenset(_SILENT_TAGS.split())
_LEFT_OUT_WITH_WORDS = frozenset(("del", "moveFrom", "tc"))
_LEFT_OUT = _SILENT | _LEFT_OUT_WITH_WORDS | {"Choice", "rPr"}
_SEPARATORS = frozenset(("separator", "continuationSeparator", "continuationNotice"))
_BLANKS = {"tab": " ", "ptab": " ", "noBreakHyphen": "-"}
_MOST_BOXES = 8


class Manuscript(Walk):
    """Hears of a part's elements; `out` is what they say."""

    def __init__(self, story: Story, charts: Mapping[str, str] | None = None) -> None:
        super().__init__(story.lost)
        self._charts = charts or {}  # what the part's charts say, by the names of its relations
        self.out = Markdown()
        self._story = story
        self._outer: list[Markdown] = []  # the texts around a text box or a note
        self._paragraphs: list[Paragraph] = []
        self._tables: list[Table] = []
        self._choices: list[bool] = []
        self._shift = self._shifted = ""
        self._vanish = self._in_text = False
        self._reading = ""
        self._has_words = False
        self._equation: Equation | None = None
        self._after_item = self._dropped = False
        self._entries: list[str] = []
        self._chosen = 0

    # --- the parser's side

    def start(self, tag: str, attributes: _Attributes) -> None:
        """An element begins."""
        if self._skip:
            self._skip += 1
        elif tag in _LEFT_OUT and self._is_left_out(tag):
            self._skip_all(_DELETED if tag in _LEFT_OUT_WITH_WORDS else None)
        elif self._equation is not None:
            self._equation.start(tag, attributes)
            self._in_text = tag == "t"
            self._open.append((tag, partial(self._end_in_equation, self._equation, tag)))
        else:
            found = _ELEMENTS.get(tag)
            self._open.append((tag, found(self, attributes) if found is not None else None))

    def _is_left_out(self, tag: str) -> bool:
        parent = self._open[-1][0] if self._open else ""
        if tag == "Choice":
            return any(self._choices[-1:])
        if tag == "rPr":
            return parent == "pPr"  # of the paragraph's mark
        if tag == "tc":
            return bool(self._tables) and self._tables[-1].is_deleted
        return tag in _SILENT or not parent.endswith("Pr")

    def data(self, text: str) -> None:
        """Text: what stands in `t`."""
        if self._skip:
            self._skipped_words += not text.isspace()
        elif self._in_text and self._equation is not None:
            self._equation.write(clean(text))
        elif self._in_text and self._vanish:
            self.lost[HIDDEN] += not text.isspace()
        elif self._in_text:
            self._write(clean(text))

    def _lose(self, _: _Attributes, *, what: Words) -> End:
        self.lost[what] += 1
        return None

    def _blank(self, _: _Attributes, *, text: str) -> End:
        self._write(text)
        return None

    def _end_in_equation(self, equation: Equation, tag: str) -> None:
        self._in_text = False
        equation.end(tag)

    # --- paragraphs

    def _paragraph(self, _: _Attributes) -> End:
        if not self._dropped:
            self._shift_to("")
            self.out.block(gap=True)
        self._dropped = False
        self._paragraphs.append(Paragraph())
        return self._end_paragraph

    def _end_paragraph(self) -> None:
        self._shift_to("")
        paragraph = self._paragraphs.pop()
        self._dropped = paragraph.is_drop
        if self._dropped:
            return
        if paragraph.end is not None:
            paragraph.end()
        self.out.block(gap=not paragraph.is_item)
        self._after_item = paragraph.is_item and not paragraph.boxes
        for box in paragraph.boxes:
            self.out.paste(box)
            self.out.block(gap=True)

    def _style(self, attributes: _Attributes) -> End:
        if self._paragraphs:
            self._paragraphs[-1].style = self._story.styles.get(attributes.get("val", ""), NO_STYLE)
        return None

    def _number(self, attributes: _Attributes) -> End:
        if self._paragraphs:
            self._paragraphs[-1].number = attributes.get("val", "")
        return None

    def _number_level(self, attributes: _Attributes) -> End:
        if self._paragraphs:
            self._paragraphs[-1].level = integer(attributes.get("val", ""), 0)
        return None

    def _outline_level(self, attributes: _Attributes) -> End:
        if self._paragraphs:
            self._paragraphs[-1].heading = (integer(attributes.get("val", ""), 9) + 1) % 10
        return None

    def _frame(self, attributes: _Attributes) -> End:
        if self._paragraphs:
            self._paragraphs[-1].is_drop = attributes.get("dropCap") in ("drop", "margin")
        return None

    def _properties(self, _: _Attributes) -> End:
        return self._end_properties

    def _end_properties(self) -> None:
        """All is known of the paragraph now: it is a heading, an item, or neither."""
        if not self._paragraphs:
            return
        here = self._paragraphs[-1]
        level = here.level if here.level >= 0 else here.style.level
        label = self._story.numbering.label(here.number or here.style.number, level)
        here.heading = 0 if self._tables else here.heading or here.style.heading
        if here.heading:
            self.out.open_heading(min(here.heading, 6))
            self.out.write(f"{label} " if label and label != "-" else "")
            here.end = self.out.close_heading
        elif label not in (None, "-", "") and self._tables:  # a row may have no more than its number
            self.out.write(f"{label} ")
            here.is_item = True
        elif label is not None:
            self.out.open_item(label or "-", level=min(max(level, 0), 8), dense=self._after_item)
            here.is_item = True
            here.end = self.out.close_item

    # --- runs

    def _run(self, _: _Attributes) -> End:
        self._shift, self._vanish = "", False
        return None

    def _run_style(self, attributes: _Attributes) -> End:
        style = self._story.styles.get(attributes.get("val", ""), NO_STYLE)
        self._shift, self._vanish = style.shift, style.hidden
        return None

    def _align(self, attributes: _Attributes) -> End:
        self._shift = attributes.get("val", "")
        return None

    def _hide(self, attributes: _Attributes) -> End:
        self._vanish = is_true(attributes)
        return None

    def _text(self, _: _Attributes) -> End:
        self._in_text = True
        return self._end_text

    def _end_text(self) -> None:
        self._in_text = False

    def _write(self, text: str) -> None:
        self._shift_to(self._shift)
        self.out.write(text)

    def _shift_to(self, shift: str) -> None:
        """Begin or end raised and lowered text: runs of one kind are one."""
        shift = shift if shift in ("superscript", "subscript") else ""
        if shift != self._shifted:
            if self._shifted:
                self.out.close_script(low=self._shifted == "subscript")
            if shift:
                self.out.open_script()
            self._shifted = shift

    def _break(self, attributes: _Attributes) -> End:
        if attributes.get("type") in ("page", "column"):
            self._shift_to("")
            self.out.block(gap=True)
        else:
            self.out.line_break()
        return None

    def _symbol(self, attributes: _Attributes) -> End:
        sign = sign_of(attributes.get("font", ""), attributes.get("char", ""))
        self.lost[_SIGN] += sign is None
        if sign != "":
            self._write(sign or "")
        return None

    def _ruby_text(self, _: _Attributes) -> End:
        return partial(self._end_ruby_text, self.out.here)

    def _end_ruby_text(self, begin: int) -> None:
        self._reading = self.out.taken(begin)

    def _ruby_base(self, _: _Attributes) -> End:
        return self._end_ruby_base

    def _end_ruby_base(self) -> None:
        self.out.write(f"({self._reading})" if self._reading else "")
        self._reading = ""

    def _formula(self, _: _Attributes) -> End:
        self._shift_to("")
        self._equation = Equation()
        return self._end_formula

    def _end_formula(self) -> None:
        if self._equation is not None:
            self.out.write(self._equation.text())
            self._equation = None

    # --- notes, boxes, pictures, fields

    def _reference(self, attributes: _Attributes, *, kind: str) -> End:
        self._shift_to("")
        self.out.write(self._story.mark(kind, attributes.get("id", "")))
        return None

    def _note(self, attributes: _Attributes, *, kind: str) -> End:
        author = attributes.get("author", "")
        self._outer.append(self.out)
        self.out = Markdown()
        kept = attributes.get("type") not in _SEPARATORS
        return partial(self._end_note, (kind, attributes.get("id", "")), f"{author}: " if author else "", kept)

    def _end_note(self, key: tuple[str, str], author: str, kept: bool) -> None:
        text, self.out = self.out.text(), self._outer.pop()
        if kept and text:
            self._story.texts[key] = author + re.sub(r"\n(?=.)", "\n    ", text)

    def _box(self, _: _Attributes) -> End:
        if len(self._outer) >= _MOST_BOXES or not self._paragraphs:
            return None
        self._shift_to("")
        self._outer.append(self.out)
        self.out = Markdown()
        return partial(self._end_box, self._paragraphs[-1], self._shift)

    def _end_box(self, around: Paragraph, shift: str) -> None:
        self._shift_to("")
        text, self.out = self.out.text(), self._outer.pop()
        around.boxes.append(text.split("\n"))
        self._shift = shift

    def _drawing(self, _: _Attributes) -> End:
        self._has_words = False
        return None

    def _described(self, attributes: _Attributes) -> End:
        words = clean(attributes.get("descr") or attributes.get("alt") or attributes.get("string") or "").strip()
        self._has_words = self._has_words or bool(words)
        self._write(f" {words} " if words else "")
        return None

    def _picture(self, _: _Attributes) -> End:
        self.lost[PICTURE] += not self._has_words
        return None

    def _chart(self, attributes: _Attributes) -> End:
        text = self._charts.get(attributes.get("id", ""), "")
        if text and self._paragraphs:
            self._paragraphs[-1].boxes.append(text.split("\n"))
        else:
            self.lost[CHART] += 1
        return None

    def _alternatives(self, _: _Attributes) -> End:
        self._choices.append(False)
        return self._end_alternatives

    def _end_alternatives(self) -> None:
        self._choices.pop()

    def _choice(self, _: _Attributes) -> End:
        if self._choices:
            self._choices[-1] = True
        return None

    def _check_box(self, _: _Attributes) -> End:
        self._chosen = 0
        return self._end_check_box

    def _end_check_box(self) -> None:
        self._write("[x] " if self._chosen else "[ ] ")

    def _checked(self, attributes: _Attributes) -> End:
        if self._open and self._open[-1][0] == "checkBox":
            self._chosen = int(is_true(attributes))
        return None

    def _choices_of_form(self, _: _Attributes) -> End:
        self._entries, self._chosen = [], 0
        return self._end_choices_of_form

    def _end_choices_of_form(self) -> None:
        self._write(self._entries[self._chosen] if 0 <= self._chosen < len(self._entries) else "")

    def _entry(self, attributes: _Attributes) -> End:
        self._entries.append(attributes.get("val", ""))
        return None

    def _result(self, attributes: _Attributes) -> End:
        self._chosen = integer(attributes.get("val", ""), 0)
        return None

    # --- tables

    def _table(self, _: _Attributes) -> End:
        self._shift_to("")
        self.out.open_table()
        self._after_item = False
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
        table.is_header, table.is_deleted = table.has_header and table.rows == 1, False
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
            self._tables[-1].is_deleted = True
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


_ELEMENTS: dict[str, Callable[[Manuscript, _Attributes], End]] = {
    **{tag: partial(Manuscript._lose, what=what) for tag, what in _LOST.items()},
    **{tag: partial(Manuscript._blank, text=text) for tag, text in _BLANKS.items()},
    "p": Manuscript._paragraph,
    "pPr": Manuscript._properties,
    "pStyle": Manuscript._style,
    "numId": Manuscript._number,
    "ilvl": Manuscript._number_level,
    "outlineLvl": Manuscript._outline_level,
    "framePr": Manuscript._frame,
    "r": Manuscript._run,
    "rStyle": Manuscript._run_style,
    "vertAlign": Manuscript._align,
    "vanish": Manuscript._hide,
    "t": Manuscript._text,
    "br": Manuscript._break,
    "cr": Manuscript._break,
    "sym": Manuscript._symbol,
    "rt": Manuscript._ruby_text,
    "rubyBase": Manuscript._ruby_base,
    "oMath": Manuscript._formula,
    **{f"{kind}Reference": partial(Manuscript._reference, kind=kind) for kind in ("footnote", "endnote", "comment")},
    **{kind: partial(Manuscript._note, kind=kind) for kind in ("footnote", "endnote", "comment")},
    "txbxContent": Manuscript._box,
    **dict.fromkeys(("drawing", "pict", "object"), Manuscript._drawing),
    **dict.fromkeys(("docPr", "shape", "textpath"), Manuscript._described),
    **dict.fromkeys(("blip", "imagedata"), Manuscript._picture),
    "chart": Manuscript._chart,
    "AlternateContent": Manuscript._alternatives,
    "Choice": Manuscript._choice,
    "checkBox": Manuscript._check_box,
    **dict.fromkeys(("default", "checked"), Manuscript._checked),
    "ddList": Manuscript._choices_of_form,
    "listEntry": Manuscript._entry,
    "result": Manuscript._result,
    "tbl": Manuscript._table,
    "tblLook": Manuscript._look,
    "tr": Manuscript._row,
    "tblHeader": Manuscript._row_header,
    "gridBefore": Manuscript._columns_before,
    "del": Manuscript._row_deleted,
    "tc": Manuscript._cell,
    "tcPr": Manuscript._cell_properties,
    "gridSpan": Manuscript._columns,
    "vMerge": Manuscript._merged,
}
