"""`uncomp calibrate`: measure a model's uncertainty on sample texts, and save it with a preset that uses it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uncomp_cli.budget.amount import Budget
from uncomp_cli.cli.calibrate.held_out import (
    HeldOut,
    QualityOptions,
    RiskOptions,
    good_for,
    run_quality,
    run_risk,
    save_calibrated,
    save_family,
)
from uncomp_cli.cli.declare.completion import policy_names
from uncomp_cli.cli.declare.options import (
    DEFAULT_SEED,
    DOCUMENTS,
    MEASURED_MODEL,
    Beside,
    ModelOptions,
    OutputOptions,
    ReadingOptions,
    Seed,
)
from uncomp_cli.cli.declare.tree import option
from uncomp_cli.cli.judge.trial import haystack_of, text_files
from uncomp_cli.config import AGNOSTIC_PRESET
from uncomp_cli.errors import UsageError
from uncomp_cli.numerals import format_bytes
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.meter import loading, show

if TYPE_CHECKING:
    from uncomp_cli.asking.request import ModelChoice
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.calibrate.budget_curve import QualityCurve
    from uncomp_cli.calibrate.calibration import CalibrateRequest
    from uncomp_cli.calibrate.findings import ProfileFiles
    from uncomp_cli.calibrate.reliability import RiskFit
    from uncomp_cli.evals.tasks.maker import SampleMaker
    from uncomp_cli.uncertainty.profile import UncertaintyProfile


_sample, _preset = partial(option, panel="Samples"), partial(option, panel="Preset", setting=False)


@dataclass(frozen=True, slots=True)
class CalibrateOptions:
    """What is read, and what is saved of it."""

    task: Annotated[
        tuple[str, ...],
        _sample(
            "--task",
            "-t",
            help="Task or subtask of `uncomp eval` that has answers, or continuation (of the text); repeatable.",
            metavar="NAME",
        ),
    ] = ("needle/digits7", "ruler/niah_multikey_1", "continuation", "needle/uuid", "ruler/niah_multiquery")
    tokens: Annotated[
        tuple[int, ...],
        _sample("--tokens", help="Length of a sample, question included; repeatable.", metavar="N", min=200),
    ] = (2000,)
    samples: Annotated[
        int, _sample("--samples", help="Samples of each length, spread over the tasks.", metavar="N", min=1, max=10_000)
    ] = 10
    file: Annotated[tuple[str, ...], text_files("Text to read", panel="Samples")] = ()
    name: Annotated[
        str | None,
        _preset(
            "--name",
            help="Name of the preset; NAME-small, NAME-tiny and NAME-unseen are made beside it.",
            show_default="the model's",
            metavar="NAME",
        ),
    ] = None
    out: Annotated[
        Path | None,
        _preset(
            "--out",
            "-o",
            help="Existing directory, or file, to save it in instead of among your own presets.",
            metavar="PATH",
        ),
    ] = None
    fresh: Annotated[bool, _preset("--fresh", help="Begin anew; older files of the name stay beside it.")] = False
    # No settings: what is set for `uncomp ask` must not choose what a new preset holds.
    policy: Annotated[
        str | None,
        _preset(
            "--policy",
            help="How the presets spread their budgets; one that uses what is measured here.",
            autocompletion=policy_names,
            metavar="NAME[:KEY=VALUE,…]",
            show_default="the shipped presets'",
        ),
    ] = None
    scorer: Annotated[
        str | None,
        _preset("--scorer", help="How the presets rank tokens.", metavar="NAME", show_default="the shipped presets'"),
    ] = None
    budget: Annotated[
        Budget | None,
        _preset(
            "--budget",
            "-b",
            help="KV cache that the preset NAME keeps, as in `uncomp ask`.",
            metavar="AMOUNT",
            parser=Budget.parse,
            show_default="that of balanced, 20%",
        ),
    ] = None


@dataclass(frozen=True, slots=True)
class CalibrateJob:
    """Everything that one `uncomp calibrate` was told, but of the model."""

    wanted: CalibrateOptions
    quality: QualityOptions
    risk: RiskOptions
    seed: int
    reading: ReadingOptions

    @property
    def tokens(self) -> tuple[int, ...]:
        """Every length once."""
        return tuple(dict.fromkeys(self.wanted.tokens))


def calibrate(
    ctx: typer.Context,
    files: Beside = None,
    *,
    wanted: CalibrateOptions,
    quality: QualityOptions,
    risk: RiskOptions,
    reading: Annotated[ReadingOptions, DOCUMENTS],
    model: Annotated[ModelOptions, MEASURED_MODEL],
    seed: Seed = DEFAULT_SEED,
    output: OutputOptions,
) -> None:
    """Measure a model, and save presets for it. Measured is how uncertain its layers and heads are."""
    quality.check()
    risk.check()
    wanted = replace(wanted, file=(*wanted.file, *(files or ())))
    job = CalibrateJob(wanted, quality, risk, seed, reading)
    run_calibrate(job, model.choice(), output.terminal(ctx), as_json=output.as_json)


def run_calibrate(job: CalibrateJob, choice: "ModelChoice", terminal: Terminal, *, as_json: bool) -> None:
    """Run one `uncomp calibrate`."""
    from uncomp_cli.asking.startup import fetch, load

    wanted = job.wanted
    with loading(terminal, "preparing"):
        from uncomp_cli.budget.presets import user_preset_dir
        from uncomp_cli.calibrate.calibration import calibrate as run
        from uncomp_cli.calibrate.findings import choose_files
        from uncomp_cli.evals.tasks.maker import choose_sources

        files = choose_files(choice.name, name=wanted.name, out=wanted.out, folder=user_preset_dir())
        presets = _presets(wanted, files)
        choose_sources(wanted.task)
        if not wanted.fresh:
            files.check()
    model_dir = show(fetch(choice), terminal)
    with loading(terminal, "preparing samples"):
        maker = _maker(job, choice, model_dir, terminal)
        request = _request(job, presets, maker)
        needed = _needed(choice, model_dir, max(job.tokens))
    terminal.note(needed)
    loaded = show(load(choice), terminal)
    for path in files.set_aside() if wanted.fresh else ():
        terminal.note(f"set aside: {path}")
    if files.found is not None:
        terminal.note(f"going on from {files.found}")
    profile = show(run(loaded, request, files), terminal, kept=files.partial)
    again = [what for what, chosen in (("quality", job.quality), ("risk", job.risk)) if chosen.wanted]
    path = save_calibrated(presets[0], profile, files, terminal, again=again)
    save_family(path, presets[1:])
    source = HeldOut(maker, job.tokens, generated=not wanted.file, fresh=wanted.fresh)
    measured: list[QualityCurve | RiskFit] = []
    if job.quality.wanted:
        measured.append(run_quality(job.quality, path, profile, loaded=loaded, source=source, terminal=terminal))
    if job.risk.wanted:
        measured += run_risk(job.risk, path, loaded=loaded, source=source, terminal=terminal)
    save_family(path, presets[1:])  # whose losses were measured with it
    if as_json:
        terminal.write_json(_record(profile, path, measured))
    else:
        _write_tables(profile, measured, terminal)
    terminal.note(f"preset {path.stem}: {path}")
    terminal.note(good_for(path, presets[1:]))


def _record(profile: "UncertaintyProfile", path: Path, measured: "Sequence[QualityCurve | RiskFit]") -> dict[str, Any]:
    from uncomp_cli.budget.presets import FAMILY
    from uncomp_cli.calibrate.findings import profile_record

    record: dict[str, Any] = {
        "schema_version": 1,
        "preset": str(path),
        "profile": str(path.with_suffix(".safetensors")),
    }
    record["presets"] = [str(path.with_stem(f"{path.stem}{suffix}")) for suffix in FAMILY]
    for found in (profile_record(profile), *(each.record() for each in measured)):
        record |= {key: record.get(key, []) + value if "risk" in key else value for key, value in found.items()}
    return record


def _write_tables(
    profile: "UncertaintyProfile", measured: "Sequence[QualityCurve | RiskFit]", terminal: Terminal
) -> None:
    """Tables on standard output; how to read them is for people alone."""
    from uncomp_cli.calibrate.findings import profile_table

    for number, table in enumerate([profile_table(profile), *(found.table() for found in measured)]):
        if number:
            terminal.write_line()
        terminal.write_table(table)
        for note in table.notes:
            terminal.note(note)


def _presets(wanted: CalibrateOptions, files: "ProfileFiles") -> "list[Preset]":
    """The presets that will be saved, the one that was asked for first; a slip is found before anything is loaded.

    Each has scorer, floor, bits and thinning of the shipped one that it is like. A policy and a scorer that are named
    hold for all but the one for unseen questions, which is about nothing else; a budget holds for the first.
    """
    from uncomp_cli.asking.request import choose_preset
    from uncomp_cli.budget.policies import make_policy
    from uncomp_cli.budget.presets import FAMILY, load_preset, shipped_preset_dir

    if wanted.policy is not None and not make_policy(wanted.policy).measures:
        raise UsageError(f"policy {wanted.policy} uses nothing that is measured", hint="--policy uncertain")
    if wanted.budget is not None and wanted.budget.kind == "full":
        raise UsageError("budget full keeps everything, and nothing is left to measure for", hint="--budget 20%")
    made = []
    for suffix, like in FAMILY.items():
        shipped = load_preset(str(shipped_preset_dir() / f"{like}.json"))
        chosen = shipped
        if like != AGNOSTIC_PRESET:
            budget, path = (None if suffix else wanted.budget), str(shipped_preset_dir() / f"{like}.json")
            chosen = choose_preset(path, budget=budget, policy=wanted.policy, scorer=wanted.scorer)
        # The floor stays whatever the budget: unlike one that is named for a prompt, it is for all lengths.
        chosen = replace(chosen, floor_tokens=shipped.floor_tokens, quality=(), risk=(), open_below=0.0)
        made.append(replace(chosen, name=f"{files.name}{suffix}", profile=files.name, folder=None))
    return made


def _maker(job: CalibrateJob, choice: "ModelChoice", model_dir: Path, terminal: Terminal) -> "SampleMaker":
    """What makes samples, by the tokenizer alone: too long ones and too short a text are refused before loading."""
    from uncomp_cli.calibrate.calibration import check_lengths
    from uncomp_cli.engine.tokens.prompt import count_tokens
    from uncomp_cli.evals.tasks.maker import SampleMaker, choose_sources
    from uncomp_cli.models.catalog import show_model
    from uncomp_cli.models.checkpoint import load_tokenizer

    check_lengths(job.tokens, show_model(choice.name).trained_length)
    haystack = haystack_of(job.wanted.file, job.reading, max(job.tokens), seed=job.seed, terminal=terminal)
    count = partial(count_tokens, load_tokenizer(choice.tokenizer or model_dir))
    return SampleMaker(choose_sources(job.wanted.task), haystack, count, job.seed)


def _needed(choice: "ModelChoice", model_dir: Path, tokens: int) -> str:
    """What measuring takes, in words; more than is free is refused before anything is loaded.

    What the program holds itself is not free any more; on a CPU it is in the same memory.
    """
    from uncomp_cli.asking.startup import weigh
    from uncomp_cli.calibrate.expense import check_memory
    from uncomp_cli.engine.spend.memory import resident_bytes
    from uncomp_cli.models.loading import choose_device

    found, device = weigh(choice, model_dir), choose_device(choice.device)
    weights = found.weights_bytes + found.passing_bytes
    needed = check_memory(found.spec, tokens, weights_bytes=weights, available=found.available_bytes)
    whole = f", about {format_bytes(needed + resident_bytes(device))} with it" if device.type == "cpu" else ""
    return f"weights and one sample need {format_bytes(needed)} beside the program{whole}"


def _request(job: CalibrateJob, presets: "Sequence[Preset]", maker: "SampleMaker") -> "CalibrateRequest":
    """The samples, and the measures: the usual ones and what policies and thinnings of the presets go by."""
    from uncomp_cli.budget.policies import make_policy
    from uncomp_cli.budget.thinning import make_thinning
    from uncomp_cli.calibrate.calibration import CalibrateRequest, MeasuringConfig
    from uncomp_cli.uncertainty.measures import canonical_keys

    config, haystack = MeasuringConfig(), maker.haystack
    needed = {key for one in presets for key in make_policy(one.policy).measures}
    needed |= {key for one in presets for key in make_thinning(one.thinning).measures}
    return CalibrateRequest(
        samples=tuple(maker.make(job.tokens, job.wanted.samples)),
        source=haystack.name,
        config=replace(config, measures=canonical_keys([*config.measures, *sorted(needed)])),
        provenance={"seed": job.seed, "text": haystack.name, "text_sha256": haystack.sha256},
    )
