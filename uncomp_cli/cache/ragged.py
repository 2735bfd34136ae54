"""A KV cache in which every row and KV head has its own length, and `nbytes` is what is allocated.

Per layer one flat storage holds all rows and heads, each in a run of entries of its own with some slack behind it:

    keys [entries, D] · values [entries, D] · positions [entries]      head (b, g) at starts[b*G+g], lengths[b*G+g] long

A cache of 8 or 4 bits quantises what is stored, once; the flat storage then holds each head's tail, which is what was
added behind that, in the model's own dtype. Starts, lengths and capacities are those of the tail.

Physical length (entries) and logical length (tokens seen) are separate: positions are the tokens' own, so the model
rotates new queries by where they are in the text, not by where they are in memory. Nothing here chooses what stays.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from uncomp_cli.cache.quantized import QuantizedHead, quantize_head
from uncomp_cli.config import CacheConfig

__all__ = ["Head", "LayerCache", "RaggedKVCache"]

Head = tuple[Tensor, Tensor, Tensor]
"""Keys [S, D], values [S, D] and positions [S] of one KV head."""


@dataclass(slots=True)
class LayerCache:
    """The keys, values and positions of one layer, for B rows of G KV heads.

    `quantized[i]` is what lies before the tail of head i, or None when its tail is all that it has.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    starts: list[int]
    lengths: list[int]
    capacities: list[int]
    quantized: list[QuantizedHead | None]

    @property
    def nbytes(self) -> int:
        """Bytes of the three storages and of the quantised heads, as allocated."""
        flat = sum(t.untyped_storage().nbytes() for t in (self.keys, self.values, self.positions))
        return flat + sum(before.nbytes for before in self.quantized if before is not None)

    @property
    def entries(self) -> int:
        """Occupied entries, quantised ones and tails."""
        return sum(self.lengths) + sum(map(self.num_quantized, range(len(self.quantized))))

    def num_quantized(self, index: int) -> int:
        """How many entries of head `index` lie before its tail."""
        before = self.quantized[index]
        return 0 if before is None else len(before)

    def tail(self, index: int) -> Head:
        """Views of keys [S, D], values [S, D] and positions [S] of what is not quantised of head `index`."""
        run = slice(self.starts[index], self.starts[index] + self.lengths[index])
        return self.keys[run], self.values[run], self.positions[run]

    def head(self, index: int) -> Head:
        """Keys [S, D], values [S, D] and positions [S] of head `index` (b * G + g).

        Views of the storage, or copies with the quantised entries dequantised before the tail.
        """
        before, (keys, values, positions) = self.quantized[index], self.tail(index)
        if before is None:
            return keys, values, positions
        joined = [tail.new_empty(len(before) + len(tail), tail.shape[1]) for tail in (keys, values)]
        _join(before, keys, values, *joined)
        return joined[0], joined[1], torch.cat([before.positions, positions])

    def shape(self, index: int) -> tuple[int, int, int]:
        """Quantised entries, length and capacity of the tail: heads in which they are equal are rectangular."""
        return self.num_quantized(index), self.lengths[index], self.capacities[index]

    def is_rectangular(self, first: int, count: int) -> bool:
        """True when `count` heads from `first` on have one length and one capacity, so that one tensor holds them."""
        return len({self.shape(index) for index in range(first, first + count)}) == 1

    def rectangle(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values [count, S, D] of heads that are rectangular: views, or copies where some are quantised."""
        start, length, capacity = self.starts[first], self.lengths[first], self.capacities[first]
        run = slice(start, start + count * capacity)
        keys = self.keys[run].view(count, capacity, -1)[:, :length]
        values = self.values[run].view(count, capacity, -1)[:, :length]
        if self.num_quantized(first) == 0:
            return keys, values
        total = self.num_quantized(first) + length
        joined = [tail.new_empty(count, total, tail.shape[2]) for tail in (keys, values)]
        for i, before in enumerate(self.quantized[first : first + count]):
            if before is not None:
                _join(before, keys[i], values[i], joined[0][i], joined[1][i])
        return joined[0], joined[1]


def _join(before: QuantizedHead, keys: Tensor, values: Tensor, joined_keys: Tensor, joined_values: Tensor) -> None:
    """Write a head's quantised entries and its tail, `keys` and `values`, one behind the other."""
    cut = len(before)
    before.write_keys(joined_keys[:cut])
    before.write_values(joined_values[:cut])
    joined_keys[cut:], joined_values[cut:] = keys, values


class RaggedKVCache:
    """The cache of a whole model: L layers, B rows, G KV heads; `store` quantises when `kv_bits` is 8 or 4.

    With 16 bits, which stands for the model's own dtype whatever its width, nothing is quantised.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        num_rows: int,
        num_kv_heads: int,
        config: CacheConfig | None = None,
        kv_bits: int = 16,
    ) -> None:
        if kv_bits not in (16, 8, 4):
            raise ValueError(f"kv_bits is {kv_bits}, not 16, 8 or 4")
        self.num_rows = num_rows
        self.num_kv_heads = num_kv_heads
        self.kv_bits = kv_bits
        self.config = config or CacheConfig()
        self.layers: list[LayerCache | None] = [None] * num_layers
        self._aside_bytes = 0

    @property
    def nbytes(self) -> int:
        """Allocated bytes of all layers, slack and positions included, and of what was counted aside."""
        return sum(layer.nbytes for layer in self.layers if layer is not None) + self._aside_bytes

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

        Every head gets room for `reserve` more entries. Tails are copied, quantised heads are shared: they count in
        the bytes of both. What the given caches hold aside stays theirs; what is stored anew is not quantised.
        """
        shapes = {(len(cache.layers), cache.num_kv_heads) for cache in caches}
        if len(shapes) != 1:
            raise ValueError(f"caches of one model are stacked, and one at least, not {len(shapes)} kinds")
        ((num_layers, num_kv_heads),) = shapes
        num_rows = sum(cache.num_rows for cache in caches)
        stacked = cls(num_layers=num_layers, num_rows=num_rows, num_kv_heads=num_kv_heads, config=caches[0].config)
        for index in range(num_layers):
            layers = [cache.layer(index) for cache in caches]
            tails = [layer.tail(i) for layer in layers for i in range(len(layer.lengths))]
            quantized = [before for layer in layers for before in layer.quantized]
            stacked.layers[index] = _lay_out(tails, quantized, reserve=reserve, config=stacked.config)
        return stacked

    def store(self, index: int, heads: Sequence[Head], *, reserve: int = 0, quantize: bool = True) -> None:
        """Fill layer `index` from one (keys [S, D], values [S, D], positions [S]) a head, row-major.

        Every head gets room for `reserve` more entries and its slack; what the layer held before is released. With
        `quantize` False it stays in the model's own dtype: it will be stored again.
        """
        quantized: list[QuantizedHead | None] = [None] * len(heads)
        if self.kv_bits != 16 and quantize:
            quantized = [quantize_head(k, v, at, self.kv_bits, config=self.config) for k, v, at in heads]
            heads = [(k[:0], v[:0], at[:0]) for k, v, at in heads]
        self.layers[index] = _lay_out(heads, quantized, reserve=reserve, config=self.config)

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
        self.layers[index] = _lay_out(tails, quantized, reserve=reserve, config=self.config)

    def append(self, index: int, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        """Add N tokens to every head of layer `index`: keys and values [B, G, N, D], positions [B, N].

        A layer that holds nothing yet begins with them.
        """
        if self.layers[index] is None:
            rows = zip(keys, values, positions.to(torch.int32), strict=True)
            heads = [(k, v, at) for ks, vs, at in rows for k, v in zip(ks, vs, strict=True)]
            self.layers[index] = _lay_out(heads, [None] * len(heads), reserve=0, config=self.config)
            return
        layer = self.layer(index)
        new = keys.shape[2]
        if any(length + new > room for length, room in zip(layer.lengths, layer.capacities, strict=True)):
            self._grow(index, new)
            layer = self.layer(index)
        ends = torch.tensor([s + n for s, n in zip(layer.starts, layer.lengths, strict=True)], device=keys.device)
        at = ends if new == 1 else (ends[:, None] + torch.arange(new, device=keys.device)).flatten()
        layer.keys.index_copy_(0, at, keys.reshape(-1, keys.shape[-1]))
        layer.values.index_copy_(0, at, values.reshape(-1, values.shape[-1]))
        spread = positions[:, None].expand(-1, self.num_kv_heads, -1)
        layer.positions.index_copy_(0, at, spread.reshape(-1).to(torch.int32))
        layer.lengths = [length + new for length in layer.lengths]

    def extend(self, index: int, heads: Sequence[Head]) -> None:
        """Add each head's own (keys [N, D], values [N, D], positions [N]) to layer `index`, row-major."""
        layer = self.layer(index)
        longest = max(len(positions) for _, _, positions in heads)
        if any(length + longest > room for length, room in zip(layer.lengths, layer.capacities, strict=True)):
            self._grow(index, longest)
            layer = self.layer(index)
        for i, (keys, values, positions) in enumerate(heads):
            run = slice(layer.starts[i] + layer.lengths[i], layer.starts[i] + layer.lengths[i] + len(positions))
            layer.keys[run], layer.values[run], layer.positions[run] = keys, values, positions.to(torch.int32)
            layer.lengths[i] += len(positions)

    def _grow(self, index: int, new: int) -> None:
        layer = self.layer(index)
        tails = [layer.tail(i) for i in range(len(layer.lengths))]
        self.layers[index] = _lay_out(tails, layer.quantized, reserve=new, config=self.config)

    def forget_from(self, position: int) -> None:
        """Drop every entry at logical `position` or later; layers not stored yet stay so."""
        for layer in self.layers:
            if layer is not None:
                tails = (layer.tail(i)[2] for i in range(len(layer.lengths)))
                layer.lengths = [int(torch.searchsorted(positions, position)) for positions in tails]
                layer.quantized = [None if before is None else _cut(before, position) for before in layer.quantized]

    def mark(self) -> list[list[int]]:
        """The lengths of all heads' tails now, for `rollback`."""
        return [list(self.layer(i).lengths) for i in range(len(self.layers))]

    def rollback(self, mark: Sequence[Sequence[int]]) -> None:
        """Forget every entry appended since `mark` was taken."""
        for i, lengths in enumerate(mark):
            self.layer(i).lengths = list(lengths)


def _cut(before: QuantizedHead, position: int) -> QuantizedHead:
    """The entries before logical `position`."""
    left = int(torch.searchsorted(before.positions, position))
    return before if left == len(before) else before.take(torch.arange(left, device=before.positions.device))


def _lay_out(
    tails: Sequence[Head], quantized: Sequence[QuantizedHead | None], *, reserve: int, config: CacheConfig
) -> LayerCache:
    """A layer of these quantised heads and copies of these tails, each with room for `reserve` more and its slack."""
    lengths = [len(positions) for _, _, positions in tails]
    capacities = [length + reserve + config.slack(length + reserve) for length in lengths]
    starts = [sum(capacities[:i]) for i in range(len(capacities))]
    keys, values, _ = tails[0]
    layer = LayerCache(
        keys=keys.new_empty(sum(capacities), keys.shape[-1]),
        values=values.new_empty(sum(capacities), values.shape[-1]),
        positions=torch.zeros(sum(capacities), dtype=torch.int32, device=keys.device),
        starts=starts,
        lengths=lengths,
        capacities=capacities,
        quantized=list(quantized),
    )
    for i, head in enumerate(tails):
        for target, source in zip(layer.tail(i), head, strict=True):
            target.copy_(source)
    return layer
