"""A stock forward cannot pause in the middle; a thread turns it into a stream of records.

The work runs in a thread and hands out records; the caller pulls them from a generator whose return value is the
work's result. Closing the generator, or Ctrl-C while it waits, stops the work at its next record; the generator is
done with only when the work is, however often Ctrl-C comes.
"""

import time
from collections.abc import Callable, Generator
from queue import SimpleQueue
from threading import Event, Thread
from typing import TypeVar

_POLL_S = 0.002

Record = TypeVar("Record")
Result = TypeVar("Result")


class _CancelledError(Exception):
    """Raised inside the work when nobody waits for its records any more."""


def stream(work: Callable[[Callable[[Record], None]], Result]) -> Generator[Record, None, Result]:
    """Run `work(emit)` in a thread and yield what it emits; returns its result, raises its error."""
    queue: SimpleQueue[tuple[Record] | None] = SimpleQueue()  # None: no more
    cancelled = Event()
    results: list[Result] = []
    failures: list[BaseException] = []

    def emit(record: Record) -> None:
        if cancelled.is_set():
            raise _CancelledError
        queue.put((record,))

    def run() -> None:
        try:
            results.append(work(emit))
        except BaseException as error:
            failures.append(error)
        finally:
            queue.put(None)

    thread = Thread(target=run, name="uncomp-forward", daemon=True)
    try:
        thread.start()
        while (item := queue.get()) is not None:
            yield item[0]
    finally:
        cancelled.set()
        if thread.is_alive():  # not yet, when starting it was interrupted
            _wait_until(lambda: bool(results or failures))
            thread.join()
    if failures:
        raise failures[0]
    return results[0]


def _wait_until(ended: Callable[[], bool]) -> None:
    """Return when the work has ended; a Ctrl-C meanwhile is raised then.

    No join: one that Ctrl-C breaks off takes the thread for dead while it runs (CPython up to 3.12, bpo-45274).
    """
    interrupt: KeyboardInterrupt | None = None
    while not ended():
        try:
            time.sleep(_POLL_S)
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt
