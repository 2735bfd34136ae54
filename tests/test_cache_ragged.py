"""The ragged cache against lists of numbers."""

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from torch import Tensor

from uncomp_cli.cache.layer import LayerCache
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.config import CacheConfig

ROWS, KV_HEADS, DIM = 2, 2, 3
HEADS = ROWS * KV_HEADS
CONFIG = CacheConfig(min_slack=2, slack_divisor=4)
ENTRY_BYTES = 2 * 4 * DIM + 4

Token = tuple[float, int]
"""What a model head holds for a token: a value that marks its key, and its position."""


def tensors(head: list[Token]) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values and positions of a list of tokens; keys and values tell themselves and their columns apart."""
    marks = torch.tensor([mark for mark, _ in head], dtype=torch.float32).reshape(-1, 1)
    keys = marks + torch.arange(DIM) / 8
    return keys, -keys, torch.tensor([at for _, at in head], dtype=torch.int32)


def same(actual: tuple[Tensor, Tensor, Tensor], head: list[Token]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(actual, tensors(head), strict=True))


class CacheMachine(RuleBasedStateMachine):
    """Random operations on one layer; the model is a list of tokens a head."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = RaggedKVCache(num_layers=1, num_rows=ROWS, num_kv_heads=KV_HEADS, config=CONFIG)
        self.heads: list[list[Token]] = []
        self.mark: tuple[list[list[int]], list[int]] | None = None
        self.count = 0

    def fresh(self, lengths: list[int]) -> list[list[Token]]:
        made = [[(float(self.count + i), self.count + i) for i in range(length)] for length in lengths]
        self.count += max(lengths)
        return made

    @initialize(lengths=st.lists(st.integers(0, 6), min_size=HEADS, max_size=HEADS), reserve=st.integers(0, 3))
    def store(self, lengths: list[int], reserve: int) -> None:
        self.heads = self.fresh(lengths)
        self.cache.store(0, [tensors(head) for head in self.heads], reserve=reserve)
        capacities = [n + reserve + CONFIG.slack(n + reserve) for n in lengths]
        assert self.cache.layer(0).capacities == capacities

    @rule(new=st.integers(1, 4))
    def append(self, new: int) -> None:
        added = self.fresh([new] * HEADS)
        keys, values, positions = (torch.stack(parts) for parts in zip(*(tensors(head) for head in added), strict=True))
        offsets = torch.arange(HEADS)[:, None, None] * 1000.0  # every head its own keys
        shape = (ROWS, KV_HEADS, new, DIM)
        rows = positions.view(ROWS, KV_HEADS, new)[:, 0]
        self.cache.append(0, (keys + offsets).view(shape), (values - offsets).view(shape), rows)
        for i, (head, tail) in enumerate(zip(self.heads, added, strict=True)):
            head += [(mark + 1000.0 * i, at) for mark, at in tail]

    @rule(lengths=st.lists(st.integers(0, 4), min_size=HEADS, max_size=HEADS))
    def extend(self, lengths: list[int]) -> None:
        added = self.fresh(lengths)
        self.cache.extend(0, [tensors(head) for head in added])
        for head, tail in zip(self.heads, added, strict=True):
            head += tail

    @rule(data=st.data(), reserve=st.integers(0, 3))
    def retain(self, data: st.DataObject, reserve: int) -> None:
        keep = [sorted(data.draw(st.sets(st.sampled_from(range(len(head)))))) if head else [] for head in self.heads]
        self.cache.retain(0, [torch.tensor(rows, dtype=torch.int64) for rows in keep], reserve=reserve)
        self.heads = [[head[i] for i in rows] for head, rows in zip(self.heads, keep, strict=True)]
        lengths = [len(head) + reserve for head in self.heads]
        assert self.cache.layer(0).capacities == [n + CONFIG.slack(n) for n in lengths]  # memory is given back
        self.mark = None

    @rule(at=st.integers(0, 40))
    def forget_from(self, at: int) -> None:
        self.cache.forget_from(at)
        self.heads = [[token for token in head if token[1] < at] for head in self.heads]
        self.mark = None

    @rule()
    def take_mark(self) -> None:
        self.mark = self.cache.mark(), [len(head) for head in self.heads]

    @precondition(lambda self: self.mark is not None)
    @rule()
    def rollback(self) -> None:
        assert self.mark is not None
        self.cache.rollback(self.mark[0])
        self.heads = [head[:length] for head, length in zip(self.heads, self.mark[1], strict=True)]

    @invariant()
    def heads_are_the_model(self) -> None:
        if self.heads:
            layer = self.cache.layer(0)
            assert all(same(layer.head(i), head) for i, head in enumerate(self.heads))
            assert self.cache.entries == sum(map(len, self.heads))

    @invariant()
    def memory_is_what_is_claimed(self) -> None:
        if self.heads:
            layer = self.cache.layer(0)
            assert self.cache.nbytes == sum(layer.capacities) * ENTRY_BYTES
            assert all(n <= room for n, room in zip(layer.lengths, layer.capacities, strict=True))

    @invariant()
    def rectangles_are_the_heads(self) -> None:
        if self.heads:
            check_rectangle(self.cache.layer(0), 0, HEADS)
            check_rectangle(self.cache.layer(0), 2, 2)


def check_rectangle(layer: LayerCache, first: int, count: int) -> None:
    equal = len({(layer.lengths[i], layer.capacities[i]) for i in range(first, first + count)}) == 1
    assert layer.is_rectangular(first, count) == equal
    if equal:
        keys, values = layer.rectangle(first, count)
        for i in range(count):
            assert torch.equal(keys[i], layer.head(first + i)[0])
            assert torch.equal(values[i], layer.head(first + i)[1])
        assert keys.untyped_storage().data_ptr() == layer.keys.untyped_storage().data_ptr()  # a view


CacheMachine.TestCase.settings = settings(stateful_step_count=15)
TestRandomOperations = CacheMachine.TestCase


def rectangular(length: int) -> RaggedKVCache:
    cache = RaggedKVCache(num_layers=2, num_rows=ROWS, num_kv_heads=KV_HEADS, config=CONFIG)
    for layer in (0, 1):
        cache.store(layer, [tensors([(float(i * 10 + j), j) for j in range(length)]) for i in range(HEADS)])
    return cache


def test_appending_within_the_slack_moves_nothing() -> None:
    cache = rectangular(8)
    before, nbytes = cache.layer(0).keys.data_ptr(), cache.nbytes
    new = torch.ones(ROWS, KV_HEADS, 1, DIM)
    for step in range(CONFIG.slack(8)):
        cache.append(0, new, new, torch.full((ROWS, 1), 8 + step))
        assert cache.layer(0).is_rectangular(0, HEADS)
    assert (cache.layer(0).keys.data_ptr(), cache.nbytes) == (before, nbytes)
    cache.append(0, new, new, torch.full((ROWS, 1), 10))
    assert cache.layer(0).keys.data_ptr() != before
    assert cache.nbytes > nbytes


def test_storing_again_releases_what_was_there() -> None:
    cache = rectangular(40)
    large = cache.nbytes
    cache.store(0, [tensors([(1.0, 0)]) for _ in range(HEADS)])
    assert cache.layer(0).nbytes == HEADS * (1 + CONFIG.min_slack) * ENTRY_BYTES
    assert cache.nbytes == large // 2 + cache.layer(0).nbytes


def test_what_is_held_aside_counts_once() -> None:
    cache = rectangular(3)
    before, shared = cache.nbytes, torch.zeros(10)
    cache.count_aside([shared[:5], shared[5:], torch.zeros(3)])
    assert cache.nbytes == before + 40 + 12


def test_appending_to_an_empty_layer_stores() -> None:
    keys = torch.arange(24.0).view(ROWS, KV_HEADS, 2, 3)
    cache = RaggedKVCache(num_layers=2, num_rows=ROWS, num_kv_heads=KV_HEADS, config=CONFIG)
    cache.forget_from(0)
    cache.append(1, keys, -keys, torch.tensor([[0, 1], [5, 6]]))
    layer = cache.layer(1)
    for row in range(ROWS):
        for group in range(KV_HEADS):
            found = layer.head(row * KV_HEADS + group)
            assert torch.equal(found[0], keys[row, group])
            assert torch.equal(found[1], -keys[row, group])
            assert found[2].tolist() == [[0, 1], [5, 6]][row]
    with pytest.raises(RuntimeError, match="layer 0"):
        cache.layer(0)


def test_the_source_is_copied() -> None:
    head = tensors([(1.0, 0), (2.0, 1)])
    cache = RaggedKVCache(num_layers=1, num_rows=1, num_kv_heads=1)
    cache.store(0, [head])
    head[0].zero_()
    assert cache.layer(0).head(0)[0][1, 0] == 2.0


def test_a_layer_that_was_not_stored() -> None:
    cache = RaggedKVCache(num_layers=1, num_rows=1, num_kv_heads=1)
    assert (cache.nbytes, cache.entries) == (0, 0)
    with pytest.raises(RuntimeError, match="layer 0"):
        cache.layer(0)


@pytest.mark.parametrize(("length", "slack"), [(0, 16), (1024, 16), (1088, 17), (6400, 100)])
def test_slack(length: int, slack: int) -> None:
    assert CacheConfig().slack(length) == slack
