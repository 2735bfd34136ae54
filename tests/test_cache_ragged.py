"""The ragged cache against lists of numbers."""

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant
from torch import Tensor

from support.operations import DIM, ENTRY_BYTES, HEADS, KV_HEADS, ROWS, CacheOperations
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.config import CacheConfig

CONFIG = CacheConfig(min_slack=2, slack_divisor=4)

Token = tuple[float, int]
"""What a model head holds for a token: a value that marks its key, and its position."""


def tensors(head: list[Token]) -> tuple[Tensor, Tensor, Tensor]:
    """Keys, values and positions of a list of tokens; keys and values tell themselves and their columns apart."""
    marks = torch.tensor([mark for mark, _ in head], dtype=torch.float32).reshape(-1, 1)
    keys = marks + torch.arange(DIM) / 8
    return keys, -keys, torch.tensor([at for _, at in head], dtype=torch.int32)


class CacheMachine(CacheOperations):
    """Of as many rows as are stored at once; its memory is known exactly."""

    @initialize(lengths=st.lists(st.integers(0, 6), min_size=HEADS, max_size=HEADS), reserve=st.integers(0, 3))
    def store(self, lengths: list[int], reserve: int) -> None:
        self.cache = RaggedKVCache(num_layers=1, num_rows=ROWS, num_kv_heads=KV_HEADS, config=CONFIG)
        self.heads = self.fresh(lengths)
        self.cache.store(0, self.heads, reserve=reserve)
        self.check_room(reserve)

    def check_room(self, reserve: int) -> None:
        """Memory is given back."""
        lengths = [len(at) + reserve for _, _, at in self.heads]
        assert self.cache.layer(0).capacities == [n + CONFIG.slack(n) for n in lengths]

    @invariant()
    def equal_heads_are_a_view(self) -> None:
        for first, count in ((0, HEADS), (2, 2)) if self.heads else ():
            layer = self.cache.layer(0)
            equal = len({(layer.lengths[i], layer.capacities[i]) for i in range(first, first + count)}) == 1
            assert layer.is_rectangular(first, count) == equal
            if equal:
                keys, _ = layer.rectangle(first, count)
                assert keys.untyped_storage().data_ptr() == layer.keys.untyped_storage().data_ptr()


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
