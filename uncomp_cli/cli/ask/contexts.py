"""Contexts of `uncomp ask`: what is read as one, and the questions that are asked of it.

With several questions one that does not fit is set apart: it is told in its turn, and the others are asked.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from uncomp_cli.asking.account import Spent
from uncomp_cli.asking.material import blame, build_prompt, describe_files, pins_in, places_of
from uncomp_cli.asking.readout import Trust, budget_note, chunk_note, cite_asked, pin_note
from uncomp_cli.asking.request import Request
from uncomp_cli.cli.ask.asking import warnings_of
from uncomp_cli.documents.collection import DocumentSet
from uncomp_cli.documents.places import Places
from uncomp_cli.errors import DoesNotFitError
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.meter import watch_generation

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.documents.evidence import Evidence
    from uncomp_cli.engine.records import PrefillStep
    from uncomp_cli.engine.tokens.prompt import Prompt
    from uncomp_cli.engine.write.batch import BatchSession
    from uncomp_cli.engine.write.rows import Asked

__all__ = ["Context", "ContextReader", "Item", "Refused"]


@dataclass(frozen=True, slots=True)
class Context:
    """What was read as one, and how: reported with each of its answers."""

    documents: DocumentSet
    files: Sequence[dict[str, Any]]
    warnings: Sequence[str]
    spent: Callable[[], Spent]
    hidden_kept: Sequence[float]
    chunk_tokens: int | None
    reread_tokens: int | None
    later: bool
    places: Places
    trust: Trust

    @property
    def name(self) -> str:
        """The path of the first document."""
        return self.documents.documents[0].path


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
    """Reads contexts with a session and asks `questions` of each.

    What is `again` read was read before, with another budget: what there is to say of it has been said.
    """

    def __init__(
        self,
        job: Request,
        questions: Sequence[str],
        preset: "Preset",
        session: "BatchSession",
        terminal: Terminal,
        *,
        again: bool = False,
    ) -> None:
        self._job, self._questions, self._preset, self._terminal = job, questions, preset, terminal
        self._session, self._again = session, again
        self._loaded = session.loaded
        self._contexts_read = int(again)

    def read(self, documents: DocumentSet, numbers: Sequence[int] | None = None) -> list[Item]:
        """The questions of one context, or those of `numbers`, read and waiting.

        Raises DoesNotFitError when none of them fits.
        """
        numbers = range(len(self._questions)) if numbers is None else numbers
        refused: list[Refused] = []
        try:
            prompt, cut, steps = self._begin(documents, numbers)
        except DoesNotFitError:
            refused = self._refused_alone(documents, numbers) if len(numbers) > 1 else []
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

    def _refused_alone(self, documents: DocumentSet, numbers: Sequence[int]) -> list[Refused]:
        """The questions of `numbers` that do not fit by themselves."""
        refused = []
        for number in numbers:
            try:
                self._begin(documents, [number])  # plans, and reads nothing
            except DoesNotFitError as error:
                refused.append(Refused(number, error))
        return refused

    def _begin(self, documents: DocumentSet, numbers: Sequence[int]) -> "tuple[Prompt, range, Iterator[PrefillStep]]":
        """The prompt, what was cut of it, and what reads it; DoesNotFitError names the pins that are too much."""
        questions, loaded = [self._questions[number] for number in numbers], self._loaded

        def build(job: Request) -> "tuple[Prompt, range]":
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
        places = places_of(documents, prompt)
        planned = self._session.compression
        if not self._again:
            for warning in warnings:
                self._terminal.warn(where + warning)
            self._tell_plan(where)
            for line in pin_note(pins_in(job, documents), places):
                self._terminal.note(where + line)
        warnings += () if planned is None else planned.notes
        for _ in watch_generation(steps, self._terminal):
            pass
        session = self._session
        self._contexts_read += 1
        return Context(
            documents=documents,
            files=describe_files(documents, loaded.tokenizer, cut) if job.as_json else [],
            warnings=warnings,
            spent=self._spent(),
            hidden_kept=session.hidden_kept,
            chunk_tokens=None if planned is None else planned.chunk_tokens,
            reread_tokens=None if planned is None else planned.reread_tokens,
            later=self._contexts_read > 1,
            places=places,
            trust=None if session.allocation is None else session.allocation.trust(),
        )

    def _tell_plan(self, where: str) -> None:
        """Say what is kept, how the context is read, and what is not done as asked for."""
        terminal, planned = self._terminal, self._session.compression
        if planned is None:
            return
        for note in planned.notes:
            terminal.warn(where + note)
        plan, opened = planned.allocation.plan, planned.prompt
        spec, question_tokens = self._loaded.spec, opened.longest_question
        terminal.note(where + budget_note(self._preset, plan, spec, question_tokens=question_tokens))
        if planned.chunk_tokens is not None:
            cap = self._job.limits.kv_bytes
            again = planned.reread_tokens
            note = chunk_note(planned.chunk_tokens, len(opened.context), kv_mem=cap, reread_tokens=again)
            terminal.note(where + note)

    def _spent(self) -> Callable[[], Spent]:
        """What was planned, measured and allocated: of a context that others follow as it is now, else at the end."""

        def measure() -> Spent:
            session = self._session
            if session.plan is None:
                raise RuntimeError("nothing has been read")
            return Spent(session.plan, self._loaded.spec, session.layer_bytes(), session.uncertainty, session.measured)

        if not (self._job.each or self._again):
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
