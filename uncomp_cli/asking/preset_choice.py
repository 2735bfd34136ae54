"""The preset that a run goes by: a stored one with what the user changed in it, settled for the model that runs."""

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from uncomp_cli.config import ScorerConfig
from uncomp_cli.errors import DoesNotFitError, UsageError
from uncomp_cli.numerals import format_count

if TYPE_CHECKING:
    from uncomp_cli.budget.amount import Budget
    from uncomp_cli.budget.loss_curve import QualityPoint
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.uncertainty.profile import ModelFingerprint

__all__ = ["QUALITY_COLUMNS", "choose_preset", "loss_note", "quality_row", "settle_preset"]

QUALITY_COLUMNS = ("BUDGET", "KEPT", "LOSS", "95 % INTERVAL", "SAMPLES")


def choose_preset(
    name: str | None,
    *,
    budget: "Budget | str | None",
    policy: str | None,
    scorer: str | None,
    seed: int = 0,
    kv_bits: int | None = None,
    max_loss: str | None = None,
    thinning: str | None = None,
) -> "Preset":
    """The named preset (or the default one) with what was given, and the seed, in place of its own.

    A policy without a named preset is measured live, so no profile goes with it; one that measures nothing has the
    plain scorer, since agreement needs to know whom to trust. A profile stays as well when `thinning` goes by it.
    `max_loss` takes the smallest budget that was measured to lose no more; DoesNotFitError when there is none.
    """
    from uncomp_cli.budget.presets import DEFAULT_PRESET, load_preset

    if max_loss is not None and budget is not None:
        message = f"--max-loss {max_loss} and --budget {budget} both choose the budget"
        raise UsageError(message, hint="leave one of the two out")
    stored = load_preset(name or DEFAULT_PRESET)
    preset = _with_budget(stored, budget=budget, policy=policy)
    if thinning is None and (preset.policy == "full" or (name is None and policy is not None)):
        thinning = "none"  # full keeps everything; a policy that was named alone is judged alone
    preset = _with_thinning(preset, thinning)
    # A loss holds on the profile's model alone.
    needed = _takes_measures(preset) or _thins_by_measures(preset) or max_loss is not None
    if (name is None and policy is not None) or not needed:
        preset = replace(preset, profile=None)
    if name is None and policy is not None and not _takes_measures(preset):
        preset = replace(preset, scorer=ScorerConfig())
    preset = _with_scorer(preset, scorer)
    if policy is not None or kv_bits is not None:
        preset = replace(preset, risk=None)  # what was measured under the preset's own
    bits = preset.kv_bits if kv_bits is None else kv_bits
    preset = replace(preset, scorer=replace(preset.scorer, seed=seed), kv_bits=bits)
    if max_loss is not None:
        preset = _with_loss(preset, stored, max_loss)
    from uncomp_cli.cache.scorers import make_scorer  # imports torch, so cheaper mistakes are found before

    make_scorer(preset.scorer)
    return preset


def _takes_measures(preset: "Preset") -> bool:
    from uncomp_cli.budget.policies import make_policy

    return bool(make_policy(preset.policy).measures)


def _thins_by_measures(preset: "Preset") -> bool:
    from uncomp_cli.budget.thinning import make_thinning

    return bool(make_thinning(preset.thinning).measures)


def _with_thinning(preset: "Preset", thinning: str | None) -> "Preset":
    """The preset with another thinning, in its shortest form."""
    from uncomp_cli.budget.thinning import make_thinning

    return preset if thinning is None else replace(preset, thinning=make_thinning(thinning).text)


def _with_budget(preset: "Preset", *, budget: "Budget | str | None", policy: str | None) -> "Preset":
    """The preset with another budget and policy; what keeps everything and what does not must agree."""
    from uncomp_cli.budget.amount import FULL_BUDGET, Budget

    policy_name = policy or preset.policy
    wanted = preset.budget if budget is None else Budget.of(budget)
    if policy_name == "full" and budget is not None and wanted.kind != "full":
        source = "policy full" if policy == "full" else f"preset {preset.name}"
        raise UsageError(f"{source} keeps everything, budget {budget} does not", hint="leave one of the two out")
    if policy not in (None, "full") and wanted.kind == "full":
        source = f"preset {preset.name}" if budget is None else "budget full"
        raise UsageError(f"{source} keeps everything, policy {policy} has nothing to spread", hint="add --budget 20%")
    if policy_name == "full" or wanted.kind == "full":
        return replace(preset, budget=FULL_BUDGET, policy="full", floor_tokens=0)
    floor = preset.floor_tokens if budget is None else 0  # a budget that was named is taken at its word
    return replace(preset, budget=wanted, policy=policy_name, floor_tokens=floor)


def _with_scorer(preset: "Preset", scorer: str | None) -> "Preset":
    """The preset with another scorer; raises UsageError when its policy has one of its own."""
    from uncomp_cli.budget.policies import make_policy

    if scorer is None:
        return preset
    fixed = make_policy(preset.policy).fixed_scorer
    if fixed not in (None, scorer):
        raise UsageError(
            f"policy {preset.policy} has its own scorer, {fixed}, and cannot use {scorer}",
            hint=f"--policy uniform --scorer {scorer}",
        )
    return replace(preset, scorer=replace(preset.scorer, name=scorer))


def _with_loss(preset: "Preset", stored: "Preset", max_loss: str) -> "Preset":
    """`preset` with the smallest budget that holds `max_loss`, as long as it is what `stored` was measured with."""
    from uncomp_cli.budget.amount import Budget
    from uncomp_cli.budget.loss_curve import parse_loss, smallest_budget

    loss = parse_loss(max_loss)
    if not stored.quality or stored.profile is None:
        raise DoesNotFitError(
            f"preset {stored.name} has no quality that was measured on a known model, so --max-loss {max_loss} is open",
            hint="measure it: uncomp calibrate --quality; or name a --budget",
        )
    for flag, measured, given in (
        ("--policy", (stored.policy, stored.profile), (preset.policy, preset.profile)),
        ("--scorer", stored.scorer.name, preset.scorer.name),
        ("--kv-bits", stored.kv_bits, preset.kv_bits),
        ("--thin", stored.thinning, preset.thinning),
    ):
        if measured != given:
            message = f"--max-loss {max_loss} holds for preset {stored.name} as measured, not with another {flag}"
            raise UsageError(message, hint=f"leave {flag} out, or name a --budget in place of --max-loss")
    point = smallest_budget(stored.quality, loss)
    return _with_budget(replace(preset, budget=Budget.parse(point.budget)), budget=None, policy=None)


def settle_preset(
    preset: "Preset", model: "ModelFingerprint", *, named: bool, choose: "Callable[[str], Preset]"
) -> "tuple[Preset, str | None]":
    """The preset to run this model with, and a note when it is not the one that was chosen.

    A preset whose profile was measured on another model is refused when the user named it, with both values. The
    default one gives way to `live`: `choose(name)` is `choose_preset` with the user's other options.
    """
    from uncomp_cli.budget.presets import LIVE_PRESET
    from uncomp_cli.uncertainty.profile import load_profile

    path = preset.profile_path
    if path is None:
        return preset, None
    measured = load_profile(path).fingerprint
    try:
        measured.check(model)
    except UsageError as error:
        if named:
            message = f"preset {preset.name} is not for this model: {error.message}"
            raise UsageError(message, hint=f"--preset {LIVE_PRESET}, or {error.hint}") from error
        note = f"preset {preset.name} was measured on {measured.name}; for {model.name} preset {LIVE_PRESET} is used"
        return choose(LIVE_PRESET), note
    return preset, None


def loss_note(preset: "Preset", max_loss: str) -> str:
    """Which budget --max-loss chose, and the measured loss that it holds by."""
    from uncomp_cli.budget.amount import Budget

    point = next(point for point in preset.quality if Budget.parse(point.budget) == preset.budget)
    return (
        f"--max-loss {max_loss}: budget {preset.budget}, measured loss {100 * point.loss:.2f} % "
        f"({100 * point.loss_low:.2f} to {100 * point.loss_high:.2f} %, {format_count(point.samples)} samples)"
    )


def quality_row(point: "QualityPoint") -> tuple[str, ...]:
    """A point of a quality curve, in per cent, under QUALITY_COLUMNS."""
    return (
        point.budget,
        f"{100 * point.kept_fraction:.1f} %",
        f"{100 * point.loss:.2f} %",
        f"{100 * point.loss_low:.2f} to {100 * point.loss_high:.2f} %",
        format_count(point.samples),
    )
