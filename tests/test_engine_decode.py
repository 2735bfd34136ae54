"""One token's attention over ragged heads in few calls is what attention of each head alone is."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support.families import shared_tiny
from support.operations import noise
from uncomp_cli.cache.packs import choose_buckets
from uncomp_cli.cache.ragged import Mark, RaggedKVCache
from uncomp_cli.cache.softmax import Form
from uncomp_cli.engine.forward import attention
from uncomp_cli.engine.forward.attention import AppendState, attend_cached

DIM, GROUPS, QUERIES = 8, 2, 3


def cache_of(lengths: list[list[int]], *, reserve: int = 4) -> RaggedKVCache:
    """One row of `GROUPS` heads for each of `lengths`."""
    rows = []
    for row, counts in enumerate(lengths):
        cache = RaggedKVCache(num_layers=1, num_rows=1, num_kv_heads=GROUPS)
        heads = [(noise(n, DIM, seed=row * 9 + i), noise(n, DIM, seed=row * 9 + i + 5)) for i, n in enumerate(counts)]
        cache.store(0, [(k, v, torch.arange(len(k))) for k, v in heads])
        rows.append(cache)
    return rows[0] if len(rows) == 1 else RaggedKVCache.stack(rows, reserve=reserve)


def expected(query: Tensor, cache: RaggedKVCache, form: Form) -> Tensor:
    """Each head's own softmax, entry by entry."""
    layer, grouped, outputs = cache.layer(0), query.reshape(-1, QUERIES, DIM), []
    for i, queries in enumerate(grouped):
        keys, values, _ = layer.head(i)
        if form.window is not None:
            keys, values = keys[-form.window :], values[-form.window :]
        scores = queries @ keys.T * 0.3
        if form.sinks is not None:
            group = i % GROUPS
            scores = torch.cat([scores, form.sinks[group * QUERIES : (group + 1) * QUERIES, None]], -1)
        outputs.append(scores.softmax(-1)[:, : len(values)] @ values)
    return torch.stack(outputs).view(query.shape)


@pytest.mark.parametrize("sunk", [False, True])
@pytest.mark.parametrize("window", [None, 6])
@pytest.mark.parametrize(
    "lengths",
    [
        [[5, 9]],
        [[9, 9]],
        [[3000, 2900]],
        [[5, 9], [9, 5], [30, 29]],
        [[400, 390], [395, 401], [1, 3], [60, 800], [402, 12], [399, 64]],
    ],
)
def test_attention_in_packs(lengths: list[list[int]], window: int | None, sunk: bool) -> None:
    form = Form(0.3, window, sinks=2 * noise(GROUPS * QUERIES, seed=8) if sunk else None)
    cache = cache_of(lengths)
    rows = len(lengths)
    for step in range(40):  # beyond the room there is: laid out anew on the way
        query, key, value = (noise(rows, n, 1, DIM, seed=step + n) for n in (GROUPS * QUERIES, GROUPS, GROUPS))
        cache.append(0, key, value, torch.full((rows, 1), 5000 + step))
        output = attend_cached(query, cache.layer(0), form)
        torch.testing.assert_close(output, expected(query, cache, form), atol=1e-5, rtol=0)
        if step == 10:
            cache.rollback(Mark([[length - 1 for length in cache.layer(0).lengths]]))
        if step == 20:
            cache = cache.rows(list(range(rows - 1, -1, -1)), reserve=5)
    several = noise(rows, GROUPS * QUERIES, 1, DIM, seed=3)
    torch.testing.assert_close(
        attend_cached(several, cache.layer(0), form),
        expected(several, cache, form),
        atol=1e-5,
        rtol=0,
    )


def test_many_rows_are_few_calls_and_little_waste() -> None:
    lengths = [[400 + 3 * row, 700 - 2 * row] for row in range(32)]
    cache = cache_of(lengths, reserve=16)
    packs = cache.layer(0).packs(QUERIES)
    assert packs is not None
    assert len(packs.packs) <= 6
    tight = sum(sum(row) for row in lengths) + 64 * 16
    assert len(cache.layer(0).keys) <= tight * 1.125 + 64 * 16
    assert cache.nbytes == len(cache.layer(0).keys) * (2 * 4 * DIM + 4)


def test_rows_are_dropped_and_repeated() -> None:
    cache = cache_of([[5, 9], [4, 4], [8, 2]])
    picked = cache.rows([2, 0, 2], reserve=3)
    for new, old in enumerate([2, 0, 2]):
        for group in range(GROUPS):
            pairs = zip(picked.layer(0).head(2 * new + group), cache.layer(0).head(2 * old + group), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)
    assert all(room >= n + 3 for room, n in zip(picked.layer(0).capacities, picked.layer(0).lengths, strict=True))


def test_buckets_hold_every_head_once_and_waste_an_eighth_at_most() -> None:
    lengths = torch.randint(0, 900, (96,), generator=torch.Generator().manual_seed(0)).tolist()
    buckets = choose_buckets(lengths, reserve=16)
    assert sorted(head for bucket in buckets for head in bucket) == list(range(96))
    for bucket in buckets:
        longest = max(lengths[i] for i in bucket)
        assert sum(longest - lengths[i] for i in bucket) * 8 <= len(bucket) * (longest + 16)


def test_one_token_passes_few_frames_on_its_way_to_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoder.forward → the stock model → the registered function → the state → attention, in two files."""
    _, decoder, spec = shared_tiny("llama")
    cache = cache_of_model(spec.num_layers, spec.num_kv_heads, spec.head_dim)
    kernel = torch.nn.functional.scaled_dot_product_attention
    ways: list[list[tuple[str, str]]] = []

    def watched(*args: Any, **keywords: Any) -> Tensor:
        frame, own = sys._getframe(1), []
        while frame is not None:
            if "uncomp_cli" in frame.f_code.co_filename:
                own.append((Path(frame.f_code.co_filename).name, frame.f_code.co_qualname))
            frame = frame.f_back
        ways.append(own[::-1])
        return kernel(*args, **keywords)

    monkeypatch.setattr(attention, "scaled_dot_product_attention", watched)
    monkeypatch.setattr(decoder, "_program", None)  # a step in one call has no frames of ours below it
    at = torch.tensor([[9]])
    decoder.forward(torch.tensor([[5]]), at, AppendState(cache, at), 1)
    assert len(ways) >= spec.num_layers
    for way in ways:
        assert way[0] == ("decoder.py", "Decoder.forward")
        assert len(way) <= 4
        assert len({file for file, _ in way}) <= 3


def cache_of_model(layers: int, groups: int, width: int) -> RaggedKVCache:
    """A cache of one row with heads of nine and eight tokens."""
    cache = RaggedKVCache(num_layers=layers, num_rows=1, num_kv_heads=groups)
    for layer in range(layers):
        heads = [(noise(9 - g, width, seed=g), noise(9 - g, width, seed=g + 5)) for g in range(groups)]
        cache.store(layer, [(k, v, torch.arange(len(k))) for k, v in heads])
    return cache
