"""Bytes to text that has no format but itself.

Text is decoded by its byte order mark, then as UTF-8, then as what charset-normalizer finds most likely. NUL bytes
without a mark mean a binary file, so UTF-16 without a mark is refused rather than guessed. Line ends become `\\n`;
nothing else in the text is changed. The guess can be wrong for short texts: `Text.encoding` shows it.
"""

import codecs

from uncomp_cli.documents.text import Text, Wishes
from uncomp_cli.errors import DocumentError

# UTF-32 first: its little-endian mark begins with the mark of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ENCODING_HINT = "save it as UTF-8 text, or convert it: iconv -f ENCODING -t UTF-8"


def read(data: bytes, wishes: Wishes) -> Text:
    """Plain text, markup and source code: decoded, and otherwise as it is."""
    text, encoding = decode_text(data)
    return Text(text, encoding=encoding)


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
