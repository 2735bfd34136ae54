"""A KV cache in which every row and KV head has its own length, and `nbytes` is what is allocated.

Per layer one flat storage holds all rows and heads, each in a run of entries of its own with some slack behind it:

    keys [entries, D] · values [entries, D] · positions [entries]      head (b, g) at starts[b*G+g], lengths[b*G+g] long

A cache of 8 or 4 bits quantises what is stored, once; the flat storage then holds each head's tail, which is what was
added behind that, in the model's own dtype. Starts, lengths and capacities are those of the tail.

Physical length (entries) and logical length (tokens seen) are separate: positions are the tokens' own, so the model
rotates new queries by where they are in the text, not by where they are in memory. Nothing here chooses what stays.

How much of each token a cache still holds is its survival:

    survival[s] = |{(l, g) : head g of layer l holds position s}| / (layers x KV heads)

A token that every head dropped has 0 and cannot have been read; 1 is a token that nothing was lost of.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from uncomp_cli.cache.layer import Head, LayerCache, lay_out
from uncomp_cli.cache.quantized import QuantizedHead, quantize_head
from uncomp_cli.cache.states import States
from uncomp_cli.config import CacheConfig
from uncomp_cli.kernels.library import Held


@dataclass(frozen=True, slots=True)
class Mark:
    """Where a cache was: the lengths of all heads' tails, and the states of the layers that have one."""

    lengths: Sequence[Sequence[int]]
    states: States = field(default_factory=States, compare=False)


class RaggedKVCache:
    """The cache of a whole model: L layers, B rows, G KV heads; `store` quantises when `kv_bits` is 8 or 4.

    `states` are those of the model's other layers. They go with the rows, and belong to all that was read.
    With 16 bits, which stands for the model's own dtype whatever its width, nothing is quantised.
    """

    def __init__(
        self, *, num_layers: int, num_rows: int, num_kv_heads: int, config: CacheConfig | None = None, kv_bits: int = 16
    ) -> None:
        if kv_bits not in (16, 8, 4):
            raise ValueError(f"kv_bits is {kv_bits}, not 16, 8 or 4")
        self.num_rows = num_rows
        self.num_kv_heads = num_kv_heads
        self.kv_bits = kv_bits
        self.config = config or CacheConfig()
        self.layers: list[LayerCache | None] = [None] * num_layers
        self.states = States()
        self._aside_bytes = 0
        self._bucketed = False

    @property
    def nbytes(self) -> int:
        """Allocated bytes of all layers, slack and positions included, of states, and of what was counted aside."""
        layers = sum(layer.nbytes for layer in self.layers if layer is not None)
        return layers + self.states.nbytes + self._aside_bytes

    def count_aside(self, tensors: Iterable[Tensor]) -> None:
        """Count the storages of `tensors`, which wait beside the layers to be put into them, in `nbytes`."""
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
        self._aside_bytes += sum(storages.values())

    @property
    def entries(self) -> int:
        """Occupied KV entries over all layers, rows and heads."""
        return sum(layer.entries for layer in self.layers if layer is not None)

    def layer(self, index: int) -> LayerCache:
        """The cache of layer `index`, which must have been stored."""
        layer = self.layers[index]
        if layer is None:
            raise RuntimeError(f"layer {index} has no cache yet: prefill first")
        return layer

    @classmethod
    def stack(cls, caches: Sequence["RaggedKVCache"], *, reserve: int) -> "RaggedKVCache":
        """One cache whose rows are those of `caches` in order, each of its own lengths and bits; they do not change.

        Every head gets room for `reserve` more entries and lies in a bucket of similar ones: few attention calls for
        many rows. Tails are copied, quantised heads are shared: they count in the bytes of both. What the given caches
        hold aside stays theirs; what is stored anew is not quantised.
        """
        shapes = {(len(cache.layers), cache.num_kv_heads) for cache in caches}
        if len(shapes) != 1:
            raise ValueError(f"caches of one model are stacked, and one at least, not {len(shapes)} kinds")
        return cls._of_rows([(cache, row) for cache in caches for row in range(cache.num_rows)], reserve=reserve)

    def rows(self, rows: Sequence[int], *, reserve: int | Sequence[Sequence[int]]) -> "RaggedKVCache":
        """A cache of some rows, in that order, as `stack` makes it: to drop rows that have ended, or repeat some.

        Every head of each layer may have a `reserve` of its own.
        """
        return self._of_rows([(self, row) for row in rows], reserve=reserve)

    @classmethod
    def _of_rows(
        cls, rows: Sequence[tuple["RaggedKVCache", int]], *, reserve: int | Sequence[Sequence[int]]
    ) -> "RaggedKVCache":
        first = rows[0][0]
        groups, num_layers = first.num_kv_heads, len(first.layers)
        config = max((cache.config for cache, _ in rows), key=lambda config: config.most_tokens)
        made = cls(num_layers=num_layers, num_rows=len(rows), num_kv_heads=groups, config=config)
        made._bucketed = True
        made.states = States.stack(cache.states.rows([row]) for cache, row in rows)
        for index in range(num_layers):
            heads = [(cache.layer(index), i) for cache, row in rows for i in range(row * groups, row * groups + groups)]
            tails = [layer.tail(i) for layer, i in heads]
            room = reserve if isinstance(reserve, int) else reserve[index]
            made.layers[index] = made._laid_out(tails, [layer.quantized[i] for layer, i in heads], reserve=room)
        return made

    def _laid_out(
        self, tails: Sequence[Head], quantized: Sequence[QuantizedHead | None], *, reserve: int | Sequence[int] = 0
    ) -> LayerCache:
        return lay_out(tails, quantized, reserve=reserve, config=self.config, bucketed=self._bucketed)

    def store(self, index: int, heads: Sequence[Head], *, reserve: int = 0, quantize: bool = True) -> None:
        """Fill layer `index` from one (keys [S, D], values [S, D], positions [S]) a head, row-major.

        Every head gets room for `reserve` more entries and its slack; what the layer held before is released. With
        `quantize` False it stays in the model's own dtype: it will be stored again.
        """
        quantized: list[QuantizedHead | None] = [None] * len(heads)
        if self.kv_bits != 16 and quantize:
            quantized = [quantize_head(k, v, at, self.kv_bits, config=self.config) for k, v, at in heads]
            heads = list(map(_nothing, heads))
        self.layers[index] = self._laid_out(heads, quantized, reserve=reserve)

    def retain(self, index: int, keep: Sequence[Tensor], *, reserve: int = 0) -> None:
        """Keep only the entries `keep[i]` (ascending, into head i) of layer `index`, and release the rest.

        Quantised entries keep their codes and scales: nothing is quantised twice.
        """
        layer = self.layer(index)
        tails, quantized = [], []
        for i, rows in enumerate(keep):
            before, cut, (keys, values, positions) = layer.quantized[i], layer.num_quantized(i), layer.tail(i)
            quantized.append(None if before is None else before.take(rows[rows < cut]))
            late = rows[rows >= cut] - cut
            tails.append((keys[late], values[late], positions[late]))
        self.layers[index] = self._laid_out(tails, quantized, reserve=reserve)

    def insert(self, index: int, heads: Sequence[Head], *, reserve: int = 0) -> None:
        """Put each head's new entries of layer `index` where their positions belong, which it must not hold yet.

        In a cache of 8 or 4 bits they are quantised, and so is the tail that was behind.
        """
        layer, tails = self.layer(index), []
        quantized = list(layer.quantized)
        for i, (new_keys, new_values, new_positions) in enumerate(heads):
            keys, values, positions = layer.tail(i)
            positions = torch.cat([positions, new_positions])
            order = positions.argsort()
            keys, values = torch.cat([keys, new_keys])[order], torch.cat([values, new_values])[order]
            tails.append((keys, values, positions[order]))
            if self.kv_bits != 16:
                made, before = quantize_head(*tails[i], self.kv_bits, config=self.config), quantized[i]
                quantized[i], tails[i] = made if before is None else before.joined(made), _nothing(tails[i])
        self.layers[index] = self._laid_out(tails, quantized, reserve=reserve)

    def settle(self, *, reserve: int = 0) -> None:
        """In a cache of 8 or 4 bits quantise every head's tail, and make room for `reserve` more entries behind."""
        for index in range(len(self.layers) if self.kv_bits != 16 else 0):
            layer = self.layer(index)
            self.insert(index, [_nothing(layer.tail(i)) for i in range(len(layer.lengths))], reserve=reserve)

    def lay_out_anew(self, *, reserve: int = 0) -> None:
        """Give back what no entry needs: every head behind the other, its slack and room for `reserve` more."""
        for index, layer in enumerate(self.layers):
            if layer is None:
                continue
            counts = [layer.num_quantized(i) + length for i, length in enumerate(layer.lengths)]
            self.retain(index, [torch.arange(count, device=layer.keys.device) for count in counts], reserve=reserve)

    def append(self, index: int, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        """Add N tokens to every head of layer `index`: keys and values [B, G, N, D], positions [B, N].

        Positions may be given as `spread` makes them, once for all layers. A layer that holds nothing begins with them.
        """
        spread = positions if positions.dim() == 3 else self.spread(positions)
        layer = self.layers[index]
        if layer is None:
            heads = list(zip(keys.flatten(0, 1), values.flatten(0, 1), spread.flatten(0, 1), strict=True))
            self.layers[index] = self._laid_out(heads, [None] * len(heads))
            return
        self._with_room(index, keys.shape[2]).append(keys, values, spread)

    def spread(self, positions: Tensor) -> Tensor:
        """Positions [B, N] as a layer holds them: int32 [B, G, N]."""
        return positions.to(torch.int32)[:, None].expand(-1, self.num_kv_heads, -1).contiguous()

    def placed(self, positions: Tensor) -> Tensor:
        """Positions where the first layer is; nobody waits until they are there."""
        return positions.to(self.layer(0).keys.device, non_blocking=True)

    def extend(self, index: int, heads: Sequence[Head]) -> None:
        """Add each head's own (keys [N, D], values [N, D], positions [N]) to layer `index`, row-major."""
        layer = self._with_room(index, max(len(positions) for _, _, positions in heads))
        for i, (keys, values, positions) in enumerate(heads):
            run = slice(layer.starts[i] + layer.lengths[i], layer.starts[i] + layer.lengths[i] + len(positions))
            layer.keys[run], layer.values[run], layer.positions[run] = keys, values, positions.to(torch.int32)
        layer.resize([length + len(head[2]) for length, head in zip(layer.lengths, heads, strict=True)])

    def _with_room(self, index: int, new: int) -> LayerCache:
        """Layer `index`, laid out anew where `new` more entries do not fit into every head."""
        layer = self.layer(index)
        if layer.room < new:
            tails = [layer.tail(i) for i in range(len(layer.lengths))]
            layer.move_into(self._laid_out(tails, layer.quantized, reserve=new))
        return layer

    def opened(self, new: int = 1) -> list[Held] | None:
        """All layers with room for new tokens, as a step in one call takes them; None where it cannot."""
        if any(layer is None for layer in self.layers):
            return None
        held = [self._with_room(index, new).held() for index in range(len(self.layers))]
        return [one for one in held if one is not None] if None not in held else None

    def forget_from(self, position: int) -> None:
        """Drop every entry at logical `position` or later; layers not stored yet stay so. States cannot go back."""
        for layer in self.layers:
            if layer is not None:
                tails = (layer.tail(i)[2] for i in range(len(layer.lengths)))
                layer.resize([int(torch.searchsorted(positions, position)) for positions in tails])
                layer.quantized = [None if before is None else _cut(before, position) for before in layer.quantized]

    def withdraw(self, count: int) -> None:
        """Take the latest entries out of every head of every layer, which were appended in one step."""
        for index in range(len(self.layers) if count else 0):
            self.layer(index).withdraw(count)

    def clear(self) -> None:
        """Release all layers and states, and what was held aside."""
        self.layers = [None] * len(self.layers)
        self.states, self._aside_bytes = States(), 0

    def relabel(self, labels: Tensor) -> None:
        """Give every entry at position p the position `labels[p]` (int32, ascending); keys and values stay."""
        for layer in self.layers:
            if layer is None:
                continue
            known = labels.to(layer.positions.device)
            layer.positions = known[layer.positions.long().clamp(0, len(known) - 1)]  # unused room holds anything
            layer.resize(layer.lengths)
            layer.quantized = [
                None if before is None else replace(before, positions=known[before.positions.long()])
                for before in layer.quantized
            ]

    def mark(self) -> Mark:
        """Where the cache is now, for `rollback`."""
        return Mark([list(self.layer(i).lengths) for i in range(len(self.layers))], self.states.copy())

    def rollback(self, mark: Mark) -> None:
        """Forget every entry appended since `mark` was taken; the states are again what they were."""
        for i, lengths in enumerate(mark.lengths):
            self.layer(i).resize(lengths)
        self.states = mark.states.copy()


def _nothing(head: Head) -> Head:
    """No entries, of its kind."""
    keys, values, positions = head
    return keys[:0], values[:0], positions[:0]


def _cut(before: QuantizedHead, position: int) -> QuantizedHead:
    """The entries before logical `position`."""
    left = int(torch.searchsorted(before.positions, position))
    return before if left == len(before) else before.take(torch.arange(left, device=before.positions.device))


def survival(cache: RaggedKVCache, seq_len: int, *, layers: Sequence[int] | None = None) -> Tensor:
    """The share [S] of heads of `layers` (None: all) that hold each of the first `seq_len` positions, on the CPU.

    Name the layers that a budget decides about (`ModelSpec.full_layers`): one with a sliding window keeps its window.
    Of a cache of several rows it is the share over all of them.
    """
    counts, heads = torch.zeros(seq_len, dtype=torch.int64), 0
    for index in range(len(cache.layers)) if layers is None else layers:
        for held in positions_of(cache.layer(index)):
            counts += torch.bincount(held[held < seq_len], minlength=seq_len)
            heads += 1
    return counts / max(1, heads)


def positions_of(layer: LayerCache) -> Iterator[Tensor]:
    """The positions that each head holds; keys and values are not touched, so that nothing is dequantised."""
    for head, before in enumerate(layer.quantized):
        tail = layer.tail(head)[2].cpu()
        yield tail if before is None else torch.cat([before.positions.cpu(), tail])
