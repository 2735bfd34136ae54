"""Bytes to text: one reader a file format, chosen by suffix, or by content where the content is plain about itself.

HTML goes through inscriptis, PDF through pypdf, Word through mammoth to HTML; all else is decoded text. The three
packages are the optional extra `documents` and are imported on first use. Not done: OCR, spreadsheets, slides, the
page headers and comments of Word files. To add a format: a function, a line in `READERS`.

Text is decoded by its byte order mark, then as UTF-8, then as what charset-normalizer finds most likely. NUL bytes
without a mark mean a binary file, so UTF-16 without a mark is refused rather than guessed. Line ends become `\\n`;
nothing else in the text is changed. The guess can be wrong for short texts: `Document.encoding` shows it.
"""

import codecs
import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from uncomp_cli.errors import DocumentError


@dataclass(frozen=True, slots=True)
class Extracted:
    """What a reader found: `encoding` is None for formats that are not text; `losses` says what has no text."""

    text: str
    encoding: str | None = None
    losses: tuple[str, ...] = ()


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
_BINARY_BEGINNINGS = (
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

# UTF-32 first: its little-endian mark begins with the mark of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ENCODING_HINT = "save it as UTF-8 text, or convert it: iconv -f ENCODING -t UTF-8"


def extract(data: bytes, *, suffix: str) -> Extracted:
    """The text of a file's bytes; `suffix` is lower case, with the dot, or empty. DocumentError says what is wrong."""
    result = READERS.get(_true_suffix(data, suffix), read_text)(data)
    if not result.text.strip():
        raise DocumentError("it is empty, or has only white space", hint="name a document with text in it")
    return result


def read_text(data: bytes) -> Extracted:
    """Plain text, markup and source code: decoded, and otherwise as it is."""
    for beginning, kind, hint in _BINARY_BEGINNINGS:
        if data.startswith(beginning):
            raise DocumentError(f"it is {kind}", hint=hint)
    text, encoding = decode_text(data)
    return Extracted(text, encoding)


def read_html(data: bytes) -> Extracted:
    """HTML as a text browser lays it out."""
    html, encoding = decode_text(data)
    return Extracted(_html_to_text(html), encoding)


def read_pdf(data: bytes) -> Extracted:
    """The text layer of a PDF, pages parted by an empty line; pages without text are named in `losses`."""
    pypdf = _documents_package("pypdf")
    try:
        with _quiet("pypdf"):
            pages = [_without_surrogates(page.extract_text()) for page in pypdf.PdfReader(BytesIO(data)).pages]
    except pypdf.errors.FileNotDecryptedError as error:
        raise DocumentError(
            "it is an encrypted PDF",
            hint="take the password off first: qpdf --password=PASSWORD --decrypt IN.pdf OUT.pdf",
        ) from error
    except pypdf.errors.DependencyError as error:
        raise DocumentError("it is a PDF with AES encryption", hint="pip install cryptography") from error
    except Exception as error:  # pypdf meets damage with errors of many types
        raise _damaged("PDF", error) from error
    silent = [number for number, text in enumerate(pages, start=1) if not text.strip()]
    if len(silent) == len(pages):
        raise DocumentError(
            "it is a PDF without text, likely scanned", hint="run OCR on it first: ocrmypdf IN.pdf OUT.pdf"
        )
    losses = (f"no text on {_pages(silent)} of {len(pages)}",) if silent else ()
    return Extracted(normalise_newlines("\n\n".join(pages)), losses=losses)


def read_docx(data: bytes) -> Extracted:
    """A Word document: body, tables, lists and footnotes.

    Pictures are dropped unopened: a linked one would name any file of this machine (CVE-2025-11849).
    """
    mammoth = _documents_package("mammoth")
    try:
        html = mammoth.convert_to_html(BytesIO(data), convert_image=lambda _: []).value
    except Exception as error:  # zip, XML and key errors, by where the damage is
        raise _damaged("Word document", error) from error
    return Extracted(_html_to_text(html))


READERS: dict[str, Callable[[bytes], Extracted]] = {
    ".html": read_html,
    ".htm": read_html,
    ".xhtml": read_html,
    ".pdf": read_pdf,
    ".docx": read_docx,
}
READABLE_SUFFIXES = TEXT_SUFFIXES | READERS.keys()


def _true_suffix(data: bytes, suffix: str) -> str:
    """The suffix that the content calls for: standard input has none, and downloads often have the wrong one."""
    if data.startswith(b"%PDF-"):
        return ".pdf"
    if data.startswith(b"PK\x03\x04") and b"word/document.xml" in data:
        return ".docx"
    if not suffix and data[:256].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return ".html"
    return suffix


def _documents_package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        message = f"it needs the package {name}, of the extra 'documents' ({error})"
        raise DocumentError(message, hint="pip install 'uncomp[documents]'") from error


def _html_to_text(html: str) -> str:
    inscriptis = _documents_package("inscriptis")
    try:
        return normalise_newlines(inscriptis.get_text(html))
    except Exception as error:  # the HTML parser's own errors, and RecursionError
        raise _damaged("HTML document", error) from error


def _damaged(kind: str, error: Exception) -> DocumentError:
    detail = str(error).strip().split("\n")[0] or type(error).__name__
    return DocumentError(f"it is no {kind}, or a damaged one ({detail})", hint="open it in a viewer and save it again")


def _pages(numbers: list[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:8]) + (", …" if len(numbers) > 8 else "")
    return f"{'page' if len(numbers) == 1 else 'pages'} {shown}"


def _without_surrogates(text: str) -> str:
    """Broken fonts make pypdf emit halves of characters, which cannot be encoded again: join them, or mark them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


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


def decode_text(data: bytes) -> tuple[str, str]:
    """Text with `\\n` line ends, and the name of the encoding; DocumentError for bytes that are no text."""
    encoding = _marked_encoding(data)
    if encoding is None and b"\0" in data:
        raise DocumentError("it is a binary file (it has NUL bytes)", hint="name a text, HTML, PDF or Word document")
    try:
        text = data.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        if encoding is not None:
            raise DocumentError(
                f"it is marked as {encoding} and is not valid {encoding}", hint=_ENCODING_HINT
            ) from error
        text, encoding = _guess(data)
    return normalise_newlines(text), (encoding or "utf-8").removesuffix("-sig")


def normalise_newlines(text: str) -> str:
    """The text with `\\r\\n` and `\\r` turned into `\\n`."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _marked_encoding(data: bytes) -> str | None:
    return next((encoding for mark, encoding in _MARKS if data.startswith(mark)), None)


def _guess(data: bytes) -> tuple[str, str]:
    from charset_normalizer import from_bytes

    best = from_bytes(data).best()
    if best is None:
        raise DocumentError("it is a binary file, or text in an unknown encoding", hint=_ENCODING_HINT)
    return str(best), best.encoding
