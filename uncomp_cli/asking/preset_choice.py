"""The preset that a run goes by: a stored one with what the user changed in it, settled for the model that runs."""

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec

from uncomp_cli.budget.amount import Budget
from uncomp_cli.budget.loss_curve import QualityPoint
from uncomp_cli.budget.presets import LIVE_PRESET, Preset, preset
from uncomp_cli.errors import UsageError
from uncomp_cli.numerals import format_count

if TYPE_CHECKING:
    from uncomp_cli.uncertainty.profile import ModelFingerprint

__all__ = ["QUALITY_COLUMNS", "choose_preset", "loss_note", "quality_row", "settle_preset"]

QUALITY_COLUMNS = ("BUDGET", "KEPT", "LOSS", "95 % INTERVAL", "SAMPLES")
_Given = ParamSpec("_Given")


def _with_a_known_scorer(choose: Callable[_Given, Preset]) -> Callable[_Given, Preset]:
    @wraps(choose)
    def checked(*args: _Given.args, **given: _Given.kwargs) -> Preset:
        from uncomp_cli.cache.scorers import make_scorer  # imports torch, so cheaper mistakes are found before

        chosen = choose(*args, **given)
        make_scorer(chosen.scorer)
        return chosen

    return checked


choose_preset = _with_a_known_scorer(preset)
"""`preset` of budget/presets.py; it also refuses a scorer that there is not."""


def settle_preset(
    preset: Preset, model: "ModelFingerprint", *, named: bool, choose: Callable[[str], Preset]
) -> tuple[Preset, str | None]:
    """The preset to run this model with, and a note when it is not the one that was chosen.

    A preset whose profile was measured on another model is refused when the user named it, with both values. The
    default one gives way to `live`: `choose(name)` is `choose_preset` with the user's other options.
    """
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


def loss_note(preset: Preset, max_loss: str) -> str:
    """Which budget --max-loss chose, and the measured loss that it holds by."""
    point = next(point for point in preset.quality if Budget.parse(point.budget) == preset.budget)
    return (
        f"--max-loss {max_loss}: budget {preset.budget}, measured loss {100 * point.loss:.2f} % "
        f"({100 * point.loss_low:.2f} to {100 * point.loss_high:.2f} %, {format_count(point.samples)} samples)"
    )


def quality_row(point: QualityPoint) -> tuple[str, ...]:
    """A point of a quality curve, in per cent, under QUALITY_COLUMNS."""
    return (
        point.budget,
        f"{100 * point.kept_fraction:.1f} %",
        f"{100 * point.loss:.2f} %",
        f"{100 * point.loss_low:.2f} to {100 * point.loss_high:.2f} %",
        format_count(point.samples),
    )
