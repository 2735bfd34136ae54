"""Where the keys and values of a batch's rows are while their answers are written.

A row is one question of a prompt that was read. `StackedRows` copies every row's compressed context into one cache of
many rows, whatever their lengths; `OneRow` copies nothing and holds one row at a time, behind the context it was read
into. `SharedRows` are every question of one document, answered at once behind the one copy of it:

    scores = [q · Kᵀ of the context | q · Kᵀ of the row's own question and answer],  one softmax over both

The rows' queries of a KV head meet the context's keys in one matrix product, so that a context is read once a token
and not once a row; the result is each row's exact attention. What a row has of its own, its question and its answer,
lies in a rectangle [B, G, T, D] a layer whose column is the token's place behind the context.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from uncomp_cli.cache.layer import Head, LayerCache
from uncomp_cli.cache.needs import ConstantConfig
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.cache.softmax import Form
from uncomp_cli.cache.states import States
from uncomp_cli.config import CacheConfig
from uncomp_cli.engine.context.context import Asked, Begun, Beside, Context
from uncomp_cli.engine.forward.attention import AppendState, AttentionState, OnQuery, Opened, in_turn
from uncomp_cli.engine.forward.mixers import Step
from uncomp_cli.engine.write.fixed_size import ConstantSize, shield
from uncomp_cli.engine.write.lookup import Attempt
from uncomp_cli.kernels.library import Held, kind_of
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
        """The engine's state for one more token a row, at logical positions [B, 1] on the CPU; tells queries."""
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


_GROWTH = 64
_BUCKETS_HOLD = 7
"""Of the entries that a cache of many rows has, one in eight may be empty: a seventh of those that it holds."""


class OneRow:
    """One row at a time, in the cache that it was read into; with `constant` in a copy that stays of one size.

    A copy is held beside the cache it is of: what was read can be asked again.
    """

    def __init__(self, spec: ModelSpec, *, constant: ConstantConfig | None) -> None:
        self._spec, self._config = spec, constant
        self._read: RaggedKVCache | None = None
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
        context, self._constant = asked.context, None  # an earlier copy goes before there is another
        begun = context.begin(asked.question, words=asked.words)
        self._read = context.cache
        if self._config is not None:
            marked = [shield(context.prompt, asked.question)]
            self._constant = ConstantSize(context.cache, self._spec, shields=marked, config=self._config)
        return begun

    @property
    def cache(self) -> RaggedKVCache:
        """What the row is written in."""
        return _held(self._read) if self._constant is None else self._constant.cache

    def state(self, positions: Tensor, *, on_query: OnQuery | None = None) -> AttentionState:
        """Tokens go behind the question; with a constant size others go as they come, when they have been looked at."""
        return AppendState(self.cache, self.cache.placed(positions), on_query=self._observers(on_query))

    def attempt(self, positions: Tensor, *, on_query: OnQuery | None) -> Attempt:
        """The same for tokens at logical positions [1, N], of which only the first may stay."""
        return Attempt(self.cache, positions, on_query=self._observers(on_query))

    @property
    def room(self) -> int:
        """How many tokens may come before a cache of constant size is cut."""
        return sys.maxsize if self._constant is None else self._constant.room

    def _observers(self, on_query: OnQuery | None) -> OnQuery | None:
        return in_turn(on_query, None if self._constant is None else self._constant.observe)

    def held(self, layer: int, head: int) -> Head:
        """A head of the cache that the row is in."""
        return self.cache.layer(layer).head(head)

    def row_bytes(self, row: int) -> int:
        """The whole cache, with the questions that wait beside it, and the copy."""
        return self.nbytes

    @property
    def nbytes(self) -> int:
        """Allocated bytes of the cache that was read into, and of the copy that the row is in."""
        if self._read is None:
            return 0
        return self._read.nbytes + (0 if self._constant is None else self._constant.cache.nbytes)


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
        held = [_held(self.cache).states.rows(keep)] if keep else []
        begun = [beside(asked.context).states_behind(asked.context, asked.question) for asked in join]
        laid = [self._lay_out_layer(layer, keep, join) for layer in range(self._spec.num_layers)]
        self.cache = laid[0]
        self.cache.states = States.stack([*held, *begun])
        self.cache.layers = [one.layer(0) for one in laid]
        return [beside(asked.context).begun(asked.context, asked.question) for asked in join]

    def state(self, positions: Tensor, *, on_query: OnQuery | None = None) -> AttentionState:
        """Tokens go behind each row's last."""
        cache = _held(self.cache)
        return AppendState(cache, cache.placed(positions), on_query=on_query)

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
        return total + self._spec.state_bytes

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
        total = self._spec.state_bytes
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


@dataclass(slots=True)
class _Own:
    """What the rows of one layer have of their own: keys and values [B, G, T, D]."""

    keys: Tensor
    values: Tensor

    def select(self, rows: Tensor) -> "_Own":
        """Copies of some rows."""
        return _Own(self.keys[rows], self.values[rows])

    def widen(self, columns: int) -> None:
        """Make room for `columns` tokens a row."""
        more = columns - self.keys.shape[2]
        if more > 0:
            pad = (0, 0, 0, more)
            self.keys, self.values = functional.pad(self.keys, pad), functional.pad(self.values, pad)


class SharedRows:
    """Rows over one prompt of several questions, whose context is left where it was read."""

    def __init__(self, read: Context, spec: ModelSpec) -> None:
        self._read, self._spec, self._context = read, spec, len(read.prompt.context)
        self._waiting = beside(read)
        self._own = [self._nothing(layer) for layer in range(spec.num_layers)]
        self._states = States()
        self._columns: list[int] = []  # tokens of its own that each row has

    def bytes_of(self, rows: Sequence[Asked]) -> int:
        """All rows as wide as the widest becomes."""
        widest = max((asked.prompt_tokens - self._context + asked.max_new_tokens for asked in rows), default=0)
        return len(rows) * (_rounded(widest) * self._spec.kv_bytes_per_token + self._spec.state_bytes)

    def lay_out(self, keep: Sequence[int], join: Sequence[Asked]) -> list[Begun]:
        """Keep some rows' own tokens and put the new rows' questions beside them."""
        if not keep:
            self._read.restore()  # what an earlier answer left
        columns = max((_rounded(asked.prompt_tokens - self._context) for asked in join), default=0)
        for layer, own in enumerate(self._own):
            fresh = own.select(torch.tensor(keep, dtype=torch.int64, device=own.keys.device))
            fresh.widen(columns)
            if join:
                questions = [self._waiting.entries[layer][asked.question] for asked in join]
                begun = [_rectangle(heads, fresh.keys.shape[2], self._context) for heads in questions]
                fresh.keys = torch.cat([fresh.keys, torch.stack([keys for keys, _ in begun])])
                fresh.values = torch.cat([fresh.values, torch.stack([values for _, values in begun])])
            self._own[layer] = fresh
        states = [self._waiting.states_behind(self._read, asked.question) for asked in join]
        self._states = States.stack([*([self._states.rows(keep)] if keep else []), *states])
        return [self._waiting.begun(self._read, asked.question) for asked in join]

    def state(self, positions: Tensor, *, on_query: OnQuery | None = None) -> AttentionState:
        """One more token a row, at logical positions [B, 1]."""
        self._columns = [position - self._context + 1 for position in positions[:, 0].tolist()]
        for own in self._own:
            own.widen(_rounded(int(positions.max()) - self._context + 1))
        at, first = self._read.cache.placed(positions)[:, 0], self._context
        return _BranchState(self._read.cache, self._own, at, first, states=self._states, on_query=on_query)

    def held(self, layer: int, head: int) -> Head:
        """The context's head with the row's own tokens behind it: a copy."""
        row, group = divmod(head, self._spec.num_kv_heads)
        keys, values, positions = self._read.cache.layer(layer).head(group)
        own, columns = self._own[layer], self._columns[row]
        behind = torch.arange(self._context, self._context + columns, device=positions.device, dtype=positions.dtype)
        return (
            torch.cat([keys, own.keys[row, group, :columns]]),
            torch.cat([values, own.values[row, group, :columns]]),
            torch.cat([positions, behind]),
        )

    def row_bytes(self, row: int) -> int:
        """The context with all that waits beside it, and the row's own."""
        return self._read.cache.nbytes + self.nbytes // max(1, len(self._own[0].keys))

    @property
    def nbytes(self) -> int:
        """Allocated bytes of the rows' own tokens and states."""
        own = sum(t.untyped_storage().nbytes() for own in self._own for t in (own.keys, own.values))
        return own + self._states.nbytes

    def _nothing(self, layer: int) -> _Own:
        keys, values, _ = self._waiting.entries[layer][0][0]
        shape = (0, self._spec.num_kv_heads, 0)
        return _Own(keys.new_empty(*shape, keys.shape[1]), values.new_empty(*shape, values.shape[1]))


class _BranchState(AttentionState):
    """The engine's state while every row gets one token at logical positions [B]."""

    def __init__(
        self,
        cache: RaggedKVCache,
        own: list[_Own],
        positions: Tensor,
        context: int,
        *,
        states: States,
        on_query: OnQuery | None,
    ) -> None:
        self._cache, self._own, self._on_query = cache, own, on_query
        self.positions, self._states = positions[:, None], states
        self._columns = positions - context
        self._places = torch.arange(own[0].keys.shape[2], device=positions.device) + context
        self._rows = torch.arange(len(positions), device=positions.device)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        """Attention [B, H, 1, D] of the new tokens over the context and their own row's tokens, themselves included."""
        own, held = self._own[layer], self._cache.layer(layer)
        own.keys[self._rows, :, self._columns] = key[:, :, 0]
        own.values[self._rows, :, self._columns] = value[:, :, 0]
        rows, groups = len(query), key.shape[1]
        grouped = query.reshape(rows, groups, -1, query.shape[-1]).permute(1, 2, 0, 3) * form.scaling  # [G, R, B, D]
        runs = [(0, groups)] if held.is_rectangular(0, groups) else [(group, 1) for group in range(groups)]
        outputs = [self._attend_run(grouped, own, held, run, form) for run in runs]
        if self._on_query is not None:
            self._on_query(layer, query, form)
        return torch.cat(outputs).permute(2, 0, 1, 3).contiguous().view(rows, query.shape[1], 1, -1)

    def opened(self) -> Opened | None:
        """Every row's own tokens are a strand, and the context lies before all of them."""
        before, (rows, groups, columns, _) = self._cache.opened(0), self._own[0].keys.shape
        starts = torch.arange(rows * groups) * columns
        ends = starts + self._columns.repeat_interleave(groups)
        kind = kind_of(self._own[0].keys.dtype)
        if before is None or kind is None:
            return None
        address = starts.data_ptr(), ends.data_ptr()
        own = [Held(each.keys.data_ptr(), each.values.data_ptr(), None, *address, None, kind) for each in self._own]
        return Opened(own, before, (starts, ends))

    def stepped(self, queries: Tensor, forms: Sequence[Form]) -> None:
        """Tell it as if layer by layer."""
        typed = queries.to(self._own[0].keys.dtype)
        for layer, (query, form) in enumerate(zip(typed.unbind(0), forms, strict=True)):
            if self._on_query is not None:
                self._on_query(layer, query, form)

    def recur(self, layer: int, hidden: Tensor, step: Step) -> Tensor:
        """The new tokens, each behind its own row's."""
        return step(hidden, self._states)

    def _attend_run(self, grouped: Tensor, own: _Own, held: LayerCache, run: tuple[int, int], form: Form) -> Tensor:
        """Output [C, R, B, D] of the C heads of a run, which are equally long in the context."""
        heads = slice(run[0], run[0] + run[1])
        keys, values = held.rectangle(*run)
        query, cut = grouped[heads], keys.shape[1]
        count, per_group, rows, _ = query.shape
        shared = torch.bmm(query.flatten(1, 2), keys.transpose(1, 2)).view(count, per_group, rows, cut)
        mine = query.transpose(1, 2) @ own.keys[:, heads].permute(1, 0, 3, 2)
        unseen = self._unseen(self._places, form.window)
        early = unseen.new_zeros(rows, cut)
        if form.window is not None:
            early = self._unseen(held.head(run[0])[2], form.window)
        form = form.of(slice(run[0] * per_group, heads.stop * per_group))
        scores, unseen = torch.cat([shared, mine.transpose(1, 2)], dim=-1), torch.cat([early, unseen], dim=-1)
        weights = form.weights(scores, unseen).to(values.dtype)
        output = torch.bmm(weights[..., :cut].reshape(count, per_group * rows, cut), values).view(query.shape)
        behind = weights[..., cut:].transpose(1, 2) @ own.values[:, heads].transpose(0, 1)
        return output + behind.transpose(1, 2)

    def _unseen(self, places: Tensor, window: int | None) -> Tensor:
        """What a row's new token does not see [B, S] of `places` [S]: what is later, and what is outside the window."""
        here = self.positions
        unseen = places > here
        return unseen if window is None else unseen | (places <= here - window)


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


def _rounded(columns: int) -> int:
    return -(-columns // _GROWTH) * _GROWTH


def _rectangle(heads: Sequence[Head], columns: int, context: int) -> tuple[Tensor, Tensor]:
    """A question's entries, one head each, as keys and values [G, T, D]: columns are places behind the context."""
    keys, values, positions = heads[0]
    at = positions.long() - context
    laid = keys.new_zeros(len(heads), columns, keys.shape[1]), values.new_zeros(len(heads), columns, values.shape[1])
    laid[0][:, at] = torch.stack([head[0] for head in heads])
    laid[1][:, at] = torch.stack([head[1] for head in heads])
    return laid
