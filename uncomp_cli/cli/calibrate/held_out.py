"""The second half of `uncomp calibrate`: what budgets lose and what attention entropy says, with the preset just saved.

Both are measured on samples that were not calibrated on, after the preset is usable. Outcomes are kept in
NAME.quality.jsonl and answers in NAME.risk.jsonl until all are there, so that a command that was stopped goes on; then
the curve is in the preset, and the file goes.
"""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

from uncomp_cli.budget.amount import Budget
from uncomp_cli.cli.declare.tree import option
from uncomp_cli.cli.judge.trial import check_plot, draw_into
from uncomp_cli.errors import DoesNotFitError, UsageError
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.meter import loading, show

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.calibrate.budget_curve import QualityCurve
    from uncomp_cli.calibrate.findings import ProfileFiles
    from uncomp_cli.calibrate.observation import RiskRun
    from uncomp_cli.calibrate.reliability import RiskFit
    from uncomp_cli.evals.journal import Journal, Kind
    from uncomp_cli.evals.tasks.maker import SampleMaker
    from uncomp_cli.evals.tasks.task import Sample
    from uncomp_cli.models.extension import RopeChoice
    from uncomp_cli.models.runnable import LoadedModel
    from uncomp_cli.uncertainty.profile import UncertaintyProfile


QUALITY_SAMPLES, RISK_SAMPLES = 24, 20
DEFAULT_BUDGETS = tuple(map(Budget.parse, ("50%", "30%", "20%", "15%", "10%", "7%", "5%", "3%")))
DEFAULT_SHARES = (0.25, 0.75, 1.5, 2.0)
"""Lengths of the texts that risk is measured on, as shares of the length that the model was trained for."""

T = TypeVar("T")
_quality, _risk = (partial(option, panel=panel, setting=False) for panel in ("Quality", "Risk"))


@dataclass(frozen=True, slots=True)
class QualityOptions:
    """Whether the loss of smaller budgets is measured too, and how."""

    wanted: Annotated[
        bool, _quality("--quality", help="Then measure what smaller budgets lose, for `uncomp ask --max-loss`.")
    ] = False
    samples: Annotated[
        int | None,
        _quality(
            "--quality-samples",
            help="Samples of each length to measure that on; none of them is calibrated on.",
            metavar="N",
            min=2,
            max=10_000,
            show_default=str(QUALITY_SAMPLES),
        ),
    ] = None
    budgets: Annotated[
        tuple[Budget, ...],
        _quality(
            "--quality-budget",
            help="Budget to measure; repeatable.",
            metavar="AMOUNT",
            parser=Budget.parse,
            show_default=", ".join(map(str, DEFAULT_BUDGETS)),
        ),
    ] = ()

    @property
    def amounts(self) -> tuple[Budget, ...]:
        """The budgets to measure."""
        return self.budgets or DEFAULT_BUDGETS

    def check(self) -> None:
        """Raise UsageError for a choice without --quality, for a budget that is none, and for `auto`."""
        _check_wanted("quality", self.wanted, {"--quality-samples": self.samples, "--quality-budget": self.budgets})
        if self.wanted:
            from uncomp_cli.evals.judges.contestants import make_settings

            make_settings(["uniform"], self.amounts, seed=0)


def _check_wanted(what: str, wanted: bool, given: Mapping[str, object]) -> None:
    flag = next((flag for flag, value in given.items() if value), None)
    if flag is not None and not wanted:
        raise UsageError(f"{flag} chooses how {what} is measured, and it is not", hint=f"add --{what}")


@dataclass(frozen=True, slots=True)
class HeldOut:
    """What the samples are drawn from: as those that were calibrated on, by `maker`, of the lengths `tokens`.

    `generated` says that the text is prose of which there can be more; `fresh` that no earlier outcome counts.
    """

    maker: "SampleMaker"
    tokens: tuple[int, ...]
    generated: bool
    fresh: bool


def save_calibrated(
    preset: "Preset", profile: "UncertaintyProfile", files: "ProfileFiles", terminal: Terminal, *, again: Sequence[str]
) -> Path:
    """Write preset and profile; quality and risk that were measured before stay when all else is the same.

    What does not stay is said, unless it is measured `again` at once.
    """
    from uncomp_cli.budget.presets import save_preset

    old, holds = _measured_before(preset, files, profile, terminal)
    same_budget = old is not None and old.budget == preset.budget
    for what, stays in (("quality", holds), ("risk", holds and same_budget)):
        if old is not None and getattr(old, what) and what not in again and not stays:
            terminal.warn(f"the {what} that was measured is of other settings, and is left out; --{what} measures it")
    lengths = sorted({sample.tokens for sample in profile.samples})
    measured = f"{len(profile.samples)} samples of {lengths[0]:,} to {lengths[-1]:,} tokens"
    description = f"{preset.policy}, calibrated on {profile.fingerprint.name} with {measured}."
    quality = old.quality if old is not None and holds else ()
    risk = old.risk if old is not None and holds and same_budget else ()
    absent = (old and old.absent) or preset.absent  # of texts and questions, whatever is kept
    preset = replace(preset, description=description, quality=quality, risk=risk, absent=absent)
    path = save_preset(preset, files.folder, profile)
    files.finish()
    return path


def save_family(path: Path, others: "Sequence[Preset]") -> None:
    """Write `others` beside the preset in `path`, by whose profile they go; its losses are theirs too where they differ
    in the budget alone, and what tells that a text has no answer in any case.
    """
    from uncomp_cli.budget.presets import load_preset, save_preset

    first = load_preset(str(path.absolute()))
    for one in others:
        description = f"{one.policy}, with the profile of preset {first.name}."
        alike = replace(one, budget=first.budget, floor_tokens=first.floor_tokens, name=first.name)
        shared = replace(first, quality=(), risk=(), absent=one.absent, description=one.description) == alike
        quality = first.quality if shared else ()
        save_preset(replace(one, description=description, quality=quality, absent=first.absent), path.parent)


def good_for(path: Path, others: "Sequence[Preset]") -> str:
    """One sentence: what the presets are good for, and what is known of their loss."""
    from uncomp_cli.asking.request import choose_preset, settle_preset
    from uncomp_cli.budget.presets import load_preset, user_preset_dir
    from uncomp_cli.uncertainty.profile import load_profile

    first, model = load_preset(str(path.absolute())), load_profile(path.with_suffix("")).fingerprint
    usual, _ = settle_preset(choose_preset(), model, named=False, choose=choose_preset)
    name = first.name if path.parent.resolve() == user_preset_dir().resolve() else shlex.quote(str(path))
    use = f"use it with uncomp ask --preset {name}" + (", which ask takes for it by itself" if usual == first else "")
    point = first.measured_loss
    loss = "what they lose is not measured (--quality does)"
    if point is not None:
        loss = f"{first.name} was measured to lose {100 * point.loss:.1f} % of an answer's likelihood at {first.budget}"
    budgets = ", ".join(f"{one.name} {one.budget}" for one in (first, *others))
    return (
        f"they are for {model.name} alone: {budgets}, the last for documents that are read before anything is asked; "
        f"{loss}; {use}"
    )


def _measured_before(
    preset: "Preset", files: "ProfileFiles", profile: "UncertaintyProfile", terminal: Terminal
) -> "tuple[Preset | None, bool]":
    """The preset that is about to be replaced, and whether its quality holds for `preset` with `profile`."""
    from uncomp_cli.budget.presets import load_preset
    from uncomp_cli.uncertainty.profile import load_profile

    if files.preset.is_file() and files.profile.is_file():
        try:
            old = load_preset(str(files.preset.absolute()))
            alike = replace(old, budget=preset.budget, description=preset.description, quality=(), risk=())
            alike = replace(alike, absent=preset.absent)
            return old, alike == preset and load_profile(files.profile).samples == profile.samples
        except UsageError as error:
            terminal.warn(f"what was measured for it is left out: {error.message}")
    return None, True


def run_quality(
    choice: QualityOptions,
    path: Path,
    profile: "UncertaintyProfile",
    *,
    loaded: "LoadedModel",
    source: HeldOut,
    terminal: Terminal,
) -> "QualityCurve":
    """Measure the preset in `path` on samples that `profile` is not made of; write the curve into the preset.

    Raises DoesNotFitError when all budgets are too small for the samples; the preset is then as it was.
    """
    from uncomp_cli.budget.presets import load_preset, save_preset
    from uncomp_cli.calibrate.budget_curve import measure_quality, quality_file_settings
    from uncomp_cli.evals.tables.outcome import OUTCOMES
    from uncomp_cli.evals.tasks.maker import held_out_maker, held_out_samples

    preset, count = load_preset(str(path.absolute())), choice.samples or QUALITY_SAMPLES
    with loading(terminal, "preparing samples"):
        maker = held_out_maker(source.maker, longest=max(source.tokens), generated=source.generated)
        known = {sample.sha256 for sample in profile.samples}
        samples = held_out_samples(maker, source.tokens, count, known=known)
    _tell_left_out(len(samples), count * len(source.tokens), terminal)
    kept, settings = path.with_suffix(".quality.jsonl"), quality_file_settings(maker, loaded)
    with open_journal(kept, OUTCOMES, settings, source.fresh, terminal) as results:
        steps = measure_quality(loaded, preset, samples, choice.amounts, results=results)
        curve = show(steps, terminal, kept=kept)
    for budget, reason in curve.refused.items():
        terminal.warn(f"budget {budget} has no loss: {reason}")
    if not curve.points:
        budgets = ", ".join(map(str, choice.amounts))
        raise DoesNotFitError(
            f"no budget of {budgets} is large enough for samples of {min(source.tokens):,} tokens",
            hint="use longer samples (--tokens), or name larger budgets with --quality-budget",
        )
    save_preset(replace(preset, quality=curve.points), path.parent)
    kept.unlink()
    return curve


def open_journal(
    path: Path, kind: "Kind[T]", settings: dict[str, object], fresh: bool, terminal: Terminal
) -> "Journal[T]":
    """The results of a run that was stopped, or a new file; what is not wanted is set aside."""
    from uncomp_cli.evals.journal import Journal, set_aside

    try:
        if not fresh:
            return Journal.open(path, kind, settings)
    except UsageError as error:
        terminal.note(error.message)
    if (old := set_aside(path, kind, whatever=True)) is not None:
        terminal.note(f"set aside: {old}")
    return Journal.open(path, kind, settings)


def _tell_left_out(count: int, asked: int, terminal: Terminal) -> None:
    if count < asked:
        few = f"{asked - count:,} of {asked:,} samples of quality"
        terminal.warn(f"{few} are left out: the text is too short for as many that were not calibrated on")


@dataclass(frozen=True, slots=True)
class RiskOptions:
    """Whether wrong answers are foreseen too, and how that is measured."""

    wanted: Annotated[
        bool, _risk("--risk", help="Then measure what tells wrong answers, and questions that a text does not answer.")
    ] = False
    samples: Annotated[
        int | None,
        _risk(
            "--risk-samples",
            help="Answers of each length to measure that on.",
            metavar="N",
            min=1,
            max=10_000,
            show_default=str(RISK_SAMPLES),
        ),
    ] = None
    tokens: Annotated[
        tuple[int, ...],
        _risk(
            "--risk-tokens",
            help="Length of such a text; repeatable.",
            metavar="N",
            min=200,
            show_default="0.25, 0.75, 1.5 and 2 times the trained length",
        ),
    ] = ()
    data: Annotated[
        tuple[Path, ...],
        _risk(
            "--risk-data",
            help="File or directory of questions with their passages, as in `uncomp eval --data`; repeatable.",
            metavar="PATH",
        ),
    ] = ()
    plot: Annotated[
        Path | None,
        _risk(
            "--plot",
            help="Draw into this directory what the stated rates came to; `uncomp preset plot` draws the rest.",
            metavar="DIR",
            show_default=False,
        ),
    ] = None
    # No setting: how `uncomp ask` reads must not choose what a new preset holds.
    rope: Annotated[
        str | None,
        _risk(
            "--rope",
            help="How those texts are read past the trained length, as in `uncomp ask`.",
            metavar="CHOICE",
            show_default="auto",
        ),
    ] = None

    def check(self) -> None:
        """Raise UsageError for a choice without --risk, and for a RoPE that is none."""
        given = {"--risk-samples": self.samples, "--risk-tokens": self.tokens, "--risk-data": self.data}
        _check_wanted("risk", self.wanted, {**given, "--rope": self.rope, "--plot": self.plot})
        check_plot(self.plot)
        _ = self.rope_choice

    @property
    def rope_choice(self) -> "RopeChoice":
        """How texts past the trained length are read."""
        from uncomp_cli.models.extension import RopeChoice, parse_rope

        return parse_rope(self.rope or "auto") or RopeChoice("auto", None, None)

    def lengths(self, trained_length: int) -> tuple[int, ...]:
        """The lengths of the texts, each once."""
        chosen = tuple(dict.fromkeys(self.tokens))
        return chosen or tuple(round(share * trained_length) for share in DEFAULT_SHARES)


def run_risk(
    choice: RiskOptions, path: Path, *, loaded: "LoadedModel", source: HeldOut, terminal: Terminal
) -> "list[RiskFit]":
    """Measure the preset in `path`, and write the curves into it: inside the trained length, and past it.

    Raises UsageError when too few answers were right or wrong; the preset is then as it was, and the answers stay.
    """
    from uncomp_cli.budget.presets import load_preset, save_preset
    from uncomp_cli.calibrate.observation import risk_samples
    from uncomp_cli.calibrate.reliability import fit_risk
    from uncomp_cli.engine.look.watch import watched_heads
    from uncomp_cli.evals.tasks.outside import outside_tasks

    stored = load_preset(str(path.absolute()))
    preset, trained = replace(stored, risk=()), loaded.info.trained_length
    heads = watched_heads(preset, loaded.spec)
    if not heads:
        raise UsageError("risk needs heads to watch, and the profile has no losses", hint="--policy uncertain")
    lengths = choice.lengths(trained)
    with loading(terminal, "preparing samples"):
        outside = outside_tasks(choice.data)[0] if choice.data else []
        count = choice.samples or RISK_SAMPLES
        samples = risk_samples(source.maker, lengths, count, generated=source.generated, outside=outside)
    run, rope, kept = _measure(choice, preset, samples, path=path, loaded=loaded, source=source, terminal=terminal)
    if run.unwatched:
        terminal.note(f"{run.unwatched:,} answers were a single token: there is nothing to watch, they are left out")
    fits = {}
    for inside, name in ((True, "risk"), (False, "risk-long")):
        answers = [answer for answer in run.answers if (answer.tokens <= trained) == inside]
        if answers:
            read = "trained" if inside else rope
            fit = fit_risk(answers, heads, rope=read, budget=str(preset.budget), scorer=preset.scorer.name)
            fits[f"{preset.name}-{name}"] = fit
    told = (fit.absent for fit in fits.values() if fit.absent is not None)
    absent = next(told, preset.absent)  # inside the length, if there; too few without an answer change nothing
    save_preset(replace(preset, risk=tuple(fit.curve for fit in fits.values()), absent=absent), path.parent)
    kept.unlink()
    if choice.plot is not None:
        draw_into(choice.plot, partial(_pictures, fits), terminal)
    return [*fits.values()]


def _pictures(fits: "Mapping[str, RiskFit]", folder: Path) -> Iterator[Path]:
    """One of every range of lengths, inside the trained length and past it."""
    from uncomp_cli.ui.figure import write
    from uncomp_cli.ui.roc import make_reliability

    for name, fit in fits.items():
        shortest, longest = fit.curve.tokens[0], fit.curve.tokens[-1]
        title = f"{name}: what stated rates of errors came to ({shortest:,} to {longest:,} tokens)"
        yield write(make_reliability([fit.judged], title=title), folder / f"{name}.png")


def _measure(
    choice: RiskOptions,
    preset: "Preset",
    samples: "Sequence[Sample]",
    *,
    path: Path,
    loaded: "LoadedModel",
    source: HeldOut,
    terminal: Terminal,
) -> "tuple[RiskRun, str, Path]":
    """The answers, how their texts were read, and the file they are in; the model is turned back afterwards."""
    from uncomp_cli.calibrate.observation import ANSWERS, measure_risk, risk_file_settings
    from uncomp_cli.models.rotary import resolve_rope, use_rope

    longest = max(sample.tokens + sample.queries[0].max_new_tokens for sample in samples)
    try:
        turned, note = resolve_rope(use_rope(loaded, choice.rope_choice), choice.rope_choice, tokens=longest)
        if note is not None:
            terminal.note(note)
        settings = risk_file_settings(turned, preset)
        with open_journal(path.with_suffix(".risk.jsonl"), ANSWERS, settings, source.fresh, terminal) as results:
            run = show(measure_risk(turned, preset, samples, results=results), terminal, kept=results.path)
        return run, str(turned.rope), results.path
    finally:
        use_rope(loaded, None)
