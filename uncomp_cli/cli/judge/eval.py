"""`uncomp eval`: contestants on tasks with known answers, at equal measured bytes, in tables, JSON and pictures."""

import hashlib
import json
import shlex
import sys
from collections.abc import Generator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TextIO

import typer

from uncomp_cli.cli.ask.prepare import ModelChoice, load
from uncomp_cli.cli.declare.options import (
    Device,
    Dtype,
    Json,
    Model,
    Offline,
    Quantize,
    Quiet,
    Seed,
    Tokenizer,
    policy_names,
    terminal_of,
)
from uncomp_cli.cli.declare.tree import option
from uncomp_cli.cli.judge.eval_report import Table, asked_for, draw, record, tables_of, write_markdown, write_tables
from uncomp_cli.config import DEFAULT_MODEL, SamplingConfig
from uncomp_cli.errors import UsageError
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.live import loading
from uncomp_cli.ui.meter import Meter, Reading

if TYPE_CHECKING:
    from uncomp_cli.evals.judges.run import EvalRequest, EvalStep
    from uncomp_cli.evals.tasks.haystack import Haystack
    from uncomp_cli.evals.tasks.sample import Regime

__all__ = ["eval"]

_SEED = SamplingConfig().seed
TASK_PANEL = "Tasks"
RESULTS_PANEL = "Results"
DEFAULT_TASKS = ("needle", "ruler")
DEFAULT_POLICIES = ("uniform", "adaptive", "pyramid", "sinks", "random", "full/8bit")
DEFAULT_BUDGETS = ("50%", "20%", "10%", "5%")


@dataclass(frozen=True, slots=True)
class EvalJob:
    """Everything that one `uncomp eval` was told about what to judge and where to write."""

    tasks: tuple[str, ...]
    policies: tuple[str, ...]
    budgets: tuple[str, ...]
    tokens: tuple[int, ...]
    samples: int
    regimes: "tuple[Regime, ...]"
    paths: tuple[str, ...]
    out: Path | None
    fresh: bool
    show: bool
    plot: Path | None
    markdown: Path | None
    seed: int
    as_json: bool


def eval(
    ctx: typer.Context,
    task: Annotated[
        list[str] | None,
        option(
            "--task",
            "-t",
            help="Task or subtask: needle, ruler/vt, multiquestion, conversation, evidence, fidelity, …; repeatable.",
            metavar="NAME",
            show_default=", ".join(DEFAULT_TASKS),
            panel=TASK_PANEL,
        ),
    ] = None,
    tokens: Annotated[
        list[int] | None,
        option(
            "--tokens",
            help="Length of a sample, question included; repeatable.",
            metavar="N",
            min=200,
            show_default="1800",
            panel=TASK_PANEL,
        ),
    ] = None,
    samples: Annotated[
        int, option("--samples", help="Samples of each subtask and length.", metavar="N", min=1, panel=TASK_PANEL)
    ] = 10,
    regime: Annotated[
        Literal["aware", "agnostic", "both"],
        option(
            "--regime",
            help="Whether the question is seen when the cache is compressed; two tables, never one.",
            panel=TASK_PANEL,
        ),
    ] = "both",
    file: Annotated[
        list[str] | None,
        typer.Option(
            "--file",
            "-f",
            help="Text that facts are hidden in: file, directory, glob, or - for standard input; repeatable.",
            show_default="generated prose",
            metavar="PATH",
            rich_help_panel=TASK_PANEL,
        ),
    ] = None,
    # No settings: a policy or budget that is set for `uncomp ask` must not choose who is judged.
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            help="Contestant: POLICY[/SCORER][/8bit|/4bit][/published][/thin=THINNING], or preset:NAME; repeatable.",
            metavar="NAME",
            show_default=", ".join(DEFAULT_POLICIES),
            autocompletion=policy_names,
            rich_help_panel="Compression",
        ),
    ] = None,
    budget: Annotated[
        list[str] | None,
        typer.Option(
            "--budget",
            "-b",
            help="KV cache to keep, as in `uncomp ask`; repeatable.",
            metavar="AMOUNT",
            show_default=", ".join(DEFAULT_BUDGETS),
            rich_help_panel="Compression",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        option(
            "--out",
            help="Results file (JSON lines); one that exists is continued.",
            metavar="PATH",
            show_default="a file of its own in the data directory for every combination of model, text and seed",
            panel=RESULTS_PANEL,
        ),
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="Begin anew; the old results file stays beside it.", rich_help_panel=RESULTS_PANEL
        ),
    ] = False,
    show: Annotated[
        bool,
        typer.Option("--show", help="Run nothing: show all that is in the --out file.", rich_help_panel=RESULTS_PANEL),
    ] = False,
    plot: Annotated[
        Path | None, option("--plot", help="Draw pictures into this directory.", metavar="DIR", panel=RESULTS_PANEL)
    ] = None,
    markdown: Annotated[
        Path | None,
        option("--markdown", help="Write the tables as Markdown too.", metavar="PATH", panel=RESULTS_PANEL),
    ] = None,
    model: Model = DEFAULT_MODEL,
    tokenizer: Tokenizer = None,
    quantize: Quantize = "none",
    device: Device = "auto",
    dtype: Dtype = "auto",
    offline: Offline = False,
    seed: Seed = _SEED,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Judge policies side by side on tasks with known answers."""
    if show and (chosen := _given(ctx)):
        raise UsageError(f"--show shows all that is in the file, {chosen[0]} chooses", hint="leave one of the two out")
    job = EvalJob(
        tasks=tuple(task or DEFAULT_TASKS),
        policies=tuple(policy or DEFAULT_POLICIES),
        budgets=tuple(budget or DEFAULT_BUDGETS),
        tokens=tuple(tokens or [1800]),
        samples=samples,
        regimes=("aware", "agnostic") if regime == "both" else (regime,),
        paths=tuple(file or ()),
        out=out,
        fresh=fresh,
        show=show,
        plot=plot,
        markdown=markdown,
        seed=seed,
        as_json=as_json,
    )
    run_eval(job, ModelChoice(model, tokenizer, quantize, device, dtype, offline), terminal_of(ctx, quiet=quiet))


def _given(ctx: typer.Context) -> list[str]:
    """The options on this command line that choose what is run."""
    names = ("task", "tokens", "samples", "regime", "file", "policy", "budget", "fresh")
    return [f"--{name}" for name in names if "COMMANDLINE" in str(ctx.get_parameter_source(name))]


def run_eval(job: EvalJob, choice: ModelChoice, terminal: Terminal) -> None:
    """Run one `uncomp eval`."""
    if job.show:
        show_results(job, terminal)
        return
    with loading(terminal, "preparing"):
        request = _request(job, terminal)
    loaded = load(choice, terminal)
    from uncomp_cli.evals.judges import run as runner
    from uncomp_cli.evals.tables.results import ResultsFile, set_aside

    runner.check_lengths(request, loaded.spec.trained_length)
    settings = runner.results_settings(request, loaded)
    path = job.out or _default_path(settings)
    if job.fresh and (old := set_aside(path)) is not None:
        terminal.note(f"the old results are in {old}")
    with ResultsFile.open(path, settings) as results:
        terminal.note(f"results: {path} ({len(results.done):,} there)")
        _watch(runner.run_eval(request, loaded, results), terminal)
        _report(job, tables_of(asked_for(request, results.outcomes)), path, settings, terminal)


def show_results(job: EvalJob, terminal: Terminal) -> None:
    """The tables of an existing results file."""
    from uncomp_cli.evals.tables.results import read_results

    if job.out is None:
        raise UsageError("--show shows an existing file", hint="name it with --out")
    settings, outcomes = read_results(job.out)
    if not outcomes:
        raise UsageError(f"{job.out} holds no results yet", hint="run the same command without --show first")
    _report(job, tables_of(outcomes), job.out, settings, terminal)


def _report(job: EvalJob, tables: "list[Table]", path: Path, settings: dict[str, object], terminal: Terminal) -> None:
    """Tables or JSON on standard output; Markdown and pictures where they were asked for.

    What made the results is known of a run alone: a file that is shown again may come from another machine.
    """
    made = {} if job.show else {**_hardware(), "command": shlex.join(["uncomp", *sys.argv[1:]])}
    if job.as_json:
        terminal.write_json(record(tables, results=path, settings=settings, made=made))
    else:
        write_tables(tables, terminal)
    if job.markdown is not None:
        write_markdown(tables, job.markdown, facts={**settings, **made})
    if job.plot is not None:
        with loading(terminal, "drawing"):
            drawn = draw(tables, job.plot)
        terminal.note(f"{len(drawn)} pictures in {job.plot}")


def _hardware() -> dict[str, object]:
    import os
    from importlib.metadata import version

    from uncomp_cli.bench.ratios import cpu_name

    versions = {name: version(name) for name in ("torch", "transformers")}
    return {"cpu": cpu_name(), "cores": os.cpu_count(), **versions}


def _request(job: EvalJob, terminal: Terminal) -> "EvalRequest":
    """What to run; a slip in a name is found before anything is loaded."""
    from uncomp_cli.evals.judges.contestants import make_settings
    from uncomp_cli.evals.judges.run import EvalRequest, check_regimes
    from uncomp_cli.evals.tasks import choose_subtasks

    if job.plot is not None and find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib, which is not installed", hint="pip install 'uncomp[plot]'")
    settings = make_settings(job.policies, job.budgets, seed=job.seed)
    request = EvalRequest(
        subtasks=tuple(choose_subtasks(job.tasks)),
        settings=tuple(settings),
        regimes=job.regimes,
        tokens=tuple(dict.fromkeys(job.tokens)),
        samples=job.samples,
        seed=job.seed,
        haystack=_haystack(job, terminal),
    )
    check_regimes(request)
    return request


def _haystack(job: EvalJob, terminal: Terminal) -> "Haystack":
    from uncomp_cli.documents.documents import read_documents
    from uncomp_cli.evals.tasks.haystack import Haystack

    if not job.paths:
        return Haystack.generated_for(max(job.tokens), seed=job.seed)

    stdin: TextIO | None = sys.stdin  # None when the process was started without one
    found = read_documents(job.paths, stdin=None if stdin is None else stdin.buffer)
    for path, reason in found.skipped:
        terminal.warn(f"skipped {path}: {reason}")
    return Haystack.of_documents(found.documents)


def _default_path(settings: dict[str, object]) -> Path:
    from platformdirs import user_data_path

    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    folder = user_data_path("uncomp") / "evals"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{digest}.jsonl"


def _watch(steps: "Generator[EvalStep, None, None]", terminal: Terminal) -> None:
    """Show which sample is under way and how long is left."""
    with Meter(terminal) as meter:
        try:
            for step in steps:
                meter.show(Reading(step.label, step.fraction, f"{step.index} of {step.total}", step.elapsed_s))
        finally:
            steps.close()
