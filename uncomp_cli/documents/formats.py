"""Which reader reads a file: by what its bytes say of themselves, else by its suffix.

A format is one module with one function, `read(data, wishes) -> Text` (text.py); what is in no table is decoded text
(encoding.py). To add a format: a module, and a line in `FORMATS`. Formats that are known and not read are refused by
name, with what to do instead (`_REFUSED`).
"""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

from uncomp_cli.documents.text import NO_WISHES, Text, Wishes
from uncomp_cli.errors import DocumentError


@dataclass(frozen=True, slots=True)
class Format:
    """A module below documents/ and the suffixes of its files; `apart` when a hostile file could stop or fill us."""

    module: str
    suffixes: tuple[str, ...]
    apart: bool = True


FORMATS = (
    Format("html", (".html", ".htm", ".xhtml")),
    Format("pdf", (".pdf",)),
    Format("word", (".docx",)),
)
_PLAIN = Format("encoding", (), apart=False)
_BY_SUFFIX = {suffix: format_ for format_ in FORMATS for suffix in format_.suffixes}

_PROSE_AND_DATA = (
    ".txt .text .md .markdown .mdx .rst .adoc .asciidoc .org .tex .bib .log .csv .tsv .json .jsonl .ndjson .yaml .yml "
    ".toml .ini .cfg .conf .properties .xml .srt .vtt .eml .diff .patch .po"
)
_SOURCE_CODE = (
    ".py .pyi .js .mjs .cjs .jsx .ts .tsx .vue .svelte .css .scss .less .sh .bash .zsh .fish .ps1 .bat .c .h .cc .cpp "
    ".cxx .hh .hpp .cu .cuh .m .mm .java .kt .kts .scala .groovy .gradle .go .rs .rb .php .pl .pm .lua .r .jl .swift "
    ".dart .ex .exs .erl .hs .ml .mli .fs .cs .clj .el .lisp .scm .vim .sql .graphql .proto .tf .nix .cmake .mk .zig "
    ".asm .s .f90 .v .sv .vhd"
)
TEXT_SUFFIXES = frozenset(_PROSE_AND_DATA.split() + _SOURCE_CODE.split())

# How files begin that are often given by mistake, and what to do with them instead.
_CONVERT_HINT = "convert it to PDF, .docx or text first: libreoffice --convert-to pdf FILE"
_REFUSED = (
    (b"\x89PNG\r\n", "a PNG image", "run OCR on it first: tesseract IMAGE stdout"),
    (b"\xff\xd8\xff", "a JPEG image", "run OCR on it first: tesseract IMAGE stdout"),
    (b"GIF8", "a GIF image", "run OCR on it first: tesseract IMAGE stdout"),
    (b"PK\x03\x04", "a ZIP archive (or an office file that is not .docx)", _CONVERT_HINT),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old or password-protected Microsoft Office file", _CONVERT_HINT),
    (b"{\\rtf", "an RTF file", _CONVERT_HINT),
    (b"\x1f\x8b", "a gzip archive", "unpack it first: gunzip --keep FILE"),
    (b"\x7fELF", "an executable", "name a text, HTML, PDF or Word document"),
    (b"SQLite format 3\0", "an SQLite database", "dump it first: sqlite3 FILE .dump"),
)

READABLE_SUFFIXES = TEXT_SUFFIXES | _BY_SUFFIX.keys()


def extract(data: bytes, *, suffix: str, wishes: Wishes = NO_WISHES) -> Text:
    """The text of a file's bytes; `suffix` is lower case, with the dot, or empty. DocumentError says what is wrong."""
    return with_words(read_format(format_of(data, suffix), data, wishes))


def with_words(found: Text) -> Text:
    """The text. Raises DocumentError for one without a word."""
    if not found.text.strip():
        raise DocumentError("it is empty, or has only white space", hint="name a document with text in it")
    return found


def format_of(data: bytes, suffix: str) -> Format:
    """The format of a file. Raises DocumentError for one that is known and not read."""
    found = _BY_SUFFIX.get(_true_suffix(data, suffix), _PLAIN)
    if found is _PLAIN:
        for beginning, kind, hint in _REFUSED:
            if data.startswith(beginning):
                raise DocumentError(f"it is {kind}", hint=hint)
    return found


def read_format(chosen: Format, data: bytes, wishes: Wishes) -> Text:
    """What the format's module reads of the bytes, in this process."""
    return reader_of(chosen.module)(data, wishes)


def reader_of(module: str) -> Callable[[bytes, Wishes], Text]:
    """The function that reads a format, by the name of its module: one of documents/, or with a dot any."""
    read: Callable[[bytes, Wishes], Text] = importlib.import_module(
        module if "." in module else f"{__package__}.{module}"
    ).read
    return read


def _true_suffix(data: bytes, suffix: str) -> str:
    """The suffix that the content calls for: standard input has none, and downloads often have the wrong one."""
    if data.startswith(b"%PDF-"):
        return ".pdf"
    if data.startswith(b"PK\x03\x04") and b"word/document.xml" in data:
        return ".docx"
    if not suffix and data[:256].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return ".html"
    return suffix
