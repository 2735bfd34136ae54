"""The text layer of a PDF, page by page, through pypdf."""

from io import BytesIO

from uncomp_cli.documents.archive import damaged
from uncomp_cli.documents.encoding import normalise_newlines
from uncomp_cli.documents.packages import package, quiet
from uncomp_cli.documents.text import Loss, Text, Wishes, joined
from uncomp_cli.errors import DocumentError


def read(data: bytes, wishes: Wishes) -> Text:
    """The text layer of a PDF, pages parted by an empty line."""
    pypdf = package("pypdf")
    try:
        with quiet("pypdf"):
            pages = [_without_surrogates(page.extract_text()) for page in pypdf.PdfReader(BytesIO(data)).pages]
    except pypdf.errors.FileNotDecryptedError as error:
        raise DocumentError(
            "it is an encrypted PDF",
            hint="take the password off first: qpdf --password=PASSWORD --decrypt IN.pdf OUT.pdf",
        ) from error
    except pypdf.errors.DependencyError as error:
        raise DocumentError("it is a PDF with AES encryption", hint="pip install cryptography") from error
    except Exception as error:  # pypdf meets damage with errors of many types
        raise damaged("PDF", error) from error
    silent = [number for number, text in enumerate(pages, start=1) if not text.strip()]
    if len(silent) == len(pages):
        raise DocumentError(
            "it is a PDF without text, likely scanned", hint="run OCR on it first: ocrmypdf IN.pdf OUT.pdf"
        )
    losses = (Loss("pages without text" if len(silent) > 1 else "page without text", len(silent), _pages(silent)),)
    text, places = joined((f"p{number}", normalise_newlines(page)) for number, page in enumerate(pages, start=1))
    return Text(text, places, losses if silent else ())


def _pages(numbers: list[int]) -> str:
    shown = ", ".join(str(number) for number in numbers[:8]) + (", …" if len(numbers) > 8 else "")
    return f"{'page' if len(numbers) == 1 else 'pages'} {shown}"


def _without_surrogates(text: str) -> str:
    """Broken fonts make pypdf emit halves of characters, which cannot be encoded again: join them, or mark them."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
