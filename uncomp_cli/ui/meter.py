"""Progress and the pace of answers, on standard error: a display of steps, and what drives a work and shows it.

On a terminal: a bar with rate and time left, gone before the answer begins. Elsewhere: one line every 10 seconds.
With quiet: nothing. Standard output is never touched.
"""

import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from inspect import GEN_CLOSED, getgeneratorstate
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from uncomp_cli.asking.events import Event, Noted, Pace, Piece, Warned, Working
from uncomp_cli.engine.records import DecodeStep, PrefillStep
from uncomp_cli.numerals import format_bytes, format_count, format_decimal, format_seconds
from uncomp_cli.steps import Progress
from uncomp_cli.ui.console import Terminal

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID


LINE_INTERVAL_S = 10.0
DECODE_INTERVAL_S = 0.1

Clock = Callable[[], float]
T = TypeVar("T")


class Meter:
    """Shows readings until closed; closing erases the bar and may be repeated."""

    def __init__(self, terminal: Terminal, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._terminal = terminal
        self._clock = clock
        self._line_s = clock()
        self._bar: tuple[Bar, TaskID] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def show(self, reading: Progress) -> None:
        """Take the newest reading."""
        if self._terminal.quiet:
            return
        if self._terminal.animated:
            self._draw(reading)
        elif self._clock() - self._line_s >= LINE_INTERVAL_S:
            self._line_s = self._clock()
            self._terminal.note(reading.line)

    def close(self) -> None:
        """Erase the bar."""
        if self._bar is not None:
            self._bar[0].stop()
            self._bar = None

    def _draw(self, reading: Progress) -> None:
        progress, task = self._bar = self._bar or self._open()
        total = None if reading.fraction is None else 1.0
        completed = reading.fraction or 0.0
        progress.update(task, description=reading.label, total=total, completed=completed, pace=reading.pace)
        progress.start()

    def _open(self) -> "tuple[Bar, TaskID]":
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn
        from rich.progress import Progress as Bar

        progress = Bar(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[pace]}", markup=False),
            console=self._terminal.rich_console(),
            transient=True,
            redirect_stdout=False,
            redirect_stderr=True,
        )
        return progress, progress.add_task("", total=None, pace="")


@contextmanager
def loading(terminal: Terminal, text: str) -> Iterator[None]:
    """Say at once what takes a while: a spinner that goes away, or a line now and one every 10 seconds."""
    if terminal.quiet:
        yield
    elif terminal.animated:
        from rich.text import Text

        with terminal.rich_console().status(Text(text)):
            yield
    else:
        with _lines_while(terminal, text):
            yield


class Display:
    """Shows how far the work is, whatever it is, until something else is to be said."""

    def __init__(self, terminal: Terminal, *, clock: Clock = time.monotonic) -> None:
        self._terminal, self._clock = terminal, clock
        self._waiting = ExitStack()
        self._meter = Meter(terminal, clock=clock)
        self._pace = _PaceLine(terminal, clock=clock)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def show(self, step: Working | Progress | Pace | PrefillStep | DecodeStep) -> None:
        """What begins now and takes a while, or how far it is."""
        if isinstance(step, PrefillStep):
            step = step.progress
        elif isinstance(step, DecodeStep):
            step = Pace(step.index + 1, step.elapsed_s, step.kv_bytes)
        if isinstance(step, Working):
            self.close()
            if step.at is not None:
                self._waiting.enter_context(loading(self._terminal, step.at))
        elif isinstance(step, Pace):
            self._waiting.close()
            self._meter.close()
            self._pace.show(step)
        else:
            self._waiting.close()
            self._pace.close()
            self._meter.show(step)

    def close(self) -> None:
        """Erase what is drawn; steps may follow."""
        self._waiting.close()
        self._meter.close()
        self._pace.close()
        self._meter = Meter(self._terminal, clock=self._clock)  # whose first line comes when it has gone on for long


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


def _tell(
    step: Progress | PrefillStep | DecodeStep | Event,
    terminal: Terminal,
    display: Display,
    tell: Callable[[Event], None],
) -> None:
    if isinstance(step, (Working, Progress, Pace, PrefillStep, DecodeStep)):
        display.show(step)
        return
    if not isinstance(step, Piece):
        display.close()
    if isinstance(step, Noted):
        terminal.note(step.text)
    elif isinstance(step, Warned):
        terminal.warn(step.text)
    else:
        tell(step)


class _PaceLine:
    """The line that shows the pace while the answer goes to a file or a pipe; redrawn ten times a second."""

    def __init__(self, terminal: Terminal, *, clock: Clock) -> None:
        self._terminal = terminal
        self._clock = clock
        self._enabled = terminal.animated and not terminal.stdout_is_terminal and not terminal.quiet
        self._drawn_s: float | None = None

    def show(self, pace: Pace) -> None:
        now_s = self._clock()
        if not self._enabled or (self._drawn_s is not None and now_s - self._drawn_s < DECODE_INTERVAL_S):
            return
        speed = f"decode {format_decimal(pace.tokens / pace.elapsed_s)} tok/s · " if pace.elapsed_s > 0 else ""
        value = pace.entropy()
        unsure = "" if value is None else f" · entropy {value:.2f}"
        rows = f" · {format_count(pace.answered)} of {format_count(pace.rows)} answered" if pace.rows > 1 else ""
        tokens, held = f"{format_count(pace.tokens)} tok", f"KV {format_bytes(pace.kv_bytes)}"
        self._terminal.overwrite(f"{speed}{tokens} · {held}{unsure}{rows}")
        self._drawn_s = now_s

    def close(self) -> None:
        if self._drawn_s is not None:
            self._terminal.overwrite("")
            self._drawn_s = None


@contextmanager
def _lines_while(terminal: Terminal, text: str) -> Iterator[None]:
    """`text` now, and again with the time gone every 10 seconds until the block ends."""
    done = threading.Event()

    def tick() -> None:
        started_s = time.monotonic()
        while not done.wait(LINE_INTERVAL_S):
            terminal.note(f"{text} {format_seconds(time.monotonic() - started_s)}")

    terminal.note(text)
    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
