"""`uncomp ask --save-cache` and `--reuse`: a document is read once, without a question, and asked again and again.

Streams, JSON and readout are those of any answer; questions are answered one after another behind the same cache. What
cannot be saved is told, and takes no answer away.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from uncomp_cli.asking.account import Spent, budget_lines
from uncomp_cli.asking.doubts import entropy_of, fall_short, risk_of, risk_warnings
from uncomp_cli.asking.readout import (
    About,
    answer_record,
    cite,
    evidence_lines,
    evidence_warnings,
    failure_record,
    readout,
)
from uncomp_cli.asking.request import Request
from uncomp_cli.cli.ask.reused_contexts import ContextOpener, OpenContext
from uncomp_cli.cli.declare.failures import describe_failure, show_failure
from uncomp_cli.cli.declare.options import shelf_of
from uncomp_cli.documents.collection import DocumentSet
from uncomp_cli.errors import DoesNotFitError, UncompError, is_out_of_memory
from uncomp_cli.numerals import format_count, format_readout
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.meter import watch_generation

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.documents.evidence import Evidence
    from uncomp_cli.engine.context.reused import ReusedSession
    from uncomp_cli.models.loading import LoadedModel

__all__ = ["run_reused"]

_INTERRUPTED = 130


def run_reused(
    job: Request,
    documents: DocumentSet,
    questions: Sequence[str],
    preset: "Preset",
    loaded: "LoadedModel",
    terminal: Terminal,
) -> int:
    """Answer `questions` of a context that is read and saved, or loaded; returns the exit code.

    Without documents the named cache is asked as it is.
    """
    from uncomp_cli.engine.context.reused import ReusedSession

    session = ReusedSession(loaded, preset, job.sampling, job.limits, matmul=job.matmul)
    opener = ContextOpener(job, questions, session, shelf_of(job.cache_size), terminal)
    contexts = job.contexts(documents) if documents.documents else [documents]
    return _Reusing(job, questions, session, terminal).run(opener, contexts)


class _Reusing:
    """Writes the answers of one session; what fails is told, and what is beside it goes on."""

    def __init__(self, job: Request, questions: Sequence[str], session: "ReusedSession", terminal: Terminal) -> None:
        self._job, self._questions, self._session, self._terminal = job, questions, session, terminal
        self._exit_code = 0
        self._written = 0

    def run(self, opener: ContextOpener, contexts: Sequence[DocumentSet]) -> int:
        """Context by context; with --each one that fails is told and the others go on."""
        for number, documents in enumerate(contexts):
            try:
                self._ask(opener.open(documents), later=number > 0)
            except Exception as error:
                if not (self._job.each and _can_go_on(error)):
                    raise
                self._fail(error, where=f"{documents.documents[0].path}: ")
            if self._exit_code == _INTERRUPTED:
                break
        return self._exit_code

    def _ask(self, context: OpenContext, *, later: bool) -> None:
        if context.not_saved is not None:
            self._fail(context.not_saved, where="the document is not saved: ")
        for number in range(len(self._questions)):
            try:
                self._answer(number, context, later=later or number > 0)
            except Exception as error:
                if len(self._questions) == 1 or not _can_go_on(error):
                    raise
                self._refuse(number, context, error)
            if self._exit_code == _INTERRUPTED:
                return
        if self._job.explain_budget and not self._job.as_json:
            self._say(budget_lines(self._spent()))

    def _answer(self, number: int, context: OpenContext, *, later: bool) -> None:
        """Write the answer to one question; Ctrl-C keeps what was said of it."""
        if number not in context.numbers:
            limit = self._session.loaded.spec.trained_length
            message = f"the question leaves no room for an answer in a context of {format_count(limit)} tokens"
            raise DoesNotFitError(message, hint="ask something shorter")
        job, terminal = self._job, self._terminal
        self._announce(number, context)
        pieces: list[str] = []
        ids: list[int] = []
        try:
            for text in self._texts(context.numbers.index(number), self._questions[number], ids):
                pieces.append(text)
                if not job.as_json:
                    terminal.write_answer(text)
        except KeyboardInterrupt:
            if not pieces and not self._written:
                raise
            self._exit_code = _INTERRUPTED
        self._written += 1
        if pieces and not job.as_json:
            terminal.write_line()
        if pieces:
            self._report(number, "".join(pieces), self._cited(context, number, ids), context, later=later)

    def _texts(self, question: int, words: str, ids: list[int]) -> Iterator[str]:
        """The pieces of an answer; its tokens but the one that ends it are put into `ids`."""
        session = self._session
        steps = session.answer(question, words=words)
        for step in watch_generation(steps, self._terminal, entropy=lambda: entropy_of(session.stats)):
            if step.index == 0 and self._session.recalled is not None:
                self._terminal.note(self._session.recalled)
            if step.finish_reasons[0] != "stop":
                ids.append(step.token_ids[0])
            yield step.texts[0]

    def _announce(self, number: int, context: OpenContext) -> None:
        question, count = self._questions[number], len(self._questions)
        if self._written and not self._job.as_json:
            self._terminal.write_line()
        if self._job.each:
            self._terminal.note(f"{context.name}: {question}")
        elif count > 1:
            self._terminal.note(f"question {number + 1} of {count}: {question}")

    def _cited(self, context: OpenContext, number: int, ids: Sequence[int]) -> "list[Evidence]":
        """The passages that the answer looked at, when they were asked for."""
        if not self._job.evidence or self._exit_code == _INTERRUPTED:
            return []
        session, held = self._session, self._session.held
        question = held.prompt.questions[context.numbers.index(number)]
        first = len(held.prompt.context) + len(question) - 1
        return cite(
            session.decoder,
            held.cache,
            (question[-1], *ids),
            first,
            places=context.places,
            trust=session.trust(),
            sinks=session.preset.scorer.sinks,
        )

    def _report(
        self, number: int, answer: str, cited: "Sequence[Evidence]", context: OpenContext, *, later: bool
    ) -> None:
        session, terminal, stats = self._session, self._terminal, self._session.stats
        if stats is None:
            return
        risk = risk_of(session.preset, stats, session.loaded)
        doubts = [*risk_warnings(risk), *evidence_warnings(cited)]
        if self._job.as_json:
            terminal.write_json(self._record(number, answer, cited, [*context.warnings, *doubts], context, later=later))
        if stats.finish_reason == "interrupted" and len(self._questions) > 1:
            terminal.note("[interrupted]")
        terminal.note(format_readout(readout(stats, session.loaded.spec)))
        if not self._job.as_json:
            self._say(evidence_lines(cited))
        for doubt in doubts:
            terminal.warn(doubt)
        least = self._job.fail_under
        short = None if least is None else fall_short(risk, least)
        if short is not None:
            count = len(self._questions)
            self._fail(short, where=f"question {number + 1} of {count}: " if count > 1 else "")

    def _record(
        self,
        number: int,
        answer: str,
        cited: "Sequence[Evidence]",
        warnings: Sequence[str],
        context: OpenContext,
        *,
        later: bool,
    ) -> dict[str, Any]:
        session = self._session
        if session.stats is None:
            raise RuntimeError("nothing has been answered")
        return answer_record(
            About(session.loaded, lambda: context.files, warnings, self._job.sampling.seed, later=later),
            session.preset,
            session.stats,
            question=self._questions[number],
            answer=answer,
            evidence=cited,
            spent=self._spent() if self._job.explain_budget else None,
        )

    def _spent(self) -> Spent:
        held, spec = self._session.held, self._session.loaded.spec
        layer_bytes = [held.cache.layer(layer).nbytes for layer in range(spec.num_layers)]
        return Spent(held.plan, spec, layer_bytes, held.uncertainty, self._session.measured)

    def _say(self, lines: Iterator[str]) -> None:
        """What was asked for by name, so also when quiet."""
        for line in lines:
            replace(self._terminal, quiet=False).note(line)

    def _refuse(self, number: int, context: OpenContext, error: Exception) -> None:
        """Tell that one question has no answer; the others have."""
        if self._job.as_json:
            path = context.name if self._job.each else None
            self._terminal.write_json(failure_record(self._questions[number], describe_failure(error), path=path))
        self._fail(error, where=f"question {number + 1} of {len(self._questions)}: ")

    def _fail(self, error: Exception, *, where: str) -> None:
        """Tell what went wrong; the first failure decides the exit code."""
        failure = describe_failure(error)
        named = UncompError(f"{where}{failure.message}", hint=failure.hint)
        named.__cause__ = error
        show_failure(named, self._terminal)
        self._exit_code = self._exit_code or failure.exit_code


def _can_go_on(error: Exception) -> bool:
    return isinstance(error, UncompError) or is_out_of_memory(error)
