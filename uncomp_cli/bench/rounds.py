"""The order of a benchmark: stock, A, B, stock, A, B, … so that a machine that slows down slows all arms alike.

run_bench(jobs, runs) → Progress…       one record about twice a second; returns the rounds, one list of
                                        measurements a round, in the order of the jobs
"""

import time
from collections.abc import Callable, Generator, Sequence

from uncomp_cli.bench.child import measure as measure_in_child
from uncomp_cli.bench.measurement import Job, Measurement
from uncomp_cli.steps import Progress

__all__ = ["Measure", "Round", "run_bench"]

Measure = Callable[[Job], Generator[None, None, Measurement]]
Round = tuple[Measurement, ...]

_NEVER_QUITE = 0.95


def run_bench(
    jobs: Sequence[Job],
    runs: int,
    *,
    measure: Measure = measure_in_child,
    clock: Callable[[], float] = time.monotonic,
) -> Generator[Progress, None, list[Round]]:
    """Measure every job `runs` times, in turn."""
    begun_s, total = clock(), runs * len(jobs)
    rounds: list[Round] = []
    for turn in range(runs):
        measured: list[Measurement] = []
        for job in jobs:
            index, run_begun_s = turn * len(jobs) + len(measured), clock()
            label = f"run {index + 1} of {total}: {job.label}"
            yield _progress(label, index, total, elapsed_s=run_begun_s - begun_s, run_s=0.0)
            ticks = measure(job)
            try:
                while True:
                    next(ticks)
                    now_s = clock()
                    yield _progress(label, index, total, elapsed_s=now_s - begun_s, run_s=now_s - run_begun_s)
            except StopIteration as end:
                measured.append(end.value)
            finally:
                ticks.close()
        rounds.append(tuple(measured))
    return rounds


def _progress(label: str, index: int, total: int, *, elapsed_s: float, run_s: float) -> Progress:
    """Run `index` of `total` (from 0) is under way, for `run_s`, judged by the mean of those before it."""
    if index == 0:
        return Progress(label, None, None, elapsed_s)
    mean_s = (elapsed_s - run_s) / index
    of_this_run = min(_NEVER_QUITE, run_s / mean_s) if mean_s > 0 else 0.0
    return Progress(label, (index + of_this_run) / total, None, elapsed_s)
