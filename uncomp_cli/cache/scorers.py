"""Scorers: how much each prompt token matters to each KV head.

A scorer sees one layer's queries, keys and values and the questions (view.py) and gives a score per KV head and
context token. Scores are then made coherent (coherence.py) and cut (eviction.py). Those that look at nothing are here;
window_scores.py asks the question, key_scores.py and expected.py do not. To add one: a class, a line in SCORERS; or,
in a package of your own, an entry of the group `uncomp.scorers` (plugins.py).
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from uncomp_cli.cache.expected import ExpectedScorer
from uncomp_cli.cache.key_scores import DistinctScorer, KeyDiffScorer
from uncomp_cli.cache.view import LayerView, Scorer
from uncomp_cli.cache.window_scores import (
    AgreementScorer,
    ReversedScorer,
    TovaScorer,
    WindowScorer,
    window_attention,
)
from uncomp_cli.config import ScorerConfig
from uncomp_cli.errors import UsageError
from uncomp_cli.plugins import plugin, plugin_names

__all__ = [
    "SCORERS",
    "AgreementScorer",
    "DistinctScorer",
    "ExpectedScorer",
    "KeyDiffScorer",
    "LayerView",
    "RandomScorer",
    "RecentScorer",
    "ReversedScorer",
    "Scorer",
    "TovaScorer",
    "WindowScorer",
    "make_scorer",
    "scorer_names",
    "window_attention",
]


_BLOCK = 4096


@dataclass(frozen=True, slots=True)
class RecentScorer:
    """The later the better; with protected sinks this is StreamingLLM (arXiv 2309.17453)."""

    name: ClassVar[str] = "recent"
    query_aware: ClassVar[bool] = False
    needs_queries: ClassVar[bool] = False
    shared: ClassVar[float] = 0.0
    published: ClassVar[ScorerConfig] = ScorerConfig("recent", window=1, pooling="none", width=1, whole_words=False)
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
    needs_queries: ClassVar[bool] = False
    shared: ClassVar[float] = 0.0
    published: ClassVar[ScorerConfig] = ScorerConfig("random", window=1, pooling="none", width=1, whole_words=False)
    config: ScorerConfig

    def score(self, view: LayerView) -> Tensor:
        """Scores [G, S] in [0, 1): a token's own by its position, so that chunks do not draw it anew."""
        heads, length, _ = view.keys.shape
        positions = torch.arange(length).expand(heads, -1) if view.key_positions is None else view.key_positions.cpu()
        rows = []
        for head, at in enumerate(positions, start=view.first_head):
            blocks = range(int(at[-1]) // _BLOCK + 1)
            drawn = torch.cat([self._draw((view.layer * 1009 + head) * 1009 + block) for block in blocks])
            rows.append(drawn[at])
        return torch.stack(rows).to(view.keys.device)

    def _draw(self, number: int) -> Tensor:
        generator = torch.Generator().manual_seed((self.config.seed * 10_007 + number) % 2**63)
        return torch.rand(_BLOCK, generator=generator)


SCORERS: dict[str, Callable[[ScorerConfig], Scorer]] = {
    scorer.name: scorer
    for scorer in (
        WindowScorer,
        AgreementScorer,
        DistinctScorer,
        RecentScorer,
        RandomScorer,
        TovaScorer,
        KeyDiffScorer,
        ExpectedScorer,
        ReversedScorer,
    )
}


def make_scorer(config: ScorerConfig) -> Scorer:
    """The scorer that `config` names; raises UsageError with the nearest name."""
    kind = SCORERS.get(config.name) or plugin("scorers", config.name, built_in=SCORERS)
    if kind is None:
        known = scorer_names()
        near = difflib.get_close_matches(config.name, known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"choose one of: {', '.join(known)}"
        raise UsageError(f"unknown scorer '{config.name}'", hint=hint)
    made: Scorer = kind(config)
    return made


def scorer_names() -> list[str]:
    """Those that are built in, then those that installed packages add."""
    return [*SCORERS, *plugin_names("scorers", built_in=SCORERS)]
