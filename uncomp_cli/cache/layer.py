"""One layer of a ragged cache: flat storage, and where in it each head lies.

Heads lie one behind the other, or in buckets: heads of similar length, each in a region of the longest one's size,
their last entries in one column. Then many rows are few attention calls, and what lies before the shorter heads is
allocated for nothing.
"""

from collections.abc import Sequence
from ctypes import addressof
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor

from uncomp_cli.cache.packs import Packs, Region, choose_buckets, pack_heads
from uncomp_cli.cache.quantized import QuantizedHead
from uncomp_cli.config import CacheConfig
from uncomp_cli.kernels.launch import Strands
from uncomp_cli.kernels.library import Fewer, Held, kind_of

Head = tuple[Tensor, Tensor, Tensor]
"""Keys [S, D], values [S, D] and positions [S] of one KV head."""


@dataclass(slots=True)
class LayerCache:
    """The keys, values and positions of one layer, for B rows of G KV heads.

    `quantized[i]` is what lies before the tail of head i, or None when its tail is all that it has; `pads[i]` entries
    before it are nobody's. What follows from the lengths (where the next token goes, how heads are read) is kept on
    the device between tokens and made anew when lengths change in another way.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    starts: list[int]
    lengths: list[int]
    capacities: list[int]
    quantized: list[QuantizedHead | None]
    pads: list[int]
    _ends: Tensor | None = field(default=None, repr=False)
    _packs: tuple[tuple[int, bool], Packs] | None = field(default=None, repr=False)
    _held: tuple[Held, object] | None = field(default=None, repr=False)
    _nbytes: int | None = field(default=None, repr=False)
    _strands: Strands | None = field(default=None, repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of the three storages and of the quantised heads, as allocated; known until they are laid out anew."""
        if self._nbytes is None:
            flat = sum(t.untyped_storage().nbytes() for t in (self.keys, self.values, self.positions))
            self._nbytes = flat + sum(before.nbytes for before in self.quantized if before is not None)
        return self._nbytes

    @property
    def entries(self) -> int:
        """Occupied entries, quantised ones and tails."""
        return sum(self.lengths) + sum(map(self.num_quantized, range(len(self.quantized))))

    @property
    def room(self) -> int:
        """How many more tokens fit into every tail."""
        return min(capacity - length for capacity, length in zip(self.capacities, self.lengths, strict=True))

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

    def region(self, index: int) -> Region:
        """Where head `index` lies."""
        pad = self.pads[index]
        size, end = pad + self.capacities[index], pad + self.lengths[index]
        return Region(index, self.starts[index] - pad, size, pad, end)

    def shape(self, index: int) -> tuple[int, ...]:
        """Equal for heads that are rectangular: quantised entries, length, and a place in one row of regions."""
        at = self.region(index)
        return self.num_quantized(index), at.pad, at.end, at.size, at.offset - index * at.size

    def is_rectangular(self, first: int, count: int) -> bool:
        """True when `count` heads from `first` on have one length and lie in a row, so that one tensor holds them."""
        return len({self.shape(index) for index in range(first, first + count)}) == 1

    def rectangle(self, first: int, count: int) -> tuple[Tensor, Tensor]:
        """Keys and values [count, S, D] of heads that are rectangular: views, or copies where some are quantised."""
        at = self.region(first)
        run = slice(at.offset, at.offset + count * at.size)
        keys = self.keys[run].view(count, at.size, -1)[:, at.pad : at.end]
        values = self.values[run].view(count, at.size, -1)[:, at.pad : at.end]
        if self.num_quantized(first) == 0:
            return keys, values
        total = self.num_quantized(first) + at.end - at.pad
        joined = [tail.new_empty(count, total, tail.shape[2]) for tail in (keys, values)]
        for i, before in enumerate(self.quantized[first : first + count]):
            if before is not None:
                _join(before, keys[i], values[i], joined[0][i], joined[1][i])
        return joined[0], joined[1]

    def packs(self, queries: int, *, windowed: bool = False) -> Packs | None:
        """How the `queries` queries of each head read the layer in few calls; None where heads are quantised."""
        wanted = queries, windowed
        if self._packs is None or self._packs[0] != wanted:
            if any(map(self.num_quantized, range(len(self.quantized)))):
                return None
            regions = [self.region(i) for i in range(len(self.lengths))]
            self._packs = wanted, pack_heads(self, regions, queries=queries, windowed=windowed)
        return self._packs[1]

    def append(self, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        """Add N entries a head, for which there is room: keys and values [B, G, N, D], int32 positions [B, G, N]."""
        new, ends = keys.shape[2], self._next()
        at = ends if new == 1 else (ends[:, None] + torch.arange(new, device=keys.device)).flatten()
        self.keys.index_copy_(0, at, keys.reshape(-1, keys.shape[-1]))
        self.values.index_copy_(0, at, values.reshape(-1, values.shape[-1]))
        self.positions.index_copy_(0, at, positions.reshape(-1))
        self.lengths = [length + new for length in self.lengths]
        ends += new
        if new > 1:
            self._packs = None
        elif self._packs is not None:
            self._packs[1].advance()
        if self._strands is not None:
            self._strands.advance(new)

    def _next(self) -> Tensor:
        """Where the next token of each head goes."""
        if self._ends is None:
            ends = [start + length for start, length in zip(self.starts, self.lengths, strict=True)]
            self._ends = torch.tensor(ends, device=self.keys.device)
        return self._ends

    def held(self) -> Held | None:
        """What a step in one call reads and adds to; None where it cannot: numbers of other types, other devices."""
        if self._held is None:
            kind, starts = kind_of(self.keys.dtype), torch.tensor(self.starts)
            tensors = self.keys, self.values, self.positions, starts, self._next()
            if kind is None or any(each.device.type != "cpu" or not each.is_contiguous() for each in tensors):
                return None
            before = [None if one is None or len(one) == 0 else one.fewer() for one in self.quantized]
            fewer = (Fewer * len(before))(*(Fewer() if one is None else one[0] for one in before))
            address = addressof(fewer) if any(one is not None for one in before) else None
            held = Held(*(tensor.data_ptr() for tensor in tensors), address, kind)
            self._held = held, (starts, fewer, before)
        return self._held[0]

    def strands(self) -> Strands | None:
        """As the decode kernel of a GPU reads it; None where heads are quantised in several ways."""
        if self._strands is None:
            kinds = {(one.bits, one.group) for one in self.quantized if one is not None and len(one)}
            if len(kinds) > 1 or self.keys.shape[1] != self.values.shape[1]:
                return None
            device, counts = self.keys.device, [self.num_quantized(i) + n for i, n in enumerate(self.lengths)]
            starts = torch.tensor(self.starts, device=device)
            made = Strands(self.keys, self.values, starts, self._next(), longest=max(counts), entries=sum(counts))
            if kinds:
                ((made.bits, made.group),) = kinds
                made.kept = [() if one is None else one.fewer()[1] for one in self.quantized]
                addresses = [[tensor.data_ptr() for tensor in tensors] or [0] * 6 for tensors in made.kept]
                numbers = [[self.num_quantized(i), *found] for i, found in enumerate(addresses)]
                made.fewer = torch.tensor(numbers, device=device)
            self._strands = made
        return self._strands

    def advance(self, new: int = 1) -> None:
        """A step in one call has added entries to every head, and advanced `held`."""
        self.lengths = [length + new for length in self.lengths]
        self._packs = self._strands = None

    def withdraw(self, count: int) -> None:
        """Take the latest entries out of every head's tail; where everything lies stays known."""
        self.advance(-count)
        if self._ends is not None:
            self._ends -= count

    def resize(self, lengths: Sequence[int]) -> None:
        """Set the lengths of all tails."""
        self.lengths = list(lengths)
        self._ends = self._packs = self._held = self._nbytes = self._strands = None

    def move_into(self, roomier: "LayerCache") -> None:
        """Take the storages of `roomier`, which holds the same: whoever has this layer has it with more room."""
        for each in fields(self):
            setattr(self, each.name, getattr(roomier, each.name))

    def compact(self, keep: Sequence[Tensor]) -> None:
        """Keep only the entries `keep[i]` (ascending, into head i), moved to the front of the same storage."""
        for i, rows in enumerate(keep):
            before, cut, late = self.quantized[i], self.num_quantized(i), rows
            if before is not None:
                self.quantized[i] = before.take(rows[rows < cut])
                late = rows[rows >= cut] - cut
            for tensor in self.tail(i):
                tensor[: len(late)] = tensor[late]
            self.lengths[i] = len(late)
        self.resize(self.lengths)


def _join(before: QuantizedHead, keys: Tensor, values: Tensor, joined_keys: Tensor, joined_values: Tensor) -> None:
    """Write a head's quantised entries and its tail, `keys` and `values`, one behind the other."""
    cut = len(before)
    before.write_keys(joined_keys[:cut])
    before.write_values(joined_values[:cut])
    joined_keys[cut:], joined_values[cut:] = keys, values


def lay_out(
    tails: Sequence[Head],
    quantized: Sequence[QuantizedHead | None],
    *,
    reserve: int | Sequence[int],
    config: CacheConfig,
    bucketed: bool = False,
) -> LayerCache:
    """A layer of these quantised heads and copies of these tails, each with room for `reserve` more and its slack.

    With `bucketed`, similar heads are laid in buckets, which have the largest reserve, unless some are quantised, which
    are read apart anyway.
    """
    bucketed = bucketed and not any(before is not None and len(before) for before in quantized)
    lengths = [len(positions) for _, _, positions in tails]
    rooms = [reserve] * len(lengths) if isinstance(reserve, int) else list(reserve)
    regions = _place(lengths, rooms, config=config, bucketed=bucketed)
    total = sum(region.size for region in regions)
    keys, values, _ = tails[0]
    layer = LayerCache(
        # Zeros: what a mask hides is still multiplied, and must be a number.
        keys=keys.new_zeros(total, keys.shape[-1]),
        values=values.new_zeros(total, values.shape[-1]),
        positions=torch.zeros(total, dtype=torch.int32, device=keys.device),
        starts=[region.offset + region.pad for region in regions],
        lengths=lengths,
        capacities=[region.size - region.pad for region in regions],
        quantized=list(quantized),
        pads=[region.pad for region in regions],
    )
    for i, head in enumerate(tails):
        for target, source in zip(layer.tail(i), head, strict=True):
            target.copy_(source)
    return layer


def _place(lengths: Sequence[int], rooms: Sequence[int], *, config: CacheConfig, bucketed: bool) -> list[Region]:
    """A region for every head, in the heads' order: one behind the other as they are, or the longest buckets first."""
    buckets = choose_buckets(lengths, reserve=max(rooms)) if bucketed else [[i] for i in range(len(lengths))]
    regions: dict[int, Region] = {}
    offset = 0
    for bucket in buckets:
        longest, reserve = lengths[bucket[0]], max(rooms) if bucketed else rooms[bucket[0]]
        size = longest + reserve + config.slack(longest + reserve)
        for i in bucket:
            regions[i] = Region(i, offset, size, longest - lengths[i], longest)
            offset += size
    return [regions[i] for i in range(len(lengths))]
