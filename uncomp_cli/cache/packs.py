"""Which heads of a layer one new token's queries meet in one attention call.

A pack is a rectangle of the storage whose last entries stand in one column, so that appending a token to all heads
moves its end by one and nothing else; shorter heads begin later, behind a mask that never changes. Where a layer has
few entries, all of it is one pack: every query is multiplied with every head's entries and a mask leaves its own. The
products that are thrown away cost less than a call each (measured, 2 cores: 31 against 73 us a layer of 3 heads of 70
to 130 entries, 96 against 120 at 100 to 900, 300 against 283 at 2,000, which is beyond the limit).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

_MAX_PRODUCTS = 32_768
"""Queries times entries up to which a whole layer is one call."""
_CALL_ENTRIES = 512
"""Entries that are read in the time that one more call takes: 20 us at 15 GB/s are about 600 of 2 x 64 float32."""
_MAX_WASTE = 8
"""At most one in so many entries of a bucket lies before its shorter heads."""


@dataclass(frozen=True, slots=True)
class Region:
    """Where a head lies: `size` entries from `offset` on, of which those in [pad, end) are its own."""

    head: int
    offset: int
    size: int
    pad: int
    end: int


class _Storage(Protocol):
    @property
    def keys(self) -> Tensor: ...
    @property
    def values(self) -> Tensor: ...


@dataclass(slots=True)
class Pack:
    """One call: the queries of `heads` heads against keys and values [C, S, D], views of the storage.

    Columns [0, end) are read; `mask` [C, 1 or Q, S] is added to the scores, 0 or minus infinity.
    """

    keys: Tensor
    values: Tensor
    heads: int
    end: int
    mask: Tensor | None


@dataclass(slots=True)
class Packs:
    """All calls of a layer. `order` are the heads as they lie in the packs and `inverse` undoes it; None: as they are.

    Where one pack is all, `opens` are its mask, flat, and the places in it of the next token.
    """

    packs: list[Pack]
    order: Tensor | None = None
    inverse: Tensor | None = None
    opens: tuple[Tensor, Tensor] | None = None

    def advance(self) -> None:
        """Every head has one more entry."""
        if self.opens is None:
            for pack in self.packs:
                pack.end += 1
        else:
            mask, places = self.opens
            mask.index_fill_(0, places, 0.0)
            places += 1


def pack_heads(storage: _Storage, regions: Sequence[Region], *, queries: int, windowed: bool) -> Packs:
    """The packs of heads that lie in `regions`, in order of the heads; each head has `queries` queries a token.

    With a sliding window the ends of heads must be in one column, so a layer is never one pack.
    """
    runs = _runs(sorted(regions, key=lambda region: region.offset))
    products = len(regions) * queries * len(storage.keys)
    if len(runs) > 1 and not windowed and products <= _MAX_PRODUCTS:
        return _whole(storage, regions, queries)
    order = [region.head for run in runs for region in run]
    packs = [_rectangle(storage, run) for run in runs]
    if order == sorted(order):
        return Packs(packs)
    forward = torch.tensor(order, device=storage.keys.device)
    return Packs(packs, forward, forward.argsort())


def _runs(regions: Sequence[Region]) -> list[list[Region]]:
    """Neighbours of one size whose ends are in one column."""
    runs: list[list[Region]] = []
    for region in regions:
        last = runs[-1][-1] if runs else None
        joins = last is not None and (last.size, last.end, last.offset + last.size) == (
            region.size,
            region.end,
            region.offset,
        )
        if joins:
            runs[-1].append(region)
        else:
            runs.append([region])
    return runs


def _rectangle(storage: _Storage, run: Sequence[Region]) -> Pack:
    """One run; a mask hides what lies before the shorter ones, unless all are equally long."""
    first, count = run[0], len(run)
    entries = slice(first.offset, first.offset + count * first.size)
    keys, values = (tensor[entries].view(count, first.size, -1) for tensor in (storage.keys, storage.values))
    pads = [region.pad for region in run]
    least = min(pads)
    keys, values, mask = keys[:, least:], values[:, least:], None
    if max(pads) > least:
        column = torch.arange(least, first.size, device=keys.device)
        hidden = column < torch.tensor(pads, device=keys.device)[:, None]
        mask = keys.new_zeros(hidden.shape).masked_fill_(hidden, -torch.inf)[:, None]
    return Pack(keys, values, count, first.end - least, mask)


def _whole(storage: _Storage, regions: Sequence[Region], queries: int) -> Packs:
    """The whole storage as one pack: a mask [1, Q, S] leaves each query the entries of its own head."""
    entries, device = len(storage.keys), storage.keys.device
    mask = storage.keys.new_full((len(regions), queries, entries), -torch.inf)
    for region in regions:
        mask[region.head, :, region.offset + region.pad : region.offset + region.end] = 0.0
    ends = torch.tensor([region.offset + region.end for region in regions], device=device)
    places = torch.arange(len(regions) * queries, device=device) * entries + ends.repeat_interleave(queries)
    pack = Pack(storage.keys[None], storage.values[None], len(regions), entries, mask.view(1, -1, entries))
    return Packs([pack], opens=(mask.view(-1), places))


def choose_buckets(lengths: Sequence[int], *, reserve: int) -> list[list[int]]:
    """Heads by falling length, cut into buckets that cost least in all: a call each, and the entries they waste.

    Every head of a bucket takes the longest one's length and `reserve`. Heads of one length stay together, so the work
    grows with the number of different lengths.
    """
    alike: dict[int, list[int]] = {}
    for head in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        alike.setdefault(lengths[head], []).append(head)
    groups = list(alike.items())
    costs, ends = [0] * (len(groups) + 1), [0] * len(groups)
    for first in reversed(range(len(groups))):
        choices = ((waste + _CALL_ENTRIES + costs[end], end) for end, waste in _wastes(groups[first:], reserve, first))
        costs[first], ends[first] = min(choices)
    buckets, first = [], 0
    while first < len(groups):
        buckets.append([head for _, heads in groups[first : ends[first]] for head in heads])
        first = ends[first]
    return buckets


def _wastes(groups: Sequence[tuple[int, list[int]]], reserve: int, first: int) -> Iterator[tuple[int, int]]:
    """(end, wasted entries) of the buckets that may begin with groups[0], which is group `first`."""
    longest, waste, held = groups[0][0], 0, 0
    for end, (length, heads) in enumerate(groups, start=first + 1):
        waste += len(heads) * (longest - length)
        held += len(heads) * (longest + reserve)
        if waste * _MAX_WASTE > held:
            return
        yield end, waste
