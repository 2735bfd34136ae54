"""A part of a Word document (its body, a header, the notes) as Markdown, element by element: ECMA-376 part 1, 17.

Of changes that are tracked the new text is read and the old one counted; pictures are never opened.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial

from uncomp_cli.documents.equation import Equation
from uncomp_cli.documents.fields import Fields
from uncomp_cli.documents.markdown import Markdown
from uncomp_cli.documents.outline import Style, integer, is_true, moved
from uncomp_cli.documents.signs import sign_of
from uncomp_cli.documents.story import NO_STYLE, Paragraph, Story
from uncomp_cli.documents.superscripts import clean
from uncomp_cli.documents.tabular import Tables
from uncomp_cli.documents.text import CHART, DELETED, HIDDEN, OBJECT, PICTURE, STRUCK, Words
from uncomp_cli.documents.walk import End

_Attributes = Mapping[str, str]

_SIGN = ("sign of a picture font", "signs of a picture font")
_DIAGRAM = ("diagram", "diagrams")
_LOST = {
    "OLEObject": OBJECT,
    "altChunk": ("embedded document", "embedded documents"),
}
_SILENT_TAGS = (
    "tabs rPrChange pPrChange tcPrChange tblPrChange trPrChange sectPrChange tblGridChange tblPrExChange Fallback "
    "delInstrText fldData sectPr sdtPr sdtEndPr tblGrid binData"
)
_SILENT = frozenset(_SILENT_TAGS.split())
_DELETIONS = frozenset(("del", "moveFrom"))
_LEFT_OUT = _SILENT | _DELETIONS | {"Choice", "rPr", "tc"}
_SEPARATORS = frozenset(("separator", "continuationSeparator", "continuationNotice"))
_BLANKS = {"tab": " ", "ptab": " ", "noBreakHyphen": "-"}
_MOST_BOXES = 8


class Manuscript(Tables, Fields):
    """Hears of a part's elements; `out` is what they say."""

    def __init__(self, story: Story, charts: Mapping[str, str] | None = None) -> None:
        super().__init__(story.lost)
        self._charts = charts or {}  # what the part's charts say, by the names of its relations
        self._story = story
        self._outer: list[Markdown] = []  # the texts around a text box or a note
        self._paragraphs: list[Paragraph] = []
        self._choices: list[bool] = []
        self._shift = self._shifted = ""
        self._strike = self._struck = False
        self._vanish = self._in_text = False
        self._reading = ""
        self._has_words = False
        self._equation: Equation | None = None
        self._after_item = self._dropped = False

    # --- the parser's side

    def start(self, tag: str, attributes: _Attributes) -> None:
        """An element begins."""
        if self._skip:
            self._skip += 1
        elif tag in _LEFT_OUT and self._is_left_out(tag):
            self._skip_all(self._left_out_row if tag == "tc" else DELETED if tag in _DELETIONS else None)
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
            return self._left_out_row is not None
        return tag in _SILENT or not parent.endswith("Pr")

    def data(self, text: str) -> None:
        """Text: what stands in `t`."""
        if self._skip:
            self._skipped_words += not text.isspace()
        elif self._in_code:
            self._instruct(text)
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
            self._plain()
            self.out.block(gap=True)
        self._dropped = False
        self._paragraphs.append(Paragraph())
        return self._end_paragraph

    def _end_paragraph(self) -> None:
        self._plain()
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
        self._follow(self._paragraphs[-1].style if self._paragraphs else NO_STYLE)
        return None

    def _follow(self, style: Style) -> None:
        self._shift, self._vanish, self._strike = style.shift, style.hidden, style.struck

    def _run_style(self, attributes: _Attributes) -> End:
        self._follow(self._story.styles.get(attributes.get("val", ""), NO_STYLE))
        return None

    def _align(self, attributes: _Attributes) -> End:
        self._shift = attributes.get("val", "")
        return None

    def _move(self, attributes: _Attributes) -> End:
        self._shift = moved(attributes.get("val", "")) or self._shift
        return None

    def _strike_out(self, attributes: _Attributes) -> End:
        self._strike = is_true(attributes)
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
        self._turn(self._shift, self._strike)
        self.out.write(text)

    def _plain(self) -> None:
        self._turn("", False)

    def _turn(self, shift: str, struck: bool) -> None:
        """Begin or end raised, lowered and struck text: runs of one kind are one."""
        shift = shift if shift in ("superscript", "subscript") else ""
        if (shift, struck) == (self._shifted, self._struck):
            return
        if self._shifted:
            self.out.close_script(low=self._shifted == "subscript")
        self.out.write(STRUCK if struck != self._struck else "")
        if shift:
            self.out.open_script()
        self._shifted, self._struck = shift, struck

    def _break(self, attributes: _Attributes) -> End:
        if attributes.get("type") in ("page", "column"):
            self._plain()
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
        self._plain()
        self._equation = Equation()
        return self._end_formula

    def _end_formula(self) -> None:
        if self._equation is not None:
            self.out.write(self._equation.text())
            self._equation = None

    # --- notes, boxes, pictures, fields

    def _reference(self, attributes: _Attributes, *, kind: str) -> End:
        self._plain()
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
        self._plain()
        self._outer.append(self.out)
        self.out = Markdown()
        return partial(self._end_box, self._paragraphs[-1], (self._shift, self._strike))

    def _end_box(self, around: Paragraph, look: tuple[str, bool]) -> None:
        self._plain()
        text, self.out = self.out.text(), self._outer.pop()
        around.boxes.append(text.split("\n"))
        self._shift, self._strike = look

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

    def _drawn(self, attributes: _Attributes, *, by: str, what: Words) -> End:
        """A chart or a diagram, by the name of its relation."""
        text = self._charts.get(attributes.get(by, ""), "")
        if text and self._paragraphs:
            self._paragraphs[-1].boxes.append(text.split("\n"))
        else:
            self.lost[what] += 1
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

    # --- tables

    def _table(self, attributes: _Attributes) -> End:
        self._plain()
        self._after_item = False
        return super()._table(attributes)


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
    "position": Manuscript._move,
    **dict.fromkeys(("strike", "dstrike"), Manuscript._strike_out),
    "fldChar": Manuscript._field,
    "instrText": Manuscript._instruction,
    "relIds": partial(Manuscript._drawn, by="dm", what=_DIAGRAM),
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
    "chart": partial(Manuscript._drawn, by="id", what=CHART),
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
    "hidden": Manuscript._row_hidden,
    "tc": Manuscript._cell,
    "tcPr": Manuscript._cell_properties,
    "gridSpan": Manuscript._columns,
    "vMerge": Manuscript._merged,
}
