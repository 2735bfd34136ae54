"""Thinning a prefill: which tokens of a chunk go on to the next layer (UNComp, arXiv 2410.03090, section 3.3).

A token's score is the largest that any query head of any layer so far gave it: the question's attention without the
sinks, every row normalised, the mean over rows, pooled along the text. The maximum over query heads, not over their
mean: one head that finds the evidence among many that do not is enough. How many stay is the schedule's business
(budget/thinning.py), which may watch how certain the heads are: the lowest attention entropy of a row, divided by the
logarithm of the tokens that it ranges over. Protected tokens and the question always stay, and whole words.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from uncomp_cli.budget.thinning import Thinning
from uncomp_cli.budget.values import Uncertainty
from uncomp_cli.cache.coherence import pool, share_by_word
from uncomp_cli.cache.eviction import select
from uncomp_cli.cache.view import LayerView
from uncomp_cli.cache.window import asked_attention
from uncomp_cli.config import ScorerConfig
from uncomp_cli.engine.read.chunk import Chunk
from uncomp_cli.models.ranks import ALONE, Ranks
from uncomp_cli.spec import ModelSpec
from uncomp_cli.uncertainty.entropy import attention_entropy

LEAST_TOKENS = 256
"""A chunk is not thinned below this: there is nothing to gain."""


class Sieve:
    """Thins one chunk after the other; `entered` [L] counts the context tokens that entered each layer."""

    def __init__(
        self, thinning: Thinning, spec: ModelSpec, config: ScorerConfig, *, uncertainty: Uncertainty | None = None
    ) -> None:
        self.thinning = thinning
        self.spec = spec
        self.config = config
        self.uncertainty = uncertainty
        self.entered = [0] * spec.num_layers
        self._fractions = self._schedule(())
        self._certainty: list[float] = []
        self.active = min(self._fractions) < 1
        """Whether any token may be dropped."""

    def most(self) -> tuple[float, ...]:
        """The largest share [L] of the context that may enter each layer."""
        return self._schedule(())

    def entering(self, tokens: int, *, always: int) -> list[int]:
        """The most of a chunk's `tokens` that may enter each layer [L]; `always` of them do."""
        return [_left(share, tokens, always) for share in self.most()]

    def begin(self, chunk: Chunk, device: torch.device) -> None:
        """Start a chunk: all of its tokens enter the first layer."""
        prompt = chunk.prompt
        if chunk.first == 0:
            self.entered = [0] * self.spec.num_layers
        self.at = torch.arange(len(prompt.context), device=device)
        self._always = prompt.context.protected.to(device).clone()
        self._always[len(prompt.context) - prompt.asked :] = True
        self._prompt = prompt
        self._best = torch.zeros(len(prompt.context), device=device)
        self._certainty = []
        self._fractions = self._schedule(())
        self.entered[0] += len(self.at)

    def watch(self, views: Sequence[LayerView], ranks: Ranks = ALONE) -> None:
        """Look at one layer: views of its heads, whose last keys are the tokens of the chunk that are there.

        Heads that are dealt out to `ranks` have a say together.
        """
        if not self._open(len(self._certainty)):
            self._certainty.append(1.0)
            return
        lowest = 1.0
        for view in views:
            for scores, entropy in self._observed(view):
                there = self.at[: len(self.at) - view.asked]
                new = scores[:, scores.shape[1] - len(there) :].amax(dim=0)
                self._best[there] = torch.maximum(self._best[there], new)
                lowest = min(lowest, entropy)
        if ranks.count > 1:
            found = ranks.highest(torch.cat([self._best, self._best.new_tensor([-lowest])]))
            self._best, lowest = found[:-1], -float(found[-1])
        self._certainty.append(lowest)

    def keep_after(self, layer: int) -> Tensor | None:
        """Indices of the tokens there that go on behind `layer`, questions not counted; None when all do."""
        if layer + 1 == self.spec.num_layers:
            return None
        if self._open(layer):
            self._fractions = self._schedule(self._certainty)
        kept = self._choose(_left(self._fractions[layer + 1], len(self._always), int(self._always.sum())))
        if kept is not None:
            self.at = self.at[kept]
        self.entered[layer + 1] += len(self.at)
        return kept

    def _schedule(self, certainty: Sequence[float]) -> tuple[float, ...]:
        return self.thinning.schedule(self.spec, uncertainty=self.uncertainty, certainty=certainty)

    def _open(self, layer: int) -> bool:
        """Whether tokens may still be dropped behind `layer`."""
        return min(self._fractions) < self._fractions[layer]

    def _choose(self, count: int) -> Tensor | None:
        if count >= len(self.at):
            return None
        words = self._prompt.context.words if self.config.whole_words else None
        words = None if words is None else words.to(self.at.device)[self.at]
        scores = self._best[self.at][None]
        scores = scores if words is None else share_by_word(scores, words)
        return select(scores, [count], protected=self._always[self.at], words=words)[0]

    def _observed(self, view: LayerView) -> list[tuple[Tensor, float]]:
        """For every question the pooled scores [H, S] of the document's tokens and the lowest entropy of its rows."""
        document = view.keys.shape[1] - view.asked
        if document == 0:
            return []
        sinks = min(self.config.sinks, document - 1)
        found = []
        for weights in asked_attention(view, window=self.config.window):
            rows = weights[..., :document].flatten(0, 1)
            rows[..., :sinks] = 0
            rows /= rows.sum(dim=-1, keepdim=True).clamp_min(1e-12)
            scores = pool(rows.mean(dim=1), kind=self.config.pooling, width=self.config.width)
            entropy = attention_entropy(rows[..., sinks:])
            found.append((scores, float(entropy.min())))
        return found


def _left(share: float, tokens: int, always: int) -> int:
    """How many of `tokens` go on where the share `share` of them may, those that `always` do not counted."""
    return min(tokens, max(LEAST_TOKENS, always + math.ceil(share * (tokens - always))))
