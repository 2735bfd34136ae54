"""What the user sees of the answers of `uncomp ask`, question by question: introduction, answer, readout, what failed.

Standard output has the answers, or one JSON object each; everything else goes to standard error. The first failure
decides the exit code, which is that of a threshold (5) when an answer's calibrated chance is under --fail-under.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from uncomp_cli.asking.account import Spent, budget_lines
from uncomp_cli.asking.doubts import Risk, fall_short, risk_of, risk_warnings
from uncomp_cli.asking.escalation import Try
from uncomp_cli.asking.readout import (
    About,
    answer_record,
    evidence_lines,
    evidence_warnings,
    failure_record,
    readout,
)
from uncomp_cli.asking.request import Request
from uncomp_cli.cli.ask.contexts import Context, Item, Refused
from uncomp_cli.cli.declare.failures import describe_failure, show_failure
from uncomp_cli.errors import UncompError
from uncomp_cli.numerals import format_readout
from uncomp_cli.ui.console import Terminal

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.documents.evidence import Evidence
    from uncomp_cli.engine.context.session import RunStats
    from uncomp_cli.models.loading import LoadedModel

__all__ = ["INTERRUPTED", "Answered", "Teller"]

INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer that is complete, or was stopped, and all that is said with it.

    `item` says when its turn is, `context` how its document was read; `tries` are there with --escalate.
    """

    item: Item
    context: Context
    answer: str
    stats: "RunStats"
    found: "Sequence[Evidence]"
    preset: "Preset"
    spent: Spent | None = None
    tries: tuple[Try, ...] = ()


class Teller:
    """Writes answers and failures in the order in which it is told of them."""

    def __init__(self, job: Request, questions: Sequence[str], loaded: "LoadedModel", terminal: Terminal) -> None:
        self._job, self._questions, self._loaded, self._terminal = job, questions, loaded, terminal
        self._begun: set[Item] = set()
        self.ended: set[Item] = set()
        self.written = 0
        self.exit_code = 0

    def begin(self, item: Item) -> None:
        """Tell what was refused before a question, and introduce its answer; once."""
        if item in self._begun:
            return
        self._begun.add(item)
        self._tell_refused(item, item.before)
        if self.written and not self._job.as_json:
            self._terminal.write_line()
        self.written += 1
        if self._job.each:
            self._terminal.note(f"{item.context.name}: {self._questions[item.number]}")
        elif len(self._questions) > 1:
            self._terminal.note(f"{self._title(item.number)}: {self._questions[item.number]}")

    def write(self, done: Answered) -> None:
        """An answer that was held back, and all that is said with it."""
        self.begin(done.item)
        if not self._job.as_json:
            self._terminal.write_answer(done.answer)
            self._terminal.write_line()
        self.report(done)

    def report(self, done: Answered) -> None:
        """All that is said behind an answer; once, whatever Ctrl-C cut short."""
        job, item, terminal = self._job, done.item, self._terminal
        if item in self.ended:
            return
        risk = risk_of(done.preset, done.stats, self._loaded)
        doubts = [*risk_warnings(risk), *evidence_warnings(done.found)]
        record = self._record(done, doubts) if job.as_json else None
        self.ended.add(item)
        if record is not None:
            terminal.write_json(record)
        if done.stats.finish_reason == "interrupted" and (job.each or len(self._questions) > 1):
            terminal.note("[interrupted]")
        terminal.note(format_readout(readout(done.stats, self._loaded.spec)))
        if not job.as_json:
            self._tell_more(done)
        for doubt in doubts:
            terminal.warn(doubt)
        self._judge(item, risk)
        self._tell_refused(item, item.after)

    def fail(self, item: Item, error: Exception) -> None:
        """Tell that a question was not answered, in its turn."""
        if item not in self._begun:
            self._begun.add(item)
            self._tell_refused(item, item.before)
        self.ended.add(item)
        self._tell_failure(item.context.name, item.number, error)
        self._tell_refused(item, item.after)

    def fail_document(self, name: str, error: Exception) -> None:
        """Tell what went wrong with one document of several: none of the questions about it was asked."""
        self._show(error, name)
        for number in range(len(self._questions)):
            self._write_failure(name, number, error)

    def _judge(self, item: Item, risk: Risk) -> None:
        """Say so when the answer is not as likely right as --fail-under wants it."""
        least = self._job.fail_under
        short = None if least is None else fall_short(risk, least)
        if short is not None:
            titles = self._titles(item.context.name, item.number)
            self._show(short, ": ".join(titles))

    def _tell_more(self, done: Answered) -> None:
        """What was asked for by name, so also when quiet."""
        lines = [*evidence_lines(done.found)]
        if done.spent is not None and done.item.is_last:
            lines += budget_lines(done.spent)
        for line in lines:
            replace(self._terminal, quiet=False).note(line)

    def _record(self, done: Answered, doubts: Sequence[str]) -> dict[str, Any]:
        context = done.context
        about = About(
            self._loaded,
            lambda: context.files,
            context.warnings,
            self._job.sampling.seed,
            context.hidden_kept,
            context.chunk_tokens,
            context.reread_tokens,
            context.later,
        )
        return answer_record(
            about,
            done.preset,
            done.stats,
            question=self._questions[done.item.number],
            answer=done.answer,
            doubts=doubts,
            evidence=done.found,
            tries=done.tries if self._job.escalate else None,
            spent=done.spent,
        )

    def _title(self, number: int) -> str:
        return f"question {number + 1} of {len(self._questions)}"

    def _titles(self, name: str, number: int) -> list[str]:
        """What tells a question from the others: its document's name, its number."""
        titles = [name] if self._job.each else []
        return titles + ([self._title(number)] if len(self._questions) > 1 else [])

    def _tell_refused(self, item: Item, refused: Sequence[Refused]) -> None:
        for each in refused:
            self._tell_failure(item.context.name, each.number, each.error)

    def _tell_failure(self, name: str, number: int, error: Exception) -> None:
        """Tell what went wrong with one question."""
        self._show(error, ": ".join(self._titles(name, number)))
        self._write_failure(name, number, error)

    def _show(self, error: Exception, title: str) -> None:
        """Say on standard error what went wrong; the first failure decides the exit code."""
        failure = describe_failure(error)
        named = UncompError(f"{title}: {failure.message}" if title else failure.message, hint=failure.hint)
        named.__cause__ = error
        show_failure(named, self._terminal)
        self.exit_code = self.exit_code or failure.exit_code

    def _write_failure(self, name: str, number: int, error: Exception) -> None:
        if self._job.as_json:
            path = name if self._job.each else None
            record = failure_record(self._questions[number], describe_failure(error), path=path)
            self._terminal.write_json(record)
