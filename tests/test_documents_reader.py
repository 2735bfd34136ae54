"""Documents: every format from a real file, every refusal with its two lines, and nothing left out unseen."""

import hashlib
import io
import os
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import docx
import fpdf
import pytest
from docx.opc.constants import RELATIONSHIP_TYPE
from hypothesis import example, given
from hypothesis import strategies as st

from support.documents import make_ods
from uncomp_cli.documents.collection import Document, DocumentSet, read_documents
from uncomp_cli.documents.encoding import decode
from uncomp_cli.documents.formats import FORMATS, READABLE_SUFFIXES, format_of, read_format
from uncomp_cli.documents.text import NO_WISHES, Text
from uncomp_cli.errors import DocumentError, UncompError, UsageError

GERMAN = "Die Küste war grün, und über den Dächern hörte man später die Möwen; es roch nach Äpfeln und Öl. " * 8
ROW = "<table:table-row><table:table-cell><text:p>1</text:p></table:table-cell></table:table-row>"
JAPANESE = "灯台守は毎晩ランプに油を差し、霧が出ると鐘を鳴らした。船は港に戻り、海は静かになった。" * 8


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, so that paths are shown short."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: str, content: str | bytes = "some text\n") -> str:
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def make_pdf(*pages: str) -> bytes:
    pdf = fpdf.FPDF()
    pdf.set_font("helvetica", size=12)
    for text in pages:
        pdf.add_page()
        if text:
            pdf.cell(text=text)
        else:
            pdf.rect(10, 10, 50, 50)
    return bytes(pdf.output())


def make_png() -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(b"\0\0")), chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def make_docx_with_picture(link: str | None = None) -> bytes:
    """A picture between two paragraphs: inside the file, or a link to another one."""
    document = docx.Document()
    document.add_paragraph("Before the picture.")
    shape = document.add_picture(io.BytesIO(make_png()))
    document.add_paragraph("After the picture.")
    if link is not None:
        blip = shape._inline.graphic.graphicData.pic.blipFill.blip
        blip.link = document.part.relate_to(link, RELATIONSHIP_TYPE.IMAGE, is_external=True)
        blip.embed = None
    file = io.BytesIO()
    document.save(file)
    return file.getvalue()


def make_docx() -> bytes:
    document = docx.Document()
    document.add_heading("Stores of the station", level=1)
    document.add_paragraph("The oil is in the cellar.")
    table = document.add_table(rows=1, cols=2)
    table.cell(0, 0).text = "wicks"
    table.cell(0, 1).text = "144"
    file = io.BytesIO()
    document.save(file)
    return file.getvalue()


def read_one(path: str) -> Document:
    (document,) = read_documents([path]).documents
    return document


def read_here(name: str, raw: bytes) -> Text:
    """What the format's reader makes of bytes, in this process."""
    return read_format(format_of(raw, Path(name).suffix), raw, NO_WISHES)


def shown(result: DocumentSet) -> list[str]:
    return [document.path for document in result.documents]


def refused(kind: type[UncompError], *paths: str, include: tuple[str, ...] = ()) -> tuple[str, str]:
    """Message and hint; both must be there, in one line each."""
    with pytest.raises(kind) as caught:
        read_documents(paths, include=include)
    message, hint = caught.value.message, caught.value.hint
    assert hint is not None
    assert "\n" not in message + hint
    return message, hint


# --- text and encodings


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.rst", "a.py", "a.unheard"])
def test_text_is_read_as_it_is(here: Path, name: str) -> None:
    content = "<html>\n# Title\n\n& *stars*\n\tindented  \n"
    document = read_one(write(name, content))
    assert document == Document(name, content, hashlib.sha256(content.encode()).hexdigest(), "utf-8")


def test_name_without_suffix_is_read_as_text(here: Path) -> None:
    assert read_one(write("README", "<b>plain</b>")).text == "<b>plain</b>"


@pytest.mark.parametrize(
    ("name", "raw", "said"),
    [
        ("a.docx", make_docx(), ()),
        ("a.docm", make_docx(), ()),
        ("a.pdf", make_docx(), ("it is a .docx file by its content, and was read as one",)),
        (
            "a.txt",
            make_ods(f"<table:table>{ROW}</table:table>"),
            ("it is a .ods file by its content, and was read as one",),
        ),
        ("a.pdf", b" <!DOCTYPE html><p>log in", ("it is a .html file by its content, and was read as one",)),
        ("a.doc", b"<html><p>hello", ("it is a .html file by its content, and was read as one",)),
        ("a.txt", b"<html><p>hello", ()),
        ("a.csv", b"<html><p>hello", ()),
        ("a.doc", rb"{\rtf1 hello}", ("it is a .rtf file by its content, and was read as one",)),
        ("a", make_pdf("hello"), ()),
        ("a.unheard", b"hello", ()),
    ],
)
def test_a_renamed_file_is_read_as_what_it_is_and_that_is_said(
    here: Path, name: str, raw: bytes, said: tuple[str, ...]
) -> None:
    result = read_documents([write(name, raw)])
    assert result.documents[0].notes == said
    assert result.warnings == [f"{name}: {note}" for note in said]


def test_document_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Document("a", "b", "c", None).text = "d"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_unicode_with_and_without_mark(here: Path, encoding: str) -> None:
    document = read_one(write("a.txt", JAPANESE.encode(encoding)))
    assert (document.text, document.encoding) == (JAPANESE, encoding.removesuffix("-sig"))


def test_big_endian_utf16_with_mark(here: Path) -> None:
    assert read_one(write("a.txt", b"\xfe\xff" + GERMAN.encode("utf-16-be"))).text == GERMAN


@pytest.mark.parametrize(("encoding", "text"), [("latin-1", GERMAN), ("shift_jis", JAPANESE)])
def test_older_encodings_are_found(here: Path, encoding: str, text: str) -> None:
    document = read_one(write("a.txt", text.encode(encoding)))
    assert document.text == text
    assert document.encoding not in (None, "utf-8")


def test_sha256_is_of_the_raw_bytes(here: Path) -> None:
    raw = b"\xef\xbb\xbfone\r\ntwo"
    assert read_one(write("a.txt", raw)).sha256 == hashlib.sha256(raw).hexdigest()


def test_line_ends_become_newlines(here: Path) -> None:
    assert read_one(write("a.txt", b"one\r\ntwo\rthree\n\r\nfour")).text == "one\ntwo\nthree\n\nfour"


@example("\x1f\x80\x80")
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1))
def test_utf8_round_trip(text: str) -> None:
    unmarked = text.removeprefix("\ufeff")
    for ends in ("\n", "\r\n"):
        found = decode(text.replace("\n", ends).encode())
        assert (found.text, found.encoding) == (unmarked, "utf-8")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"text\0more", "NUL bytes"),
        (bytes(range(64)) * 9, "NUL bytes"),
        (b"\xff\xfea", "not valid utf-16"),
        (bytes(range(128, 256)) * 8 + bytes(range(1, 32)) * 40, "unknown encoding"),
        (b"\x89PNG\r\n\x1a\n\0\0", "PNG image"),
        (b"\xff\xd8\xff\xe0", "JPEG image"),
        (b"PK\x03\x04\x14\0", "ZIP archive"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "Microsoft Office"),
        (b"\x1f\x8b\x08", "gzip archive"),
    ],
)
def test_named_binary_is_refused_with_its_kind(here: Path, content: bytes, part: str) -> None:
    message, _ = refused(DocumentError, write("a.txt", content))
    assert message.startswith("cannot read 'a.txt': ")
    assert part in message


OLD = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504)
ZIP = b"PK\x03\x04\x14\0"


@pytest.mark.parametrize(
    ("name", "content", "kind", "hint"),
    [
        ("a.doc", OLD, "old Word", "docx"),
        ("a.xls", OLD, "old Excel", "xlsx"),
        ("a.xlsx", OLD, "old Microsoft Office", "xlsx"),
        ("a.ppt", OLD, "old PowerPoint", "pptx"),
        ("a.docx", OLD + "EncryptedPackage".encode("utf-16-le"), "locked by a password", "password"),
        ("a.msg", OLD, "Outlook", ".eml"),
        ("a.xlsb", ZIP + b"xl/workbook.bin", "binary Excel", "xlsx"),
        ("a.pages", ZIP + b"Index/Document.iwa", "Pages", "Export To > Word"),
        ("a.numbers", ZIP + b"Index/Document.iwa", "Numbers", "Excel"),
        ("a.key", ZIP + b"Index/Document.iwa", "Keynote", "PowerPoint"),
        ("a.odg", ZIP + b"mimetypeapplication/vnd.oasis.opendocument.graphics", "drawing", "pdf"),
        ("a.zip", ZIP, "ZIP archive", "unzip"),
        ("a.7z", b"7z\xbc\xaf\x27\x1c\0", "7z archive", "7z x"),
        ("a.rar", b"Rar!\x1a\x07\x01\0", "RAR archive", "unrar"),
        ("a.tar", bytes(257) + b"ustar\0", "tar archive", "tar xf"),
        ("a.tgz", b"\x1f\x8b\x08", "gzip archive of files", "tar xzf"),
        ("a.djvu", b"AT&TFORM\0\0", "DjVu", "djvutxt"),
        ("a.mobi", bytes(60) + b"BOOKMOBI", "Kindle", "ebook-convert"),
        ("a.xps", ZIP + b"Documents/1/Pages/1.fpage", "XPS", "xpstopdf"),
        ("a.mp3", b"ID3\x04\0\0", "sound", "whisper"),
        ("a.mp3", b"\xff\xfb\x90\0\0", "sound", "whisper"),
        ("a.mp4", b"\0\0\0\x20ftypisom", "video", "whisper"),
        ("a.pdf", b"\x89PNG\r\n\x1a\n\0\0", "PNG image", "tesseract"),
        ("a.txt", b"GGUF\x03\0\0\0", "weights", "--model"),
    ],
)
def test_what_is_not_read_is_named_with_a_hint_that_fits(
    here: Path, name: str, content: bytes, kind: str, hint: str
) -> None:
    message, hinted = refused(DocumentError, write(name, content))
    assert kind in message
    assert hint in hinted


@pytest.mark.parametrize("name", ["a.key", "a.msg", "a.db", "a.doc"])
def test_text_with_the_suffix_of_what_is_not_read_is_read(here: Path, name: str) -> None:
    assert read_one(write(name, "plain words")).text == "plain words"


@pytest.mark.parametrize("content", [b"", b" \n\t\r\n", b"\xef\xbb\xbf"])
def test_empty_document_is_refused(here: Path, content: bytes) -> None:
    assert "empty" in refused(DocumentError, write("a.txt", content))[0]


# --- HTML, PDF, Word


@pytest.mark.parametrize("suffix", [".html", ".htm", ".HTML"])
def test_html_becomes_text(here: Path, suffix: str) -> None:
    html = "<html><head><title>T</title><style>p{}</style></head><body><p>Tea &amp; oil</p><ul><li>one</li></ul></body>"
    document = read_one(write("a" + suffix, html))
    assert "Tea & oil" in document.text
    assert "- one" in document.text
    assert "<" not in document.text
    assert "p{}" not in document.text
    assert document.encoding == "utf-8"


def test_html_follows_its_declared_encoding(here: Path) -> None:
    html = f"<html><head><meta charset='shift_jis'></head><body><p>{JAPANESE}</p></body></html>"
    assert JAPANESE in read_one(write("a.html", html.encode("shift_jis"))).text


def test_html_without_text_is_refused(here: Path) -> None:
    assert "empty" in refused(DocumentError, write("a.html", "<html><body><img src=x></body></html>"))[0]


def test_pdf_under_another_name_is_read_as_pdf(here: Path) -> None:
    assert read_one(write("a.txt", make_pdf("The lamp is lit."))).text == "The lamp is lit."


def test_pages_without_text_are_skipped(here: Path) -> None:
    result = read_documents([write("a.pdf", make_pdf("first", "", "third", ""))])
    assert result.skipped == ()
    assert result.warnings == ["a.pdf: left out 2 pages without text (pages 2, 4)"]
    assert shown(result) == ["a.pdf"]


def test_docx_with_heading_and_table(here: Path) -> None:
    document = read_one(write("a.docx", make_docx()))
    assert document.text.index("Stores of the station") < document.text.index("The oil is in the cellar.")
    assert [line.split() for line in document.text.splitlines() if "wicks" in line] == [["|", "wicks", "|", "144", "|"]]
    assert document.encoding is None


def test_docx_under_another_name_is_read_as_docx(here: Path) -> None:
    assert "The oil is in the cellar." in read_one(write("download", make_docx())).text


def test_what_many_documents_lost_is_told_together(here: Path) -> None:
    """One of a kind in some of them and several in others are the same kind."""
    for number in range(8):
        (here / f"{number}.html").write_text(f"<p>Fee {number}</p>" + "<img src=x>" * (1 + number % 2))
    (remark,) = read_documents(["."]).remarks
    assert remark.text == "8 documents: left out 12 pictures without a text; -v lists them"


def test_docx_pictures_are_dropped_unopened(here: Path) -> None:
    """Its picture is missing, so that who opens it meets an error."""
    whole = io.BytesIO(make_docx_with_picture())
    without = io.BytesIO()
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(without, "w") as target:
        assert [name for name in source.namelist() if name.startswith("word/media/")]
        for name in source.namelist():
            if not name.startswith("word/media/"):
                target.writestr(name, source.read(name))
    for raw in (whole.getvalue(), without.getvalue()):
        document = read_one(write("a.docx", raw))
        assert " ".join(document.text.split()) == "Before the picture. After the picture."


def test_docx_cannot_name_files_of_this_machine(here: Path) -> None:
    """Neither by a linked picture nor by a part that lies elsewhere: only names within the archive are looked up."""
    write("secret.png", b"secret")
    text = read_here("a.docx", make_docx_with_picture(Path("secret.png").absolute().as_uri())).text
    assert " ".join(text.split()) == "Before the picture. After the picture."


@pytest.mark.parametrize("keep", [1, 40, 2000])
def test_damaged_docx_is_refused(here: Path, keep: int) -> None:
    assert "damaged" in refused(DocumentError, write("a.docx", make_docx()[:keep]))[0]


@pytest.mark.parametrize(
    ("name", "make", "package"),
    [
        ("a.pdf", lambda: make_pdf("x"), "pypdfium2"),
        ("a.html", lambda: b"<p>x</p>", "lxml.etree"),
    ],
)
def test_missing_package_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, name: str, make: Callable[[], bytes], package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(DocumentError, match=f"needs the package {package}") as caught:
        read_here(name, make())
    assert caught.value.hint == "pip install 'uncomp[documents]'"


def test_every_format_is_found_in_directories() -> None:
    assert {suffix for found in FORMATS for suffix in found.suffixes} < READABLE_SUFFIXES
    assert all(suffix.startswith(".") and suffix == suffix.lower() for suffix in READABLE_SUFFIXES)


# --- directories, include, globs


@pytest.fixture
def tree(here: Path) -> Path:
    for path in ["d/b.md", "d/a.txt", "d/sub/c.py", "d/sub/deep/e.md", "d/LICENSE"]:
        write(path, path)
    return here


def test_directory_is_read_sorted_and_deep(tree: Path) -> None:
    result = read_documents(["d"])
    assert shown(result) == ["d/LICENSE", "d/a.txt", "d/b.md", "d/sub/c.py", "d/sub/deep/e.md"]
    assert [document.text for document in result.documents] == shown(result)
    assert result.skipped == ()


def test_everything_left_out_is_reported(tree: Path) -> None:
    write("d/.hidden.md")
    write("d/.git/config")
    write("d/image.png", b"\x89PNG\r\n")
    write("d/empty.txt", "")
    write("d/nul.txt", b"\0")
    write("d/bad.pdf", b"bad")
    Path("d/gone.md").symlink_to("nowhere")
    Path("d/loop.md").symlink_to("loop.md")
    Path("d/linked").symlink_to("sub")
    result = read_documents(["d"])
    assert len(result.documents) == 5
    reasons = dict(result.skipped)
    assert len(reasons) == len(result.skipped)
    expected = {
        "d/.hidden.md": "hidden",
        "d/.git": "hidden",
        "d/image.png": "suffix '.png' is that of a PNG image",
        "d/empty.txt": "empty",
        "d/nul.txt": "NUL bytes",
        "d/bad.pdf": "damaged",
        "d/gone.md": "broken link",
        "d/loop.md": "broken link",
        "d/linked": "link to a directory",
    }
    assert reasons.keys() == expected.keys()
    for path, part in expected.items():
        assert part in reasons[path]


@pytest.mark.parametrize(
    ("include", "expected"),
    [
        (("*.md",), ["d/b.md", "d/sub/deep/e.md"]),
        (("**/*.md",), ["d/b.md", "d/sub/deep/e.md"]),
        (("sub/*",), ["d/sub/c.py"]),
        (("./sub/**",), ["d/sub/c.py", "d/sub/deep/e.md"]),
        (("sub/**/*.md", "a.*"), ["d/a.txt", "d/sub/deep/e.md"]),
        (("*.odd",), ["d/x.odd"]),
    ],
)
def test_include_chooses_in_directories(tree: Path, include: tuple[str, ...], expected: list[str]) -> None:
    write("d/x.odd")
    result = read_documents(["d"], include=include)
    assert shown(result) == expected
    assert result.skipped == ()


def test_include_does_not_filter_named_files(tree: Path) -> None:
    assert shown(read_documents(["d/a.txt", "d"], include=["*.py"])) == ["d/a.txt", "d/sub/c.py"]


def test_include_without_match_is_refused(tree: Path) -> None:
    message, hint = refused(UsageError, "d", include=("*.mdx",))
    assert message == "no file in 'd' matches --include '*.mdx'"
    assert hint == "find d"


def test_directory_with_nothing_readable_is_refused(here: Path) -> None:
    for number in range(5):
        write(f"d/{number}.png")
    message, hint = refused(UsageError, "d")
    assert message.startswith("nothing to read in 'd' (d/0.png: suffix '.png' is that of a PNG image")
    assert message.endswith("; and 2 more)")
    assert "--include" in hint


def test_empty_directory_is_refused(here: Path) -> None:
    Path("d").mkdir()
    assert refused(UsageError, "d")[0] == "nothing to read in 'd': it is empty"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("d/*.md", ["d/b.md"]),
        ("d/**/*.md", ["d/b.md", "d/sub/deep/e.md"]),
        ("d/[ab].*", ["d/a.txt", "d/b.md"]),
        ("d/?.txt", ["d/a.txt"]),
        ("d/su*", ["d/sub/c.py", "d/sub/deep/e.md"]),
        ("d/**", ["d/LICENSE", "d/a.txt", "d/b.md", "d/sub/c.py", "d/sub/deep/e.md"]),
    ],
)
@pytest.mark.parametrize("absolute", [False, True])
def test_globs_expand(tree: Path, pattern: str, expected: list[str], absolute: bool) -> None:
    prefix = f"{tree}/" if absolute else ""
    result = read_documents([prefix + pattern])
    assert sorted(shown(result)) == [prefix + path for path in expected]
    assert result.skipped == ()


def test_glob_leaves_hidden_out_and_reports_binary(here: Path) -> None:
    write("a.odd")
    write("b.odd", b"\0")
    write(".c.odd")
    result = read_documents(["*.odd"])
    assert shown(result) == ["a.odd"]
    assert result.skipped == (("b.odd", "it is a binary file (it has NUL bytes)"),)


def test_existing_path_is_no_glob(here: Path) -> None:
    write("a[1].txt", "brackets")
    write("a1.txt", "plain")
    assert read_one("a[1].txt").text == "brackets"


def test_glob_without_match_is_refused(tree: Path) -> None:
    assert refused(UsageError, "d/*.mdx")[0] == "no file matches 'd/*.mdx'"


# --- once each, in order


def test_same_file_is_read_once(tree: Path) -> None:
    Path("link.md").symlink_to("d/b.md")
    paths = ["d/b.md", "link.md", str(tree / "d/b.md"), "./d/../d/b.md", "d/*.md", "d/a.txt", "d"]
    assert shown(read_documents(paths)) == ["d/b.md", "d/a.txt", "d/LICENSE", "d/sub/c.py", "d/sub/deep/e.md"]


def test_equal_texts_in_two_files_are_both_read(here: Path) -> None:
    assert len(read_documents([write("a.txt"), write("b.txt")]).documents) == 2


@pytest.mark.parametrize("paths", [["d", "d/x.odd"], ["d/x.odd", "d"], ["d/**"]])
def test_file_that_is_read_is_not_listed_as_skipped(tree: Path, paths: list[str]) -> None:
    write("d/x.odd")
    result = read_documents(paths)
    assert "d/x.odd" in shown(result)
    assert result.skipped == ()


def test_no_paths_no_documents() -> None:
    assert read_documents([]) == DocumentSet(())


# --- standard input and pipes


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"piped\r\ntext", "piped\ntext"),
        (b"\n<!DOCTYPE html><html><p>piped</p></html>", "piped"),
        (make_pdf("piped"), "piped"),
    ],
)
def test_stdin_is_a_document(raw: bytes, text: str) -> None:
    (document,) = read_documents(["-", "-"], stdin=io.BytesIO(raw)).documents
    assert (document.path, document.text.strip()) == ("-", text)
    assert document.sha256 == hashlib.sha256(raw).hexdigest()


def test_stdin_among_files_keeps_its_place(here: Path) -> None:
    paths = [write("a.txt"), "-", write("b.txt")]
    assert shown(read_documents(paths, stdin=io.BytesIO(b"x"))) == ["a.txt", "-", "b.txt"]


@pytest.mark.parametrize(("raw", "part"), [(b"", "empty"), (b"\0", "binary")])
def test_unusable_stdin_is_refused(raw: bytes, part: str) -> None:
    with pytest.raises(DocumentError, match=f"cannot read standard input: .*{part}"):
        read_documents(["-"], stdin=io.BytesIO(raw))


def test_absent_stdin_is_refused() -> None:
    assert "standard input" in refused(UsageError, "-")[0]


def test_pipe_as_a_file_is_read() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"from a process")
    os.close(writer)
    try:
        assert read_one(f"/dev/fd/{reader}").text == "from a process"
    finally:
        os.close(reader)


def test_device_is_refused() -> None:
    assert "device" in refused(DocumentError, "/dev/null")[0]


# --- paths that are wrong, or closed


def test_missing_file_suggests_neighbours(here: Path) -> None:
    write("docs/handbook.md")
    write("docs/other.md")
    assert refused(UsageError, "docs/handbok.md") == (
        "no file or directory 'docs/handbok.md'",
        "did you mean 'docs/handbook.md'?",
    )


def test_missing_directory_suggests_its_neighbours(here: Path) -> None:
    write("docs/handbook.md")
    assert refused(UsageError, "doc/handbook.md") == ("no file or directory 'doc'", "did you mean 'docs'?")


@pytest.mark.parametrize("path", ["zzz", "a.txt/below", "x" * 5000, "nul\0byte"])
def test_missing_without_neighbours_shows_where_to_look(here: Path, path: str) -> None:
    write("a.txt")
    message, hint = refused(UsageError, path)
    assert message.startswith("no file or directory ")
    assert hint.endswith("there is nothing" if path == "a.txt/below" else "there is a.txt")


def test_broken_link_names_its_target(here: Path) -> None:
    Path("a.txt").symlink_to("nowhere.txt")
    assert refused(UsageError, "a.txt")[0] == "'a.txt' is a link to 'nowhere.txt', which is not there"


def test_empty_path_is_refused_and_not_the_working_directory(tree: Path) -> None:
    assert "empty path" in refused(UsageError, "")[0]


def deny(monkeypatch: pytest.MonkeyPatch, method: str, name: str) -> None:
    """Root may read everything, so permission is taken away where files are opened and looked at."""
    owner: Any = os if method == "open" else Path
    original = getattr(owner, method)

    def denying(path: Any, *args: object, **kwargs: object) -> object:
        if Path(path).name == name:
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, *args, **kwargs)

    monkeypatch.setattr(owner, method, denying)


@pytest.mark.parametrize("method", ["open", "stat"])
def test_denied_file_is_refused_or_reported(tree: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    deny(monkeypatch, method, "a.txt")
    message, hint = refused(DocumentError, "d/a.txt")
    assert message == "cannot read 'd/a.txt': Permission denied"
    assert "d/a.txt" in hint
    result = read_documents(["d"])
    assert len(result.documents) == 4
    assert [path for path, _ in result.skipped] == ["d/a.txt"]


def test_denied_directory_is_refused_or_reported(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deny(monkeypatch, "iterdir", "sub")
    assert refused(DocumentError, "d/sub")[0] == "cannot read 'd/sub': Permission denied"
    for result in (read_documents(["d"]), read_documents(["d/*"])):
        assert sorted(shown(result)) == ["d/LICENSE", "d/a.txt", "d/b.md"]
        assert result.skipped == (("d/sub", "cannot read 'd/sub': Permission denied"),)


def test_file_name_that_is_not_utf8_is_shown_printable(here: Path) -> None:
    Path("d").mkdir()
    name = os.fsdecode(b"caf\xe9.txt")
    write(f"d/{name}")
    for path in ("d", f"d/{name}"):
        assert shown(read_documents([path])) == ["d/caf\ufffd.txt"]


@pytest.mark.parametrize("suffix", [".pdf", ".docx", ".xlsx", ".epub", ".rtf", ".ipynb", ".txt"])
def test_an_empty_file_is_called_that(here: Path, suffix: str) -> None:
    said, hint = refused(DocumentError, write(f"a{suffix}", b""))
    assert said == f"cannot read 'a{suffix}': it is empty, or has only white space"
    assert hint == "name a document with text in it"


def test_why_a_pdf_is_damaged_is_said_once(here: Path) -> None:
    said, _ = refused(DocumentError, write("a.pdf", b"%PDF-1.7 nothing"))
    assert said == "cannot read 'a.pdf': it is no PDF, or a damaged one (Data format error)"
