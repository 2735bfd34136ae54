"""`uncomp calibrate`: measure a model's uncertainty on sample texts, and save it with a preset that uses it."""

import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from uncomp_cli.cli.ask.prepare import ModelChoice, choose_preset, load
from uncomp_cli.cli.calibrate.calibrate_report import Calibrated, report
from uncomp_cli.cli.calibrate.calibrate_risk import (
    Risk,
    RiskChoice,
    RiskRope,
    RiskSamples,
    RiskTokens,
    choose_risk,
    run_risk,
)
from uncomp_cli.cli.calibrate.quality import (
    HeldOut,
    Quality,
    QualityBudgets,
    QualityChoice,
    QualitySamples,
    choose_quality,
    run_quality,
    save_calibrated,
    watch,
)
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
from uncomp_cli.config import DEFAULT_MODEL, SamplingConfig, ScorerConfig
from uncomp_cli.errors import UsageError
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.live import loading

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.calibrate.calibration import CalibrateRequest
    from uncomp_cli.calibrate.partial import ProfileFiles
    from uncomp_cli.evals.tasks.calibration_samples import SampleMaker
    from uncomp_cli.evals.tasks.haystack import Haystack
    from uncomp_cli.models.loading import LoadedModel

__all__ = ["calibrate"]

_SEED = SamplingConfig().seed
SAMPLES_PANEL = "Samples"
PRESET_PANEL = "Preset"
DEFAULT_TASKS = ("needle/digits7", "ruler/niah_multikey_1", "continuation", "needle/uuid", "ruler/niah_multiquery")
DEFAULT_TOKENS = 2000


@dataclass(frozen=True, slots=True)
class CalibrateJob:
    """Everything that one `uncomp calibrate` was told about what to read and what to save."""

    tasks: tuple[str, ...]
    tokens: tuple[int, ...]
    samples: int
    paths: tuple[str, ...]
    name: str | None
    out: Path | None
    fresh: bool
    policy: str
    scorer: str
    budget: str
    quality: QualityChoice | None
    risk: RiskChoice | None
    seed: int
    as_json: bool


def calibrate(
    ctx: typer.Context,
    task: Annotated[
        list[str] | None,
        option(
            "--task",
            "-t",
            help="Task or subtask of `uncomp eval` that has answers, or continuation (of the text); repeatable.",
            metavar="NAME",
            show_default=", ".join(DEFAULT_TASKS),
            panel=SAMPLES_PANEL,
        ),
    ] = None,
    tokens: Annotated[
        list[int] | None,
        option(
            "--tokens",
            help="Length of a sample, question included; repeatable.",
            metavar="N",
            min=200,
            show_default=str(DEFAULT_TOKENS),
            panel=SAMPLES_PANEL,
        ),
    ] = None,
    samples: Annotated[
        int,
        option(
            "--samples",
            help="Samples of each length, spread over the tasks.",
            metavar="N",
            min=1,
            max=10_000,
            panel=SAMPLES_PANEL,
        ),
    ] = 10,
    file: Annotated[
        list[str] | None,
        typer.Option(
            "--file",
            "-f",
            help="Text to read: file, directory, glob, or - for standard input; repeatable.",
            show_default="generated prose",
            metavar="PATH",
            rich_help_panel=SAMPLES_PANEL,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            help="Name of the preset.",
            show_default="the model's",
            metavar="NAME",
            rich_help_panel=PRESET_PANEL,
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Existing directory, or file, to save it in instead of among your own presets.",
            metavar="PATH",
            show_default=False,
            rich_help_panel=PRESET_PANEL,
        ),
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh", help="Begin anew; older files of the name stay beside it.", rich_help_panel=PRESET_PANEL
        ),
    ] = False,
    # No settings: what is set for `uncomp ask` must not choose what a new preset holds.
    policy: Annotated[
        str,
        typer.Option(
            "--policy",
            help="How the preset spreads its budget; one that uses what is measured here.",
            autocompletion=policy_names,
            metavar="NAME[:KEY=VALUE,…]",
            rich_help_panel=PRESET_PANEL,
        ),
    ] = "uncertain",
    scorer: Annotated[
        str,
        typer.Option("--scorer", help="How the preset ranks tokens.", metavar="NAME", rich_help_panel=PRESET_PANEL),
    ] = ScorerConfig().name,
    budget: Annotated[
        str,
        typer.Option(
            "--budget",
            "-b",
            help="KV cache that the preset keeps, as in `uncomp ask`.",
            metavar="AMOUNT",
            rich_help_panel=PRESET_PANEL,
        ),
    ] = "20%",
    quality: Quality = False,
    quality_samples: QualitySamples = None,
    quality_budget: QualityBudgets = None,
    risk: Risk = False,
    risk_samples: RiskSamples = None,
    risk_tokens: RiskTokens = None,
    rope: RiskRope = None,
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
    """Measure how uncertain a model's layers and heads are, and save a preset with it."""
    job = CalibrateJob(
        tasks=tuple(task or DEFAULT_TASKS),
        tokens=tuple(dict.fromkeys(tokens or [DEFAULT_TOKENS])),
        samples=samples,
        paths=tuple(file or ()),
        name=name,
        out=out,
        fresh=fresh,
        policy=policy,
        scorer=scorer,
        budget=budget,
        quality=choose_quality(quality, samples=quality_samples, budgets=quality_budget),
        risk=choose_risk(risk, samples=risk_samples, tokens=risk_tokens, rope=rope),
        seed=seed,
        as_json=as_json,
    )
    run_calibrate(job, ModelChoice(model, tokenizer, quantize, device, dtype, offline), terminal_of(ctx, quiet=quiet))


def run_calibrate(job: CalibrateJob, choice: ModelChoice, terminal: Terminal) -> None:
    """Run one `uncomp calibrate`."""
    with loading(terminal, "preparing"):
        from uncomp_cli.budget.presets import user_preset_dir
        from uncomp_cli.calibrate.calibration import calibrate as run
        from uncomp_cli.calibrate.partial import choose_files
        from uncomp_cli.evals.tasks.calibration_samples import choose_sources

        files = choose_files(choice.name, name=job.name, out=job.out, folder=user_preset_dir())
        preset = _preset(job, files)
        choose_sources(job.tasks)
        if job.quality is not None:
            job.quality.check()
        if not job.fresh:
            files.check()
    loaded = load(choice, terminal)
    with loading(terminal, "preparing samples"):
        maker = _maker(job, loaded, terminal)
        request = _request(job, preset, maker)
    for path in files.set_aside() if job.fresh else ():
        terminal.note(f"set aside: {path}")
    if files.found is not None:
        terminal.note(f"going on from {files.found}")
    profile = watch(run(loaded, request, files), files.partial, terminal)
    again = [what for what, choice in (("quality", job.quality), ("risk", job.risk)) if choice is not None]
    path = save_calibrated(preset, profile, files, terminal, again=again)
    source = HeldOut(maker, job.tokens, generated=not job.paths, fresh=job.fresh)
    curve = fit = None
    if job.quality is not None:
        curve = run_quality(job.quality, path, profile, loaded=loaded, source=source, terminal=terminal)
    if job.risk is not None:
        fit = run_risk(job.risk, path, loaded=loaded, source=source, terminal=terminal)
    report(Calibrated(profile, path, curve, fit), terminal, as_json=job.as_json)


def _preset(job: CalibrateJob, files: "ProfileFiles") -> "Preset":
    """The preset that will be saved; a slip in it is found before anything is loaded."""
    from uncomp_cli.budget.policies import make_policy
    from uncomp_cli.budget.presets import DEFAULT_PRESET, load_preset

    if not make_policy(job.policy).measures:
        raise UsageError(f"policy {job.policy} uses nothing that is measured", hint="--policy uncertain")
    chosen = choose_preset(None, budget=job.budget, policy=job.policy, scorer=job.scorer)
    floor = load_preset(DEFAULT_PRESET).floor_tokens  # for all lengths, unlike a budget that is named for one prompt
    return replace(chosen, name=files.name, profile=files.name, floor_tokens=floor, quality=(), risk=None, folder=None)


def _maker(job: CalibrateJob, loaded: "LoadedModel", terminal: Terminal) -> "SampleMaker":
    from uncomp_cli.calibrate.calibration import check_lengths
    from uncomp_cli.engine.tokens.prompt import count_tokens
    from uncomp_cli.evals.tasks.calibration_samples import SampleMaker, choose_sources

    check_lengths(job.tokens, loaded.spec.trained_length)
    count = partial(count_tokens, loaded.tokenizer)
    return SampleMaker(choose_sources(job.tasks), _haystack(job, terminal), count, job.seed)


def _request(job: CalibrateJob, preset: "Preset", maker: "SampleMaker") -> "CalibrateRequest":
    """The samples, and the measures: the usual ones and what the preset's policy needs."""
    from uncomp_cli.budget.policies import make_policy
    from uncomp_cli.calibrate.calibration import CalibrateRequest
    from uncomp_cli.calibrate.sample_pass import MeasuringConfig
    from uncomp_cli.uncertainty.measures import canonical_keys

    config, haystack = MeasuringConfig(), maker.haystack
    return CalibrateRequest(
        samples=tuple(maker.make(job.tokens, job.samples)),
        config=replace(config, measures=canonical_keys([*config.measures, *make_policy(preset.policy).measures])),
        provenance={"seed": job.seed, "text": haystack.name, "text_sha256": haystack.sha256},
    )


def _haystack(job: CalibrateJob, terminal: Terminal) -> "Haystack":
    from uncomp_cli.documents.documents import read_documents
    from uncomp_cli.evals.tasks.haystack import Haystack

    if not job.paths:
        return Haystack.generated_for(max(job.tokens), seed=job.seed)
    stdin: TextIO | None = sys.stdin  # None when the process was started without one
    found = read_documents(job.paths, stdin=None if stdin is None else stdin.buffer)
    for path, reason in found.skipped:
        terminal.warn(f"skipped {path}: {reason}")
    return Haystack.of_documents(found.documents)
