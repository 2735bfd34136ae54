"""The answers of `uncomp ask`: contexts are read one after another, their questions answered in batches, in order.

With --each every document is a context of its own. What is read waits until enough has come for a batch, or until no
more fits the memory; one document that fails is told, and the others go on.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from uncomp_cli.cli.asking import AskJob, build_prompt, describe_files, warnings_of
from uncomp_cli.cli.explain import Spent, budget_lines, budget_record
from uncomp_cli.cli.failures import describe_failure, show_failure
from uncomp_cli.cli.in_order import InOrder
from uncomp_cli.cli.report import answer_record, budget_note, chunk_note, readout
from uncomp_cli.documents.reader import DocumentSet
from uncomp_cli.errors import DoesNotFitError, UncompError, is_out_of_memory
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.format import format_readout
from uncomp_cli.ui.live import watch_generation, watch_rows

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.engine.batch import RowStep
    from uncomp_cli.engine.rows import Asked
    from uncomp_cli.engine.session import RunStats
    from uncomp_cli.models.load import LoadedModel

__all__ = ["Answering"]

INTERRUPTED = 130
ROWS_TO_WAIT_FOR = 16
"""With --each reading goes on until this many questions wait for their answers."""


@dataclass(frozen=True, slots=True)
class _Context:
    """What was read as one, and how: reported with each of its answers."""

    name: str
    files: Sequence[dict[str, Any]]
    warnings: Sequence[str]
    spent: Callable[[], Spent]
    hidden_kept: Sequence[float]
    chunk_tokens: int | None
    later: bool


@dataclass(frozen=True, slots=True, eq=False)
class _Item:
    """One question of one context, waiting for its answer."""

    context: _Context
    number: int
    asked: "Asked"


class Answering:
    """Reads contexts and writes the answers to `questions` of each; `run` returns the exit code."""

    def __init__(
        self, job: AskJob, questions: Sequence[str], preset: "Preset", loaded: "LoadedModel", terminal: Terminal
    ) -> None:
        from uncomp_cli.engine.batch import BatchSession

        self._job, self._questions, self._preset, self._terminal = job, questions, preset, terminal
        self._loaded = loaded
        self._session = BatchSession(loaded, preset, job.sampling, job.limits, matmul=job.matmul)
        self._waiting: list[_Item] = []
        self._ended: set[_Item] = set()
        self._contexts_read = 0
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
            if not self._can_go_on(error):
                raise
            self._answer_waiting()  # what was asked before is told before
            self._fail(documents.documents[0].path, error)
            return
        if self._waiting and not self._session.fits([item.asked for item in (*self._waiting, *items)]):
            self._answer_waiting()
        self._waiting += items

    def _can_go_on(self, error: Exception) -> bool:
        return self._job.each and (isinstance(error, UncompError) or is_out_of_memory(error))

    def _read_beside(self, documents: DocumentSet) -> list[_Item]:
        """Read one context; when what waits leaves too little memory for it, that is answered first."""
        try:
            return self._read(documents)
        except Exception as error:
            if not self._waiting or not (isinstance(error, DoesNotFitError) or is_out_of_memory(error)):
                raise
        self._answer_waiting()
        return self._read(documents)

    def _read(self, documents: DocumentSet) -> list[_Item]:
        job, loaded = self._job, self._loaded
        prompt, cut = build_prompt(job, documents, self._questions, loaded.tokenizer, loaded.spec, self._preset)
        where = f"{documents.documents[0].path}: " if job.each else ""
        warnings = warnings_of(job, prompt, cut, loaded)
        for warning in warnings:
            self._terminal.warn(where + warning)
        steps = self._session.read(prompt)
        warnings += self._tell_plan(where)
        for _ in watch_generation(steps, self._terminal):
            pass
        context = _Context(
            name=documents.documents[0].path,
            files=describe_files(documents, loaded.tokenizer, cut) if job.as_json else [],
            warnings=warnings,
            spent=self._spent(),
            hidden_kept=self._session.hidden_kept,
            chunk_tokens=None if self._session.compression is None else self._session.compression.chunk_tokens,
            later=self._contexts_read > 0,
        )
        self._contexts_read += 1
        return [_Item(context, number, asked) for number, asked in enumerate(self._session.asked())]

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

    def _answer_waiting(self) -> None:
        """Answer what waits, as one batch."""
        items, self._waiting = self._waiting, []
        if not items or self._exit_code == INTERRUPTED:
            return
        order = InOrder(
            len(items),
            self._terminal,
            begin=lambda row: self._begin(items[row]),
            end=lambda row, answer, stats: self._end(items[row], answer, stats),
            silent=self._job.as_json,
        )
        asked = [item.asked for item in items]
        batch = self._session.batch(asked)
        steps: Iterator[RowStep] = watch_rows(batch.answer(asked), self._terminal, num_rows=len(items))
        del asked
        try:
            for taken in steps:
                order.add(taken.row, taken.step.texts[0])
                stats = batch.stats(taken.row) if taken.step.finish_reasons[0] is not None else None
                if stats is not None:
                    order.finish(taken.row, stats)
        except KeyboardInterrupt:
            self._interrupt(order, [batch.stats(row) for row in range(len(items))])
        except Exception as error:
            if not self._can_go_on(error):
                raise
            order.close()
            for name in dict.fromkeys(item.context.name for item in items[order.row :]):
                self._fail(name, error)

    def _interrupt(self, order: InOrder, stats: "Sequence[RunStats | None]") -> None:
        """Write what there is of every answer that has begun. Raises KeyboardInterrupt when nothing was written."""
        begun = [(row, each) for row, each in enumerate(stats) if row >= order.row and each is not None]
        for row, each in begun:
            order.finish(row, each)
        if not begun and not self._written:
            raise KeyboardInterrupt
        self._exit_code = INTERRUPTED

    def _begin(self, item: _Item) -> None:
        question, count = self._questions[item.number], len(self._questions)
        if self._written and not self._job.as_json:
            self._terminal.write_line()
        self._written += 1
        if self._job.each:
            self._terminal.note(f"{item.context.name}: {question}")
        elif count > 1:
            self._terminal.note(f"question {item.number + 1} of {count}: {question}")

    def _end(self, item: _Item, answer: str, stats: "RunStats") -> None:
        context, job = item.context, self._job
        if item in self._ended:  # Ctrl-C came while the rest was being said
            return
        record = self._record(item, answer, stats) if job.as_json else None
        self._ended.add(item)
        if record is not None:
            self._terminal.write_json(record)
        if stats.finish_reason == "interrupted" and (job.each or len(self._questions) > 1):
            self._terminal.note("[interrupted]")
        self._terminal.note(format_readout(readout(stats, self._loaded.spec)))
        if job.explain_budget and not job.as_json and item.number + 1 == len(self._questions):
            for line in budget_lines(context.spent()):  # asked for by name, so also when quiet
                replace(self._terminal, quiet=False).note(line)

    def _record(self, item: _Item, answer: str, stats: "RunStats") -> dict[str, Any]:
        context = item.context
        return answer_record(
            loaded=self._loaded,
            preset=self._preset,
            stats=stats,
            question=self._questions[item.number],
            answer=answer,
            files=context.files,
            warnings=context.warnings,
            seed=self._job.sampling.seed,
            budget=budget_record(context.spent()) if self._job.explain_budget else None,
            hidden_kept=context.hidden_kept,
            chunk_tokens=context.chunk_tokens,
            later=context.later,
        )

    def _fail(self, name: str, error: Exception) -> None:
        """Tell what went wrong with one document; the first failure decides the exit code."""
        failure = describe_failure(error)
        named = UncompError(f"{name}: {failure.message}", hint=failure.hint)
        named.__cause__ = error
        show_failure(named, self._terminal)
        self._exit_code = self._exit_code or failure.exit_code
