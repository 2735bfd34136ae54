"""Eviction tells the truth: a ragged cache is dense attention with a mask, and what it claims is what it holds."""

import pytest
import torch

from support.families import VOCAB, WINDOW, Rows, assert_same, decode, full_plan, make_prompt, read, tiny, tokens
from support.oracle import (
    KV_HEADS,
    LAYERS,
    DenseOracle,
    brute_force_scores,
    heads,
    kept_context,
    masked_logits,
    storage_bytes,
)
from uncomp_cli.budget.baselines import UniformPolicy
from uncomp_cli.budget.plan import BudgetPlan, Wanted
from uncomp_cli.cache.coherence import pool, share_by_word
from uncomp_cli.cache.eviction import select
from uncomp_cli.config import CacheConfig, ScorerConfig
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.spec import ModelSpec

CONTEXT, QUESTION = 60, 5
RANDOM = ScorerConfig(name="random", pooling="none", whole_words=False)


def ragged_plan(spec: ModelSpec, prompt: Prompt, *, seed: int = 0) -> BudgetPlan:
    """A different number for every layer and head, some at the floor and some in full."""
    generator = torch.Generator().manual_seed(seed)
    low, high = prompt.always_kept, prompt.seq_len + 1
    counts = torch.randint(low, high, (spec.num_layers, spec.num_kv_heads), generator=generator).tolist()
    counts[0][0], counts[1][1] = low, prompt.seq_len
    return BudgetPlan(prompt.seq_len, tuple(map(tuple, counts)))


@pytest.mark.parametrize("seed", range(3))
def test_ragged_attention_is_dense_attention_with_a_mask(seed: int) -> None:
    stock, decoder, spec = tiny("llama")
    prompt = make_prompt(CONTEXT, [QUESTION], protected=4)
    _, done = read(decoder, prompt, ragged_plan(spec, prompt, seed=seed), RANDOM)
    ids, forced = (*prompt.context, *prompt.questions[0]), tokens(8, 7)
    actual = decode(decoder, done, torch.tensor([forced]))[0]
    oracle = DenseOracle(kept_context(done.cache, CONTEXT), context=CONTEXT, masked_from=len(ids))
    expected = masked_logits(stock, ids + forced, oracle)
    assert_same(done.questions.logits[0], expected[len(ids) - 1])  # prefill attends to everything
    assert_same(actual, expected[len(ids) :])
    everything = DenseOracle([[set(range(CONTEXT))] * 2] * 4, context=CONTEXT, masked_from=0)
    unmasked = masked_logits(stock, ids + forced, everything)
    assert (unmasked[len(ids) :] - actual).abs().max() > 0.05  # the mask matters here


def test_a_turn_of_several_tokens_is_masked_the_same() -> None:
    stock, decoder, spec = tiny("llama")
    prompt = make_prompt(CONTEXT, [QUESTION, 3])
    _, done = read(decoder, prompt, ragged_plan(spec, prompt), RANDOM)
    ids, forced = (*prompt.context, *prompt.questions[1]), tokens(30, 7)
    actual = decode(decoder, done, torch.tensor([forced]), 1)[0]  # longer than the slack: every head grows
    oracle = DenseOracle(kept_context(done.cache, CONTEXT), context=CONTEXT, masked_from=len(ids))
    assert_same(actual, masked_logits(stock, ids + forced, oracle)[len(ids) :])


def test_a_ragged_batch_is_its_rows() -> None:
    _, decoder, spec = tiny("llama")
    prompts = [make_prompt(30, [3], seed=1, protected=2), make_prompt(50, [6], seed=2, protected=5)]
    plans = [ragged_plan(spec, prompt, seed=row) for row, prompt in enumerate(prompts)]
    forced = torch.tensor([tokens(20, 31), tokens(20, 32)])
    batch = Rows([read(decoder, prompt, plan, RANDOM)[1] for prompt, plan in zip(prompts, plans, strict=True)])
    decoded = decode(decoder, batch, forced)
    for row, prompt in enumerate(prompts):
        _, single = read(decoder, prompt, plans[row], RANDOM)
        assert_same(decoded[row], decode(decoder, single, forced[row : row + 1])[0])


@pytest.mark.parametrize("questions", [[QUESTION], [QUESTION, 5], [2, QUESTION, 9]], ids=str)
def test_what_is_held_is_the_plan(questions: list[int]) -> None:
    _, decoder, spec = tiny("llama")
    prompt = make_prompt(CONTEXT, questions, protected=4)
    plan = ragged_plan(spec, prompt)
    _, done = read(decoder, prompt, plan, RANDOM)
    longest = max(range(len(questions)), key=questions.__getitem__)
    done.begin(longest)
    lengths = [tuple(done.cache.layer(i).lengths) for i in range(spec.num_layers)]
    assert tuple(lengths) == plan.kept
    assert done.cache.entries == plan.entries
    question_at = list(range(CONTEXT, CONTEXT + questions[longest]))
    for _, _, positions in heads(done.cache):
        found = positions.tolist()
        assert found == sorted(set(found))
        assert set(range(4)) <= set(found)
        assert found[-len(question_at) :] == question_at


def test_claimed_bytes_are_allocated_bytes() -> None:
    """Layers, and the questions that wait beside them; with one question there is nothing beside."""
    _, decoder, spec = tiny("llama")
    slack = CacheConfig().slack
    for questions in ([QUESTION], [3, QUESTION]):
        prompt = make_prompt(CONTEXT, questions, protected=4)
        plan = ragged_plan(spec, prompt)
        steps, done = read(decoder, prompt, plan, RANDOM)
        entry = spec.kv_bytes_per_entry + 4
        layers = sum(count + slack(count) for layer in plan.kept for count in layer) * entry
        assert storage_bytes(done.cache) == layers
        per_head = spec.kv_bytes_per_entry * KV_HEADS * LAYERS
        beside = 0 if len(questions) == 1 else sum(questions) * (per_head + 4 * LAYERS)
        assert done.cache.nbytes == layers + beside == steps[-1].kv_bytes
        done.begin(len(questions) - 1)
        assert done.cache.nbytes == layers + beside  # room was reserved


def test_earlier_layers_are_at_their_budget_while_later_ones_are_read() -> None:
    _, decoder, spec = tiny("llama")
    prompt = make_prompt(200, [QUESTION], protected=4)
    plan = UniformPolicy().plan(Wanted(spec, seq_len=205, entries=30 * LAYERS * KV_HEADS, protected=prompt.always_kept))
    steps, _ = read(decoder, prompt, plan)
    a_layer = KV_HEADS * (30 + CacheConfig().slack(30)) * (spec.kv_bytes_per_entry + 4)
    assert [step.kv_bytes for step in steps] == [a_layer * done for done in (1, 2, 3, 4)]
    assert [(step.layers_done, step.num_layers, step.tokens) for step in steps] == [(i, 4, 205) for i in (1, 2, 3, 4)]
    assert [step.elapsed_s for step in steps] == sorted(step.elapsed_s for step in steps)


@pytest.mark.parametrize("question", [3, WINDOW, WINDOW + 5])
def test_sliding_layers_keep_their_window(question: int) -> None:
    stock, decoder, spec = tiny("gemma3_text")
    prompt = make_prompt(CONTEXT, [question], protected=4)
    plan = UniformPolicy().plan(
        Wanted(
            spec,
            seq_len=prompt.seq_len,
            entries=spec.full_entries(prompt.seq_len) // 2,
            protected=prompt.always_kept,
        )
    )
    _, done = read(decoder, prompt, plan, RANDOM)
    done.begin()
    assert done.cache.entries == plan.entries == spec.full_entries(prompt.seq_len) // 2
    window = list(range(prompt.seq_len - WINDOW, prompt.seq_len))
    for layer, _, positions in heads(done.cache):
        if spec.sliding_windows[layer] is not None:
            assert positions.tolist() == window
        else:
            assert len(positions) < prompt.seq_len
    full = BudgetPlan(prompt.seq_len, tuple((prompt.seq_len,) * KV_HEADS for _ in range(LAYERS)))
    _, done = read(decoder, prompt, full)
    ids, forced = (*prompt.context, *prompt.questions[0]), tokens(12, 7)
    with torch.no_grad():
        expected = stock(torch.tensor([ids + forced]), use_cache=False).logits[0]
    assert_same(decode(decoder, done, torch.tensor([forced]))[0], expected[len(ids) :])


def test_the_question_decides_what_stays() -> None:
    """The whole path keeps what brute force over the oracle's own attention says: no pooling, no words."""
    stock, decoder, spec = tiny("llama")
    prompt = make_prompt(CONTEXT, [QUESTION, 3], protected=4)
    plan = UniformPolicy().plan(Wanted(spec, seq_len=prompt.seq_len, entries=20 * 8, protected=prompt.always_kept))
    config = ScorerConfig(window=4, pooling="none", whole_words=False)
    _, done = read(decoder, prompt, plan, config)
    expected = brute_force_scores(stock, prompt, window=4, sinks=4)
    for layer, head, positions in heads(done.cache):
        scores = expected[layer][head].masked_fill(prompt.context.protected, float("inf"))
        best = scores.topk(20 - QUESTION).indices.sort().values
        assert positions[positions < CONTEXT].tolist() == best.tolist()


@pytest.mark.parametrize("whole_words", [True, False])
def test_scores_are_pooled_and_shared_before_the_cut(whole_words: bool) -> None:
    stock, decoder, spec = tiny("llama")
    words = torch.cat([torch.arange(20), 20 + torch.arange(CONTEXT - 20) // 4])
    prompt = make_prompt(CONTEXT, [QUESTION], protected=4, words=words)
    plan = UniformPolicy().plan(Wanted(spec, seq_len=prompt.seq_len, entries=30 * 8, protected=prompt.always_kept))
    config = ScorerConfig(window=4, pooling="mean", width=5, whole_words=whole_words)
    _, done = read(decoder, prompt, plan, config)
    raw = brute_force_scores(stock, prompt, window=4, sinks=4)
    pooled = [pool(scores, kind="mean", width=5) for scores in raw]
    shared = [share_by_word(scores, words) if whole_words else scores for scores in pooled]
    for layer, head, positions in heads(done.cache):
        (expected,) = select(
            shared[layer][head : head + 1],
            [30 - QUESTION],
            protected=prompt.context.protected,
            words=words if whole_words else None,
        )
        assert positions[positions < CONTEXT].tolist() == expected.tolist()


def test_a_question_leaves_nothing_behind() -> None:
    _, decoder, spec = tiny("llama")
    prompt = make_prompt(CONTEXT, [QUESTION, 2])
    _, done = read(decoder, prompt, full_plan(spec, prompt))
    forced = torch.tensor([tokens(40, 7)])  # grows the cache
    first = decode(decoder, done, forced, 0)
    decode(decoder, done, forced, 1)
    assert torch.equal(decode(decoder, done, forced, 0), first)
    assert first.shape == (1, 40, VOCAB)


def test_an_impossible_plan_is_refused() -> None:
    _, decoder, _ = tiny("llama")
    prompt = make_prompt(20, [3], protected=6)
    plan = BudgetPlan(prompt.seq_len, ((8,) * KV_HEADS,) * LAYERS)
    with pytest.raises(ValueError, match="6 are protected"):
        read(decoder, prompt, plan)
