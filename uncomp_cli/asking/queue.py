"""Questions in a queue: subjects are read one after another, their questions answered in batches, in order.

With --each every document is a subject of its own. What is read waits until enough has come for a batch, or until no
more fits the memory. One document or one question of several that fails is told in its turn, and the others go on.

Escalation reads subjects whose answers were flagged again, with twice the budget and up to all of the text. All flagged
questions about a subject share its next reading. An answer that is no longer flagged is done; where nothing helps, or
what might is refused, the least uncertain one stays. Every try is said with what it cost.
"""

import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from uncomp_cli.asking.doubts import HELD_BACK, Attempts, wider
from uncomp_cli.asking.events import Began, Done, Event, Noted, Pace, Piece, Refused, Stopped, Warned
from uncomp_cli.asking.material import longest_read
from uncomp_cli.asking.request import Request
from uncomp_cli.asking.subject import Answer, Item, Reader, Subject
from uncomp_cli.documents.collection import DocumentSet
from uncomp_cli.errors import DoesNotFitError, failure_of, is_foreseen, lacks_room

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.engine.engine import Engine
    from uncomp_cli.engine.write.writer import Writer


ROWS_TO_WAIT_FOR = 16
"""With --each reading goes on until this many questions wait for their answers."""


class Queue:
    """Reads subjects and answers `questions` about each; what happens is what `run` yields.

    Ctrl-C keeps what was said; it goes on to who called when nothing was. With --escalate answers are held back until
    all of a batch are final.
    """

    def __init__(self, engine: "Engine", preset: "Preset", questions: Sequence[str], request: Request) -> None:
        self._engine, self._questions, self._request = engine, questions, request
        self._reader = Reader(engine, preset, questions, request)
        self._escalation = Escalation(engine, preset, questions, request) if request.escalate else None
        self._waiting: list[Item] = []
        self._begun: set[Item] = set()
        self._ended: set[Item] = set()
        self._held_back: list[tuple[Item, Done]] = []
        self._interrupted = False

    def run(self, contexts: Sequence[DocumentSet]) -> Iterator[Event]:
        """Read and answer."""
        if self._escalation is not None:
            yield Noted(HELD_BACK)
        if (
            len(contexts) > 1 and self._engine.decoder.regime_tokens is not None
        ):  # all in the frequencies of the longest
            tokenizer = self._engine.loaded.tokenizer
            self._engine.regime_tokens = longest_read(self._request, contexts, self._questions, tokenizer)
        for documents in contexts:
            yield from self._take(documents)
            # Under a cap on the cache no text is read beside one that is held.
            capped = self._request.limits.kv_bytes is not None
            if self._request.saves_context or capped or len(self._waiting) >= ROWS_TO_WAIT_FOR:
                yield from self._answer_waiting()
            if self._interrupted:
                break
        yield from self._answer_waiting()
        if self._interrupted:
            yield Stopped()

    def _take(self, documents: DocumentSet) -> Iterator[Event]:
        """Read one subject; what fails is told when others can go on without it."""
        try:
            items = yield from self._read_beside(documents)
        except Exception as error:
            if not (self._request.each and self._can_go_on(error)):
                raise
            yield from self._answer_waiting()  # what was asked before is told before
            turns = [self._reader.turn(documents, number) for number in range(len(self._questions))]
            yield Refused(error, documents.documents[0].path, turns)
            return
        if self._waiting and not self._engine.fits([item.asked for item in (*self._waiting, *items)]):
            yield from self._answer_waiting()
        self._waiting += items

    def _read_beside(self, documents: DocumentSet) -> Generator[Event, None, list[Item]]:
        """Read one subject; when what waits leaves too little memory for it, that is answered first."""
        try:
            return (yield from self._reader.read(documents))
        except Exception as error:
            if not (self._waiting and lacks_room(error) and self._can_go_on(error)):
                raise
        yield from self._answer_waiting()
        return (yield from self._reader.read(documents))

    def _can_go_on(self, error: Exception) -> bool:
        """Whether what comes after may go well all the same; of several ranks one that failed has left the others."""
        alone = self._engine.loaded.ranks.count == 1
        return is_foreseen(error) and (alone or isinstance(error, DoesNotFitError))

    def _answer_waiting(self) -> Iterator[Event]:
        """Answer what waits, as one batch; when it fails, what has not been begun is answered one by one."""
        items, self._waiting = self._waiting, []
        if not items or self._interrupted:
            return
        try:
            yield from self._answer(items)
        except Exception as error:
            yield from self._settle()
            left = [item for item in items if item not in self._ended]
            if not left or not ((self._request.each or len(self._questions) > 1) and self._can_go_on(error)):
                raise
            yield from self._fail(left[0], error)
            for item in left[1:]:
                self._waiting = [item]
                yield from self._answer_waiting()
        yield from self._settle()

    def _answer(self, items: Sequence[Item]) -> Iterator[Event]:
        """Answer `items`, which have their turns in order."""
        answers = [Answer(item) for item in items]
        line, writer = deque(answers), self._engine.writer([item.asked for item in items])
        pace = Paces(len(items))
        try:
            for step in writer.write():
                answers[step.row].add(step, writer)
                yield from self._tell_line(line)
                yield pace.after(step.kv_bytes, ended=step.finish_reason is not None)
        except KeyboardInterrupt:
            yield from self._interrupt(line, answers, writer)

    def _tell_line(self, line: "deque[Answer]") -> Iterator[Event]:
        """Of the first answer that is not complete every piece as it comes; those behind it wait until it is.

        May be repeated after a Ctrl-C in the middle of it: what was told is not told again.
        """
        while line and (line[0].ids or line[0].stats is not None):
            first = line[0]
            if self._escalation is None:
                yield from self._begin(first.item, first.recalled)
                yield from first.rest()
            if first.stats is None:
                return
            yield from self._end(first)
            line.popleft()

    def _interrupt(self, line: "deque[Answer]", answers: "Sequence[Answer]", writer: "Writer") -> Iterator[Event]:
        """What there is of every answer that has begun. Raises KeyboardInterrupt when nothing was said."""
        for row, answer in enumerate(answers):
            answer.stats = writer.stats(row)
        request = self._request
        if self._engine.loaded.ranks.count > 1 and (request.evidence or request.explain_budget):
            self._request = replace(request, evidence=False, explain_budget=False)
            yield Noted("no evidence and no account of the bytes: the other processes were interrupted too")
        has_begun = any(answer.stats is not None for answer in line)
        yield from self._tell_line(line)
        if not (has_begun or self._begun or self._held_back):
            raise KeyboardInterrupt
        self._interrupted = True

    def _begin(self, item: Item, recalled: str | None = None) -> Iterator[Event]:
        """What was not asked before a question, and that its answer has its turn; once."""
        if item not in self._begun:
            self._begun.add(item)
            yield from item.before
            yield Began(item.turn)
            yield from () if recalled is None else (Noted(recalled),)

    def _end(self, answer: "Answer") -> Iterator[Event]:
        """An answer, told or held back until it is final; once, whatever Ctrl-C cut short."""
        item = answer.item
        if item in self._ended:
            return
        done = answer.done(self._request)
        self._ended.add(item)
        if self._escalation is None:
            yield done
            yield from item.after
        else:
            self._held_back.append((item, done))

    def _fail(self, item: Item, error: Exception) -> Iterator[Event]:
        """That a question was not answered, in its turn."""
        if item not in self._begun:
            yield from item.before
        self._ended.add(item)
        yield Refused.of(item.turn, error)
        yield from item.after

    def _settle(self) -> Iterator[Event]:
        """What was held back; what was flagged of it is asked again before, unless Ctrl-C was pressed."""
        held, self._held_back = self._held_back, []
        if self._escalation is not None and held and not self._interrupted:
            final = yield from self._escalation.settle(held)
            held = [(item, done) for (item, _), done in zip(held, final, strict=True)]
            self._interrupted = self._escalation.interrupted
        for item, done in held:
            yield from self._begin(item)
            yield Piece(done.text)
            yield done
            yield from item.after


class Paces:
    """The pace of `rows` answers together."""

    def __init__(self, rows: int) -> None:
        self._rows, self._begun_s = rows, time.monotonic()
        self._tokens = self._answered = 0

    def after(self, kv_bytes: int, *, ended: bool) -> Pace:
        """One token more, which has `ended` its answer or not."""
        self._tokens += 1
        self._answered += ended
        elapsed_s = time.monotonic() - self._begun_s
        return Pace(self._tokens, elapsed_s, kv_bytes, self._rows, self._answered)


class Escalation:
    """Escalates answers that were given under `preset`; `interrupted` says that Ctrl-C ended that."""

    def __init__(self, engine: "Engine", preset: "Preset", questions: Sequence[str], request: Request) -> None:
        self._engine, self._preset, self._questions, self._request = engine, preset, questions, request
        self.interrupted = False

    def settle(self, given: Sequence[tuple[Item, Done]]) -> Generator[Event, None, list[Done]]:
        """The answers that stay of those that were given first, in their order."""
        attempts: list[tuple[Item, Attempts[Done]]] = [(item, Attempts()) for item, _ in given]
        for (item, each), (_, done) in zip(attempts, given, strict=True):
            yield from self._add(item, each, done)
        for subject in {id(item.subject): item.subject for item, _ in attempts}.values():
            if not self.interrupted:
                about = [(item, each) for item, each in attempts if item.subject is subject]
                yield from self._settle_subject(subject, about)
        return [replace(each.final, tries=tuple(each.tries)) for _, each in attempts]

    def _settle_subject(self, subject: Subject, attempts: Sequence[tuple[Item, Attempts[Done]]]) -> Iterator[Event]:
        """Read a subject again and again, as long as an answer is flagged and a larger budget is to be had."""
        preset = wider(self._preset)
        while preset is not None and (still := [(item, each) for item, each in attempts if each.is_open]):
            try:
                yield from self._ask(subject, still, preset)
            except KeyboardInterrupt:
                self.interrupted = True
                return
            except Exception as error:
                if not is_foreseen(error):
                    raise
                where = "" if still[0][0].turn.document is None else f"{still[0][0].turn.document}: "
                yield Warned(f"{where}budget {preset.budget} was not tried: {failure_of(error).message}")
                return
            preset = wider(preset)

    def _ask(
        self, subject: Subject, attempts: Sequence[tuple[Item, Attempts[Done]]], preset: "Preset"
    ) -> Iterator[Event]:
        """Read a subject with `preset` and answer its doubted questions; what is complete counts."""
        reader = Reader(self._engine, preset, self._questions, self._request, again=True)
        by_number = {item.turn.number: each for item, each in attempts}
        items = yield from reader.read(subject.documents, sorted(by_number))
        writer, pace = self._engine.writer([item.asked for item in items]), Paces(len(items))
        answers = [Answer(item) for item in items]
        for step in writer.write():
            answer = answers[step.row]
            answer.add(step, writer)
            if answer.stats is not None:
                number = answer.item.turn.number
                yield from self._add(answer.item, by_number[number], answer.done(self._request))
            yield pace.after(step.kv_bytes, ended=answer.stats is not None)

    def _add(self, item: Item, attempts: Attempts[Done], done: Done) -> Iterator[Event]:
        """One answer more, which takes the place of the first; its try is told as soon as one was flagged."""
        first, turn = attempts.answers[0] if attempts.answers else done, item.turn
        done = replace(done, turn=first.turn, is_last=first.is_last)
        attempts.add(done, done.preset, done.stats, self._engine.loaded)
        if attempts.tries[0].is_doubted:
            where = "" if turn.document is None else f"{turn.document}: "
            which = f"question {turn.number + 1}: " if turn.count > 1 else ""
            yield Noted(where + which + attempts.note)
