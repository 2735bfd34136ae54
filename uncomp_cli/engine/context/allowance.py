"""The budget of a text that grows: what is protected of it, what every head keeps of the rest, and the cut to that.

    protected   the template and the system prompt, sinks, pins
    guarded     these, and the latest question with its answer as far as a quarter of a head's tokens holds them

Pins and what is guarded take their place in the budget: they are not put on top of a preset's floor. A plan counts keys
and values; what is allocated has positions and slack beside them. `within` takes those, and room for tokens that are
yet to come, out of each head's count, so that allocated bytes stay within the plan's. In 8 or 4 bits that room, in the
model's own dtype, is planned as such: what a plan takes for the question. A cache that is in use is cut by
what it holds itself: keys and values alone rank it, so no question is needed and none is favoured. A document that was
read twice has been ranked by that (read/repetition.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from uncomp_cli.budget.plan import BudgetPlan
from uncomp_cli.budget.presets import Preset
from uncomp_cli.budget.values import Uncertainty
from uncomp_cli.cache.coherence import pool
from uncomp_cli.cache.eviction import choose_held
from uncomp_cli.cache.layer import LayerCache
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.cache.scorers import DistinctScorer, make_scorer
from uncomp_cli.cache.softmax import Form
from uncomp_cli.cache.view import LayerView, Scorer
from uncomp_cli.config import CacheConfig, Limits, ScorerConfig
from uncomp_cli.engine.spend.allocation import Allocation, make_allocation, scorer_config
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.engine.tokens.tokens import Tokens
from uncomp_cli.spec import ModelSpec

_GUARDED_TOKENS = 256
"""Of the latest message, the last tokens that stay until a later one comes."""
_MOST_ATTENTION = 1.0


@dataclass(frozen=True, slots=True)
class Counts:
    """Tokens [L][G] that heads may hold, and how far heads of a layer share them."""

    kept: list[list[int]]
    floor: float


@dataclass(slots=True)
class TextBudget:
    """What `preset` gives a text. `pinned` bool [S] and tokens from `guard_from` on change from turn to turn.

    `uncertainty` is what was measured already. `piece_tokens` go through the model together, `reserve` come before the
    next cut. `shortage` is what the latest allocation has to say of its budget.
    """

    spec: ModelSpec
    preset: Preset
    limits: Limits
    piece_tokens: int
    reserve: int = 0
    uncertainty: Uncertainty | None = None
    guard_from: int = 0
    shortage: str | None = None
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
        self._allocate(self._prompt(text, protected), text, available).refuse_shortage()

    @property
    def own_tokens(self) -> int:
        """Of each head, entries that a plan has in the model's own dtype: of 8 or 4 bits, room for those to come."""
        recent = self.preset.scorer.recent
        return recent if self.preset.kv_bits == 16 else max(recent, self.reserve + CacheConfig().slack(self.reserve))

    def counts(self, plan: BudgetPlan, *, config: CacheConfig) -> Counts | None:
        """Tokens that heads may hold under `plan` with room for `reserve` more; None: all."""
        if not self.cuts(plan):
            return None
        return Counts(within(plan, self.spec, reserve=self.reserve, config=config), plan.head_floor)

    def cuts(self, plan: BudgetPlan) -> bool:
        """Whether a layer that may be compressed must drop something: sliding ones always hold their window alone."""
        return not plan.keeps_all_in(self.spec.full_layers)

    def guarded(self, text: Tokens, mean_tokens: int) -> Tensor:
        """What stays of a text when heads keep `mean_tokens` of it: bool [S]."""
        protected = self._protected(text)
        most = min(_GUARDED_TOKENS, mean_tokens // 4)
        protected[max(self.guard_from, len(protected) - most) :] = True
        return protected

    def cut(
        self,
        cache: RaggedKVCache,
        text: Tokens,
        counts: Counts | None,
        *,
        frequencies: Tensor | None,
        ranking: Mapping[int, Tensor] | None = None,
    ) -> None:
        """Cut the heads of `cache` to `counts` (None: all), none of them counted out; sliding layers to their window.

        Layers that hold no more than that stay as they are. Every head that is cut gets room for more tokens. A layer's
        scores [G, S] may be known, from a `ranking` of the text's beginning: what is behind that goes last.
        """
        spec, config, device = self.spec, scorer_config(self.preset), cache.layer(0).keys.device
        if counts is None:
            if len(spec.full_layers) == spec.num_layers:
                return
            counts = Counts([[len(text)] * spec.num_kv_heads] * spec.num_layers, 1.0)
        scorer, words = _of_keys(config), text.words.to(device) if config.whole_words else None
        least = min((min(counts.kept[layer]) for layer in spec.full_layers), default=0)
        protected = self.guarded(text, least).to(device)
        for index, window in enumerate(spec.sliding_windows):
            layer = cache.layer(index)
            held = [_positions(layer, i) for i in range(len(layer.lengths))]
            most = counts.kept[index] if window is None else [window] * len(held)
            if all(len(at) <= count for at, count in zip(held, most, strict=True)):
                continue
            if window is None:
                known = (ranking or {}).get(index)
                scores = (
                    _scores(layer, held, scorer, config, index=index, length=len(text), frequencies=frequencies)
                    if known is None
                    else pad(known, (0, len(text) - known.shape[1]), value=_MOST_ATTENTION)
                )
                keep = choose_held(scores, held, most, protected=protected, words=words, floor=counts.floor)
            else:
                keep = [torch.arange(max(0, len(at) - window), len(at), device=at.device) for at in held]
            cache.retain(index, keep, reserve=self.reserve)

    def _prompt(self, text: Tokens, protected: Tensor) -> Prompt:
        first = len(text) - min(self.own_tokens, len(text) - 1)
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
        made = make_allocation(
            self.spec,
            self.preset_for(prompt, text),
            prompt,
            available=available,
            at_once=min(prompt.flat_len, self.piece_tokens),
            most_entries=None if cap is None else cap // self.spec.kv_bytes_per_entry,
            uncertainty=self.uncertainty,
        )
        self.shortage = made.shortage
        return made


def within(plan: BudgetPlan, spec: ModelSpec, *, reserve: int, config: CacheConfig) -> list[list[int]]:
    """Tokens [L][G] that heads may hold, with room for `reserve` more, in the bytes that `plan` gives them."""
    if plan.kv_bits != 16:
        own, entry = reserve + config.slack(reserve), config.entry_bytes(head_dim=spec.head_dim, bits=plan.kv_bits)
        lost = own - (-own * config.position_bytes // entry)
        return [[max(0, count - lost) for count in layer] for layer in plan.kept]
    entry = spec.kv_bytes_per_entry
    share = entry / (entry + config.position_bytes)
    return [[max(0, _held(int(share * count), reserve, config)) for count in layer] for layer in plan.kept]


def _held(room: int, reserve: int, config: CacheConfig) -> int:
    """The longest head that with its slack fits into `room` entries, `reserve` of them free."""
    length = room - config.min_slack
    if config.slack(length) > config.min_slack:
        length = room * config.slack_divisor // (config.slack_divisor + 1)
    return length - reserve


def _of_keys(config: ScorerConfig) -> Scorer:
    """The scorer of what is held; one that reads the text again has had its say."""
    scorer = make_scorer(config)
    return DistinctScorer(config) if scorer.repeats else scorer


def _positions(layer: LayerCache, index: int) -> Tensor:
    before, tail = layer.quantized[index], layer.tail(index)[2]
    return tail if before is None else torch.cat([before.positions, tail])


def _scores(
    layer: LayerCache,
    held: Sequence[Tensor],
    scorer: Scorer,
    config: ScorerConfig,
    *,
    index: int,
    length: int,
    frequencies: Tensor | None,
) -> Tensor:
    """Pooled scores by position [G, length], 0 where a head has nothing."""
    dense = torch.zeros(len(held), length, device=held[0].device)
    for head, positions in enumerate(held):
        keys, values, _ = layer.head(head)
        at = positions.long()
        view = LayerView(
            layer=index,
            queries=keys[None, :0],
            keys=keys[None],
            values=values[None],
            branches=(),
            form=Form(1.0),
            frequencies=frequencies,
            key_positions=at[None],
            first_head=head,
        )
        dense[head, at] = pool(scorer.score(view), kind=config.pooling, width=config.width)[0]
    return dense
