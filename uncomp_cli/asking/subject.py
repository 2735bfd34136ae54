"""What is asked about as one: read for its questions; or read for any question and saved, or opened where it is saved.

With several questions one that does not fit is set apart: it is told in its turn, and the others are asked.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from uncomp_cli.asking.account import Spent
from uncomp_cli.asking.deposit import Deposit
from uncomp_cli.asking.doubts import fall_short, risk_of, risk_warnings
from uncomp_cli.asking.events import (
    Done,
    Event,
    Noted,
    Piece,
    Planned,
    Refused,
    Spoken,
    Thought,
    Turn,
    Warned,
    thinks_behind,
)
from uncomp_cli.asking.material import (
    blame,
    build_prompt,
    describe_files,
    join_documents,
    opened_documents,
    pins_in,
    places_of,
)
from uncomp_cli.asking.readout import About, all_kept, budget_note, chunk_note, evidence_warnings, floor_note, pin_note
from uncomp_cli.asking.request import Request
from uncomp_cli.asking.startup import reading_warnings
from uncomp_cli.documents.collection import DocumentSet
from uncomp_cli.documents.places import Evidence, Places, find_evidence
from uncomp_cli.errors import DoesNotFitError

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.cache.shelf import Entry
    from uncomp_cli.engine.context.context import Asked, Context
    from uncomp_cli.engine.engine import Engine, Reading
    from uncomp_cli.engine.records import DecodeStep, RunStats
    from uncomp_cli.engine.spend.compression import Compression
    from uncomp_cli.engine.tokens.prompt import Prompt
    from uncomp_cli.engine.write.writer import Writer

_DESCRIBED = ("path", "sha256", "tokens", "truncated", "losses")


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """A text that was read or opened, and what goes with each answer about it."""

    documents: DocumentSet
    context: "Context"
    about: About
    places: Places
    spent: Callable[[], Spent]

    def evidence(self, asked: "Asked", ids: Sequence[int]) -> list[Evidence]:
        """What an answer looked at; `ids` are its tokens without the one that ends it. No answer has no evidence."""
        if not ids:
            return []
        mass = self.context.attended(ids, asked.question)
        return find_evidence(mass.tolist(), self.context.survival(len(mass)).tolist(), self.places)


@dataclass(frozen=True, slots=True, eq=False)
class Item:
    """One question about one subject, waiting for its answer; what is unfit is told before it, or after the last."""

    subject: Subject
    turn: Turn
    asked: "Asked"
    before: tuple[Refused, ...] = ()
    after: tuple[Refused, ...] = ()
    is_last: bool = False


@dataclass(slots=True, eq=False)
class Answer:
    """The answer to `item` as far as it is written; `stats` are there when it has ended."""

    item: Item
    ids: list[int] = field(default_factory=list)
    recalled: str | None = None
    stats: "RunStats | None" = None
    _said: list[Piece | Thought] = field(default_factory=list)
    _told: int = 0
    _spoken: Spoken | None = None

    def add(self, step: "DecodeStep", writer: "Writer") -> None:
        """The next token and piece."""
        if step.index == 0:
            self.recalled = self.item.subject.context.recalled
        self.ids.append(step.token)
        if self._spoken is None:
            asked, tokenizer = self.item.asked, self.item.subject.about.loaded.tokenizer
            self._spoken = Spoken(thinks=thinks_behind(tokenizer, asked.context.prompt.questions[asked.question]))
        self._said += self._spoken.push(step.text)
        self.stats = None if step.finish_reason is None else writer.stats(step.row)

    def rest(self) -> Iterator[Piece | Thought]:
        """What has come since what was told last."""
        if self.stats is not None and self._spoken is not None:
            self._said += self._spoken.rest()
        while self._told < len(self._said):
            self._told += 1
            yield self._said[self._told - 1]

    def done(self, request: Request) -> Done:
        """The whole answer, which has ended, with the evidence and the account of the budget that were asked for."""
        item, subject, stats = self.item, self.item.subject, self.stats
        self._said += [] if self._spoken is None else self._spoken.rest()
        if stats is None:
            raise RuntimeError("the answer has not ended")
        preset = subject.context.account.preset
        said = self.ids[:-1] if stats.finish_reason == "stop" else self.ids
        found = subject.evidence(item.asked, said) if request.evidence else []
        risk = risk_of(preset, stats, subject.about.loaded)
        return Done(
            item.turn,
            "".join(each.text for each in self._said if isinstance(each, Piece)),
            tuple(self.ids),
            stats,
            preset,
            risk,
            subject.about.loaded.spec.trained_length,
            doubts=(*risk_warnings(risk), *(evidence_warnings(found) if request.evidence and said else ())),
            evidence=tuple(found),
            spent=subject.spent() if request.explain_budget else None,
            short=None if request.fail_under is None else fall_short(risk, request.fail_under),
            about=subject.about,
            is_last=item.is_last,
            all_kept=all_kept(subject.context.account.plan, subject.about.loaded.spec),
        )


@dataclass(frozen=True, slots=True)
class _Draft:
    """A prompt that fits, what was cut of its documents, and where its context comes from: a reading, or a file."""

    prompt: "Prompt"
    cut: range
    reading: "Reading | None" = None
    entry: "Entry | None" = None


class Reader:
    """Reads or opens subjects and asks `questions` of each.

    What is read `again` was read before, with another budget: what there is to say of it has been said.
    """

    def __init__(
        self, engine: "Engine", preset: "Preset", questions: Sequence[str], request: Request, *, again: bool = False
    ) -> None:
        self._engine, self._questions, self._request, self._again = engine, questions, request, again
        self._saves = request.saves_context or request.for_any
        self.preset, self._note = preset, None
        if self._saves:
            from uncomp_cli.engine.context.growth import for_any_question

            self.preset, self._note = for_any_question(preset)
        self._deposit = Deposit(engine, self.preset, request)
        self._num_read = int(again)

    def read(self, documents: DocumentSet, numbers: Sequence[int] | None = None) -> Generator[Event, None, list[Item]]:
        """The questions about one subject, or those of `numbers`, waiting. Raises DoesNotFitError when none fits."""
        numbers = range(len(self._questions)) if numbers is None else numbers
        unfit: dict[int, DoesNotFitError] = {}
        try:
            draft = self._draft(documents, numbers)
        except DoesNotFitError:
            unfit = self._unfit_alone(documents, numbers) if len(numbers) > 1 else {}
            if not 0 < len(unfit) < len(numbers):
                raise
            numbers = [number for number in numbers if number not in unfit]
            draft = self._draft(documents, numbers)
        subject = yield from self._subject(documents, draft)
        return list(self._items(subject, documents, numbers, unfit))

    def plan(self, documents: DocumentSet) -> "Compression":
        """How all questions about one subject would be read. Raises DoesNotFitError when they do not fit."""
        draft = self._draft(documents, range(len(self._questions)))
        planned = (draft.reading or self._reading(draft.prompt)).planned
        note = floor_note(planned)
        return planned if note is None else replace(planned, notes=(*planned.notes, note))

    def turn(self, documents: DocumentSet, number: int) -> Turn:
        """The turn of question `number` about `documents`."""
        name = documents.documents[0].path if self._request.each else None
        return Turn(self._questions[number], number, len(self._questions), name)

    def where(self, documents: DocumentSet) -> str:
        """Before what is said of one document of several that are asked by themselves."""
        return f"{documents.documents[0].path}: " if self._request.each else ""

    def _unfit_alone(self, documents: DocumentSet, numbers: Sequence[int]) -> dict[int, DoesNotFitError]:
        """The questions of `numbers` that do not fit by themselves."""
        unfit = {}
        for number in numbers:
            try:
                self._draft(documents, [number])  # plans, and reads nothing
            except DoesNotFitError as error:
                unfit[number] = error
        return unfit

    def _draft(self, documents: DocumentSet, numbers: Sequence[int]) -> _Draft:
        """Questions that were planned; DoesNotFitError names the pins that are too much."""
        questions, request = [self._questions[number] for number in numbers], self._request
        named = self._deposit.named() if request.names_a_cache else None
        if named is not None and not documents.documents:
            return _Draft(self._deposit.prompt_behind(named, questions), range(0), entry=named)
        prompt, cut = self._prompt(request, documents, questions)
        try:
            entry = named or self._deposit.known(prompt)
            if entry is None:
                return _Draft(prompt, cut, self._reading(prompt))
            self._engine.check_length(prompt)
        except DoesNotFitError as error:
            pins, unpinned = pins_in(request, documents), self._prompt(request.without_pins(), documents, questions)[0]
            raise blame(error, pins, prompt, unpinned, plan=self._reading) from error
        return _Draft(prompt, cut, entry=entry)

    def _prompt(self, request: Request, documents: DocumentSet, questions: Sequence[str]) -> "tuple[Prompt, range]":
        loaded = self._engine.loaded
        return build_prompt(request, documents, questions, loaded.tokenizer, loaded.spec, self.preset)

    def _reading(self, prompt: "Prompt") -> "Reading":
        return self._engine.read(prompt, self.preset, for_any=self._saves)

    def _subject(self, documents: DocumentSet, draft: _Draft) -> Generator[Event, None, Subject]:
        """Read or open what was drafted, say how, and save it when that was asked for."""
        from uncomp_cli.engine.spend.memory import kept_amount

        request, where = self._request, "" if self._again else self.where(documents)
        planned = None if draft.reading is None else draft.reading.planned
        warnings = [*reading_warnings(request, draft.prompt, draft.cut, planned, self._engine.loaded)]
        if draft.entry is not None and not documents.documents:  # nobody has read them now, and said so
            saved = draft.entry.manifest.record.documents
            warnings[:0] = [f"{each.path}: left out {loss}" for each in saved for loss in each.losses]
        if not self._again:
            yield from (Warned(where + warning) for warning in warnings)
        context = None if draft.entry is None else (yield from self._deposit.opened(draft.entry, draft.prompt))
        if context is None:
            context = yield from self._read(documents, draft)
        files = self._files(documents, draft)
        if request.as_json:
            files()
        if self._saves:
            yield from self._deposit.save(context, documents, files)
        self._num_read += 1
        account, spec, asked = context.account, self._engine.spec, 0 if self._saves else context.prompt.longest_question
        about = About(
            self._engine.loaded,
            files,
            [*documents.warnings, *warnings, *account.notes],
            request.sampling.seed,
            context.hidden_kept,
            account.chunk_tokens,
            account.reread_tokens,
            account.repeated_tokens,
            kept_amount(account.preset.budget, spec, account.plan, question_tokens=asked),
            later=self._num_read > 1,
            standing=context.standing,
            open_below=self.preset.open_below,
        )
        shown = documents if documents.documents else opened_documents(account)
        return Subject(documents, context, about, places_of(shown, context.prompt), self._spent(context))

    def _read(self, documents: DocumentSet, draft: _Draft) -> "Generator[Event, None, Context]":
        """Read what was drafted; what is kept of it and how it is read is said before."""
        reading = draft.reading or self._reading(draft.prompt)
        if not self._again:
            yield from self._tell_plan(documents, draft.prompt, reading.planned)
        if self._note is not None:
            yield Noted(self._note)
            self._note = None
        for step in reading:
            yield step.progress
        account = reading.context.account
        found = [note for note in account.notes if note not in reading.planned.notes]  # while it was read
        tell = Noted if account.plan.keeps_everything else Warned
        if not self._again:
            yield from (tell(self.where(documents) + note) for note in found)
        return reading.context

    def _tell_plan(self, documents: DocumentSet, prompt: "Prompt", planned: "Compression") -> Iterator[Event]:
        """What is kept, how the text is read, what is pinned, and what is not done as asked for."""
        where, opened = self.where(documents), planned.prompt
        yield from (Warned(where + note) for note in planned.notes)
        lines = [budget_note(planned)]
        chunk, again = planned.chunk_tokens, planned.reread_tokens
        if chunk is not None:
            cap = self._request.limits.kv_bytes
            lines.append(chunk_note(chunk, len(opened.context), kv_mem=cap, reread_tokens=again))
        if planned.repeats:
            lines.append(
                f"read a second time behind itself: what is looked at then stays (scorer {planned.scorer.name})"
            )
        lines += pin_note(pins_in(self._request, documents), places_of(documents, prompt))
        yield Planned(planned.preset, planned.plan, tuple(where + line for line in lines), chunk, again)

    def _files(self, documents: DocumentSet, draft: _Draft) -> Callable[[], Sequence[dict[str, Any]]]:
        """What --json and a saved context say of the documents, found out when it is asked for."""
        if not documents.documents and draft.entry is not None:
            saved = [asdict(each) for each in draft.entry.manifest.record.documents]
            return lambda: [{key: each[key] for key in _DESCRIBED} for each in saved]
        kept = self._request.wishes.keeps
        return cache(lambda: describe_files(documents, self._engine.loaded.tokenizer, draft.cut, kept))

    def _spent(self, context: "Context") -> Callable[[], Spent]:
        """What was planned, measured and allocated: of a subject that others follow as it is now, else at the end."""

        def measure() -> Spent:
            account, spec = context.account, self._engine.spec
            return Spent(account.plan, spec, context.layer_bytes(), account.uncertainty)

        if self._saves or not (self._request.each or self._again):
            return measure
        measured = measure()
        return lambda: measured

    def _items(
        self, subject: Subject, documents: DocumentSet, numbers: Sequence[int], unfit: dict[int, DoesNotFitError]
    ) -> Iterator[Item]:
        """An item for every question that is asked; each has what is unfit between it and the one before."""
        apart = [(number, Refused.of(self.turn(documents, number), error)) for number, error in sorted(unfit.items())]
        words = [self._questions[number] for number in numbers]
        saved = not documents.documents and subject.context.account.record is not None
        text = None if saved else join_documents(documents)  # without the system prompt
        previous, last = -1, numbers[-1]
        for number, asked in zip(numbers, self._engine.asked(subject.context, words=words), strict=True):
            before = tuple(each for at, each in apart if previous < at < number)
            after = tuple(each for at, each in apart if at > last) if number == last else ()
            turn, asked = self.turn(documents, number), replace(asked, documents=text)
            yield Item(subject, turn, asked, before, after, is_last=number == last)
            previous = number
