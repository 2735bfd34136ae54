"""Text whose file or mail declares its encoding: the declaration is believed as far as the bytes allow it.

A byte order mark comes first. Then bytes that are UTF-8, and not ASCII, are UTF-8 whatever was declared, unless that
is an encoding of several bytes a character and the text is short. Then the declaration under the names
that browsers know (https://encoding.spec.whatwg.org/#names-and-labels: `latin1` is windows-1252). Bytes that a
declared encoding does not have, one in a hundred at most, are replaced and counted. Else: as text without a word on it.
"""

import codecs
import re

from uncomp_cli.documents.encoding import decode, normalise_newlines
from uncomp_cli.documents.text import Text, Wishes, counted

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
_MOST_BROKEN = 0.01
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
