"""Kept in full, the engine is the stock model: families of every kind, tiny (all others: tests/census.py)."""

import pytest
import torch
import transformers

from support.families import (
    DECODED,
    FAMILIES,
    SHAPE,
    VOCAB,
    WINDOW,
    Rows,
    assert_same,
    decode,
    full_plan,
    make_prompt,
    next_positions,
    read,
    shared_tiny,
    stock_logits,
    tokens,
)
from uncomp_cli.engine.forward import attention
from uncomp_cli.engine.forward.attention import AppendState, check_keywords
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.errors import ModelError
from uncomp_cli.models.shape import spec_from_config

LENGTHS = [(3, 2), (WINDOW, 1), (20, 5), (5, 11), (40, 3)]
"""(context, question) tokens: inside, at and beyond the window; a question longer than the window."""


@pytest.mark.sparse(1)
@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_full_plan_is_the_stock_model(family: str, lengths: tuple[int, int]) -> None:
    stock, decoder, spec = shared_tiny(family)
    prompt = make_prompt(lengths[0], [lengths[1]])
    _, done = read(decoder, prompt, full_plan(spec, prompt))
    prompt_ids, forced = (*prompt.context, *prompt.questions[0]), tokens(DECODED, 7)
    expected = stock_logits(stock, prompt_ids + forced)
    assert expected.abs().max() > 0.5
    assert_same(done.questions.logits, expected[len(prompt_ids) - 1][None])
    assert_same(decode(decoder, done, torch.tensor([forced]))[0], expected[len(prompt_ids) :])


@pytest.mark.parametrize("family", ["llama", "mistral-sliding", "gemma2", "gemma3_text", "smollm3"])
def test_a_batch_is_its_rows(family: str) -> None:
    stock, decoder, spec = shared_tiny(family)
    prompts = [make_prompt(20, [3], seed=1), make_prompt(4, [5], seed=2), make_prompt(11, [1], seed=3)]
    forced = torch.tensor([tokens(DECODED, 20 + row) for row in range(3)])
    batch = Rows([read(decoder, prompt, full_plan(spec, prompt))[1] for prompt in prompts])
    decoded = decode(decoder, batch, forced)
    for row, prompt in enumerate(prompts):
        ids = (*prompt.context, *prompt.questions[0])
        expected = stock_logits(stock, ids + tuple(forced[row].tolist()))
        assert_same(batch.logits[row], expected[len(ids) - 1])
        assert_same(decoded[row], expected[len(ids) :])
        _, single = read(decoder, prompt, full_plan(spec, prompt))
        torch.testing.assert_close(batch.logits[row], single.questions.logits[0], atol=1e-5, rtol=0)
        torch.testing.assert_close(decoded[row], decode(decoder, single, forced[row : row + 1])[0], atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "qwen2-sliding", "gemma2", "gemma3_text", "granite"])
def test_questions_over_one_prefill_are_separate_runs(family: str) -> None:
    stock, decoder, spec = shared_tiny(family)
    prompt = make_prompt(19, [4, 9, 1])
    _, done = read(decoder, prompt, full_plan(spec, prompt))
    assert done.questions.logits.shape == (3, VOCAB)
    for question in (2, 0, 1, 0):  # any order, and one of them again
        ids = (*prompt.context, *prompt.questions[question])
        forced = tokens(DECODED, 50 + question)
        expected = stock_logits(stock, ids + forced)
        assert_same(done.questions.logits[question], expected[len(ids) - 1])
        assert_same(decode(decoder, done, torch.tensor([forced]), question)[0], expected[len(ids) :])


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_several_new_tokens_at_once(family: str) -> None:
    """A turn of a chat: tokens appended in one pass see the cache and, causally, each other."""
    stock, decoder, spec = shared_tiny(family)
    prompt = make_prompt(20, [4])
    _, done = read(decoder, prompt, full_plan(spec, prompt))
    done.begin()
    ids, turn = (*prompt.context, *prompt.questions[0]), tokens(11, 9)
    positions = next_positions(done) + torch.arange(len(turn))
    logits = decoder.forward(torch.tensor([turn]), positions, AppendState(done.cache, positions), len(turn))
    assert_same(logits[0], stock_logits(stock, ids + turn)[len(ids) :])


def test_sliding_prefill_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "_BLOCK", 7)
    stock, decoder, spec = shared_tiny("mistral-sliding")
    prompt = make_prompt(40, [3])
    _, done = read(decoder, prompt, full_plan(spec, prompt))
    assert_same(done.questions.logits[0], stock_logits(stock, (*prompt.context, *prompt.questions[0]))[-1])


@pytest.mark.parametrize("family", ["DiffLlama", "Doge"])
def test_other_families_are_refused_by_name(family: str) -> None:
    config = getattr(transformers, f"{family}Config")(**SHAPE)
    model = getattr(transformers, f"{family}ForCausalLM")(config)
    with pytest.raises(ModelError, match=f"'{config.model_type}'") as caught:
        Decoder(model, spec_from_config(config, "float32"))
    assert "llama" in str(caught.value.hint)


def test_a_keyword_that_is_not_honoured_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were a family let in that needs one, its attention would still not run wrongly."""
    _, decoder, spec = shared_tiny("llama")
    monkeypatch.setattr(attention, "_HARMLESS", attention._HARMLESS - {"dropout"})
    prompt = make_prompt(6, [2])
    with pytest.raises(ModelError, match="'dropout'"):
        read(decoder, prompt, full_plan(spec, prompt))


def test_attention_in_both_directions_is_refused() -> None:
    name, extra = FAMILIES["gemma3_text"]
    config = transformers.Gemma3TextConfig(**{**SHAPE, **extra, "use_bidirectional_attention": True})
    spec = spec_from_config(config, "float32")
    decoder = Decoder(getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")(config).eval(), spec)
    prompt = make_prompt(6, [2])
    with pytest.raises(ModelError, match="both directions"):
        read(decoder, prompt, full_plan(spec, prompt))


def test_keywords() -> None:
    check_keywords({"dropout": 0.0, "position_ids": torch.zeros(1), "brand_new": None})
    with pytest.raises(ModelError, match="'brand_new'"):
        check_keywords({"brand_new": 1})
