"""Documents into rows, in a process of its own: by `Asking`, the pipeline of `ask`, or what stands for it.

    {"schema_version": 1, "name": "a.pdf", "answers": [{…}, …]}                    as `ask --json` writes them
    {"schema_version": 1, "name": "b.pdf", "answers": [], "error": {"message": …, "hint": …}}

A row has an object for every question; where one of them has no answer, `error` says why. What kills a worker comes
back to the next: then the documents are answered one by one, and one that has ended `MOST_DEATHS` workers is a failure.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from uncomp_cli.asking.events import Done, Refused, drained
from uncomp_cli.asking.pipeline import ask, engine_for, settle
from uncomp_cli.asking.readout import failure_record
from uncomp_cli.asking.request import Request
from uncomp_cli.documents.collection import Document, DocumentSet
from uncomp_cli.documents.intake import Refusal
from uncomp_cli.errors import Failure, failure_of
from uncomp_cli.files import to_line
from uncomp_cli.kernels.library import share_heap

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.engine.engine import Engine
    from uncomp_cli.models.runnable import LoadedModel

SCHEMA_VERSION = 1
MOST_DEATHS = 3
_DEATHS = Failure(
    f"{MOST_DEATHS} workers that answered it ended", "ask it alone with uncomp ask: memory may not hold it", 1
)


class Line(NamedTuple):
    """A document's row as it is written, its name, and whether an answer is missing in it."""

    name: str
    data: bytes
    failed: bool


@dataclass(frozen=True, slots=True)
class Job:
    """A document that was read, or why it was not."""

    name: str
    document: Document | Refusal


class Work(Protocol):
    """What answers; `notes` are what is to be said of it once."""

    notes: tuple[str, ...]

    def answer(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """The row of every job, in their order."""


class Attempts:
    """How often documents were begun and have not ended; it outlives who answers."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    def begin(self, names: Sequence[str], *, again: bool = False) -> int:
        """How often one of them was begun before, at most; they are begun where none was, or `again`."""
        before = max((self._open[name] for name in names), default=0)
        if again or not before:
            self._open.update(names)
        return before

    def end(self, names: Sequence[str]) -> None:
        """They have ended."""
        for name in names:
            self._open.pop(name, None)


def answer_all(work: Work, jobs: Sequence[Job], ledger: Attempts) -> list[Line]:
    """The rows of jobs: all at once, or one by one where that has failed or ended a worker."""
    names = [job.name for job in jobs]
    if not ledger.begin(names):
        together = _together(work, jobs)
        ledger.end(names)
        if together is not None:
            return together
    lines = []
    for job in jobs:
        if ledger.begin([job.name], again=True) >= MOST_DEATHS:
            lines.append(_line(failed(job.name, _DEATHS)))  # and stays so, should this come back again
        else:
            lines.append(_alone(work, job))
            ledger.end([job.name])
    return lines


def _together(work: Work, jobs: Sequence[Job]) -> list[Line] | None:
    """The rows of all; None where one of them spoils it for the others."""
    try:
        return [_line(row) for row in work.answer(jobs)]
    except Exception:
        return None


def _alone(work: Work, job: Job) -> Line:
    try:
        (row,) = work.answer([job])
        return _line(row)
    except Exception as error:  # of one document: the others go on
        return _line(failed(job.name, failure_of(error)))


def _line(row: dict[str, Any]) -> Line:
    return Line(row["name"], to_line(row), "error" in row)


def failed(name: str, failure: Failure, answers: Sequence[dict[str, Any]] = ()) -> dict[str, Any]:
    """The row of a document that has no answer to a question, or to none."""
    error = {"message": failure.message, "hint": failure.hint, "exit_code": failure.exit_code}
    return {"schema_version": SCHEMA_VERSION, "name": name, "answers": list(answers), "error": error}


@dataclass(slots=True)
class Asking:
    """The pipeline of `ask --each` with one model, loaded; `--rope auto` chooses for each document by itself."""

    request: Request
    questions: Sequence[str]
    threads: int = 1
    notes: tuple[str, ...] = ()
    _loaded: "LoadedModel" = field(init=False)
    _preset: "Preset" = field(init=False)
    _engine: "Engine | None" = field(init=False)

    def __post_init__(self) -> None:
        import torch

        torch.set_num_threads(self.threads)
        share_heap()
        self.request = replace(self.request, each=True)
        told = list(self.notes)
        self._loaded, self._preset = drained(settle(self.request), told)
        self.notes = tuple(told)
        choice = self.request.model.rope_choice
        is_open = choice is not None and choice.kind == "auto"
        self._engine = None if is_open else self._engine_for(DocumentSet(()))

    def answer(self, jobs: Sequence[Job]) -> list[dict[str, Any]]:
        """The row of every job, in their order."""
        readable = [job.document for job in jobs if isinstance(job.document, Document)]
        outcomes = self._outcomes(readable)
        return [
            self._row(job.name, next(outcomes))
            if isinstance(job.document, Document)
            else failed(job.name, failure_of(job.document))
            for job in jobs
        ]

    def _outcomes(self, documents: Sequence[Document]) -> Iterator[list[Done | Refused]]:
        """Of each document what became of every question. Lengths that choose how a model reads are its own."""
        alone = self._engine is None or self._engine.decoder.regime_tokens is not None
        size = 1 if alone else max(1, len(documents))
        for begin in range(0, len(documents), size):
            found = DocumentSet(tuple(documents[begin : begin + size]))
            engine, told = self._engine or self._engine_for(found), list[tuple[int, Done | Refused]]()
            for event in ask(engine, found, self.questions, self._preset, self.request):
                if isinstance(event, Done):
                    told.append((event.turn.number, event))
                elif isinstance(event, Refused):
                    told += [(turn.number, event) for turn in event.turns]
                if told and len(told) == len(self.questions):  # of one document, which may come in another order
                    yield [event for _, event in sorted(told, key=itemgetter(0))]
                    told = []

    def _row(self, name: str, outcomes: Sequence[Done | Refused]) -> dict[str, Any]:
        answers, failures = list[dict[str, Any]](), list[Failure]()
        for question, outcome in zip(self.questions, outcomes, strict=True):
            if isinstance(outcome, Done):
                answers.append(outcome.record())
            else:
                failures.append(failure_of(outcome.error))
                answers.append(failure_record(question, failures[-1]))
        if failures:
            return failed(name, failures[0], answers if len(failures) < len(answers) else ())
        return {"schema_version": SCHEMA_VERSION, "name": name, "answers": answers}

    def _engine_for(self, documents: DocumentSet) -> "Engine":
        told = list(self.notes)
        engine = drained(engine_for(self._loaded, self.request, self._preset, documents, self.questions), told)
        self.notes = tuple(dict.fromkeys(told))
        return engine


Maker = Callable[[int], Work]
"""Makes what answers, with so many threads, in the process in which it answers."""
