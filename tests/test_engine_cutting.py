"""Cutting a cache in use: allocated bytes stay within the plan's, whatever is yet to come."""

import pytest
import torch

from support.families import make_prompt, tiny
from uncomp_cli.budget.plan import BudgetPlan
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.cache.scorers import SCORERS, make_scorer
from uncomp_cli.config import CacheConfig, ScorerConfig
from uncomp_cli.engine.context.trim import cut_cache
from uncomp_cli.engine.forward.attention import AppendState
from uncomp_cli.engine.spend.allowance import within

LENGTH, RESERVE = 400, 32
KEYS_ALONE = sorted(name for name in SCORERS if not make_scorer(ScorerConfig(name)).needs_queries)


def filled(family: str, length: int = LENGTH) -> tuple[RaggedKVCache, torch.Tensor]:
    _, decoder, spec = tiny(family)
    cache = RaggedKVCache(num_layers=spec.num_layers, num_rows=1, num_kv_heads=spec.num_kv_heads)
    prompt = make_prompt(length, [8])
    at = torch.arange(length)[None]
    decoder.forward(torch.tensor([prompt.context.ids]), at, AppendState(cache, at), 1)
    return cache, prompt.context.protected


@pytest.mark.parametrize("scorer", KEYS_ALONE)
@pytest.mark.parametrize("family", ["llama", "mistral-sliding"])
def test_bytes_with_room_to_grow(family: str, scorer: str) -> None:
    _, decoder, spec = tiny(family)
    cache, protected = filled(family)
    plan = BudgetPlan(LENGTH, tuple((150, 90) for _ in range(spec.num_layers)))
    kept = tuple(
        tuple(count if window is None else min(window, LENGTH) for count in (150, 90)[: spec.num_kv_heads])
        for window in spec.sliding_windows
    )
    plan = BudgetPlan(LENGTH, kept)
    counts = within(plan, spec, reserve=RESERVE, config=cache.config)
    cut_cache(
        cache, counts, spec=spec, scorer=make_scorer(ScorerConfig(scorer)), config=ScorerConfig(scorer),
        protected=protected, words=torch.arange(LENGTH), reserve=RESERVE,
    )  # fmt: skip
    for index, window in enumerate(spec.sliding_windows):
        layer = cache.layer(index)
        most = sum(kept[index]) * spec.kv_bytes_per_entry
        assert window is not None or layer.lengths == counts[index]
        assert window is None or layer.lengths == [window] * spec.num_kv_heads
        assert window is not None or layer.nbytes <= most
        held = [layer.tail(head)[2].tolist() for head in range(spec.num_kv_heads)]
        assert window is not None or all(set(protected.nonzero().flatten().tolist()) <= set(at) for at in held)
    before = [cache.layer(index).nbytes for index in spec.full_layers]
    at = torch.arange(LENGTH, LENGTH + RESERVE)[None]
    decoder.forward(torch.tensor([[7] * RESERVE]), at, AppendState(cache, at), 1)
    assert [cache.layer(index).nbytes for index in spec.full_layers] == before  # the room was there


@pytest.mark.parametrize("count", [0, 1, 20, 60, 300, 1200, 5000])
def test_a_head_fits_into_its_share(count: int) -> None:
    _, _, spec = tiny("llama")
    config = CacheConfig()
    plan = BudgetPlan(LENGTH * 20, ((count,) * spec.num_kv_heads,) * spec.num_layers)
    (length, *_), *_ = within(plan, spec, reserve=RESERVE, config=config)
    allocated = length + RESERVE + config.slack(length + RESERVE)
    entry = spec.kv_bytes_per_entry + config.position_bytes
    assert length == 0 or allocated * entry <= count * spec.kv_bytes_per_entry
    longer = length + 3 + RESERVE
    assert (longer + config.slack(longer)) * entry > count * spec.kv_bytes_per_entry


def test_what_fits_is_left_alone() -> None:
    _, _, spec = tiny("llama")
    cache, protected = filled("llama")
    before = [cache.layer(index) for index in range(spec.num_layers)]
    counts = [[LENGTH] * spec.num_kv_heads] * spec.num_layers
    cut_cache(
        cache, counts, spec=spec, scorer=make_scorer(ScorerConfig("distinct")), config=ScorerConfig("distinct"),
        protected=protected, words=torch.arange(LENGTH),
    )  # fmt: skip
    assert all(cache.layer(index) is layer for index, layer in enumerate(before))
