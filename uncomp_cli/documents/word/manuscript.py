"""A part of a Word document (its body, a header, the notes) as Markdown, element by element: ECMA-376 part 1, 17.

Of changes that are tracked the new text is read and the old one counted; pictures are never opened.
"""

import re
from collections.abc import Mapping
from functools import partial
from typing import ClassVar

from uncomp_cli.documents.superscripts import clean
from uncomp_cli.documents.text import CHART, HIDDEN, OBJECT, PICTURE, Words
from uncomp_cli.documents.walk import Attributes, End, Walk
from uncomp_cli.documents.word.fields import Fields
from uncomp_cli.documents.word.outline import NO_STYLE, Paragraph, Story, Style, integer, is_true, moved
from uncomp_cli.documents.word.tabular import Tables

_WINGDINGS = {0x6C: "•", 0x6E: "■", 0x6F: "☐", 0x71: "☐", 0x72: "☐", 0xA7: "•", 0xA8: "☐", 0xD8: "▸", 0xE0: "→"}
_WINGDINGS |= {0xFB: "✗", 0xFC: "✓", 0xFD: "☒", 0xFE: "☑", 0x76: "•", 0x9F: "•", 0xE8: "→"}
_SYMBOL = dict(zip(b"abcdefghijklmnopqrstuvwxyz", "αβχδεφγηιϕκλμνοπθρστυϖωξψζ", strict=True))
_SYMBOL |= dict(zip(b"DFGJLPQSUWXYC", "ΔΦΓϑΛΠΘΣΥΩΞΨΧ", strict=True))
_SYMBOL |= {0x2D: "−", 0xA3: "≤", 0xA5: "∞", 0xB0: "°", 0xB1: "±", 0xB3: "≥", 0xB4: "×", 0xB7: "•", 0xB8: "÷"}
_SYMBOL |= {0xB9: "≠", 0xBA: "≡", 0xBB: "≈", 0xAB: "↔", 0xAC: "←", 0xAE: "→", 0xD6: "√", 0xE5: "∑", 0xF2: "∫"}


def sign_of(font: str, char: str) -> str | None:
    """The character that a code of a font shows, "" for no code; None where it is not known."""
    try:
        code = int(char, 16)
    except ValueError:
        return ""
    font = font.lower()
    signs = _SYMBOL if font == "symbol" else _WINGDINGS if font.startswith("wingdings") else {}
    sign = signs.get(code & 0xFF) if code >> 8 in (0, 0xF0) else None
    return chr(code) if sign is None and 0x20 < code < 0xD800 and not signs else sign


_SIGN = ("sign of a picture font", "signs of a picture font")
_DIAGRAM = ("diagram", "diagrams")
_EMBEDDED = ("embedded document", "embedded documents")
_SILENT_TAGS = (
    "tabs rPrChange pPrChange tcPrChange tblPrChange trPrChange sectPrChange tblGridChange tblPrExChange Fallback "
    "delInstrText fldData sectPr sdtPr sdtEndPr tblGrid binData"
)
_SILENT = dict.fromkeys(_SILENT_TAGS.split(), Walk.silence)
_SEPARATORS = frozenset(("separator", "continuationSeparator", "continuationNotice"))
_SHIFTS = {"superscript": "high", "subscript": "low"}
_MOST_BOXES = 8


class Manuscript(Tables, Fields):
    """Hears of a part's elements; `out` is what they say."""

    def __init__(self, story: Story, charts: Mapping[str, str] | None = None) -> None:
        super().__init__(story.lost)
        self._charts = charts or {}  # what the part's charts say, by the names of its relations
        self._story = story
        self._paragraphs = [Paragraph()]  # those that are open; the outermost is the part itself
        self._choices: list[bool] = []
        self._vanish = self._has_words = self._after_item = self._dropped = False
        self._reading = ""

    # --- paragraphs

    def _paragraph(self, _: Attributes) -> End:
        if not self._dropped:
            self.out.block(gap=True)
        self._dropped = False
        self._paragraphs.append(Paragraph())
        return self._end_paragraph

    def _end_paragraph(self) -> None:
        paragraph = self._paragraphs.pop()
        self._dropped = paragraph.is_drop
        if self._dropped:
            self.out.turn()
            return
        if paragraph.end is not None:
            paragraph.end()
        self.out.block(gap=not paragraph.is_item)
        self._after_item = paragraph.is_item and not paragraph.boxes
        for box in paragraph.boxes:
            self.out.paste(box)
            self.out.block(gap=True)

    def _style(self, attributes: Attributes) -> None:
        self._paragraphs[-1].style = self._story.styles.get(attributes.get("val", ""), NO_STYLE)

    def _number(self, attributes: Attributes) -> None:
        self._paragraphs[-1].number = attributes.get("val", "")

    def _number_level(self, attributes: Attributes) -> None:
        self._paragraphs[-1].level = integer(attributes.get("val", ""), 0)

    def _outline_level(self, attributes: Attributes) -> None:
        self._paragraphs[-1].heading = (integer(attributes.get("val", ""), 9) + 1) % 10

    def _frame(self, attributes: Attributes) -> None:
        self._paragraphs[-1].is_drop = attributes.get("dropCap") in ("drop", "margin")

    def _end_properties(self) -> None:
        """All is known of the paragraph now: it is a heading, an item, or neither."""
        here, in_table = self._paragraphs[-1], len(self._tables) > 1
        level = here.level if here.level >= 0 else here.style.level
        counted = self._story.lists.get(here.number or here.style.number)
        label = None if counted is None else counted.label(level)
        here.heading = 0 if in_table else here.heading or here.style.heading
        if here.heading:
            self.out.open_heading(min(here.heading, 6))
            self.out.write(f"{label} " if label and label != "-" else "")
            here.end = self.out.close_heading
        elif label not in (None, "-", "") and in_table:  # a row may have no more than its number
            self.out.write(f"{label} ")
            here.is_item = True
        elif label is not None:
            self.out.open_item(label or "-", level=min(max(level, 0), 8), dense=self._after_item)
            here.is_item = True
            here.end = self.out.close_item

    # --- runs

    def _run(self, _: Attributes) -> None:
        self._follow(self._paragraphs[-1].style)

    def _follow(self, style: Style) -> None:
        self._vanish = style.hidden
        self._look = _SHIFTS.get(style.shift, ""), style.struck

    def _run_style(self, attributes: Attributes) -> None:
        self._follow(self._story.styles.get(attributes.get("val", ""), NO_STYLE))

    def _mark_of_paragraph(self, _: Attributes) -> None:
        """How a run looks; that of a paragraph's mark is no text's."""
        if self._open and self._open[-1][0] == "pPr":
            self.leave_out()

    def _align(self, attributes: Attributes) -> None:
        self._look = _SHIFTS.get(attributes.get("val", ""), ""), self._look[1]

    def _move(self, attributes: Attributes) -> None:
        self._look = _SHIFTS.get(moved(attributes.get("val", "")), self._look[0]), self._look[1]

    def _strike_out(self, attributes: Attributes) -> None:
        self._look = self._look[0], is_true(attributes)

    def _hide(self, attributes: Attributes) -> None:
        self._vanish = is_true(attributes)

    def _text(self, attributes: Attributes) -> End:
        if self._vanish:
            self.leave_out(HIDDEN)
        return self.hear(attributes) if not self._vanish else None

    def _blank(self, _: Attributes, *, text: str) -> None:
        self.write(text)

    def _break(self, attributes: Attributes) -> None:
        if attributes.get("type") in ("page", "column"):
            self.out.block(gap=True)
        else:
            self.break_line(attributes)

    def _symbol(self, attributes: Attributes) -> None:
        sign = sign_of(attributes.get("font", ""), attributes.get("char", ""))
        self.lost[_SIGN] += sign is None
        if sign:
            self.write(sign)

    def _ruby_text(self, _: Attributes) -> End:
        return partial(self._end_ruby_text, self.out.here)

    def _end_ruby_text(self, begin: int) -> None:
        self._reading = self.out.taken(begin)

    def _end_ruby_base(self) -> None:
        self.out.write(f"({self._reading})" if self._reading else "")
        self._reading = ""

    # --- notes, boxes, pictures

    def _reference(self, attributes: Attributes, *, kind: str) -> None:
        self.out.turn()
        self.out.write(self._story.mark(kind, attributes.get("id", "")))

    def _note(self, attributes: Attributes, *, kind: str) -> End:
        author = attributes.get("author", "")
        self.begin_aside()
        kept = attributes.get("type") not in _SEPARATORS
        return partial(self._end_note, (kind, attributes.get("id", "")), f"{author}: " if author else "", kept)

    def _end_note(self, key: tuple[str, str], author: str, kept: bool) -> None:
        text = self.end_aside()
        if kept and text:
            self._story.texts[key] = author + re.sub(r"\n(?=.)", "\n    ", text)

    def _box(self, _: Attributes) -> End:
        if len(self._outer) >= _MOST_BOXES or len(self._paragraphs) == 1:
            return None
        self.begin_aside()
        return partial(self._end_box, self._paragraphs[-1])

    def _end_box(self, around: Paragraph) -> None:
        around.boxes.append(self.end_aside().split("\n"))

    def _drawing(self, _: Attributes) -> None:
        self._has_words = False

    def _described(self, attributes: Attributes) -> None:
        words = clean(attributes.get("descr") or attributes.get("alt") or attributes.get("string") or "").strip()
        self._has_words = self._has_words or bool(words)
        self.write(f" {words} " if words else "")

    def _picture(self, _: Attributes) -> None:
        self.lost[PICTURE] += not self._has_words

    def _drawn(self, attributes: Attributes, *, by: str, what: Words) -> None:
        """A chart or a diagram, by the name of its relation."""
        text = self._charts.get(attributes.get(by, ""), "") if len(self._paragraphs) > 1 else ""
        self._paragraphs[-1].boxes += [text.split("\n")] * bool(text)
        self.lost[what] += not text

    def _alternatives(self, _: Attributes) -> End:
        self._choices.append(False)
        return self._choices.pop

    def _choice(self, _: Attributes) -> None:
        """One of several forms of the same: the first is read."""
        if any(self._choices[-1:]):
            self.leave_out()
        self._choices[-1:] = [True] * bool(self._choices)

    def _table(self, attributes: Attributes) -> End:
        self._after_item = False
        return super()._table(attributes)

    in_formulas: ClassVar = {**_SILENT, "del": Tables._delete, "moveFrom": Tables._delete}
    elements: ClassVar = {
        **Tables.elements,
        **Fields.elements,
        **_SILENT,
        **dict.fromkeys(("tab", "ptab"), partial(_blank, text=" ")),
        "noBreakHyphen": partial(_blank, text="-"),
        "p": _paragraph,
        "pPr": lambda walk, _: walk._end_properties,
        "pStyle": _style,
        "numId": _number,
        "ilvl": _number_level,
        "outlineLvl": _outline_level,
        "framePr": _frame,
        "r": _run,
        "rStyle": _run_style,
        "rPr": _mark_of_paragraph,
        "vertAlign": _align,
        "position": _move,
        **dict.fromkeys(("strike", "dstrike"), _strike_out),
        "vanish": _hide,
        "t": _text,
        **dict.fromkeys(("br", "cr"), _break),
        "sym": _symbol,
        "rt": _ruby_text,
        "rubyBase": lambda walk, _: walk._end_ruby_base,
        "oMath": Walk.formula,
        "footnoteReference": partial(_reference, kind="footnote"),
        "endnoteReference": partial(_reference, kind="endnote"),
        "commentReference": partial(_reference, kind="comment"),
        "footnote": partial(_note, kind="footnote"),
        "endnote": partial(_note, kind="endnote"),
        "comment": partial(_note, kind="comment"),
        "txbxContent": _box,
        **dict.fromkeys(("drawing", "pict", "object"), _drawing),
        **dict.fromkeys(("docPr", "shape", "textpath"), _described),
        **dict.fromkeys(("blip", "imagedata"), _picture),
        "chart": partial(_drawn, by="id", what=CHART),
        "relIds": partial(_drawn, by="dm", what=_DIAGRAM),
        "OLEObject": partial(Walk.lose, what=OBJECT),
        "altChunk": partial(Walk.lose, what=_EMBEDDED),
        "AlternateContent": _alternatives,
        "Choice": _choice,
        "tbl": _table,
    }
