"""Re-packing: what is held stands without gaps, the model sees what it would see of a text that has no more."""

import copy
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from support.chunks import CONFIG, allocation_of, assert_as_planned, positions_of, prompt_of
from support.families import (
    FAMILIES,
    SHAPE,
    assert_same,
    decode,
    exhaust,
    next_positions,
    planned_for,
    read,
    shared_tiny,
    tokens,
)
from uncomp_cli.budget.presets import Preset
from uncomp_cli.config import Limits, ScorerConfig
from uncomp_cli.engine.context.context import Context
from uncomp_cli.engine.forward.attention import AppendState
from uncomp_cli.engine.forward.decoder import Decoder, rope_frequencies
from uncomp_cli.engine.read.distances import Reach, packed
from uncomp_cli.engine.read.overkeep import BETWEEN_CHUNKS
from uncomp_cli.engine.read.reader import Reader
from uncomp_cli.engine.records import PrefillStep
from uncomp_cli.engine.spend.allocation import Allocation
from uncomp_cli.engine.spend.compression import Compression, plan_compression
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.errors import DoesNotFitError, ModelError
from uncomp_cli.models.shape import spec_from_config
from uncomp_cli.spec import ModelSpec

ONE_ROPE = [name for name in FAMILIES if "sliding" not in name and not name.startswith(("gemma2", "gemma3", "smollm3"))]
PLENTY = 10**12


def one_layer(family: str) -> tuple[Any, Decoder, ModelSpec]:
    """A stock model of one layer and one KV head, whose keys know no other token, and an engine over its weights."""
    name, extra = FAMILIES[family]
    changes = {"num_hidden_layers": 1, "num_key_value_heads": 1}
    if "layer_types" in extra:
        changes["layer_types"] = extra["layer_types"][:1]
    config = getattr(transformers, f"{name}Config")(**{**SHAPE, **extra, **changes})
    torch.manual_seed(0)
    stock = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    stock.set_attn_implementation("eager")
    spec = spec_from_config(config, "float32")
    return stock, Decoder(copy.deepcopy(stock), spec), spec


def in_chunks(decoder: Decoder, prompt: Prompt, allocation: Allocation) -> Compression:
    """Chunks of 100, before which what is held is re-packed."""
    return replace(planned_for(decoder, prompt, allocation, CONFIG, chunk=100), repack=True)


def repacked(decoder: Decoder, prompt: Prompt, allocation: Allocation) -> tuple[list[PrefillStep], Context]:
    return exhaust(Reader(decoder, in_chunks(decoder, prompt, allocation)).read())


@pytest.mark.parametrize("family", ONE_ROPE)
def test_keys_are_those_of_the_places_they_are_moved_to(family: str) -> None:
    stock, _, _ = one_layer(family)
    ids, at = tokens(9, 1), torch.tensor([0, 1, 5, 6, 7, 30, 31, 90, 120])
    keys_at = partial(_keys_of, stock, ids)
    (moved,) = packed([(keys_at(at), keys_at(at), at.to(torch.int32))], 200, rope_frequencies(stock))
    assert_same(moved[0], keys_at(torch.arange(191, 200)))
    assert moved[2].tolist() == at.tolist()


def _keys_of(stock: Any, ids: tuple[int, ...], at: Tensor) -> Tensor:
    """Keys [N, D] of the only head of the only layer, with tokens at positions `at`."""
    cache = transformers.DynamicCache()
    stock(torch.tensor([ids]), position_ids=at[None], past_key_values=cache, use_cache=True)
    keys: Tensor = cache.layers[0].keys[0, 0]
    return keys.detach()


@pytest.mark.parametrize("family", ONE_ROPE)
def test_the_model_sees_a_text_of_what_is_held(family: str) -> None:
    """With one layer keys do not depend on what was evicted: the stock model, given the rest alone, is the oracle."""
    stock, decoder, spec = one_layer(family)
    prompt = prompt_of(words=False)
    reader = Reader(decoder, in_chunks(decoder, prompt, allocation_of("uniform", spec, prompt, kept=0.2)))
    for chunk in reader.chunks:
        held = reader.cache.layer(0).head(0)[2].tolist() if chunk.first else []
        logits = reader.read_chunk(chunk)[-1]
    assert len(held) < chunk.first
    everything = (*prompt.context, *prompt.questions[0])
    left = [*(everything[i] for i in held), *everything[chunk.first :]]
    with torch.no_grad():
        assert_same(logits, stock(torch.tensor([left])).logits[0, -1])


def test_gaps_do_not_change_what_follows() -> None:
    """Decoding behind a re-packed prompt, token by token, is what one pass over its answer gives."""
    _, decoder, spec = shared_tiny("llama")
    prompt, forced = prompt_of(), torch.tensor([tokens(6, 9)])
    _, done = repacked(decoder, prompt, allocation_of("uniform", spec, prompt, kept=0.2))
    one_by_one = decode(decoder, done, forced)
    done.begin(0)
    positions = next_positions(done, 0) + torch.arange(forced.shape[1])
    at_once = decoder.forward(forced, positions, AppendState(done.cache, positions), forced.shape[1])
    assert_same(one_by_one[0], at_once[0])


@pytest.mark.parametrize("policy", ["uniform", "adaptive", "uncertain:by=entropy"])
def test_budgets_are_exact_and_positions_stay_those_of_the_text(policy: str) -> None:
    _, decoder, spec = shared_tiny("llama")
    prompt = prompt_of()
    allocation = allocation_of(policy, spec, prompt, kept=0.15)
    _, done = repacked(decoder, prompt, allocation)
    assert_as_planned(done, allocation.plan, prompt)


def test_nothing_evicted_nothing_moved() -> None:
    _, decoder, spec = shared_tiny("llama")
    prompt = prompt_of()
    plan = allocation_of("uniform", spec, prompt, kept=1.0)
    _, moved = repacked(decoder, prompt, plan)
    _, left = read(decoder, prompt, allocation_of("uniform", spec, prompt, kept=1.0), CONFIG, chunk=100)
    assert_same(moved.questions.logits, left.questions.logits)


def test_re_packing_changes_what_is_seen() -> None:
    _, decoder, spec = shared_tiny("llama")
    prompt = prompt_of()
    _, moved = repacked(decoder, prompt, allocation_of("uniform", spec, prompt, kept=0.15))
    _, left = read(decoder, prompt, allocation_of("uniform", spec, prompt, kept=0.15), CONFIG, chunk=100)
    assert not torch.allclose(moved.questions.logits, left.questions.logits, atol=1e-2)


@pytest.mark.sparse(1)
@pytest.mark.parametrize("budget", ["full", "90%", "30%", "64"])
@pytest.mark.parametrize("policy", ["uniform", "uncertain:by=entropy", "adaptive"])
def test_no_distance_is_longer_than_the_reach(policy: str, budget: str) -> None:
    _, decoder, spec = shared_tiny("llama")
    prompt, reach = prompt_of(context=900), 512
    preset = Preset("test", "", budget=budget, policy=policy, scorer=CONFIG)
    planned = plan_compression(spec, preset, prompt, available=PLENTY, reach=Reach(reach))
    assert planned.repack
    assert planned.chunk_tokens == reach // 4
    between = max(int(BETWEEN_CHUNKS * count) for layer in planned.allocation.plan.kept for count in layer)
    assert between + planned.chunk_tokens <= reach
    _, done = exhaust(Reader(decoder, planned).read())
    assert max(len(head) for layer in positions_of(done.cache) for head in layer) < reach


def test_a_prompt_within_reach_is_read_as_ever() -> None:
    spec = shared_tiny("llama")[2]
    preset = Preset("test", "", budget="50%", policy="uniform", scorer=CONFIG)
    planned = plan_compression(spec, preset, prompt_of(context=100), available=PLENTY, reach=Reach(512))
    assert not planned.repack
    assert planned.chunk_tokens is None


def test_a_chunk_that_leaves_no_room_is_refused() -> None:
    spec = shared_tiny("llama")[2]
    preset = Preset("test", "", budget="10%", policy="uniform", scorer=CONFIG)
    with pytest.raises(DoesNotFitError, match="500 tokens") as caught:
        plan_compression(
            spec, preset, prompt_of(context=900), available=PLENTY, reach=Reach(512), limits=Limits(chunk_tokens=500)
        )
    assert "--chunk 128" in caught.value.hint


@pytest.mark.parametrize("family", ["gemma3_text", "smollm3"])
def test_layers_that_turn_differently_are_refused(family: str) -> None:
    _, decoder, spec = shared_tiny(family)
    preset = Preset("test", "", budget="30%", policy="uniform", scorer=replace(ScorerConfig(), window=8))
    planned = plan_compression(spec, preset, prompt_of(context=900), available=PLENTY, reach=Reach(512))
    with pytest.raises(ModelError, match="cannot be re-packed"):
        exhaust(Reader(decoder, planned).read())
