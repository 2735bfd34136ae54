"""The engine's own loop over layers is the stock forward, with no token leaving and with tokens that leave."""

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from support.families import (
    FAMILIES,
    VOCAB,
    assert_same,
    config_of,
    full_plan,
    make_prompt,
    planned_for,
    stock_logits,
    tiny,
)
from support.oracle import Leaving
from uncomp_cli.engine.forward.decoder import Decoder, can_thin
from uncomp_cli.engine.read.reader import Reader
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.models.families import load_families
from uncomp_cli.models.shape import spec_from_config

LOOPED = [family for family in FAMILIES if config_of(family).model_type in load_families().thinned]
CONTEXT, QUESTION = 40, 5


def looped(decoder: Decoder, prompt: Prompt) -> Tensor:
    """Logits [Q, vocab] of the loop behind every question."""
    reader = Reader(decoder, planned_for(decoder, prompt, full_plan(decoder.spec, prompt)))
    (chunk,) = reader.chunks
    reader.begin(chunk)
    lengths = torch.tensor([len(question) for question in prompt.questions])
    from_end = lengths.sum() - lengths.cumsum(0) + 1
    return decoder.layer_by_layer(*chunk.layout(), reader, from_end)[0]


@pytest.mark.sparse(1)
@pytest.mark.parametrize("questions", [[3], [4, 9, 1]], ids=str)
@pytest.mark.parametrize("family", LOOPED)
def test_the_loop_is_the_stock_forward(family: str, questions: Sequence[int]) -> None:
    stock, decoder, _ = tiny(family)
    prompt = make_prompt(CONTEXT, questions)
    logits = looped(decoder, prompt)
    assert logits.shape == (len(questions), VOCAB)
    for row, question in zip(logits, prompt.questions, strict=True):
        assert_same(row, stock_logits(stock, (*prompt.context, *question))[-1])


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
    proven = spec.model_type in load_families().thinned
    assert can_thin(spec) == (proven and "sliding" not in family)


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
