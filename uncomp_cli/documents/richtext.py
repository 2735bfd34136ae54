r"""Rich text (.rtf), by its control words (Microsoft's RTF specification 1.9.1): paragraphs, tables, notes.

A group inherits what its parent set and loses its own at its end; a destination that is unknown and marked `\*` is
skipped. Characters are bytes of the code page that the font or the file names, or `\u` with a substitute behind it.
"""

import codecs
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from uncomp_cli.documents.grid import Cell, table_lines
from uncomp_cli.documents.markdown import Phrase
from uncomp_cli.documents.superscripts import clean, resolve
from uncomp_cli.documents.text import DELETED, HIDDEN, OBJECT, PICTURE, Text, Wishes, Words, counted, running
from uncomp_cli.errors import DocumentError

_TOKEN = re.compile(
    r"\\([a-zA-Z]{1,32})(-?\d{1,10})? ?|\\'([0-9a-fA-F]{2})|\\([^a-zA-Z'])|([{}])|([^\\{}\r\n]+)|[\r\n]+|\\"
)
_SKIPPED = frozenset(
    ("fonttbl", "colortbl", "stylesheet", "info", "fldinst", "sp", "themedata", "datastore", "xe", "tc", "bkmkstart")
)
_LOST = {"pict": PICTURE, "object": OBJECT, "deleted": DELETED}
_MARGINS = frozenset(("header", "headerl", "headerr", "headerf", "footer", "footerl", "footerr", "footerf"))
_HEARD_ALWAYS = frozenset(("f", "fcharset", "uc"))
_READ_THOUGH_MARKED = frozenset(("shpinst", "footnote", "annotation", "nesttableprops"))
_SIGNS = {
    "emdash": "—", "endash": "–", "bullet": "•", "lquote": "‘", "rquote": "’", "ldblquote": "“", "rdblquote": "”",
    "tab": "\t", "emspace": " ", "enspace": " ", "qmspace": " ", "line": "\n", "~": "\u00a0", "_": "-", "-": "",
    "softline": "\n", "\\": "\\", "{": "{", "}": "}", "\n": "\n", "\r": "\n",
}  # fmt: skip
_CHARSETS = {
    77: "mac_roman", 128: "cp932", 129: "cp949", 134: "cp936", 136: "cp950", 161: "cp1253", 162: "cp1254",
    163: "cp1258", 177: "cp1255", 178: "cp1256", 186: "cp1257", 204: "cp1251", 222: "cp874", 238: "cp1250",
}  # fmt: skip
_LABEL = re.compile(r"\A\s*(?:[·•▪◦§\uf0b7o-]|(\d{1,3}[.)]))\t")


@dataclass(frozen=True, slots=True)
class _State:
    """What a group sets: whether it is skipped, its destination, and how its characters are written."""

    skipped: bool = False
    kind: str = ""
    substitutes: int = 1
    page: str = ""
    shift: str = ""
    hidden: bool = False
    struck: bool = False


def read(data: bytes, wishes: Wishes) -> Text:
    """The text of an RTF file."""
    if not data.lstrip().startswith(b"{\\rtf"):
        raise DocumentError("it is no RTF file, or a damaged one", hint="open it in a viewer and save it again")
    walk = _Walk(data.decode("latin-1"))
    text = walk.text()
    return Text(text, (), counted(walk.lost))


class _Walk:
    """One pass over the tokens; what is open is a stack of states."""

    def __init__(self, source: str) -> None:
        self.lost: Counter[Words] = Counter()
        self._source = source
        self._states = [_State()]
        self._fonts: dict[int, str] = {}
        self._font = self._unread = 0
        self._bytes = bytearray()
        self._line = Phrase()
        self._lines: list[str] = []
        self._asides: list[tuple[str, Phrase, list[str]]] = []
        self._notes: list[str] = []
        self._comments: list[str] = []
        self._margins: dict[str, list[str]] = {"header": [], "footer": []}
        self._page = "cp1252"
        self._level = -1
        self._in_table = self._hides = False
        self._cells: list[Cell] = []
        self._rows: list[list[Cell]] = []

    def text(self) -> str:
        """All of it; `lost` is complete then."""
        at, begins = 0, False
        while match := _TOKEN.match(self._source, at):
            at = match.end()
            word, number, byte, sign, brace, plain = match.groups()
            if word == "bin":
                at += max(0, int(number or 0))
            elif word is not None:
                self._word(word, None if number is None else int(number))
            elif brace:
                self._brace(brace)
            elif byte:
                self._byte(byte)
            elif sign == "*":
                self._set(replace(self._state, kind="*" if begins else self._state.kind))
            elif sign or plain:
                self._write(_SIGNS.get(sign, "") if sign else plain)
            begins = brace == "{" or (begins and match[0].isspace())  # the mark of a destination stands there alone
        self._flush()
        self._paragraph()
        self._end_table()
        comments = "\n".join(["Comments:", *self._comments]) if self._comments else ""
        body = re.sub(r"\n{3,}", "\n\n", "\n".join(self._lines)).strip()
        heads, feet = map(running, self._margins.values())
        return resolve("\n\n".join(filter(None, (*heads, body, *feet, "\n".join(self._notes), comments))))

    @property
    def _state(self) -> _State:
        return self._states[-1]

    def _set(self, state: _State) -> None:
        self._flush()
        self._states[-1] = state

    # --- characters

    def _write(self, text: str) -> None:
        """Text of the source, less the characters that stand in for one that was written as \\u."""
        self._flush()
        dropped = min(self._unread, len(text))
        self._unread -= dropped
        self._put(text[dropped:])

    def _put(self, text: str) -> None:
        if not text or self._state.skipped:
            return
        if self._state.hidden:
            begins = not self._hides and not text.isspace()
            self.lost[HIDDEN] += begins
            self._hides = self._hides or begins
        else:
            self._hides = False
            self._line.turn(self._state.shift, struck=self._state.struck)
            self._line.put(clean(text))

    def _byte(self, byte: str) -> None:
        if self._unread:
            self._unread -= 1
        else:
            self._bytes.append(int(byte, 16))

    def _flush(self) -> None:
        """Bytes that belong together become characters."""
        if self._bytes:
            text = self._bytes.decode(self._state.page or self._page, "replace")
            self._bytes.clear()
            self._put(text)

    # --- groups and words

    def _brace(self, brace: str) -> None:
        self._flush()
        self._unread = 0
        if brace == "{":
            self._states.append(replace(self._state, kind=""))
        elif len(self._states) > 1:
            ended = self._states.pop()
            if self._asides and ended.kind in ("note", "comment", *self._margins):
                self._end_aside()

    def _word(self, word: str, number: int | None) -> None:
        self._flush()
        if word == "u" and number is not None:
            self._unicode(number)
        elif word in _SIGNS:
            self._put(_SIGNS[word])
        elif self._state.skipped and word not in _HEARD_ALWAYS:
            return
        elif (action := _ACTIONS.get(word)) is not None:
            action(self, 1 if number is None else number)
        elif self._state.kind == "*" and word not in _READ_THOUGH_MARKED:
            self._set(replace(self._state, skipped=True, kind="unknown"))
        elif word in _SKIPPED:
            self._set(replace(self._state, skipped=True, kind=word))
        elif word in _LOST and number != 0:
            self.lost[_LOST[word]] += 1
            self._set(replace(self._state, skipped=True))
        elif word in _MARGINS:
            self._begin_aside(word[:6])

    def _unicode(self, number: int) -> None:
        self._unread = self._state.substitutes
        self._put(chr(number % 65536))

    def _code_page(self, number: int) -> None:
        name = {65001: "utf-8", 10000: "mac_roman"}.get(number, f"cp{number}")
        try:
            codecs.lookup(name)
        except LookupError:
            return
        self._page = name

    def _choose_font(self, number: int) -> None:
        """A font: in the table it is described, in the text it brings its code page."""
        self._font = number
        if self._fonts or not self._state.skipped:
            self._set(replace(self._state, page=self._fonts.get(number, "")))

    def _charset(self, number: int) -> None:
        if number in _CHARSETS:
            self._fonts[self._font] = _CHARSETS[number]

    # --- paragraphs, notes, tables

    def _paragraph(self) -> None:
        line = _LABEL.sub(_label, _whole(self._line)).replace("\t", " ").strip()
        if self._in_table and not self._asides:
            self._line.put(f"{line}\n" * bool(line))
            return
        if not self._asides:
            self._end_table()
        if line and 0 <= self._level < 6:
            line = f"{'#' * (self._level + 1)} {line}"
        self._lines += [*line.split("\n"), ""] * bool(line)

    def _plain_paragraph(self) -> None:
        self._in_table, self._level = False, -1

    def _end_cell(self) -> None:
        line = _whole(self._line).strip()
        self._cells.append(Cell(line.split("\n"), header=not self._rows))

    def _end_row(self) -> None:
        self._rows += [self._cells] * bool(self._cells)
        self._cells = []

    def _end_table(self) -> None:
        self._end_row()  # one that was cut off
        if self._rows:
            self._lines += [*table_lines(self._rows), ""]
            self._rows = []

    def _begin_aside(self, kind: str) -> None:
        self._set(replace(self._state, kind=kind))
        if not self._in_table and not self._asides:
            self._end_table()
        self._asides.append((kind, self._line, self._lines))
        self._line, self._lines = Phrase(), []

    def _end_aside(self) -> None:
        kind, line, lines = self._asides.pop()
        said = " ".join(" ".join([*self._lines, _whole(self._line)]).split())
        self._line, self._lines = line, lines
        if kind == "note" and said:
            self._notes.append(f"[^{len(self._notes) + 1}]: {said}")
            self._line.turn()
            self._line.put(f"[^{len(self._notes)}]")
        elif kind == "comment" and said:
            self._comments.append(f"- {said}")
        elif said:
            self._margins[kind].append(said)


def _label(found: re.Match[str]) -> str:
    """The mark of a list's item, which the file has as text."""
    return f"{found[1]} " if found[1] else "- "


def _whole(line: Phrase) -> str:
    """A line, halves of characters joined."""
    return line.whole().encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _look(**what: Any) -> Callable[[_Walk, int], None]:
    """How text stands from here on, as by default where the word has the number 0."""
    default = {name: getattr(_State(), name) for name in what}
    return lambda walk, number: walk._set(replace(walk._state, **(what if number else default)))


_ACTIONS: dict[str, Callable[[_Walk, int], None]] = {
    "par": lambda walk, _: walk._paragraph(),
    "sect": lambda walk, _: walk._paragraph(),
    "pard": lambda walk, _: walk._plain_paragraph(),
    "intbl": lambda walk, _: setattr(walk, "_in_table", True),
    "cell": lambda walk, _: walk._end_cell(),
    "row": lambda walk, _: walk._end_row(),
    "nestcell": lambda walk, _: walk._put("; "),
    "uc": lambda walk, number: walk._set(replace(walk._state, substitutes=max(0, number))),
    "ansicpg": lambda walk, number: walk._code_page(number),
    "mac": lambda walk, _: walk._code_page(10000),
    "f": lambda walk, number: walk._choose_font(number),
    "fcharset": lambda walk, number: walk._charset(number),
    "v": _look(hidden=True),
    **dict.fromkeys(("strike", "striked"), _look(struck=True)),
    **dict.fromkeys(("super", "up"), _look(shift="high")),
    **dict.fromkeys(("sub", "dn"), _look(shift="low")),
    "nosupersub": _look(shift=""),
    "plain": _look(shift="", struck=False, hidden=False),
    "outlinelevel": lambda walk, number: setattr(walk, "_level", number),
    "footnote": lambda walk, _: walk._begin_aside("note"),
    "annotation": lambda walk, _: walk._begin_aside("comment"),
}
