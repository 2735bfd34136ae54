"""Long work in steps: generators that yield how far they are, and return what they were run for.

Nothing here prints: the command line, a notebook and a test take the same steps. Work that can be stopped and gone on
with is `resume`: each piece is kept before the next one is begun.
"""

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TypeVar

from uncomp_cli.numerals import format_bytes, format_count, format_seconds

T = TypeVar("T")
W = TypeVar("W")


@dataclass(frozen=True, slots=True)
class Progress:
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


@dataclass(frozen=True, slots=True)
class Working:
    """What begins now and takes a while; None when it is over. `far` says how far it is, "" while nobody knows."""

    at: str | None
    far: Callable[[], str] = str


@dataclass(frozen=True, slots=True)
class PullStep:
    """One report of a pull. `stage` is download, verify, convert or save; `done` and `total` are bytes."""

    stage: str
    done: int
    total: int | None


def pulled(steps: Iterable[PullStep]) -> Generator[Progress, None, None]:
    """How far a download is, each stage timed by itself."""
    begun_s, stage = time.monotonic(), ""
    for step in steps:
        if step.stage != stage:
            begun_s, stage = time.monotonic(), step.stage
        elapsed_s = time.monotonic() - begun_s
        if step.total is None:
            yield Progress(step.stage, None, None, elapsed_s)
            continue
        rate = f"{format_bytes(round(step.done / elapsed_s))}/s" if elapsed_s > 0 else None
        fraction = step.done / step.total if step.total else 1.0
        yield Progress(f"{step.stage} {format_bytes(step.total)}", fraction, rate, elapsed_s)


def resume(
    todo: Sequence[W],
    judge: Callable[[W], T],
    keep: Callable[[T], object],
    *,
    label: Callable[[W], str],
    cost: Callable[[W], float] = lambda work: 1.0,
    done: str = "done",
) -> Generator[Progress, None, None]:
    """Judge what is left to do, a piece at a time, and keep each; yields before each and once at the end.

    `todo` is what no earlier run has kept. A piece counts as its `cost` in the fraction of the work.
    """
    before = list(accumulate(map(cost, todo), initial=0.0))
    begun_s, total = time.perf_counter(), format_count(len(todo))
    for number, work in enumerate(todo):
        rate = f"{format_count(number)} of {total}"
        yield Progress(label(work), before[number] / (before[-1] or 1.0), rate, time.perf_counter() - begun_s)
        keep(judge(work))
    yield Progress(done, 1.0, f"{total} of {total}", time.perf_counter() - begun_s)


def finished(steps: Generator[object, None, T]) -> T:
    """What `steps` return, for whom its records are of no use."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
