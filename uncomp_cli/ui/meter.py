"""One progress display: a bar on a terminal, a line every 10 seconds elsewhere, nothing with quiet."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from uncomp_cli.numerals import format_seconds
from uncomp_cli.ui.console import Terminal

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

__all__ = ["LINE_INTERVAL_S", "Meter", "Reading"]

LINE_INTERVAL_S = 10.0


@dataclass(frozen=True, slots=True)
class Reading:
    """How far the work is; `fraction` is None when the end is not known, `rate` is ready to print."""

    label: str
    fraction: float | None
    rate: str | None
    elapsed_s: float

    @property
    def eta_s(self) -> float | None:
        """Seconds left at the pace so far."""
        if not self.fraction or self.elapsed_s <= 0:
            return None
        return self.elapsed_s * (1 - self.fraction) / self.fraction

    @property
    def pace(self) -> str:
        """Rate and time left, as far as known."""
        left = None if self.eta_s is None else f"{format_seconds(self.eta_s)} left"
        return " · ".join(part for part in (self.rate, left) if part)

    @property
    def line(self) -> str:
        """`prefill 7,512 tok 40 % · 434 tok/s · 10.0 s left`."""
        percent = "" if self.fraction is None else f" {self.fraction:.0%}".replace("%", " %")
        pace = self.pace or format_seconds(self.elapsed_s)
        return f"{self.label}{percent} · {pace}"


class Meter:
    """Shows readings until closed; closing erases the bar and may be repeated."""

    def __init__(self, terminal: Terminal, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._terminal = terminal
        self._clock = clock
        self._line_s = clock()
        self._bar: tuple[Progress, TaskID] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def show(self, reading: Reading) -> None:
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

    def _draw(self, reading: Reading) -> None:
        progress, task = self._bar = self._bar or self._open()
        total = None if reading.fraction is None else 1.0
        completed = reading.fraction or 0.0
        progress.update(task, description=reading.label, total=total, completed=completed, pace=reading.pace)
        progress.start()

    def _open(self) -> "tuple[Progress, TaskID]":
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        progress = Progress(
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
