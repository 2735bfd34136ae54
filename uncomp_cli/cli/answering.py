"""The answers of `uncomp ask`: contexts are read one after another, their questions answered in batches, in order.

With --each every document is a context of its own. What is read waits until enough has come for a batch, or until no
more fits the memory. One document or one question of several that fails is told in its turn, and the others go on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from uncomp_cli.cli.asking import AskJob
from uncomp_cli.cli.citing import evidence_lines, evidence_records, evidence_warnings
from uncomp_cli.cli.contexts import ContextReader, Item, Refused
from uncomp_cli.cli.explain import budget_lines, budget_record
from uncomp_cli.cli.failures import describe_failure, show_failure
from uncomp_cli.cli.in_order import InOrder
from uncomp_cli.cli.report import answer_record, failure_record, readout
from uncomp_cli.documents.reader import DocumentSet
from uncomp_cli.errors import DoesNotFitError, UncompError, is_out_of_memory
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.format import format_readout
from uncomp_cli.ui.live import watch_rows

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.documents.evidence import Evidence
    from uncomp_cli.engine.batch import RowStep
    from uncomp_cli.engine.session import RunStats
    from uncomp_cli.models.load import LoadedModel

__all__ = ["Answering"]

INTERRUPTED = 130
ROWS_TO_WAIT_FOR = 16
"""With --each reading goes on until this many questions wait for their answers."""


class Answering:
    """Reads contexts and writes the answers to `questions` of each; `run` returns the exit code."""

    def __init__(
        self, job: AskJob, questions: Sequence[str], preset: "Preset", loaded: "LoadedModel", terminal: Terminal
    ) -> None:
        from uncomp_cli.engine.batch import BatchSession

        self._job, self._questions, self._preset, self._terminal = job, questions, preset, terminal
        self._loaded = loaded
        self._session = BatchSession(loaded, preset, job.sampling, job.limits, matmul=job.matmul)
        self._reader = ContextReader(job, questions, preset, self._session, terminal)
        self._waiting: list[Item] = []
        self._begun: set[Item] = set()
        self._ended: set[Item] = set()
        self._written = 0
        self._exit_code = 0

    def run(self, contexts: Sequence[DocumentSet]) -> int:
        """Read and answer; Ctrl-C keeps what was said. Returns 0, the first failure's code or 130."""
        for documents in contexts:
            self._take(documents)
            if len(self._waiting) >= ROWS_TO_WAIT_FOR:
                self._answer_waiting()
            if self._exit_code == INTERRUPTED:
                return INTERRUPTED
        self._answer_waiting()
        return self._exit_code

    def _take(self, documents: DocumentSet) -> None:
        """Read one context; what fails is told when others can go on without it."""
        try:
            items = self._read_beside(documents)
        except Exception as error:
            if not (self._job.each and _is_foreseen(error)):
                raise
            self._answer_waiting()  # what was asked before is told before
            self._fail_document(documents.documents[0].path, error)
            return
        if self._waiting and not self._session.fits([item.asked for item in (*self._waiting, *items)]):
            self._answer_waiting()
        self._waiting += items

    def _read_beside(self, documents: DocumentSet) -> list[Item]:
        """Read one context; when what waits leaves too little memory for it, that is answered first."""
        try:
            return self._reader.read(documents)
        except Exception as error:
            if not self._waiting or not (isinstance(error, DoesNotFitError) or is_out_of_memory(error)):
                raise
        self._answer_waiting()
        return self._reader.read(documents)

    def _answer_waiting(self) -> None:
        """Answer what waits, as one batch; when it fails, what has not been begun is answered one by one."""
        items, self._waiting = self._waiting, []
        if not items or self._exit_code == INTERRUPTED:
            return
        try:
            self._answer(items)
        except Exception as error:
            left = [item for item in items if item not in self._ended]
            if not left or not ((self._job.each or len(self._questions) > 1) and _is_foreseen(error)):
                raise
            self._fail(left[0], error)
            for item in left[1:]:
                self._waiting = [item]
                self._answer_waiting()

    def _answer(self, items: Sequence[Item]) -> None:
        """Answer `items`, which are shown in order."""
        ids: list[list[int]] = [[] for _ in items]
        order = InOrder(
            len(items),
            self._terminal,
            begin=lambda row: self._begin(items[row]),
            end=lambda row, answer, stats: self._end(items[row], answer, ids[row], stats),
            silent=self._job.as_json,
        )
        asked = [item.asked for item in items]
        batch = self._session.batch(asked)
        steps: Iterator[RowStep] = watch_rows(batch.answer(asked), self._terminal, num_rows=len(items))
        del asked
        try:
            for taken in steps:
                ids[taken.row] += taken.step.token_ids
                order.add(taken.row, taken.step.texts[0])
                stats = batch.stats(taken.row) if taken.step.finish_reasons[0] is not None else None
                if stats is not None:
                    order.finish(taken.row, stats)
        except KeyboardInterrupt:
            self._interrupt(order, [batch.stats(row) for row in range(len(items))])
        except Exception:
            order.close()
            raise

    def _interrupt(self, order: InOrder, stats: "Sequence[RunStats | None]") -> None:
        """Write what there is of every answer that has begun. Raises KeyboardInterrupt when nothing was written."""
        begun = [(row, each) for row, each in enumerate(stats) if row >= order.row and each is not None]
        for row, each in begun:
            order.finish(row, each)
        if not begun and not self._written:
            raise KeyboardInterrupt
        self._exit_code = INTERRUPTED

    def _begin(self, item: Item) -> None:
        """Tell what was refused before it, and introduce the answer."""
        if item in self._begun:
            return
        self._begun.add(item)
        self._tell_refused(item, item.before)
        if self._written and not self._job.as_json:
            self._terminal.write_line()
        self._written += 1
        if self._job.each:
            self._terminal.note(f"{item.context.name}: {self._questions[item.number]}")
        elif len(self._questions) > 1:
            self._terminal.note(f"{self._title(item.number)}: {self._questions[item.number]}")

    def _title(self, number: int) -> str:
        return f"question {number + 1} of {len(self._questions)}"

    def _end(self, item: Item, answer: str, ids: Sequence[int], stats: "RunStats") -> None:
        job = self._job
        if item in self._ended:  # Ctrl-C came while the rest was being said
            return
        said = ids[:-1] if stats.finish_reason == "stop" else ids
        found = self._reader.cite(item, said) if job.evidence else []
        record = self._record(item, answer, stats, found) if job.as_json else None
        self._ended.add(item)
        if record is not None:
            self._terminal.write_json(record)
        if stats.finish_reason == "interrupted" and (job.each or len(self._questions) > 1):
            self._terminal.note("[interrupted]")
        self._terminal.note(format_readout(readout(stats, self._loaded.spec)))
        self._tell_more(item, found)
        self._tell_refused(item, item.after)

    def _tell_more(self, item: Item, found: "Sequence[Evidence]") -> None:
        """What was asked for by name, so also when quiet."""
        lines = [*evidence_lines(found)]
        if self._job.explain_budget and item.is_last:
            lines += budget_lines(item.context.spent())
        if not self._job.as_json:
            for line in lines:
                replace(self._terminal, quiet=False).note(line)
        for warning in evidence_warnings(found):
            self._terminal.warn(warning)

    def _record(self, item: Item, answer: str, stats: "RunStats", found: "Sequence[Evidence]") -> dict[str, Any]:
        context = item.context
        return answer_record(
            loaded=self._loaded,
            preset=self._preset,
            stats=stats,
            question=self._questions[item.number],
            answer=answer,
            files=context.files,
            warnings=[*context.warnings, *evidence_warnings(found)],
            seed=self._job.sampling.seed,
            budget=budget_record(context.spent()) if self._job.explain_budget else None,
            hidden_kept=context.hidden_kept,
            chunk_tokens=context.chunk_tokens,
            later=context.later,
            evidence=evidence_records(found),
        )

    def _fail(self, item: Item, error: Exception) -> None:
        """Tell that a question was not answered, in its turn."""
        if item not in self._begun:
            self._begun.add(item)
            self._tell_refused(item, item.before)
        self._ended.add(item)
        self._tell_failure(item.context.name, item.number, error)
        self._tell_refused(item, item.after)

    def _tell_refused(self, item: Item, refused: Sequence[Refused]) -> None:
        for each in refused:
            self._tell_failure(item.context.name, each.number, each.error)

    def _fail_document(self, name: str, error: Exception) -> None:
        """Tell what went wrong with one document of several: none of the questions about it was asked."""
        self._show(error, name)
        for number in range(len(self._questions)):
            self._write_failure(name, number, error)

    def _tell_failure(self, name: str, number: int, error: Exception) -> None:
        """Tell what went wrong with one question."""
        titles = [name] if self._job.each else []
        titles += [self._title(number)] if len(self._questions) > 1 else []
        self._show(error, ": ".join(titles))
        self._write_failure(name, number, error)

    def _show(self, error: Exception, title: str) -> None:
        """Say on standard error what went wrong; the first failure decides the exit code."""
        failure = describe_failure(error)
        named = UncompError(f"{title}: {failure.message}", hint=failure.hint)
        named.__cause__ = error
        show_failure(named, self._terminal)
        self._exit_code = self._exit_code or failure.exit_code

    def _write_failure(self, name: str, number: int, error: Exception) -> None:
        if self._job.as_json:
            path = name if self._job.each else None
            record = failure_record(self._questions[number], describe_failure(error), path=path)
            self._terminal.write_json(record)


def _is_foreseen(error: Exception) -> bool:
    """Whether others may go well all the same."""
    return isinstance(error, UncompError) or is_out_of_memory(error)
