"""What a terminal shows in the end of what was written to it."""

import re

from uncomp_cli.table import columns_of

ESCAPE = "\x1b"
_PIECES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\x1b[D78]|[\s\S]")
_CONTINUED = "\0"
"""Behind a letter that takes two columns."""


def screen(text: str, *, columns: int = 10**6, rows: int = 10**6) -> str:
    """What stays visible, and what was scrolled away above it."""
    shown = Screen(columns, rows)
    shown.feed(text)
    return shown.text.strip()


class Screen:
    """A terminal of so many columns and rows, and its memory: what our moves do, as xterm does it.

    Behind a letter in the last column the cursor stays on it until the next one comes; moves and erasing forget that.
    """

    def __init__(self, columns: int, rows: int) -> None:
        self.columns, self.rows = columns, rows
        self.lines: list[list[str]] = [[]]
        self.row, self.column, self.saved = 0, 0, (0, 0)

    @property
    def text(self) -> str:
        """All lines, without spaces at their ends."""
        return "\n".join("".join(line).replace(_CONTINUED, "").rstrip() for line in self.lines)

    @property
    def top(self) -> int:
        """The first line that is in sight."""
        return max(0, len(self.lines) - self.rows)

    def feed(self, text: str) -> None:
        """Obey and show."""
        for piece in _PIECES.findall(text):
            if piece == "\r":
                self.column = 0
            elif piece == "\n":
                self._down()
                self.column = 0
            elif piece == "\t":
                self.column = min(self.columns - 1, self.column // 8 * 8 + 8)
            elif not piece.startswith(ESCAPE):
                self._put(piece)
            elif not piece.endswith(("m", "h", "l")):
                self._obey(piece)

    def _obey(self, escape: str) -> None:
        self.column = min(self.column, self.columns - 1)
        if escape == "\x1bD":
            self._down()
        elif escape == "\x1b7":
            self.saved = self.row - self.top, self.column
        elif escape == "\x1b8":
            self.row, self.column = self.saved[0] + self.top, self.saved[1]
        elif escape in ("\x1b[1A", "\x1b[A"):
            self.row = max(self.top, self.row - 1)
        elif escape == "\x1b[2K":
            self.lines[self.row] = []
        elif escape == "\x1b[J":
            self.lines[self.row] = self.lines[self.row][: self.column]
            self.lines[self.row + 1 :] = [[] for _ in self.lines[self.row + 1 :]]

    def _down(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append([])

    def _put(self, letter: str) -> None:
        size = columns_of(letter)
        if self.column + size > self.columns:
            self._down()
            self.column = 0
        line = self.lines[self.row]
        line += [" "] * (self.column + size - len(line))
        line[self.column : self.column + size] = [letter, _CONTINUED][:size]
        self.column += size
