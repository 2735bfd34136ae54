"""Quantised heads against the numbers they came from, and the cache that holds them against lists of entries."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize
from torch import Tensor

from support.operations import DIM, HEADS, KV_HEADS, CacheOperations, head, noise
from uncomp_cli.cache.quantized import QuantizedHead, quantize_head, spread
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.config import CacheConfig

SMALL = CacheConfig(min_slack=2, slack_divisor=4, group=2)
BITS = pytest.mark.parametrize("bits", [8, 4])


def keys_of(quantized: QuantizedHead, dtype: torch.dtype = torch.float32) -> Tensor:
    """The dequantised keys [S, D]."""
    out = torch.empty(len(quantized), quantized.head_dim, dtype=dtype)
    quantized.write_keys(out)
    return out


def values_of(quantized: QuantizedHead, dtype: torch.dtype = torch.float32) -> Tensor:
    """The dequantised values [S, D]."""
    out = torch.empty(len(quantized), quantized.head_dim, dtype=dtype)
    quantized.write_values(out)
    return out


def wide(scales: Tensor, quantized: QuantizedHead) -> Tensor:
    """The scale [S, D] of every number."""
    return scales.float().repeat_interleave(quantized.group, dim=1)[:, : quantized.head_dim]


def errors(keys: Tensor, values: Tensor, quantized: QuantizedHead) -> list[tuple[Tensor, Tensor, Tensor]]:
    """What was quantised, the error of each number and its scale, of keys as they are quantised and of values."""
    channels = keys.shape[1] & -keys.shape[1]
    turned, back = (spread(each) / channels for each in (keys, keys_of(quantized)))
    return [
        (turned, (turned - back).abs(), wide(quantized.key_scales, quantized)),
        (values, (values - values_of(quantized)).abs(), wide(quantized.value_scales, quantized)),
    ]


@BITS
@given(
    length=st.integers(1, 9), dim=st.integers(1, 5), seed=st.integers(0, 99),
    size=st.sampled_from([1e-9, 1e-3, 1.0, 300.0, 6e4]), offset=st.sampled_from([0.0, 1.0, -20.0]),
)  # fmt: skip
def test_the_error_is_half_a_scale(bits: int, length: int, dim: int, seed: int, size: float, offset: float) -> None:
    keys, values, at = head(length, dim, seed=seed)
    keys, values = ((size * (x + offset)).clamp(-65504, 65504) for x in (keys, values))
    quantized = quantize_head(keys, values, at, bits, config=SMALL)
    for x, error, scales in errors(keys, values, quantized):
        rounding = 1e-6 * (x.abs().amax(1, keepdim=True) + 2**bits * scales)
        assert (error <= scales / 2 + rounding).all()
    alike = values[:, :2]
    spreads = alike.amax(1) - alike.amin(1)
    # A scale is no wider than its numbers need: float16's own rounding of zero and scale apart.
    allowed = (spreads + alike.abs().amax(1) * 2e-3) / (2**bits - 1) * 1.002 + 1.3e-7
    assert (quantized.value_scales[:, 0] <= allowed).all()


def test_products_with_turned_queries_are_those_of_the_keys() -> None:
    keys, queries = noise(5, 80), noise(3, 80, seed=1)
    torch.testing.assert_close(spread(queries) @ (spread(keys) / 16).T, queries @ keys.T)
    torch.testing.assert_close(spread(spread(keys)) / 16, keys)


@BITS
@pytest.mark.parametrize("constant", [0.0, 1.0, -3.5, 0.1, 1e-12, 60000.0])
def test_constant_channels(bits: int, constant: float) -> None:
    flat = torch.full((70, 3), constant)
    quantized = quantize_head(flat, flat, torch.arange(70), bits)
    for back in (keys_of(quantized), values_of(quantized)):
        assert (back - flat).abs().max() <= abs(constant) * 2**-10 / (2**bits - 1) + 6e-8
    if constant in (0.0, 1.0, -3.5):
        assert torch.equal(keys_of(quantized), flat)


@BITS
@pytest.mark.parametrize("odd_one", [torch.nan, torch.inf, -torch.inf])
def test_numbers_that_are_not_finite_spoil_no_others(bits: int, odd_one: float) -> None:
    keys, values, at = head(6, 4)
    keys[2, 1] = values[2, 1] = odd_one
    quantized = quantize_head(keys, values, at, bits, config=SMALL)
    others = torch.tensor([0, 1, 3, 4, 5])
    alone = quantize_head(keys[others], values[others], at[others], bits, config=SMALL)
    assert all(
        map(torch.equal, (quantized.take(others).key_codes, quantized.key_codes[others]), (alone.key_codes,) * 2)
    )
    for x, back in ((keys, keys_of(quantized)), (values, values_of(quantized))):
        assert back.isfinite().all()
        finite = x[2][x[2].isfinite()]
        wanted = finite.max() if odd_one == torch.inf else finite.min()
        if x is keys:
            assert back[2, 1] == pytest.approx(float(wanted), abs=0.5)
    nothing = quantize_head(torch.full((3, 2), odd_one), torch.full((3, 2), odd_one), torch.arange(3), bits)
    assert torch.equal(keys_of(nothing), torch.zeros(3, 2))


@BITS
@pytest.mark.parametrize("dim", [1, 3, 64, 80, 128])
@pytest.mark.parametrize("length", [0, 1, 63, 64, 65, 200])
def test_bytes_are_those_of_the_formula(bits: int, dim: int, length: int) -> None:
    quantized = quantize_head(*head(length, dim), bits)
    assert quantized.nbytes == length * CacheConfig().entry_bytes(head_dim=dim, bits=bits)
    assert len(quantized) == length
    assert keys_of(quantized).shape == values_of(quantized).shape == (length, dim)


@pytest.mark.parametrize(("bits", "fraction"), [(8, 0.2734), (4, 0.1641)])
def test_the_fraction_of_a_float32_cache(bits: int, fraction: float) -> None:
    assert quantize_head(*head(6400, 64), bits).nbytes / (6400 * 64 * 4 * 2) == pytest.approx(fraction, abs=5e-4)


def test_codes_share_bytes() -> None:
    quantized = quantize_head(*head(16, 10), 4)
    assert quantized.value_codes.shape == (16, 5)
    assert quantized.key_codes.shape == (16, 5 + 2)  # a fifth bit more
    assert quantized.key_codes[:, 5:].any()


@BITS
@given(mine=st.sets(st.integers(0, 9)))
def test_what_is_joined_lies_by_its_positions(bits: int, mine: set[int]) -> None:
    quantized = quantize_head(*head(10, 3), bits, config=SMALL)
    here, there = (torch.tensor(sorted(some), dtype=torch.int64) for some in (mine, set(range(10)) - mine))
    joined = quantized.take(here).joined(quantized.take(there))
    assert joined.positions.tolist() == list(range(10))
    assert torch.equal(keys_of(joined), keys_of(quantized))
    assert torch.equal(values_of(joined), values_of(quantized))
    assert joined.nbytes == quantized.nbytes


@BITS
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_rounded_once(bits: int, dtype: torch.dtype) -> None:
    quantized = quantize_head(*head(70, 80), bits)
    for kind in (keys_of, values_of):
        back = kind(quantized, dtype)
        assert back.dtype == dtype
        torch.testing.assert_close(back, kind(quantized).to(dtype), rtol=1e-6, atol=1e-6)


@BITS
@given(keep=st.sets(st.integers(0, 9)))
def test_what_is_taken_keeps_its_codes(bits: int, keep: set[int]) -> None:
    quantized = quantize_head(*head(10, 5), bits, config=SMALL)
    rows = torch.tensor(sorted(keep), dtype=torch.int64)
    taken = quantized.take(rows)
    assert torch.equal(taken.key_codes, quantized.key_codes[rows])
    assert torch.equal(keys_of(taken), keys_of(quantized)[rows])
    assert torch.equal(values_of(taken), values_of(quantized)[rows])
    assert taken.positions.tolist() == sorted(keep)
    again = torch.arange(len(keep) // 2)
    assert torch.equal(keys_of(taken.take(again)), keys_of(taken)[again])
    assert taken.nbytes <= quantized.nbytes
    assert (taken.nbytes < quantized.nbytes) == (len(keep) < 10)


class QuantizedCacheMachine(CacheOperations):
    """Of two rows, each of its own bits, that are stacked."""

    @initialize(
        lengths=st.lists(st.integers(0, 9), min_size=HEADS, max_size=HEADS),
        bits=st.tuples(st.sampled_from([16, 8, 4]), st.sampled_from([16, 8, 4])),
        reserve=st.integers(0, 3),
    )
    def store(self, lengths: list[int], bits: tuple[int, int], reserve: int) -> None:
        stored, caches = self.fresh(lengths), []
        for row, row_bits in enumerate(bits):
            cache = RaggedKVCache(num_layers=1, num_rows=1, num_kv_heads=KV_HEADS, config=SMALL, kv_bits=row_bits)
            mine = stored[row * KV_HEADS : (row + 1) * KV_HEADS]
            cache.store(0, mine, reserve=reserve)
            caches.append(cache)
            for keys, values, at in mine:
                if row_bits != 16:
                    quantized = quantize_head(keys, values, at, row_bits, config=SMALL)
                    keys, values = keys_of(quantized), values_of(quantized)
                self.heads.append((keys, values, at))
        self.cache = RaggedKVCache.stack(caches, reserve=reserve)
        tails = [length if bits[i // KV_HEADS] == 16 else 0 for i, length in enumerate(lengths)]
        room = [n + reserve + SMALL.slack(n + reserve) for n in tails]
        assert all(map(int.__ge__, self.cache.layer(0).capacities, room))


QuantizedCacheMachine.TestCase.settings = settings(stateful_step_count=12)
TestRandomOperations = QuantizedCacheMachine.TestCase


def stored(bits: int, lengths: tuple[int, int], *, seed: int = 0, num_layers: int = 2) -> RaggedKVCache:
    cache = RaggedKVCache(num_layers=num_layers, num_rows=1, num_kv_heads=2, config=SMALL, kv_bits=bits)
    for layer in range(num_layers):
        cache.store(layer, [head(n, DIM, seed=seed + 10 * layer + i) for i, n in enumerate(lengths)], reserve=2)
        cache.extend(layer, [head(1, DIM, seed=seed + 50 + i, first=20) for i in range(2)])
    return cache


@BITS
def test_equal_heads_are_a_rectangle(bits: int) -> None:
    layer = stored(bits, (5, 5)).layer(0)
    assert layer.is_rectangular(0, 2)
    keys, values = layer.rectangle(0, 2)
    assert keys.shape == values.shape == (2, 6, DIM)
    assert not stored(bits, (5, 6)).layer(0).is_rectangular(0, 2)


@BITS
def test_growing_quantises_nothing_twice(bits: int) -> None:
    cache = stored(bits, (9, 4))
    before = list(cache.layer(0).quantized)
    cache.append(0, torch.ones(1, 2, 30, DIM), torch.ones(1, 2, 30, DIM), torch.arange(21, 51)[None])
    assert all(a is b for a, b in zip(before, cache.layer(0).quantized, strict=True))
    assert cache.layer(0).lengths == [31, 31]
    cache.forget_from(3)
    assert cache.layer(0).lengths == [0, 0]
    assert [cache.layer(0).num_quantized(i) for i in (0, 1)] == [3, 3]
    assert torch.equal(cache.layer(0).quantized[0].key_codes, before[0].key_codes[:3])


@BITS
def test_what_is_retained_of_codes_and_of_the_tail(bits: int) -> None:
    cache = RaggedKVCache(num_layers=1, num_rows=1, num_kv_heads=1, config=SMALL, kv_bits=bits)
    cache.store(0, [head(5, 3)], reserve=4)
    cache.extend(0, [head(4, 3, seed=7, first=5)])
    keys, values, positions = cache.layer(0).head(0)
    rows = torch.tensor([1, 4, 6, 8])  # two of the five in codes, two of the four behind them
    cache.retain(0, [rows])
    kept = cache.layer(0).head(0)
    assert all(map(torch.equal, kept, (keys[rows], values[rows], positions[rows])))
    assert cache.layer(0).num_quantized(0) == 2


def test_what_is_appended_to_an_empty_layer_is_not_quantised() -> None:
    cache = RaggedKVCache(num_layers=1, num_rows=1, num_kv_heads=2, config=SMALL, kv_bits=4)
    keys = noise(1, 2, 5, DIM)
    cache.append(0, keys, -keys, torch.arange(5)[None])
    assert torch.equal(cache.layer(0).head(1)[0], keys[0, 1])


def test_rows_of_several_bits_and_lengths_are_stacked() -> None:
    caches = [stored(16, (7, 2)), stored(8, (5, 5), seed=100), stored(4, (0, 9), seed=200)]
    sizes, lengths = [cache.nbytes for cache in caches], [cache.mark() for cache in caches]
    apart = [[[t.clone() for t in c.layer(x).head(g)] for g in (0, 1)] for c in caches for x in (0, 1)]
    stacked = RaggedKVCache.stack(caches, reserve=4)
    assert (stacked.num_rows, stacked.num_kv_heads, len(stacked.layers)) == (3, 2, 2)
    assert stacked.entries == sum(cache.entries for cache in caches)
    added = noise(3, 2, 20, DIM, seed=9)
    positions = torch.arange(21, 41) + torch.tensor([[0], [100], [200]])
    mark = stacked.mark()
    for layer in (0, 1):
        stacked.append(layer, added, -added, positions)
    for row, (cache, size, length) in enumerate(zip(caches, sizes, lengths, strict=True)):
        assert (cache.nbytes, cache.mark()) == (size, length)
        for layer in (0, 1):
            for g in (0, 1):
                keys, values, at = stacked.layer(layer).head(2 * row + g)
                old = apart[2 * row + layer][g]
                assert torch.equal(keys, torch.cat([old[0], added[row, g]]))
                assert torch.equal(values, torch.cat([old[1], -added[row, g]]))
                assert at.tolist() == [*old[2].tolist(), *positions[row].tolist()]
                assert all(torch.equal(a, b) for a, b in zip(cache.layer(layer).head(g), old, strict=True))
    stacked.rollback(mark)
    assert stacked.entries == sum(cache.entries for cache in caches)


@BITS
def test_the_source_is_copied(bits: int) -> None:
    keys, values, at = head(6, 4)
    quantized = quantize_head(keys, values, at, bits)
    before = keys_of(quantized), values_of(quantized), quantized.positions.clone()
    for tensor in (keys, values, at):
        tensor.fill_(77)
    after = keys_of(quantized), values_of(quantized), quantized.positions
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_only_caches_of_one_model_are_stacked() -> None:
    with pytest.raises(ValueError, match="2 kinds"):
        RaggedKVCache.stack([stored(8, (1, 1)), stored(8, (1, 1), num_layers=1)], reserve=0)
    with pytest.raises(ValueError, match="0 kinds"):
        RaggedKVCache.stack([], reserve=0)
    with pytest.raises(ValueError, match="kv_bits is 6"):
        RaggedKVCache(num_layers=1, num_rows=1, num_kv_heads=1, kv_bits=6)
