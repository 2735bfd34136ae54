"""Escalation: subjects whose answers were flagged are read again, with twice the budget and up to all of the text.

All flagged questions about a subject share its next reading. An answer that is no longer flagged is done; where nothing
helps, or what might is refused, the least uncertain one stays. Every try is said with what it cost.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from uncomp_cli.asking.doubts import Attempts, wider
from uncomp_cli.asking.events import Done, Event, Noted, Pace, Warned
from uncomp_cli.asking.request import Request
from uncomp_cli.asking.subject import Item, Reader, Subject
from uncomp_cli.errors import failure_of, is_foreseen

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.engine.engine import Engine


class Paces:
    """The pace of `rows` answers together."""

    def __init__(self, rows: int, *, entropy: Callable[[], float | None] = lambda: None) -> None:
        self._rows, self._entropy, self._begun_s = rows, entropy, time.monotonic()
        self._tokens = self._answered = 0

    def after(self, kv_bytes: int, *, ended: bool) -> Pace:
        """One token more, which has `ended` its answer or not."""
        self._tokens += 1
        self._answered += ended
        elapsed_s = time.monotonic() - self._begun_s
        return Pace(self._tokens, elapsed_s, kv_bytes, self._rows, self._answered, self._entropy)


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
        said: list[tuple[list[int], list[str]]] = [([], []) for _ in items]
        for step in writer.write():
            (ids, texts), item = said[step.row], items[step.row]
            ids.append(step.token)
            texts.append(step.text)
            stats = None if step.finish_reason is None else writer.stats(step.row)
            if stats is not None:
                done = item.done(self._request, ids, "".join(texts), stats)
                yield from self._add(item, by_number[item.turn.number], done)
            yield pace.after(step.kv_bytes, ended=stats is not None)

    def _add(self, item: Item, attempts: Attempts[Done], done: Done) -> Iterator[Event]:
        """One answer more, which takes the place of the first; its try is told as soon as one was flagged."""
        first, turn = attempts.answers[0] if attempts.answers else done, item.turn
        done = replace(done, turn=first.turn, is_last=first.is_last)
        attempts.add(done, done.preset, done.stats, self._engine.loaded)
        if attempts.tries[0].is_doubted:
            where = "" if turn.document is None else f"{turn.document}: "
            which = f"question {turn.number + 1}: " if turn.count > 1 else ""
            yield Noted(where + which + attempts.note)
