"""Small files of every format that is read, made by hand."""

import io
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from email.message import EmailMessage

from uncomp_cli.documents.formats import format_of, read_format
from uncomp_cli.documents.text import NO_WISHES, Text, Wishes

_HELVETICA = "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>"
_WORD = (
    'xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main" '
    'xmlns:r="http://schemas.openxmlformats.org/officeDocument/2006/relationships" '
    'xmlns:m="http://schemas.openxmlformats.org/officeDocument/2006/math" '
    'xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006" '
    'xmlns:wp="http://schemas.openxmlformats.org/drawingml/2006/wordprocessingDrawing" '
    'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main" xmlns:v="urn:schemas-microsoft-com:vml" '
    'xmlns:c="http://schemas.openxmlformats.org/drawingml/2006/chart"'
)
_ROOTS = {"header": "hdr", "footer": "ftr"}
_TYPES = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_BOOK = '<package xmlns="http://www.idpf.org/2007/opf" version="3.0"><metadata {dc}>{metadata}</metadata>'
_DC = 'xmlns:dc="http://purl.org/dc/elements/1.1/"'


def extract(data: bytes, *, suffix: str, wishes: Wishes = NO_WISHES) -> Text:
    """The text of a file, by its bytes and its suffix, read in this process."""
    return read_format(format_of(data, suffix), data, wishes)


def losses(text: Text) -> list[str]:
    """What is not in it, as it is said."""
    return [str(loss) for loss in text.losses]


def at(x: float, y: float, text: str, *, size: float = 12, turn: str = "1 0 0 1") -> str:
    """PDF operators that show a text with its baseline's begin at (x, y)."""
    shown = text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
    return f"BT /F1 {size} Tf {turn} {x} {y} Tm ({shown}) Tj ET\n"


def make_pdf(
    *pages: str,
    page: str = "",
    catalog: str = "",
    objects: Sequence[str | bytes] = (),
    font: str = _HELVETICA,
    packed: int = 0,
) -> bytes:
    """A PDF whose pages show what their operators say; `objects` have numbers from 10 on.

    `page` and `catalog` are further entries of every page and of the root; pages are deflated `packed` times.
    """
    first = 10 + len(objects)
    kids = " ".join(f"{first + 2 * i} 0 R" for i in range(len(pages)))
    found: dict[int, bytes] = {
        1: f"<< /Type /Catalog /Pages 2 0 R {catalog} >>".encode(),
        2: f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>".encode(),
        3: font.encode(),
        **{10 + i: body.encode("latin-1") if isinstance(body, str) else body for i, body in enumerate(objects)},
    }
    for i, operators in enumerate(pages):
        shown = f"/Contents {first + 2 * i + 1} 0 R /Resources << /Font << /F1 3 0 R >> >>"
        found[first + 2 * i] = (f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] {shown} {page} >>").encode()
        found[first + 2 * i + 1] = pdf_stream(operators.encode("cp1252"), packed=packed)
    return _numbered(found)


def pdf_stream(data: bytes, *, entries: str = "", packed: int = 0) -> bytes:
    """A stream object, its bytes deflated so often."""
    for _ in range(packed):
        data = zlib.compress(data)
    filters = "/Filter [" + " /FlateDecode" * packed + "]" if packed else ""
    return f"<< /Length {len(data)} {filters} {entries} >>\nstream\n".encode() + data + b"\nendstream"


def sample_pdf() -> bytes:
    """Two pages with a table, a field of a form, a comment and a heading of the outline, packed: a seed to damage."""
    objects = (
        "<< /Type /Annot /Subtype /Widget /Rect [150 600 250 616] /F 4 /FT /Tx /T (name) /V (Alice) >>",
        "<< /Type /Annot /Subtype /Text /Rect [50 50 60 60] /Contents (Who checked this?) >>",
        "<< /Type /Outlines /First 13 0 R /Last 13 0 R >>",
        "<< /Title (Costs) /Parent 12 0 R /Dest [14 0 R /Fit] >>",
    )
    rows = "".join(at(72 + 120 * j, 700 - 14 * i, f"{10 * i + j}") for i in range(4) for j in range(3))
    catalog = "/AcroForm << /Fields [10 0 R] >> /Outlines 12 0 R"
    pages = (at(72, 730, "Costs", size=18) + rows + at(72, 604, "First name"), at(72, 700, "The end."))
    return make_pdf(*pages, page="/Annots [10 0 R 11 0 R]", catalog=catalog, objects=objects, packed=1)


def _numbered(objects: dict[int, bytes]) -> bytes:
    """Objects with a table of where they begin."""
    data = b"%PDF-1.7\n"
    rows = dict.fromkeys(range(max(objects) + 1), b"0000000000 65535 f \n")
    for number, body in objects.items():
        rows[number] = b"%010d 00000 n \n" % len(data)
        data += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    table = b"xref\n0 %d\n%b" % (len(rows), b"".join(rows.values()))
    return data + table + b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(rows), len(data))


def make_zip(members: Mapping[str, str | bytes]) -> bytes:
    """An archive; the member that says what it is lies in it as it is."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content, zipfile.ZIP_STORED if name == "mimetype" else None)
    return file.getvalue()


def make_docx(body: str = "<w:p><w:r><w:t>The fee is 10.</w:t></w:r></w:p>", **parts: str) -> bytes:
    """A Word document of WordprocessingML; parts by what they are: styles, numbering, footnotes, header, header2."""
    related = "".join(
        f'<Relationship Id="r{name}" Type="{_TYPES}/{name.rstrip("0123456789")}" Target="{name}.xml"/>'
        for name in parts
    )
    members = {
        "_rels/.rels": f'<Relationships><Relationship Id="r" Type="{_TYPES}/officeDocument" '
        'Target="word/document.xml"/></Relationships>',
        "word/document.xml": f"<w:document {_WORD}><w:body>{body}</w:body></w:document>",
        "word/_rels/document.xml.rels": f"<Relationships>{related}</Relationships>",
    }
    for name, content in parts.items():
        kind = name.rstrip("0123456789")
        root = _ROOTS.get(kind, kind)
        members[f"word/{name}.xml"] = f"<w:{root} {_WORD}>{content}</w:{root}>"
    return make_zip(members)


def make_epub(*chapters: str, metadata: str = "<dc:title>A Book</dc:title>", **members: str) -> bytes:
    """A book of XHTML bodies."""
    items = "".join(f'<item id="c{n}" href="text/c%20{n}.xhtml"/>' for n in range(len(chapters)))
    spine = "".join(f'<itemref idref="c{n}"/>' for n in range(len(chapters)))
    package = _BOOK.format(dc=_DC, metadata=metadata)
    container = '<container><rootfiles><rootfile full-path="OPS/book.opf"/></rootfiles></container>'
    pages = {
        f"OPS/text/c {n}.xhtml": f'<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml">'
        f"<head><title/></head><body>{chapter}</body></html>"
        for n, chapter in enumerate(chapters)
    }
    opf = f"{package}<manifest>{items}</manifest><spine>{spine}</spine></package>"
    named = {name.replace("__", "/"): content for name, content in members.items()}
    return make_zip(
        {"mimetype": "application/epub+zip", "META-INF/container.xml": container, "OPS/book.opf": opf, **pages, **named}
    )


def make_html() -> bytes:
    """A page with a bit of everything: raised text, spans, a form, a list, a formula, what is hidden."""
    return (
        "<!doctype html><meta charset=utf-8><title>Fees</title><h1>Fees</h1><p>10<sup>6</sup> rays cost "
        "$40<sup>1</sup>."
        "<table><tr><th rowspan=2>Port<th colspan=2>Tons<tr><th>1901<th>1902<tr><td>East<td>5<td>6</table>"
        "<ol start=3><li>a<ul><li>b</ul><li value=9>c</ol><dl><dt>t<dd>d</dl><pre>x = 1</pre><blockquote>q</blockquote>"
        "<select><option>May<option selected>June</select><input value=Vale><textarea>t</textarea><img alt='A lamp'>"
        "<math><mfrac><mn>1</mn><mn>2</mn></mfrac></math><div hidden>h</div>"
        "<ruby>東<rp>(<rt>とう<rp>)</ruby><script>s</script>"
    ).encode()


def make_mail() -> bytes:
    """A mail in two forms, with a mail and a document in it."""
    inner = EmailMessage()
    inner["Subject"] = "Inner"
    inner.set_content("Second 2.")
    message = EmailMessage()
    message["From"], message["Subject"] = "Zoë <z@x.org>", "Grüße"
    message.set_content("Der Schlüssel kostet 10.", cte="base64")
    message.add_alternative("<p>Der Schlüssel kostet <b>10</b>.", subtype="html")
    message.add_attachment(inner)
    message.add_attachment(make_docx(), maintype="application", subtype="x", filename="Straße 5.docx")
    return message.as_bytes()


_RELATED = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
_PACKAGED = "http://schemas.openxmlformats.org/package/2006/relationships"
_SHEET = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"


def make_xlsx(*, extra: str = "", prologue: str = "") -> bytes:
    """A workbook of one sheet, a kettle for 31; `extra` are further rows."""

    def relation(kind: str, target: str) -> str:
        relation = f'<Relationship Id="r1" Type="{_RELATED}/{kind}" Target="{target}"/>'
        return f'<Relationships xmlns="{_PACKAGED}">{relation}</Relationships>'

    rows = (
        '<row r="1"><c r="A1" t="str"><v>item</v></c><c r="B1" t="str"><v>price</v></c></row>'
        '<row r="2"><c r="A2" t="inlineStr"><is><t>kettle</t></is></c><c r="B2"><v>31</v></c></row>'
    )
    sheet = '<sheet name="Sheet" sheetId="1" r:id="r1"/>'
    cells = f'{prologue}<worksheet xmlns="{_SHEET}"><sheetData>{rows}{extra}</sheetData></worksheet>'
    return make_zip(
        {
            "_rels/.rels": relation("officeDocument", "xl/workbook.xml"),
            "xl/workbook.xml": f'<workbook xmlns="{_SHEET}" xmlns:r="{_RELATED}"><sheets>{sheet}</sheets></workbook>',
            "xl/_rels/workbook.xml.rels": relation("worksheet", "worksheets/sheet1.xml"),
            "xl/worksheets/sheet1.xml": cells,
        }
    )


_SLIDES = (
    'xmlns:p="http://schemas.openxmlformats.org/presentationml/2006/main" '
    'xmlns:a="http://schemas.openxmlformats.org/drawingml/2006/main" '
    f'xmlns:r="{_RELATED}"'
)


def make_pptx(*slides: str) -> bytes:
    """A presentation; a slide is the shapes of its tree, its notes are two words."""

    def relations(**targets: str) -> str:
        kinds = {name: name.rstrip("0123456789") for name in targets}
        each = (f'<Relationship Id="{n}" Type="{_RELATED}/{kinds[n]}" Target="{t}"/>' for n, t in targets.items())
        return f'<Relationships xmlns="{_PACKAGED}">{"".join(each)}</Relationships>'

    def tree(kind: str, shapes: str) -> str:
        return f"<p:{kind} {_SLIDES}><p:cSld><p:spTree>{shapes}</p:spTree></p:cSld></p:{kind}>"

    numbers = range(len(slides))
    ids = "".join(f'<p:sldId id="{256 + n}" r:id="slide{n}"/>' for n in numbers)
    notes = "<p:sp><p:txBody><a:p><a:r><a:t>Say hello.</a:t></a:r></a:p></p:txBody></p:sp>"
    members = {
        "_rels/.rels": relations(officeDocument="ppt/presentation.xml"),
        "ppt/presentation.xml": f"<p:presentation {_SLIDES}><p:sldIdLst>{ids}</p:sldIdLst></p:presentation>",
        "ppt/_rels/presentation.xml.rels": relations(**{f"slide{n}": f"slides/s{n}.xml" for n in numbers}),
        "ppt/notes.xml": tree("notes", notes),
    }
    for number, shapes in enumerate(slides):
        members[f"ppt/slides/s{number}.xml"] = tree("sld", shapes)
        members[f"ppt/slides/_rels/s{number}.xml.rels"] = relations(notesSlide="../notes.xml")
    return make_zip(members)


_OPEN = "urn:oasis:names:tc:opendocument:xmlns"
_SPACES = {
    **{name: f"{_OPEN}:{name}:1.0" for name in ("office", "text", "table", "style", "drawing", "presentation")},
    "draw": f"{_OPEN}:drawing:1.0",
    "fo": f"{_OPEN}:xsl-fo-compatible:1.0",
    "dc": "http://purl.org/dc/elements/1.1/",
    "xlink": "http://www.w3.org/1999/xlink",
}


def _make_open(kind: str, body: str, styles: str, objects: Mapping[str, str] | None = None) -> bytes:
    names = " ".join(f'xmlns:{name}="{uri}"' for name, uri in _SPACES.items())
    content = (
        f"<office:document-content {names}><office:automatic-styles>{styles}</office:automatic-styles>"
        f"<office:body><office:{kind}>{body}</office:{kind}></office:body></office:document-content>"
    )
    inner = {f"{name}/content.xml": text for name, text in (objects or {}).items()}
    return make_zip({"mimetype": f"application/vnd.oasis.opendocument.{kind}", "content.xml": content, **inner})


def make_odt(body: str = "<text:p>The rent is 900 crowns.</text:p>", *, styles: str = "", **objects: str) -> bytes:
    """A text document, and the contents of objects in it."""
    return _make_open("text", body, styles, objects)


def make_ods(body: str = "<table:table table:name='S'/>", *, styles: str = "") -> bytes:
    """A workbook."""
    return _make_open("spreadsheet", body, styles)


def make_odp(body: str, *, styles: str = "") -> bytes:
    """A presentation."""
    return _make_open("presentation", body, styles)
