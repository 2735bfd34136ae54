"""Scorers: how much each prompt token matters to each KV head.

A scorer sees one layer's keys, values and the last queries of the prompt (the observation window: the question) and
gives a score per KV head and context token. Scores are then made coherent (coherence.py) and cut (eviction.py).
To add one: a class, a line in SCORERS.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from uncomp_cli.config import ScorerConfig
from uncomp_cli.errors import UsageError

__all__ = ["SCORERS", "LayerView", "RandomScorer", "RecentScorer", "Scorer", "WindowScorer", "make_scorer"]


@dataclass(frozen=True, slots=True)
class LayerView:
    """What a scorer may look at in one layer of one row.

    queries: [H, S, D] and keys, values: [G, S, D], of the context (trunk) whose tokens are scored; queries and keys
    after RoPE.
    branches: for every question its (queries [H, N, D], keys [G, N, D]), both after RoPE, N the question's tokens.
    """

    layer: int
    queries: Tensor
    keys: Tensor
    values: Tensor
    branches: tuple[tuple[Tensor, Tensor], ...]
    scaling: float


class Scorer(Protocol):
    """Scores the context tokens of one layer.

    `query_aware`: whether the question decides; if not, one compression serves questions that nobody has asked yet.
    """

    name: ClassVar[str]
    query_aware: ClassVar[bool]

    def score(self, view: LayerView) -> Tensor:
        """Scores [G, S] in float32; larger stays longer."""
        ...


@dataclass(frozen=True, slots=True)
class WindowScorer:
    """Attention that the last `window` queries pay to each token (SnapKV, arXiv 2404.14469, eq. 3).

    Rows are softmax-normalised over all keys that they see; then the sinks are taken out and each row is normalised
    again over the context, so that a row that looks at nothing but the sink still ranks. Mean over rows and over the
    query heads of a KV head; the maximum over several questions.
    """

    name: ClassVar[str] = "window"
    query_aware: ClassVar[bool] = True
    config: ScorerConfig

    def score(self, view: LayerView) -> Tensor:
        """Scores [G, S]."""
        per_question = [self._mean_attention(view, queries, keys) for queries, keys in view.branches]
        return torch.stack(per_question).amax(dim=0)

    def _mean_attention(self, view: LayerView, queries: Tensor, own_keys: Tensor) -> Tensor:
        context_len = view.keys.shape[1]
        weights = window_attention(queries, view.keys, own_keys, scaling=view.scaling, window=self.config.window)
        context = weights[..., :context_len].clone()
        context[..., : self.config.sinks] = 0
        context /= context.sum(dim=-1, keepdim=True).clamp_min(1e-12)
        return context.mean(dim=(1, 2))


@dataclass(frozen=True, slots=True)
class RecentScorer:
    """The later the better; with protected sinks this is StreamingLLM (arXiv 2309.17453)."""

    name: ClassVar[str] = "recent"
    query_aware: ClassVar[bool] = False
    config: ScorerConfig

    def score(self, view: LayerView) -> Tensor:
        """Scores [G, S]: the position."""
        num_kv_heads, context_len, _ = view.keys.shape
        return torch.arange(context_len, device=view.keys.device, dtype=torch.float32).expand(num_kv_heads, -1)


@dataclass(frozen=True, slots=True)
class RandomScorer:
    """The control: a score from the seed and the layer alone."""

    name: ClassVar[str] = "random"
    query_aware: ClassVar[bool] = False
    config: ScorerConfig

    def score(self, view: LayerView) -> Tensor:
        """Scores [G, S] in [0, 1)."""
        generator = torch.Generator().manual_seed((self.config.seed * 10_007 + view.layer) % 2**63)
        return torch.rand(view.keys.shape[:2], generator=generator).to(view.keys.device)


def window_attention(queries: Tensor, keys: Tensor, own_keys: Tensor, *, scaling: float, window: int) -> Tensor:
    """Softmax attention [G, H/G, W, S + N] in float32 of the last W = min(window, N) queries of a question.

    queries [H, N, D] see the context keys [G, S, D] and, causally, the question's own keys [G, N, D].
    """
    num_kv_heads, context_len, head_dim = keys.shape
    own_len = own_keys.shape[1]
    rows = min(window, own_len)
    grouped = queries[:, own_len - rows :].reshape(num_kv_heads, -1, head_dim).float()
    logits = torch.cat([grouped @ keys.float().transpose(1, 2), grouped @ own_keys.float().transpose(1, 2)], dim=-1)
    logits = logits.view(num_kv_heads, -1, rows, context_len + own_len) * scaling
    column = torch.arange(own_len, device=keys.device)
    future = column[None, :] > column[own_len - rows :, None]
    logits[..., context_len:].masked_fill_(future, float("-inf"))
    return logits.softmax(dim=-1)


SCORERS: dict[str, Callable[[ScorerConfig], Scorer]] = {
    scorer.name: scorer for scorer in (WindowScorer, RecentScorer, RandomScorer)
}


def make_scorer(config: ScorerConfig) -> Scorer:
    """The scorer that `config` names; raises UsageError with the nearest name."""
    if config.name not in SCORERS:
        near = difflib.get_close_matches(config.name, SCORERS, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"choose one of: {', '.join(SCORERS)}"
        raise UsageError(f"unknown scorer '{config.name}'", hint=hint)
    return SCORERS[config.name](config)
