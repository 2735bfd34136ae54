"""Watching an answer: how widely a few heads look while it is written (attention entropy, arXiv 2406.13282).

    a        = softmax(q K^T) over what the head holds, the first tokens of the text (sinks) left out
    raw      = -sum_s a_s ln a_s              of a KV head: the mean over its query heads
    latest   = raw / ln n                     n tokens held, so that lengths and budgets compare
    signal   = one figure of the watched heads and the answer's tokens, such as their mean (`SIGNALS`)

The heads are those of the preset's risk curve, or else those whose evictions cost most: heads that find what is asked
for (retrieval heads, arXiv 2404.15574). The attention kernels tell no weights, so that the few heads' scores are taken
once more, from the same keys. The answer's first token was chosen behind the prompt: it is seen when it is read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

from uncomp_cli.budget.presets import Preset
from uncomp_cli.cache.layer import Head
from uncomp_cli.engine.forward.products import one_thread
from uncomp_cli.engine.spend.allocation import profile_of
from uncomp_cli.spec import ModelSpec
from uncomp_cli.uncertainty.distance_pattern import distance_pattern
from uncomp_cli.uncertainty.entropy import score_entropy
from uncomp_cli.uncertainty.error_rates import JOINT, SIGNALS

HeadAt = tuple[int, int]
"""Layer and KV head."""

Held = Callable[[int, int], Head]
"""(layer, row * G + KV head) → what that head holds, the newest tokens included."""

FEW_HEADS = 4
"""Heads that are watched when no risk curve names them."""
_UNSEEN = -1e30
LOSS = "loss"


@dataclass(frozen=True, slots=True)
class Watched:
    """What is watched: heads, how many first tokens are sinks, and the signal that is made of it.

    With `edges` (distance_pattern.py) the pattern of attention by distance is kept as well; `packed` counts a distance
    in tokens that the head holds, as the model sees it when what is kept was re-packed.
    """

    heads: tuple[HeadAt, ...]
    sinks: int = 4
    signal: str = SIGNALS[0]
    edges: Tensor | None = None
    packed: bool = False

    @property
    def reads_output(self) -> bool:
        """Whether the signal needs the distributions that tokens are taken from."""
        return self.signal == JOINT


def all_heads(spec: ModelSpec) -> tuple[HeadAt, ...]:
    """Every KV head of every layer that attends to everything."""
    return tuple((layer, head) for layer in spec.full_layers for head in range(spec.num_kv_heads))


def watched_heads(preset: Preset, spec: ModelSpec) -> tuple[HeadAt, ...]:
    """The heads of the preset's risk curve; else the few that its profile says cost most; else none.

    None as well when what the preset has was measured on a model of another shape.
    """
    known = set(all_heads(spec))
    if preset.risk is not None:
        return preset.risk.heads if known.issuperset(preset.risk.heads) else ()
    profile = profile_of(preset)
    if profile is None or LOSS not in profile.values:
        return ()
    losses = profile.as_rows(LOSS)
    if (len(losses), len(losses[0])) != (spec.num_layers, spec.num_kv_heads):
        return ()
    most = sorted(known, key=lambda head: (-losses[head[0]][head[1]], head))
    return tuple(sorted(most[:FEW_HEADS]))


def watched(preset: Preset, spec: ModelSpec) -> Watched | None:
    """What is watched under this preset; None when it has nothing to go by."""
    heads = watched_heads(preset, spec)
    if not heads:
        return None
    signal = SIGNALS[0] if preset.risk is None else preset.risk.signal
    return Watched(heads, preset.scorer.sinks, signal)


class Tally:
    """Running figures of one answer that is told a token at a time."""

    def __init__(self) -> None:
        self.tokens = self.predicted = 0
        self._mean = self._least = self._first = self._output = torch.zeros(0)

    def take(self, entropies: Tensor) -> None:
        """One more token's entropies [..., K] / ln n of the watched heads."""
        mean, least = entropies.mean(dim=-1), entropies.amin(dim=-1)
        if self.tokens:
            self._mean, self._least = self._mean + mean, self._least + least
        else:
            self._mean, self._least, self._first = mean, least, mean
        self.tokens += 1

    def predict(self, logits: Tensor) -> None:
        """The logits [..., V] that one more token is taken from."""
        with one_thread():
            share = torch.special.entr(logits.float().softmax(dim=-1)).sum(dim=-1) / log(logits.shape[-1])
        self._output = self._output + share if self.predicted else share
        self.predicted += 1

    def signal(self, name: str) -> Tensor:
        """The figure `name` [...] of the answer so far; raises ValueError before its first token."""
        if not self.tokens:
            raise ValueError("no token has been watched yet")
        mean, least = self._mean / self.tokens, self._least / self.tokens
        if name == JOINT:
            return mean + self._output / self.predicted
        return {"entropy/mean": mean, "entropy/least": least, "entropy/first": self._first}[name]

    def value(self, name: str) -> float | None:
        """The figure of the one row, or None before its first token."""
        return float(self.signal(name)) if self.tokens else None


class AnswerWatch:
    """Sees the queries of `watched.heads` while B rows are written; give `observe` to AppendState as `on_query`.

    `latest` and `raw` [B, K] are the latest token's, in the order of the heads, `recent` [B, K, N] those of all that
    came with it; the other figures are of all `tokens`.
    """

    def __init__(self, watched: Watched, held: Held, spec: ModelSpec) -> None:
        self.watched = watched
        self.latest = self.raw = torch.zeros(0, len(watched.heads))
        self.recent = self.latest[..., None]
        self.tokens = 0
        self._held, self._groups = held, spec.num_kv_heads
        self._heads: dict[int, list[int]] = {}
        for layer, head in watched.heads:
            self._heads.setdefault(layer, []).append(head)
        self._last = max(self._heads)
        self._sinks: dict[HeadAt, tuple[int, int]] = {}
        self._step: dict[HeadAt, _Seen] = {}
        self._sums = _Seen(torch.zeros(()), torch.zeros(()), torch.zeros(()))

    @property
    def by_head(self) -> Tensor:
        """Mean [B, K] over tokens, / ln n."""
        return self._sums.share / self.tokens

    @property
    def raw_by_head(self) -> Tensor:
        """Mean [B, K] over tokens, in nats."""
        return self._sums.raw / self.tokens

    @property
    def pattern(self) -> Tensor:
        """Mean pattern [B, K, bins] over tokens of attention by distance; ValueError when no edges were given."""
        if self._sums.pattern is None or self.watched.edges is None:
            raise ValueError("no distances are watched: Watched(edges=…)")
        return self._sums.pattern / self.tokens

    def observe(self, layer: int, query: Tensor, scaling: float) -> None:
        """N tokens' queries [B, H, N, D] of `layer`, just attended: they are the last N that every head holds."""
        heads = self._heads.get(layer)
        if heads is None:
            return
        rows = range(len(query))
        grouped = query.reshape(len(query), self._groups, -1, *query.shape[2:]) * scaling
        for head in heads:
            found = [self._look(grouped[row, head], (layer, row * self._groups + head)) for row in rows]
            self._step[layer, head] = _stack(found, 0)
        if layer == self._last:
            self._finish()

    def _look(self, query: Tensor, at: HeadAt) -> "_Seen":
        """What the queries [R, N, D] of one head see: entropies [N], and the pattern [N, bins]."""
        keys, _, positions = self._held(*at)
        new, first = query.shape[1], self._first_seen(positions, at, query.shape[1])
        scores = query @ keys[first:].T
        count = scores.shape[-1]
        if new > 1:
            late = torch.ones(new, count, dtype=torch.bool, device=scores.device).triu(count - new + 1)
            scores = scores.float().masked_fill(late, _UNSEEN)
        raw = score_entropy(scores).mean(dim=0)
        share = raw / log(max(2, count)) if new == 1 else raw / _logs(count, new).to(raw.device)
        return _Seen(raw, share, self._by_distance(scores, positions[first:]))

    def _first_seen(self, positions: Tensor, at: HeadAt, new: int) -> int:
        """How many sinks a head holds, which come first; counted anew when it has not just grown by `new`."""
        length, sinks = self._sinks.get(at, (-1, 0))
        if length + new != len(positions):
            sinks = int((positions[: self.watched.sinks] < self.watched.sinks).sum())
        self._sinks[at] = len(positions), sinks
        return sinks

    def _by_distance(self, scores: Tensor, positions: Tensor) -> Tensor | None:
        """The mean pattern [N, bins] of the rows' scores [R, N, S] on what stands at `positions` [S]."""
        if self.watched.edges is None:
            return None
        places = torch.arange(len(positions), device=positions.device) if self.watched.packed else positions.long()
        distances = (places[len(places) - scores.shape[1] :, None] - places).clamp_min(0)
        rows = scores.softmax(dim=-1, dtype=torch.float32)
        return distance_pattern(rows, distances, self.watched.edges).mean(dim=0)

    def _finish(self) -> None:
        """The last watched layer has been seen: the step's tokens count."""
        seen = _stack([self._step[head] for head in self.watched.heads], 1)  # [B, K, N]
        self.raw, self.latest, self.recent = seen.raw[..., -1], seen.share[..., -1], seen.share
        self._sums = self._sums.plus(seen)
        self.tokens += seen.share.shape[-1]


@dataclass(frozen=True, slots=True)
class _Seen:
    """Entropies [..., N] in nats and / ln n, and patterns [..., N, bins] where they are wanted."""

    raw: Tensor
    share: Tensor
    pattern: Tensor | None

    def plus(self, step: "_Seen") -> "_Seen":
        """With a step's tokens added up: [...]."""
        pattern = None if step.pattern is None or self.pattern is None else self.pattern + step.pattern.sum(dim=-2)
        return _Seen(self.raw + step.raw.sum(dim=-1), self.share + step.share.sum(dim=-1), pattern)


def _logs(count: int, new: int) -> Tensor:
    """ln n [N] of what each of the last N of `count` tokens sees."""
    return torch.arange(count - new + 1, count + 1).clamp_min(2).log()


def _stack(seen: Sequence[_Seen], dim: int) -> _Seen:
    patterns = [one.pattern for one in seen if one.pattern is not None]
    return _Seen(
        torch.stack([one.raw for one in seen], dim=dim),
        torch.stack([one.share for one in seen], dim=dim),
        torch.stack(patterns, dim=dim) if patterns else None,
    )
