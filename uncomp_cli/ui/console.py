"""Where text goes and how it may look: one object decides from the two streams.

Standard output carries the answer or the asked-for table, byte-clean when piped; everything else goes to standard
error. No escape is written to a stream that is not a terminal, nor with NO_COLOR, TERM=dumb or `--plain`. Our own
lines are broken between words where a terminal is narrow; an answer never is.

Text from models, documents, libraries and file names is data: it is never read as markup, and what could move the
cursor, retitle the window, fill the clipboard or turn the order of letters round is dropped by one cleaner
(`strip_controls`) before any stream. A line of ours stays one, so that no name in it can imitate another: who has
several says them one by one. Only an answer that goes into a pipe stays as it is, byte for byte.
"""

import csv
import io
import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TextIO

from uncomp_cli.table import Table, shortened, wrapped

if TYPE_CHECKING:
    from rich.console import Console


StreamName = Literal["stdout", "stderr"]
STDOUT = "standard output"
"""The name of what an error is about that could not be written there."""

_TEXT_KEPT = "\n\t"
_ENDS_OF_LINES = "\n\t\x0b\x0c\x85\u2028\u2029"  # what becomes a space where a text must be one line
_DROPPED = [
    *range(0x00, 0x20), *range(0x7F, 0xA0),  # C0, C1: escapes begin with them
    0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A),  # ends of lines; embeddings and overrides
]  # fmt: skip
_TEXT: dict[int, str | None] = {code: None for code in _DROPPED if chr(code) not in _TEXT_KEPT}
_LINE: dict[int, str | None] = {code: " " if chr(code) in _ENDS_OF_LINES else None for code in _DROPPED}
_SURROGATES = dict.fromkeys(range(0xD800, 0xE000), "\ufffd")  # bytes of a file's name that are no text
_JSON = {code: f"\\u{code:04x}" for code in [*_DROPPED, *range(0xD800, 0xE000)] if code >= 0x7F}

_RESET, _BOLD = "\x1b[0m", "\x1b[1m"
_STYLES = {"error": "\x1b[1;31m", "warning": "\x1b[33m", "hint": "\x1b[36m", "dim": "\x1b[2m"}
_ERASE_LINE = "\r\x1b[2K"
_ERASE_BELOW = "\x1b[J"
_BELOW, _BACK = f"\x1bD\x1b7{_ERASE_LINE}", "\x1b8\x1b[A"  # a line down (which may scroll), and back to the same place
_NARROWEST = 20


def strip_controls(text: str, *, single_line: bool = False) -> str:
    """`text` without what a terminal would obey; newline and tab stay, or become spaces when `single_line`."""
    return text.translate(_SURROGATES).translate(_LINE if single_line else _TEXT)


@dataclass(frozen=True, slots=True)
class Terminal:
    """The two output streams and what each may carry.

    `*_is_terminal` is about the device; `animated` says that standard error may be redrawn in place, `colour` that a
    stream which is a terminal may be coloured; `verbose` that a readout is long, `thinking` that a model's thoughts are
    shown, `debug` that a failure shows its traceback.
    """

    stdout: TextIO
    stderr: TextIO
    stdout_is_terminal: bool
    stderr_is_terminal: bool
    colour: bool
    animated: bool
    quiet: bool = False
    verbose: bool = False
    thinking: bool = False
    debug: bool = False

    @classmethod
    def detect(cls, *, plain: bool = False, no_color: bool = False, debug: bool = False) -> "Terminal":
        """Decide from the process's own streams and the environment."""
        dumb = plain or os.environ.get("TERM") == "dumb"
        return cls(
            stdout=sys.stdout,
            stderr=sys.stderr,
            stdout_is_terminal=sys.stdout.isatty(),
            stderr_is_terminal=sys.stderr.isatty(),
            colour=not (dumb or no_color or os.environ.get("NO_COLOR")),
            animated=sys.stderr.isatty() and not dumb,
            debug=debug,
        )

    def write_answer(self, text: str) -> None:
        """A piece of the answer, on standard output, at once."""
        self._put(strip_controls(text) if self.stdout_is_terminal else text)

    def write_thought(self, text: str) -> None:
        """A piece of what the model thinks, dimmed on standard error, where that is wanted."""
        if self.thinking:
            clean = strip_controls(text) if self.stderr_is_terminal else text
            coloured = self.colour and self.stderr_is_terminal
            with suppress(OSError):
                self.stderr.write(f"{_STYLES['dim']}{clean}{_RESET}" if coloured else clean)
                self.stderr.flush()

    def write_json(self, record: Mapping[str, object] | Sequence[object]) -> None:
        """One JSON value, on one line of standard output; what a terminal would obey is escaped in it."""
        self._put(json.dumps(record, ensure_ascii=False, allow_nan=False).translate(_JSON) + "\n")

    def write_line(self, text: str = "") -> None:
        """A line of the asked-for report, on standard output."""
        self._write_report(self._fitted(text, "stdout"))

    def write_heading(self, text: str) -> None:
        """What the answer below is to, on standard output: bold where there is colour."""
        line = strip_controls(text, single_line=True)
        coloured = self.colour and self.stdout_is_terminal
        self._put(f"{_BOLD}{line}{_RESET}\n" if coloured else f"{line}\n")

    def write_tables(self, tables: Sequence[Table], *, wide: bool = False) -> None:
        """Tables with their titles and notes, a blank line between them."""
        for number, table in enumerate(tables):
            if number:
                self.write_line()
            self.write_table(table, wide=wide)
            for note in table.notes:
                self.write_line(f"- {note}")

    def write_table(self, table: Table, *, wide: bool = False) -> None:
        """Title and aligned columns; on a terminal cells break between words, in a pipe and `wide` a row is one line.

        Nothing is cut off. The notes are left to the caller.
        """
        if table.title:
            self.write_line(table.title)
        columns, *rows = ([strip_controls(c, single_line=True) for c in row] for row in [table.columns, *table.rows])
        heads, lines = Table(columns, rows).lines(None if wide else self.width("stdout"))
        bold = self.colour and self.stdout_is_terminal
        self._write_report([f"{_BOLD}{head}{_RESET}" if bold else head for head in heads] + lines)

    def write_csv(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A table for a spreadsheet, on standard output."""
        text = io.StringIO()
        written = csv.writer(text, lineterminator="\n")
        for row in (columns, *rows):
            written.writerow(
                [strip_controls(cell, single_line=True) if isinstance(cell, str) else cell for cell in row]
            )
        self._put(text.getvalue())

    def note(self, text: str) -> None:
        """A remark for the user, on standard error, unless quiet."""
        if not self.quiet:
            self._write_message(text, style="dim")

    def warn(self, text: str, more: Iterable[str] = ()) -> None:
        """A warning, never silenced: what it says changes what the answer means. `more` of it only when verbose."""
        self._write_message(text, label="warning")
        for line in more if self.verbose else ():
            self._write_message(f"  {line}")

    def error(self, message: str, *, hint: str | None = None) -> None:
        """What was wrong, and below it what mends it: two lines."""
        self._write_message(message, label="error")
        if hint:
            self._write_message(hint, label="hint")

    def overwrite(self, text: str, *, below: bool = False) -> None:
        """Replace the last line of an animated standard error by as many parts of `text` as fit (nothing: erase it).

        `below`: the line under that of the cursor, which comes back; at the right edge it would lose its place.
        """
        if self.animated:
            room = min(self.width("stderr") or 80, self.columns) - 1
            line = shortened(strip_controls(text, single_line=True), room)[:room]
            if below:
                shown = f"{_STYLES['dim']}{line}{_RESET}" if self.colour else line
                self.stderr.write(f"{_BELOW}{shown}{_BACK}" if line else _ERASE_BELOW)
            else:
                self.stderr.write(_ERASE_LINE + line)
            self.stderr.flush()

    @property
    def columns(self) -> int:
        """Where the terminal behind standard error breaks lines, whatever COLUMNS says."""
        return _columns(self.stderr)

    def width(self, stream: StreamName) -> int | None:
        """The columns of a stream that is a terminal; None for any other, where no line is broken."""
        if not self._is_terminal(stream):
            return None
        named = os.environ.get("COLUMNS", "")
        return max(_NARROWEST, int(named) if named.isdecimal() and int(named) else _columns(getattr(self, stream)))

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
        shown = "\n".join(self._fitted(f"{label}: {text}" if label else text, "stderr"))
        if coloured and label:
            shown = f"{_STYLES[label]}{label}:{_RESET}{shown.removeprefix(f'{label}:')}"
        elif coloured and style:
            shown = f"{_STYLES[style]}{shown}{_RESET}"
        with suppress(OSError):  # nobody reads any more, or the terminal is gone
            self.stderr.write(shown + "\n")
            self.stderr.flush()

    def _fitted(self, text: str, stream: StreamName) -> list[str]:
        """A line of ours, clean, as lines that a terminal does not break."""
        clean, width = strip_controls(text, single_line=True), self.width(stream)
        indent = 2 if clean.startswith("- ") else len(clean) - len(clean.lstrip(" "))
        return [clean] if width is None else wrapped(clean, width, indent=" " * min(indent, width // 4))

    def _write_report(self, lines: Iterable[str]) -> None:
        self._put("".join(f"{line}\n" for line in lines))

    def _put(self, text: str) -> None:
        """Write to standard output, now; what goes wrong with it names it."""
        try:
            self.stdout.write(text)
            self.stdout.flush()
        except OSError as error:
            raise OSError(error.errno, error.strerror, STDOUT) from error


def _columns(stream: TextIO) -> int:
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80  # some terminals say 0
    except (OSError, ValueError):
        return 80
