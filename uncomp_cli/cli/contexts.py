"""Contexts of `uncomp ask`: what is read as one, and the questions that are asked of it.

With several questions one that does not fit is set apart: it is told in its turn, and the others are asked.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uncomp_cli.cli.asking import AskJob, build_prompt, describe_files, pins_in, places_of, warnings_of
from uncomp_cli.cli.citing import Trust, cite_asked
from uncomp_cli.cli.explain import Spent
from uncomp_cli.cli.pins import blame
from uncomp_cli.cli.report import budget_note, chunk_note, pin_note
from uncomp_cli.documents.places import Places
from uncomp_cli.documents.reader import DocumentSet
from uncomp_cli.errors import DoesNotFitError
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.live import watch_generation

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.documents.evidence import Evidence
    from uncomp_cli.engine.batch import BatchSession
    from uncomp_cli.engine.prompt import Prompt
    from uncomp_cli.engine.records import PrefillStep
    from uncomp_cli.engine.rows import Asked

__all__ = ["Context", "ContextReader", "Item", "Refused"]


@dataclass(frozen=True, slots=True)
class Context:
    """What was read as one, and how: reported with each of its answers."""

    name: str
    files: Sequence[dict[str, Any]]
    warnings: Sequence[str]
    spent: Callable[[], Spent]
    hidden_kept: Sequence[float]
    chunk_tokens: int | None
    later: bool
    places: Places
    trust: Trust


@dataclass(frozen=True, slots=True)
class Refused:
    """A question, by its number from 0, that was not asked, and why."""

    number: int
    error: DoesNotFitError


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One question of one context, waiting for its answer; what was refused is told before it, or after the last."""

    context: Context
    number: int
    asked: "Asked"
    before: tuple[Refused, ...] = ()
    after: tuple[Refused, ...] = ()
    is_last: bool = False


class ContextReader:
    """Reads contexts with a session and asks `questions` of each."""

    def __init__(
        self, job: AskJob, questions: Sequence[str], preset: "Preset", session: "BatchSession", terminal: Terminal
    ) -> None:
        self._job, self._questions, self._preset, self._terminal = job, questions, preset, terminal
        self._session = session
        self._loaded = session.loaded
        self._contexts_read = 0

    def read(self, documents: DocumentSet) -> list[Item]:
        """The questions of one context, read and waiting; raises DoesNotFitError when none of them fits."""
        numbers: Sequence[int] = range(len(self._questions))
        refused: list[Refused] = []
        try:
            prompt, cut, steps = self._begin(documents, numbers)
        except DoesNotFitError:
            refused = self._refused_alone(documents) if len(numbers) > 1 else []
            if not 0 < len(refused) < len(numbers):
                raise
            numbers = sorted({*numbers} - {each.number for each in refused})
            prompt, cut, steps = self._begin(documents, numbers)
        context = self._read(documents, prompt, cut, steps)
        return list(_items(context, numbers, self._session.asked(), refused))

    def cite(self, item: Item, answer: Sequence[int]) -> "list[Evidence]":
        """What an answer, its tokens without the one that ends it, looked at."""
        context = item.context
        return cite_asked(
            self._session.decoder,
            item.asked,
            answer,
            places=context.places,
            trust=context.trust,
            sinks=self._preset.scorer.sinks,
        )

    def _refused_alone(self, documents: DocumentSet) -> list[Refused]:
        """The questions that do not fit by themselves."""
        refused = []
        for number in range(len(self._questions)):
            try:
                self._begin(documents, [number])  # plans, and reads nothing
            except DoesNotFitError as error:
                refused.append(Refused(number, error))
        return refused

    def _begin(self, documents: DocumentSet, numbers: Sequence[int]) -> "tuple[Prompt, range, Iterator[PrefillStep]]":
        """The prompt, what was cut of it, and what reads it; DoesNotFitError names the pins that are too much."""
        questions, loaded = [self._questions[number] for number in numbers], self._loaded

        def build(job: AskJob) -> "tuple[Prompt, range]":
            return build_prompt(job, documents, questions, loaded.tokenizer, loaded.spec, self._preset)

        prompt, cut = build(self._job)
        try:
            return prompt, cut, self._session.read(prompt)
        except DoesNotFitError as error:
            pins, unpinned = pins_in(self._job, documents), build(self._job.without_pins())[0]
            raise blame(error, pins, prompt, unpinned, plan=self._session.read) from error

    def _read(self, documents: DocumentSet, prompt: "Prompt", cut: range, steps: "Iterator[PrefillStep]") -> Context:
        job, loaded = self._job, self._loaded
        where = f"{documents.documents[0].path}: " if job.each else ""
        warnings = warnings_of(job, prompt, cut, loaded)
        for warning in warnings:
            self._terminal.warn(where + warning)
        places = places_of(documents, prompt)
        warnings += self._tell_plan(where)
        for line in pin_note(pins_in(job, documents), places):
            self._terminal.note(where + line)
        for _ in watch_generation(steps, self._terminal):
            pass
        session = self._session
        self._contexts_read += 1
        return Context(
            name=documents.documents[0].path,
            files=describe_files(documents, loaded.tokenizer, cut) if job.as_json else [],
            warnings=warnings,
            spent=self._spent(),
            hidden_kept=session.hidden_kept,
            chunk_tokens=None if session.compression is None else session.compression.chunk_tokens,
            later=self._contexts_read > 1,
            places=places,
            trust=None if session.allocation is None else session.allocation.trust(),
        )

    def _tell_plan(self, where: str) -> list[str]:
        """Say what is kept and how the context is read; returns what is not done as asked for."""
        terminal, planned = self._terminal, self._session.compression
        if planned is None:
            return []
        for note in planned.notes:
            terminal.warn(where + note)
        plan, opened = planned.allocation.plan, planned.prompt
        spec, question_tokens = self._loaded.spec, opened.longest_question
        terminal.note(where + budget_note(self._preset, plan, spec, question_tokens=question_tokens))
        if planned.chunk_tokens is not None:
            cap = self._job.limits.kv_bytes
            terminal.note(where + chunk_note(planned.chunk_tokens, len(opened.context), kv_mem=cap))
        return list(planned.notes)

    def _spent(self) -> Callable[[], Spent]:
        """What was planned, measured and allocated: of a context that others follow as it is now, else at the end."""

        def measure() -> Spent:
            session = self._session
            if session.plan is None:
                raise RuntimeError("nothing has been read")
            return Spent(session.plan, self._loaded.spec, session.layer_bytes(), session.uncertainty, session.measured)

        if not self._job.each:
            return measure
        measured = measure()
        return lambda: measured


def _items(
    context: Context, numbers: Sequence[int], asked: "Sequence[Asked]", refused: Sequence[Refused]
) -> Iterator[Item]:
    """An item for every question that was asked; each has what was refused between it and the one before."""
    previous, last = -1, numbers[-1]
    for number, one in zip(numbers, asked, strict=True):
        before = tuple(each for each in refused if previous < each.number < number)
        after = tuple(each for each in refused if each.number > last) if number == last else ()
        yield Item(context, number, one, before, after, is_last=number == last)
        previous = number
