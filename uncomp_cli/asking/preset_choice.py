"""The preset that a run goes by: a stored one with what the user changed in it, settled for the model that runs.

The next question is not known when a conversation is compressed, so a chat's default preset is `unseen`, and a scorer
that looks at the question gives way to `unseen`'s (engine/context/growth.py).
"""

import re
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from functools import wraps
from typing import TYPE_CHECKING, ParamSpec

from uncomp_cli.asking.events import Event, Noted
from uncomp_cli.asking.request import Request
from uncomp_cli.budget.amount import Budget
from uncomp_cli.budget.presets import AGNOSTIC_PRESET, LIVE_PRESET, Preset, preset
from uncomp_cli.errors import UsageError
from uncomp_cli.numerals import format_count

if TYPE_CHECKING:
    from uncomp_cli.uncertainty.profile import ModelFingerprint

__all__ = [
    "CHAT_PRESET",
    "LEAST_TOKENS",
    "PresetChoice",
    "choose_preset",
    "loss_note",
    "preset_line",
    "preset_of",
    "settle",
    "settle_preset",
    "times",
]

CHAT_PRESET = AGNOSTIC_PRESET
LEAST_TOKENS = 256
"""Tokens a head that a budget in per cent keeps at least: a share of what has hardly begun is nothing."""
_TIMES = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)\s*[xX×]")

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


@dataclass(frozen=True, slots=True)
class PresetChoice:
    """A preset's name, None for the default one, and what replaces its own; None leaves it.

    `floor_tokens` go with a budget in per cent: what a head keeps at least.
    """

    name: str | None = None
    budget: Budget | None = None
    policy: str | None = None
    scorer: str | None = None
    seed: int = 0
    floor_tokens: int = LEAST_TOKENS

    def stored(self, name: str | None = None) -> Preset:
        """The preset with the user's changes, whatever the model is. Raises UsageError for what cannot be."""
        preset = choose_preset(
            name or self.name or CHAT_PRESET,
            budget=self.budget,
            policy=self.policy,
            scorer=self.scorer,
            seed=self.seed,
        )
        if self.budget is None or preset.budget.kind != "fraction":
            return preset
        return replace(preset, floor_tokens=self.floor_tokens)

    def settled(self, model: "ModelFingerprint") -> tuple[Preset, list[str]]:
        """The preset for this model and for questions that nobody has asked yet; notes on what was changed."""
        from uncomp_cli.engine.context.growth import for_any_question

        preset, note = settle_preset(self.stored(), model, named=self.name is not None, choose=self.stored)
        preset, changed = for_any_question(preset)
        return preset, [each for each in (note, changed) if each is not None]


def times(choice: PresetChoice, text: str, *, now: Preset) -> PresetChoice:
    """`choice` with a budget as typed, or `2x` of what there is now, its floor too.

    Raises UsageError when that cannot be multiplied.
    """
    factor = _TIMES.fullmatch(text.strip())
    if factor is None:
        return replace(choice, budget=Budget.parse(text), floor_tokens=LEAST_TOKENS)
    budget = now.budget.times(float(factor[1]))
    if budget is None:
        raise UsageError(f"budget {now.budget} cannot be taken {text}", hint="name an amount, such as /budget 30%")
    if budget.kind == "full":
        return replace(choice, budget=budget)
    return replace(choice, budget=budget, floor_tokens=round(now.floor_tokens * float(factor[1])))


def preset_line(preset: Preset) -> str:
    """`preset unseen · budget 30%, at least 1,024 tokens · policy uncertain · scorer distinct`."""
    least = f", at least {format_count(preset.floor_tokens)} tokens" if preset.floor_tokens else ""
    scorer = "" if preset.policy == "full" else f" · scorer {preset.scorer.name}"
    return f"preset {preset.name} · budget {preset.budget}{least} · policy {preset.policy}{scorer}"


def preset_of(request: Request, name: str | None) -> Preset:
    """The preset `name`, or the default one, with what the user changed in it."""
    return choose_preset(
        name,
        budget=request.budget,
        policy=request.policy,
        scorer=request.scorer,
        seed=request.sampling.seed,
        kv_bits=request.kv_bits,
        max_loss=request.max_loss,
        thinning=request.thinning,
    )


def settle(request: Request, preset: Preset, model: "ModelFingerprint") -> Generator[Event, None, Preset]:
    """The preset for this model: what is not the default one, and what --max-loss came to, is said."""
    named = request.preset is not None
    preset, note = settle_preset(preset, model, named=named, choose=lambda name: preset_of(request, name))
    if note is not None:
        yield Noted(note)
    if request.max_loss is not None:
        yield Noted(loss_note(preset, request.max_loss))
    return preset
