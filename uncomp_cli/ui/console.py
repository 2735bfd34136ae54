"""Where text goes and how it may look: one object decides from the two streams.

Standard output carries the answer or the asked-for table, byte-clean when piped; everything else goes to standard
error. No escape is written to a stream that is not a terminal, nor with NO_COLOR, TERM=dumb or `--plain`. Text from
models, documents and file names is data: it is never read as markup, and control characters in it are dropped on a
terminal (they could move the cursor or retitle the window).
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TextIO

from uncomp_cli.table import Table

if TYPE_CHECKING:
    from rich.console import Console


StreamName = Literal["stdout", "stderr"]

_CONTROLS = dict.fromkeys([*range(0x00, 0x20), *range(0x7F, 0xA0)])
_KEPT_CONTROLS = (ord("\n"), ord("\t"))
_TEXT_CONTROLS = {code: None for code in _CONTROLS if code not in _KEPT_CONTROLS}
_LINE_CONTROLS: dict[int, str | None] = {code: " " if code in _KEPT_CONTROLS else None for code in _CONTROLS}

_RESET = "\x1b[0m"
_STYLES = {"error": "\x1b[1;31m", "warning": "\x1b[33m", "hint": "\x1b[36m", "dim": "\x1b[2m"}
_ERASE_LINE = "\r\x1b[2K"


def strip_controls(text: str, *, single_line: bool = False) -> str:
    """`text` without control characters; newline and tab stay, or become spaces when `single_line`."""
    return text.translate(_LINE_CONTROLS if single_line else _TEXT_CONTROLS)


@dataclass(frozen=True, slots=True)
class Terminal:
    """The two output streams and what each may carry.

    `*_is_terminal` is about the device; `animated` says that standard error may be redrawn in place, `colour` that a
    stream which is a terminal may be coloured; `debug` that a failure shows its traceback.
    """

    stdout: TextIO
    stderr: TextIO
    stdout_is_terminal: bool
    stderr_is_terminal: bool
    colour: bool
    animated: bool
    quiet: bool = False
    debug: bool = False

    @classmethod
    def detect(
        cls,
        *,
        plain: bool = False,
        no_color: bool = False,
        debug: bool = False,
        environ: Mapping[str, str] | None = None,
    ) -> "Terminal":
        """Decide from the process's own streams and the environment."""
        env = os.environ if environ is None else environ
        dumb = plain or env.get("TERM") == "dumb"
        return cls(
            stdout=sys.stdout,
            stderr=sys.stderr,
            stdout_is_terminal=sys.stdout.isatty(),
            stderr_is_terminal=sys.stderr.isatty(),
            colour=not (dumb or no_color or env.get("NO_COLOR")),
            animated=sys.stderr.isatty() and not dumb,
            debug=debug,
        )

    def write_answer(self, text: str) -> None:
        """A piece of the answer, on standard output, at once."""
        self.stdout.write(strip_controls(text) if self.stdout_is_terminal else text)
        self.stdout.flush()

    def write_json(self, record: Mapping[str, object] | Sequence[object]) -> None:
        """One JSON value, on one line of standard output."""
        self.stdout.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        self.stdout.flush()

    def write_line(self, text: str = "") -> None:
        """A line of the asked-for report, on standard output."""
        self.write_answer(text + "\n")

    def write_tables(self, tables: Sequence[Table]) -> None:
        """Tables with their titles and notes, a blank line between them."""
        for number, table in enumerate(tables):
            if number:
                self.write_line()
            self.write_table(table)
            for note in table.notes:
                self.write_line(f"- {note}")

    def write_table(self, table: Table) -> None:
        """Title and aligned columns; on a terminal long cells wrap, in a pipe every row is one line.

        Nothing is cut off. The notes are left to the caller.
        """
        if table.title:
            self.write_line(table.title)
        cells = [[strip_controls(cell, single_line=True) for cell in row] for row in table.rows]
        if self.stdout_is_terminal:
            self._print_rich_table(table.columns, cells)
            return
        widths = [max(map(len, column)) for column in zip(table.columns, *cells, strict=True)]
        lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in [table.columns, *cells])
        self.stdout.write("\n".join(lines) + "\n")
        self.stdout.flush()

    def note(self, text: str) -> None:
        """A remark for the user, on standard error, unless quiet."""
        if not self.quiet:
            self._write_message(text, style="dim")

    def warn(self, text: str) -> None:
        """A warning; it is never silenced, because what it says changes what the answer means."""
        self._write_message(text, label="warning")

    def error(self, message: str, *, hint: str | None = None) -> None:
        """What was wrong, and below it what mends it: two lines."""
        self._write_message(strip_controls(message, single_line=True), label="error")
        if hint:
            self._write_message(strip_controls(hint, single_line=True), label="hint")

    def overwrite(self, text: str) -> None:
        """Replace the last line of an animated standard error by `text` (nothing: erase it)."""
        if self.animated:
            width = max(20, _columns(self.stderr) - 1)
            self.stderr.write(_ERASE_LINE + strip_controls(text, single_line=True)[:width])
            self.stderr.flush()

    def rich_console(self, stream: StreamName = "stderr") -> "Console":
        """A rich console on one of the streams, for tables and progress; it interprets no markup."""
        from rich.console import Console

        is_terminal = self._is_terminal(stream)
        return Console(
            file=getattr(self, stream),
            force_terminal=is_terminal and (stream == "stdout" or self.animated),
            color_system="auto" if self.colour and is_terminal else None,
            markup=False,
            emoji=False,
            highlight=False,
        )

    def _is_terminal(self, stream: StreamName) -> bool:
        return self.stdout_is_terminal if stream == "stdout" else self.stderr_is_terminal

    def _write_message(self, text: str, *, label: str | None = None, style: str | None = None) -> None:
        coloured = self.colour and self.stderr_is_terminal
        clean = strip_controls(text) if self.stderr_is_terminal else text
        if label:
            head = f"{_STYLES[label]}{label}:{_RESET}" if coloured else f"{label}:"
            clean = f"{head} {clean}"
        elif style and coloured:
            clean = f"{_STYLES[style]}{clean}{_RESET}"
        with suppress(BrokenPipeError):
            self.stderr.write(clean + "\n")
            self.stderr.flush()

    def _print_rich_table(self, columns: Sequence[str], cells: list[list[str]]) -> None:
        from rich.table import Table as Grid
        from rich.text import Text

        grid = Grid(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
        for column in columns:
            grid.add_column(Text(column), overflow="fold")
        for row in cells:
            grid.add_row(*map(Text, row))
        self.rich_console("stdout").print(grid)


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80  # some terminals say 0
    except (OSError, ValueError):
        return 80
