"""Where the keys and values of a batch's rows are while their answers are written.

A row is one question of a prompt that was read. `StackedRows` copies every row's compressed context into one cache of
many rows, whatever their lengths; `OneRow` copies nothing and holds one row at a time, behind the context it was read
into. Rows that share a context have a third way (branches.py).
"""

import sys
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from uncomp_cli.cache.layer import Head
from uncomp_cli.cache.needs import ConstantConfig
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.config import CacheConfig
from uncomp_cli.engine.context.context import Asked, Begun, Beside, Context
from uncomp_cli.engine.forward.attention import AppendState, AttentionState, OnQuery, in_turn
from uncomp_cli.engine.write.fixed_size import ConstantSize, shield
from uncomp_cli.spec import ModelSpec


class RowStore(Protocol):
    """Holds the rows that are being answered, in an order that `lay_out` decides."""

    def bytes_of(self, rows: Sequence[Asked]) -> int:
        """The most that these rows together take until their answers end, beside the prompts as they were read."""
        ...

    def lay_out(self, keep: Sequence[int], join: Sequence[Asked]) -> list[Begun]:
        """Hold the rows `keep` (ascending) of those held so far, and behind them new ones, which begin."""
        ...

    def state(self, positions: Tensor, *, on_query: OnQuery | None = None) -> AttentionState:
        """The engine's state for one more token a row, at logical positions [B, 1]; tells each layer's queries."""
        ...

    def held(self, layer: int, head: int) -> Head:
        """What head row * G + KV head holds: the context, its question and its answer so far."""
        ...

    def row_bytes(self, row: int) -> int:
        """Allocated bytes of what row number `row` of the order sees; a shared context counts in each."""
        ...

    @property
    def nbytes(self) -> int:
        """Allocated bytes of all rows, beside the prompts as they were read."""
        ...


_BUCKETS_HOLD = 7
"""Of the entries that a cache of many rows has, one in eight may be empty: a seventh of those that it holds."""


class OneRow:
    """One row at a time, in the cache that it was read into; with `constant` in a copy that stays of one size."""

    def __init__(self, spec: ModelSpec, *, constant: ConstantConfig | None = None) -> None:
        self._spec, self._config = spec, constant
        self._cache: RaggedKVCache | None = None
        self._constant: ConstantSize | None = None

    def bytes_of(self, rows: Sequence[Asked]) -> int:
        """There is no room for a second row."""
        return 0 if len(rows) < 2 else sys.maxsize

    def lay_out(self, keep: Sequence[int], join: Sequence[Asked]) -> list[Begun]:
        """Begin the one question of `join`. Raises ValueError for more rows than one."""
        if len(keep) + len(join) > 1:
            raise ValueError(f"one row is held at a time, not {len(keep) + len(join)}")
        return [self._begin(asked) for asked in join]

    def _begin(self, asked: Asked) -> Begun:
        context = asked.context
        begun = context.begin(asked.question, words=asked.words)
        self._cache = context.cache
        if self._config is not None:
            marked = [shield(context.prompt, asked.question)]
            self._constant = ConstantSize(context.cache, self._spec, shields=marked, config=self._config)
            self._cache = self._constant.cache
        return begun

    def state(self, positions: Tensor, *, on_query: OnQuery | None = None) -> AttentionState:
        """Tokens go behind the question; with a constant size others go as they come, when they have been looked at."""
        observers = in_turn(on_query, None if self._constant is None else self._constant.observe)
        return AppendState(_held(self._cache), positions, on_query=observers)

    def held(self, layer: int, head: int) -> Head:
        """A head of the cache that the row is in."""
        return _held(self._cache).layer(layer).head(head)

    def row_bytes(self, row: int) -> int:
        """The whole cache, with the questions that wait beside it."""
        return _held(self._cache).nbytes

    @property
    def nbytes(self) -> int:
        """Allocated bytes of the cache that the row is in."""
        return 0 if self._cache is None else self._cache.nbytes


class StackedRows:
    """Every row's context, question and answer in one cache of many rows.

    Laying out anew copies the rows that stay, a layer at a time: beside the rows there is never more than one layer.
    """

    def __init__(self, spec: ModelSpec, config: CacheConfig | None = None) -> None:
        self._spec, self._config = spec, config or CacheConfig()
        self.cache: RaggedKVCache | None = None

    def bytes_of(self, rows: Sequence[Asked]) -> int:
        """Each row's heads as long as they can become, in buckets with their slack; quantised ones as they are."""
        return sum(self._bytes(asked) for asked in rows)

    def lay_out(self, keep: Sequence[int], join: Sequence[Asked]) -> list[Begun]:
        """Copy rows into a cache of their own; a context that several rows ask is copied for each."""
        for asked in join:
            asked.context.restore()
        if not keep and not join:
            self.cache = None
            return []
        laid = [self._lay_out_layer(layer, keep, join) for layer in range(self._spec.num_layers)]
        self.cache = laid[0]
        self.cache.layers = [one.layer(0) for one in laid]
        return [beside(asked.context).begun(asked.context, asked.question) for asked in join]

    def state(self, positions: Tensor, *, on_query: OnQuery | None = None) -> AttentionState:
        """Tokens go behind each row's last."""
        return AppendState(_held(self.cache), positions, on_query=on_query)

    def held(self, layer: int, head: int) -> Head:
        """A head of the rows' cache."""
        return _held(self.cache).layer(layer).head(head)

    def row_bytes(self, row: int) -> int:
        """The row's share of the storages, and its quantised heads."""
        entry = self._spec.kv_bytes_per_entry + self._config.position_bytes
        groups, total = self._spec.num_kv_heads, 0
        for index in range(self._spec.num_layers):
            layer = _held(self.cache).layer(index)
            for head in range(row * groups, (row + 1) * groups):
                before = layer.quantized[head]
                total += layer.region(head).size * entry + (0 if before is None else before.nbytes)
        return total

    @property
    def nbytes(self) -> int:
        """Allocated bytes of the rows' cache."""
        return 0 if self.cache is None else self.cache.nbytes

    def _lay_out_layer(self, layer: int, keep: Sequence[int], join: Sequence[Asked]) -> RaggedKVCache:
        """One layer of the rows, as a cache of one layer; what the layer held before is released."""
        sources = [_with_question(asked, layer) for asked in join]
        if keep:
            held = _held(self.cache)
            sources.insert(0, _layer_of(held, layer).rows(keep, reserve=0))
            held.layers[layer] = None
        return sources[0] if keep and not join else RaggedKVCache.stack(sources, reserve=0)

    def _bytes(self, asked: Asked) -> int:
        entry = self._spec.kv_bytes_per_entry + self._config.position_bytes
        context = asked.context
        waiting = len(context.prompt.questions[asked.question]) if beside(context).entries else 0
        total = 0
        for layer in range(self._spec.num_layers):
            held = context.cache.layer(layer)
            for length, before in zip(held.lengths, held.quantized, strict=True):
                longest = length + waiting + asked.max_new_tokens
                longest += -(-longest // _BUCKETS_HOLD)
                total += (longest + self._config.slack(longest)) * entry + (0 if before is None else before.nbytes)
        return total


class PlacedRows(StackedRows):
    """Rows that lie in one cache already, each behind its question."""

    def __init__(self, spec: ModelSpec, cache: RaggedKVCache) -> None:
        super().__init__(spec, cache.config)
        self.cache = cache

    def lay_out(self, keep: Sequence[int], join: Sequence[Asked]) -> list[Begun]:
        """They begin where they are."""
        return [asked.context.begin(asked.question) for asked in join]


def _held(cache: RaggedKVCache | None) -> RaggedKVCache:
    if cache is None:
        raise RuntimeError("no row is held: lay_out comes first")
    return cache


def beside(context: Context) -> Beside:
    """The questions of a context that was read together with them. Raises ValueError for another."""
    if not isinstance(context.questions, Beside):
        raise ValueError("only questions that were read beside their context can be rows of one batch")
    return context.questions


def _with_question(asked: Asked, layer: int) -> RaggedKVCache:
    """One layer of a context with its question: as it was read, or a copy with the question that waits beside it."""
    context, waiting = _layer_of(asked.context.cache, layer), beside(asked.context).entries
    if not waiting:
        return context
    heads = waiting[layer][asked.question]
    copied = context.rows([0], reserve=max(len(positions) for _, _, positions in heads))
    copied.extend(0, heads)
    return copied


def _layer_of(cache: RaggedKVCache, layer: int) -> RaggedKVCache:
    """One layer of a cache, as a cache of one layer over the same storages."""
    view = RaggedKVCache(num_layers=1, num_rows=cache.num_rows, num_kv_heads=cache.num_kv_heads, config=cache.config)
    view.layers[0] = cache.layer(layer)
    return view
