"""`uncomp rope`: ways of reading past the trained length, measured on the user's text, and which one to use."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uncomp_cli.budget.amount import Budget
from uncomp_cli.cli.declare.options import (
    DEFAULT_SEED,
    DOCUMENTS,
    MEASURED_MODEL,
    Beside,
    ModelOptions,
    OutputOptions,
    PresetOptions,
    ReadingOptions,
    Seed,
)
from uncomp_cli.cli.declare.tree import only, option, typed
from uncomp_cli.cli.judge.trial import (
    Out,
    Plot,
    check_plot,
    draw_into,
    haystack_of,
    made_here,
    result_option,
    results_path,
    text_files,
)
from uncomp_cli.errors import UsageError
from uncomp_cli.evals.rope.arms import DEFAULT_KINDS
from uncomp_cli.numerals import format_seconds
from uncomp_cli.schema import Some, inside, value_of
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.meter import loading, show

if TYPE_CHECKING:
    from uncomp_cli.asking.request import ModelChoice, PresetChoice
    from uncomp_cli.evals.rope.arms import RopeArm
    from uncomp_cli.evals.rope.cells import RopeCell
    from uncomp_cli.evals.rope.sweep import RopeRequest
    from uncomp_cli.evals.rope.verdict import RopeSummary
    from uncomp_cli.evals.tasks.haystack import Haystack
    from uncomp_cli.models.runnable import LoadedModel


_PANEL = "What is measured"
_measured, _chosen = partial(option, panel=_PANEL), partial(option, panel=_PANEL, setting=False)
DEFAULT_BUDGET = Budget.parse("5%")
_CHOOSING = (
    "file", "include", "encoding", "password", "kinds", "tokens", "depths", "samples", "budget", "compress", "out",
    "preset", "seed", "model", "tokenizer", "quantize", "weights", "device", "dtype", "offline",
)  # fmt: skip
"""The options that choose what is run."""


@dataclass(frozen=True, slots=True)
class RopeOptions:
    """What is measured, and where the results are."""

    file: Annotated[tuple[str, ...], text_files("Text to measure on", panel=_PANEL)] = ()
    kinds: Annotated[
        str,
        _chosen(
            "--kinds",
            help="What to compare, separated by commas: plain, linear, ntk, dynamic, yarn, llama3, longrope, each with "
            ":FACTOR or the smallest that reaches, repack and reread; @BUDGET behind one compresses it.",
            metavar="KIND[:FACTOR][@BUDGET],…",
        ),
    ] = DEFAULT_KINDS
    tokens: Annotated[
        str | None,
        _chosen(
            "--tokens",
            help="Lengths of a context, question and answer included, separated by commas; 16k is 16384.",
            metavar="N,…",
            show_default="the trained length and twice as much",
        ),
    ] = None
    depths: Annotated[
        int, _measured("--depths", help="Places of a needle in the text.", metavar="N", min=1, max=50)
    ] = 5
    samples: Annotated[int, _measured("--samples", help="Needles at every length and depth.", metavar="N", min=1)] = 1
    budget: Annotated[
        Budget,
        _chosen(
            "--budget",
            "-b",
            help="KV cache that repack and reread keep, and with --compress every kind.",
            metavar="AMOUNT",
            parser=Budget.parse,
        ),
    ] = DEFAULT_BUDGET
    compress: Annotated[bool, _chosen("--compress", help="Compress every kind to --budget.")] = False
    out: Out = None
    source: Annotated[
        Path | None,
        result_option(
            "--from", help="Run nothing: show all that is in this results file.", metavar="PATH", show_default=False
        ),
    ] = None
    plot: Plot = None


@dataclass(frozen=True, slots=True)
class RopeJob:
    """What is measured, with which preset, and how it is told."""

    wanted: RopeOptions
    choice: "PresetChoice"
    as_json: bool
    reading: ReadingOptions


def rope(
    ctx: typer.Context,
    files: Beside = None,
    *,
    wanted: RopeOptions,
    reading: Annotated[ReadingOptions, DOCUMENTS],
    model: Annotated[ModelOptions, MEASURED_MODEL],
    preset: Annotated[PresetOptions, only("name")],
    seed: Seed = DEFAULT_SEED,
    output: OutputOptions,
) -> None:
    """Measure ways of reading past the trained length. One is recommended."""
    terminal = output.terminal(ctx)
    wanted = replace(wanted, file=(*wanted.file, *(files or ())))
    check_plot(wanted.plot)
    if wanted.source is None:
        chosen = replace(preset.choice(seed), budget=wanted.budget)
        run_rope(RopeJob(wanted, chosen, output.as_json, reading), model.choice(), terminal)
    elif given := typed(ctx, _CHOOSING):
        message = f"--from shows all that is in the file, {given[0]} chooses"
        raise UsageError(message, hint="leave one of the two out")
    else:
        show_results(wanted.source, wanted.plot, terminal, as_json=output.as_json)


def show_results(source: Path, plot: Path | None, terminal: Terminal, *, as_json: bool) -> None:
    """Tables and pictures of an existing results file; no model is needed."""
    from uncomp_cli.evals.journal import read_journal
    from uncomp_cli.evals.rope.cells import CELLS

    settings, cells = read_journal(source, CELLS)
    if not cells:
        raise UsageError(f"{source} holds no results yet", hint="run the same command with --out in place of --from")
    _report(cells, source, settings, {}, plot, terminal, as_json=as_json)


def run_rope(job: RopeJob, choice: "ModelChoice", terminal: Terminal) -> None:
    """Run one `uncomp rope`."""
    from uncomp_cli.asking.startup import fetch, load

    wanted = job.wanted
    with loading(terminal, "preparing"):
        job.choice.stored()
        _check_words(wanted)
    model_dir = show(fetch(choice), terminal)
    with loading(terminal, "reading the text"):
        grid = _grid(job, choice, model_dir, terminal)
    loaded = show(load(choice), terminal)
    request = _request(job, grid, loaded, terminal)
    from uncomp_cli.evals.journal import Journal, writing
    from uncomp_cli.evals.rope import sweep as rope_sweep
    from uncomp_cli.evals.rope.cells import CELLS
    from uncomp_cli.evals.rope.sweep import probe

    settings = rope_sweep.rope_settings(request, loaded)
    path = wanted.out or results_path(settings, "rope-")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    with Journal.open(path, CELLS, settings) as results:
        terminal.note(f"results: {path} ({len(results.done):,} there)")
        with loading(terminal, "timing a short text"):
            cost = probe(loaded)
        left_s = rope_sweep.expected_seconds(request, loaded, results, cost)
        terminal.note(f"about {format_seconds(left_s)} to go on this machine; stop it and it goes on from there")
        show(rope_sweep.run_rope(request, loaded, results, cost=cost), terminal)
        cells = rope_sweep.asked_for(request, results.records)
    _report(cells, path, settings, made_here(), wanted.plot, terminal, as_json=job.as_json)


def _check_words(wanted: RopeOptions) -> None:
    """A slip in a length or a kind is found before anything is loaded."""
    from uncomp_cli.evals.rope.arms import parse_arms, parse_lengths

    longest = max(parse_lengths(wanted.tokens)) if wanted.tokens is not None else 2
    parse_arms(wanted.kinds, longest=longest, unscaled_length=longest, budget=wanted.budget, compress=wanted.compress)


@dataclass(frozen=True, slots=True)
class _Grid:
    """What is compared at which lengths, `longest` at most; the user's text, None where prose is to be made."""

    arms: "tuple[RopeArm, ...]"
    lengths: tuple[int, ...]
    longest: int
    text: "Haystack | None"


def _grid(job: RopeJob, choice: "ModelChoice", model_dir: Path, terminal: Terminal) -> _Grid:
    """What the configuration and the tokenizer alone can say no to: a kind that it cannot take, too short a text."""
    from uncomp_cli.evals.rope.arms import parse_arms, parse_lengths, unread
    from uncomp_cli.evals.rope.passage import text_ids
    from uncomp_cli.evals.rope.sweep import check_arms, lengths_of
    from uncomp_cli.models.catalog import show_model
    from uncomp_cli.models.checkpoint import load_tokenizer
    from uncomp_cli.models.loading import load_config

    wanted, config = job.wanted, load_config(model_dir, choice.name)
    known = lengths_of(config, show_model(choice.name).trained_length)
    lengths = (known.trained, 2 * known.trained) if wanted.tokens is None else parse_lengths(wanted.tokens)
    arms = parse_arms(
        wanted.kinds,
        longest=max(lengths),
        unscaled_length=known.unscaled,
        budget=wanted.budget,
        compress=wanted.compress,
    )
    check_arms(arms, config)
    for sentence in unread(arms, lengths, known):
        terminal.note(sentence)
    longest = max([known.trained, *(n for n in lengths if any(arm.reads(n, known) for arm in arms))])
    if not wanted.file:
        return _Grid(arms, lengths, longest, None)
    haystack = haystack_of(wanted.file, job.reading, longest, seed=job.choice.seed, terminal=terminal)
    text_ids(load_tokenizer(choice.tokenizer or model_dir), haystack, longest)
    return _Grid(arms, lengths, longest, haystack)


def _request(job: RopeJob, grid: _Grid, loaded: "LoadedModel", terminal: Terminal) -> "RopeRequest":
    from uncomp_cli.evals.rope.sweep import RopeRequest, check_memory
    from uncomp_cli.models.runnable import fingerprint

    wanted, seed = job.wanted, job.choice.seed
    preset, notes = job.choice.settled(fingerprint(loaded))
    for note in notes:
        terminal.note(note)
    depths = tuple(at / (wanted.depths - 1) if wanted.depths > 1 else 0.5 for at in range(wanted.depths))
    check_memory(grid.arms, grid.lengths, preset, loaded)  # before so much text is made
    haystack = grid.text or haystack_of((), job.reading, max(*grid.lengths, grid.longest), seed=seed, terminal=terminal)
    return RopeRequest(grid.arms, grid.lengths, depths, wanted.samples, seed, haystack, preset)


def _report(
    cells: "list[RopeCell]",
    path: Path,
    settings: dict[str, Any],
    made: dict[str, object],
    plot: Path | None,
    terminal: Terminal,
    *,
    as_json: bool,
) -> None:
    """Tables or JSON on standard output, and pictures where they were asked for."""
    from uncomp_cli.evals.rope.verdict import record, summarise_rope

    with inside(str(path), hint="name a results file of uncomp rope"):
        trained_length = value_of(Some, settings.get("trained_length"), "settings.trained_length")
    summary = summarise_rope(cells, trained_length=trained_length)
    if as_json:
        terminal.write_json(record(summary, cells, results=path, settings=settings, made=made))
    else:
        _write_tables(summary, terminal)
    if plot is not None:
        draw_into(plot, partial(draw, summary, cells), terminal)


def _write_tables(summary: "RopeSummary", terminal: Terminal) -> None:
    from uncomp_cli.evals.rope.verdict import recommended, tables_of

    terminal.write_tables([*tables_of(summary)])
    if (advice := recommended(summary)) is not None:
        terminal.write_line()
        terminal.write_line(advice)


def draw(summary: "RopeSummary", cells: "Sequence[RopeCell]", folder: Path) -> Iterator[Path]:
    """Needles beside entropy for every arm, and the text by position. Raises UncompError when nothing can be drawn."""
    from uncomp_cli.evals.rope.cells import arm_maps
    from uncomp_cli.ui import plots
    from uncomp_cli.ui.figure import write

    if maps := arm_maps(cells):
        figure = plots.make_arm_maps(maps, trained_length=summary.trained_length)
        yield write(figure, folder / "rope-needles.png")
    if curves := {row.arm: row.losses for row in summary.texts}:
        figure = plots.make_losses(curves, trained_length=summary.trained_length)
        yield write(figure, folder / "rope-text.png")
