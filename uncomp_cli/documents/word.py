"""Word documents (.docx and its kin) as Markdown, from their own XML parts: no depth lost, and nothing dropped unsaid.

The text stands as in Word: headers, body, footers, then notes and comments with their marks. Of changes that are
tracked the new text is read and the old one counted. Pictures are never opened: a linked one would name any file of
this machine (CVE-2025-11849). ECMA-376 part 1; strict files (ISO/IEC 29500) differ in namespaces alone.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial

from uncomp_cli.documents.archive import Archive
from uncomp_cli.documents.equation import Equation
from uncomp_cli.documents.markdown import Markdown
from uncomp_cli.documents.outline import Numbering, Style, integer, is_true, read_styles
from uncomp_cli.documents.parts import Relation, relations, tree_of, walk_xml
from uncomp_cli.documents.superscripts import clean
from uncomp_cli.documents.text import Text, Wishes, counted
from uncomp_cli.errors import DocumentError

_KIND = "Word document"
_Attributes = Mapping[str, str]
_End = Callable[[], object] | None
_Words = tuple[str, str]

_DELETED = ("deleted passage of a tracked change", "deleted passages of tracked changes")
_HIDDEN = ("passage of hidden text", "passages of hidden text")
_PICTURE = ("picture without a text", "pictures without a text")
_SIGN = ("sign of a picture font", "signs of a picture font")
_LOST = {
    "chart": ("chart", "charts"),
    "relIds": ("diagram", "diagrams"),
    "OLEObject": ("embedded object", "embedded objects"),
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
_NO_STYLE = Style()

# What is written with fonts of pictures (Wingdings) and of Greek (Symbol), whose codes Word keeps in U+F0xx.
_WINGDINGS = {0x6C: "•", 0x6E: "■", 0x6F: "☐", 0x71: "☐", 0x72: "☐", 0xA7: "•", 0xA8: "☐", 0xD8: "▸", 0xE0: "→"}
_WINGDINGS |= {0xFB: "✗", 0xFC: "✓", 0xFD: "☒", 0xFE: "☑", 0x76: "•", 0x9F: "•", 0xE8: "→"}
_SYMBOL = dict(zip(b"abcdefghijklmnopqrstuvwxyz", "αβχδεφγηιϕκλμνοπθρστυϖωξψζ", strict=True))
_SYMBOL |= dict(zip(b"DFGJLPQSUWXYC", "ΔΦΓϑΛΠΘΣΥΩΞΨΧ", strict=True))
_SYMBOL |= {0x2D: "−", 0xA3: "≤", 0xA5: "∞", 0xB0: "°", 0xB1: "±", 0xB3: "≥", 0xB4: "×", 0xB7: "•", 0xB8: "÷"}
_SYMBOL |= {0xB9: "≠", 0xBA: "≡", 0xBB: "≈", 0xAB: "↔", 0xAC: "←", 0xAE: "→", 0xD6: "√", 0xE5: "∑", 0xF2: "∫"}


def read(data: bytes, wishes: Wishes) -> Text:
    """The text of a Word document."""
    archive = Archive(data, wishes.limits, kind=_KIND)
    main = next((r.target for r in relations(archive, "", kind=_KIND).values() if r.kind == "officeDocument"), "")
    if main not in archive.names:
        raise DocumentError(f"it is no {_KIND}, or a damaged one (it has no main part)", hint="save it again in Word")
    parts = relations(archive, main, kind=_KIND)
    styles = read_styles(tree_of(archive, _part(parts, "styles"), kind=_KIND))
    numbering = Numbering(tree_of(archive, _part(parts, "numbering"), kind=_KIND), styles)
    story = _Story(styles, numbering)
    for kind in ("footnotes", "endnotes", "comments"):
        if _part(parts, kind) in archive.names:
            walk_xml(archive.read(_part(parts, kind)), _Walk(story), kind=_KIND)
    texts = {
        kind: [_walked(archive, part, story, wishes) for part in _all(parts, kind)] for kind in ("header", "footer")
    }
    body = _walked(archive, main, story, wishes)
    whole = [*_running(texts["header"]), body, *_running(texts["footer"]), *story.notes()]
    return Text("\n\n".join(filter(None, whole)), (), counted(story.lost))


def _part(parts: Mapping[str, Relation], kind: str) -> str:
    return next(iter(_all(parts, kind)), "")


def _all(parts: Mapping[str, Relation], kind: str) -> list[str]:
    return list(dict.fromkeys(relation.target for relation in parts.values() if relation.kind == kind))


def _running(texts: Iterable[str]) -> list[str]:
    """Headers or footers, each once; without those that are a page's number."""
    return [text for text in dict.fromkeys(texts) if text and not text.strip("-– ").isdigit()]


def _walked(archive: Archive, part: str, story: "_Story", wishes: Wishes) -> str:
    if part not in archive.names:
        return ""
    walk = _Walk(story)
    walk_xml(archive.read(part), walk, kind=_KIND, progress=wishes.progress)
    return walk.out.text()


@dataclass(slots=True)
class _Story:
    """What the parts of a document share: styles, numbers, notes, and what was lost."""

    styles: Mapping[str, Style]
    numbering: Numbering
    texts: dict[tuple[str, str], str] = field(default_factory=dict)  # of notes, by kind and id
    marks: dict[tuple[str, str], str] = field(default_factory=dict)  # of notes that were met, in order
    lost: Counter[_Words] = field(default_factory=Counter)

    def mark(self, kind: str, name: str) -> str:
        """The mark of a note at its place in the text."""
        known = self.marks.get((kind, name))
        if known is None:
            number = 1 + sum(met == kind for met, _ in self.marks)
            known = {"footnote": f"[^{number}]", "endnote": f"[^e{number}]"}.get(kind, f"[comment {number}]")
            self.marks[kind, name] = known
        return known

    def notes(self) -> list[str]:
        """The notes, in the order of their marks; then those without one."""
        for key in self.texts:
            self.mark(*key)
        written = ((self.texts.get(key, ""), mark) for key, mark in self.marks.items())
        return [mark + (": " if "^" in mark else " ") + text for text, mark in written if text]


@dataclass(slots=True)
class _Paragraph:
    style: Style = _NO_STYLE
    number: str = ""
    level: int = -1
    heading: int = 0
    boxes: list[list[str]] = field(default_factory=list)  # texts that float beside it
    end: _End = None
    is_item: bool = False
    is_drop: bool = False  # a first letter as large as some lines: a paragraph of its own, for Word


@dataclass(slots=True)
class _Table:
    has_header: bool = False
    rows: int = 0
    is_header: bool = False
    is_deleted: bool = False
    columns: int = 1
    above: bool = False


class _Walk:
    """Hears of a part's elements. What an element opened is closed by what its start returned."""

    def __init__(self, story: _Story) -> None:
        self.out = Markdown()
        self._story = story
        self._open: list[tuple[str, _End]] = []
        self._skip = 0
        self._skip_reason: _Words | None = None
        self._skipped_words = False
        self._outer: list[Markdown] = []  # the texts around a text box or a note
        self._paragraphs: list[_Paragraph] = []
        self._tables: list[_Table] = []
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
            self._skipped_words = self._skipped_words or not text.isspace()
        elif self._in_text and self._equation is not None:
            self._equation.write(clean(text))
        elif self._in_text and self._vanish:
            self._story.lost[_HIDDEN] += not text.isspace()
        elif self._in_text:
            self._write(clean(text))

    def end(self, tag: str) -> None:
        """An element ends."""
        if self._skip:
            self._skip -= 1
            if not self._skip and self._skip_reason is not None and self._skipped_words:
                self._story.lost[self._skip_reason] += 1
        elif self._open:
            _, action = self._open.pop()
            if action is not None:
                action()

    def _skip_all(self, reason: _Words | None) -> None:
        self._skip, self._skipped_words, self._skip_reason = 1, False, reason

    def _lose(self, _: _Attributes, *, what: _Words) -> _End:
        self._story.lost[what] += 1
        return None

    def _blank(self, _: _Attributes, *, text: str) -> _End:
        self._write(text)
        return None

    def _end_in_equation(self, equation: Equation, tag: str) -> None:
        self._in_text = False
        equation.end(tag)

    # --- paragraphs

    def _paragraph(self, _: _Attributes) -> _End:
        if not self._dropped:
            self._shift_to("")
            self.out.block(gap=True)
        self._dropped = False
        self._paragraphs.append(_Paragraph())
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

    def _style(self, attributes: _Attributes) -> _End:
        if self._paragraphs:
            self._paragraphs[-1].style = self._story.styles.get(attributes.get("val", ""), _NO_STYLE)
        return None

    def _number(self, attributes: _Attributes) -> _End:
        if self._paragraphs:
            self._paragraphs[-1].number = attributes.get("val", "")
        return None

    def _number_level(self, attributes: _Attributes) -> _End:
        if self._paragraphs:
            self._paragraphs[-1].level = integer(attributes.get("val", ""), 0)
        return None

    def _outline_level(self, attributes: _Attributes) -> _End:
        if self._paragraphs:
            self._paragraphs[-1].heading = (integer(attributes.get("val", ""), 9) + 1) % 10
        return None

    def _frame(self, attributes: _Attributes) -> _End:
        if self._paragraphs:
            self._paragraphs[-1].is_drop = attributes.get("dropCap") in ("drop", "margin")
        return None

    def _properties(self, _: _Attributes) -> _End:
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
        elif label is not None:
            self.out.open_item(label or "-", level=min(max(level, 0), 8), dense=self._after_item)
            here.is_item = True
            here.end = self.out.close_item

    # --- runs

    def _run(self, _: _Attributes) -> _End:
        self._shift, self._vanish = "", False
        return None

    def _run_style(self, attributes: _Attributes) -> _End:
        style = self._story.styles.get(attributes.get("val", ""), _NO_STYLE)
        self._shift, self._vanish = style.shift, style.hidden
        return None

    def _align(self, attributes: _Attributes) -> _End:
        self._shift = attributes.get("val", "")
        return None

    def _hide(self, attributes: _Attributes) -> _End:
        self._vanish = is_true(attributes)
        return None

    def _text(self, _: _Attributes) -> _End:
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

    def _break(self, attributes: _Attributes) -> _End:
        if attributes.get("type") in ("page", "column"):
            self._shift_to("")
            self.out.block(gap=True)
        else:
            self.out.line_break()
        return None

    def _symbol(self, attributes: _Attributes) -> _End:
        try:
            code = int(attributes.get("char", ""), 16)
        except ValueError:
            return None
        font = attributes.get("font", "").lower()
        signs = _SYMBOL if font == "symbol" else _WINGDINGS if font.startswith("wingdings") else {}
        sign = signs.get(code & 0xFF) if code >> 8 in (0, 0xF0) else None
        if sign is None and 0x20 < code < 0xD800 and not signs:
            sign = chr(code)
        self._story.lost[_SIGN] += sign is None
        self._write(sign or "")
        return None

    def _ruby_text(self, _: _Attributes) -> _End:
        return partial(self._end_ruby_text, self.out.here)

    def _end_ruby_text(self, begin: int) -> None:
        self._reading = self.out.taken(begin)

    def _ruby_base(self, _: _Attributes) -> _End:
        return self._end_ruby_base

    def _end_ruby_base(self) -> None:
        self.out.write(f"({self._reading})" if self._reading else "")
        self._reading = ""

    def _formula(self, _: _Attributes) -> _End:
        self._shift_to("")
        self._equation = Equation()
        return self._end_formula

    def _end_formula(self) -> None:
        if self._equation is not None:
            self.out.write(self._equation.text())
            self._equation = None

    # --- notes, boxes, pictures, fields

    def _reference(self, attributes: _Attributes, *, kind: str) -> _End:
        self._shift_to("")
        self.out.write(self._story.mark(kind, attributes.get("id", "")))
        return None

    def _note(self, attributes: _Attributes, *, kind: str) -> _End:
        author = attributes.get("author", "")
        self._outer.append(self.out)
        self.out = Markdown()
        kept = attributes.get("type") not in _SEPARATORS
        return partial(self._end_note, (kind, attributes.get("id", "")), f"{author}: " if author else "", kept)

    def _end_note(self, key: tuple[str, str], author: str, kept: bool) -> None:
        text, self.out = self.out.text(), self._outer.pop()
        if kept and text:
            self._story.texts[key] = author + re.sub(r"\n(?=.)", "\n    ", text)

    def _box(self, _: _Attributes) -> _End:
        if len(self._outer) >= _MOST_BOXES or not self._paragraphs:
            return None
        self._shift_to("")
        self._outer.append(self.out)
        self.out = Markdown()
        return partial(self._end_box, self._paragraphs[-1], self._shift)

    def _end_box(self, around: _Paragraph, shift: str) -> None:
        self._shift_to("")
        text, self.out = self.out.text(), self._outer.pop()
        around.boxes.append(text.split("\n"))
        self._shift = shift

    def _drawing(self, _: _Attributes) -> _End:
        self._has_words = False
        return None

    def _described(self, attributes: _Attributes) -> _End:
        words = clean(attributes.get("descr") or attributes.get("alt") or attributes.get("string") or "").strip()
        self._has_words = self._has_words or bool(words)
        self._write(f" {words} " if words else "")
        return None

    def _picture(self, _: _Attributes) -> _End:
        self._story.lost[_PICTURE] += not self._has_words
        return None

    def _alternatives(self, _: _Attributes) -> _End:
        self._choices.append(False)
        return self._end_alternatives

    def _end_alternatives(self) -> None:
        self._choices.pop()

    def _choice(self, _: _Attributes) -> _End:
        if self._choices:
            self._choices[-1] = True
        return None

    def _check_box(self, _: _Attributes) -> _End:
        self._chosen = 0
        return self._end_check_box

    def _end_check_box(self) -> None:
        self._write("[x] " if self._chosen else "[ ] ")

    def _checked(self, attributes: _Attributes) -> _End:
        if self._open and self._open[-1][0] == "checkBox":
            self._chosen = int(is_true(attributes))
        return None

    def _choices_of_form(self, _: _Attributes) -> _End:
        self._entries, self._chosen = [], 0
        return self._end_choices_of_form

    def _end_choices_of_form(self) -> None:
        self._write(self._entries[self._chosen] if 0 <= self._chosen < len(self._entries) else "")

    def _entry(self, attributes: _Attributes) -> _End:
        self._entries.append(attributes.get("val", ""))
        return None

    def _result(self, attributes: _Attributes) -> _End:
        self._chosen = integer(attributes.get("val", ""), 0)
        return None

    # --- tables

    def _table(self, _: _Attributes) -> _End:
        self._shift_to("")
        self.out.open_table()
        self._after_item = False
        self._tables.append(_Table())
        return self._end_table

    def _end_table(self) -> None:
        self._tables.pop()
        self.out.close_table()

    def _look(self, attributes: _Attributes) -> _End:
        if self._tables:
            bits = attributes.get("val", "")
            by_bits = bool(int(bits, 16) & 0x20) if bits and all(c in "0123456789abcdefABCDEF" for c in bits) else False
            self._tables[-1].has_header = attributes.get("firstRow", str(int(by_bits))) in ("1", "true", "on")
        return None

    def _row(self, _: _Attributes) -> _End:
        table = self._tables[-1] if self._tables else _Table()
        table.rows += 1
        table.is_header, table.is_deleted = table.has_header and table.rows == 1, False
        self.out.open_row()
        return self.out.close_cell

    def _row_header(self, attributes: _Attributes) -> _End:
        if self._tables:
            self._tables[-1].is_header = self._tables[-1].is_header or is_true(attributes)
        return None

    def _columns_before(self, attributes: _Attributes) -> _End:
        self.out.open_cell(columns=max(integer(attributes.get("val", ""), 1), 1))
        return None

    def _row_deleted(self, _: _Attributes) -> _End:
        if self._tables and self._open and self._open[-1][0] == "trPr":
            self._tables[-1].is_deleted = True
        return None

    def _cell(self, _: _Attributes) -> _End:
        if self._tables:
            self._tables[-1].columns, self._tables[-1].above = 1, False
            self.out.open_cell(header=self._tables[-1].is_header)
        return self.out.close_cell

    def _columns(self, attributes: _Attributes) -> _End:
        if self._tables:
            self._tables[-1].columns = max(integer(attributes.get("val", ""), 1), 1)
        return None

    def _merged(self, attributes: _Attributes) -> _End:
        if self._tables:
            self._tables[-1].above = attributes.get("val", "continue") == "continue"
        return None

    def _cell_properties(self, _: _Attributes) -> _End:
        return self._end_cell_properties

    def _end_cell_properties(self) -> None:
        if self._tables:
            self.out.span(columns=self._tables[-1].columns, above=self._tables[-1].above)


_ELEMENTS: dict[str, Callable[[_Walk, _Attributes], _End]] = {
    **{tag: partial(_Walk._lose, what=what) for tag, what in _LOST.items()},
    **{tag: partial(_Walk._blank, text=text) for tag, text in _BLANKS.items()},
    "p": _Walk._paragraph,
    "pPr": _Walk._properties,
    "pStyle": _Walk._style,
    "numId": _Walk._number,
    "ilvl": _Walk._number_level,
    "outlineLvl": _Walk._outline_level,
    "framePr": _Walk._frame,
    "r": _Walk._run,
    "rStyle": _Walk._run_style,
    "vertAlign": _Walk._align,
    "vanish": _Walk._hide,
    "t": _Walk._text,
    "br": _Walk._break,
    "cr": _Walk._break,
    "sym": _Walk._symbol,
    "rt": _Walk._ruby_text,
    "rubyBase": _Walk._ruby_base,
    "oMath": _Walk._formula,
    **{f"{kind}Reference": partial(_Walk._reference, kind=kind) for kind in ("footnote", "endnote", "comment")},
    **{kind: partial(_Walk._note, kind=kind) for kind in ("footnote", "endnote", "comment")},
    "txbxContent": _Walk._box,
    **dict.fromkeys(("drawing", "pict", "object"), _Walk._drawing),
    **dict.fromkeys(("docPr", "shape", "textpath"), _Walk._described),
    **dict.fromkeys(("blip", "imagedata"), _Walk._picture),
    "AlternateContent": _Walk._alternatives,
    "Choice": _Walk._choice,
    "checkBox": _Walk._check_box,
    **dict.fromkeys(("default", "checked"), _Walk._checked),
    "ddList": _Walk._choices_of_form,
    "listEntry": _Walk._entry,
    "result": _Walk._result,
    "tbl": _Walk._table,
    "tblLook": _Walk._look,
    "tr": _Walk._row,
    "tblHeader": _Walk._row_header,
    "gridBefore": _Walk._columns_before,
    "del": _Walk._row_deleted,
    "tc": _Walk._cell,
    "tcPr": _Walk._cell_properties,
    "gridSpan": _Walk._columns,
    "vMerge": _Walk._merged,
}
