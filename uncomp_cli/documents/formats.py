"""Which reader reads a file: by what its bytes say of themselves, else by its suffix.

A format is one module with one function, `read(data, wishes) -> Text` (text.py); what is in no table is decoded text
(encoding.py). To add a format: a module, and a line in `FORMATS`. Formats that are known and not read are refused by
name, with what to do instead (foreign.py).
"""

import importlib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO

from uncomp_cli.documents.archive import DAMAGE
from uncomp_cli.documents.foreign import check_foreign, kind_of
from uncomp_cli.documents.text import Text, Wishes
from uncomp_cli.errors import DocumentError


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

_ZIP = b"PK\x03\x04"
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
    if not told and not (suffix in _BY_SUFFIX and data.startswith(_ZIP)):
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
    if data.startswith(_ZIP):
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
