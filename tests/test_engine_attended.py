"""The replay of an answer against the stock model's attention, and how much of each token a cache holds."""

from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from uncomp_cli.cache.layer import Head
from uncomp_cli.cache.ragged import RaggedKVCache, survival
from uncomp_cli.engine.forward.attention import AppendState
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.look import replay as looking
from uncomp_cli.engine.look.replay import Replay, attended_by
from uncomp_cli.models.shape import spec_from_config

LAYERS, HEADS, KV_HEADS, WINDOW = 4, 4, 2, 5
SHAPE: dict[str, Any] = {
    "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "hidden_size": 32,
    "intermediate_size": 48, "vocab_size": 61, "max_position_embeddings": 256, "initializer_range": 0.3,
    "pad_token_id": 0,
}  # fmt: skip
SLIDING = {
    "use_sliding_window": True, "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
}  # fmt: skip
SUNK = {"head_dim": 8, "layer_types": ["full_attention"] * 4, "num_local_experts": 2, "num_experts_per_tok": 1}
PROMPT = [7, 3, 11, 19, 2, 23, 5, 31, 13, 17]
ANSWER = [4, 8, 15, 16]
FIRST = len(PROMPT) - 1


@pytest.fixture(scope="module", params=["llama", "qwen2-sliding", "gpt_oss"])
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    if request.param == "llama":
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SHAPE)).eval()
    if request.param == "gpt_oss":
        return transformers.GptOssForCausalLM(transformers.GptOssConfig(**SHAPE, **SUNK)).eval()
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SHAPE, **SLIDING)).eval()


@pytest.fixture(scope="module")
def stock(model: Any) -> Tensor:
    """The stock model's attention [full layers, H, N, S] of the queries that chose the answer."""
    plain = type(model)(model.config).eval()
    plain.load_state_dict(model.state_dict())
    plain.set_attn_implementation("eager")
    with torch.no_grad():
        given = plain(torch.tensor([PROMPT + ANSWER]), output_attentions=True).attentions
    full = spec_from_config(model.config, "float32").full_layers
    return torch.stack([given[layer][0, :, FIRST : FIRST + len(ANSWER), :FIRST] for layer in full])


@pytest.fixture(scope="module")
def decoder(model: Any, stock: Tensor) -> Decoder:
    return Decoder(model, spec_from_config(model.config, "float32"))


def read(decoder: Decoder, ids: list[int], *, kv_bits: int = 16) -> RaggedKVCache:
    cache = RaggedKVCache(num_layers=LAYERS, num_rows=1, num_kv_heads=KV_HEADS, kv_bits=kv_bits)
    add(decoder, cache, ids, 0)
    return cache


def add(decoder: Decoder, cache: RaggedKVCache, ids: list[int], first: int) -> Tensor:
    positions = torch.arange(first, first + len(ids))[None]
    return decoder.forward(torch.tensor([ids]), positions, AppendState(cache, positions), len(ids))


def replay(decoder: Decoder, cache: RaggedKVCache, *, sinks: int = 0, **keywords: Any) -> Tensor:
    return attended_by(decoder, cache, [PROMPT[-1], *ANSWER[:-1]], FIRST, sinks=sinks, **keywords)


def held_bytes(cache: RaggedKVCache) -> list[Tensor]:
    return [part.clone() for i in range(LAYERS) for head in range(KV_HEADS) for part in cache.layer(i).head(head)]


def test_a_full_cache_gives_the_stock_models_attention(decoder: Decoder, stock: Tensor) -> None:
    mass = replay(decoder, read(decoder, PROMPT))
    torch.testing.assert_close(mass, stock.amax(dim=(0, 1)).mean(0), atol=1e-5, rtol=1e-4)
    even = [[2.0] * KV_HEADS] * LAYERS
    mass = replay(decoder, read(decoder, PROMPT), heads=even)
    torch.testing.assert_close(mass, stock.mean(dim=(0, 1, 2)), atol=1e-5, rtol=1e-4)
    assert 0 < float(mass.sum()) <= 1


def test_sinks_have_none(decoder: Decoder) -> None:
    cache = read(decoder, PROMPT)
    every, rest = replay(decoder, cache), replay(decoder, cache, sinks=2)
    assert rest[:2].tolist() == [0.0, 0.0]
    assert torch.equal(rest[2:], every[2:])


def test_heads_are_weighed_by_trust(decoder: Decoder, stock: Tensor) -> None:
    trust = [[float(layer + head) for head in range(KV_HEADS)] for layer in range(LAYERS)]
    weights = torch.tensor([trust[layer] for layer in decoder.spec.full_layers]).repeat_interleave(2, dim=1)
    expected = (stock.mean(dim=2) * weights[..., None]).sum(dim=(0, 1)) / weights.sum()
    torch.testing.assert_close(replay(decoder, read(decoder, PROMPT), heads=trust), expected, atol=1e-5, rtol=1e-4)


def test_trust_in_nobody_is_no_attention(decoder: Decoder) -> None:
    nobody = [[0.0] * KV_HEADS] * LAYERS
    assert not replay(decoder, read(decoder, PROMPT), heads=nobody).any()


def test_an_answer_that_lies_behind_is_not_seen_and_nothing_changes(decoder: Decoder) -> None:
    cache = read(decoder, PROMPT)
    expected = replay(decoder, cache)
    add(decoder, cache, [40, 41, 42], len(PROMPT))
    before, nbytes = held_bytes(cache), cache.nbytes
    assert torch.equal(replay(decoder, cache), expected)
    assert cache.nbytes == nbytes
    assert all(map(torch.equal, before, held_bytes(cache)))


def late(head: Head, position: int) -> Head:
    """Copies of a head's entries from `position` on."""
    keys, values, positions = (part[head[2] >= position].clone() for part in head)
    return keys, values, positions


def test_a_question_that_waits_beside_the_cache(decoder: Decoder) -> None:
    whole = read(decoder, PROMPT)
    expected = replay(decoder, whole)
    behind = [[late(whole.layer(i).head(g), 6) for g in range(KV_HEADS)] for i in range(LAYERS)]
    whole.forget_from(6)
    add(decoder, whole, [50, 51, 52, 53], 6)  # of an earlier question
    torch.testing.assert_close(replay(decoder, whole, behind=behind), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("heads", [None, [[1.0, 3.0]] * LAYERS])
def test_replaying_in_blocks_is_replaying_at_once(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, heads: list[list[float]] | None
) -> None:
    cache = read(decoder, PROMPT)
    expected = replay(decoder, cache, heads=heads)
    monkeypatch.setattr(looking, "_BLOCK", 3)
    torch.testing.assert_close(replay(decoder, cache, heads=heads), expected, atol=1e-6, rtol=1e-5)


def test_the_replay_predicts_what_decoding_predicts(decoder: Decoder) -> None:
    """Behind an evicted cache too, each head of which holds other tokens."""
    cache = read(decoder, PROMPT[:-1])
    for index in decoder.spec.full_layers:
        cache.retain(index, [torch.tensor([0, 2, 5, 7, 8]), torch.tensor([0, 1, 3, 8])], reserve=8)
    ids = [PROMPT[-1], *ANSWER]
    positions = torch.arange(FIRST, FIRST + len(ids))[None]
    state = Replay(cache, decoder.spec, FIRST)
    replayed = decoder.forward(torch.tensor([ids]), positions, state, len(ids))
    torch.testing.assert_close(replayed, add(decoder, cache, ids, FIRST), atol=1e-5, rtol=1e-4)
    evicted = state.mass(sinks=0)[[4, 6]]
    assert evicted.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("kv_bits", [16, 8])
def test_survival_is_the_share_of_heads(kv_bits: int) -> None:
    cache = RaggedKVCache(num_layers=2, num_rows=1, num_kv_heads=2, kv_bits=kv_bits)
    kept = [[[0, 1, 4], [0, 4]], [[0, 1, 2, 3, 4], [0, 1]]]
    for layer, heads in enumerate(kept):
        filled = [(torch.randn(len(at), 8), torch.randn(len(at), 8), torch.tensor(at)) for at in heads]
        cache.store(layer, [(k, v, at.to(torch.int32)) for k, v, at in filled], reserve=1)
        cache.append(layer, torch.randn(1, 2, 1, 8), torch.randn(1, 2, 1, 8), torch.tensor([[5]]))
    assert survival(cache, 6).tolist() == [1.0, 0.75, 0.25, 0.25, 0.75, 1.0]
    assert survival(cache, 4, layers=[0]).tolist() == [1.0, 0.5, 0.0, 0.0]
    assert survival(cache, 7, layers=[1]).tolist() == [1.0, 1.0, 0.5, 0.5, 0.5, 1.0, 0.0]
