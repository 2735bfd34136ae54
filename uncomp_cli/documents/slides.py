"""PowerPoint (.pptx): slide by slide the title, what stands on it, tables, charts, notes; `s3` is the third slide.

Shapes come in the file's order, which is mostly the order of reading; the title first. What repeats on every slide (its
number, the date) is left out; footers, pictures, films and embedded objects are losses, as are hidden slides.
"""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import ClassVar

from uncomp_cli.documents.archive import Archive, Relation, main_part, relations, tree_of, walk_part
from uncomp_cli.documents.charts import chart_text, is_said, paragraphs
from uncomp_cli.documents.enumeration import Level, Numbered, count_of
from uncomp_cli.documents.text import (
    CHART,
    FILM,
    HIDDEN,
    HIDDEN_SLIDE,
    MARGIN,
    MASTER,
    OBJECT,
    PICTURE,
    SOUND,
    Text,
    Wishes,
    Words,
    counted,
    joined,
)
from uncomp_cli.documents.walk import Attributes, End, Walk
from uncomp_cli.errors import DocumentError

_KIND = "PowerPoint presentation"
_TITLES = ("title", "ctrTitle")
_REPEATED = ("sldNum", "dt", "ftr", "hdr", "sldImg")
_LISTS = ("body", "obj", "")
_ABOVE_NAMES = 2  # elements above `cNvPr` in a shape: its properties, itself
_NUMBERED = re.compile(r"(arabic|alphaLc|alphaUc|romanLc|romanUc)(?:Db)?(Period|ParenR|ParenBoth|Plain)?")
_KINDS = {"arabic": "1", "alphaLc": "a", "alphaUc": "A", "romanLc": "i", "romanUc": "I"}
_PATTERNS = {"Period": "%{}.", "ParenR": "%{})", "ParenBoth": "(%{})", "Plain": "%{}", "": "%{}."}
_COUNTED = "%"  # of a paragraph whose number is counted when it has text
_WITH_TEXT = ("sp", "cxnSp")
_SILENT = dict.fromkeys(("Fallback", "bldLst", "timing", "transition", "lstStyle"), Walk.silence)


def read(data: bytes, wishes: Wishes) -> Text:
    """The slides of a presentation in their order."""
    archive = Archive(data, wishes.limits, kind=_KIND)
    main = main_part(archive, "ppt/presentation.xml")
    related = relations(archive, main)
    ids = [node.attributes.get("id", "") for node in tree_of(archive, main).at("sldIdLst").children]
    slides = [related[name].target for name in ids if name in related]
    if not slides:
        raise DocumentError(f"it is no {_KIND}, or one without slides", hint="open it in a viewer and save it again")
    wishes.limits.check_pages(len(slides), "slides")
    lost: Counter[Words] = Counter()
    parts = []
    for number, part in enumerate(slides, start=1):
        wishes.progress(number - 1, len(slides))
        parts.append((f"s{number}", _slide(archive, part, lost)))
    lost[MASTER] += sum(_has_own_text(archive, part) for part in _masters(archive, slides))
    text, places = joined(parts)
    return Text(text, places, counted(lost))


def _slide(archive: Archive, part: str, lost: Counter[Words]) -> str:
    walk = _Shapes(archive, relations(archive, part), lost)
    walk_part(archive, part, walk)
    if walk.hidden:
        lost[HIDDEN_SLIDE] += 1
        return ""
    for each in _related(archive, part, "diagramData"):
        walk.texts.append(paragraphs(tree_of(archive, each), "pt"))
    notes = [text for each in _related(archive, part, "notesSlide") for text in _notes(archive, each)]
    comments = [text for each in _related(archive, part, "comments") for text in _comments(archive, each)]
    tail = ["Notes: " + "\n\n".join(notes)] * bool(notes) + ["Comments:\n" + "\n".join(comments)] * bool(comments)
    return "\n\n".join(text for text in (walk.title, *walk.texts, *tail) if text)


def _masters(archive: Archive, slides: Sequence[str]) -> set[str]:
    """What the slides stand on: their layouts, and the masters of these."""
    layouts = {part for slide in slides for part in _related(archive, slide, "slideLayout")}
    return layouts | {part for layout in layouts for part in _related(archive, layout, "slideMaster")}


def _related(archive: Archive, part: str, kind: str) -> list[str]:
    return [each.target for each in relations(archive, part).values() if each.kind == kind]


def _has_own_text(archive: Archive, part: str) -> bool:
    """Whether a master has text that is on every slide, besides what stands in place of theirs."""
    walk = _Master(archive, {}, Counter())
    walk_part(archive, part, walk)
    return any(walk.texts)


def _notes(archive: Archive, part: str) -> list[str]:
    """What the speaker notes say, without the slide's picture and number."""
    walk = _Shapes(archive, {}, Counter(), flat=True)
    walk_part(archive, part, walk)
    return [text for text in walk.texts if text]


def _comments(archive: Archive, part: str) -> Iterator[str]:
    for comment in tree_of(archive, part).children:
        text = comment.at("text").text or paragraphs(comment, "txBody")
        if text.strip():
            yield "- " + " ".join(text.split())


class _Shapes(Walk):
    """Hears a slide; `title` and `texts` are what its shapes say, in order. `flat`: without lists.

    A shape, and a table, is a text of its own; what stands outside of them is nobody's.
    """

    def __init__(
        self, archive: Archive, related: Mapping[str, Relation], lost: Counter[Words], *, flat: bool = False
    ) -> None:
        super().__init__(lost)
        self.title, self.texts, self.hidden = "", list[str](), False
        self._archive, self._related, self._flat = archive, related, flat
        self._role: str | None = None
        self._list = 0
        self._in_table = self._first_row = self._item = self._is_picture = False
        self._label: str | None = None  # of the paragraph: a number, `-` for a point; None where its place says it
        self._numbers = Numbered()

    # --- shapes

    def _slide(self, attributes: Attributes) -> None:
        self.hidden = attributes.get("show") in ("0", "false")

    def _shape(self, _: Attributes) -> End:
        self._role, self._is_picture, self._numbers = None, False, Numbered()
        self.begin_aside()
        return self._end_shape

    def _end_shape(self) -> None:
        text = self.end_aside()
        if self._role in _TITLES:
            self.title = self.title or ("## " + " ".join(text.split()) if text.strip() else "")
        elif self._role not in _REPEATED and text.strip():
            self.texts.append(text)
        elif self._role == "ftr" and text.strip():
            self.lost[MARGIN] += 1

    def _named(self, attributes: Attributes) -> None:
        """A shape's alternative text, where it is one of words and not the name of a file; whether it is shown."""
        said = " ".join(attributes.get("descr", "").split())
        if attributes.get("hidden") in ("1", "true") and self._open:
            if self._open[-_ABOVE_NAMES:][0][0] in _WITH_TEXT:
                self.end_aside()
            self.leave_out(HIDDEN, above=_ABOVE_NAMES)
        elif not self._outer and is_said(said):
            self.texts.append(f"[picture: {said}]")
            self.lost[PICTURE] -= self._is_picture
        self._is_picture = False

    def _container(self, _: Attributes) -> None:
        self._is_picture = False

    def _picture(self, _: Attributes) -> None:
        self.lost[PICTURE] += 1
        self._is_picture = True

    def _placeholder(self, attributes: Attributes) -> None:
        self._role = attributes.get("type", "")

    def _chart(self, attributes: Attributes) -> None:
        relation = self._related.get(attributes.get("id", ""))
        text = "" if relation is None else chart_text(tree_of(self._archive, relation.target))
        self.texts += [text] * bool(text)
        self.lost[CHART] += not text

    # --- paragraphs

    def _paragraph(self, _: Attributes) -> End:
        self.out.block()
        self._item = False
        return self._end_paragraph

    def _end_paragraph(self) -> None:
        if self._item and self._label:
            self.out.close_item()
        self.out.block()
        self._label = None

    def _level(self, attributes: Attributes) -> None:
        """A paragraph's properties: in a list of points it is an item."""
        level = attributes.get("lvl", "0")
        self._list = int(level) if len(level) == 1 and level in "012345678" else 0
        self._label = None

    def _numbered(self, attributes: Attributes) -> None:
        """The paragraph is numbered: what stands before it is nowhere in the file."""
        kind = _NUMBERED.match(attributes.get("type", ""))
        start = attributes.get("startAt", "1")
        if kind is not None and self._list not in self._numbers.levels:
            begin = int(start) if start.isdecimal() and len(start) < 6 else 1
            pattern = _PATTERNS[kind[2] or ""].format(self._list + 1)
            self._numbers.levels[self._list] = Level(_KINDS[kind[1]], pattern, begin)
        self._label = _COUNTED if kind is not None else None

    def _point(self, _: Attributes, *, label: str) -> None:
        self._label = label

    def _run(self, _: Attributes) -> None:
        if not self._item:
            self._item = True
            label = self._label if self._label is not None else "-" * (self._role in _LISTS)
            label = (self._numbers.label(self._list) or "") if label == _COUNTED else label
            if label in ("", "-"):
                self._numbers.levels.pop(self._list, None)
            self._label = label if not self._flat and not self._in_table else ""
            if self._label:
                self.out.open_item("  " * self._list + label)
            elif label not in ("", "-"):
                self.out.write(f"{label} ")
            self._list = 0
        self._look = ("", False)

    def _properties(self, attributes: Attributes) -> None:
        """A run's properties: raised, lowered or struck text."""
        moved = attributes.get("baseline", "0").rstrip("%")
        shift = "" if moved in ("0", "") else "low" if moved.startswith("-") else "high"
        self._look = shift, attributes.get("strike", "noStrike") != "noStrike"

    # --- tables

    def _table(self, _: Attributes) -> End:
        self.begin_aside()
        self._in_table = self._first_row = True
        self.out.open_table()
        return self._end_table

    def _end_table(self) -> None:
        self._in_table = False
        self.texts.append(self.end_aside())

    def _row(self, _: Attributes) -> End:
        self.out.open_row()
        return self._end_row

    def _end_row(self) -> None:
        self._first_row = False

    def _cell(self, attributes: Attributes) -> None:
        """A cell; those that another one covers are skipped with all that is in them."""
        if attributes.get("hMerge") in ("1", "true") or attributes.get("vMerge") in ("1", "true"):
            self.leave_out()
        else:
            columns, rows = (count_of(attributes, name) for name in ("gridSpan", "rowSpan"))
            self.out.open_cell(header=self._first_row, columns=min(columns, 999), rows=min(rows, 999))

    in_formulas: ClassVar = _SILENT
    elements: ClassVar = {
        **_SILENT, "sld": _slide, **dict.fromkeys(_WITH_TEXT, _shape), "cNvPr": _named, "ph": _placeholder,
        **dict.fromkeys(("grpSp", "graphicFrame"), _container), "pic": _picture, "chart": _chart,
        "videoFile": partial(Walk.lose, what=FILM), "audioFile": partial(Walk.lose, what=SOUND),
        "oleObj": partial(Walk.lose, what=OBJECT), "p": _paragraph, "pPr": _level, "buAutoNum": _numbered,
        **dict.fromkeys(("buChar", "buBlip"), partial(_point, label="-")), "buNone": partial(_point, label=""),
        **dict.fromkeys(("r", "fld"), _run), "rPr": _properties, "t": Walk.hear, "br": Walk.break_line,
        "oMath": Walk.formula, "tbl": _table, "tr": _row, "tc": _cell,
    }  # fmt: skip


class _Master(_Shapes):
    """Hears a master: placeholders of the slides' own text say how that is to look."""

    def _end_shape(self) -> None:
        text = self.end_aside()
        self.texts += [text] * (self._role is None and bool(text.strip()))
