"""A prompt read in chunks: where it is cut, and that nothing but memory tells it from one pass."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from support.chunks import assert_same_entries, words_of
from support.families import (
    FAMILIES,
    assert_same,
    decode,
    full_plan,
    make_prompt,
    read,
    shared_tiny,
    stock_logits,
    tokens,
)
from uncomp_cli.cache.softmax import Form
from uncomp_cli.engine.forward.attention import attend_after, attend_continued
from uncomp_cli.engine.read.chunk import cut_chunks
from uncomp_cli.engine.tokens.prompt import open_question

CONTEXT = 150


@given(context=st.integers(1, 300), asked=st.integers(0, 20), chunk=st.integers(1, 120), worded=st.booleans())
def test_chunks_are_the_text_in_order(context: int, asked: int, chunk: int, worded: bool) -> None:
    plain = make_prompt(context, [asked + 8], protected=3, words=words_of(context) if worded else None)
    prompt = open_question(plain, recent=8)
    chunks = list(cut_chunks(prompt, chunk))
    assert sum((piece.prompt.context.ids for piece in chunks), ()) == prompt.context.ids
    assert [piece.final for piece in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[0].first == 0
    for piece, following in pairwise(chunks):
        assert piece.first + len(piece.prompt.context) == following.first
    question = plain.questions[0]
    for piece in chunks:
        assert len(piece.prompt.context) - piece.prompt.asked in range(1, chunk + 1)
        whole = piece.prompt.context.ids[len(piece.prompt.context) - piece.prompt.asked :] + piece.prompt.questions[0]
        assert whole == question
        ids, at = piece.layout()
        assert at[0].tolist() == list(range(piece.first, piece.first + ids.shape[1]))
    cuts = [piece.first for piece in chunks[1:]]
    if chunk >= 5:  # no word is longer: none is torn
        assert all(plain.context.words[at] != plain.context.words[at - 1] for at in cuts)


def test_a_word_longer_than_a_chunk_is_torn_and_one_piece_is_the_prompt() -> None:
    prompt = make_prompt(30, [4], words=torch.zeros(30, dtype=torch.int64))
    assert [piece.first for piece in cut_chunks(prompt, 8)] == [0, 8, 16, 24]
    (only,) = cut_chunks(prompt, None)
    assert (only.prompt.context.ids, only.prompt.questions, only.final) == (prompt.context.ids, prompt.questions, True)


def test_several_questions_each_follow_the_piece() -> None:
    prompt = make_prompt(20, [3, 2])
    ids, at = list(cut_chunks(prompt, 12))[1].layout()
    assert ids[0].tolist() == [*prompt.context[12:], *prompt.questions[0], *prompt.questions[1]]
    assert at[0].tolist() == [*range(12, 20), 20, 21, 22, 20, 21]


@pytest.mark.sparse(1)
@pytest.mark.parametrize("questions", [[5], [4, 11, 1]], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_with_a_full_budget_the_chunk_changes_nothing(family: str, questions: Sequence[int]) -> None:
    stock, decoder, spec = shared_tiny(family)
    prompt = make_prompt(CONTEXT, questions, protected=4, words=words_of(CONTEXT))
    plan = full_plan(spec, prompt)
    _, one = read(decoder, prompt, plan)
    for chunk in (37, 70):
        _, done = read(decoder, prompt, plan, chunk=chunk)
        assert_same(done.questions.logits, one.questions.logits)
        assert_same_entries(done.cache, one.cache)
        forced = tokens(6, 7)
        for question, asked in enumerate(prompt.questions):
            ids = (*prompt.context, *asked)
            expected = stock_logits(stock, ids + forced)
            assert_same(done.questions.logits[question], expected[len(ids) - 1])
            assert_same(decode(decoder, done, torch.tensor([forced]), question)[0], expected[len(ids) :])


@pytest.mark.parametrize("family", ["llama", "qwen3-sliding", "gemma3_text"])
def test_chunks_allocate_what_one_pass_does(family: str) -> None:
    _, decoder, spec = shared_tiny(family)
    prompt = make_prompt(CONTEXT, [12], protected=4)
    _, one = read(decoder, prompt, full_plan(spec, prompt))
    _, done = read(decoder, prompt, full_plan(spec, prompt), chunk=50)
    assert done.cache.nbytes == one.cache.nbytes


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("family", ["llama", "qwen3-sliding"])
def test_the_context_is_quantised_once_at_the_end(family: str, bits: int) -> None:
    """Quantising chunk by chunk would be rounding what was rounded, in blocks of other entries."""
    _, decoder, spec = shared_tiny(family)
    prompt = make_prompt(CONTEXT, [5], protected=4)
    plan = replace(full_plan(spec, prompt), kv_bits=bits)
    _, one = read(decoder, prompt, plan)
    steps, done = read(decoder, prompt, plan, chunk=40)
    assert_same(done.questions.logits, one.questions.logits)
    turned = []
    for index in range(spec.num_layers):
        for head in range(spec.num_kv_heads):
            mine, theirs = done.cache.layer(index), one.cache.layer(index)
            assert mine.num_quantized(head) == theirs.num_quantized(head) > 0
            rounded, once = mine.head(head)[0], theirs.head(head)[0]
            steps_apart = (rounded - once).abs().max() / once.abs().max()
            assert steps_apart < 1.5 * 2 / 2**bits  # one step, where a rounding falls the other way
            turned.append(((rounded - once).abs() > 1e-4).flatten())
            assert turned[-1].float().mean() < 0.05  # of no head more than a few
    assert torch.cat(turned).float().mean() < 0.01
    last_but_one = steps[-spec.num_layers - 1]
    assert last_but_one.kv_bytes > done.cache.nbytes == steps[-1].kv_bytes  # on the way in the model's own dtype


def test_records_count_chunks_and_layers() -> None:
    _, decoder, spec = shared_tiny("llama")
    prompt = make_prompt(CONTEXT, [5, 3])
    steps, _ = read(decoder, prompt, full_plan(spec, prompt), chunk=40)
    assert [(step.layers_done, step.num_layers, step.tokens) for step in steps] == [
        (done, 16, CONTEXT + 8) for done in range(1, 17)
    ]
    assert [step.elapsed_s for step in steps] == sorted(step.elapsed_s for step in steps)


def plain_attention(query: Tensor, keys: Tensor, values: Tensor, *, scaling: float) -> Tensor:
    """Attention of the last N of S tokens, spelled out in float64: query [H, N, D], keys and values [G, S, D]."""
    per_group = query.shape[0] // keys.shape[0]
    wide = [tensor.double().repeat_interleave(per_group, dim=0) for tensor in (keys, values)]
    logits = query.double() @ wide[0].transpose(1, 2) * scaling
    new, total = logits.shape[1:]
    future = torch.arange(total) > torch.arange(total - new, total)[:, None]
    return logits.masked_fill(future, float("-inf")).softmax(dim=-1) @ wide[1]


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)], ids=str)
@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (4, 4), (4, 2), (9, 3), (8, 1)], ids=str)
def test_merged_attention_is_masked_attention(heads: int, groups: int, dtype: torch.dtype, within: float) -> None:
    generator = torch.Generator().manual_seed(heads)
    for past, new, width in ((1, 1, 8), (70, 5, 16), (3, 130, 64), (200, 200, 16)):
        shapes = (heads, new), (groups, past + new), (groups, past + new)
        query, keys, values = (2 * torch.randn(*shape, width, generator=generator).to(dtype) for shape in shapes)
        before = keys[:, :past], values[:, :past]
        merged = attend_continued(query, before, keys[:, past:], values[:, past:], Form(0.3))
        assert merged.shape == query.shape
        expected = plain_attention(query, keys, values, scaling=0.3)
        torch.testing.assert_close(merged.double(), expected, atol=within * 2, rtol=within)
        masked = attend_after(query, keys, values, Form(0.3))
        torch.testing.assert_close(merged, masked, atol=within * 2, rtol=within)
