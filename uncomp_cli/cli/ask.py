"""`uncomp ask`: questions about documents, answered from a compressed cache.

Documents are read before anything heavy is loaded; a run that cannot fit is refused before it starts. Events become
text on the right streams, and an exit code: standard output has the answers, or one JSON object each; everything else
goes to standard error. The first failure decides the exit code, which is that of a threshold (5) when an answer's
calibrated chance is under --fail-under. On a terminal each of several answers has its heading on standard output; in a
pipe there are the answers alone, a blank line between them.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import typer

from uncomp_cli.asking.events import Began, Done, Event, Foreseen, Piece, Planned, Refused, Stopped, Thought
from uncomp_cli.cli.declare.advice import advise_calibration, advise_model
from uncomp_cli.cli.declare.failures import show_failure
from uncomp_cli.cli.declare.options import (
    Escalate,
    File,
    ModelOptions,
    OutputOptions,
    PresetOptions,
    Question,
    ReadingOptions,
    SamplingOptions,
    SavingOptions,
    System,
    Thinking,
    Truncate,
    Verbose,
    terminal_of,
    trust_option,
)
from uncomp_cli.cli.declare.shorthand import fields_of
from uncomp_cli.cli.declare.tree import brief, option
from uncomp_cli.errors import LockedError, UncompError, failure_of
from uncomp_cli.numerals import format_count, format_value
from uncomp_cli.table import Table
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.input import with_password
from uncomp_cli.ui.meter import show

if TYPE_CHECKING:
    from uncomp_cli.asking.request import Request


@dataclass(frozen=True, slots=True)
class AskOptions:
    """What is asked of which documents, and what is told of the answers."""

    paths: File = ()
    questions: Annotated[
        tuple[str, ...],
        # No setting: a question may hold any character, so that none could separate two in a variable.
        option(
            "--question",
            "-Q",
            help="A further question about what was read once; repeatable.",
            metavar="QUESTION",
            setting=False,
        ),
    ] = ()
    questions_file: Annotated[
        Path | None,
        option(
            "--questions",
            help="File with one question a line, also one that begins with #.",
            metavar="PATH",
            setting=False,
        ),
    ] = None
    each: Annotated[
        bool, option("--each", help="Ask every document by itself; answers are written file by file.", setting=False)
    ] = False
    pins: Annotated[
        tuple[str, ...],
        trust_option(
            "--pin",
            setting=False,
            help="Lines or pages that are never dropped from the cache: notes.md:10-40, report.pdf:p3 (the third "
            "in the file, whatever number is printed on it); repeatable.",
            metavar="FILE:LINES",
        ),
    ] = ()
    escalate: Escalate = False
    fail_under: Annotated[
        float | None,
        trust_option(
            "--fail-under",
            help="Exit with 5 when an answer's calibrated chance of being right is below this, such as 0.8.",
            metavar="CHANCE",
        ),
    ] = None
    evidence: Annotated[
        bool,
        trust_option(
            "--evidence", help="Then show the passages that the answer looked at most, and how much of them was kept."
        ),
    ] = False
    why: Annotated[
        bool,
        trust_option(
            "--why", help="Then say where the bytes went: layers, head groups and what was measured.", setting=False
        ),
    ] = False
    truncate: Truncate = None
    dry_run: Annotated[
        bool, option("--dry-run", help="Only say what it would take: tokens, bytes, fits or not.", setting=False)
    ] = False
    ranks: Annotated[
        int,
        option(
            "--ranks",
            help="So many processes share the model, each a part of its heads: for one larger than a GPU, of which "
            "each process takes its own. For models in Hugging Face format.",
            metavar="N",
            min=1,
        ),
    ] = 1
    explain_budget: Annotated[bool, option("--explain-budget", help="Now --why.", setting=False, hidden=True)] = False


BRIEF = brief(
    "file question each cache dry-run evidence why model preset budget context system max-new-tokens "
    "json quiet verbose",
    ('uncomp ask -f report.pdf "Who signed?"', "a question about a document, in a fifth of the cache"),
    ('uncomp ask -f report.pdf "Who signed?" -Q "When?" --evidence', "two questions over one reading, with passages"),
    ('uncomp ask -f report.pdf --cache auto "Who signed?"', "read once: the next question is answered at once"),
    ('uncomp ask -f book.txt --context 32k --dry-run "Who?"', "what it would take, past the trained length too"),
)


def ask(
    ctx: typer.Context,
    words: Question = None,
    *,
    asked: AskOptions,
    model: ModelOptions,
    preset: PresetOptions,
    reading: ReadingOptions,
    saving: SavingOptions,
    system: System = None,
    sampling: SamplingOptions,
    output: OutputOptions,
    verbose: Verbose = False,
    show_thinking: Thinking = False,
) -> None:
    """Ask questions about documents."""
    from uncomp_cli.asking.forecast import remember_pace
    from uncomp_cli.asking.pipeline import tell_apart
    from uncomp_cli.asking.request import Request, parse_pin, saved_or_new

    given = fields_of(asked) | fields_of(saving)
    beside, question = tell_apart(words or (), asked=bool(asked.questions or asked.questions_file))
    given["paths"] = (*asked.paths, *beside)
    given["questions"] = question + asked.questions
    given["pins"] = tuple(map(parse_pin, asked.pins))
    given["explain_budget"] = given.pop("why") or asked.explain_budget
    given |= saved_or_new(given.pop("cache"), saving.cache_size)
    chosen = replace(model.choice(), ranks=given.pop("ranks"))
    request = Request(
        **given,
        include=reading.include,
        model=chosen,
        preset=preset.choice(sampling.seed),
        system=system,
        sampling=sampling.config(),
        as_json=output.as_json,
        limits=reading.limits(),
        wishes=reading.wishes(),
    )
    terminal = terminal_of(ctx, quiet=output.quiet, verbose=verbose, thinking=show_thinking)
    with Printer(terminal, as_json=request.as_json) as printer:
        _answer(request, terminal, printer)
    advise_model(terminal, request.model.name)
    if printer.last is not None:
        remember_pace(request.model.name, printer.last.record())
    if printer.last is not None and preset.name is None:
        advise_calibration(terminal, request.model.name, printer.last.record())
    raise typer.Exit(printer.exit_code)


def _answer(request: "Request", terminal: Terminal, printer: "Printer") -> None:
    """Show the run; where it meets a locked document, once more with the password that is typed."""
    from uncomp_cli.asking.pipeline import run

    try:
        show(run(request), terminal, tell=printer.tell)
    except LockedError as error:
        _answer(replace(request, wishes=with_password(error, request.wishes, terminal)), terminal, printer)


_INTERRUPTED = 130
_NOT_SHOWN = {"schema_version", "files", "refusal", "warnings"}


class Printer:
    """Writes what happens in the order in which it happens; the line of an answer is ended behind all of it."""

    def __init__(self, terminal: Terminal, *, as_json: bool) -> None:
        self._terminal, self._as_json = terminal, as_json
        self.exit_code = 0
        self.last: Done | None = None
        self._written = 0
        self._in_answer = False
        self._tellers: dict[type[Any], Callable[[Any], None]] = {
            Planned: self._planned,
            Foreseen: self._foreseen,
            Began: self._began,
            Piece: self._piece,
            Thought: lambda event: self._terminal.write_thought(event.text),
            Done: self._done,
            Refused: self._refused,
            Stopped: self._stopped,
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end_line()

    def tell(self, event: Event) -> None:
        """Write what happened."""
        self._tellers[type(event)](event)

    def _planned(self, event: Planned) -> None:
        for line in event.lines:
            self._terminal.note(line)

    def _foreseen(self, event: Foreseen) -> None:
        if self._as_json:
            self._terminal.write_json(event.record)
        else:
            self._separate()
            self._terminal.write_table(Table(("WHAT", "SIZE"), list(_forecast_rows(event.record))))
        if event.refusal is not None:
            self._terminal.error(event.refusal.message, hint=event.refusal.hint)
            self.exit_code = self.exit_code or event.refusal.exit_code

    def _began(self, event: Began) -> None:
        self._separate()
        turn = event.turn
        if turn.titles:
            heading = f"{turn.titles[0]}: {turn.question}"
            at_hand = self._terminal.stdout_is_terminal and not self._as_json
            (self._terminal.write_heading if at_hand else self._terminal.note)(heading)

    def _piece(self, event: Piece) -> None:
        if not self._as_json:
            self._in_answer = True
            self._terminal.write_answer(event.text)

    def _done(self, event: Done) -> None:
        terminal, turn, self.last = self._terminal, event.turn, event
        if self._as_json:
            terminal.write_json(event.record())
        self._end_line(answered=True)
        if event.stats.finish_reason == "interrupted":
            terminal.note("[interrupted]")
        if event.ending is not None:
            terminal.warn(event.ending)
        terminal.note(event.readout(verbose=terminal.verbose))
        if not self._as_json:
            self._tell_more(event)
        for doubt in event.doubts:
            terminal.warn(doubt)
        if event.short is not None:
            self._fail(event.short, ": ".join(turn.titles))

    def _tell_more(self, event: Done) -> None:
        """What was asked for by name, so also when quiet."""
        from uncomp_cli.asking.account import budget_lines
        from uncomp_cli.asking.readout import evidence_lines

        lines = [*evidence_lines(event.evidence, width=self._terminal.width("stderr"))]
        if event.spent is not None and event.is_last:
            lines += budget_lines(event.spent)
        for line in lines:
            replace(self._terminal, quiet=False).note(line)

    def _refused(self, event: Refused) -> None:
        self._end_line()
        self._fail(event.error, event.title)
        if self._as_json:
            for record in event.records():
                self._terminal.write_json(record)

    def _stopped(self, event: Stopped) -> None:
        self.exit_code = _INTERRUPTED

    def _separate(self) -> None:
        """A blank line between what is written on standard output for people."""
        if self._written and not self._as_json:
            self._terminal.write_line()
        self._written += 1

    def _end_line(self, *, answered: bool = False) -> None:
        """End the line of an answer, though it be an empty one."""
        if (self._in_answer or answered) and not self._as_json:
            self._terminal.write_line()
        self._in_answer = False

    def _fail(self, error: Exception, title: str) -> None:
        """Say on standard error what went wrong; the first failure decides the exit code."""
        failure = failure_of(error)
        named = UncompError(f"{title}: {failure.message}" if title else failure.message, hint=failure.hint)
        named.__cause__ = error
        show_failure(named, self._terminal)
        self.exit_code = self.exit_code or failure.exit_code


def _forecast_rows(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield from ((file["path"], format_count(file["tokens"], "token")) for file in record["files"])
    yield from ((_label(key), format_value(key, value)) for key, value in record.items() if key not in _NOT_SHOWN)


def _label(key: str) -> str:
    return key.removesuffix("_bytes").replace("_", " ").replace("kv", "KV cache,")
