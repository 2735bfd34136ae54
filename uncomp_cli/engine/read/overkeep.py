"""Over-keep and re-trim: what the layers of a chunk hold until its ranking and its counts are final.

They are final at once where no other layer has a say: a layer is then cut to its budget before the next one is read.
Where the counts come from what all layers measure, or heads share what they find (cache/window.py), it holds more until
all have reported:

    one chunk, nothing thinned   counts only shrink. A layer holds the first `count` tokens of its ranking (and a
                                 margin, so that whole words still fit), and is cut again as later layers report. Of a
                                 ranking that later layers change it holds at least the part `held` of the text
    chunks, or thinned           counts may grow again, with the next chunk or where few tokens are left. A layer holds
                                 the margin and the part `held` of the chunk beside its count, or all of the chunk

One pass so needs no second one over the prompt, and what is held never exceeds the budget by much. The result is that
of two passes, one to measure and one to cut, as long as all that the cut wants was held: always with a ranking that is
fixed, with `held` 1 otherwise (tests/test_engine_overkeep.py holds both).

Between chunks a head keeps an eighth more than its budget, because later chunks may change the ranking.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from uncomp_cli.budget.plan import BudgetPlan
from uncomp_cli.cache.coherence import MAX_WORD_TOKENS, share_by_word
from uncomp_cli.cache.eviction import REACH_TOKENS, choose_held
from uncomp_cli.cache.window import agree, mix
from uncomp_cli.config import ScorerConfig
from uncomp_cli.engine.read.chunk import Chunk
from uncomp_cli.engine.spend.allocation import Allocation
from uncomp_cli.engine.tokens.prompt import Prompt

BETWEEN_CHUNKS = 9 / 8
"""What a head keeps of its budget between two chunks."""
MARGIN_TOKENS = 2 * MAX_WORD_TOKENS + REACH_TOKENS
_SPARE = 1.5  # of the budget: held entries that are worth a re-trim
_BEHIND_ALL = 1e6  # scores are shares of attention, far below it


class OverKeep:
    """The layers of a prompt, chunk by chunk; `shared` is the part of the scores that all layers have a say in.

    `scores[l]` [G, S] are those of the layers that wait in this chunk, pooled, by position in the whole text; 0 where a
    head had nothing. `held[g]` are the ascending positions of what KV head g has of the text; the answers are indices
    into them. With `thinned` tokens leave between layers; who `repeats` the text holds all, and scores it in the end.
    """

    def __init__(
        self,
        prompt: Prompt,
        allocation: Allocation,
        config: ScorerConfig,
        *,
        shared: float,
        thinned: bool = False,
        repeats: bool = False,
    ) -> None:
        self.prompt = prompt
        self.allocation = allocation
        self.config = config
        self.shared = shared
        self.thinned, self.repeats = thinned, repeats
        self._protected = int(prompt.context.protected.sum())
        self.scores: dict[int, Tensor] = {}

    def begin(self, chunk: Chunk) -> None:
        """Start a chunk: nothing waits."""
        self.final, self.chunk_tokens = chunk.final, len(chunk.prompt.context)
        self.shrinks = chunk.final and chunk.first == 0 and not self.thinned
        """Whether counts only shrink on the way."""
        self.scores = {}

    @property
    def waits(self) -> bool:
        """Whether the cut of a layer has to wait for later layers."""
        return self.allocation.waits or self.shared > 0 or self.thinned or self.repeats

    def ranks(self, layer: int) -> bool:
        """Whether a layer is scored: it may have to drop something, or has a say in what others drop."""
        plan = self.allocation.plan
        heard = self.shrinks and self.shared > 0 and not plan.keeps_everything
        return self.allocation.live or heard or any(count < self.prompt.seq_len for count in plan.kept[layer])

    def hold(self, layer: int, scores: Tensor, held: Sequence[Tensor]) -> list[Tensor] | None:
        """What a layer of pooled `scores` [G, S] goes on with; None: all. Where nothing waits it is what stays."""
        if self.waits or not self.shrinks:
            self.scores[layer] = scores
        if not self.waits:
            return self._choose(scores, held, self.counts(layer))
        room = self._room(layer, held)
        if all(count >= len(at) for count, at in zip(room, held, strict=True)):
            return None
        scores = self._mixed(layer, self.agreed())
        return self._first(scores, held, room) if self.shrinks else self._choose(scores, held, room)

    @property
    def trims(self) -> bool:
        """Whether layers that wait can be cut on the way: their ranking is fixed, and counts only shrink."""
        return self.shrinks and self.shared == 0 and self.allocation.waits

    def is_wasteful(self, entries: int) -> bool:
        """Whether `entries`, of the layers that wait, are so many more than their counts that it is worth a re-trim."""
        return entries > sum(_SPARE * count + MARGIN_TOKENS for layer in self.scores for count in self.counts(layer))

    def retrim(self, layer: int, held: Sequence[Tensor]) -> list[Tensor]:
        """What a layer goes on with by what has been reported since, where its ranking is fixed."""
        return self._first(self.scores[layer], held, self._room(layer, held))

    def cut(self, layer: int, held: Sequence[Tensor], agreed: Tensor | None) -> list[Tensor]:
        """What stays of a layer that waited, when all agree on the scores `agreed` [S]."""
        scores, counts = self._mixed(layer, agreed), self.counts(layer)
        return self._best(scores, held, counts) if self.shrinks else self._choose(scores, held, counts)

    def agreed(self) -> Tensor | None:
        """What the layers that have reported agree on, [S]; None where they need not."""
        return self.found() if self.shared > 0 and self.scores else None

    def found(self) -> Tensor:
        """The score [S] of every token by all layers of this chunk, whether or not they have to agree."""
        if not self.scores:
            return torch.zeros(len(self.prompt.context))
        trust = self.allocation.trust()
        return agree(list(self.scores.values()), None if trust is None else [trust[layer] for layer in self.scores])

    def counts(self, layer: int) -> list[int]:
        """Context tokens of each head when the chunk is done, of which there may be fewer.

        Raises ValueError for a plan that has no room for what is protected.
        """
        counts = [count - self.prompt.longest_question for count in self.allocation.plan.kept[layer]]
        if min(counts) < self._protected:
            raise ValueError(f"a head keeps {min(counts)} tokens, but {self._protected} are protected")
        return counts if self.final else [int(BETWEEN_CHUNKS * count) for count in counts]

    def _room(self, layer: int, held: Sequence[Tensor]) -> list[int]:
        """Context tokens of each head until the chunk is done."""
        grows = not self.shrinks and (self.allocation.live or self.shared == 0)
        if grows or self.allocation.plan.head_floor < 1:  # heads share by scores that are not final
            return [len(at) for at in held]
        part = math.ceil(self.config.held * self.chunk_tokens) if self.shared > 0 else 0
        if self.shrinks:
            return [max(part, count + MARGIN_TOKENS) for count in self.counts(layer)]
        return [count + MARGIN_TOKENS + part for count in self.counts(layer)]

    def _mixed(self, layer: int, agreed: Tensor | None) -> Tensor:
        """A layer's scores [G, S] mixed with what is agreed on."""
        return self.scores[layer] if agreed is None else mix(self.scores[layer], agreed, shared=self.shared)

    def _choose(self, scores: Tensor, held: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
        """The best of each head by scores [G, S], whole words: `counts` entries, or all when there are fewer."""
        return choose_held(
            scores,
            held,
            counts,
            protected=self.prompt.context.protected.to(scores.device),
            words=self._words(scores.device),
            floor=self.allocation.plan.head_floor,
        )

    def _first(self, scores: Tensor, held: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
        """The first `counts` of each head's ranking, whatever word they tear: a later cut lies well before."""
        protected = self.prompt.context.protected.to(scores.device)
        return choose_held(self._worded(scores), held, counts, protected=protected, words=None)

    def _best(self, scores: Tensor, held: Sequence[Tensor], counts: Sequence[int]) -> list[Tensor]:
        """The best of the whole text, scores [G, S]; where a head has dropped one of them, the best of what it holds.

        Words of which a part is gone come after all that are whole.
        """
        text = [torch.arange(scores.shape[1], device=scores.device)] * len(held)
        stay = []
        for own, wanted, there in zip(scores, self._choose(scores, text, counts), held, strict=True):
            missing = not bool(torch.isin(wanted, there).all())
            stay.append(
                self._best_whole(own, there, len(wanted)) if missing else torch.searchsorted(there.long(), wanted)
            )
        return stay

    def _best_whole(self, scores: Tensor, held: Tensor, count: int) -> Tensor:
        """The `count` best by scores [S] of the positions that one head holds, torn words last."""
        words, (worded,) = self._words(scores.device), self._worded(scores[None])
        if words is not None:
            whole, there = (torch.bincount(each, minlength=int(words[-1]) + 1) for each in (words, words[held]))
            worded = torch.where((there < whole)[words], worded - _BEHIND_ALL, worded)
        protected = self.prompt.context.protected.to(scores.device)
        return choose_held(worded[None], [held], [count], protected=protected, words=words)[0]

    def _words(self, device: torch.device) -> Tensor | None:
        """The words of the text, where they are kept whole."""
        return self.prompt.context.words.to(device) if self.config.whole_words else None

    def _worded(self, scores: Tensor) -> Tensor:
        """Scores [G, S] in which the tokens of a word have its best score."""
        words = self._words(scores.device)
        return scores if words is None else share_by_word(scores, words)


def held_of_chunk(config: ScorerConfig, chunk_tokens: int) -> int:
    """Tokens that a head holds beyond its budget until all layers have had their say about a chunk."""
    return MARGIN_TOKENS + math.ceil(config.held * chunk_tokens)


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
