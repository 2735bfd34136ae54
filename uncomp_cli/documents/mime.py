"""Transfer encodings of mail (RFC 2045, section 6), read as far as what lies there allows it.

Bytes end at no padding: lines behind it, as lists and scanners of mail append them, are more base64 where they can be
nothing else, and text otherwise. A body that is text and calls itself base64 stays text. Of quoted-printable, soft
breaks may have blanks behind them, and what is no escape stays as it is.
"""

import binascii
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass

_SIGNS = string.ascii_letters.encode() + b"0123456789+/"
_FOREIGN = bytes(set(range(256)) - set(_SIGNS))
_MOST_FOREIGN = 0.1  # of a line of base64 with damage
_SHORT = 60  # signs: of fewer, and of no padding, is a word too
_SOFT_OR_ESCAPE = re.compile(rb"=[ \t]*(?:\r?\n|\r|\Z)|=([0-9A-Fa-f]{2})")
_BLANKS = re.compile(rb"[ \t]+(?=\r?\n|\r|\Z)")


@dataclass(frozen=True, slots=True)
class Body:
    """What was encoded, and the text that stands beside it; `broken` signs were no code."""

    data: bytes
    beside: bytes = b""
    broken: int = 0


def decoded(raw: bytes, encoding: str) -> Body:
    """What a body says whose header names an encoding; bytes as they are for names that say nothing."""
    name = encoding.strip().lower().partition(" ")[0].strip(";\"'")
    if name == "base64":
        return _base64(raw)
    if name == "quoted-printable":
        return Body(_SOFT_OR_ESCAPE.sub(_unescaped, _BLANKS.sub(b"", raw)))
    return Body(raw)


def _unescaped(found: re.Match[bytes]) -> bytes:
    return bytes.fromhex(found[1].decode()) if found[1] else b""


def _base64(raw: bytes) -> Body:
    data, beside, broken = [], [], 0
    for number, run in enumerate(_runs(raw.splitlines())):
        signs = b"".join(run)
        kept = signs.translate(None, _FOREIGN)
        if _is_coded(signs, kept, first=number == 0):
            whole = len(kept) - (len(kept) % 4 == 1)
            broken += len(signs.rstrip(b"=")) - whole
            data.append(binascii.a2b_base64(kept[:whole] + b"=" * (-whole % 4)))
        else:
            beside += run
    return Body(b"".join(data), b"\n".join(beside), broken)


def _runs(lines: list[bytes]) -> Iterator[list[bytes]]:
    """Lines that belong together: of one base64, which its padding or a shorter line ends, or each by itself."""
    run: list[bytes] = []
    for line in (*map(bytes.strip, lines), b""):
        is_coded = bool(line) and _may_be_coded(line)
        if run and (not is_coded or run[-1].endswith(b"=") or len(run[-1]) < len(run[0])):
            yield run
            run = []
        if is_coded:
            run.append(line)
        elif line:
            yield [line]


def _may_be_coded(line: bytes) -> bool:
    foreign = len(line.rstrip(b"=").translate(None, _SIGNS))
    if not foreign and not line.endswith(b"==="):
        return True
    return len(line) >= _SHORT and not any(map(line.__contains__, b" \t")) and foreign < _MOST_FOREIGN * len(line)


def _is_coded(signs: bytes, kept: bytes, *, first: bool) -> bool:
    """Whether a run is base64 and no text: a long one, one that padding ends, the first, or what says something."""
    if not kept or not _may_be_coded(signs):
        return False
    whole = not len(signs) % 4
    if len(signs) >= _SHORT or (whole and signs.endswith(b"=")):
        return True
    return (first and whole) or ((first or whole) and len(kept) % 4 != 1 and _says(kept))


def _says(kept: bytes) -> bool:
    try:
        text = binascii.a2b_base64(kept + b"=" * (-len(kept) % 4)).decode()
    except ValueError:
        return False
    return text.replace("\n", "").replace("\r", "").replace("\t", "").isprintable()
