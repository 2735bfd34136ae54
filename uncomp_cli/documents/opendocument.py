"""OpenDocument (.odt, .ods, .odp, and their flat XML): the text in order, sheets row by row, slides one by one.

Sheets store what each cell shows as text, so that no number is formatted here. Footnotes and comments stand at the end
of their text; what is deleted but tracked, hidden, or has no text (pictures, charts, formulas' objects) is a loss.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from uncomp_cli.documents.archive import Archive
from uncomp_cli.documents.calc import Sheets
from uncomp_cli.documents.enumeration import OfficeLists, count_of
from uncomp_cli.documents.equation import Formula
from uncomp_cli.documents.markdown import Markdown
from uncomp_cli.documents.parts import walk_xml, within
from uncomp_cli.documents.styled import Styled
from uncomp_cli.documents.text import (
    HIDDEN_SLIDE,
    OBJECT,
    PICTURE,
    Text,
    Wishes,
    counted,
    joined,
    running,
)
from uncomp_cli.errors import DocumentError

_KIND = "OpenDocument file"
_HEAD_BYTES = 4096
_MARGINS = [f"{kind}{page}" for kind in ("header", "footer") for page in ("", "-left", "-first")]


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
    walk: _Words | Sheets = Sheets() if is_sheets else _Words(archive)
    for part in filter(None, (styles, content)):
        walk_xml(part, walk, kind=_KIND)
    text, places = joined(walk.parts(), between="\n" if is_sheets else "\n\n")
    places = tuple(place for place in places if place.name)
    return Text(text.strip("\n"), places, counted(walk.lost))


@dataclass(slots=True)
class _Frame:
    """A frame: whether it holds a slide's title, in how many paragraphs it stands, its pictures, and whether told."""

    is_title: bool
    texts: int
    pictures: int = 0
    is_told: bool = False


class _Words(Styled):
    """Text documents and slides."""

    def __init__(self, archive: Archive | None) -> None:
        super().__init__()
        self._archive = archive
        self._outer: list[int] = []
        self._ruby = 0
        self._margins: dict[str, list[str]] = {"header": [], "footer": []}
        self._frames: list[_Frame] = []
        self._pages = self._count = 0
        self._lists = OfficeLists()
        self._is_first_row = False
        self._repeats = 1
        self._notes: list[str] = []
        self._comments: list[str] = []
        self._parts: list[tuple[str, str]] = []

    def parts(self) -> list[tuple[str, str]]:
        """The slides with their places, or the whole text between the headers and footers of its pages."""
        if self._parts:
            return self._parts
        heads, feet = (running(self._margins[kind]) for kind in ("header", "footer"))
        return [("", "\n\n".join(filter(None, [*heads, self._outs[0].text(), *feet, self._ended("")])))]

    def _ended(self, text: str) -> str:
        """A text with its footnotes and comments behind it."""
        comments = ["\n".join(["Comments:", *self._comments])] * bool(self._comments)
        parts = [text, "\n".join(self._notes), *comments]
        self._notes, self._comments = [], []
        return "\n\n".join(filter(None, parts))

    # --- in the text

    def _paragraph(self, attributes: Mapping[str, str]) -> None:
        if self.is_hidden(attributes):
            self.hide()
            return
        self._texts += 1
        self._outs[-1].block(gap=not self._lists)

    def _end_paragraph(self) -> None:
        self._texts -= 1
        self._outs[-1].block()

    def _heading(self, attributes: Mapping[str, str]) -> None:
        if self.is_hidden(attributes):
            self.hide()
            return
        self._texts += 1
        level = count_of(attributes, "outline-level")
        self._outs[-1].open_heading(min(level, 6))
        named = self.style(attributes, "list-style-name") if "style-name" in attributes else None
        if not self._lists and named is None and attributes.get("is-list-header") != "true":
            label = self._lists.heading_label(level - 1)
            self._outs[-1].write(f"{label} " if label else "")

    def _end_heading(self) -> None:
        self._texts -= 1
        self._outs[-1].close_heading()

    def _section(self, attributes: Mapping[str, str]) -> None:
        """A section, or a field that shows its text under a condition."""
        if self.is_hidden(attributes):
            self.hide()

    def _reading(self, _: Mapping[str, str]) -> None:
        """How a word is read stands above it."""
        self._ruby = self._outs[-1].here

    def _end_reading(self) -> None:
        said = self._outs[-1].taken(self._ruby).strip()
        self._outs[-1].write(f"({said})" if said else "")

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

    def _end_header(self) -> None:
        self._margins["header"].append(self._end_aside())

    def _end_footer(self) -> None:
        self._margins["footer"].append(self._end_aside())

    def _image(self, _: Mapping[str, str]) -> None:
        if self._frames:
            self._frames[-1].pictures += 1

    def _described(self, _: Mapping[str, str]) -> None:
        """Words about a picture; elements of the same name show the title of the text in the text."""
        self._outs.append(Markdown())
        self._texts += 1

    def _end_described(self) -> None:
        self._texts -= 1
        said = " ".join(self._outs.pop().text().split())
        if not said:
            return
        frame = self._frames[-1] if self._frames else None
        if frame is None or frame.texts != self._texts:
            self._outs[-1].write(said)
            return
        self._outs[-1].say(said)
        frame.is_told = True

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
            self.lost.update(chart.lost)
            self._outs[-1].block(gap=True)
            self._outs[-1].paste(chart.parts()[0][1].split("\n"))
            self._outs[-1].block(gap=True)
        else:
            return
        self.lost[OBJECT] -= 1
        if self._frames:
            self._frames[-1].is_told = True

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
        self._frames.append(_Frame(is_title, self._texts))
        if is_title:
            self._outs[-1].open_heading(2)
        elif self._pages:
            self._outs[-1].block(gap=True)

    def _end_frame(self) -> None:
        frame = self._frames.pop()
        self.lost[PICTURE] -= frame.pictures * frame.is_told
        if frame.is_title:
            self._outs[-1].close_heading()

    def _end_speaker(self) -> None:
        said = self._end_aside()
        for number, line in enumerate(f"Notes: {said}".split("\n") if said else ()):
            self._outs[-1].block(gap=not number)
            self._outs[-1].write(line)
        self._outs[-1].block()

    starts: ClassVar = {
        **Styled.starts, **dict.fromkeys(_MARGINS, _aside), "drawing-page-properties": Styled.properties,
        "p": _paragraph, "h": _heading, "list": _list, "list-item": _item,
        "note-body": _aside, "note-citation": Styled.skip, "annotation": _aside,
        "list-style": _list_kind, "outline-style": _outline_kind, "outline-level-style": _numbers,
        "list-level-style-number": _numbers, "list-level-style-bullet": _bullets, "list-level-style-image": _bullets,
        "table": _table, "table-row": _row, "table-cell": _cell, "page": _page, "frame": _frame, "object": _object,
        "custom-shape": _frame, "notes": _aside, "title": _described, "desc": _described, "image": _image,
        "section": _section, "hidden-text": _section, "hidden-paragraph": _section, "ruby-text": _reading,
        "page-number": Styled.skip, "page-thumbnail": Styled.skip,
    }  # fmt: skip
    ends: ClassVar = {
        **Styled.ends, **dict.fromkeys(_MARGINS[:3], _end_header), **dict.fromkeys(_MARGINS[3:], _end_footer),
        "p": _end_paragraph, "h": _end_heading,
        "list": _end_list, "list-item": _end_item, "note-body": _end_note, "annotation": _end_comment,
        "table": _end_table, "table-row": _end_row, "table-cell": _end_cell, "page": _end_page, "frame": _end_frame,
        "custom-shape": _end_frame, "notes": _end_speaker, "title": _end_described, "desc": _end_described,
        "ruby-text": _end_reading,
    }  # fmt: skip
