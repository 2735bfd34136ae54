"""Small files of every format that is read, made by hand."""

import zlib
from collections.abc import Sequence

_HELVETICA = "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>"


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


def _numbered(objects: dict[int, bytes]) -> bytes:
    """Objects with a table of where they begin."""
    data = b"%PDF-1.7\n"
    rows = dict.fromkeys(range(max(objects) + 1), b"0000000000 65535 f \n")
    for number, body in objects.items():
        rows[number] = b"%010d 00000 n \n" % len(data)
        data += b"%d 0 obj\n%b\nendobj\n" % (number, body)
    table = b"xref\n0 %d\n%b" % (len(rows), b"".join(rows.values()))
    return data + table + b"trailer\n<< /Size %d /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF\n" % (len(rows), len(data))
