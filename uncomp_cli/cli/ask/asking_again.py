"""`uncomp ask --escalate`: contexts whose answers were flagged are read again, with twice the budget and up to all.

All flagged questions of a context share its next reading. An answer that is no longer flagged is done; where nothing
helps, or what might is refused, the least uncertain one stays. Every try is said with what it cost.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from uncomp_cli.asking.doubts import risk_of
from uncomp_cli.asking.escalation import Try, best_of, try_note, wider
from uncomp_cli.asking.request import Request
from uncomp_cli.cli.ask.contexts import Context, ContextReader, Item
from uncomp_cli.cli.ask.telling import Answered
from uncomp_cli.cli.declare.failures import describe_failure
from uncomp_cli.errors import UncompError, is_out_of_memory
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.meter import watch_rows

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.engine.context.session import RunStats
    from uncomp_cli.models.loading import LoadedModel

__all__ = ["AskingAgain", "answered"]


@dataclass(slots=True)
class _Doubted:
    """A question and its answers so far, one a try."""

    answers: list[Answered]
    tries: list[Try]

    @property
    def is_open(self) -> bool:
        """Whether more may help: the latest is flagged, and kept more than the one before, yet not all."""
        grew = len(self.tries) < 2 or self.tries[-2].kv_bytes < self.tries[-1].kv_bytes
        return self.tries[-1].more_may_help and grew and self.answers[-1].stats.kept_fraction < 1

    @property
    def final(self) -> Answered:
        """The answer that stays, with all tries."""
        return replace(self.answers[best_of(self.tries)], tries=tuple(self.tries))


class AskingAgain:
    """Escalates the answers of `preset`; `interrupted` says that Ctrl-C ended that."""

    def __init__(
        self, job: Request, questions: Sequence[str], preset: "Preset", loaded: "LoadedModel", terminal: Terminal
    ) -> None:
        self._job, self._questions, self._preset = job, questions, preset
        self._loaded, self._terminal = loaded, terminal
        self.interrupted = False

    def settle(self, given: Sequence[Answered]) -> list[Answered]:
        """The answers that stay of those that were given first, in their order."""
        doubted = [_Doubted([done], [self._try(done)]) for done in given]
        for each in doubted:
            self._tell(each)
        for context in {id(each.answers[0].context): each.answers[0].context for each in doubted}.values():
            of_context = [each for each in doubted if each.answers[0].context is context]
            if not self.interrupted:
                self._settle_context(context, of_context)
        return [each.final for each in doubted]

    def _settle_context(self, context: Context, doubted: Sequence[_Doubted]) -> None:
        """Read a context again and again, as long as an answer of it is flagged and a larger budget is to be had."""
        preset = wider(self._preset)
        while preset is not None and (still := [each for each in doubted if each.is_open]):
            try:
                self._ask(context, still, preset)
            except KeyboardInterrupt:
                self.interrupted = True
                return
            except Exception as error:
                if not (isinstance(error, UncompError) or is_out_of_memory(error)):
                    raise
                reason = describe_failure(error).message
                self._terminal.warn(f"{self._where(context)}budget {preset.budget} was not tried: {reason}")
                return
            preset = wider(preset)

    def _ask(self, context: Context, doubted: Sequence[_Doubted], preset: "Preset") -> None:
        """Read a context with `preset` and answer its doubted questions; what is complete counts."""
        from uncomp_cli.engine.write.batch import BatchSession

        job = self._job
        session = BatchSession(self._loaded, preset, job.sampling, job.limits, matmul=job.matmul)
        reader = ContextReader(job, self._questions, preset, session, self._terminal, again=True)
        by_number = {each.answers[0].item.number: each for each in doubted}
        items = reader.read(context.documents, sorted(by_number))
        asked = [item.asked for item in items]
        batch = session.batch(asked)
        said: list[list[str]] = [[] for _ in items]
        ids: list[list[int]] = [[] for _ in items]
        for taken in watch_rows(batch.answer(asked), self._terminal, num_rows=len(items)):
            said[taken.row].append(taken.step.texts[0])
            ids[taken.row] += taken.step.token_ids
            stats = batch.stats(taken.row) if taken.step.finish_reasons[0] is not None else None
            if stats is not None:
                each, item = by_number[items[taken.row].number], items[taken.row]
                done = answered(job, reader, item, "".join(said[taken.row]), ids[taken.row], stats, preset)
                each.answers.append(replace(done, item=each.answers[0].item))
                each.tries.append(self._try(done))
                self._tell(each)

    def _try(self, done: Answered) -> Try:
        return Try.of(done.preset, done.stats, risk_of(done.preset, done.stats, self._loaded))

    def _tell(self, each: _Doubted) -> None:
        """The newest try of a question, as soon as one was flagged."""
        if not each.tries[0].more_may_help:
            return
        item = each.answers[0].item
        which = f"question {item.number + 1}: " if len(self._questions) > 1 else ""
        self._terminal.note(self._where(item.context) + which + try_note(each.tries[-1], len(each.tries)))

    def _where(self, context: Context) -> str:
        return f"{context.name}: " if self._job.each else ""


def answered(
    job: Request,
    reader: ContextReader,
    item: Item,
    answer: str,
    ids: Sequence[int],
    stats: "RunStats",
    preset: "Preset",
) -> Answered:
    """An answer of tokens `ids`, with the evidence and the account of the budget that were asked for."""
    said = ids[:-1] if stats.finish_reason == "stop" else ids
    found = reader.cite(item, said) if job.evidence else []
    spent = item.context.spent() if job.explain_budget else None
    return Answered(item, item.context, answer, stats, found, preset, spent)
