"""`uncomp bench`: what a setting costs and saves against stock transformers with its full cache, on this machine."""

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uncomp_cli.budget.amount import Budget
from uncomp_cli.cli.declare.completion import thinning_names
from uncomp_cli.cli.declare.options import (
    DEFAULT_SEED,
    DOCUMENTS,
    Beside,
    ModelOptions,
    PresetOptions,
    ReadingOptions,
    Seed,
)
from uncomp_cli.cli.declare.tree import only, option
from uncomp_cli.cli.judge.trial import TableOptions, text_files, texts_of
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.meter import loading, show

if TYPE_CHECKING:
    from uncomp_cli.asking.request import ModelChoice
    from uncomp_cli.uncertainty.profile import ModelFingerprint


_measured = partial(option, panel="Measurement")


@dataclass(frozen=True, slots=True)
class BenchOptions:
    """What is measured, and how often."""

    file: Annotated[tuple[str, ...], text_files("Document to measure with")] = ()
    tokens: Annotated[
        int, _measured("--tokens", help="Length of the prompt, question included.", metavar="N", min=64)
    ] = 7500
    new_tokens: Annotated[
        int, _measured("--new-tokens", help="Tokens to generate in every run.", metavar="N", min=2)
    ] = 32
    runs: Annotated[int, _measured("--runs", help="Rounds; figures are medians over them.", metavar="N", min=1)] = 3
    budget: Annotated[
        tuple[Budget, ...],
        option(
            "--budget",
            "-b",
            help="KV cache to keep, as in `uncomp ask`; repeat it to measure several.",
            metavar="AMOUNT",
            parser=Budget.parse,
            show_default="the preset's",
            panel="Compression",
        ),
    ] = ()
    thin: Annotated[
        tuple[str, ...],
        option(
            "--thin",
            help="Which tokens enter the later layers, as in `uncomp ask`; repeat it to measure several, each with "
            "every --budget: --budget full --budget 5% --thin none --thin gather is each alone and both together.",
            metavar="NAME[:KEY=VALUE,…]",
            autocompletion=thinning_names,
            show_default="the preset's",
            panel="Compression",
        ),
    ] = ()


def bench(
    ctx: typer.Context,
    files: Beside = None,
    *,
    measured: BenchOptions,
    reading: Annotated[ReadingOptions, only("chunk", "kv_mem", *DOCUMENTS.names)],
    preset: Annotated[PresetOptions, only("name", "policy", "scorer", "kv_bits")],
    model: Annotated[
        ModelOptions, only("name", "tokenizer", "quantize", "device", "dtype", "weights", "matmul", "offline")
    ],
    seed: Seed = DEFAULT_SEED,
    output: TableOptions,
) -> None:
    """Measure speed and memory against stock transformers. Told are first token, decode, peak and KV bytes."""
    from uncomp_cli.asking.startup import fetch

    terminal = output.terminal(ctx)
    measured = replace(measured, file=(*measured.file, *(files or ())))
    document, source = _document(measured, reading, seed, terminal)
    choice = model.choice()
    amounts, thinnings = measured.budget or (None,), measured.thin or (None,)
    alike = preset.choice(seed)
    choices = [replace(alike, budget=amount, thinning=text) for amount in amounts for text in thinnings]
    with loading(terminal, "preparing the benchmark"):
        for each in choices:
            each.stored()  # a slip in one must not wait for the model
    model_dir = show(fetch(choice), terminal)
    with loading(terminal, "measuring the model"):
        fingerprint = _fingerprint(choice, model_dir)
    settled = [each.settled(fingerprint) for each in choices]
    for note in dict.fromkeys(note for _, notes in settled for note in notes):
        terminal.note(note)
    with loading(terminal, "preparing the prompt"):
        from uncomp_cli.bench.rounds import bench_table, conditions, csv_rows, report, run_bench
        from uncomp_cli.bench.workload import BenchRequest, Setup, make_jobs

        setup = Setup(
            model.name,
            measured.new_tokens,
            model.tokenizer,
            model.device,
            model.dtype,
            model.quantize,
            reading.limits(),
            model.matmul,
            weights=model.weights,
        )
        presets = tuple(found for found, _ in settled)
        jobs = make_jobs(BenchRequest(setup, model_dir, document, presets, measured.tokens, measured.runs))
    rounds = show(run_bench(jobs, measured.runs), terminal)
    record = report(jobs, rounds, source=source)
    labels = [job.label for job in jobs]
    if output.as_json:
        terminal.write_json(record)
    elif output.csv:
        terminal.write_csv(*csv_rows(record, labels))
    else:
        terminal.write_table(bench_table(record, labels), wide=output.wide)
        terminal.write_line(conditions(record))


def _fingerprint(choice: "ModelChoice", model_dir: Path) -> "ModelFingerprint":
    """Which model is measured, without loading it; raises what loading would for a model that cannot run here."""
    from uncomp_cli.asking.startup import weigh
    from uncomp_cli.models.catalog import show_model
    from uncomp_cli.models.runnable import fingerprint_of

    return fingerprint_of(show_model(choice.name), weigh(choice, model_dir).spec)


def _document(measured: BenchOptions, reading: ReadingOptions, seed: int, terminal: Terminal) -> tuple[str, str]:
    """The text to measure with, and its name."""
    if not measured.file:
        from uncomp_cli.documents.prose import write_prose

        return write_prose(measured.tokens, seed=seed), f"generated prose, seed {seed}"
    found = texts_of(measured.file, reading, terminal)
    return "\n\n".join(each.text.strip() for each in found), ", ".join(each.path for each in found)
