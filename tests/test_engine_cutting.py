"""Cutting a cache in use: allocated bytes stay within the plan's, whatever is yet to come."""

from dataclasses import replace

import pytest
import torch

from support.families import make_prompt, tiny
from uncomp_cli.budget.plan import BudgetPlan
from uncomp_cli.budget.presets import load_preset
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.cache.scorers import SCORERS, make_scorer
from uncomp_cli.config import CacheConfig, Limits, ScorerConfig
from uncomp_cli.engine.context.allowance import Counts, TextBudget, within
from uncomp_cli.engine.forward.attention import AppendState
from uncomp_cli.engine.tokens.tokens import Tokens

LENGTH, RESERVE = 400, 32
KEYS_ALONE = sorted(name for name in SCORERS if not make_scorer(ScorerConfig(name)).needs_queries)


def filled(family: str, length: int = LENGTH) -> tuple[RaggedKVCache, Tokens]:
    _, decoder, spec = tiny(family)
    cache = RaggedKVCache(num_layers=spec.num_layers, num_rows=1, num_kv_heads=spec.num_kv_heads)
    prompt = make_prompt(length, [8])
    at = torch.arange(length)[None]
    decoder.forward(torch.tensor([prompt.context.ids]), at, AppendState(cache, at), 1)
    return cache, prompt.context


def cut(cache: RaggedKVCache, text: Tokens, counts: list[list[int]], *, scorer: str, family: str, reserve: int) -> None:
    preset = replace(load_preset("full"), scorer=ScorerConfig(scorer))
    budget = TextBudget(tiny(family)[2], preset, Limits(), 1024, reserve, guard_from=len(text))
    budget.cut(cache, text, Counts(counts, 1.0), frequencies=None)


@pytest.mark.parametrize("scorer", KEYS_ALONE)
@pytest.mark.parametrize("family", ["llama", "mistral-sliding"])
def test_bytes_with_room_to_grow(family: str, scorer: str) -> None:
    _, decoder, spec = tiny(family)
    cache, text = filled(family)
    plan = BudgetPlan(LENGTH, tuple((150, 90) for _ in range(spec.num_layers)))
    kept = tuple(
        tuple(count if window is None else min(window, LENGTH) for count in (150, 90)[: spec.num_kv_heads])
        for window in spec.sliding_windows
    )
    plan = BudgetPlan(LENGTH, kept)
    counts = within(plan, spec, reserve=RESERVE, config=cache.config)
    cut(cache, text, counts, scorer=scorer, family=family, reserve=RESERVE)
    for index, window in enumerate(spec.sliding_windows):
        layer = cache.layer(index)
        most = sum(kept[index]) * spec.kv_bytes_per_entry
        assert window is not None or layer.lengths == counts[index]
        assert window is None or layer.lengths == [window] * spec.num_kv_heads
        assert window is not None or layer.nbytes <= most
        held = [layer.tail(head)[2].tolist() for head in range(spec.num_kv_heads)]
        assert window is not None or all(set(text.protected.nonzero().flatten().tolist()) <= set(at) for at in held)
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
    cache, text = filled("llama")
    before = [cache.layer(index) for index in range(spec.num_layers)]
    counts = [[LENGTH] * spec.num_kv_heads] * spec.num_layers
    cut(cache, text, counts, scorer="distinct", family="llama", reserve=0)
    assert all(cache.layer(index) is layer for index, layer in enumerate(before))
