"""Excel workbooks (.xlsx, .xlsm): sheet by sheet what a person sees, rows under their headers; `Sales!A7` is a place.

A cell is what its number format makes of the stored value (display.py); of a formula the stored result. What is hidden
is not shown, and said; so are formulas that were never calculated, pictures and charts.
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, TypeVar

from uncomp_cli.documents.archive import Archive, Node, Relation, damaged, main_part, relations, tree_of
from uncomp_cli.documents.charts import is_said
from uncomp_cli.documents.display import GENERAL, built_in, display
from uncomp_cli.documents.formats import package
from uncomp_cli.documents.ledger import Row, letters, lines_of, merged, place_name
from uncomp_cli.documents.markdown import Phrase
from uncomp_cli.documents.superscripts import clean, resolve
from uncomp_cli.documents.text import (
    CHART,
    HIDDEN_CELL,
    HIDDEN_ROW,
    HIDDEN_SHEET,
    PICTURE,
    STRUCK,
    UNCALCULATED,
    Loss,
    Text,
    Wishes,
    Words,
    counted,
    joined,
)
from uncomp_cli.errors import DocumentError

T = TypeVar("T")
_KIND = "Excel workbook"
_REFERENCE = re.compile(r"\$?([A-Z]{1,3})\$?(\d{1,7})")
_CONTROL = re.compile(r"_x([0-9A-Fa-f]{4})_")
_PRINTED = [f"{pages}{place}" for pages in ("odd", "even", "first") for place in ("Header", "Footer")]
_PRINT_CODE = re.compile(r'&(?:[A-Z]|\d+|K[0-9A-F]{6}|"[^"]*")|[\d/ ]')
_LAST_COLUMN = 16_384
_SHOWN_PLACES = 6
_PRINTED_LINE = ("print header", "print headers")
_CELL_OF_NOTHING = ("cell that its format hides", "cells that their format hides")
_ABSENT_SHEET = ("sheet that the file does not have", "sheets that the file does not have")
_CHART_SHEET = ("sheet that is a chart", "sheets that are charts")
_TRUTH = {"0": "FALSE", "1": "TRUE"}


@dataclass(slots=True)
class _Book:
    """What all sheets share."""

    archive: Archive
    strings: Sequence[str]
    formats: Sequence[str]
    struck: Sequence[bool]
    from_1904: bool


@dataclass(slots=True)
class _Sheet:
    """A sheet while it is read: its rows, and where in it what is not shown lies."""

    name: str
    rows: dict[int, dict[int, str]] = field(default_factory=dict)
    uncalculated: list[str] = field(default_factory=list)
    last_row: int = 0
    hidden_columns: set[int] = field(default_factory=set)
    unseen: Counter[Words] = field(default_factory=Counter)
    merged: list[tuple[int, int, int, int]] = field(default_factory=list)


def read(data: bytes, wishes: Wishes) -> Text:
    """The sheets of a workbook, in its order."""
    archive = Archive(data, wishes.limits, kind=_KIND)
    main = main_part(archive, "xl/workbook.xml")
    workbook, related = tree_of(archive, main), relations(archive, main)
    listed = list(workbook.at("sheets").each("sheet"))
    if not listed:
        raise DocumentError(f"it is no {_KIND} (it names no sheet)", hint="open it in a viewer and save it again")
    wishes.limits.check_pages(len(listed), "sheets")
    book = _book(archive, workbook, related)
    parts: list[tuple[str, str]] = []
    losses: list[Loss] = []
    for done, node in enumerate(listed):
        wishes.progress(done, len(listed))
        relation, name = related.get(node.attributes.get("id", "")), node.attributes.get("name", "")
        if node.attributes.get("state", "visible") != "visible":
            losses.append(Loss.of(HIDDEN_SHEET, 1, name))
        elif relation is None or relation.target not in archive.names:
            losses.append(Loss.of(_ABSENT_SHEET, 1, name))
        elif relation.kind != "worksheet":
            losses.append(Loss.of(_CHART_SHEET, 1, name))
        else:
            parts += _sheet(book, relation.target, name, losses, several=len(listed) > 1)
    text, places = joined(parts, between="\n")
    return Text(text.strip("\n"), places, tuple(losses))


def _book(archive: Archive, workbook: Node, related: dict[str, Relation]) -> _Book:
    parts = {relation.kind: relation.target for relation in related.values()}
    strings = [_rich(element) for element in _elements(archive, parts.get("sharedStrings", ""), "si")]
    styles = tree_of(archive, parts.get("styles", ""))
    own = {
        node.attributes.get("numFmtId"): node.attributes.get("formatCode", "") for node in styles.at("numFmts").children
    }
    looks = list(styles.at("cellXfs").each("xf"))
    ids = [node.attributes.get("numFmtId", "0") for node in looks]
    strikes = [font.at("strike") for font in styles.at("fonts").children]
    fonts = [bool(strike.tag) and strike.attributes.get("val", "1") in ("1", "true") for strike in strikes]
    struck = [_at(fonts, node.attributes.get("fontId"), False) for node in looks]
    formats = [own.get(number) or built_in(_integer(number, 0)) for number in ids]
    return _Book(
        archive, strings, formats, struck, workbook.at("workbookPr").attributes.get("date1904") in ("1", "true")
    )


def _elements(archive: Archive, part: str, *tags: str) -> Iterator[Any]:
    """The elements of these names, as they end, each cleared when the next is asked for."""
    if part not in archive.names:
        return
    etree = package("lxml.etree")
    data = archive.read(part)
    if b"<!DOCTYPE" in data[:1024]:
        raise DocumentError(f"it is no {_KIND}, or a hostile one (its XML has a DTD)", hint="save it again in Excel")
    wanted = [f"{{*}}{tag}" for tag in tags]
    try:
        for _, element in etree.iterparse(
            BytesIO(data), tag=wanted, resolve_entities=False, no_network=True, huge_tree=True, recover=False
        ):
            yield element
            element.clear()
            while element.getprevious() is not None:
                del element.getparent()[0]
    except etree.LxmlError as error:
        raise damaged(_KIND, error) from error


def _local(element: Any) -> str:
    return str(element.tag).rpartition("}")[2]


def _rich(element: Any) -> str:
    """A string of runs; what is raised, lowered or struck out is written so, phonetic guides are left out."""
    children = list(element)
    if len(children) == 1 and _local(children[0]) == "t":
        return _unescaped(children[0].text or "")
    line = Phrase()
    for child in children:
        name = _local(child)
        if name == "t":
            line.put(child.text or "")
        elif name == "r":
            shift = next((e.get("val") for e in child.iter("{*}vertAlign")), "")
            struck = any(e.get("val", "1") not in ("0", "false") for e in child.iter("{*}strike"))
            line.turn({"superscript": "high", "subscript": "low"}.get(shift, ""), struck=struck)
            line.put("".join(part.text or "" for part in child if _local(part) == "t"))
    return _unescaped(resolve(line.whole()))


def _unescaped(text: str) -> str:
    """Control characters that XML cannot have are written as _x000D_."""
    text = _CONTROL.sub(lambda found: chr(int(found[1], 16)), text) if "_x" in text else text
    return clean(text.replace("\r\n", "\n").replace("\r", "\n")).strip()


# --- one sheet


def _sheet(book: _Book, part: str, name: str, losses: list[Loss], *, several: bool) -> Iterator[tuple[str, str]]:
    """The lines of a sheet with their places; what of it is not shown goes to `losses`."""
    sheet = _Sheet(name)
    for element in _elements(book.archive, part, "col", "row", "mergeCell", *_PRINTED):
        tag = _local(element)
        if tag == "row":
            _take_row(book, sheet, element)
        elif tag == "col" and element.get("hidden") in ("1", "true") and len(sheet.hidden_columns) < _LAST_COLUMN:
            first, last = (_integer(element.get(name), 1) for name in ("min", "max"))
            sheet.hidden_columns |= set(range(first, min(last, _LAST_COLUMN) + 1))
        elif tag == "mergeCell":
            sheet.merged += _range(element.get("ref", ""))
        elif tag in _PRINTED:
            sheet.unseen[_PRINTED_LINE] += bool(_PRINT_CODE.sub("", element.text or "").strip())
    prefix = place_name(name)
    notes = [*_attached(book.archive, part, sheet)]
    lines = [(f"{prefix}!{letters(line.column)}{line.number}", line.text) for line in _lines(sheet)]
    if lines or notes:
        yield f"{prefix}", (f"\n## {name}\n" if several else "")
        yield from lines
        yield from ((f"{prefix}!{place}" if place else prefix, text) for place, text in notes)
    losses += _losses(sheet)


def _lines(sheet: _Sheet) -> Iterator[Any]:
    return lines_of(merged([Row(number, cells) for number, cells in sheet.rows.items()], sheet.merged))


def _take_row(book: _Book, sheet: _Sheet, row: Any) -> None:
    number = sheet.last_row = _integer(row.get("r"), sheet.last_row + 1)
    cells: dict[int, str] = {}
    column = 0
    for cell in row:
        reference = _REFERENCE.fullmatch(cell.get("r") or "")
        column = _number(reference[1]) if reference else column + 1
        shown = _shown(book, sheet, cell, f"{letters(column)}{number}")
        if shown and _at(book.struck, cell.get("s"), False):
            shown = f"{STRUCK}{shown}{STRUCK}"
        if shown and column in sheet.hidden_columns:
            sheet.unseen[HIDDEN_CELL] += 1
        elif shown:
            cells[column] = shown
    if cells and row.get("hidden") in ("1", "true"):
        sheet.unseen[HIDDEN_ROW] += 1
    elif cells:
        sheet.rows[number] = cells


def _shown(book: _Book, sheet: _Sheet, cell: Any, place: str) -> str:
    """What a cell shows."""
    stored, formula = None, False
    for child in cell:
        name = _local(child)
        if name == "v":
            stored = child.text
        elif name == "is":
            return _rich(child)
        formula = formula or name == "f"
    if stored is None:
        sheet.uncalculated += [place] * formula
        return ""
    kind = cell.get("t", "n")
    if kind == "s":
        return _at(book.strings, stored.strip(), "")
    if kind == "n":
        return _formatted(book, sheet, stored.strip(), cell.get("s", "0"))
    return _TRUTH.get(stored.strip(), stored) if kind == "b" else _unescaped(stored)


def _formatted(book: _Book, sheet: _Sheet, stored: str, style: str) -> str:
    shown = display(stored, _at(book.formats, style, GENERAL), from_1904=book.from_1904)
    if not shown and stored:
        sheet.unseen[_CELL_OF_NOTHING] += 1
    return shown


def _range(reference: str) -> list[tuple[int, int, int, int]]:
    """First row and column, last row and column of `B2:D4`."""
    corners = [_REFERENCE.fullmatch(corner) for corner in reference.split(":")]
    if len(corners) != 2 or corners[0] is None or corners[1] is None:
        return []
    (left, top), (right, bottom) = ((_number(corner[1]), int(corner[2])) for corner in corners if corner)
    return [(top, left, bottom, right)]


def _at(items: Sequence[T], index: str | None, default: T) -> T:
    """One of several by its number as files have it."""
    number = _integer(index, 0 if index is None else len(items))
    return items[number] if number < len(items) else default


def _integer(text: str | None, default: int) -> int:
    return int(text) if text and text.isascii() and text.isdecimal() and len(text) < 8 else default


def _number(name: str) -> int:
    number = 0
    for letter in name:
        number = number * 26 + ord(letter) - ord("A") + 1
    return number


# --- what is attached to a sheet


def _attached(archive: Archive, part: str, sheet: _Sheet) -> Iterator[tuple[str, str]]:
    """Comments with the cells that they are of, and the words of shapes; pictures and charts are counted."""
    related = list(relations(archive, part).values())
    threaded = {relation.kind for relation in related} & {"threadedComment"}
    comments = [c for r in related if r.kind in (threaded or {"comments"}) for c in _comments(archive, r.target)]
    for number, (cell, text) in enumerate(comments):
        yield cell, ("" if number else "\nComments:\n") + f"- {cell}: {text}"
    for relation in related:
        if relation.kind == "drawing":
            yield from (("", f"\n{text}") for text in _drawn(archive, relation.target, sheet))


def _comments(archive: Archive, part: str) -> Iterator[tuple[str, str]]:
    for element in _elements(archive, part, "comment", "threadedComment"):
        text = " ".join("".join(t.text or "" for t in element.iter("{*}t", "{*}text") if t.text).split())
        yield element.get("ref", "").partition(":")[0], text


def _drawn(archive: Archive, part: str, sheet: _Sheet) -> list[str]:
    words = []
    for element in _elements(archive, part, "twoCellAnchor", "oneCellAnchor", "absoluteAnchor"):
        told = [_told(picture) for picture in element.iter("{*}pic")]
        sheet.unseen[PICTURE] += told.count("")
        words += [f"[picture: {said}]" for said in told if said]
        sheet.unseen[CHART] += sum(1 for _ in element.iter("{*}chart"))
        paragraphs = ("".join(t.text or "" for t in p.iter("{*}t")).strip() for p in element.iter("{*}p"))
        words += ["\n".join(filter(None, paragraphs))]
    return [text for text in words if text]


def _told(picture: Any) -> str:
    """What is said of a picture, if that is not the name of a file."""
    said = " ".join(next((e.get("descr") or "" for e in picture.iter("{*}cNvPr")), "").split())
    return said if is_said(said) else ""


def _losses(sheet: _Sheet) -> Iterator[Loss]:
    """What of a sheet is not in its text."""
    if count := len(sheet.uncalculated):
        where = ", ".join(sheet.uncalculated[:_SHOWN_PLACES]) + (", …" if count > _SHOWN_PLACES else "")
        yield Loss.of(UNCALCULATED, count, f"{sheet.name}!{where}")
    yield from counted(sheet.unseen, sheet.name)
