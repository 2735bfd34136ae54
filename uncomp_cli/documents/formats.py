"""Which reader reads a file: by what its bytes say of themselves, else by its suffix.

A format is one module with one function, `read(data, wishes) -> Text` (text.py); what is in no table is decoded text
(encoding.py). To add a format: a module, and a line in `FORMATS`. Formats that are known and not read are refused by
name, with what to do instead: a kind is known by how a file begins; of several that begin alike (old Office files, ZIP
archives) by the suffix or by what lies in them; by the suffix alone where the bytes are no text, since a `.key` may be
a slide show or a text. Packages of the extra `documents` are imported on first use.
"""

import importlib
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from uncomp_cli.documents.archive import DAMAGE
from uncomp_cli.documents.text import Text, Wishes
from uncomp_cli.errors import DocumentError

_HEAD_BYTES = 2**16


@dataclass(frozen=True, slots=True)
class Foreign:
    """What a file is, what mends it, its suffixes, and bytes at an offset that tell it; `within`: bytes anywhere."""

    kind: str
    hint: str
    suffixes: str
    marks: tuple[tuple[int, bytes], ...] = ()
    within: bytes = b""

    def begins(self, data: bytes) -> bool:
        """Whether the file's bytes say that it is one."""
        marked = any(data.startswith(mark, offset) for offset, mark in self.marks)
        return marked and (not self.within or self.within in data)


_OCR = "run OCR on it first: tesseract IMAGE stdout"
_HEAR = "write down what is said first, and give the .srt or text: whisper FILE --output_format srt"
_OLD_OFFICE = ((0, b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"),)
_ZIP = ((0, b"PK\x03\x04"), (0, b"PK\x05\x06"))
_LOCKED = "EncryptedPackage".encode("utf-16-le")
_SAVE = "save it in a new format first: libreoffice --headless --convert-to "
_APPLE = b"Index/Document.iwa"
_SOUND = ((0, b"ID3"), (8, b"WAVE"), (0, b"OggS"), (0, b"fLaC"), (4, b"ftypM4A"))
_VIDEO = ((4, b"ftyp"), (0, b"\x1a\x45\xdf\xa3"), (8, b"AVI "))

# Of two that begin alike the first is what a file is taken for, unless its suffix names another.
FOREIGN = (
    Foreign("a PNG image", _OCR, ".png", ((0, b"\x89PNG\r\n"),)),
    Foreign("a JPEG image", _OCR, ".jpg .jpeg", ((0, b"\xff\xd8\xff"),)),
    Foreign("a GIF image", _OCR, ".gif", ((0, b"GIF8"),)),
    Foreign("a TIFF image", _OCR, ".tif .tiff", ((0, b"II*\0"), (0, b"MM\0*"))),
    Foreign("an image", _OCR, ".bmp .webp .heic .heif .avif .ico .psd .xcf", ((8, b"WEBP"), (0, b"8BPS"))),
    Foreign(
        "a Microsoft Office file locked by a password",
        "open it in Office or LibreOffice and save it without a password",
        ".docx .xlsx .pptx",
        _OLD_OFFICE,
        _LOCKED,
    ),
    Foreign(
        "an old Microsoft Office file",
        _SAVE + "docx FILE, or xlsx, or pptx",
        "",
        _OLD_OFFICE,
    ),
    Foreign("an old Word file", _SAVE + "docx FILE", ".doc .dot", _OLD_OFFICE),
    Foreign("an old Excel file", _SAVE + "xlsx FILE", ".xls .xlt", _OLD_OFFICE),
    Foreign("an old PowerPoint file", _SAVE + "pptx FILE", ".ppt .pps", _OLD_OFFICE),
    Foreign("an Outlook message", "save it as .eml first: msgconvert FILE", ".msg", _OLD_OFFICE),
    Foreign("a binary Excel workbook", _SAVE + "xlsx FILE", ".xlsb", _ZIP, b"xl/workbook.bin"),
    Foreign("an Apple Pages document", "in Pages, File > Export To > Word", ".pages", _ZIP, _APPLE),
    Foreign("an Apple Numbers workbook", "in Numbers, File > Export To > Excel", ".numbers", _ZIP, _APPLE),
    Foreign("an Apple Keynote presentation", "in Keynote, File > Export To > PowerPoint", ".key", _ZIP, _APPLE),
    Foreign("an OpenDocument drawing", _SAVE + "pdf FILE", ".odg .otg", _ZIP, b"opendocument.graphics"),
    Foreign("an OpenDocument formula", _SAVE + "pdf FILE", ".odf", _ZIP, b"opendocument.formula"),
    Foreign("an XPS document", "convert it to PDF first: xpstopdf FILE", ".xps .oxps", _ZIP, b".fpage"),
    Foreign("a ZIP archive", "unpack it first: unzip FILE -d FOLDER, then -f FOLDER", ".zip", _ZIP),
    Foreign("a 7z archive", "unpack it first: 7z x FILE", ".7z", ((0, b"7z\xbc\xaf\x27\x1c"),)),
    Foreign("a RAR archive", "unpack it first: unrar x FILE", ".rar", ((0, b"Rar!\x1a\x07"),)),
    Foreign("a gzip archive", "unpack it first: gunzip --keep FILE", ".gz", ((0, b"\x1f\x8b"),)),
    Foreign("a gzip archive of files", "unpack it first: tar xzf FILE", ".tgz", ((0, b"\x1f\x8b"),)),
    Foreign("a bzip2 archive", "unpack it first: bunzip2 --keep FILE", ".bz2", ((0, b"BZh"),)),
    Foreign("an xz archive", "unpack it first: unxz --keep FILE", ".xz", ((0, b"\xfd7zXZ\0"),)),
    Foreign("a Zstandard archive", "unpack it first: unzstd --keep FILE", ".zst", ((0, b"\x28\xb5\x2f\xfd"),)),
    Foreign("a tar archive", "unpack it first: tar xf FILE", ".tar", ((257, b"ustar"),)),
    Foreign("a DjVu document", "take its text first: djvutxt FILE", ".djvu .djv", ((0, b"AT&TFORM"),)),
    Foreign(
        "a Kindle book",
        "save it as .epub first: ebook-convert FILE OUT.epub",
        ".mobi .azw .azw3 .prc .kfx",
        ((60, b"BOOKMOBI"), (0, b"\xeaDRMION")),
    ),
    Foreign("a PostScript file", "convert it to PDF first: ps2pdf FILE", ".ps .eps", ((0, b"%!PS"),)),
    Foreign("a sound recording", _HEAR, ".mp3 .wav .flac .ogg .oga .opus .m4a .aac .wma .aiff .amr", _SOUND),
    Foreign("a video", _HEAR, ".mp4 .m4v .mkv .webm .avi .mov .wmv .mpg .mpeg .flv", _VIDEO),
    Foreign("a Parquet table", "write it as CSV first, with pandas or duckdb", ".parquet", ((0, b"PAR1"),)),
    Foreign("an SQLite database", "sqlite3 FILE .dump", ".sqlite .sqlite3 .db", ((0, b"SQLite format 3"),)),
    Foreign("a model's weights", "name it with --model, not as a document", ".gguf .safetensors", ((0, b"GGUF"),)),
    Foreign("a binary file", "name a file with text in it", ".exe .dll .so .bin", ((0, b"\x7fELF"), (0, b"MZ\x90\0"))),
)  # fmt: skip


def check_foreign(data: bytes, suffix: str) -> None:
    """Raise DocumentError for a file of a kind that is known and not read."""
    known = list(_by_bytes(data)) or list(_by_suffix(data, suffix))
    if known:
        found = next((foreign for foreign in known if suffix in foreign.suffixes.split()), known[0])
        raise DocumentError(f"it is {found.kind}", hint=found.hint)


def kind_of(suffix: str) -> str:
    """What files of a suffix are that are not read; "" where nobody knows."""
    return next((foreign.kind for foreign in FOREIGN if suffix in foreign.suffixes.split()), "")


def _by_bytes(data: bytes) -> Iterator[Foreign]:
    return (foreign for foreign in FOREIGN if foreign.begins(data))


def _by_suffix(data: bytes, suffix: str) -> Iterator[Foreign]:
    """Kinds of that suffix, for bytes that are no text."""
    return (foreign for foreign in FOREIGN if b"\0" in data[:_HEAD_BYTES] and suffix in foreign.suffixes.split())


@dataclass(frozen=True, slots=True)
class Format:
    """A module below documents/ and the suffixes of its files.

    A file of `apart_bytes` or more is read in a child, since a hostile one could stop or fill us; None: none is. A byte
    of it may take `weight` times the time and memory that one of most formats may.
    """

    module: str
    suffixes: tuple[str, ...]
    apart_bytes: int | None = 0
    weight: int = 1

    def is_apart(self, data: bytes) -> bool:
        """Whether a child reads this file."""
        return self.apart_bytes is not None and len(data) >= self.apart_bytes


_LARGE_BYTES = 2**18  # what is smaller is read in no time, and a child would take longer

FORMATS = (
    Format("html", (".html", ".htm", ".xhtml")),
    Format("pdf", (".pdf",)),
    Format("word", (".docx", ".docm", ".dotx", ".dotm")),
    Format("mail", (".eml", ".mbox", ".mht", ".mhtml")),
    Format("epub", (".epub",)),
    Format("spreadsheet", (".xlsx", ".xlsm", ".xltx", ".xltm")),
    Format("slides", (".pptx", ".pptm", ".ppsx", ".potx")),
    Format("opendocument", (".odt", ".ods", ".odp", ".ott", ".ots", ".otp", ".fodt", ".fods", ".fodp")),
    Format("richtext", (".rtf",)),
    Format("notebook", (".ipynb",), _LARGE_BYTES, weight=4),
    Format("subtitles", (".srt", ".vtt"), _LARGE_BYTES, weight=4),
    Format("latex", (".tex",), _LARGE_BYTES, weight=4),
    Format("delimited", (".csv", ".tsv"), _LARGE_BYTES, weight=8),
    Format("objects", (".jsonl", ".ndjson", ".json"), _LARGE_BYTES, weight=4),
)
_PLAIN = Format("encoding", (), None)
_BY_SUFFIX = {suffix: format_ for format_ in FORMATS for suffix in format_.suffixes}

_PROSE_AND_DATA = (
    ".txt .text .md .markdown .mdx .rst .adoc .asciidoc .org .bib .log .yaml .yml "
    ".toml .ini .cfg .conf .properties .xml .diff .patch .po"
)
_SOURCE_CODE = (
    ".py .pyi .js .mjs .cjs .jsx .ts .tsx .vue .svelte .css .scss .less .sh .bash .zsh .fish .ps1 .bat .c .h .cc .cpp "
    ".cxx .hh .hpp .cu .cuh .m .mm .java .kt .kts .scala .groovy .gradle .go .rs .rb .php .pl .pm .lua .r .jl .swift "
    ".dart .ex .exs .erl .hs .ml .mli .fs .cs .clj .el .lisp .scm .vim .sql .graphql .proto .tf .nix .cmake .mk .zig "
    ".asm .s .f90 .v .sv .vhd"
)
TEXT_SUFFIXES = frozenset(_PROSE_AND_DATA.split() + _SOURCE_CODE.split())

_MARKS = ((b"%PDF-", ".pdf"), (b"{\\rtf", ".rtf"))
_MARK_BYTES = 256
_MEMBERS = (
    (b"word/document.xml", ".docx"),
    (b"xl/workbook.xml", ".xlsx"),
    (b"ppt/presentation.xml", ".pptx"),
    (b"META-INF/container.xml", ".epub"),
)
_OPEN_DOCUMENTS = (
    (b"opendocument.text", ".odt"),
    (b"opendocument.spreadsheet", ".ods"),
    (b"opendocument.presentation", ".odp"),
)

READABLE_SUFFIXES = TEXT_SUFFIXES | _BY_SUFFIX.keys()
_TEXTS = TEXT_SUFFIXES.union((".eml", ".mht", ".mhtml"), *(each.suffixes for each in FORMATS if each.apart_bytes))
"""What may begin as a page does and be meant as it is; downloads of other names are pages that say why."""


def with_words(found: Text) -> Text:
    """The text. Raises DocumentError for one without a word."""
    if not found.text.strip():
        raise _empty()
    return found


def _empty() -> DocumentError:
    return DocumentError("it is empty, or has only white space", hint="name a document with text in it")


def format_of(data: bytes, suffix: str) -> Format:
    """The format of a file. Raises DocumentError for one that is known and not read, and for an empty one."""
    if not data:
        raise _empty()
    told = _told_suffix(data, suffix)
    if not told and not (suffix in _BY_SUFFIX and data.startswith(_ZIP[0][1])):
        check_foreign(data, suffix)
    return _BY_SUFFIX.get(told or suffix, _PLAIN)


def notes_of(data: bytes, suffix: str, chosen: Format) -> tuple[str, ...]:
    """What is to be said where a file's suffix is another than its content's: which of them decided."""
    if not suffix or not chosen.suffixes or suffix in chosen.suffixes:
        return ()
    return (f"it is a {_told_suffix(data, suffix)} file by its content, and was read as one",)


def read_format(chosen: Format, data: bytes, wishes: Wishes) -> Text:
    """What the format's module reads of the bytes, in this process."""
    return reader_of(chosen.module)(data, wishes)


def reader_of(module: str) -> Callable[[bytes, Wishes], Text]:
    """The function that reads a format, by the name of its module: one of documents/, or with a dot any."""
    read: Callable[[bytes, Wishes], Text] = importlib.import_module(
        module if "." in module else f"{__package__}.{module}"
    ).read
    return read


def _told_suffix(data: bytes, suffix: str) -> str:
    """The suffix that the content calls for: standard input has none, and downloads often have the wrong one."""
    if data.startswith(_ZIP[0][1]):
        told = _package_suffix(data)
    elif found := next((suffix for mark, suffix in _MARKS if data.startswith(mark)), ""):
        told = found
    else:
        may_be = not suffix or ((suffix in _BY_SUFFIX or kind_of(suffix)) and suffix not in _TEXTS)
        page = may_be and data[:256].lstrip().lower().startswith((b"<!doctype html", b"<html"))
        told = ".html" if page else ""
    return told if told in _BY_SUFFIX else ""


def _package_suffix(data: bytes) -> str:
    """What office file an archive is, by its members; by bytes alone where its directory is damaged."""
    if b"opendocument." in data[:_MARK_BYTES]:
        return next((suffix for mark, suffix in _OPEN_DOCUMENTS if mark in data[:_MARK_BYTES]), "")
    try:
        names = b"\0".join(name.encode() for name in zipfile.ZipFile(BytesIO(data)).namelist())
    except DAMAGE:
        names = data
    return next((suffix for member, suffix in _MEMBERS if member in names), "")


def package(name: str) -> Any:
    """A package of the extra. Raises DocumentError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        message = f"it needs the package {name}, of the extra 'documents' ({error})"
        raise DocumentError(message, hint="pip install 'uncomp[documents]'") from error
