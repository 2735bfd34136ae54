"""Watching an answer: how widely a few heads look while it is written (attention entropy, arXiv 2406.13282).

    a        = softmax(q K^T) over what the head holds, the first tokens of the text (sinks) left out,
             and so is a sink that was learnt
    raw      = -sum_s a_s ln a_s              of a KV head: the mean over its query heads
    latest   = raw / ln n                     n tokens held, so that lengths and budgets compare
    signs    = what is seen of the answer's first tokens, the means of each (`SIGNS` of uncertainty/error_rates.py)

The heads are those of the preset's risk curves, or else those whose evictions cost most: heads that find what is asked
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
from uncomp_cli.cache.softmax import Form
from uncomp_cli.engine.forward.products import one_thread
from uncomp_cli.engine.spend.allocation import profile_of
from uncomp_cli.models.ranks import ALONE, Ranks
from uncomp_cli.spec import ModelSpec
from uncomp_cli.uncertainty.distance_pattern import distance_pattern

HeadAt = tuple[int, int]
"""Layer and KV head."""

Held = Callable[[int, int], Head]
"""(layer, row * G + KV head) → what that head holds, the newest tokens included."""

FEW_HEADS, FEW_TOKENS, PEAK_TOKENS = 4, 32, 8
"""Heads that are watched when no risk curve names them, tokens that signs are taken of: an answer's, a text's."""
_UNSEEN, _LEAST = -1e30, 1e-9
LOSS = "loss"


@dataclass(frozen=True, slots=True)
class Watched:
    """What is watched: heads, how many first tokens are sinks, and whether what tokens are taken from is looked at too.

    With `edges` (distance_pattern.py) the pattern of attention by distance is kept as well; `packed` counts a distance
    in tokens that the head holds, as the model sees it when what is kept was re-packed.
    """

    heads: tuple[HeadAt, ...]
    sinks: int = 4
    outputs: bool = True
    edges: Tensor | None = None
    packed: bool = False


def all_heads(spec: ModelSpec) -> tuple[HeadAt, ...]:
    """Every KV head of every layer that attends to everything."""
    return tuple((layer, head) for layer in spec.full_layers for head in range(spec.num_kv_heads))


def watched_heads(preset: Preset, spec: ModelSpec) -> tuple[HeadAt, ...]:
    """The heads of the preset's risk curves; else the few that its profile says cost most; else none.

    None as well when what the preset has was measured on a model of another shape.
    """
    known = set(all_heads(spec))
    if preset.risk:
        return preset.risk[0].heads if known.issuperset(preset.risk[0].heads) else ()
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
    return Watched(heads, preset.scorer.sinks, outputs=bool(preset.risk))


class Tally:
    """Running figures of one answer that is told a token at a time: of its first `FEW_TOKENS`.

    `mass` [S] is the attention that they paid to the tokens of the text; empty before the first.
    """

    def __init__(self) -> None:
        self.mass = torch.zeros(0)
        self._entropies: list[Tensor] = []
        self._predicted: list[Tensor] = []

    @property
    def is_full(self) -> bool:
        """Whether nothing more counts."""
        return len(self._entropies) == FEW_TOKENS

    def take(self, entropies: Tensor, mass: Tensor) -> None:
        """One more token's entropies [K] / ln n of the watched heads, and their attention [S] on the text."""
        if not self.is_full:
            self.mass = self.mass + mass if self._entropies else mass.clone()
            self._entropies.append(entropies)

    def predict(self, logits: Tensor) -> None:
        """The logits [V] that one more token is taken from."""
        if len(self._predicted) < FEW_TOKENS:
            with one_thread():
                entropy = torch.special.entr(logits.float().softmax(dim=-1)).sum(dim=-1)
            self._predicted.append(entropy / log(logits.shape[-1]))

    @property
    def signs(self) -> dict[str, float]:
        """Of the answer so far; none before its first token has been read."""
        if not self._entropies:
            return {}
        found = {"attention": float(torch.stack(self._entropies).mean()), "peak": self.peak[1]}
        if self._predicted:
            found["output"] = float(torch.stack(self._predicted).mean())
        return found

    @property
    def peak(self) -> tuple[int, float]:
        """The token in the middle of the few that were looked at most, and their share of the attention on the text."""
        width = min(PEAK_TOKENS, len(self.mass))
        if not width:
            return 0, 0.0
        share, at = self.mass.unfold(0, width, 1).sum(dim=-1).max(dim=0)
        return int(at) + width // 2, float(share / self.mass.sum().clamp_min(_LEAST))


class AnswerWatch:
    """Sees the queries of `watched.heads` while B rows are written; give `observe` to AppendState as `on_query`.

    `latest` and `raw` [B, K] are the latest token's, in the order of the heads, `recent` [B, K, N] those of all that
    came with it; the other figures are of all `tokens`. `mass[b]` [N, S] is their attention, sinks left out, on the
    text, the first S = `texts[b]` tokens of row b; S is 0 when FEW_TOKENS have been watched. Of heads that are dealt
    out to `ranks` each, whose part `spec` describes, looks at its own and is told of the others.
    """

    def __init__(
        self, watched: Watched, held: Held, spec: ModelSpec, *, texts: Sequence[int] = (), ranks: Ranks = ALONE
    ) -> None:
        self.watched = watched
        self.latest = self.raw = torch.zeros(0, len(watched.heads))
        self.recent = self.latest[..., None]
        self.mass: list[Tensor] = []
        self.tokens = 0
        self._held, self._groups, self._texts, self._ranks = held, spec.num_kv_heads, texts, ranks
        self._before = ranks.first(spec.num_kv_heads)
        self._heads: dict[int, list[int]] = {layer: [] for layer, _ in watched.heads}
        for layer, head in watched.heads:
            if 0 <= head - self._before < self._groups:
                self._heads[layer].append(head)
        self._first, self._last = min(self._heads), max(self._heads)
        self._cuts: dict[HeadAt, tuple[int, int, int]] = {}
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

    def observe(self, layer: int, query: Tensor, form: Form) -> None:
        """N tokens' queries [B, H, N, D] of `layer`, just attended: they are the last N that every head holds."""
        heads = self._heads.get(layer)
        if heads is None:
            return
        rows = range(len(query))
        grouped = query.reshape(len(query), self._groups, -1, *query.shape[2:]) * form.scaling
        if layer == self._first:
            new, few = query.shape[2], self.tokens < FEW_TOKENS
            self.mass = [query.new_zeros(new, text if few else 0, dtype=torch.float32) for text in self._texts]
        for head in heads:
            own = head - self._before
            found = [self._look(grouped[row, own], (layer, row * self._groups + own), form) for row in rows]
            self._step[layer, head] = _stack(found, 0)
        if layer == self._last:
            self._finish(query.new_zeros(len(rows), query.shape[2], dtype=torch.float32))

    def _look(self, query: Tensor, at: HeadAt, form: Form) -> "_Seen":
        """What the queries [R, N, D] of one head see: entropies [N], and the pattern [N, bins]."""
        keys, _, positions = self._held(*at)
        new = query.shape[1]
        first, behind = self._first_seen(positions, at, new)
        scores = form.capped(query @ keys[first:].T)
        count = scores.shape[-1]
        if new > 1:
            late = torch.ones(new, count, dtype=torch.bool, device=scores.device).triu(count - new + 1)
            scores = scores.float().masked_fill(late, _UNSEEN)
        logs = scores.log_softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
        shares = logs.exp()
        raw = -(shares * logs).sum(dim=-1).mean(dim=0)
        if self.mass and self.tokens < FEW_TOKENS:
            text = shares[..., : behind - first].mean(dim=0)
            self.mass[at[1] // self._groups].index_add_(1, positions[first:behind].long(), text.float())
        share = raw / log(max(2, count)) if new == 1 else raw / _logs(count, new).to(raw.device)
        return _Seen(raw, share, self._by_distance(scores, positions[first:]))

    def _first_seen(self, positions: Tensor, at: HeadAt, new: int) -> tuple[int, int]:
        """How many sinks a head holds, which come first, and how much up to the end of the text.

        They are counted anew when it has not just grown by `new`.
        """
        length, sinks, behind = self._cuts.get(at, (-1, 0, 0))
        if length + new != len(positions):
            sinks = int((positions[: self.watched.sinks] < self.watched.sinks).sum())
            behind = int((positions < self._texts[at[1] // self._groups]).sum()) if self._texts else len(positions)
        self._cuts[at] = len(positions), sinks, behind
        return sinks, behind

    def _by_distance(self, scores: Tensor, positions: Tensor) -> Tensor | None:
        """The mean pattern [N, bins] of the rows' scores [R, N, S] on what stands at `positions` [S]."""
        if self.watched.edges is None:
            return None
        places = torch.arange(len(positions), device=positions.device) if self.watched.packed else positions.long()
        distances = (places[len(places) - scores.shape[1] :, None] - places).clamp_min(0)
        rows = scores.softmax(dim=-1, dtype=torch.float32)
        return distance_pattern(rows, distances, self.watched.edges).mean(dim=0)

    def _finish(self, elsewhere: Tensor) -> None:
        """The last watched layer has been seen: the step's tokens count; `elsewhere` [B, N] stands for other ranks'."""
        edges = self.watched.edges
        pattern = None if edges is None else elsewhere.new_zeros(*elsewhere.shape, len(edges) - 1)
        blank = _Seen(elsewhere, elsewhere, pattern)
        seen = _stack([self._step.get(head, blank) for head in self.watched.heads], 1).mapped(self._ranks.total)
        self.mass = [self._ranks.total(each) for each in self.mass]
        self.raw, self.latest, self.recent = seen.raw[..., -1], seen.share[..., -1], seen.share  # [B, K, N]
        self._sums = self._sums.plus(seen)
        self.tokens += seen.share.shape[-1]


@dataclass(frozen=True, slots=True)
class _Seen:
    """Entropies [..., N] in nats and / ln n, and patterns [..., N, bins] where they are wanted."""

    raw: Tensor
    share: Tensor
    pattern: Tensor | None

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "_Seen":
        """With `change` made to each."""
        return _Seen(change(self.raw), change(self.share), None if self.pattern is None else change(self.pattern))

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
