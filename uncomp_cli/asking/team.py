"""A team: the processes that answer one request together, each with a part of the model (models/ranks.py).

    yield from Team(request, documents, questions).led(answering)

This process is the first of them, and the only one that reads what the user gave, writes, and hears signals. The others
(follower.py) are children in sessions of their own: they get the documents as they were read here, do the same
silently, and end when this process does, however that is. All meet through a file in a private folder. A failure in any
of them ends all with one error, theirs where it came first. A signal ends them too, one that hangs as well: whoever
waits for another inside torch lets no Python handler run, so that a thread is told of signals beside.
"""

import json
import os
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event as Flag
from threading import Thread, current_thread, main_thread
from typing import Any

from uncomp_cli.asking.events import Event
from uncomp_cli.asking.request import Request
from uncomp_cli.asking.startup import during
from uncomp_cli.child import Child
from uncomp_cli.documents.collection import DocumentSet
from uncomp_cli.errors import DoesNotFitError, UncompError, UsageError

_PATIENCE_S = 2.0
"""How long a follower that broke off may take to say why."""
_GRACE_S = 1.0
"""How long after a signal this process may wait for the others before they are ended."""
_LOOK_S = 0.1
"""How often it is seen whether a follower is gone."""
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Order:
    """What process `number` is to do, with so many threads; the others are found through the file `meeting`."""

    number: int
    threads: int
    meeting: Path
    request: Request
    documents: DocumentSet
    questions: Sequence[str]


class Team:
    """Followers for one request; `led` starts and ends them."""

    def __init__(self, request: Request, documents: DocumentSet, questions: Sequence[str]) -> None:
        self._given: tuple[Any, ...] = request, documents, questions
        self._count = request.model.ranks
        self._folder: TemporaryDirectory[str] | None = None
        self._children: list[Child] = []
        self._failures: list[UncompError] = []
        self._failed, self._ending, self._signalled, self._threads = Flag(), Flag(), False, 0

    def led(self, answering: Iterator[Event]) -> Iterator[Event]:
        """What `answering` tells, while followers do the same."""
        with self._hearing_signals():
            try:
                yield from during(f"starting {self._count} processes", self._begin)
                yield from answering
                self._end(wait_s=0 if self._signalled else _PATIENCE_S)
            except Exception as error:
                raise self._first(error) from error
            finally:
                self._end()

    @contextmanager
    def _hearing_signals(self) -> Iterator[None]:
        """Within it followers are ended soon after a signal, wherever this process is then."""
        if current_thread() is not main_thread():  # signals are another's business
            yield
            return
        heard, told = os.pipe()
        os.set_blocking(told, False)
        before = signal.set_wakeup_fd(told, warn_on_full_buffer=False)
        Thread(target=self._hear_signals, args=(heard,), daemon=True).start()
        try:
            yield
        finally:
            signal.set_wakeup_fd(before)
            os.close(told)

    def _hear_signals(self, heard: int) -> None:
        """In a thread: end the followers when this process, which a signal should have interrupted, still waits."""
        while number := os.read(heard, 1):
            if number[0] in _ENDING:
                self._signalled = True
                if not self._ending.wait(_GRACE_S):
                    for child in self._children:
                        child.kill()
        os.close(heard)

    def _begin(self) -> None:
        import torch

        from uncomp_cli.models.ranks import environment_of, meet

        self._threads = torch.get_num_threads()
        own = max(1, self._threads // self._count)
        self._folder = TemporaryDirectory(prefix="uncomp-")
        meeting = Path(self._folder.name) / "meeting"
        for number in range(1, self._count):
            self._children.append(Child("uncomp_cli.asking.follower", environment_of(number)))
            self._children[-1].start()  # all begin at once: one that begins takes no long order
        for number, child in enumerate(self._children, start=1):
            child.send(pickle.dumps(Order(number, own, meeting, *self._given)))
        for number, child in enumerate(self._children, start=1):
            if not child.hear():
                raise self._gone(number, child.stop(wait_s=_PATIENCE_S))
            Thread(target=self._listen, args=(number, child), daemon=True).start()
        torch.set_num_threads(own)
        self._join(lambda: meet(0, self._count, meeting))

    def _join(self, meet: Callable[[], None]) -> None:
        """Meet the others, in a thread: who waits for one that is gone hears neither of that nor of a signal."""
        met, failures = Flag(), list[Exception]()

        def work() -> None:
            try:
                meet()
            except Exception as error:
                failures.append(error)
            met.set()

        Thread(target=work, daemon=True).start()
        while not met.wait(_LOOK_S):
            if self._failed.is_set():
                raise self._failures[0]
        if failures:
            raise failures[0]

    def _listen(self, number: int, child: Child) -> None:
        """Take down why a follower failed, or that it ended without a word before its time."""
        line, process = child.hear(), child.process
        if line:
            told = json.loads(line)
            error = UncompError(f"process {number + 1} of {self._count}: {told['message']}", hint=told["hint"])
            error.exit_code = told["exit_code"]
        elif process is not None and (code := process.wait()) and not self._ending.is_set():
            error = self._gone(number, code)
        else:
            return
        self._failures.append(error)
        self._failed.set()

    def _gone(self, number: int, code: int | None) -> UncompError:
        how = "" if code is None or code >= 0 else f" by {signal.Signals(-code).name}"
        message = f"process {number + 1} of {self._count} was ended{how}"
        return UncompError(message, hint="memory may have run out: use a smaller --budget, or fewer --ranks")

    def _first(self, error: Exception) -> Exception:
        """What went wrong first: here, or with a follower, whose end is seen here as a broken connection."""
        if isinstance(error, (UsageError, DoesNotFitError)):  # found by all alike
            return error
        self._failed.wait(_PATIENCE_S)
        return self._failures[0] if self._failures else error

    def _end(self, *, wait_s: float = 0) -> None:
        """End the followers, who may take so long to end by themselves; again, nothing happens."""
        from uncomp_cli.models.ranks import part

        self._ending.set()
        for child in self._children:
            child.stop(wait_s=wait_s)
        self._children = []
        if self._folder is not None:
            import torch

            part()
            torch.set_num_threads(self._threads)
            with suppress(OSError):
                self._folder.cleanup()
            self._folder = None
