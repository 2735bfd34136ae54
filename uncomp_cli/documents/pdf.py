"""The text of a PDF page by page, through PDFium: its text layer, values of forms, comments, headings of the outline.

PDFium was chosen by measurement: of 60 files by 45 writers it lost the fewest words and numbers against poppler, and
was ten times as fast as pypdf (docs/log.md). It says where each glyph stands; glyphs.py and layout.py make lines
and text of them.
"""

import base64
import binascii
import ctypes
import logging
import math
import re
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

from uncomp_cli.documents.archive import damaged
from uncomp_cli.documents.formats import package
from uncomp_cli.documents.glyphs import GUESSED, WHITE, Glyph, Run
from uncomp_cli.documents.layout import HYPHEN, Field, page_text, rejoined
from uncomp_cli.documents.text import Limits, Loss, Text, Wishes, joined, labelled
from uncomp_cli.errors import DocumentError, LockedError

_WHITE = {char: Glyph(char, 0, 0, 0, 0) for char in WHITE}
_CODES = {
    **dict(zip(range(0xFB00, 0xFB07), ("ff", "fi", "fl", "ffi", "ffl", "st", "st"), strict=True)),
    **dict.fromkeys((0x02, 0xAD, 0xFFFE), HYPHEN),
    **dict.fromkeys((0x09, 0xA0), " "),
    **dict.fromkeys((0x0A, 0x0D), "\n"),
}
_NAMELESS = "\ufffd"
_REASON = re.compile(r"Failed to load document \(PDFium: (.*?)\.?\)\.?")
_ROOT = re.compile(rb"\b(\d+ \d+) obj\s*<<[^<>]{0,400}/Type\s*/Catalog")
_SCANNED_HINT = "run OCR on it first: ocrmypdf IN.pdf OUT.pdf"
_OBJECTS_COUNTED, _TITLES_READ = 2000, 20_000
_PICTURE_POINTS, _SCAN_SHARE = 24, 0.7
_COMMENT_LIMIT = 2**20
_LONGEST_LABEL, _LONGEST_NAME = 20, 128
_UNDRAWN = "piece of text in a font that is not in the file"


def read(data: bytes, wishes: Wishes) -> Text:
    """The text of a PDF; each page is a place, p1 the first."""
    pdfium = package("pypdfium2")
    _check_streams(data, wishes.limits)
    with _quiet("pypdfium2"):
        document = _opened(pdfium, data, wishes)
        try:
            return _Reading(pdfium.raw, document).text(data, wishes)
        finally:
            document.close()


def _opened(pdfium: Any, data: bytes, wishes: Wishes) -> Any:
    try:
        document = _document(pdfium, data, wishes.password)
    except pdfium.PdfiumError as error:
        if error.err_code == pdfium.raw.FPDF_ERR_PASSWORD:
            raise _locked(wishes.password) from error
        raise damaged("PDF", ValueError(_REASON.sub(r"\1", str(error)))) from error
    wishes.limits.check_pages(len(document))
    document.init_forms()
    return document


def _document(pdfium: Any, data: bytes, password: str) -> Any:
    """The file, opened; one that was cut off once more with an end that names its root, if that is still there."""
    try:
        return pdfium.PdfDocument(data, password=password or None)
    except pdfium.PdfiumError as error:
        root = _ROOT.search(data)
        if error.err_code != pdfium.raw.FPDF_ERR_FORMAT or not root or _has_end(data):
            raise
        return pdfium.PdfDocument(data + b"\ntrailer\n<< /Root %b R >>\nstartxref\n0\n%%%%EOF" % root[1])


def _locked(password: str) -> LockedError:
    said = "and the password given does not open it" if password else "and no password was given"
    return LockedError(f"it is an encrypted PDF, {said}", hint="--password PASSWORD, as who made it says")


class _Reading:
    """One document's pages, and what is lost on the way."""

    def __init__(self, raw: Any, document: Any) -> None:
        self._raw, self._document = raw, document
        self._lost: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        self._drawn: dict[str, set[bool]] = defaultdict(set)  # by name of a font: whether its texts have a shape
        self._shapeless: list[tuple[str, int]] = []  # the fonts and pages of texts that have none
        self._titles: dict[int, dict[str, int]] = defaultdict(dict)
        for mark in islice(document.get_toc(), _TITLES_READ):
            target = mark.get_dest()
            if target is not None and target.get_index() is not None:
                title = _wide(partial(raw.FPDFBookmark_GetTitle, mark.raw))
                self._titles[target.get_index()].setdefault(_bare(title), mark.level + 1)

    def text(self, data: bytes, wishes: Wishes) -> Text:
        """All pages."""
        count = len(self._document)
        pages: list[str] = []
        for number in range(1, count + 1):
            pages.append(self._page(number))
            wishes.progress(number, count)
        for page in (page for font, page in self._shapeless if True not in self._drawn[font]):
            self._lose(page, _UNDRAWN)
        if not any(page.strip() for page in pages):
            raise DocumentError("it is a PDF without text, likely scanned", hint=_SCANNED_HINT)
        pages = [self._with_headings(i, page) for i, page in enumerate(rejoined(pages))]
        text, places = joined((self._place(number), page) for number, page in enumerate(pages, start=1))
        return Text(text, places, (*self._losses(), *_whole_losses(self._document, data)))

    def _place(self, number: int) -> str:
        """`p3`, by its place in the file; with what is printed on the page where that is another: `p3 (page iv)`."""
        printed = _wide(partial(self._raw.FPDF_GetPageLabel, self._document.raw, number - 1))
        label = " ".join(re.sub(r"[^\w.-]", " ", printed[:_LONGEST_LABEL]).split())
        return f"p{number}" if label in ("", str(number)) else labelled(f"p{number}", label)

    def _page(self, number: int) -> str:
        try:
            page = self._document[number - 1]
            page.set_rotation(0)  # the glyphs say how they are turned
            values, comments = self._annotations(page.raw, number)
            if self._draw(page.raw):
                page.close()
                page = self._document[number - 1]
            text_page = page.get_textpage()
        except RuntimeError:  # PdfiumError
            self._lose(number, "page that cannot be read")
            return ""
        text = page_text(self._glyphs(text_page.raw, number), values)
        if self._find_shapeless(page.raw, number) & {self._raw.FPDF_PAGEOBJ_IMAGE, self._raw.FPDF_PAGEOBJ_FORM}:
            self._count_pictures(page, number, has_text=bool(text))
        text_page.close()
        page.close()
        shown = " ".join(text.split())
        said_below = [f"[comment{by}: {said}]" for by, said in comments if " ".join(said.split()) not in shown]
        if not text and not said_below:
            self._lose(number, "page without text")
        return "\n\n".join(part for part in (text, *said_below) if part)

    def _lose(self, number: int, what: str) -> None:
        self._lost[what][number] += 1

    def _losses(self) -> Iterator[Loss]:
        for what, pages in self._lost.items():
            count = sum(pages.values())
            yield Loss.of((what, _plural(what)), count, _where(sorted(pages)))

    def _with_headings(self, index: int, text: str) -> str:
        """The page's text, its lines that the outline names as Markdown headings."""
        titles = self._titles.get(index)
        if not titles:
            return text
        lines = ((line, titles.get(_bare(line), 0)) for line in text.split("\n"))
        marked = "\n".join(f"\n{'#' * min(level, 6)} {line}\n" if level else line for line, level in lines)
        return re.sub(r"\n{3,}", "\n\n", marked).strip("\n")

    def _glyphs(self, text_page: Any, number: int) -> Iterator[Glyph]:
        """The page's characters with where they stand; those of turned text as if the page were turned back."""
        raw = self._raw
        box, x, y = raw.FS_RECTF(), ctypes.c_double(), ctypes.c_double()
        box_at, x_at, y_at = ctypes.byref(box), ctypes.byref(x), ctypes.byref(y)
        find_box, find_origin = raw.FPDFText_GetLooseCharBox, raw.FPDFText_GetCharOrigin
        turn, begins = 0, True
        ems: dict[float, float] = {}
        for i, char in self._chars(text_page):
            if char in _WHITE:
                begins = begins or char == "\n"
                is_guess = char == " " and raw.FPDFText_IsGenerated(text_page, i) == 1
                yield _WHITE[GUESSED if is_guess else char]
                continue
            if begins:
                turn, begins = round(raw.FPDFText_GetCharAngle(text_page, i) / (math.pi / 2)) % 4, False
            find_box(text_page, i, box_at)
            find_origin(text_page, i, x_at, y_at)
            left, right, base, tall = box.left, box.right, y.value, box.top - box.bottom
            if turn:
                left, right, base, tall = _turned(left, box.bottom, right, box.top, x.value, base, turn)
            if tall not in ems:
                ems[tall] = self._em(text_page, i, tall, max(ems.values(), default=0.0))
            if char == HYPHEN:
                yield Glyph("-", left, right, base, ems[tall], turn)
                yield _WHITE["\n"]
                continue
            yield Glyph(char, left, right, base, ems[tall], turn)
            if char == _NAMELESS:
                self._lose(number, "sign that its font does not name")

    def _chars(self, text_page: Any) -> Iterator[tuple[int, str]]:
        """Characters by index; one that is given in two halves is one."""
        half, code_at = 0, self._raw.FPDFText_GetUnicode
        for i in range(self._raw.FPDFText_CountChars(text_page)):
            code = code_at(text_page, i)
            if half and 0xDC00 <= code < 0xE000:
                code += 0x10000 + ((half - 0xD800) << 10) - 0xDC00
            elif half:
                yield i - 1, _NAMELESS
            half = code if 0xD800 <= code < 0xDC00 else 0
            if not half:
                yield i, _SIGNS[code]

    def _em(self, text_page: Any, index: int, tall: float, largest: float) -> float:
        """The size of a glyph's font on the page; a font made of drawings is as its tallest glyph."""
        matrix = self._raw.FS_MATRIX()
        self._raw.FPDFText_GetMatrix(text_page, index, ctypes.byref(matrix))
        size: float = self._raw.FPDFText_GetFontSize(text_page, index) * math.hypot(matrix.c, matrix.d)
        return size if size > 0.4 * tall else max(tall, largest, 1.0)

    def _annotations(self, page: Any, number: int) -> tuple[list[Field], list[tuple[str, str]]]:
        """Values of form fields where they stand, and comments: by whom, and what they say."""
        values: list[Field] = []
        comments: list[tuple[str, str]] = []
        for i, kind in self._kinds(page):
            note = self._raw.FPDFPage_GetAnnot(page, i)
            if kind == self._raw.FPDF_ANNOT_WIDGET:
                values += self._value(note)
            elif kind not in (self._raw.FPDF_ANNOT_LINK, self._raw.FPDF_ANNOT_POPUP):
                comments += self._comment(note)
            if kind == self._raw.FPDF_ANNOT_FILEATTACHMENT:
                self._lose(number, "attached file")
            self._raw.FPDFPage_CloseAnnot(note)
        return values, comments

    def _kinds(self, page: Any) -> list[tuple[int, int]]:
        """Annotations by index with their kinds; a signature is a stamp."""
        raw, found = self._raw, list[tuple[int, int]]()
        for i in range(raw.FPDFPage_GetAnnotCount(page)):
            note = raw.FPDFPage_GetAnnot(page, i)
            if note:
                kind, form = raw.FPDFAnnot_GetSubtype(note), self._document.formenv
                signed = form and raw.FPDFAnnot_GetFormFieldType(form, note) == raw.FPDF_FORMFIELD_SIGNATURE
                found.append((i, raw.FPDF_ANNOT_STAMP if signed else kind))
                raw.FPDFPage_CloseAnnot(note)
        return found

    def _draw(self, page: Any) -> bool:
        """Make stamps, signatures and typed notes, whose text is in their pictures alone, parts of the page."""
        raw = self._raw
        kinds = self._kinds(page)
        drawn = [i for i, kind in kinds if kind in (raw.FPDF_ANNOT_STAMP, raw.FPDF_ANNOT_FREETEXT)]
        if not drawn:
            return False
        for i, _ in reversed(kinds):
            if i not in drawn:
                raw.FPDFPage_RemoveAnnot(page, i)
        return bool(raw.FPDFPage_Flatten(page, raw.FLAT_NORMALDISPLAY) == raw.FLATTEN_SUCCESS)

    def _value(self, note: Any) -> list[Field]:
        """A field with its value where it stands; of a button that may be pressed, whether it is, and what it means."""
        raw, form = self._raw, self._document.formenv
        rect = raw.FS_RECTF()
        if not form or raw.FPDFAnnot_GetFlags(note) & raw.FPDF_ANNOT_FLAG_HIDDEN:
            return []
        kind, choice = raw.FPDFAnnot_GetFormFieldType(form, note), ""
        if kind in (raw.FPDF_FORMFIELD_CHECKBOX, raw.FPDF_FORMFIELD_RADIOBUTTON):
            value = "[x]" if raw.FPDFAnnot_IsChecked(form, note) else "[ ]"
            choice = _wide(partial(raw.FPDFAnnot_GetFormFieldExportValue, form, note))
        else:
            value = ", ".join(self._chosen(note)) or _wide(partial(raw.FPDFAnnot_GetFormFieldValue, form, note))
        if not value.strip() or kind == raw.FPDF_FORMFIELD_PUSHBUTTON or not raw.FPDFAnnot_GetRect(note, rect):
            return []
        low, high = sorted((rect.bottom, rect.top))
        height = max(min(high - low, 12.0), 4.0)
        middle = (low + high) / 2 if high - low < 30 else high - height
        name = _wide(partial(raw.FPDFAnnot_GetFormFieldName, form, note))
        run = Run(" ".join(value.split()), rect.left, rect.right, middle - 0.3 * height, height)
        return [Field(name, run, " ".join(choice.split()))]

    def _chosen(self, note: Any) -> Iterator[str]:
        """What is chosen in a list, where several may be and a field's value is the first alone."""
        raw, form = self._raw, self._document.formenv
        count = raw.FPDFAnnot_GetOptionCount(form, note)
        for index in range(min(count, _OBJECTS_COUNTED)):
            if raw.FPDFAnnot_IsOptionSelected(form, note, index):
                yield _wide(partial(raw.FPDFAnnot_GetOptionLabel, form, note, index))

    def _comment(self, note: Any) -> list[tuple[str, str]]:
        text, author = (_wide(partial(self._raw.FPDFAnnot_GetStringValue, note, key)) for key in (b"Contents", b"T"))
        by = f" by {author.strip()}" if author.strip() else ""
        return [(by, text.strip())] if text.strip() else []

    def _count_pictures(self, page: Any, number: int, *, has_text: bool) -> None:
        """Pictures are lost, but for icons, and the scan behind a page's own text."""
        width, height = page.get_size()
        for item in islice(page.get_objects(filter=(self._raw.FPDF_PAGEOBJ_IMAGE,), max_depth=3), _OBJECTS_COUNTED):
            left, bottom, right, top = item.get_bounds()
            scan = (right - left) * (top - bottom) > _SCAN_SHARE * width * height
            if min(right - left, top - bottom) >= _PICTURE_POINTS and has_text and not scan:
                self._lose(number, "picture")

    def _find_shapeless(self, page: Any, number: int) -> set[int]:
        """Texts whose font is not in the file, and is replaced by one without their signs: PDFium leaves them out.

        Returns the kinds of what is on the page.
        """
        raw, kinds = self._raw, set[int]()
        edges = [ctypes.c_float() for _ in range(4)]
        at = [ctypes.byref(edge) for edge in edges]
        for i in range(raw.FPDFPage_CountObjects(page)):
            item = raw.FPDFPage_GetObject(page, i)
            kinds.add(kind := raw.FPDFPageObj_GetType(item))
            if kind != raw.FPDF_PAGEOBJ_TEXT or not raw.FPDFPageObj_GetBounds(item, *at):
                continue
            font = raw.FPDFTextObj_GetFont(item)
            if raw.FPDFFont_GetIsEmbedded(font) == 0:
                name = ctypes.create_string_buffer(_LONGEST_NAME)
                raw.FPDFFont_GetBaseFontName(font, name, _LONGEST_NAME)
                family = name.value.decode("latin-1")
                has_shape = edges[2].value > edges[0].value
                self._drawn[family].add(has_shape)
                self._shapeless += [] if has_shape else [(family, number)]
        return kinds


def _wide(fill: Any) -> str:
    """A UTF-16 text that a function of PDFium writes into a buffer, whose length it says before."""
    size = min(fill(None, 0), _COMMENT_LIMIT)
    buffer = ctypes.create_string_buffer(size)
    fill(ctypes.cast(buffer, ctypes.POINTER(ctypes.c_ushort)), size)
    return buffer.raw.decode("utf-16-le", "replace").split("\0")[0].replace("\r", "\n")


class _Signs(dict[int, str]):
    """What is read for a code: a letter (or those of a ligature), white space, `HYPHEN` at a line's end."""

    def __missing__(self, code: int) -> str:
        nameless = code < 32 or 0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000 or code > 0x10FFFF
        self[code] = _CODES.get(code) or (_NAMELESS if nameless else chr(code))
        return self[code]


_SIGNS = _Signs()


def _turned(left: float, low: float, right: float, high: float, x: float, y: float, turn: int) -> tuple[float, ...]:
    """Left, right, baseline and height of a box and an origin after quarters of a turn back (clockwise text)."""
    if turn == 2:
        return -right, -left, -y, high - low
    return (-high, -low, x, right - left) if turn == 1 else (low, high, -x, right - left)


def _bare(title: str) -> str:
    """A title as it is compared: without its number, spaces and points."""
    return re.sub(r"[\W_]", "", re.sub(r"^\W*(?:[\dIVX]+\.?)+\s", "", title)).casefold()


def _plural(what: str) -> str:
    noun, _, rest = what.partition(" ")
    return f"{noun}s {rest}".rstrip() if noun != "attached" else "attached files"


def _where(numbers: list[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:8]) + (", …" if len(numbers) > 8 else "")
    return f"{'page' if len(numbers) == 1 else 'pages'} {shown}"


def _has_end(data: bytes) -> bool:
    return b"%%EOF" in data[-4096:]


def _whole_losses(document: Any, data: bytes) -> Iterator[Loss]:
    """What the file as a whole has lost."""
    attached = document.count_attachments()
    if attached:
        yield Loss.of(("attached file", "attached files"), attached)
    if not _has_end(data):
        yield Loss("end of the file", 1, "it was cut off, and pages may be missing")


# --- what streams unpack to

_STREAM = re.compile(rb">>\s*stream\r?\n")
_HEAD_BYTES, _BLOCK_BYTES = 2000, 2**16
_RUN_LENGTH = 64  # times its size, at most


def _check_streams(data: bytes, limits: Limits) -> None:
    """Count what is unpacked for the text: not pictures, nor attached files, which stay as they are."""
    total = 0
    for match in _STREAM.finditer(data):
        far = max(match.start() - _HEAD_BYTES, 0)
        head = data[max(data.rfind(b" obj", far, match.start()), far) : match.start()]
        end = data.find(b"endstream", match.end())
        if b"/Image" not in head and b"/EmbeddedFile" not in head:
            for size in _unpacked(data[match.end() : end if end > 0 else len(data)], head):
                total += size
                limits.check_expanded(total)
        if end < 0:
            break


def _unpacked(data: bytes, head: bytes) -> Iterator[int]:
    """Sizes of the blocks that a stream's bytes expand to, nowhere held as a whole."""
    if b"/ASCIIHex" in head or b"/AHx" in head:
        data = _plain(binascii.unhexlify, b"".join(data.split(b">")[0].split()))
    elif b"/ASCII85" in head or b"/A85" in head:
        data = _plain(partial(base64.a85decode, ignorechars=b" \t\n\r\v\0"), data.split(b"~")[0])
    blocks: Iterator[bytes] = (data[i : i + _BLOCK_BYTES] for i in range(0, len(data), _BLOCK_BYTES))
    for _ in re.findall(rb"/Fl(?:ateDecode)?\b", head)[:4]:
        blocks = _inflated(blocks)
    times = _RUN_LENGTH if b"/RunLength" in head or b"/RL" in head else 1
    return (times * len(block) for block in blocks)


def _plain(decode: Callable[[bytes], bytes], data: bytes) -> bytes:
    try:
        return decode(data)
    except ValueError:
        return data


def _inflated(blocks: Iterator[bytes]) -> Iterator[bytes]:
    unpacker = zlib.decompressobj()
    for block in blocks:
        while block and not unpacker.eof:
            try:
                yield unpacker.decompress(block, 2**20)
            except zlib.error:
                return
            block = unpacker.unconsumed_tail


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Keep a package's log off the terminal: what it could mend needs no report, and the rest is raised."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
