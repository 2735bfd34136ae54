"""Random operations on a layer of a cache, against its heads as tensors: what the machines of its tests share."""

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from torch import Tensor

from uncomp_cli.cache.layer import Head
from uncomp_cli.cache.ragged import RaggedKVCache

ROWS, KV_HEADS, DIM = 2, 2, 3
HEADS = ROWS * KV_HEADS
ENTRY_BYTES = 2 * 4 * DIM + 4


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Random numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def head(length: int, dim: int, *, seed: int = 0, first: int = 0) -> Head:
    """Keys, values and positions from `first` on."""
    at = torch.arange(first, first + length, dtype=torch.int32)
    return noise(length, dim, seed=seed), noise(length, dim, seed=seed + 1), at


class CacheOperations(RuleBasedStateMachine):
    """A subclass stores heads first, and says what memory is claimed."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = RaggedKVCache(num_layers=1, num_rows=0, num_kv_heads=KV_HEADS)
        self.heads: list[Head] = []
        self.mark: tuple[list[list[int]], list[int]] | None = None
        self.count = 0

    def fresh(self, lengths: list[int]) -> list[Head]:
        """Heads that nobody has seen."""
        made = [head(n, DIM, seed=2 * self.count + 7 * i, first=self.count) for i, n in enumerate(lengths)]
        self.count += max(lengths)
        return made

    def check_room(self, reserve: int) -> None:
        """Whether there is as much room as there is to be."""

    def grow(self, added: list[Head]) -> None:
        """The same in the model."""
        self.heads = [
            (torch.cat([keys, more_keys]), torch.cat([values, more_values]), torch.cat([at, later]))
            for (keys, values, at), (more_keys, more_values, later) in zip(self.heads, added, strict=True)
        ]

    @rule(new=st.integers(1, 4))
    def append(self, new: int) -> None:
        added = self.fresh([new] * HEADS)
        keys, values = (torch.stack([h[i] for h in added]).view(ROWS, KV_HEADS, new, DIM) for i in (0, 1))
        self.cache.append(0, keys, values, added[0][2].expand(ROWS, -1))
        self.grow(added)

    @rule(lengths=st.lists(st.integers(0, 4), min_size=HEADS, max_size=HEADS))
    def extend(self, lengths: list[int]) -> None:
        added = self.fresh(lengths)
        self.cache.extend(0, added)
        self.grow(added)

    def keep(self, data: st.DataObject) -> list[Tensor]:
        """Some entries of each head; the model keeps no others."""
        keep = [sorted(data.draw(st.sets(st.sampled_from(range(len(h[2])))))) if len(h[2]) else [] for h in self.heads]
        rows = [torch.tensor(kept, dtype=torch.int64) for kept in keep]
        self.heads = [(k[at], v[at], p[at]) for (k, v, p), at in zip(self.heads, rows, strict=True)]
        self.mark = None
        return rows

    @rule(data=st.data(), reserve=st.integers(0, 3))
    def retain(self, data: st.DataObject, reserve: int) -> None:
        self.cache.retain(0, self.keep(data), reserve=reserve)
        self.check_room(reserve)

    @rule(data=st.data())
    def compact(self, data: st.DataObject) -> None:
        self.cache.layer(0).compact(self.keep(data))

    @rule()
    def relabel(self) -> None:
        self.cache.relabel(torch.arange(1, self.count + 2, dtype=torch.int32))
        self.heads = [(keys, values, at + 1) for keys, values, at in self.heads]
        self.count += 1

    @rule(at=st.integers(0, 40))
    def forget_from(self, at: int) -> None:
        self.cache.forget_from(at)
        self.heads = [(k[p < at], v[p < at], p[p < at]) for k, v, p in self.heads]
        self.mark = None

    @rule()
    def take_mark(self) -> None:
        self.mark = self.cache.mark(), [len(h[2]) for h in self.heads]

    @precondition(lambda self: self.mark is not None)
    @rule()
    def rollback(self) -> None:
        assert self.mark is not None
        self.cache.rollback(self.mark[0])
        self.heads = [(k[:n], v[:n], p[:n]) for (k, v, p), n in zip(self.heads, self.mark[1], strict=True)]

    @invariant()
    def heads_are_the_model(self) -> None:
        for i, expected in enumerate(self.heads):
            found = self.cache.layer(0).head(i)
            assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert not self.heads or self.cache.entries == sum(len(h[2]) for h in self.heads)

    @invariant()
    def memory_is_what_is_claimed(self) -> None:
        if self.heads:
            layer = self.cache.layer(0)
            quantized = sum(before.nbytes for before in layer.quantized if before is not None)
            assert self.cache.nbytes == sum(layer.capacities + layer.pads) * ENTRY_BYTES + quantized
            assert all(n <= room for n, room in zip(layer.lengths, layer.capacities, strict=True))

    @invariant()
    def rectangles_are_the_heads(self) -> None:
        for first, count in ((0, HEADS), (2, 2)) if self.heads else ():
            layer = self.cache.layer(0)
            if layer.is_rectangular(first, count):
                keys, values = layer.rectangle(first, count)
                for i in range(count):
                    assert torch.equal(keys[i], layer.head(first + i)[0])
                    assert torch.equal(values[i], layer.head(first + i)[1])
