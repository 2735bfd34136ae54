"""`uncomp batch`: the same questions of thousands of documents, a row each, by several models at once.

Rows go to a file, nothing to standard output but the estimate of --dry-run. A document that has no answer has its row
with the reason, and the exit code is 1 then.
"""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uncomp_cli.cli.declare.options import (
    ModelOptions,
    OutputOptions,
    PresetOptions,
    ReadingOptions,
    SamplingOptions,
    System,
    Truncate,
    trust_option,
)
from uncomp_cli.cli.declare.shorthand import fields_of
from uncomp_cli.cli.declare.tree import argument, brief, option
from uncomp_cli.config import CrewConfig
from uncomp_cli.errors import UsageError
from uncomp_cli.numerals import format_count, format_value
from uncomp_cli.table import Table
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.meter import show

if TYPE_CHECKING:
    from uncomp_cli.batch.run import Batch

_work = partial(option, panel="Work")
_AUTO = "auto"
_CREW = CrewConfig()
Inputs = Annotated[
    list[str] | None,
    argument(
        "Files, directories, globs, manifests (.jsonl or .parquet: path, or text and name, a row), also s3://… and the "
        "like.",
        "INPUT",
    ),
]


@dataclass(frozen=True, slots=True)
class BatchOptions:
    """What is asked, and where rows go."""

    out: Annotated[
        Path | None,
        option("--out", help="Results, .jsonl or .parquet: one row a document.", metavar="PATH", setting=False),
    ] = None
    questions: Annotated[
        tuple[str, ...],
        option("--question", "-Q", help="A question of every document; repeatable.", metavar="QUESTION", setting=False),
    ] = ()
    questions_file: Annotated[
        Path | None, option("--questions", help="File with one question a line.", metavar="PATH", setting=False)
    ] = None
    resume: Annotated[
        bool, option("--resume", help="Go on with the rows that --out has; settings must be the same.", setting=False)
    ] = False
    dry_run: Annotated[
        bool, option("--dry-run", help="Only say what it would take, from some of the documents.", setting=False)
    ] = False
    evidence: Annotated[
        bool, trust_option("--evidence", help="Put the passages that answers looked at most into the rows.")
    ] = False


@dataclass(frozen=True, slots=True)
class WorkOptions:
    """Where it is worked, and by how many."""

    ray: Annotated[
        str, _work("--ray", help="Where to work: local, or a cluster, by HOST:PORT or auto.", metavar="ADDRESS")
    ] = _CREW.ray
    actors: Annotated[
        int | None, _work("--actors", help="Models that work side by side.", metavar="N", min=1, show_default=_AUTO)
    ] = _CREW.actors
    threads: Annotated[
        int | None, _work("--threads", help="Threads of each on a CPU.", metavar="N", min=1, show_default=_AUTO)
    ] = _CREW.threads
    gpus: Annotated[
        float | None,
        _work(
            "--gpus",
            help="Part of a GPU that each has, such as 0.5.",
            metavar="SHARE",
            min=0.0,
            show_default="1 where there are GPUs",
        ),
    ] = _CREW.gpus
    readers: Annotated[int, _work("--readers", help="Tasks that read documents.", metavar="N", min=1)] = _CREW.readers
    batch_size: Annotated[
        int,
        _work(
            "--batch-size",
            help="Most documents that are answered together, and written together; 1 is exactly as ask does one.",
            metavar="N",
            min=1,
        ),
    ] = _CREW.batch_size

    def config(self) -> CrewConfig:
        """The same as a batch takes it."""
        return CrewConfig(**fields_of(self))


BRIEF = brief(
    "questions question out resume dry-run ray actors threads gpus model preset budget max-new-tokens include quiet",
    ("uncomp batch reports/ --questions asked.txt --out results.jsonl", "a row for each document of a folder"),
    ("uncomp batch reports/ --questions asked.txt --out results.jsonl --resume", "go on after whatever ended it"),
    ("uncomp batch list.parquet -Q 'Who signed?' --out answers.parquet --actors 4 --threads 2", "a manifest, 8 cores"),
    ("uncomp batch s3://bucket/reports/ -Q 'Who?' --out r.jsonl --ray 10.0.0.1:6379", "on a cluster"),
)


def batch(
    ctx: typer.Context,
    inputs: Inputs = None,
    *,
    asked: BatchOptions,
    work: WorkOptions,
    model: ModelOptions,
    preset: PresetOptions,
    reading: ReadingOptions,
    system: System = None,
    truncate: Truncate = None,
    sampling: SamplingOptions,
    output: OutputOptions,
) -> None:
    """Ask the same questions of thousands of documents, each by itself."""
    from uncomp_cli.asking.request import Request
    from uncomp_cli.batch.run import Batch

    if not inputs:
        raise UsageError(
            "no document was named", hint="uncomp batch reports/ --questions asked.txt --out results.jsonl"
        )
    if not asked.questions and asked.questions_file is None:
        raise UsageError("no question was given", hint="name it: -Q 'Who signed?', or --questions FILE")
    if asked.out is None and not asked.dry_run:
        raise UsageError("there is no place for the results", hint="name it: --out results.jsonl")
    request = Request(
        include=reading.include,
        questions=asked.questions,
        questions_file=asked.questions_file,
        truncate=truncate,
        model=model.choice(),
        preset=preset.choice(sampling.seed),
        system=system,
        sampling=sampling.config(),
        limits=reading.limits(),
        evidence=asked.evidence,
        wishes=reading.wishes(),
        each=True,
    )
    wanted = Batch(tuple(inputs), asked.out or Path(), request, resume=asked.resume, crew=work.config())
    terminal = output.terminal(ctx)
    if asked.dry_run:
        _estimate(wanted, terminal, as_json=output.as_json)
    else:
        _run(wanted, terminal, as_json=output.as_json)


def _estimate(wanted: "Batch", terminal: Terminal, *, as_json: bool) -> None:
    from uncomp_cli.batch.run import estimate

    record = show(estimate(wanted), terminal)
    if as_json:
        terminal.write_json(record)
    else:
        rows = [
            (key.removesuffix("_bytes").replace("_", " "), format_value(key, value)) for key, value in record.items()
        ]
        terminal.write_table(Table(("WHAT", "SIZE"), rows))


def _run(wanted: "Batch", terminal: Terminal, *, as_json: bool) -> None:
    from uncomp_cli.batch.results import places_of
    from uncomp_cli.batch.run import run

    try:
        summary = show(run(wanted), terminal)
    except KeyboardInterrupt:
        _, rows, _ = places_of(wanted.out)
        if rows.exists():
            terminal.note(f"the rows that there are stay in {rows}; the same command with --resume goes on")
        raise
    if as_json:
        terminal.write_json(summary.record())
    terminal.note(f"{summary.line}: {wanted.out}")
    if summary.failed:
        loud = replace(terminal, quiet=False)
        failed = format_count(summary.failed, "document")
        loud.warn(f"{failed} without an answer: `error` in the row has the reason and a hint")
        raise typer.Exit(1)
