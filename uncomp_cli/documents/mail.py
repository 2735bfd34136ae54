"""Mail (.eml), mailboxes (.mbox) and saved pages (.mhtml): headers, the body as a person sees it, and attachments.

Of a text that comes in several forms the plain one is read, unless it is a stub; then the HTML one. Attachments of
formats that are read are read, and so is a mail within the mail with its own; deeper ones, and all others, are named
as losses. Nothing of MIME is believed: what is broken is read as far as it goes (RFC 2045 to 2049, 2231). Bytes end at
no padding: lines behind it, as lists and scanners of mail append them, are more base64 where they can be nothing else,
and text otherwise. A body that is text and calls itself base64 stays text. Of quoted-printable, soft breaks may have
blanks behind them, and what is no escape stays as it is.
"""

import binascii
import re
import string
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from email import message_from_bytes, policy
from email.errors import MessageError
from email.header import decode_header
from email.message import Message
from pathlib import PurePath

from uncomp_cli.documents.archive import damaged
from uncomp_cli.documents.encoding import MARKS, decode, decode_declared, known_codec
from uncomp_cli.documents.formats import READABLE_SUFFIXES, format_of, notes_of, read_format
from uncomp_cli.documents.html import walk
from uncomp_cli.documents.text import Loss, Text, Wishes, counted, joined
from uncomp_cli.errors import DocumentError, UncompError

_HEADERS = ("From", "To", "Cc", "Bcc", "Date", "Subject")
_BEGIN = re.compile(rb"(?:\A|(?<=\n))From [^\n]*\d\d:\d\d[^\n]*\n")
_QUOTED_BEGIN = re.compile(rb"^>(>*From )", re.MULTILINE)
_STUB_SHARE = 0.2
_MOST_NESTED = 32
_MOST_MAILS_DEEP = 2
_SIGNATURES = ("pgp-signature", "pkcs7-signature", "x-pkcs7-signature", "pgp-keys")
_STYLES = ("css", "javascript", "x-javascript")
_PICTURE = ("picture shown within", "pictures shown within")
_UNREAD = ("attachment that was not read", "attachments that were not read")
_LOCKED = ("encrypted part", "encrypted parts")
_DEEP = ("part nested too deep", "parts nested too deep")
_NO_TEXT = ("part that is no text", "parts that are no text")
_NO_CODE = ("sign that is no base64", "signs that are no base64")
_FOR_PROGRAMS = re.compile(r"\bMIME\b|multi-?part", re.IGNORECASE)  # what stands before parts, for old programs


def read(data: bytes, wishes: Wishes) -> Text:
    """The text of a mail, or of all mails of a box."""
    data = decode(data).text.encode() if data.startswith(MARKS) or b"\0" in data[:2] else data
    starts = [match.end() for match in _BEGIN.finditer(data)] if data.startswith(b"From ") else []
    if not starts:
        mail = _read_mail(data, wishes)
        parts = mail.parts
    else:
        mail, parts = _Mail(wishes), []
        wishes.limits.check_pages(len(starts), "messages")
        ends = [*(match.start() for match in list(_BEGIN.finditer(data))[1:]), len(data)]
        for number, (start, end) in enumerate(zip(starts, ends, strict=True), start=1):
            one = _read_mail(_QUOTED_BEGIN.sub(rb"\1", data[start:end]), wishes)
            parts += [(f"m{number}" if place == "body" else f"m{number} {place}", text) for place, text in one.parts]
            mail.lost.update(one.lost)
            mail.inner += one.inner
            mail.unread += one.unread
            mail.notes += one.notes
            wishes.progress(number, len(starts))
    text, places = joined(parts)
    return Text(text, places, mail.losses, notes=tuple(mail.notes))


@dataclass(frozen=True, slots=True)
class Body:
    """What was encoded, and the text that stands beside it; `broken` signs were no code."""

    data: bytes
    beside: bytes = b""
    broken: int = 0


@dataclass(slots=True)
class _Mail:
    """A mail as it is taken apart; `deep` is how many mails it lies within."""

    wishes: Wishes
    deep: int = 0
    parts: list[tuple[str, str]] = field(default_factory=list)  # place and text
    body: list[str] = field(default_factory=list)
    lost: Counter[tuple[str, str]] = field(default_factory=Counter)
    inner: list[Loss] = field(default_factory=list)  # of attachments
    unread: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)  # of attachments
    held_bytes: int = 0

    @property
    def losses(self) -> tuple[Loss, ...]:
        """What is not in the text."""
        names = ", ".join(self.unread[:8]) + (", …" if len(self.unread) > 8 else "")
        unread = [Loss.of(_UNREAD, len(self.unread), names)] * bool(self.unread)
        return (*counted(self.lost), *self.inner, *unread)


def _read_mail(data: bytes, wishes: Wishes) -> _Mail:
    mail = _Mail(wishes)
    try:
        message = message_from_bytes(data.lstrip(b"\r\n"), policy=policy.compat32)
        _take(message, mail)
    except (RecursionError, AssertionError, AttributeError, LookupError, TypeError, ValueError, MessageError) as error:
        raise damaged("mail", error) from error  # the parser of the standard library, on hostile mails
    return mail


def _take(message: Message, mail: _Mail) -> None:
    """A whole mail: its headers and body as one part, then its attachments."""
    headers = "\n".join(f"{name}: {value}" for name in _HEADERS for value in _header(message, name))
    before, mail.body = mail.body, []
    place = len(mail.parts)
    mail.parts.append(("", ""))
    _take_part(message, mail)
    name = "body" if not mail.deep else f"attachment mail {mail.deep}"
    mail.parts[place] = (name, "\n\n".join(filter(None, [headers, *mail.body])))
    mail.body = before


def _header(message: Message, name: str) -> Iterator[str]:
    """The values of a header, its encoded words decoded."""
    for key, raw in message.raw_items():
        if key.lower() == name.lower():
            text = raw.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
            if text.strip():
                yield _decoded(text)


def _decoded(text: str) -> str:
    """A header without its encoded words, as one line."""
    with suppress(ValueError, LookupError, MessageError, UncompError):  # damage
        words = (part if isinstance(part, str) else _word(part, charset or "") for part, charset in decode_header(text))
        text = "".join(words)
    return " ".join(text.split())


def _word(data: bytes, charset: str) -> str:
    """What an encoded word says; plain text beside such words comes as bytes without a name. LookupError: no codec."""
    if charset and not known_codec(charset):
        raise LookupError(charset)
    return decode_declared(data, charset).text if charset else data.decode("raw-unicode-escape", "replace")


def _take_part(part: Message, mail: _Mail, nested: int = 0) -> None:
    main, sub = part.get_content_maintype(), part.get_content_subtype()
    if nested > _MOST_NESTED:
        mail.lost[_DEEP] += 1
    elif main == "multipart" and part.is_multipart():
        before, behind = (str(text or "").strip() for text in (part.preamble, part.epilogue))
        mail.body.append("" if _FOR_PROGRAMS.search(before) else _plain(before))
        _take_several(_inside(part), sub, mail, nested)
        mail.body.append(_plain(behind))
    elif main == "message" and part.is_multipart() and sub != "delivery-status":
        _take_inner(_unwrapped(part, _inside(part)[0]), mail)
    elif part.is_multipart():  # a report of a delivery: blocks of headers, or text all the same
        blocks = (_block(block) for block in _inside(part))
        mail.body.append("\n\n".join(block for block in blocks if block.strip()))
    elif sub in _SIGNATURES:
        return
    elif sub in ("pkcs7-mime", "x-pkcs7-mime", "pgp-encrypted"):
        mail.lost[_LOCKED] += 1
    elif main in ("text", "multipart") and part.get_content_disposition() != "attachment":
        _take_text(part, mail)
    else:
        _attach(part, mail)


def _plain(text: str) -> str:
    """Text that stands beside the parts, where nothing says what its bytes are."""
    return decode(text.encode("utf-8", "surrogateescape")).text if text else ""


def _take_text(part: Message, mail: _Mail) -> None:
    """A part of text, and what stands beside its code. Raises DocumentError where the whole mail is none."""
    try:
        mail.body.append(_text(part, mail))
    except DocumentError:
        if not part.keys():
            raise
        mail.lost[_NO_TEXT] += 1
    mail.body.append(_beside(part, mail))


def _beside(part: Message, mail: _Mail) -> str:
    body = _body(part)
    mail.lost[_NO_CODE] += body.broken
    return decode(body.beside).text.strip() if body.beside.strip() else ""


def _block(block: Message) -> str:
    lines = [f"{key}: {value}" for key, value in block.raw_items()]
    said = block.get_payload()
    return "\n".join([*lines, said.strip("\n")] if isinstance(said, str) and said.strip() else lines)


def _inside(part: Message) -> list[Message]:
    payload = part.get_payload()
    return [inner for inner in payload if isinstance(inner, Message)] if isinstance(payload, list) else []


def _take_several(parts: list[Message], sub: str, mail: _Mail, nested: int) -> None:
    if sub == "alternative":
        parts = _chosen(parts, mail)
    elif sub == "encrypted":
        mail.lost[_LOCKED] += 1
        return
    elif sub == "related":
        root, *others = parts or [Message()]
        kinds = [part.get_content_maintype() for part in others if part.get_content_subtype() not in _STYLES]
        mail.lost[_PICTURE] += kinds.count("image")
        parts = [root, *(part for part in others if _is_beside(part))]
        parts = [part for part in parts if part.get_content_subtype() not in _STYLES]
    for part in parts:
        _take_part(part, mail, nested + 1)


def _is_beside(part: Message) -> bool:
    """Whether a part stands beside the page that it comes with, and is not shown within."""
    main = part.get_content_maintype()
    return main in ("application", "message") or (
        main == "text" and "Content-ID" not in part and "Content-Location" not in part
    )


def _chosen(parts: list[Message], mail: _Mail) -> list[Message]:
    """Of the forms of one text the plain one, unless the others say much more; and a date for the calendar."""
    dates = [part for part in parts if part.get_content_type() == "text/calendar"]
    parts = [part for part in parts if part not in dates]
    texts = {id(part): _text(part, _Mail(mail.wishes)) for part in parts if part.get_content_maintype() == "text"}
    plain = next((part for part in parts if part.get_content_type() == "text/plain"), None)
    others = [part for part in parts if part.get_content_type() != "text/plain"]
    longest = max((len(texts.get(id(part), "").split()) for part in others), default=0)
    if plain is not None and len(texts[id(plain)].split()) > _STUB_SHARE * longest:
        return [plain, *dates]
    rich = [part for part in others if part.get_content_type() == "text/html" or part.is_multipart()]
    return [*(rich[:1] or others[:1] or parts[:1]), *dates]


def _text(part: Message, mail: _Mail) -> str:
    """The text of a part, of the encodings that it declares."""
    data, declared = _body(part).data, part.get_content_charset() or ""
    if part.get_content_subtype() == "html":
        return walk(data, mail.wishes, mail.lost, declared=declared)
    wanted = mail.wishes.encoding
    found = decode(data, wanted) if wanted else decode_declared(data, declared) if declared else decode(data)
    mail.lost.update({(loss.what, loss.many): loss.count for loss in found.losses})
    flows = str(part.get_param("format", "")).lower() == "flowed"
    text = _whole(found.text, glued=str(part.get_param("delsp", "")).lower() == "yes") if flows else found.text
    return text.strip("\n").rstrip()


def _whole(text: str, *, glued: bool) -> str:
    """Paragraphs that were broken on their way, whole: a line that ends in a space goes on (RFC 3676)."""
    whole: list[list[str]] = []
    depth, goes_on = 0, False
    for line in text.split("\n"):
        quoted = line.lstrip(">")
        before, depth = depth, len(line) - len(quoted)
        quoted = quoted.removeprefix(" ")
        if not goes_on or depth != before or quoted == "-- ":
            whole.append([">" * depth + " "] if depth else [])
        goes_on = quoted.endswith(" ") and quoted != "-- "
        whole[-1].append(quoted[:-1] if goes_on and glued else quoted)
    return "\n".join(map("".join, whole))


def _body(part: Message, encoding: str = "") -> Body:
    """What was sent as a part; what the standard library makes of base64 ends at its first padding."""
    encoding = encoding or str(part.get("Content-Transfer-Encoding", ""))
    bare = copy(part)
    if "uu" not in encoding.lower():
        del bare["Content-Transfer-Encoding"]
    payload = bare.get_payload(decode=True)
    return decoded(payload if isinstance(payload, bytes) else b"", encoding)


def _unwrapped(part: Message, inner: Message) -> Message:
    """A mail within the mail that was encoded as a whole, which none should be."""
    body = _body(inner, str(part.get("Content-Transfer-Encoding", ""))) if not inner.keys() else None
    return message_from_bytes(body.data, policy=policy.compat32) if body and not body.beside.strip() else inner


def _take_inner(message: Message, mail: _Mail) -> None:
    """A mail within the mail."""
    if mail.deep >= _MOST_MAILS_DEEP:
        mail.lost[_DEEP] += 1
        return
    mail.deep += 1
    _take(message, mail)
    mail.deep -= 1


def _attach(part: Message, mail: _Mail) -> None:
    """An attachment: read if its format is, else named."""
    name = _decoded(part.get_filename() or part.get_content_type()).replace(":", "-")
    suffix = PurePath(name).suffix.lower()
    if part.get_content_maintype() == "text" and suffix not in (*READABLE_SUFFIXES, ".eml", ".mbox"):
        suffix = ".txt"
    limits = mail.wishes.limits
    data = _body(part).data
    mail.body.append(_beside(part, mail))
    if suffix not in READABLE_SUFFIXES or suffix in (".eml", ".mbox") or mail.deep >= _MOST_MAILS_DEEP:
        mail.unread.append(name)
        return
    try:
        left = replace(limits, expanded_bytes=max(limits.expanded_bytes - mail.held_bytes, 0))
        chosen = format_of(data, suffix)
        found = read_format(chosen, data, replace(mail.wishes, limits=left, encoding=""))
    except UncompError as error:
        mail.unread.append(f"{name}: {error.message}")
        return
    text = found.text.strip("\n")
    mail.held_bytes += len(text)
    mail.parts.append((f"attachment {name}", f"## Attachment {name}\n\n{text}"))
    mail.notes += [f"attachment {name}: {note}" for note in (*notes_of(data, suffix, chosen), *found.notes)]
    mail.inner += [replace(loss, where=f"{loss.where} in {name}".strip()) for loss in found.losses]


_SIGNS = string.ascii_letters.encode() + b"0123456789+/"
_FOREIGN = bytes(set(range(256)) - set(_SIGNS))
_MOST_FOREIGN = 0.1  # of a line of base64 with damage
_SHORT = 60  # signs: of fewer, and of no padding, is a word too
_SOFT_OR_ESCAPE = re.compile(rb"=[ \t]*(?:\r?\n|\r|\Z)|=([0-9A-Fa-f]{2})")
_BLANKS = re.compile(rb"[ \t]+(?=\r?\n|\r|\Z)")


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
