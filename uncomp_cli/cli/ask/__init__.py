"""`uncomp ask`: questions about documents, answered from a compressed cache.

Documents are read before anything heavy is loaded; a run that cannot fit is refused before it starts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from uncomp_cli.asking.pipeline import run
from uncomp_cli.asking.request import Request, parse_pin
from uncomp_cli.cli.ask.printer import Printer
from uncomp_cli.cli.declare.options import (
    COMPRESSION_PANEL,
    OUTPUT_PANEL,
    File,
    ModelOptions,
    OutputOptions,
    PresetOptions,
    ReadingOptions,
    SamplingOptions,
    SavingOptions,
    System,
    Truncate,
)
from uncomp_cli.cli.declare.tree import option
from uncomp_cli.ui.meter import show


@dataclass(frozen=True, slots=True)
class AskOptions:
    """What is asked of which documents, and what is told of the answers."""

    file: File = ()
    include: Annotated[
        tuple[str, ...],
        option("--include", help="In directories, only files like this, such as '*.md'; repeatable.", metavar="GLOB"),
    ] = ()
    more: Annotated[
        tuple[str, ...],
        # No setting: a question may hold any character, so that none could separate two in a variable.
        option(
            "--question",
            "-Q",
            help="A further question over the same prefill; repeatable.",
            metavar="QUESTION",
            setting=False,
        ),
    ] = ()
    questions: Annotated[Path | None, option("--questions", help="File with one question a line.", metavar="PATH")] = (
        None
    )
    each: Annotated[bool, option("--each", help="Ask every document by itself; answers are written file by file.")] = (
        False
    )
    pin: Annotated[
        tuple[str, ...],
        option(
            "--pin",
            help="Lines of a document that are never dropped from the cache, such as notes.md:10-40; repeatable.",
            metavar="FILE:LINES",
            panel=COMPRESSION_PANEL,
        ),
    ] = ()
    escalate: Annotated[
        bool,
        option(
            "--escalate",
            help="When the retrieval heads are unusually uncertain, ask again with twice the budget, up to full.",
            panel=COMPRESSION_PANEL,
        ),
    ] = False
    fail_under: Annotated[
        float | None,
        option(
            "--fail-under",
            help="Exit with 5 when an answer's calibrated chance of being right is below this, such as 0.8.",
            metavar="CHANCE",
            panel=OUTPUT_PANEL,
        ),
    ] = None
    evidence: Annotated[
        bool,
        option(
            "--evidence",
            help="Then show the passages that the answer looked at most, and how much of them was kept.",
            panel=OUTPUT_PANEL,
        ),
    ] = False
    truncate: Truncate = None
    dry_run: Annotated[bool, option("--dry-run", help="Only say what it would take: tokens, bytes, fits or not.")] = (
        False
    )
    explain_budget: Annotated[
        bool,
        option("--explain-budget", help="Then say where the bytes went: layers, head groups and what was measured."),
    ] = False


def ask(
    ctx: typer.Context,
    question: Annotated[str | None, typer.Argument(help="The question.", metavar="QUESTION")] = None,
    *,
    asked: AskOptions,
    model: ModelOptions,
    preset: PresetOptions,
    reading: ReadingOptions,
    saving: SavingOptions,
    system: System = None,
    sampling: SamplingOptions,
    output: OutputOptions,
) -> None:
    """Ask questions about documents."""
    request = Request(
        paths=asked.file,
        include=asked.include,
        questions=((question,) if question is not None else ()) + asked.more,
        questions_file=asked.questions,
        truncate=asked.truncate,
        dry_run=asked.dry_run,
        model=model.choice(),
        preset=preset.choice(sampling.seed),
        system=system,
        sampling=sampling.config(),
        as_json=output.as_json,
        explain_budget=asked.explain_budget,
        limits=reading.limits(),
        matmul=model.matmul,
        each=asked.each,
        evidence=asked.evidence,
        pins=tuple(parse_pin(text) for text in asked.pin),
        save_cache=saving.save_cache,
        reuse=saving.reuse,
        cache_size=saving.cache_size,
        escalate=asked.escalate,
        fail_under=asked.fail_under,
    )
    terminal = output.terminal(ctx)
    with Printer(terminal, as_json=request.as_json) as printer:
        show(run(request), terminal, tell=printer.tell)
    raise typer.Exit(printer.exit_code)
