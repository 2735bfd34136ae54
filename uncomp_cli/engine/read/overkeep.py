"""Over-keep and re-trim: layers whose cut has to wait for later layers.

A count that only shrinks, by a ranking that does not change, needs no second pass over the prompt: a layer holds the
first `count` tokens of its ranking (and a margin, so that whole words still fit), and is cut again as later layers
report. What is held then never exceeds the budget by much. A ranking that later layers change (window.py) would
need all of a layer until the last has reported; it holds the part `held` of the context, ranked by what the layers so
far agree on.

The result is that of two passes, one to measure and one to cut, as long as all that the cut wants was held: always
with a ranking that is fixed, with `held` 1 otherwise (tests/test_engine_overkeep.py holds both).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from uncomp_cli.budget.plan import BudgetPlan
from uncomp_cli.cache.coherence import MAX_WORD_TOKENS, share_by_word
from uncomp_cli.cache.eviction import REACH_TOKENS, select, share_heads
from uncomp_cli.cache.window import agree, mix
from uncomp_cli.config import ScorerConfig
from uncomp_cli.engine.spend.allocation import Allocation
from uncomp_cli.engine.tokens.prompt import Prompt

__all__ = ["MARGIN_TOKENS", "OverKeep", "choose", "held_on_the_way", "worded"]

MARGIN_TOKENS = 2 * MAX_WORD_TOKENS + REACH_TOKENS
_SPARE = 1.5  # of the budget: held entries that are worth a re-trim
_BEHIND_ALL = 1e6  # scores are shares of attention, far below it


@dataclass(slots=True)
class _Waiting:
    """One row of a layer: pooled scores [G, S] of the context, and the positions that each head holds."""

    scores: Tensor
    held: list[Tensor]


class OverKeep:
    """The layers of one row that wait; `shared` is the part of the scores that all layers have a say in."""

    def __init__(self, prompt: Prompt, allocation: Allocation, config: ScorerConfig, *, shared: float) -> None:
        self.prompt = prompt
        self.allocation = allocation
        self.config = config
        self.shared = shared
        self.layers: dict[int, _Waiting] = {}

    @property
    def needed(self) -> bool:
        """Whether any layer has to wait."""
        return self.allocation.waits or self.shared > 0

    def hold(self, layer: int, scores: Tensor) -> list[Tensor]:
        """Positions [G] that a layer with pooled `scores` [G, S] holds for now, ascending."""
        self.layers[layer] = _Waiting(scores, [])
        length = scores.shape[1]
        least = math.ceil(self.config.held * length) if self.shared > 0 else 0
        if self.allocation.plan.head_floor < 1:  # heads share their layer's tokens by scores that are not final
            least = length
        wanted = [min(length, max(least, count + MARGIN_TOKENS)) for count in self._counts(layer)]
        ranked = worded(self._mixed(scores), self.prompt, self.config)
        protected = self.prompt.protected.to(scores.device)
        self.layers[layer].held = select(ranked, wanted, protected=protected, words=None)
        return self.layers[layer].held

    def _mixed(self, scores: Tensor) -> Tensor:
        """Scores [G, S] mixed with what the layers so far agree on."""
        return scores if self.shared == 0 else mix(scores, self._agreed(), shared=self.shared)

    def _agreed(self) -> Tensor:
        """What the layers that have reported agree on: [S]."""
        trust = self.allocation.trust()
        rows = None if trust is None else [trust[layer] for layer in self.layers]
        return agree([waiting.scores for waiting in self.layers.values()], rows)

    def is_wasteful(self) -> bool:
        """Whether the layers hold so much more than their counts that it is worth a re-trim."""
        if self.shared > 0:
            return False
        held = sum(len(at) for waiting in self.layers.values() for at in waiting.held)
        return held > sum(_SPARE * count + MARGIN_TOKENS for layer in self.layers for count in self._counts(layer))

    def trim(self, *, final: bool) -> dict[int, list[Tensor]]:
        """For every layer, which of the entries that each head holds stay: ascending indices into them."""
        agreed = self._agreed() if final and self.shared > 0 and self.layers else None
        return {layer: self._trim(layer, waiting, agreed, final=final) for layer, waiting in self.layers.items()}

    def _trim(self, layer: int, waiting: _Waiting, agreed: Tensor | None, *, final: bool) -> list[Tensor]:
        scores = waiting.scores if agreed is None else mix(waiting.scores, agreed, shared=self.shared)
        counts, ranked = self._counts(layer), worded(scores, self.prompt, self.config)
        if final:
            floor = self.allocation.plan.head_floor
            wanted = choose(scores, counts, self.prompt, self.config, head_floor=floor)
        else:
            room = [min(count + MARGIN_TOKENS, scores.shape[1]) for count in counts]
            wanted = select(ranked, room, protected=self.prompt.protected.to(scores.device), words=None)
        kept = [
            at if bool(torch.isin(at, held).all()) else _among(held, own, len(at), self.prompt, self.config)
            for at, held, own in zip(wanted, waiting.held, ranked, strict=True)
        ]
        indices = [torch.searchsorted(held, at) for held, at in zip(waiting.held, kept, strict=True)]
        waiting.held = kept
        return indices

    def _counts(self, layer: int) -> list[int]:
        """Context tokens of each head, of which there are no more than the context has."""
        return [count - self.prompt.longest_question for count in self.allocation.plan.kept[layer]]


def held_on_the_way(
    allocation: Allocation, prompt: Prompt, config: ScorerConfig, *, shared: float
) -> BudgetPlan | None:
    """The most that layers hold while they wait, in the model's own dtype; None when none has to wait."""
    plan, context = allocation.plan, len(prompt.context)
    if shared == 0 and not allocation.waits:
        return None
    behind = plan.seq_len - context
    least = math.ceil(config.held * context) if shared > 0 else 0
    spare = _SPARE if allocation.waits else 1.0

    def held(count: int) -> int:
        return behind + min(context, max(least, int(spare * (count - behind)) + MARGIN_TOKENS))

    return BudgetPlan(plan.seq_len, tuple(tuple(held(count) for count in layer) for layer in plan.kept))


def worded(scores: Tensor, prompt: Prompt, config: ScorerConfig) -> Tensor:
    """Scores [G, S] in which the tokens of a word have its best score, where words are kept whole."""
    if not config.whole_words:
        return scores
    return share_by_word(scores, prompt.words.to(scores.device))


def choose(
    scores: Tensor, counts: Sequence[int], prompt: Prompt, config: ScorerConfig, *, head_floor: float
) -> list[Tensor]:
    """Positions that stay in each head, ascending, by pooled scores [G, S] and context tokens a head."""
    words = prompt.words.to(scores.device) if config.whole_words else None
    ranked = worded(scores, prompt, config)
    protected = prompt.protected.to(scores.device)
    counts = share_heads(ranked, counts, protected=protected, floor=head_floor)
    return select(ranked, counts, protected=protected, words=words)


def _among(held: Tensor, scores: Tensor, count: int, prompt: Prompt, config: ScorerConfig) -> Tensor:
    """The `count` best of the positions `held` by scores [S]: the cut wanted some that are gone.

    Words of which a part is gone come after all that are whole.
    """
    own, words = scores[held], None
    if config.whole_words:
        numbers = prompt.words.to(scores.device)
        words = numbers[held]
        there, all_of = (torch.bincount(each, minlength=int(numbers[-1]) + 1) for each in (words, numbers))
        own = torch.where((there < all_of)[words], own - _BEHIND_ALL, own)
    (at,) = select(own[None], [count], protected=prompt.protected.to(scores.device)[held], words=words)
    return held[at]
