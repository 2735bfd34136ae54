"""Chunks with a budget: exact at the end, bounded on the way, and what matters early is still there late."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from support.chunks import (
    CHUNK,
    CONFIG,
    CONTEXT,
    QUESTION,
    allocation_of,
    assert_as_planned,
    assert_same_entries,
    positions_of,
    prompt_of,
)
from support.families import (
    DECODED,
    FAMILIES,
    assert_same,
    decode,
    exhaust,
    make_prompt,
    planned_for,
    read,
    tiny,
    tokens,
)
from support.oracle import DenseOracle, masked_logits
from uncomp_cli.budget.plan import BudgetPlan
from uncomp_cli.cache.scorers import SCORERS
from uncomp_cli.config import CacheConfig, ScorerConfig
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.read.overkeep import BETWEEN_CHUNKS, MARGIN_TOKENS
from uncomp_cli.engine.read.reader import Reader
from uncomp_cli.engine.spend.allocation import Allocation
from uncomp_cli.engine.tokens.prompt import Prompt

POLICIES = ["uniform", "pyramid", "adaptive", "zigzag", "uncertain:by=entropy", "uncertain:by=lmba-free"]


@pytest.mark.sparse(1)
@pytest.mark.parametrize("thin", ["none", "gather:after=2,keep=0.3"])
@pytest.mark.parametrize("policy", POLICIES)
def test_budgets_are_exact_behind_the_last_chunk(policy: str, thin: str) -> None:
    _, decoder, spec = tiny("llama")
    context, chunk = (900, 400) if thin != "none" else (CONTEXT, CHUNK)
    prompt = prompt_of(context=context)
    allocation = allocation_of(policy, spec, prompt, kept=0.15)
    _, done = read(decoder, prompt, allocation, CONFIG, chunk=chunk, thin=thin)
    assert allocation.plan.entries == int(0.15 * spec.full_entries(prompt.seq_len))
    assert_as_planned(done, allocation.plan, prompt)


@pytest.mark.sparse(1)
@pytest.mark.parametrize("words", [True, False])
@pytest.mark.parametrize("policy", ["uniform", "adaptive"])
@pytest.mark.parametrize("scorer", SCORERS)
def test_every_scorer_keeps_its_budget(scorer: str, policy: str, words: bool) -> None:
    _, decoder, spec = tiny("llama")
    prompt = prompt_of(words=words)
    allocation = allocation_of(policy, spec, prompt, kept=0.2)
    _, done = read(decoder, prompt, allocation, replace(CONFIG, name=scorer), chunk=130)
    assert_as_planned(done, allocation.plan, prompt)


@pytest.mark.sparse(1)
@pytest.mark.parametrize("bits", [16, 4])
@pytest.mark.parametrize("questions", [[5, 12], [2, 9, 4]], ids=str)
def test_several_questions_and_fewer_bits(questions: Sequence[int], bits: int) -> None:
    _, decoder, spec = tiny("qwen2")
    prompt = prompt_of(*questions)
    allocation = allocation_of("uniform", spec, prompt, kept=0.2, kv_bits=bits)
    _, done = read(decoder, prompt, allocation, replace(CONFIG, name="agreement"), chunk=CHUNK)
    assert_as_planned(done, allocation.plan, prompt)
    first = decode(decoder, done, torch.tensor([tokens(3, 4)]), 0)
    decode(decoder, done, torch.tensor([tokens(3, 4)]), 1)
    assert torch.equal(decode(decoder, done, torch.tensor([tokens(3, 4)]), 0), first)


@pytest.mark.sparse(1)
@pytest.mark.parametrize("scorer", ["window", "agreement", "keydiff"])
@pytest.mark.parametrize("policy", ["uniform", "adaptive", "uncertain:by=entropy"])
def test_what_is_held_on_the_way_changes_nothing(policy: str, scorer: str) -> None:
    """Whether counts only shrink or may grow, as where tokens leave: with all held until the cut it is one result."""
    _, decoder, spec = tiny("llama")
    prompt, config = prompt_of(), replace(CONFIG, name=scorer)
    allocations = [allocation_of(policy, spec, prompt, kept=0.2) for _ in range(2)]
    _, one = read(decoder, prompt, allocations[0], config)
    planned = planned_for(decoder, prompt, allocations[1], config)
    planned.sieve.active = True  # though none is to leave
    _, done = exhaust(Reader(decoder, planned).read())
    assert done.hidden_kept == (1.0,) * spec.num_layers
    assert allocations[0].plan == allocations[1].plan
    assert_same_entries(one.cache, done.cache)
    assert_same(one.questions.logits, done.questions.logits)


@pytest.mark.parametrize("policy", ["uniform", "adaptive"])
def test_what_is_there_decodes_like_a_mask(policy: str) -> None:
    """The first layer's entries do not depend on what was evicted: there, chunks are dense attention with a mask."""
    stock, decoder, spec = tiny("llama")
    prompt = make_prompt(60, [5], protected=4)
    kept = BudgetPlan(prompt.seq_len, ((prompt.seq_len,) * 2,) * (spec.num_layers - 1) + ((30, 20),))
    allocation = Allocation(replace(kept, head_floor=0.2) if policy == "adaptive" else kept)
    _, done = read(decoder, prompt, allocation, replace(CONFIG, window=4), chunk=60)
    forced, ids = tokens(DECODED, 7), (*prompt.context, *prompt.questions[0])
    there = [[{at for at in head.tolist() if at < 60} for head in layer] for layer in positions_of(done.cache)]
    expected = masked_logits(stock, ids + forced, DenseOracle(there, context=60, masked_from=len(ids)))
    assert_same(decode(decoder, done, torch.tensor([forced]))[0], expected[len(ids) :])


def test_a_head_may_keep_nothing_of_the_context() -> None:
    """Without protected tokens a head can be empty between two chunks: it sees the chunk alone."""
    _, decoder, spec = tiny("llama")
    prompt = make_prompt(60, [5])
    plan = BudgetPlan(prompt.seq_len, ((5, 25),) * spec.num_layers)
    _, done = read(decoder, prompt, plan, CONFIG, chunk=20)
    assert [[len(head) for head in layer] for layer in positions_of(done.cache)] == [[5, 25]] * spec.num_layers
    assert bool(done.questions.logits.isfinite().all())


def step_through(decoder: Decoder, prompt: Prompt, allocation: Allocation, config: ScorerConfig) -> list[list[int]]:
    """Context entries of every head behind every chunk."""
    reader = Reader(decoder, planned_for(decoder, prompt, allocation, config, chunk=CHUNK))
    behind = []
    for chunk in reader.chunks:
        reader.read_chunk(chunk)
        behind.append([len(head) for layer in positions_of(reader.cache) for head in layer])
    return behind


@pytest.mark.parametrize("policy", ["uniform", "pyramid", "adaptive", "uncertain:by=entropy"])
def test_between_chunks_a_head_keeps_an_eighth_more(policy: str) -> None:
    _, decoder, spec = tiny("llama")
    prompt = prompt_of()
    allocation = allocation_of(policy, spec, prompt, kept=0.2)
    behind = step_through(decoder, prompt, allocation, replace(CONFIG, name="agreement"))
    budget = allocation.plan.entries - spec.num_layers * spec.num_kv_heads * prompt.longest_question
    assert len(behind) > 3
    for counts in behind[:-1]:
        assert sum(counts) <= BETWEEN_CHUNKS * budget
    for counts in behind[1:-1]:
        assert sum(counts) > budget  # the eighth is used
    assert sum(behind[-1]) == allocation.plan.entries


@pytest.mark.parametrize("scorer", ["window", "agreement"])
def test_memory_is_bounded_however_long_the_text_is(scorer: str) -> None:
    """The cache on the way is the budget, an eighth and a chunk: twice the text, the same bytes."""
    _, decoder, spec = tiny("llama")
    config = replace(CONFIG, name=scorer)
    tops = []
    for context in (600, 1200):
        prompt = prompt_of(context=context)
        plan = BudgetPlan(prompt.seq_len, ((70,) * 2,) * spec.num_layers)
        steps, done = read(decoder, prompt, plan, config, chunk=CHUNK)
        tops.append(max(step.kv_bytes for step in steps))
        held = int(BETWEEN_CHUNKS * 70) + CHUNK + QUESTION + MARGIN_TOKENS
        most = 8 * (held + CacheConfig().slack(held)) * (spec.kv_bytes_per_entry + 4)
        assert done.cache.nbytes <= tops[-1] <= most
        assert (done.cache.nbytes < tops[-1]) == (scorer == "agreement")  # a ranking of its own is cut at once
    assert tops[1] <= 1.02 * tops[0]


def test_what_matters_early_outlives_late_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without RoPE a first layer's scores do not depend on where the question stands: chunks keep what one pass does.

    The ranking is by one softmax over what was kept and what is new; only the rows' own sums differ.
    """
    monkeypatch.setitem(FAMILIES, "smollm3", ("SmolLM3", {"no_rope_layers": [0, 0, 0, 0]}))
    _, decoder, spec = tiny("smollm3")
    prompt = make_prompt(1000, [8], protected=4)
    config = replace(CONFIG, pooling="none")
    plan = BudgetPlan(prompt.seq_len, ((60,) * 2,) * spec.num_layers)
    _, whole = read(decoder, prompt, plan, config)
    _, done = read(decoder, prompt, plan, config, chunk=128)
    for mine, theirs in zip(positions_of(done.cache)[0], positions_of(whole.cache)[0], strict=True):
        early = {at for at in theirs.tolist() if 4 <= at < 500}
        assert len(early) >= 10
        assert len(early & set(mine.tolist())) >= 0.8 * len(early)


def test_a_random_choice_is_even_over_the_text() -> None:
    """The control must not prefer late chunks."""
    _, decoder, spec = tiny("llama")
    prompt = make_prompt(1000, [5], protected=4)
    plan = BudgetPlan(prompt.seq_len, ((109,) * 2,) * spec.num_layers)
    config = ScorerConfig("random", pooling="none", whole_words=False)
    _, done = read(decoder, prompt, plan, config, chunk=128)
    at = torch.cat([head for layer in positions_of(done.cache) for head in layer])
    at = at[(at >= 4) & (at < 1000)]
    fifths = torch.histc(at.float(), 5, 4, 1000)
    assert fifths.min() > 0.6 * len(at) / 5
    assert fifths.max() < 1.4 * len(at) / 5
