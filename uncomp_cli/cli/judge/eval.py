"""`uncomp eval`: contestants on tasks with known answers, at equal measured bytes, in tables, JSON and pictures."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from uncomp_cli.budget.amount import Budget
from uncomp_cli.cli.declare.completion import policy_names, preset_names, thinning_names
from uncomp_cli.cli.declare.options import (
    DEFAULT_SEED,
    DOCUMENTS,
    JUDGED_MODEL,
    Beside,
    ModelOptions,
    ReadingOptions,
    Seed,
)
from uncomp_cli.cli.declare.tree import option, typed
from uncomp_cli.cli.judge.trial import (
    Out,
    Plot,
    TableOptions,
    check_plot,
    draw_into,
    haystack_of,
    made_here,
    result_option,
    results_path,
    text_files,
)
from uncomp_cli.errors import UncompError, UsageError
from uncomp_cli.files import write_whole
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.meter import loading, show

if TYPE_CHECKING:
    from uncomp_cli.asking.request import ModelChoice
    from uncomp_cli.evals.judges.evaluation import EvalRequest
    from uncomp_cli.evals.tables.outcome import Outcome
    from uncomp_cli.evals.tables.sheet import Part
    from uncomp_cli.evals.tasks import Task
    from uncomp_cli.spec import ModelSpec


_task = partial(option, panel="Tasks")
_CHOOSING = (
    "task", "data", "qa", "tokens", "samples", "regime", "file", "include", "encoding", "password", "policy", "preset",
    "budget", "thin", "fresh",
)  # fmt: skip
"""The options that choose what is run."""


@dataclass(frozen=True, slots=True)
class EvalOptions:
    """What is judged, and where the results are."""

    task: Annotated[
        tuple[str, ...],
        _task(
            "--task",
            "-t",
            help="Task or subtask: needle, ruler/vt, multiquestion, conversation, evidence, fidelity, …; repeatable.",
            metavar="NAME",
            show_default="needle and ruler; with --data all that it has",
        ),
    ] = ()
    data: Annotated[
        tuple[Path, ...],
        _task(
            "--data",
            help="Records of others as JSON lines, or a directory of such files: Natural Questions with passages, "
            "key-value pairs, HotpotQA, L-Eval, QMSum; repeatable.",
            metavar="PATH",
            setting=False,
        ),
    ] = ()
    qa: Annotated[
        tuple[Path, ...],
        _task(
            "--qa",
            help="Your own questions as JSON lines: question, answers, and document (text) or path; repeatable.",
            metavar="FILE",
            setting=False,
        ),
    ] = ()
    tokens: Annotated[
        tuple[int, ...],
        _task("--tokens", help="Length of a sample, question included; repeatable.", metavar="N", min=200),
    ] = (1800,)
    samples: Annotated[int, _task("--samples", help="Samples of each subtask and length.", metavar="N", min=1)] = 10
    regime: Annotated[
        Literal["aware", "agnostic", "both"],
        _task("--regime", help="Whether the question is seen when the cache is compressed; two tables, never one."),
    ] = "both"
    file: Annotated[tuple[str, ...], text_files("Text that facts are hidden in", panel="Tasks")] = ()
    # No settings: a policy or budget that is set for `uncomp ask` must not choose who is judged.
    policy: Annotated[
        tuple[str, ...],
        option(
            "--policy",
            help="Contestant: POLICY[/SCORER][/8bit|/4bit][/published][/thin=THINNING], or preset:NAME; with @20% at "
            "that budget alone, preset:NAME@own as `uncomp ask` uses it; repeatable.",
            metavar="NAME",
            autocompletion=policy_names,
            panel="Compression",
            setting=False,
        ),
    ] = ("uniform", "adaptive", "pyramid", "sinks", "random", "full/8bit")
    preset: Annotated[
        tuple[str, ...],
        option(
            "--preset",
            "-p",
            help="Preset as `uncomp ask` uses it, alone or beside --policy: preset:NAME@own; repeatable.",
            metavar="NAME",
            autocompletion=preset_names,
            panel="Compression",
            setting=False,
        ),
    ] = ()
    budget: Annotated[
        tuple[Budget, ...],
        option(
            "--budget",
            "-b",
            help="KV cache to keep, as in `uncomp ask`; tables say what that is of a 16-bit cache; repeatable.",
            metavar="AMOUNT",
            parser=Budget.parse,
            panel="Compression",
            setting=False,
        ),
    ] = tuple(map(Budget.parse, ("50%", "20%", "10%", "5%")))
    thin: Annotated[
        tuple[str, ...],
        option(
            "--thin",
            help="Which tokens enter the later layers, as in `uncomp ask`; repeat it to judge several, each with every "
            "contestant: -p balanced --thin none --thin gather.",
            metavar="NAME[:KEY=VALUE,…]",
            autocompletion=thinning_names,
            show_default="each contestant's",
            panel="Compression",
            setting=False,
        ),
    ] = ()
    out: Out = None
    fresh: Annotated[bool, result_option("--fresh", help="Begin anew; the old results file stays beside it.")] = False
    show: Annotated[bool, result_option("--show", help="Run nothing: show all that is in the --out file.")] = False
    plot: Plot = None
    markdown: Annotated[
        Path | None, result_option("--markdown", help="Write the tables as Markdown too.", metavar="PATH")
    ] = None


def eval(
    ctx: typer.Context,
    files: Beside = None,
    *,
    judged: EvalOptions,
    reading: Annotated[ReadingOptions, DOCUMENTS],
    model: Annotated[ModelOptions, JUDGED_MODEL],
    seed: Seed = DEFAULT_SEED,
    output: TableOptions,
) -> None:
    """Judge policies side by side on tasks with known answers."""
    if judged.show and (chosen := typed(ctx, _CHOOSING)):
        raise UsageError(f"--show shows all that is in the file, {chosen[0]} chooses", hint="leave one of the two out")
    judged = replace(judged, file=(*judged.file, *(files or ())))
    run_eval(judged, model.choice(), output, seed=seed, terminal=output.terminal(ctx), reading=reading)


def run_eval(
    judged: EvalOptions,
    choice: "ModelChoice",
    output: TableOptions,
    *,
    seed: int,
    terminal: Terminal,
    reading: ReadingOptions,
) -> None:
    """Run one `uncomp eval`."""
    if judged.show:
        show_results(judged, output, terminal)
        return
    with loading(terminal, "preparing"):
        request = _request(judged, reading, choice, seed, terminal)
    from uncomp_cli.asking.startup import length_warnings, lengthen, load

    loaded = show(load(choice, partial(_check, judged, request, choice, terminal)), terminal)
    from uncomp_cli.engine.forward.products import chosen_matmul
    from uncomp_cli.evals.journal import Journal, set_aside
    from uncomp_cli.evals.judges import evaluation as runner
    from uncomp_cli.evals.tables.outcome import OUTCOMES

    longest, unseen = max(request.tokens) + runner.room_for(request), runner.reads_unseen(request)
    loaded = show(lengthen(loaded, choice.rope_choice, longest, grows=unseen), terminal)
    for warning in length_warnings(loaded, max(request.tokens)):
        terminal.warn(warning)
    request = replace(request, matmul=chosen_matmul(choice.matmul, loaded.model))
    settings = runner.results_settings(loaded, request.haystack, seed=seed, data=request.data, matmul=request.matmul)
    path = judged.out or results_path(settings)
    if judged.fresh and (old := set_aside(path, OUTCOMES)) is not None:
        terminal.note(f"the old results are in {old}")
    with Journal.open(path, OUTCOMES, settings) as results:
        terminal.note(f"results: {path} ({len(results.done):,} there)")
        show(runner.run_eval(request, loaded, results), terminal)
        outcomes = runner.asked_for(request, results.records)
        _report(judged, outcomes, path, settings, output, terminal)


def _check(
    judged: EvalOptions,
    request: "EvalRequest",
    choice: "ModelChoice",
    terminal: Terminal,
    path: Path,
    spec: "ModelSpec",
) -> None:
    """What the model's shape and tokenizer alone can say no to: too long samples, too short a text of the user's."""
    from uncomp_cli.evals.judges.evaluation import check_lengths, check_text
    from uncomp_cli.models.checkpoint import load_tokenizer

    check_lengths(request, spec.trained_length)
    if judged.file or request.data:
        for sentence in check_text(request, load_tokenizer(choice.tokenizer or path)):
            terminal.warn(sentence)


def show_results(judged: EvalOptions, output: TableOptions, terminal: Terminal) -> None:
    """The tables of an existing results file."""
    from uncomp_cli.evals.journal import read_journal
    from uncomp_cli.evals.tables.outcome import OUTCOMES

    if judged.out is None:
        raise UsageError("--show shows an existing file", hint="name it with --out")
    settings, outcomes = read_journal(judged.out, OUTCOMES)
    if not outcomes:
        raise UsageError(f"{judged.out} holds no results yet", hint="run the same command without --show first")
    _report(judged, outcomes, judged.out, settings, output, terminal)


def _report(
    judged: EvalOptions,
    outcomes: "Sequence[Outcome]",
    path: Path,
    settings: dict[str, object],
    output: TableOptions,
    terminal: Terminal,
) -> None:
    """Tables, CSV or JSON on standard output; Markdown and pictures where they were asked for.

    What made the results is known of a run alone: a file that is shown again may come from another machine.
    """
    from uncomp_cli.evals.tables.sheet import csv_rows, parts_of, record, tables_of

    made = {} if judged.show else made_here()
    parts = parts_of(outcomes, dtype=str(settings.get("dtype")))
    if output.as_json:
        terminal.write_json(record(parts, results=path, settings=settings, made=made))
    elif output.csv:
        terminal.write_csv(*csv_rows(parts))
    else:
        tables = [table for part in parts for table in tables_of(part, wide=output.wide)]
        terminal.write_tables(tables, wide=output.wide)
    if judged.markdown is not None:
        _write_markdown(parts, judged.markdown, facts={**settings, **made})
    if judged.plot is not None:
        draw_into(judged.plot, partial(draw, parts), terminal)


def _request(
    judged: EvalOptions, reading: ReadingOptions, choice: "ModelChoice", seed: int, terminal: Terminal
) -> "EvalRequest":
    """What to run; a slip in a name is found before anything is loaded."""
    from uncomp_cli.evals.judges.contestants import make_settings
    from uncomp_cli.evals.judges.evaluation import EvalRequest, check_regimes
    from uncomp_cli.evals.tasks import choose_subtasks

    check_plot(judged.plot)
    settings = make_settings(_contestants(judged), judged.budget, seed=seed)
    outside, data = _outside(judged, reading, terminal)
    names = judged.task or [task.name for task in outside] or ("needle", "ruler")
    request = EvalRequest(
        subtasks=tuple(choose_subtasks(names, outside)),
        settings=tuple(settings),
        regimes=("aware", "agnostic") if judged.regime == "both" else (judged.regime,),
        tokens=tuple(dict.fromkeys(judged.tokens)),
        samples=judged.samples,
        seed=seed,
        haystack=haystack_of(judged.file, reading, max(judged.tokens), seed=seed, terminal=terminal),
        data=data,
    )
    check_regimes(request, choice.rope_choice)
    return request


def _contestants(judged: EvalOptions) -> Sequence[str]:
    """The policies, and the presets, with every thinning; where only presets were named, those alone."""
    from uncomp_cli.budget.thinning import make_thinning

    policies = () if judged.preset and judged.policy == EvalOptions().policy else judged.policy
    named = [text.partition("@") for text in (*policies, *(f"preset:{name}@own" for name in judged.preset))]
    for text in judged.thin:
        make_thinning(text)  # a budget or bits behind it would be the contestant's
    thinnings = [f"/thin={text}" for text in judged.thin] or [""]
    return [f"{contestant}{thinning}{at}{budget}" for contestant, at, budget in named for thinning in thinnings]


def _outside(
    judged: EvalOptions, reading: ReadingOptions, terminal: Terminal
) -> "tuple[Sequence[Task], tuple[tuple[str, str], ...]]":
    """The tasks of the records that are named, and their files' digests; what is of no known form is said."""
    from uncomp_cli.evals.tasks.outside import outside_tasks

    if not judged.data and not judged.qa:
        return (), ()
    tasks, digests, unknown = outside_tasks([*judged.data, *judged.qa], reading.wishes())
    for sentence in unknown:
        terminal.warn(sentence)
    return tasks, tuple(digests.items())


def _write_markdown(parts: "Sequence[Part]", path: Path, *, facts: Mapping[str, object]) -> None:
    from uncomp_cli.evals.tables.sheet import document

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, document(parts, facts=facts).encode())
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror or error}"
        raise UncompError(message, hint="give another file with --markdown") from error


def draw(parts: "Sequence[Part]", folder: Path) -> Iterator[Path]:
    """Curves of every main metric, needle heat maps and coverage maps, one regime a picture."""
    from uncomp_cli.evals.tables.outcome import LOWER_IS_BETTER
    from uncomp_cli.evals.tables.sheet import SHOWN
    from uncomp_cli.evals.tables.summary import metric_names, quality_curves
    from uncomp_cli.ui import plots
    from uncomp_cli.ui.figure import write

    for part in parts:
        about = f"{part.title}, question {'seen' if part.regime == 'aware' else 'unseen'} at compression"
        for metric in (m for m in SHOWN if m in metric_names(part.outcomes)):
            found = quality_curves(part.outcomes, regime=part.regime, metric=metric)
            if any(curve.label != plots.FULL_CACHE for curve in found):
                path = folder / f"{part.stem}-{metric}.png"
                lower = metric in LOWER_IS_BETTER
                figure = plots.make_curves(found, title=about, metric=SHOWN[metric], lower_is_better=lower)
                yield write(figure, path)
        for budget in _budgets(part):
            yield from _draw_maps(part, budget, folder)


def _budgets(part: "Part") -> list[str]:
    """The budgets of a table, those of settings that keep every token with all of them."""
    from uncomp_cli.evals.judges.contestants import FULL

    found = list(dict.fromkeys(outcome.budget for outcome in part.outcomes))
    return [budget for budget in found if budget != FULL] or found


def _draw_maps(part: "Part", budget: str, folder: Path) -> Iterator[Path]:
    """Needle heat maps and coverage maps of one budget: a panel for each contestant."""
    from uncomp_cli.evals.judges.contestants import FULL
    from uncomp_cli.evals.tables.summary import coverage_maps, needle_grids
    from uncomp_cli.ui import plots
    from uncomp_cli.ui.figure import write

    shown = [outcome for outcome in part.outcomes if outcome.budget in (budget, FULL)]
    about = f"{budget} kept, question {'seen' if part.regime == 'aware' else 'unseen'}"
    stem = f"{part.stem}-{budget.replace('%', 'pct').replace(' ', '')}"
    if grids := needle_grids(shown, regime=part.regime, metric="match"):
        title = f"Needles found by depth and length: {about}"
        yield write(plots.make_needles(grids, title=title), folder / f"{stem}-needles.png")
    if maps := coverage_maps(shown, regime=part.regime):
        title = f"Evidence kept by layer and KV head: {about}"
        yield write(plots.make_coverage(maps, title=title), folder / f"{stem}-coverage.png")
