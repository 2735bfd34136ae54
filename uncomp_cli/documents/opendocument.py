"""OpenDocument (.odt, .ods, .odp, and their flat XML): the text in order, sheets row by row, slides one by one.

Sheets store what each cell shows as text, so that no number is formatted here. Footnotes and comments stand at the end
of their text; what is deleted but tracked, hidden, or has no text (pictures, charts, formulas' objects) is a loss.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from uncomp_cli.documents.archive import Archive, walk_xml, within
from uncomp_cli.documents.calc import Sheets
from uncomp_cli.documents.enumeration import OfficeLists, count_of
from uncomp_cli.documents.equation import Formula
from uncomp_cli.documents.styled import Styled
from uncomp_cli.documents.text import HIDDEN_SLIDE, MASTER, OBJECT, PICTURE, Text, Wishes, counted, joined, running
from uncomp_cli.documents.walk import Attributes, End, Walk
from uncomp_cli.errors import DocumentError

_KIND = "OpenDocument file"
_HEAD_BYTES = 4096
_HEADERS, _FOOTERS = ([f"{kind}{page}" for page in ("", "-left", "-first")] for kind in ("header", "footer"))


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
        self._margins: dict[str, list[str]] = {"header": [], "footer": []}
        self._frames: list[_Frame] = []
        self._pages = self._count = 0
        self._lists = OfficeLists()
        self._is_first_row = False
        self._notes: list[str] = []
        self._comments: list[str] = []
        self._parts: list[tuple[str, str]] = []

    def parts(self) -> list[tuple[str, str]]:
        """The slides with their places, or the whole text between the headers and footers of its pages."""
        if self._parts:
            self.lost[MASTER] += bool(self.out.text())
            return self._parts
        heads, feet = (running(self._margins[kind]) for kind in ("header", "footer"))
        return [("", "\n\n".join(filter(None, [*heads, self.out.text(), *feet, self._ended("")])))]

    def _ended(self, text: str) -> str:
        """A text with its footnotes and comments behind it."""
        comments = ["\n".join(["Comments:", *self._comments])] * bool(self._comments)
        parts = [text, "\n".join(self._notes), *comments]
        self._notes, self._comments = [], []
        return "\n\n".join(filter(None, parts))

    # --- in the text

    def _paragraph(self, attributes: Attributes) -> End:
        if self.hide(attributes):
            return None
        self._in_text += 1
        self.out.block(gap=not self._lists)
        return partial(self._end_text, self.out.block)

    def _end_text(self, end: Callable[[], None]) -> None:
        self._in_text -= 1
        end()

    def _heading(self, attributes: Attributes) -> End:
        if self.hide(attributes):
            return None
        self._in_text += 1
        level = count_of(attributes, "outline-level")
        self.out.open_heading(min(level, 6))
        named = self.style(attributes, "list-style-name") if "style-name" in attributes else None
        if not self._lists and named is None and attributes.get("is-list-header") != "true":
            label = self._lists.heading_label(level - 1)
            self.out.write(f"{label} " if label else "")
        return partial(self._end_text, self.out.close_heading)

    def _section(self, attributes: Attributes) -> None:
        """A section, or a field that shows its text under a condition."""
        self.hide(attributes)

    def _reading(self, _: Attributes) -> End:
        """How a word is read stands above it."""
        return partial(self._end_reading, self.out.here)

    def _end_reading(self, begin: int) -> None:
        said = self.out.taken(begin).strip()
        self.out.write(f"({said})" if said else "")

    def _list(self, attributes: Attributes) -> End:
        if not self._lists:
            self.out.block(gap=True)
        self._lists.begin(attributes)
        return self._end_list

    def _end_list(self) -> None:
        self._lists.end()
        if not self._lists:
            self.out.block(gap=True)

    def _item(self, attributes: Attributes) -> End:
        self.out.open_item(self._lists.label(attributes))
        return self.out.close_item

    def _kind_of_lists(self, attributes: Attributes) -> None:
        """What the lists of a style have before their items; that of headings has no name."""
        self._lists.describe(attributes.get("name", ""))

    def _kind_of_headings(self, _: Attributes) -> None:
        self._lists.describe("")

    def _numbers(self, attributes: Attributes) -> None:
        self._lists.add_numbers(attributes)

    def _bullets(self, attributes: Attributes) -> None:
        self._lists.add_bullets(attributes)

    # --- beside the text

    def _aside(self, _: Attributes, *, end: Callable[[Any, str], None]) -> End:
        """What has paragraphs of its own, taken by `end`: who wrote a comment, and when, stands in none."""
        self.begin_aside()
        return lambda: end(self, self.end_aside().strip())

    def _note(self, said: str) -> None:
        self._count += 1
        self._notes.append(f"[^{self._count}]: {' '.join(said.split())}")
        self.out.turn()
        self.out.write(f"[^{self._count}]")

    def _comment(self, said: str) -> None:
        self._comments += [f"- {' '.join(said.split())}"] * bool(said)

    def _header(self, said: str) -> None:
        self._margins["header"].append(said)

    def _footer(self, said: str) -> None:
        self._margins["footer"].append(said)

    def _speaker(self, said: str) -> None:
        for number, line in enumerate(f"Notes: {said}".split("\n") if said else ()):
            self.out.block(gap=not number)
            self.out.write(line)
        self.out.block()

    def _image(self, _: Attributes) -> None:
        if self._frames:
            self._frames[-1].pictures += 1

    def _described(self, _: Attributes) -> End:
        """Words about a picture; elements of the same name show the title of the text in the text."""
        self.begin_aside()
        self._in_text = 1
        return self._end_described

    def _end_described(self) -> None:
        said = " ".join(self.end_aside().split())
        frame = self._frames[-1] if self._frames else None
        if frame is None or frame.texts != self._in_text:
            self.write(said)
        elif said:
            self.out.say(said)
            frame.is_told = True

    def _object(self, attributes: Attributes) -> None:
        """An object: a formula is read, and the numbers of a chart; the picture that stands for it is no loss then."""
        name = within("", attributes.get("href", "")) + "/content.xml"
        data = self._archive.read(name) if self._archive is not None and name in self._archive.names else b""
        if b"<math" in data[:_HEAD_BYTES]:
            formula = Formula()
            walk_xml(data, formula, kind=_KIND)
            self.out.write(f" {formula.text()} ")
        elif b"<chart:chart " in data:
            chart = _Words(None)
            walk_xml(data, chart, kind=_KIND)
            self.lost.update(chart.lost)
            self.out.block(gap=True)
            self.out.paste(chart.parts()[0][1].split("\n"))
            self.out.block(gap=True)
        else:
            return
        self.lost[OBJECT] -= 1
        if self._frames:
            self._frames[-1].is_told = True

    # --- tables

    def _table(self, _: Attributes) -> End:
        self.out.open_table()
        self._is_first_row = True
        return self.out.close_table

    def _row(self, _: Attributes) -> End:
        self.out.open_row()
        return partial(setattr, self, "_is_first_row", False)

    def _cell(self, attributes: Attributes) -> End:
        columns, rows = (count_of(attributes, f"number-{name}-spanned") for name in ("columns", "rows"))
        self.out.open_cell(header=self._is_first_row, columns=columns, rows=rows)
        return partial(self.out.close_cell, times=count_of(attributes, "number-columns-repeated"))

    # --- slides

    def _page(self, attributes: Attributes) -> End:
        self._pages += 1
        if self.style(attributes, "visibility") == "hidden":
            self.lost[HIDDEN_SLIDE] += 1
            self.leave_out()
        else:
            self.begin_aside()
        return self._end_page

    def _end_page(self) -> None:
        self._parts.append((f"s{self._pages}", self._ended(self.end_aside())))

    def _frame(self, attributes: Attributes) -> End:
        is_title = attributes.get("class") == "title"
        self._frames.append(_Frame(is_title, self._in_text))
        if is_title:
            self.out.open_heading(2)
        elif self._pages:
            self.out.block(gap=True)
        return self._end_frame

    def _end_frame(self) -> None:
        frame = self._frames.pop()
        self.lost[PICTURE] -= frame.pictures * frame.is_told
        if frame.is_title:
            self.out.close_heading()

    elements: ClassVar = {
        **Styled.elements, **dict.fromkeys(_HEADERS, partial(_aside, end=_header)),
        **dict.fromkeys(_FOOTERS, partial(_aside, end=_footer)), "drawing-page-properties": Styled.properties,
        "p": _paragraph, "h": _heading, "list": _list, "list-item": _item,
        "note-body": partial(_aside, end=_note), "annotation": partial(_aside, end=_comment),
        "notes": partial(_aside, end=_speaker),
        "list-style": _kind_of_lists, "outline-style": _kind_of_headings, "outline-level-style": _numbers,
        "list-level-style-number": _numbers, "list-level-style-bullet": _bullets, "list-level-style-image": _bullets,
        "table": _table, "table-row": _row, "table-cell": _cell, "page": _page, "object": _object,
        **dict.fromkeys(("frame", "custom-shape"), _frame),
        **dict.fromkeys(("title", "desc"), _described), "image": _image,
        **dict.fromkeys(("section", "hidden-text", "hidden-paragraph"), _section), "ruby-text": _reading,
        **dict.fromkeys(("note-citation", "page-number", "page-thumbnail"), Walk.silence),
    }  # fmt: skip
