"""The order of a benchmark: stock, A, B, stock, A, B, … so that a machine that slows down slows all arms alike.

run_bench(jobs, runs) → BenchStep…      one record about twice a second; returns the rounds, one list of
                                        measurements a round, in the order of the jobs
"""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

from uncomp_cli.bench.child import measure as measure_in_child
from uncomp_cli.bench.measurement import Job, Measurement

__all__ = ["BenchStep", "Measure", "Round", "run_bench"]

Measure = Callable[[Job], Generator[None, None, Measurement]]
Round = tuple[Measurement, ...]

_NEVER_QUITE = 0.95


@dataclass(frozen=True, slots=True)
class BenchStep:
    """Run `index` of `total` (from 0) is under way; seconds since the benchmark and since this run began."""

    index: int
    total: int
    label: str
    elapsed_s: float
    run_elapsed_s: float

    @property
    def fraction(self) -> float | None:
        """How much is done, this run judged by the mean of those before it; None during the first."""
        if self.index == 0:
            return None
        mean_s = (self.elapsed_s - self.run_elapsed_s) / self.index
        of_this_run = min(_NEVER_QUITE, self.run_elapsed_s / mean_s) if mean_s > 0 else 0.0
        return (self.index + of_this_run) / self.total


def run_bench(
    jobs: Sequence[Job],
    runs: int,
    *,
    measure: Measure = measure_in_child,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[BenchStep, None, list[Round]]:
    """Measure every job `runs` times, in turn."""
    begun_s, total = clock(), runs * len(jobs)
    rounds: list[Round] = []
    for turn in range(runs):
        measured: list[Measurement] = []
        for job in jobs:
            index, run_begun_s = turn * len(jobs) + len(measured), clock()
            yield BenchStep(index, total, job.label, run_begun_s - begun_s, 0.0)
            ticks = measure(job)
            try:
                while True:
                    next(ticks)
                    now_s = clock()
                    yield BenchStep(index, total, job.label, now_s - begun_s, now_s - run_begun_s)
            except StopIteration as end:
                measured.append(end.value)
            finally:
                ticks.close()
        rounds.append(tuple(measured))
    return rounds
