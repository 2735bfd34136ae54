"""The budget of a text that grows: what is protected of it, and what every head keeps of the rest.

    protected   the template and the system prompt, sinks, pins
    guarded     these, and the latest question with its answer as far as a quarter of a head's tokens holds them

Pins and what is guarded take their place in the budget: they are not put on top of a preset's floor. A plan counts keys
and values; what is allocated has positions and slack beside them. `within` takes those, and room for tokens that are
yet to come, out of each head's count, so that allocated bytes stay within the plan's.
"""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from uncomp_cli.budget.plan import BudgetPlan
from uncomp_cli.budget.presets import Preset
from uncomp_cli.budget.values import Uncertainty
from uncomp_cli.config import CacheConfig, Limits
from uncomp_cli.engine.spend.allocation import Allocation, make_allocation
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.engine.tokens.tokens import Tokens
from uncomp_cli.spec import ModelSpec

_GUARDED_TOKENS = 256
"""Of the latest message, the last tokens that stay until a later one comes."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Tokens [L][G] that heads may hold, and how far heads of a layer share them."""

    kept: list[list[int]]
    floor: float


@dataclass(slots=True)
class TextBudget:
    """What `preset` gives a text. `pinned` bool [S] and tokens from `guard_from` on change from turn to turn.

    `uncertainty` is what was measured already. `piece_tokens` go through the model together.
    """

    spec: ModelSpec
    preset: Preset
    limits: Limits
    piece_tokens: int
    uncertainty: Uncertainty | None = None
    guard_from: int = 0
    pinned: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))

    def prompt(self, text: Tokens, *, available: int) -> Prompt:
        """The text as a prompt whose question is its last tokens."""
        return self._prompt(text, self.guarded(text, self._mean_tokens(text, available)))

    def preset_for(self, prompt: Prompt, text: Tokens) -> Preset:
        """The preset with a floor in which pins and what is guarded are counted."""
        more = int(prompt.context.protected.sum()) - int(self._own(text)[: len(prompt.context)].sum())
        return replace(self.preset, floor_tokens=max(0, self.preset.floor_tokens - more))

    def allocation(self, text: Tokens, *, available: int) -> Allocation:
        """What heads keep of a text. Raises DoesNotFitError when the budget cannot hold what has to stay."""
        return self._allocate(self.prompt(text, available=available), text, available)

    def check_pinned(self, text: Tokens, pinned: Tensor, *, available: int) -> None:
        """Raise DoesNotFitError when the budget of a text cannot hold its tokens `pinned` bool [S] too."""
        protected = replace(text, protected=self._protected(text)).guarded(pinned).protected
        self._allocate(self._prompt(text, protected), text, available)

    def counts(self, plan: BudgetPlan, *, reserve: int, config: CacheConfig) -> Counts | None:
        """Tokens that heads may hold under `plan` with room for `reserve` more; None: all."""
        if not self.cuts(plan):
            return None
        return Counts(within(plan, self.spec, reserve=reserve, config=config), plan.head_floor)

    def cuts(self, plan: BudgetPlan) -> bool:
        """Whether a layer that may be compressed must drop something: sliding ones always hold their window alone."""
        return any(count < plan.seq_len for layer in self.spec.full_layers for count in plan.kept[layer])

    def guarded(self, text: Tokens, mean_tokens: int) -> Tensor:
        """What stays of a text when heads keep `mean_tokens` of it: bool [S]."""
        protected = self._protected(text)
        most = min(_GUARDED_TOKENS, mean_tokens // 4)
        protected[max(self.guard_from, len(protected) - most) :] = True
        return protected

    def _prompt(self, text: Tokens, protected: Tensor) -> Prompt:
        recent = min(self.preset.scorer.recent, len(text) - 1)
        first = len(text) - recent
        return Prompt(replace(text, protected=protected)[:first], (text.ids[first:],))

    def _own(self, text: Tokens) -> Tensor:
        """The text's own protected tokens and sinks: bool [S]."""
        return text.guarded(torch.ones(self.preset.scorer.sinks, dtype=torch.bool)).protected

    def _protected(self, text: Tokens) -> Tensor:
        """These and the pins: bool [S]."""
        return replace(text, protected=self._own(text)).guarded(self.pinned).protected

    def _mean_tokens(self, text: Tokens, available: int) -> int:
        """Tokens that a head of a layer that may be compressed keeps on average."""
        plan = self._allocate(self._prompt(text, self._protected(text)), text, available).plan
        counts = [count for layer in self.spec.full_layers for count in plan.kept[layer]]
        return sum(counts) // max(1, len(counts))

    def _allocate(self, prompt: Prompt, text: Tokens, available: int) -> Allocation:
        cap = self.limits.kv_bytes
        return make_allocation(
            self.spec,
            self.preset_for(prompt, text),
            prompt,
            available=available,
            at_once=min(prompt.flat_len, self.piece_tokens),
            most_entries=None if cap is None else cap // self.spec.kv_bytes_per_entry,
            uncertainty=self.uncertainty,
        )


def within(plan: BudgetPlan, spec: ModelSpec, *, reserve: int, config: CacheConfig) -> list[list[int]]:
    """Tokens [L][G] that heads may hold, with room for `reserve` more, in the bytes that `plan` gives them."""
    entry = spec.kv_bytes_per_entry
    share = entry / (entry + config.position_bytes)
    return [[max(0, _held(int(share * count), reserve, config)) for count in layer] for layer in plan.kept]


def _held(room: int, reserve: int, config: CacheConfig) -> int:
    """The longest head that with its slack fits into `room` entries, `reserve` of them free."""
    length = room - config.min_slack
    if config.slack(length) > config.min_slack:
        length = room * config.slack_divisor // (config.slack_divisor + 1)
    return length - reserve
