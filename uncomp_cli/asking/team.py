"""A team: the processes that answer one request together, each with a part of the model (models/ranks.py).

    yield from Team(request, documents, questions).led(answering)

This process is the first of them, and the only one that reads what the user gave, writes, and hears signals. The others
(follower.py) are children in sessions of their own: they get the documents as they were read here, do the same
silently, and end when this process does, however that is. All meet through a file in a private folder. A failure in any
of them ends all with one error, theirs where it came first.
"""

import json
import pickle
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event as Flag
from threading import Thread
from typing import Any

from uncomp_cli.asking.events import Event
from uncomp_cli.asking.request import Request
from uncomp_cli.asking.startup import during
from uncomp_cli.child import Child
from uncomp_cli.documents.collection import DocumentSet
from uncomp_cli.errors import DoesNotFitError, UncompError, UsageError

_PATIENCE_S = 2.0
"""How long a follower that broke off may take to say why."""


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
        self._failed, self._ending, self._threads = Flag(), False, 0

    def led(self, answering: Iterator[Event]) -> Iterator[Event]:
        """What `answering` tells, while followers do the same."""
        try:
            yield from during(f"starting {self._count} processes", self._begin)
            yield from answering
            self._end(wait_s=_PATIENCE_S)
        except Exception as error:
            raise self._first(error) from error
        finally:
            self._end()

    def _begin(self) -> None:
        import torch

        from uncomp_cli.models.ranks import environment_of, meet

        self._threads = torch.get_num_threads()
        own = max(1, self._threads // self._count)
        self._folder = TemporaryDirectory(prefix="uncomp-")
        meeting = Path(self._folder.name) / "meeting"
        for number in range(1, self._count):
            child = Child("uncomp_cli.asking.follower", environment_of(number))
            self._children.append(child)
            child.send(pickle.dumps(Order(number, own, meeting, *self._given)))
        for number, child in enumerate(self._children, start=1):
            if not child.hear():
                raise self._gone(number, child.stop(wait_s=_PATIENCE_S))
            Thread(target=self._listen, args=(number, child), daemon=True).start()
        torch.set_num_threads(own)
        meet(0, self._count, meeting)

    def _listen(self, number: int, child: Child) -> None:
        """Take down why a follower failed, or that it ended without a word before its time."""
        line, process = child.hear(), child.process
        if line:
            told = json.loads(line)
            error = UncompError(f"process {number + 1} of {self._count}: {told['message']}", hint=told["hint"])
            error.exit_code = told["exit_code"]
        elif process is not None and (code := process.wait()) and not self._ending:
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

        self._ending = True
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
