"""Scorers: how much each prompt token matters to each KV head.

A scorer sees one layer's queries, keys and values and the questions (view.py) and gives a score per KV head and
context token. Scores are then made coherent (coherence.py) and cut (eviction.py). Here are those that do not look at
the question; window.py asks it. To add one: a class, a line in SCORERS; or, in a package of your own, an entry of the
group `uncomp.scorers` (plugins.py).

What is unlike the rest is worth keeping (KeyDiffScorer, DistinctScorer); or what the text itself looks at when it is
read again (RepeatScorer). Or the questions to come are guessed: queries before RoPE are taken as Gaussian, q ~ N(mu,
Sigma) for every query head. At a coming position p the model would compare R_p q with the cached keys, so with R the
mean of R_p over the next positions

    E[exp(s k·Rq)] = exp(s k·R mu + s²/2 · k·R Sigma Rᵀ k),    s the scaling (1/sqrt(D))

(expected attention, arXiv 2510.00636, section 3). R is applied to the keys, from the other side: k·Rq = (Rᵀk)·q. What
YaRN multiplies queries by stays in them, as in those to come.
"""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from uncomp_cli.cache.view import Again, LayerView, Scorer, Unasked
from uncomp_cli.cache.window import AgreementScorer, ReversedScorer, TovaScorer, WindowScorer, window_attention
from uncomp_cli.config import ScorerConfig
from uncomp_cli.errors import ModelError, UsageError, did_you_mean
from uncomp_cli.plugins import plugin, plugin_names


class KeyDiffScorer(Unasked):
    """Minus the cosine between a key and its head's anchor, the mean of the unit keys (KeyDiff, arXiv 2504.15364).

    score(s) = -cos(k_s, mean_t k_t / |k_t|), over the whole context at once, not block by block. A zero key scores 0.
    """

    name: ClassVar[str] = "keydiff"
    published: ClassVar[ScorerConfig] = ScorerConfig("keydiff", window=1, pooling="none", width=1, whole_words=False)

    def score(self, view: LayerView) -> Tensor:
        """Scores [G, S] in [-1, 1]."""
        unit = functional.normalize(view.keys.float(), dim=-1)
        anchor = functional.normalize(unit.mean(dim=1, keepdim=True), dim=-1)
        return -(unit * anchor).sum(dim=-1)


class DistinctScorer(Unasked):
    """Distinct keys with large values: both min-max scaled within the head, then summed.

    score(s) = scaled(-cos(k_s, anchor)) + scaled(|v_s|), the anchor as in KeyDiffScorer; for questions nobody has asked
    yet. Our own combination of KeyDiff (arXiv 2504.15364) and the value norms of VATP (arXiv 2406.12335).
    """

    name: ClassVar[str] = "distinct"
    published: ClassVar[ScorerConfig] = ScorerConfig("distinct", window=1)

    def score(self, view: LayerView) -> Tensor:
        """Scores [G, S] in [0, 2]."""
        distinct = KeyDiffScorer(self.config).score(view)
        return _scaled(distinct) + _scaled(view.values.float().norm(dim=-1))


def _scaled(scores: Tensor) -> Tensor:
    """Scores [G, S] between 0 and 1 in every head; a head whose scores are all equal has zeros."""
    low, high = scores.amin(dim=-1, keepdim=True), scores.amax(dim=-1, keepdim=True)
    return (scores - low) / (high - low).clamp_min(1e-12)


FUTURE_TOKENS = 512


class ExpectedScorer(Unasked):
    """Expected attention over the context, averaged over a KV head's query heads, times the value's norm.

    Sinks have no part in it, neither their queries in mu and Sigma (where there are others) nor their keys in the
    softmax: they score 0, and protection keeps them. Raises ModelError when the view has no RoPE frequencies.
    """

    name: ClassVar[str] = "expected"
    needs_queries: ClassVar[bool] = True
    published: ClassVar[ScorerConfig] = ScorerConfig("expected", window=1, pooling="none", width=1, whole_words=False)

    def score(self, view: LayerView) -> Tensor:
        """Scores [G, S]."""
        if view.frequencies is None:
            raise ModelError(
                "scorer expected needs a model whose layers all turn queries and keys by the same RoPE frequencies",
                hint="use --scorer keydiff or --scorer window",
            )
        num_kv_heads, context_len, _ = view.keys.shape
        sinks = self.config.sinks
        frequencies = view.frequencies.to(view.keys.device)
        positions = torch.arange(context_len) if view.positions is None else view.positions
        positions = positions.to(view.keys.device)
        back = angles(positions, frequencies)
        first = int((positions < sinks).sum()) % len(positions)  # where all are sinks, all are asked
        ahead = angles(positions[-1] + 1 + torch.arange(FUTURE_TOKENS, device=positions.device), frequencies)
        scores = torch.zeros(num_kv_heads, context_len, device=view.keys.device)
        for group, queries in enumerate(view.queries.reshape(num_kv_heads, -1, *view.queries.shape[1:])):
            before_rope = turn(queries.float(), back[0], -back[1])[:, first:]
            keys = turn(view.keys[group, sinks:].float(), ahead[0].mean(dim=0), -ahead[1].mean(dim=0))
            attention = _log_expected(before_rope, keys, view.scaling).softmax(dim=-1).mean(dim=0)
            scores[group, sinks:] = attention * view.values[group, sinks:].float().norm(dim=-1)
        return scores


def angles(positions: Tensor, frequencies: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [N, R] of RoPE at positions [N], in float32."""
    radians = positions[:, None] * frequencies.float()
    return radians.cos(), radians.sin()


def turn(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """RoPE: states [..., D] with each pair (i, i + R) turned by cos, sin [..., R]; sin negated turns back."""
    pairs = cos.shape[-1]
    first, second, still = states[..., :pairs], states[..., pairs : 2 * pairs], states[..., 2 * pairs :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, still], dim=-1)


def _log_expected(queries: Tensor, keys: Tensor, scaling: float) -> Tensor:
    """s k·mu + s²/2 · k Sigma k of query heads [H/G, S, D] before RoPE for keys [S, D]: [H/G, S]."""
    mean = queries.mean(dim=1, keepdim=True)
    centred = queries - mean
    covariance = centred.transpose(1, 2) @ centred / queries.shape[1]
    spread = ((keys @ covariance) * keys).sum(dim=-1)
    return scaling * (mean @ keys.T)[:, 0] + scaling**2 / 2 * spread


ROWS_AGAIN = 128
"""Queries of a second reading whose scores are held at once; an eighth where weights have to be made of them."""


class RepeatScorer(Unasked):
    """The highest attention that a token gets when the text is read again (KVzip, arXiv 2505.23416, section 3).

    From any token of the second reading (engine/read/repetition.py) and any query head of the KV head. Where nothing
    is read again all score 0. `window`, `pooling` and `width` have no say: what a token is needed for says nothing of
    its neighbours (docs/log.md).
    """

    name: ClassVar[str] = "repeat"
    needs_queries: ClassVar[bool] = True
    repeats: ClassVar[bool] = True
    published: ClassVar[ScorerConfig] = ScorerConfig("repeat", window=1, pooling="none", width=1, whole_words=False)

    def score(self, view: LayerView) -> Tensor:
        """Scores [G, S] in [0, 1]."""
        highest = torch.zeros(view.keys.shape[:2], device=view.keys.device)
        if view.again is None:
            return highest
        new, step = view.again.keys.shape[1], ROWS_AGAIN if view.again.sums is not None else ROWS_AGAIN // 8
        for first in range(0, new, step):
            highest = torch.maximum(highest, _highest_of(view, view.again, first, min(first + step, new)))
        return highest


def _highest_of(view: LayerView, again: Again, first: int, last: int) -> Tensor:
    """The highest attention [G, S] of the tokens from `first` to `last`.

    Where the rows' sums are known it is one product: exp(q·k - log Σ_i exp(q·k_i)) of the largest exponent.
    """
    groups = len(view.keys)
    if again.sums is None:
        seen = again.queries[:, :last], view.keys, again.keys[:, :last]
        weights = window_attention(*seen, view.form, window=last - first)
        return weights[..., : view.keys.shape[1]].amax(dim=(1, 2))
    queries = again.queries[:, first:last].float() * view.scaling
    rows = queries.reshape(groups, -1, queries.shape[-1])
    sums = again.sums[:, first:last].reshape(groups, -1, 1)
    return (rows @ view.keys.float().transpose(1, 2)).sub_(sums).amax(dim=1).exp_()


_BLOCK = 4096


class RecentScorer(Unasked):
    """The later the better; with protected sinks this is StreamingLLM (arXiv 2309.17453)."""

    name: ClassVar[str] = "recent"
    published: ClassVar[ScorerConfig] = ScorerConfig("recent", window=1, pooling="none", width=1, whole_words=False)

    def score(self, view: LayerView) -> Tensor:
        """Scores [G, S]: the position."""
        num_kv_heads, context_len, _ = view.keys.shape
        return torch.arange(context_len, device=view.keys.device, dtype=torch.float32).expand(num_kv_heads, -1)


class RandomScorer(Unasked):
    """The control: a score from the seed and the layer alone."""

    name: ClassVar[str] = "random"
    published: ClassVar[ScorerConfig] = ScorerConfig("random", window=1, pooling="none", width=1, whole_words=False)

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
        RepeatScorer,
        ReversedScorer,
    )
}


def make_scorer(config: ScorerConfig) -> Scorer:
    """The scorer that `config` names; raises UsageError with the nearest name."""
    kind = SCORERS.get(config.name) or plugin("scorers", config.name, built_in=SCORERS)
    if kind is None:
        known = scorer_names()
        hint = did_you_mean(config.name, known, f"choose one of: {', '.join(known)}")
        raise UsageError(f"unknown scorer '{config.name}'", hint=hint)
    made: Scorer = kind(config)
    return made


def scorer_names() -> list[str]:
    """Those that are built in, then those that installed packages add."""
    return [*SCORERS, *plugin_names("scorers", built_in=SCORERS)]
