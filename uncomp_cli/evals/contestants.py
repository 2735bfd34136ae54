"""Contestants: what stands for judgement, in one short word, and the settings they are judged at.

    POLICY[/SCORER][/8bit|/4bit][/published]        uniform · pyramid · uniform/keydiff · full/8bit · uniform/published

`8bit` and `4bit` hold the prompt's keys and values in fewer bits. `published` takes window, pooling and single tokens
as the scorer's paper has them instead of our coherence (cache/coherence.py), which every contestant gets otherwise,
controls included. `preset:NAME` takes policy, scorer and bits from a preset; its label has a digest of them, so that
results of a preset that was edited are another's. A setting is a contestant at a budget.
"""

import difflib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from uncomp_cli.budget.policies import make_policy
from uncomp_cli.budget.presets import Preset, load_preset
from uncomp_cli.budget.units import parse_budget
from uncomp_cli.cache.scoring import SCORERS, make_scorer
from uncomp_cli.config import ScorerConfig
from uncomp_cli.errors import UsageError

__all__ = ["FULL", "Setting", "make_settings", "parse_contestant"]

FULL = "full"
_BITS = {"8bit": 8, "4bit": 4}
_PUBLISHED = "published"


@dataclass(frozen=True, slots=True)
class Setting:
    """One contestant at one budget; `preset` is what the engine is given."""

    contestant: str
    preset: Preset

    @property
    def budget(self) -> str:
        """The budget in the user's own unit."""
        return self.preset.budget

    @property
    def label(self) -> str:
        """`uniform/keydiff 20%`; the full cache is `full`."""
        return self.contestant if self.budget == FULL else f"{self.contestant} {self.budget}"


def make_settings(contestants: Sequence[str], budgets: Sequence[str], *, seed: int) -> list[Setting]:
    """The full cache, and every contestant at every budget, each once; what keeps all tokens has one setting.

    Raises UsageError for a name or budget that is none; a budget of `auto` depends on the machine and is refused.
    """
    chosen = {s.label: s for s in [Setting(FULL, parse_contestant(FULL, seed=seed))]}
    for text in contestants:
        preset = parse_contestant(text, seed=seed)
        for budget in [FULL] if preset.policy == FULL else [_checked_budget(b) for b in budgets]:
            setting = Setting(preset.name, replace(preset, budget=budget))
            chosen.setdefault(setting.label, setting)
    return list(chosen.values())


def parse_contestant(text: str, *, seed: int) -> Preset:
    """The preset of a contestant at full budget, named as it was written. Raises UsageError with the nearest name."""
    kind, _, name = text.partition(":")
    if kind == "preset" and name:
        preset = load_preset(name)
        scorer = replace(preset.scorer, seed=seed)
        return replace(preset, name=f"{text}#{_digest(preset)}", budget=FULL, floor_tokens=0, scorer=scorer)
    policy_name, *parts = text.split("/")
    policy = make_policy(policy_name)
    scorers = [part for part in parts if part not in _BITS and part != _PUBLISHED]
    for part in parts:
        _check_part(part, text)
    if len(scorers) > 1 or len(parts) != len(set(parts)) or sum(part in _BITS for part in parts) > 1:
        raise UsageError(f"contestant '{text}' says one thing twice", hint="write POLICY[/SCORER][/8bit][/published]")
    if policy_name == FULL and (scorers or _PUBLISHED in parts):
        raise UsageError(f"contestant '{text}': policy full ranks nothing", hint="write full, full/8bit or full/4bit")
    scorer_name = _scorer_name(text, policy.fixed_scorer, scorers)
    config = make_scorer(ScorerConfig(scorer_name)).published if _PUBLISHED in parts else ScorerConfig(scorer_name)
    bits = next((_BITS[part] for part in parts if part in _BITS), 16)
    return Preset(text, "", FULL, policy_name, replace(config, seed=seed), kv_bits=bits)


def _digest(preset: Preset) -> str:
    """Eight digits of what decides a preset's results, budget and floor aside."""
    decisive = json.dumps([preset.policy, asdict(preset.scorer), preset.kv_bits])
    return hashlib.sha256(decisive.encode()).hexdigest()[:8]


def _check_part(part: str, text: str) -> None:
    known = [*SCORERS, *_BITS, _PUBLISHED]
    if part not in known:
        near = difflib.get_close_matches(part, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"after the policy: {', '.join(known)}"
        raise UsageError(f"contestant '{text}' has the unknown part '{part}'", hint=hint)


def _scorer_name(text: str, fixed: str | None, scorers: Sequence[str]) -> str:
    if fixed is not None and scorers and scorers[0] != fixed:
        raise UsageError(
            f"contestant '{text}': the policy has its own scorer, {fixed}", hint=f"write uniform/{scorers[0]}"
        )
    return scorers[0] if scorers else fixed or ScorerConfig().name


def _checked_budget(text: str) -> str:
    budget = parse_budget(text)
    if budget.kind == "auto":
        raise UsageError("budget auto depends on the memory that is free", hint="name one: --budget 20%")
    return str(budget)
