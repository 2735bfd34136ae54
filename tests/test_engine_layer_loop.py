"""The engine's own loop over layers is the stock forward, with no token leaving and with tokens that leave."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from support.families import FAMILIES, VOCAB, assert_same, full_plan, make_prompt, planned_for, stock_logits, tiny
from support.oracle import DenseOracle, masked_logits
from uncomp_cli.engine.forward.decoder import LOOP_FAMILIES, SUPPORTED_FAMILIES, Decoder, can_thin
from uncomp_cli.engine.read.reader import Reader
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.models.shape import spec_from_config

LOOPED = [family for family in FAMILIES if tiny(family)[2].model_type in LOOP_FAMILIES]
CONTEXT, QUESTION = 40, 5


class Leaving:
    """Causal attention spelled out over the tokens that are there; behind layer l those of `keep[l]` go on."""

    def __init__(self, keep: dict[int, Tensor]) -> None:
        self.keep = keep

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, sliding_window: int | None
    ) -> Tensor:
        assert sliding_window is None
        repeated = [tensor.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for tensor in (key, value)]
        logits = query @ repeated[0].transpose(2, 3) * scaling
        future = torch.ones(logits.shape[-2:]).triu(1).bool()
        return logits.masked_fill(future, float("-inf")).softmax(dim=-1) @ repeated[1]

    def keep_after(self, layer: int) -> Tensor | None:
        return self.keep.get(layer)


def looped(decoder: Decoder, prompt: Prompt) -> Tensor:
    """Logits [Q, vocab] of the loop behind every question."""
    reader = Reader(decoder, planned_for(decoder, prompt, full_plan(decoder.spec, prompt)))
    (chunk,) = reader.chunks
    reader.begin(chunk)
    lengths = torch.tensor([len(question) for question in prompt.questions])
    from_end = lengths.sum() - lengths.cumsum(0) + 1
    return decoder.layer_by_layer(*chunk.layout(), reader, from_end)[0]


@pytest.mark.parametrize("questions", [[3], [4, 9, 1]], ids=str)
@pytest.mark.parametrize("family", LOOPED)
def test_the_loop_is_the_stock_forward(family: str, questions: Sequence[int]) -> None:
    stock, decoder, _ = tiny(family)
    prompt = make_prompt(CONTEXT, questions)
    logits = looped(decoder, prompt)
    assert logits.shape == (len(questions), VOCAB)
    for row, question in zip(logits, prompt.questions, strict=True):
        assert_same(row, stock_logits(stock, (*prompt.context, *question))[-1])


def test_listed_families_are_supported_and_have_a_case() -> None:
    assert LOOP_FAMILIES <= SUPPORTED_FAMILIES
    assert {tiny(family)[2].model_type for family in LOOPED} == LOOP_FAMILIES


def test_a_family_that_scales_outside_its_layers_is_not_listed() -> None:
    """Granite multiplies embeddings and divides logits beside the layers: the loop would be another model."""
    stock, decoder, spec = tiny("granite")
    prompt = make_prompt(CONTEXT, [3])
    expected = stock_logits(stock, (*prompt.context, *prompt.questions[0]))[-1]
    assert (looped(decoder, prompt)[0] - expected).abs().max() > 0.1
    assert not can_thin(spec)


@pytest.mark.parametrize("family", FAMILIES)
def test_thinning_needs_a_listed_family_without_windows(family: str) -> None:
    spec = tiny(family)[2]
    proven = spec.model_type in LOOP_FAMILIES
    assert can_thin(spec) == (proven and "sliding" not in family)


@pytest.mark.parametrize("family", ["llama", "llama-mha", "qwen3", "phi3"])
def test_tokens_that_left_are_masked_from_there_on(family: str) -> None:
    """Each that stays keeps its own position: as in the stock model with a mask in the layers behind the border."""
    stock, decoder, spec = tiny(family)
    prompt = make_prompt(CONTEXT, [QUESTION])
    ids = (*prompt.context, *prompt.questions[0])
    first = torch.tensor([i for i in range(CONTEXT) if i % 3 != 1] + list(range(CONTEXT, CONTEXT + QUESTION)))
    second = torch.arange(len(first))[5:]
    positions = torch.arange(len(ids))[None]
    leaving, wanted = Leaving({0: first, 2: second}), torch.tensor([QUESTION, 1])
    logits = decoder.layer_by_layer(torch.tensor([ids]), positions, leaving, wanted)[0]
    everyone = set(range(CONTEXT))
    there = [everyone, set(first.tolist()) & everyone, set(first.tolist()) & everyone]
    there.append(set(first[second].tolist()) & everyone)
    kept = [[layer] * spec.num_kv_heads for layer in there]
    expected = masked_logits(stock, ids, DenseOracle(kept, context=CONTEXT, masked_from=0))
    assert_same(logits, expected[[CONTEXT, -1]])
    whole = masked_logits(stock, ids, DenseOracle([[everyone] * spec.num_kv_heads] * 4, context=CONTEXT, masked_from=0))
    assert (whole[-1] - logits[1]).abs().max() > 0.05


def test_positions_come_from_the_caller() -> None:
    """The second half of a text, read at its own positions, differs from the same tokens at the beginning."""
    _, decoder, _ = tiny("qwen2")
    ids = torch.tensor([make_prompt(CONTEXT, [QUESTION]).context.ids])
    at = torch.arange(CONTEXT)[None]
    last = torch.tensor([1])
    read = [decoder.layer_by_layer(ids, where, Leaving({}), last) for where in (at, at + 100, at * 3)]
    assert_same(read[0], read[1])  # RoPE knows distances alone
    assert (read[0] - read[2]).abs().max() > 0.05


def test_a_tied_and_quiet_copy_does_not_share_state() -> None:
    """Two loops over two copies of one model give the same: nothing is left in the modules."""
    stock, decoder, _ = tiny("llama")
    other: Any = copy.deepcopy(stock)
    prompt = make_prompt(CONTEXT, [2])
    first = looped(decoder, prompt)
    second = looped(Decoder(other, spec_from_config(stock.config, "float32")), prompt)
    assert torch.equal(first, second)
    assert torch.equal(looped(decoder, prompt), first)
