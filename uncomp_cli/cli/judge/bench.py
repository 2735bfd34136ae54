"""`uncomp bench`: what a setting costs and saves against stock transformers with its full cache, on this machine."""

from collections.abc import Generator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from uncomp_cli.cli.ask.prepare import ModelChoice, choose_preset, fetch, settle_preset, weigh
from uncomp_cli.cli.declare.limits import limits_of
from uncomp_cli.cli.declare.options import (
    Chunk,
    Device,
    Dtype,
    Json,
    KvBits,
    KvMem,
    MatMul,
    Model,
    Offline,
    Policy,
    Preset,
    Quantize,
    Quiet,
    Scorer,
    Seed,
    Tokenizer,
    terminal_of,
    thinning_names,
)
from uncomp_cli.cli.declare.tree import option
from uncomp_cli.config import DEFAULT_MODEL, SamplingConfig
from uncomp_cli.numerals import format_bytes, format_count, format_decimal, format_seconds
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.live import loading
from uncomp_cli.ui.meter import Meter, Reading

if TYPE_CHECKING:
    from uncomp_cli.bench.measurement import Job
    from uncomp_cli.bench.rounds import BenchStep, Round
    from uncomp_cli.uncertainty.profile import ModelFingerprint

__all__ = ["bench"]

_DEFAULTS = SamplingConfig()
MEASURE_PANEL = "Measurement"
COLUMNS = ("SETTING", "FIRST TOKEN", "DECODE TOK/S", "KV", "PEAK", "KEPT", "SAME TOKENS")


def bench(
    ctx: typer.Context,
    file: Annotated[
        list[str] | None,
        typer.Option(
            "--file",
            "-f",
            help="Document to measure with: file, directory, glob, or - for standard input; repeatable.",
            show_default="generated prose",
            metavar="PATH",
        ),
    ] = None,
    tokens: Annotated[
        int,
        option("--tokens", help="Length of the prompt, question included.", metavar="N", min=64, panel=MEASURE_PANEL),
    ] = 7500,
    new_tokens: Annotated[
        int,
        option("--new-tokens", help="Tokens to generate in every run.", metavar="N", min=2, panel=MEASURE_PANEL),
    ] = 32,
    runs: Annotated[
        int, option("--runs", help="Rounds; figures are medians over them.", metavar="N", min=1, panel=MEASURE_PANEL)
    ] = 3,
    budget: Annotated[
        list[str] | None,
        option(
            "--budget",
            "-b",
            help="KV cache to keep, as in `uncomp ask`; repeat it to measure several.",
            metavar="AMOUNT",
            show_default="the preset's",
            panel="Compression",
        ),
    ] = None,
    thin: Annotated[
        list[str] | None,
        option(
            "--thin",
            help="Which tokens enter the later layers, as in `uncomp ask`; repeat it to measure several, each with "
            "every --budget: --budget full --budget 5% --thin none --thin gather is each alone and both together.",
            metavar="NAME[:KEY=VALUE,…]",
            autocompletion=thinning_names,
            show_default="the preset's",
            panel="Compression",
        ),
    ] = None,
    chunk: Chunk = "auto",
    kv_mem: KvMem = "auto",
    preset: Preset = None,
    policy: Policy = None,
    scorer: Scorer = None,
    kv_bits: KvBits = None,
    model: Model = DEFAULT_MODEL,
    tokenizer: Tokenizer = None,
    quantize: Quantize = "none",
    device: Device = "auto",
    dtype: Dtype = "auto",
    matmul: MatMul = "float32",
    offline: Offline = False,
    seed: Seed = _DEFAULTS.seed,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure first token, decode speed, peak memory and KV bytes against stock transformers."""
    terminal = terminal_of(ctx, quiet=quiet)
    document, source = _document(file or [], tokens, seed, terminal)
    choice = ModelChoice(model, tokenizer, quantize, device, dtype, offline)
    bits = None if kv_bits is None else int(kv_bits)
    limits = limits_of(chunk, kv_mem, constant_size=False)
    amounts: list[str | None] = [*budget] if budget else [None]
    thinnings: list[str | None] = [*thin] if thin else [None]
    alike = partial(choose_preset, policy=policy, scorer=scorer, seed=seed, kv_bits=bits)
    choices = [partial(alike, budget=amount, thinning=text) for amount in amounts for text in thinnings]
    with loading(terminal, "preparing the benchmark"):
        presets = [choose(preset) for choose in choices]
    model_dir = fetch(choice, terminal)
    with loading(terminal, "measuring the model"):
        fingerprint = _fingerprint(choice, model_dir)
    settled = [
        settle_preset(found, fingerprint, named=preset is not None, choose=choose)
        for found, choose in zip(presets, choices, strict=True)
    ]
    for note in dict.fromkeys(note for _, note in settled if note is not None):
        terminal.note(note)
    with loading(terminal, "preparing the prompt"):
        from uncomp_cli.bench.bench_prompt import BenchRequest, make_jobs
        from uncomp_cli.bench.ratios import report
        from uncomp_cli.bench.rounds import run_bench

        request = BenchRequest(
            model,
            model_dir,
            document,
            tuple(found for found, _ in settled),
            tokens,
            new_tokens,
            runs,
            tokenizer,
            device,
            dtype,
            quantize,
            limits,
            matmul,
        )
        jobs = make_jobs(request)
    rounds = _watch(run_bench(jobs, runs), terminal)
    record = report(request, jobs, rounds, source=source)
    if as_json:
        terminal.write_json(record)
    else:
        _write_table(record, jobs, terminal)


def _fingerprint(choice: ModelChoice, model_dir: Path) -> "ModelFingerprint":
    """Which model is measured, without loading it; raises what loading would for a model that cannot run here."""
    from uncomp_cli.models.catalog import show_model
    from uncomp_cli.models.identity import fingerprint_of

    spec, _, _ = weigh(choice, model_dir)
    return fingerprint_of(show_model(choice.name), spec)


def _document(paths: list[str], tokens: int, seed: int, terminal: Terminal) -> tuple[str, str]:
    """The text to measure with, and its name."""
    if not paths:
        from uncomp_cli.documents.prose import write_prose

        return write_prose(tokens, seed=seed), f"generated prose, seed {seed}"
    import sys

    from uncomp_cli.documents.documents import read_documents

    stdin: TextIO | None = sys.stdin  # None when the process was started without one
    found = read_documents(paths, stdin=None if stdin is None else stdin.buffer)
    for path, reason in found.skipped:
        terminal.warn(f"skipped {path}: {reason}")
    return "\n\n".join(d.text.strip() for d in found.documents), ", ".join(d.path for d in found.documents)


def _watch(steps: "Generator[BenchStep, None, list[Round]]", terminal: Terminal) -> "list[Round]":
    """Show which run is under way and how long is left; returns the rounds."""
    with Meter(terminal) as meter:
        try:
            while True:
                step = next(steps)
                label = f"run {step.index + 1} of {step.total}: {step.label}"
                meter.show(Reading(label, step.fraction, None, step.elapsed_s))
        except StopIteration as end:
            rounds: list[Round] = end.value
            return rounds
        finally:
            steps.close()


def _write_table(record: dict[str, Any], jobs: "list[Job]", terminal: Terminal) -> None:
    rows = [_row(jobs[0].label, record["stock"], None)]
    rows += [
        _row(job.label, setting, setting["ratio"]) for job, setting in zip(jobs[1:], record["settings"], strict=True)
    ]
    terminal.write_table(COLUMNS, rows)
    hardware = record["hardware"]
    terminal.write_line(
        f"{record['model']['id']} ({record['model']['dtype']}), {format_count(record['tokens'])} tokens and "
        f"{record['new_tokens']} new ones, medians of {record['runs']} alternating runs, (x) = ours / stock; "
        f"{hardware['cpu']}, {hardware['threads']} threads, {hardware['device']}"
    )


def _row(label: str, figures: dict[str, Any], ratio: dict[str, Any] | None) -> tuple[str, ...]:
    """One line of the table; the ratios stand behind the figures."""

    def with_ratio(text: str, key: str) -> str:
        value = None if ratio is None else ratio[key]
        return text if value is None else f"{text} ({value:.3g}x)"

    peak = figures["peak_bytes"]
    same = figures.get("same_tokens")
    return (
        label,
        with_ratio(format_seconds(figures["ttft_s"]), "ttft"),
        with_ratio(format_decimal(figures["decode_tok_s"]), "decode"),
        with_ratio(format_bytes(figures["kv_bytes"]), "kv_bytes"),
        "unknown" if peak is None else with_ratio(format_bytes(peak), "peak_bytes"),
        f"{100 * figures['kept_fraction']:.1f} %" if "kept_fraction" in figures else "-",
        "-" if same is None else "yes" if same else "no",
    )
