"""A KV cache in which every row and KV head has its own length, and `nbytes` is what is allocated.

Per layer one flat storage holds all rows and heads, each in a run of entries of its own with some slack behind it:

    keys [entries, D] · values [entries, D] · positions [entries]      head (b, g) at starts[b*G+g], lengths[b*G+g] long

Physical length (entries) and logical length (tokens seen) are separate: positions are the tokens' own, so the model
rotates new queries by where they are in the text, not by where they are in memory. Nothing here chooses what stays.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from uncomp_cli.config import CacheConfig

__all__ = ["LayerCache", "RaggedKVCache"]


@dataclass(slots=True)
class LayerCache:
    """The keys, values and positions of one layer, for B rows of G KV heads."""

    keys: Tensor
    values: Tensor
    positions: Tensor
    starts: list[int]
    lengths: list[int]
    capacities: list[int]

    @property
    def nbytes(self) -> int:
        """Bytes of the three storages, as allocated."""
        return sum(t.untyped_storage().nbytes() for t in (self.keys, self.values, self.positions))

    def head(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """Views of keys [S, D], values [S, D] and positions [S] of head `index` (b * G + g)."""
        run = slice(self.starts[index], self.starts[index] + self.lengths[index])
        return self.keys[run], self.values[run], self.positions[run]

    def is_rectangular(self, first: int, count: int) -> bool:
        """True when `count` heads from `first` on have one length and one capacity, so that one view holds them."""
        return len(set(self.lengths[first : first + count])) == 1 == len(set(self.capacities[first : first + count]))

    def rectangle(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Views of keys and values [count, S, D] of heads that are rectangular."""
        start, length, capacity = self.starts[first], self.lengths[first], self.capacities[first]
        run = slice(start, start + count * capacity)
        keys = self.keys[run].view(count, capacity, -1)[:, :length]
        values = self.values[run].view(count, capacity, -1)[:, :length]
        return keys, values


class RaggedKVCache:
    """The cache of a whole model: L layers, B rows, G KV heads."""

    def __init__(self, *, num_layers: int, num_rows: int, num_kv_heads: int, config: CacheConfig | None = None) -> None:
        self.num_rows = num_rows
        self.num_kv_heads = num_kv_heads
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
        return sum(sum(layer.lengths) for layer in self.layers if layer is not None)

    def layer(self, index: int) -> LayerCache:
        """The cache of layer `index`, which must have been stored."""
        layer = self.layers[index]
        if layer is None:
            raise RuntimeError(f"layer {index} has no cache yet: prefill first")
        return layer

    def store(
        self,
        index: int,
        heads: Sequence[tuple[Tensor, Tensor, Tensor]],
        *,
        reserve: int = 0,
    ) -> None:
        """Fill layer `index` from one (keys [S, D], values [S, D], positions [S]) a head, row-major.

        Every head gets room for `reserve` more entries and its slack; what the layer held before is released.
        """
        lengths = [len(positions) for _, _, positions in heads]
        capacities = [length + reserve + self.config.slack(length + reserve) for length in lengths]
        starts = [sum(capacities[:i]) for i in range(len(capacities))]
        keys, values, _ = heads[0]
        layer = LayerCache(
            keys=keys.new_empty(sum(capacities), keys.shape[-1]),
            values=values.new_empty(sum(capacities), values.shape[-1]),
            positions=torch.zeros(sum(capacities), dtype=torch.int32, device=keys.device),
            starts=starts,
            lengths=lengths,
            capacities=capacities,
        )
        for i, head in enumerate(heads):
            for target, source in zip(layer.head(i), head, strict=True):
                target.copy_(source)
        self.layers[index] = layer

    def retain(self, index: int, keep: Sequence[Tensor], *, reserve: int = 0) -> None:
        """Keep only the entries `keep[i]` (ascending, into head i) of layer `index`, and release the rest."""
        layer = self.layer(index)
        heads = [layer.head(i) for i in range(len(keep))]
        kept = [(k[rows], v[rows], p[rows]) for (k, v, p), rows in zip(heads, keep, strict=True)]
        self.store(index, kept, reserve=reserve)

    def append(self, index: int, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        """Add N tokens to every head of layer `index`: keys and values [B, G, N, D], positions [B, N].

        A layer that holds nothing yet begins with them.
        """
        if self.layers[index] is None:
            rows = zip(keys, values, positions.to(torch.int32), strict=True)
            self.store(index, [(k, v, at) for ks, vs, at in rows for k, v in zip(ks, vs, strict=True)])
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

    def extend(self, index: int, heads: Sequence[tuple[Tensor, Tensor, Tensor]]) -> None:
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
        heads = [layer.head(i) for i in range(len(layer.lengths))]
        self.store(index, heads, reserve=new)

    def forget_from(self, position: int) -> None:
        """Drop every entry at logical `position` or later; layers not stored yet stay so."""
        for layer in self.layers:
            if layer is not None:
                heads = (layer.head(i)[2] for i in range(len(layer.lengths)))
                layer.lengths = [int(torch.searchsorted(positions, position)) for positions in heads]

    def mark(self) -> list[list[int]]:
        """The lengths of all heads now, for `rollback`."""
        return [list(self.layer(i).lengths) for i in range(len(self.layers))]

    def rollback(self, mark: Sequence[Sequence[int]]) -> None:
        """Forget every entry appended since `mark` was taken."""
        for i, lengths in enumerate(mark):
            self.layer(i).lengths = list(lengths)
