"""Which preset a chat uses: a name and what the user changed in it.

The next question is not known when a conversation is compressed, so the default preset is `unseen`, and a scorer that
looks at the question gives way to `unseen`'s (engine/context/agnostic.py).
"""

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from uncomp_cli.asking.preset_choice import choose_preset, settle_preset
from uncomp_cli.budget.presets import AGNOSTIC_PRESET
from uncomp_cli.errors import UsageError

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.uncertainty.profile import ModelFingerprint

__all__ = ["CHAT_PRESET", "LEAST_TOKENS", "PresetChoice", "times"]

CHAT_PRESET = AGNOSTIC_PRESET
LEAST_TOKENS = 256
"""Tokens a head that a budget in per cent keeps at least: a share of what has hardly begun is nothing."""
_TIMES = re.compile(r"([0-9]{1,6}(?:\.[0-9]{1,6})?)\s*[xX×]")


@dataclass(frozen=True, slots=True)
class PresetChoice:
    """A preset's name, None for the default one, and what replaces its own; None leaves it.

    `floor_tokens` go with a budget in per cent: what a head keeps at least.
    """

    name: str | None = None
    budget: str | None = None
    policy: str | None = None
    scorer: str | None = None
    seed: int = 0
    floor_tokens: int = LEAST_TOKENS

    def stored(self, name: str | None = None) -> "Preset":
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

    def settled(self, model: "ModelFingerprint") -> "tuple[Preset, list[str]]":
        """The preset for this model and for questions that nobody has asked yet; notes on what was changed."""
        from uncomp_cli.engine.context.agnostic import for_any_question

        preset, note = settle_preset(self.stored(), model, named=self.name is not None, choose=self.stored)
        preset, changed = for_any_question(preset)
        return preset, [each for each in (note, changed) if each is not None]


def times(choice: PresetChoice, text: str, *, now: "Preset") -> PresetChoice:
    """`choice` with a budget as typed, or `2x` of what there is now, its floor too.

    Raises UsageError when that cannot be multiplied.
    """
    factor = _TIMES.fullmatch(text.strip())
    if factor is None:
        return replace(choice, budget=text, floor_tokens=LEAST_TOKENS)
    budget = now.budget.times(float(factor[1]))
    if budget is None:
        raise UsageError(f"budget {now.budget} cannot be taken {text}", hint="name an amount, such as /budget 30%")
    if budget.kind == "full":
        return replace(choice, budget=str(budget))
    return replace(choice, budget=str(budget), floor_tokens=round(now.floor_tokens * float(factor[1])))
