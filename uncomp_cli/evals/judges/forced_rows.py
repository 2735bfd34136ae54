"""Many caches, one batch: the settings of one sample are rows that are fed the same tokens at the same positions.

A decoder's step costs little more for twenty rows than for one, because reading the weights is most of it. Caches
are weighed before they become rows, where quantised ones are dequantised; rows are only a faster way to the figures.
"""

from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from uncomp_cli.cache.ragged import Mark, RaggedKVCache
from uncomp_cli.config import SamplingConfig
from uncomp_cli.engine.context.context import Asked, Begun, Behind, Context
from uncomp_cli.engine.forward.attention import AppendState
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.engine.write.stores import PlacedRows
from uncomp_cli.engine.write.writer import Writer
from uncomp_cli.spec import ModelSpec

MAX_ROWS_BYTES = 2 * 2**30
MAX_LOGITS_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True)
class RowsMark:
    """Where rows can be taken back to."""

    cache: Mark
    position: int


class Rows:
    """B caches of one prompt; the next token stands at logical `position` in each of them."""

    def __init__(self, decoder: Decoder, caches: Sequence[RaggedKVCache], *, position: int, reserve: int) -> None:
        self.decoder = decoder
        plain = [cache if cache.kv_bits == 16 else _copy(cache, [0], reserve=0) for cache in caches]
        self.cache = RaggedKVCache.stack(plain, reserve=reserve)
        self.position = position

    def __len__(self) -> int:
        return self.cache.num_rows

    def pick(self, rows: Sequence[int], *, reserve: int) -> "Rows":
        """Some of the rows as they are now, with room for `reserve` more tokens."""
        picked = copy(self)
        picked.cache = _copy(self.cache, rows, reserve=reserve)
        return picked

    def feed(self, ids: Sequence[int] | Tensor, *, last: int | None = None) -> Tensor:
        """Append the same `ids` [N] or each row's own [B, N]; logits [B, K, vocab] after the `last` K (all) of them."""
        given = torch.as_tensor(ids, dtype=torch.int64)
        given = given.expand(len(self), -1) if given.dim() == 1 else given
        new = given.shape[1]
        positions = (self.position + torch.arange(new)).expand(len(self), -1)
        state = AppendState(self.cache, positions.to(self.decoder.device))
        logits = self.decoder.forward(given, positions, state, last or new)
        self.position += new
        return logits

    def mark(self) -> RowsMark:
        """Where the rows are now."""
        return RowsMark(self.cache.mark(), self.position)

    def rollback(self, mark: RowsMark) -> None:
        """Forget what was fed since `mark`."""
        self.cache.rollback(mark.cache)
        self.position = mark.position

    def writer(
        self,
        logits: Tensor,
        prompt: Prompt,
        question: int,
        tokenizer: Any,
        *,
        max_new_tokens: int,
        stop_ids: Sequence[int],
    ) -> Writer:
        """What writes every row's greedy answer to a question of `prompt`, which stands behind it, after `logits`."""
        asked = [
            Asked(Context(self.decoder, prompt, self.cache, Behind(Begun(row[None]))), question, max_new_tokens)
            for row in logits
        ]
        store = PlacedRows(self.decoder.spec, self.cache)
        return Writer(self.decoder, tokenizer, SamplingConfig(), asked, store=store, stop_ids=stop_ids)


def _copy(cache: RaggedKVCache, rows: Sequence[int], *, reserve: int) -> RaggedKVCache:
    """A copy of some rows, dequantised once and for all."""
    num_layers, groups = len(cache.layers), cache.num_kv_heads
    wanted = [row * groups + group for row in rows for group in range(groups)]
    copied = RaggedKVCache(num_layers=num_layers, num_rows=len(rows), num_kv_heads=groups)
    for index in range(num_layers):
        copied.store(index, [cache.layer(index).head(i) for i in wanted], reserve=reserve)
    copied.states = cache.states.rows(rows)
    return copied


def token_nll(logits: Tensor, ids: Sequence[int]) -> Tensor:
    """Negative log-likelihoods [B, N] in nats of the same `ids` [N] in every row of logits [B, N, vocab]."""
    wanted = torch.tensor(ids, device=logits.device).expand(len(logits), -1)
    chosen = logits.gather(-1, wanted[..., None])[..., 0]
    return logits.float().logsumexp(dim=-1) - chosen.float()


def in_batches(
    caches: Sequence[RaggedKVCache], spec: ModelSpec, *, tokens: int, logits_bytes: int = MAX_LOGITS_BYTES
) -> Iterator[range]:
    """Ranges of `caches` that fit in memory together as rows while `tokens` logits are read for each."""
    most = max(1, logits_bytes // (4 * tokens * spec.vocab_size))
    first, weight = 0, 0
    for index, cache in enumerate(caches):
        row_bytes = cache.entries * spec.kv_bytes_per_entry
        full = index - first >= most or weight + row_bytes > MAX_ROWS_BYTES
        if full and index > first:
            yield range(first, index)
            first, weight = index, 0
        weight += row_bytes
    if first < len(caches):
        yield range(first, len(caches))
