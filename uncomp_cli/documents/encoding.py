"""Bytes to text that has no format but itself.

What the user says of the encoding counts, then a byte order mark. What is nearly all UTF-8 is UTF-8: its few broken
bytes are counted, and no reason to read the rest as something else. What has NUL bytes may be UTF-16 or UTF-32; the
rest is taken for what its letters make likeliest (alphabets.py), and that is said. Line ends become `\\n`; nothing else
in the text is changed.

Of pages and mails that declare their encoding that is believed as far as the bytes allow it: bytes that are UTF-8, and
not ASCII, are UTF-8 whatever was declared, unless that is an encoding of several bytes a character and the text is
short. Then it counts under the names that browsers know (https://encoding.spec.whatwg.org/#names-and-labels: `latin1`
is windows-1252). Bytes that it does not have, one in a hundred at most, are replaced and counted.
"""

import codecs
import re
import unicodedata
from encodings.aliases import aliases

from uncomp_cli.documents.alphabets import likeliest, likeliest_wide
from uncomp_cli.documents.text import Text, Wishes, counted
from uncomp_cli.errors import DocumentError, UsageError, did_you_mean

# UTF-32 first: its little-endian mark begins with the mark of UTF-16.
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_WIDE = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
_ENCODING_HINT = "say which it is with --encoding NAME, or save it as UTF-8 text"
_BROKEN = "\ufffd"
_MOST_BROKEN = 0.01
_MOST_SPREAD = 0.6
_ODD, _MOST_ODD = re.compile("[\x01-\x07\x0e-\x1a\x1c-\x1f]"), 0.1  # what no text has many of: no backspaces
_CONTROLS = re.compile("[\x01-\x08\x0e-\x1a\x1c-\x1f]")


def read(data: bytes, wishes: Wishes) -> Text:
    """Plain text, markup and source code: decoded, and otherwise as it is."""
    return decode(data, wishes.encoding)


def decode(data: bytes, encoding: str = "") -> Text:
    """Text with `\\n` line ends, and what was broken of it. Raises DocumentError for bytes that are no text."""
    if encoding:
        return _named(data, encoding, "it is not valid")
    marked = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    if marked is not None:
        return _named(data, marked, f"it is marked as {marked.removesuffix('-sig')} and is not valid")
    if b"\0" in data:
        return _with_nuls(data)
    return _unmarked(data)


def normalise_newlines(text: str) -> str:
    """The text with `\\r\\n` and `\\r` turned into `\\n`."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def check_encoding(name: str) -> str:
    """The name of an encoding of text. Raises UsageError for what is none, with the nearest that is."""
    try:
        b"x".decode(name)
    except (LookupError, ValueError) as error:
        known = sorted({alias.replace("_", "-") for pair in aliases.items() for alias in pair})
        hint = did_you_mean(name.lower().replace("_", "-"), known, "utf-8, utf-16, windows-1252, iso-8859-2, koi8-r, …")
        raise UsageError(f"encoding '{name}' is not known", hint=hint) from error
    return name


def _named(data: bytes, encoding: str, fault: str) -> Text:
    """The text in an encoding that is known; some broken bytes are counted, many raise DocumentError."""
    name = encoding.removesuffix("-sig")
    text = data.decode(encoding, "replace")
    broken = text.count(_BROKEN) - _said(data, encoding)
    if broken > max(1, _MOST_BROKEN * len(text)) or broken == len(text) > 0 or (broken and len(text) < 4):
        raise DocumentError(f"{fault} {name}", hint=_ENCODING_HINT)
    return _text(text, name, broken)


def _said(data: bytes, encoding: str) -> int:
    """How often the sign for broken bytes stands in the text itself."""
    try:
        return data.count(_BROKEN.encode(encoding.removesuffix("-sig")))
    except UnicodeEncodeError:
        return 0


def _unmarked(data: bytes, nuls: int = 0) -> Text:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        text = data.decode(errors="replace")
    else:
        signs = len(text) - len(text.encode("ascii", "ignore"))  # of several bytes, which nothing but UTF-8 has whole
        is_odd = len(_ODD.findall(text)) > _MOST_ODD * len(text) > signs
        return (_wide(data) if is_odd else None) or _text(text, "utf-8", 0, nuls)
    said = _said(data, "utf-8")
    broken = text.count(_BROKEN) - said
    whole = len(text) - len(text.encode("ascii", "ignore")) - broken
    is_utf8 = (whole and broken <= max(1, whole // 4)) or _is_torn(data)
    guessed = None if is_utf8 else likeliest_wide(data) or likeliest(data)
    if guessed is not None:
        return _guessed(data, guessed, nuls)
    if broken > max(1, _MOST_BROKEN * len(text)) and broken > whole // 4:
        raise DocumentError("it is a binary file, or text in an unknown encoding", hint=_ENCODING_HINT)
    return _text(text, "utf-8", broken, nuls)


def _is_torn(data: bytes) -> bool:
    """Whether all is UTF-8 but for two or three bytes of a sign at the end, which is cut off."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        decoder.decode(data)
    except UnicodeDecodeError:
        return False
    return len(decoder.getstate()[0]) > 1


def _guessed(data: bytes, encoding: str, nuls: int) -> Text:
    text = data.decode(encoding, "replace")
    if len(_CONTROLS.findall(text)) > _MOST_BROKEN * len(text):
        raise DocumentError("it is a binary file, or text in an unknown encoding", hint=_ENCODING_HINT)
    note = f"its encoding is not said, and was taken for {encoding}; --encoding NAME says another"
    return _text(text, encoding, text.count(_BROKEN), nuls, note)


def _wide(data: bytes) -> Text | None:
    """UTF-16 or UTF-32 without a mark, by which half of its signs is the same again and again, or by its signs."""
    found = [(spread, name) for name in _WIDE if (spread := _spread(data, name)) is not None]
    name = min(found)[1] if found else likeliest_wide(data)
    if name:
        note = f"its encoding is not said, and was taken for {name}; --encoding NAME says another"
        return _text(data.decode(name, "replace"), name, len(data) % (4 if "32" in name else 2), 0, note)
    return None


def _with_nuls(data: bytes) -> Text:
    wide = _wide(data)
    if wide is not None:
        return wide
    nuls = data.count(0)
    if nuls > _MOST_BROKEN * len(data):
        raise DocumentError("it is a binary file (it has NUL bytes)", hint="name a text, HTML, PDF or Word document")
    return _unmarked(data.replace(b"\0", b""), nuls)


def _spread(data: bytes, encoding: str) -> float | None:
    """How many blocks of 256 signs the text has for its length; None where it is none in this encoding."""
    unit = 4 if "32" in encoding else 2
    head = data[: 2**14 // unit * unit]
    try:
        text = head[: len(head) // unit * unit].decode(encoding)
    except UnicodeDecodeError:
        return None
    odd = sum(unicodedata.category(sign) in ("Cc", "Cn", "Co", "Cs") and sign not in "\t\n\r\f" for sign in text)
    if not text or odd > _MOST_BROKEN * len(text):
        return None
    spread = len({ord(sign) >> 8 for sign in text}) / len(text)
    return spread if spread <= _MOST_SPREAD else None


def _text(text: str, encoding: str, broken: int, nuls: int = 0, note: str = "") -> Text:
    losses = counted(
        {(f"byte that is no {encoding}", f"bytes that are no {encoding}"): broken, ("NUL byte", "NUL bytes"): nuls}
    )
    return Text(normalise_newlines(text), (), losses, encoding, (note,) if note else ())


_DECLARED = re.compile(
    rb"""<meta[^>]{0,200}?charset\s*=\s*["']?\s*([\w.:-]+)|<\?xml[^>]{0,80}encoding\s*=\s*["']([\w.:-]+)""", re.I
)
_DECLARED_WITHIN_BYTES = 4096
MARKS = (codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_LATIN_1 = "ascii us-ascii iso8859-1 latin-1 latin1 l1 iso-8859-1 ansi x-ansi ansi_x3.4-1968"
_WIDER = {
    **dict.fromkeys(_LATIN_1.split(), "cp1252"),
    **dict.fromkeys(("iso8859-9", "iso-8859-9", "latin5"), "cp1254"),
    **dict.fromkeys(("iso8859-11", "iso-8859-11", "tis-620", "tis620"), "cp874"),
    **dict.fromkeys(("gb2312", "gbk", "gb_2312-80", "x-gbk", "chinese"), "gb18030"),
    **dict.fromkeys(("shift_jis", "shift-jis", "sjis", "x-sjis", "ms_kanji"), "cp932"),
    **dict.fromkeys(("euc_kr", "euc-kr", "ks_c_5601-1987", "korean"), "cp949"),
    **dict.fromkeys(("big5", "big5-hkscs"), "big5hkscs"),
    "x-mac-roman": "mac_roman",
    "macintosh": "mac_roman",
    "unicode-1-1-utf-8": "utf-8",
}
_SEVERAL_BYTES = frozenset(("gb18030", "cp932", "cp949", "big5hkscs", "euc_jp", "iso2022_jp", "iso2022_kr"))
_BY_CHANCE = 24  # bytes: text in an encoding of several bytes is no longer UTF-8 by chance


def decode_declared(data: bytes, declared: str) -> Text:
    """Text with `\\n` line ends, and the bytes that its encoding has none for; DocumentError for no text."""
    codec = known_codec(declared)
    if data.startswith(MARKS) or not codec or _is_utf8(data, sure=codec not in _SEVERAL_BYTES):
        return decode(data)
    for candidate in dict.fromkeys((codec, "utf-8" if codec != "utf-8" else "cp1252")):
        text = data.decode(candidate, "replace")
        broken = text.count("\ufffd")
        if broken <= _MOST_BROKEN * len(text):
            losses = counted({(f"byte that is no {candidate}", f"bytes that are no {candidate}"): broken})
            return Text(normalise_newlines(text), (), losses, candidate)
    return decode(data)


def known_codec(label: str) -> str:
    """The codec that a label means to browsers, or nothing: there is no such, or it is none of text."""
    label = label.strip(" \t\r\n\f'\"").lower()
    name = _WIDER.get(label, label)
    try:
        found = codecs.lookup(name)
    except (LookupError, ValueError):
        return ""
    # A page whose declaration can be read is not in UTF-16; UTF-7 is an attack; rot13 and its like make no text.
    if found.name.startswith(("utf-16", "utf-32")):
        return "utf-8"
    return (
        ""
        if found.name == "utf-7" or not getattr(found, "_is_text_encoding", True)
        else _WIDER.get(found.name, found.name)
    )


def _is_utf8(data: bytes, *, sure: bool) -> bool:
    """Whether it is UTF-8 and says something in it that ASCII does not: enough not to be by chance, unless `sure`."""
    try:
        length = len(data.decode())
    except UnicodeDecodeError:
        return False
    return len(data) - length > (0 if sure else _BY_CHANCE)


def decode_page(data: bytes, wishes: Wishes, declared: str = "") -> Text:
    """The markup, by what is declared of its encoding outside of it or in it."""
    found = _DECLARED.search(data[:_DECLARED_WITHIN_BYTES])
    declared = declared or ((found[1] or found[2]).decode("ascii") if found else "")
    return decode(data, wishes.encoding) if wishes.encoding else decode_declared(data, declared)
