"""Answers that are written side by side, shown one after another.

Of the first answer that is not complete every piece is shown as it comes; what the others have so far waits until all
before them are complete.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from uncomp_cli.ui.console import Terminal

if TYPE_CHECKING:
    from uncomp_cli.engine.context.session import RunStats

__all__ = ["InOrder"]


class InOrder:
    """Writes the answers of `count` rows to standard output, in order, unless `silent`.

    `begin(row)` is called before a row's first piece, `end(row, answer, stats)` behind its last.
    """

    def __init__(
        self,
        count: int,
        terminal: Terminal,
        *,
        begin: Callable[[int], None],
        end: "Callable[[int, str, RunStats], None]",
        silent: bool,
    ) -> None:
        self._terminal, self._begin, self._end, self._silent = terminal, begin, end, silent
        self._pieces: list[list[str]] = [[] for _ in range(count)]
        self._stats: list[RunStats | None] = [None] * count
        self._shown = 0
        self._begun = self._closed = False
        self.row = 0

    def add(self, row: int, text: str) -> None:
        """A row's next piece."""
        self._pieces[row].append(text)
        if row == self.row:
            self._show()

    def finish(self, row: int, stats: "RunStats") -> None:
        """A row has ended; shows it, and those behind it that have ended before, when its turn has come.

        May be repeated after a Ctrl-C in the middle of it: what was written is not written again.
        """
        self._stats[row] = stats
        while self.row < len(self._stats):
            latest = self._stats[self.row]
            if latest is None:
                if self._pieces[self.row]:
                    self._show()
                return
            if not self._closed:
                self._show()
                self.close()
            self._end(self.row, "".join(self._pieces[self.row]), latest)
            self._shown, self._begun, self._closed = 0, False, False
            self.row += 1

    def close(self) -> None:
        """End the line of the answer that is shown."""
        if self._begun and not self._closed and not self._silent:
            self._terminal.write_line()
        self._closed = self._begun

    def _show(self) -> None:
        """Write what has come since the latest piece that was shown."""
        if not self._begun:
            self._begun = True
            self._begin(self.row)
        for text in self._pieces[self.row][self._shown :]:
            self._shown += 1
            if not self._silent:
                self._terminal.write_answer(text)
