"""Progress and the pace of answers, on standard error: a display of steps, and what drives a work and shows it.

On a terminal: a bar with rate and time left, gone before the answer begins; then the pace, in a line below the answer
that is gone whenever a piece of it is written. Elsewhere: one line every 10 seconds. With quiet: nothing. Standard
output is never touched.
"""

import threading
import time
import unicodedata
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from inspect import GEN_CLOSED, getgeneratorstate
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from uncomp_cli.asking.events import Event, Noted, Pace, Piece, Warned
from uncomp_cli.engine.records import DecodeStep, PrefillStep
from uncomp_cli.numerals import format_bytes, format_count, format_decimal, format_seconds
from uncomp_cli.steps import Progress, Working
from uncomp_cli.table import columns_of, shortened
from uncomp_cli.ui.console import Terminal, strip_controls
from uncomp_cli.ui.interrupts import HELD

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID
    from rich.text import Text


LINE_INTERVAL_S = 10.0
DECODE_INTERVAL_S = 0.1
_PER_CENT = 7  # columns of it and of the gaps
_EMOJI, _DISPUTED = "\U0001f000", ("Mn", "Me", "Mc", "Cf", "Co", "Cn")

Clock = Callable[[], float]
T = TypeVar("T")
Step = Working | Progress | Pace | PrefillStep | DecodeStep


@contextmanager
def loading(terminal: Terminal, text: str, far: Callable[[], str] = str) -> Iterator[None]:
    """Say at once what takes a while, and how far it is: a spinner that goes away, or a line now and every 10 s."""
    if terminal.quiet:
        yield
    elif terminal.animated:
        spinner = terminal.rich_console().status(_Told(text, far))
        try:
            with HELD:
                spinner.start()
            yield
        finally:
            with HELD:
                spinner.stop()
    else:
        with _lines_while(terminal, text, far):
            yield


@dataclass(frozen=True, slots=True)
class _Told:
    """What takes a while, with how far it is as often as it is drawn."""

    text: str
    far: Callable[[], str]

    def __rich__(self) -> "Text":
        from rich.text import Text

        return Text(strip_controls(f"{self.text} {self.far()}".rstrip(), single_line=True))


def _bar_columns(width: int) -> int:
    """How long a bar is on a terminal of this width, so that what stands beside it has room."""
    return min(40, max(4, width - 64))


def _beside_bar(reading: Progress, width: int) -> tuple[str, str]:
    """Label and pace, as many of their words and parts as there is room for."""
    room = width - _bar_columns(width) - _PER_CENT
    label = shortened(strip_controls(reading.label, single_line=True), room, between=" ")
    pace = shortened(strip_controls(reading.pace, single_line=True), room - columns_of(label))
    return label, pace if columns_of(label) + columns_of(pace) <= room else ""


class Display:
    """Shows how far the work is, whatever it is, until something else is to be said; closing may be repeated.

    Of what is waited for, of a bar and of the line with the pace (new ten times a second) one is drawn at a time. Where
    the answer is on a terminal too the pace stands below the place where it goes on.
    """

    def __init__(self, terminal: Terminal, *, clock: Clock = time.monotonic) -> None:
        self._terminal, self._clock = terminal, clock
        self._waiting = ExitStack()
        self._bar: tuple[Bar, TaskID] | None = None
        self._line_s = clock()
        self._shows_pace = terminal.animated and not (terminal.quiet or terminal.thinking)
        self._pace, self._pace_s, self._pace_is_drawn = "", 0.0, False
        self._column: int | None = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def show(self, step: Step) -> None:
        """What begins now and takes a while, or how far it is."""
        with HELD:
            if isinstance(step, Working):
                self.close()
                if step.at is not None:
                    self._waiting.enter_context(loading(self._terminal, step.at, step.far))
            elif isinstance(step, DecodeStep):
                self._show_pace(Pace(step.index + 1, step.elapsed_s, step.kv_bytes))
            elif isinstance(step, Pace):
                self._show_pace(step)
            else:
                self._show_progress(step.progress if isinstance(step, PrefillStep) else step)

    def close(self) -> None:
        """Erase what is drawn; steps may follow, from the beginning of a line."""
        with HELD:
            self._waiting.close()
            self._erase_bar()
            self._erase_pace()
        self._pace, self._column = "", 0
        self._line_s = self._clock()  # the next line comes when what follows has gone on for long

    def _show_progress(self, reading: Progress) -> None:
        self._waiting.close()
        self._erase_pace()
        self._pace = ""
        if self._terminal.animated and not self._terminal.quiet:
            bar, task = self._bar = self._bar or self._open_bar()
            total = None if reading.fraction is None else 1.0
            label, pace = _beside_bar(reading, self._terminal.width("stderr") or 80)
            bar.update(task, description=label, total=total, completed=reading.fraction or 0, pace=pace)
            bar.start()
        elif self._clock() - self._line_s >= LINE_INTERVAL_S:
            self._line_s = self._clock()
            self._terminal.note(reading.line)

    def _open_bar(self) -> "tuple[Bar, TaskID]":
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn
        from rich.progress import Progress as Bar

        bar = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=_bar_columns(self._terminal.width("stderr") or 80)),
            TaskProgressColumn(),
            TextColumn("{task.fields[pace]}", markup=False),
            console=self._terminal.rich_console(),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=True,
        )
        return bar, bar.add_task("", total=None, pace="")

    @contextmanager
    def aside(self, text: str) -> Iterator[None]:
        """While `text` of an answer is written on the same terminal no pace stands there; behind it, it does again."""
        if not self._terminal.stdout_is_terminal:
            yield
            return
        self._erase_pace()
        yield
        self._column = column_behind(strip_controls(text), self._column, self._terminal.columns)
        self._draw_pace()

    def _show_pace(self, pace: Pace) -> None:
        self._waiting.close()
        self._erase_bar()
        now_s = self._clock()
        if self._shows_pace and not (self._pace and now_s - self._pace_s < DECODE_INTERVAL_S):
            self._pace, self._pace_s = pace_line(pace), now_s
            self._draw_pace()

    def _draw_pace(self) -> None:
        """Draw it, unless the cursor may be at the right edge: it would come back in front of the last letter."""
        if self._pace and self._column is not None and self._column < self._terminal.columns:
            self._pace_is_drawn = True
            self._terminal.overwrite(self._pace, below=self._terminal.stdout_is_terminal)

    def _erase_bar(self) -> None:
        if self._bar is not None:
            self._bar[0].stop()
            self._bar = None

    def _erase_pace(self) -> None:
        if self._pace_is_drawn:
            self._terminal.overwrite("", below=self._terminal.stdout_is_terminal)
            self._pace_is_drawn = False


def column_behind(text: str, column: int | None, width: int) -> int | None:
    """Where the cursor of a terminal is behind `text`, from `column` on: at most `width`, where the next letter wraps.

    None, until the line ends, where terminals disagree: behind emoji, combining marks, what cannot be seen, and a tab
    at the right edge, which is on the last letter or behind it.
    """
    for letter in text:
        if letter == "\n":
            column = 0
        elif column is None or letter >= _EMOJI or unicodedata.category(letter) in _DISPUTED:
            column = None
        elif letter == "\t":
            column = min(width - 1, column - column % 8 + 8) if column < width else None
        else:
            size = columns_of(letter)
            column = column + size if column + size <= width else size
    return column


def pace_line(pace: Pace) -> str:
    """`14.2 tok/s · 31 tok · KV 8.1 MiB · 2 of 5 answered`."""
    speed = f"{format_decimal(pace.tokens / pace.elapsed_s)} tok/s · " if pace.elapsed_s > 0 else ""
    rows = f" · {format_count(pace.answered)} of {format_count(pace.rows)} answered" if pace.rows > 1 else ""
    return f"{speed}{format_count(pace.tokens)} tok · KV {format_bytes(pace.kv_bytes)}{rows}"


def show(
    steps: Generator[Any, None, T],
    terminal: Terminal,
    *,
    kept: Path | None = None,
    tell: Callable[[Event], None] = lambda event: None,
) -> T:
    """Show how far `steps` are and what they remark; returns what they return.

    `tell` is given what is neither; progress is erased before, but for pieces of an answer, which go elsewhere.
    Ctrl-C is the steps' own business wherever it comes, also while something is being told. When it ends them, what was
    done is said to be in the file `kept`.
    """
    display, pressed = Display(terminal), None
    try:
        while True:
            try:
                if pressed is not None:
                    display.close()
                step = next(steps) if pressed is None else steps.throw(pressed)
                pressed = None
                _tell(step, terminal, display, tell)
            except StopIteration as end:
                result: T = end.value
                return result
            except KeyboardInterrupt as interrupt:
                if getgeneratorstate(steps) == GEN_CLOSED:
                    raise
                pressed = interrupt
    except KeyboardInterrupt:
        display.close()
        if kept is not None and kept.exists():
            terminal.note(f"what was measured is in {kept}; the same command goes on from there")
        raise
    finally:
        display.close()
        steps.close()


def _tell(step: Step | Event, terminal: Terminal, display: Display, tell: Callable[[Event], None]) -> None:
    if isinstance(step, Step):
        display.show(step)
        return
    if isinstance(step, Piece):
        with display.aside(step.text):
            tell(step)
        return
    display.close()
    if isinstance(step, Noted):
        terminal.note(step.text)
    elif isinstance(step, Warned):
        terminal.warn(step.text, step.more)
    else:
        tell(step)


@contextmanager
def _lines_while(terminal: Terminal, text: str, far: Callable[[], str]) -> Iterator[None]:
    """`text` now, and again with how far it is and the time gone every 10 seconds until the block ends."""
    done = threading.Event()

    def tick() -> None:
        started_s = time.monotonic()
        while not done.wait(LINE_INTERVAL_S):
            gone = format_seconds(time.monotonic() - started_s)
            terminal.note(" ".join(filter(None, (text, far(), gone))))

    terminal.note(text)
    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
