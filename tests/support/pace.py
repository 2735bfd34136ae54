"""Limits of time that hold on slow and on busy machines: the processor's seconds, and more of them where it is slow."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

USUAL_S = 0.05  # what the loop below takes on the machines that the limits were set on


@contextmanager
def swift(limit_s: float) -> Iterator[None]:
    """What stands in it takes this process at most so many seconds of work; waiting and children are not counted."""
    begun_s = time.process_time()
    yield
    took_s = time.process_time() - begun_s
    assert took_s < limit_s or took_s < limit_s * _slowness(), f"{took_s:.2f} s of work, {limit_s} allowed"


def _slowness() -> float:
    begun_s = time.process_time()
    for _ in range(1_000_000):
        pass
    return max(1.0, (time.process_time() - begun_s) / USUAL_S)
