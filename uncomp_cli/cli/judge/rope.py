"""`uncomp rope`: ways of reading past the trained length, measured on the user's text, and which one to use."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from uncomp_cli.cli.ask.prepare import ModelChoice
from uncomp_cli.cli.declare.options import (
    Device,
    Dtype,
    Json,
    Model,
    Offline,
    Preset,
    Quantize,
    Quiet,
    Seed,
    Tokenizer,
    terminal_of,
)
from uncomp_cli.cli.declare.tree import option
from uncomp_cli.cli.judge.rope_measuring import RopeJob, run_rope, show_results
from uncomp_cli.config import DEFAULT_MODEL, SamplingConfig
from uncomp_cli.errors import UsageError
from uncomp_cli.evals.rope.arms import DEFAULT_KINDS

__all__ = ["rope"]

_SEED = SamplingConfig().seed
MEASURED_PANEL = "What is measured"
RESULTS_PANEL = "Results"
DEFAULT_BUDGET = "5%"


def rope(
    ctx: typer.Context,
    file: Annotated[
        list[str] | None,
        typer.Option(
            "--file",
            "-f",
            help="Text to measure on: file, directory, glob, or - for standard input; repeatable.",
            show_default="generated prose",
            metavar="PATH",
            rich_help_panel=MEASURED_PANEL,
        ),
    ] = None,
    kinds: Annotated[
        str,
        typer.Option(
            "--kinds",
            help="What to compare, separated by commas: plain, linear, ntk, dynamic, yarn, llama3, longrope, each with "
            ":FACTOR or the smallest that reaches, repack and reread; @BUDGET behind one compresses it.",
            metavar="KIND[:FACTOR][@BUDGET],…",
            rich_help_panel=MEASURED_PANEL,
        ),
    ] = DEFAULT_KINDS,
    tokens: Annotated[
        str | None,
        typer.Option(
            "--tokens",
            help="Lengths of a context, question and answer included, separated by commas; 16k is 16384.",
            metavar="N,…",
            show_default="the trained length and twice as much",
            rich_help_panel=MEASURED_PANEL,
        ),
    ] = None,
    depths: Annotated[
        int,
        option("--depths", help="Places of a needle in the text.", metavar="N", min=1, max=50, panel=MEASURED_PANEL),
    ] = 5,
    samples: Annotated[
        int, option("--samples", help="Needles at every length and depth.", metavar="N", min=1, panel=MEASURED_PANEL)
    ] = 1,
    budget: Annotated[
        str,
        typer.Option(
            "--budget",
            "-b",
            help="KV cache that repack and reread keep, and with --compress every kind.",
            metavar="AMOUNT",
            rich_help_panel=MEASURED_PANEL,
        ),
    ] = DEFAULT_BUDGET,
    compress: Annotated[
        bool, typer.Option("--compress", help="Compress every kind to --budget.", rich_help_panel=MEASURED_PANEL)
    ] = False,
    out: Annotated[
        Path | None,
        option(
            "--out",
            "-o",
            help="Results file (JSON lines); one that exists is continued.",
            metavar="PATH",
            show_default="a file of its own in the data directory for every combination of model, text and seed",
            panel=RESULTS_PANEL,
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            help="Run nothing: show all that is in this results file.",
            metavar="PATH",
            rich_help_panel=RESULTS_PANEL,
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None, option("--plot", help="Draw pictures into this directory.", metavar="DIR", panel=RESULTS_PANEL)
    ] = None,
    model: Model = DEFAULT_MODEL,
    tokenizer: Tokenizer = None,
    quantize: Quantize = "none",
    device: Device = "auto",
    dtype: Dtype = "auto",
    offline: Offline = False,
    preset: Preset = None,
    seed: Seed = _SEED,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure ways of reading past the trained length on a text, and recommend one."""
    terminal = terminal_of(ctx, quiet=quiet)
    paths = tuple(file or ())
    job = RopeJob(paths, kinds, tokens, depths, samples, budget, compress, preset, out, plot, seed, as_json)
    _check_plot(job)
    if source is not None:
        if chosen := _given(ctx):
            message = f"--from shows all that is in the file, {chosen[0]} chooses"
            raise UsageError(message, hint="leave one of the two out")
        show_results(source, job, terminal)
        return
    run_rope(job, ModelChoice(model, tokenizer, quantize, device, dtype, offline), terminal)


def _given(ctx: typer.Context) -> list[str]:
    """The options on this command line that choose what is run."""
    measured = ("file", "kinds", "tokens", "depths", "samples", "budget", "compress", "out", "preset", "seed")
    names = (*measured, "model", "tokenizer", "quantize", "device", "dtype", "offline")
    return [f"--{name}" for name in names if "COMMANDLINE" in str(ctx.get_parameter_source(name))]


def _check_plot(job: RopeJob) -> None:
    if job.plot is not None and find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib, which is not installed", hint="pip install 'uncomp[plot]'")
