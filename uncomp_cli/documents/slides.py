"""PowerPoint (.pptx): slide by slide the title, what stands on it, tables, charts, notes; `s3` is the third slide.

Shapes come in the file's order, which is mostly the order of reading; the title first. What repeats on every slide (its
number, the date) is left out; footers, pictures, films and embedded objects are losses, as are hidden slides.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping

from uncomp_cli.documents.archive import Archive
from uncomp_cli.documents.charts import chart_text, is_said, paragraphs
from uncomp_cli.documents.enumeration import Level, Numbered
from uncomp_cli.documents.equation import Equation
from uncomp_cli.documents.markdown import Markdown
from uncomp_cli.documents.parts import Relation, relations, tree_of, walk_xml
from uncomp_cli.documents.text import (
    CHART,
    FILM,
    HIDDEN,
    HIDDEN_SLIDE,
    MARGIN,
    OBJECT,
    PICTURE,
    SOUND,
    STRUCK,
    Text,
    Wishes,
    Words,
    counted,
    joined,
)
from uncomp_cli.errors import DocumentError

_KIND = "PowerPoint presentation"
_TITLES = ("title", "ctrTitle")
_REPEATED = ("sldNum", "dt", "ftr", "hdr", "sldImg")
_LISTS = ("body", "obj", "")
_DEPTH_OF_NAMES = 3  # of `cNvPr` in a shape: its properties, itself
_NUMBERED = re.compile(r"(arabic|alphaLc|alphaUc|romanLc|romanUc)(?:Db)?(Period|ParenR|ParenBoth|Plain)?")
_KINDS = {"arabic": "1", "alphaLc": "a", "alphaUc": "A", "romanLc": "i", "romanUc": "I"}
_PATTERNS = {"Period": "%{}.", "ParenR": "%{})", "ParenBoth": "(%{})", "Plain": "%{}", "": "%{}."}
_COUNTED = "%"  # of a paragraph whose number is counted when it has text
_LOST = {"pic": PICTURE, "videoFile": FILM, "audioFile": SOUND, "oleObj": OBJECT, "ftr": MARGIN}


def read(data: bytes, wishes: Wishes) -> Text:
    """The slides of a presentation in their order."""
    archive = Archive(data, wishes.limits, kind=_KIND)
    main = next((r.target for r in relations(archive, "", kind=_KIND).values() if r.kind == "officeDocument"), "")
    main = main or "ppt/presentation.xml"
    related = relations(archive, main, kind=_KIND)
    ids = [node.attributes.get("id", "") for node in tree_of(archive, main, kind=_KIND).at("sldIdLst").children]
    slides = [related[name].target for name in ids if name in related]
    if not slides:
        raise DocumentError(f"it is no {_KIND}, or one without slides", hint="open it in a viewer and save it again")
    wishes.limits.check_pages(len(slides), "slides")
    lost: Counter[Words] = Counter()
    parts = []
    for number, part in enumerate(slides, start=1):
        wishes.progress(number - 1, len(slides))
        parts.append((f"s{number}", _slide(archive, part, lost)))
    text, places = joined(parts)
    return Text(text, places, counted(lost))


def _slide(archive: Archive, part: str, lost: Counter[Words]) -> str:
    related = relations(archive, part, kind=_KIND)
    walk = _Shapes(archive, related, lost)
    _walk(archive, part, walk)
    if walk.hidden:
        lost[HIDDEN_SLIDE] += 1
        return ""
    for relation in related.values():
        if relation.kind == "diagramData":
            walk.texts.append(paragraphs(tree_of(archive, relation.target, kind=_KIND), "pt"))
    notes = [text for r in related.values() if r.kind == "notesSlide" for text in _notes(archive, r.target)]
    comments = [text for r in related.values() if r.kind == "comments" for text in _comments(archive, r.target)]
    tail = ["Notes: " + "\n\n".join(notes)] * bool(notes) + ["Comments:\n" + "\n".join(comments)] * bool(comments)
    return "\n\n".join(text for text in (walk.title, *walk.texts, *tail) if text)


def _walk(archive: Archive, part: str, walk: "_Shapes") -> None:
    if part in archive.names:
        walk_xml(archive.read(part), walk, kind=_KIND)


def _notes(archive: Archive, part: str) -> list[str]:
    """What the speaker notes say, without the slide's picture and number."""
    walk = _Shapes(archive, {}, Counter(), flat=True)
    _walk(archive, part, walk)
    return [text for text in walk.texts if text]


def _comments(archive: Archive, part: str) -> Iterator[str]:
    for comment in tree_of(archive, part, kind=_KIND).children:
        text = comment.at("text").text or paragraphs(comment, "txBody")
        if text.strip():
            yield "- " + " ".join(text.split())


class _Shapes:
    """Hears a slide; `title` and `texts` are what its shapes say, in order. `flat`: without lists."""

    def __init__(
        self, archive: Archive, related: Mapping[str, Relation], lost: Counter[Words], *, flat: bool = False
    ) -> None:
        self.title, self.texts, self.hidden = "", list[str](), False
        self._archive, self._related, self._lost, self._flat = archive, related, lost, flat
        self._out: Markdown | None = None
        self._equation: Equation | None = None
        self._role: str | None = None
        self._skipped = self._list = self._scripts = 0
        self._in_text = self._in_table = self._first_row = self._item = False
        self._label: str | None = None  # of the paragraph: a number, `-` for a point; None where its place says it
        self._numbers = Numbered()
        self._struck = self._is_picture = self._hides = self._hid_words = False

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        """An element begins."""
        if self._skipped or tag in ("Fallback", "bldLst", "timing", "transition", "lstStyle"):
            self._skipped += 1
        elif self._equation is not None:
            self._equation.start(tag, attributes)
        elif tag == "oMath":
            self._equation = Equation()
        elif tag in _LOST:
            self._lost[_LOST[tag]] += 1
            self._is_picture = tag == "pic"
        elif (begin := _STARTS.get(tag)) is not None:
            begin(self, attributes)

    def data(self, text: str) -> None:
        """Text."""
        if self._skipped:
            self._hid_words = self._hid_words or not text.isspace()
            return
        if self._equation is not None:
            self._equation.write(text)
        elif self._in_text and self._out is not None:
            self._out.write(text)

    def end(self, tag: str) -> None:
        """It ends."""
        if self._skipped:
            self._skipped -= 1
            self._lost[HIDDEN] += self._hides and self._hid_words and not self._skipped
            self._hides = self._hides and self._skipped > 0
        elif self._equation is not None and tag == "oMath":
            formula, self._equation = self._equation.text(), None
            if self._out is not None:
                self._out.write(f" {formula} ")
        elif self._equation is not None:
            self._equation.end(tag)
        elif (finish := _ENDS.get(tag)) is not None:
            finish(self)

    # --- shapes

    def _slide(self, attributes: Mapping[str, str]) -> None:
        self.hidden = attributes.get("show") in ("0", "false")

    def _shape(self, _: Mapping[str, str]) -> None:
        self._role, self._out, self._is_picture = None, Markdown(), False
        self._numbers = Numbered()

    def _named(self, attributes: Mapping[str, str]) -> None:
        """A shape's alternative text, where it is one of words and not the name of a file; whether it is shown."""
        if attributes.get("hidden") in ("1", "true"):
            self._skipped, self._hides, self._hid_words, self._out = _DEPTH_OF_NAMES, True, False, None
            return
        said = " ".join(attributes.get("descr", "").split())
        if self._out is None and is_said(said):
            self.texts.append(f"[picture: {said}]")
            self._lost[PICTURE] -= self._is_picture
        self._is_picture = False

    def _container(self, _: Mapping[str, str]) -> None:
        self._is_picture = False

    def _placeholder(self, attributes: Mapping[str, str]) -> None:
        self._role = attributes.get("type", "")

    def _end_shape(self) -> None:
        text = "" if self._out is None else self._out.text()
        if self._role in _TITLES:
            self.title = self.title or ("## " + " ".join(text.split()) if text.strip() else "")
        elif self._role not in _REPEATED and text.strip():
            self.texts.append(text)
        elif self._role in _LOST and text.strip():
            self._lost[_LOST[self._role]] += 1
        self._out = None

    def _chart(self, attributes: Mapping[str, str]) -> None:
        relation = self._related.get(attributes.get("id", ""))
        text = "" if relation is None else chart_text(tree_of(self._archive, relation.target, kind=_KIND))
        if text:
            self.texts.append(text)
        else:
            self._lost[CHART] += 1

    # --- paragraphs

    def _paragraph(self, _: Mapping[str, str]) -> None:
        if self._out is not None:
            self._out.block()
            self._item = False

    def _level(self, attributes: Mapping[str, str]) -> None:
        """A paragraph's properties: in a list of points it is an item."""
        level = attributes.get("lvl", "0")
        self._list = int(level) if len(level) == 1 and level in "012345678" else 0
        self._label = None

    def _numbered(self, attributes: Mapping[str, str]) -> None:
        """The paragraph is numbered: what stands before it is nowhere in the file."""
        kind = _NUMBERED.match(attributes.get("type", ""))
        start = attributes.get("startAt", "1")
        if kind is not None and self._list not in self._numbers.levels:
            begin = int(start) if start.isdecimal() and len(start) < 6 else 1
            pattern = _PATTERNS[kind[2] or ""].format(self._list + 1)
            self._numbers.levels[self._list] = Level(_KINDS[kind[1]], pattern, begin)
        self._label = _COUNTED if kind is not None else None

    def _point(self, _: Mapping[str, str]) -> None:
        self._label = "-"

    def _no_point(self, _: Mapping[str, str]) -> None:
        self._label = ""

    def _run(self, _: Mapping[str, str]) -> None:
        if self._out is not None and not self._item:
            self._item = True
            label = self._label if self._label is not None else "-" * (self._role in _LISTS)
            label = (self._numbers.label(self._list) or "") if label == _COUNTED else label
            if label in ("", "-"):
                self._numbers.levels.pop(self._list, None)
            self._label = label if not self._flat and not self._in_table else ""
            if self._label:
                self._out.open_item("  " * self._list + label)
            elif label not in ("", "-"):
                self._out.write(f"{label} ")
            self._list = 0

    def _end_paragraph(self) -> None:
        if self._out is not None:
            self._close_script()
            if self._item and self._label:
                self._out.close_item()
            self._out.block()
            self._label = None

    def _properties(self, attributes: Mapping[str, str]) -> None:
        """A run's properties: raised or lowered text."""
        shift = attributes.get("baseline", "0")
        if self._out is not None and shift.rstrip("%") not in ("0", ""):
            self._scripts = -1 if shift.startswith("-") else 1
            self._out.open_script()
        if self._out is not None and attributes.get("strike", "noStrike") != "noStrike":
            self._struck = True
            self._out.write(STRUCK)

    def _close_script(self) -> None:
        if self._out is not None and self._scripts:
            self._out.close_script(low=self._scripts < 0)
            self._scripts = 0
        if self._out is not None and self._struck:
            self._out.write(STRUCK)
            self._struck = False

    def _text(self, _: Mapping[str, str]) -> None:
        self._in_text = True

    def _end_text(self) -> None:
        self._in_text = False

    def _break(self, _: Mapping[str, str]) -> None:
        if self._out is not None:
            self._out.line_break()

    # --- tables

    def _table(self, _: Mapping[str, str]) -> None:
        self._out, self._in_table, self._first_row = Markdown(), True, True
        self._out.open_table()

    def _row(self, _: Mapping[str, str]) -> None:
        if self._out is not None:
            self._out.open_row()

    def _end_row(self) -> None:
        self._first_row = False

    def _cell(self, attributes: Mapping[str, str]) -> None:
        """A cell; those that another one covers are skipped with all that is in them."""
        if attributes.get("hMerge") in ("1", "true") or attributes.get("vMerge") in ("1", "true"):
            self._skipped = 1
        elif self._out is not None:
            columns, rows = (_span(attributes.get(name, "")) for name in ("gridSpan", "rowSpan"))
            self._out.open_cell(header=self._first_row, columns=columns, rows=rows)

    def _end_table(self) -> None:
        if self._out is not None:
            self._out.close_table()
            self.texts.append(self._out.text())
        self._out, self._in_table = None, False


_STARTS = {
    "sld": _Shapes._slide, "sp": _Shapes._shape, "cxnSp": _Shapes._shape, "cNvPr": _Shapes._named,
    "ph": _Shapes._placeholder, "chart": _Shapes._chart, "p": _Shapes._paragraph, "pPr": _Shapes._level,
    "r": _Shapes._run, "fld": _Shapes._run, "rPr": _Shapes._properties, "t": _Shapes._text, "br": _Shapes._break,
    "tbl": _Shapes._table, "tr": _Shapes._row, "tc": _Shapes._cell, "buAutoNum": _Shapes._numbered,
    **dict.fromkeys(("buChar", "buBlip"), _Shapes._point), "buNone": _Shapes._no_point,
    **dict.fromkeys(("grpSp", "graphicFrame"), _Shapes._container),
}  # fmt: skip
_ENDS = {
    "sp": _Shapes._end_shape, "cxnSp": _Shapes._end_shape, "p": _Shapes._end_paragraph,
    **dict.fromkeys(("r", "fld", "br"), _Shapes._close_script),
    "t": _Shapes._end_text, "tr": _Shapes._end_row, "tbl": _Shapes._end_table,
}  # fmt: skip


def _span(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 4 else 1
