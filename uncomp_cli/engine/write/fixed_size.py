"""Generation with a cache of constant size: watch each layer's queries, and cut its heads whenever a block is full.

All that it needs is allocated when it begins (a block of room in every head, the last queries of every layer) and
counted, so `cache.nbytes` is the same for every token that follows; quantised heads give bytes back as they lose
entries. It works on a copy of the cache it is given: what was read can be asked again.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from uncomp_cli.cache.layer import LayerCache
from uncomp_cli.cache.needs import ConstantConfig, HeadLimits, attention_needs, choose_kept, limits_of
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.cache.softmax import Form
from uncomp_cli.config import CacheConfig
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.spec import ModelSpec

_BUCKET = 8 / 7
"""Entries that are allocated for one that is held, where similar heads lie in one bucket (cache/packs.py)."""
Needs = Callable[[LayerCache, Tensor, Tensor, Form], Tensor]
"""(layer, queries [heads, H/G, W, D], their ages [W], form) → needs [heads, S] from 0 to 1."""


def shield(prompt: Prompt, question: int = 0) -> Tensor:
    """bool [P]: by position, what of a prompt never goes: protected context, and the question that was begun."""
    return torch.cat([prompt.context.protected, torch.ones(len(prompt.questions[question]), dtype=torch.bool)])


def context_room(spec: ModelSpec, kv_bytes: int, *, kv_bits: int) -> int:
    """Bytes that a context of one row may have in any cache so that with its copy it takes no more than `kv_bytes`.

    A copy has a head's entries, of which a bucket wastes a seventh, a block, what its limit is above its length, slack
    and the last queries; of quantised heads a tail that may take the place of half their entries.
    """
    chosen, cache = ConstantConfig(), CacheConfig()
    entry = spec.kv_bytes_per_entry + cache.position_bytes
    heads, slack = spec.num_layers * spec.num_kv_heads, 1 + 1 / cache.slack_divisor
    held = entry if kv_bits == 16 else cache.entry_bytes(head_dim=spec.head_dim, bits=kv_bits)
    beside = heads * (chosen.block + chosen.recent + cache.min_slack) * entry * _BUCKET * slack
    queries = spec.num_layers * spec.num_heads * chosen.window * spec.head_dim * spec.dtype_bytes
    share = _BUCKET if kv_bits == 16 else 1 + (1 - chosen.prompt_share) * entry / held
    return int((kv_bytes - beside - queries) / (1 + share * slack))


class ConstantSize:
    """Holds the heads of `cache`, its copy, at the lengths they have now; give `observe` to AppendState as `on_query`.

    `shields` has a bool [P] for each row: P tokens of prompt, those marked are never evicted. `needs` replaces the
    attention of the last queries.
    """

    def __init__(
        self,
        cache: RaggedKVCache,
        spec: ModelSpec,
        *,
        shields: Sequence[Tensor],
        config: ConstantConfig,
        needs: Needs | None = None,
    ) -> None:
        self.config = config
        self._windows = spec.sliding_windows
        self._needs = needs or self._attention
        groups, device = cache.num_kv_heads, cache.layer(0).keys.device
        self._shields = [shield.to(device) for shield in shields for _ in range(groups)]
        self._limits = [self._limit(cache, index) for index in range(len(cache.layers))]
        rooms = [self._rooms(cache.layer(index), limits) for index, limits in enumerate(self._limits)]
        self.cache = cache.rows(range(cache.num_rows), reserve=rooms)
        layer = cache.layer(0)
        shape = len(cache.layers), len(layer.lengths), spec.num_heads // groups, self.config.window, spec.head_dim
        self._queries = layer.keys.new_zeros(shape)
        self._seen = [0] * len(cache.layers)
        self.cache.count_aside([self._queries])

    def _limit(self, cache: RaggedKVCache, index: int) -> HeadLimits:
        """A sliding layer is held at its window, which is all that it sees."""
        layer, window = cache.layer(index), self._windows[index]
        positions = [layer.head(i)[2].long() for i in range(len(layer.lengths))]
        if window is not None:
            return HeadLimits((window,) * len(positions), (0,) * len(positions))
        held = [int(shield[at[at < len(shield)]].sum()) for at, shield in zip(positions, self._shields, strict=True)]
        return limits_of(list(map(len, positions)), held, self.config)

    def _rooms(self, layer: LayerCache, limits: HeadLimits) -> list[int]:
        """Entries that the tail of each head may have more than now, at most: a block, and its limit above its length.

        Quantised entries that go make way for others in the tail: all but those of the prompt that always stay.
        """
        held = [prompt if layer.num_quantized(i) else layer.lengths[i] for i, prompt in enumerate(limits.prompt)]
        return [max(0, limit - count) + self.config.block for limit, count in zip(limits.entries, held, strict=True)]

    @property
    def room(self) -> int:
        """How many tokens come before heads are cut next."""
        return self.config.block - self._seen[0] % self.config.block

    def observe(self, layer: int, query: Tensor, form: Form) -> None:
        """N tokens' queries [B, H, N, D] of `layer`, just attended; cuts its heads when a block has become full.

        Many tokens at once fit into the room there is when they end where a block does: feed them block by block.
        """
        seen, new, window = self._seen[layer], query.shape[2], self.config.window
        ring = self._queries[layer]
        latest = query.reshape(*ring.shape[:2], new, -1)[:, :, -window:]
        if new == 1:
            ring[:, :, seen % window] = latest[:, :, 0]
        else:
            slots = torch.arange(seen + new - latest.shape[2], seen + new, device=ring.device) % window
            ring.index_copy_(2, slots, latest)
        self._seen[layer] = seen + new
        if (seen + new) // self.config.block > seen // self.config.block:
            self._cut(layer, form)

    def _cut(self, index: int, form: Form) -> None:
        layer, limits = self.cache.layer(index), self._limits[index]
        positions = [layer.head(i)[2] for i in range(len(layer.lengths))]
        if all(len(at) <= limit for at, limit in zip(positions, limits.entries, strict=True)):
            return
        if self._windows[index] is None:
            layer.compact(self._choose(index, positions, form))
        else:
            latest = [torch.arange(len(at), device=at.device)[-limits.entries[0] :] for at in positions]
            layer.compact(latest)

    def _choose(self, index: int, positions: Sequence[Tensor], form: Form) -> list[Tensor]:
        seen, window = self._seen[index], self.config.window
        slots = torch.arange(min(seen, window), device=positions[0].device)
        ages = (seen - 1 - slots) % window
        needs = self._needs(self.cache.layer(index), self._queries[index][:, :, : len(slots)], ages, form)
        return choose_kept(
            needs,
            positions,
            protected=self._shields,
            prompt_lens=list(map(len, self._shields)),
            limits=self._limits[index],
            config=self.config,
        )

    def _attention(self, layer: LayerCache, queries: Tensor, ages: Tensor, form: Form) -> Tensor:
        keys = [layer.head(i)[0] for i in range(len(layer.lengths))]
        return attention_needs(queries, keys, ages, form, config=self.config)
