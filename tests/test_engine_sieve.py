"""Thinning: who stays behind a border, and that a thinned prompt is the stock model with masks."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from support.chunks import positions_of, words_of
from support.families import assert_same, decode, exhaust, full_plan, make_prompt, planned_for, read, tiny, tokens
from support.oracle import DenseOracle, masked_logits, storage_bytes
from uncomp_cli.budget.baselines import FullPolicy, UniformPolicy
from uncomp_cli.budget.plan import BudgetPlan, Wanted
from uncomp_cli.budget.presets import Preset
from uncomp_cli.budget.thinning import make_thinning
from uncomp_cli.config import CacheConfig, ScorerConfig
from uncomp_cli.engine.read.reader import Reader
from uncomp_cli.engine.read.sieve import LEAST_TOKENS, Sieve
from uncomp_cli.engine.spend.allocation import Allocation
from uncomp_cli.engine.spend.compression import make_sieve
from uncomp_cli.engine.tokens.prompt import Prompt, open_question
from uncomp_cli.engine.tokens.tokens import Tokens
from uncomp_cli.spec import ModelSpec

CONTEXT, PROTECTED, QUESTION, LAYERS = 800, 6, 20, 4
CONFIG = ScorerConfig("window", window=8, width=5)
GATHER = "gather:after=2,keep=0.5"


def prompt_of(*questions: int, context: int = CONTEXT, words: bool = True, seed: int = 1) -> Prompt:
    numbers = words_of(context) if words else None
    prompt = make_prompt(context, questions or [QUESTION], seed=seed, protected=PROTECTED, words=numbers)
    return open_question(prompt, recent=8)


def full(spec: ModelSpec, prompt: Prompt) -> Allocation:
    """Everything that there is, planned anew when less is there."""
    want = Wanted(spec, prompt.seq_len, spec.full_entries(prompt.seq_len), prompt.always_kept)
    return Allocation.of(FullPolicy(), want)


def text_positions(spec: ModelSpec, cache: list[list[torch.Tensor]], prompt: Prompt) -> list[set[int]]:
    """What entered each layer: with a full budget every head of a layer has the same."""
    layers = []
    for heads in cache:
        assert all(head.tolist() == heads[0].tolist() for head in heads)
        assert heads[0].tolist() == sorted(set(heads[0].tolist()))
        layers.append({at for at in heads[0].tolist() if at < len(prompt.context)})
    assert len(layers) == spec.num_layers
    return layers


@pytest.mark.parametrize("chunk", [None, 500])
@pytest.mark.parametrize("thin", [GATHER, "gather:after=1,keep=0.1", "uncertain:least=0.5,most=0.5"])
def test_who_stays(thin: str, chunk: int | None) -> None:
    _, decoder, spec = tiny("llama")
    prompt = prompt_of()
    _, done = read(decoder, prompt, full(spec, prompt), CONFIG, chunk=chunk, thin=thin)
    there = text_positions(spec, positions_of(done.cache), prompt)
    length = len(prompt.context)
    always = {*range(PROTECTED), *range(length - prompt.asked, length)}
    assert there[0] == set(range(length))
    for earlier, later in pairwise(there):
        assert always <= later <= earlier
    assert len(there[-1]) < length
    assert done.hidden_kept == tuple(len(layer) / length for layer in there)
    for heads in positions_of(done.cache):
        assert set(range(length, prompt.seq_len)) <= set(heads[0].tolist())


def test_the_share_is_of_what_may_go() -> None:
    _, decoder, spec = tiny("llama")
    prompt = prompt_of(words=False)
    _, done = read(decoder, prompt, full(spec, prompt), CONFIG, thin=GATHER)
    always = PROTECTED + prompt.asked
    entered = always + math.ceil(0.5 * (len(prompt.context) - always))
    assert done.hidden_kept == (1.0, 1.0, entered / len(prompt.context), entered / len(prompt.context))


@pytest.mark.parametrize("whole", [True, False])
def test_words_go_or_stay_as_one(whole: bool) -> None:
    _, decoder, spec = tiny("llama")
    prompt = prompt_of()
    _, done = read(decoder, prompt, full(spec, prompt), replace(CONFIG, whole_words=whole), thin=GATHER)
    there = text_positions(spec, positions_of(done.cache), prompt)[-1]
    torn = 0
    for word in prompt.context.words.unique().tolist():
        tokens_of = set((prompt.context.words == word).nonzero()[:, 0].tolist())
        free = {at for at in tokens_of if not prompt.context.protected[at]}
        torn += 0 < len(free & there) < len(free)
    assert torn <= 1 if whole else torn > 10


@pytest.mark.parametrize("questions", [[QUESTION], [3, 11]], ids=str)
@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3"])
def test_a_thinned_prompt_is_the_stock_model_with_masks(family: str, questions: Sequence[int]) -> None:
    """Tokens that left are masked in the layers behind: logits of every question, and of what is decoded."""
    stock, decoder, spec = tiny(family)
    prompt = prompt_of(*questions, context=330)
    _, done = read(decoder, prompt, full(spec, prompt), CONFIG, thin="gather:after=2,keep=0.1")
    length = len(prompt.context)
    for question, asked in enumerate(prompt.questions):
        done.begin(question)
        there = text_positions(spec, positions_of(done.cache), prompt)
        assert len(there[3]) == LEAST_TOKENS < length
        ids, forced = (*prompt.context, *asked), tokens(4, 7)
        oracle = DenseOracle([[layer] * spec.num_kv_heads for layer in there], context=length, masked_from=0)
        expected = masked_logits(stock, ids + forced, oracle)
        assert_same(done.questions.logits[question], expected[len(ids) - 1])
        assert_same(decode(decoder, done, torch.tensor([forced]), question)[0], expected[len(ids) :])


def test_later_layers_have_no_more_bytes_than_their_tokens() -> None:
    _, decoder, spec = tiny("llama")
    prompt = prompt_of()
    allocation = full(spec, prompt)
    _, done = read(decoder, prompt, allocation, CONFIG, thin=GATHER)
    counts = [[len(head) for head in layer] for layer in positions_of(done.cache)]
    assert tuple(map(tuple, counts)) == allocation.plan.kept  # the plan says what is there
    slack, entry = CacheConfig().slack, spec.kv_bytes_per_entry + CacheConfig().position_bytes
    expected = sum(count + slack(count) for layer in counts for count in layer) * entry
    assert done.cache.nbytes == storage_bytes(done.cache) == expected
    assert done.cache.layer(3).nbytes < 0.6 * done.cache.layer(0).nbytes


@pytest.mark.parametrize("thin", ["none", "gather:after=2,keep=1.0", "gather:after=9,keep=0.1"])
def test_a_schedule_of_ones_is_full(thin: str) -> None:
    _, decoder, spec = tiny("llama")
    prompt = prompt_of(context=300)
    _, one = read(decoder, prompt, full_plan(spec, prompt))
    _, done = read(decoder, prompt, full(spec, prompt), CONFIG, thin=thin)
    assert done.hidden_kept == (1.0,) * LAYERS
    assert torch.equal(done.questions.logits, one.questions.logits)


@pytest.mark.parametrize("thin", [GATHER, "uncertain", "gather:after=1,keep=0.01"])
def test_a_short_prompt_is_left_as_it_is(thin: str) -> None:
    _, decoder, spec = tiny("llama")
    prompt = prompt_of(context=LEAST_TOKENS - QUESTION)
    _, one = read(decoder, prompt, full_plan(spec, prompt))
    _, done = read(decoder, prompt, full(spec, prompt), CONFIG, thin=thin)
    assert done.hidden_kept == (1.0,) * LAYERS
    torch.testing.assert_close(done.questions.logits, one.questions.logits, atol=1e-5, rtol=0)


def test_a_share_below_what_always_stays() -> None:
    """More protected tokens than the schedule lets through: all of them stay."""
    _, decoder, spec = tiny("llama")
    prompt = make_prompt(700, [8], protected=400)
    _, done = read(decoder, prompt, full(spec, prompt), CONFIG, thin="gather:after=1,keep=0.01")
    there = text_positions(spec, positions_of(done.cache), prompt)
    assert [len(layer) for layer in there] == [700, 403, 403, 403]
    assert set(range(400)) <= there[1]


def test_prompts_do_not_know_of_each_other() -> None:
    _, decoder, spec = tiny("llama")
    prompts = [prompt_of(context=600, seed=seed) for seed in (1, 2)]
    alone = [read(decoder, prompt, full(spec, prompt), CONFIG, thin=GATHER)[1] for prompt in prompts]
    sieve = Sieve(make_thinning(GATHER), spec, CONFIG)
    for prompt, expected in zip(prompts, alone, strict=True):  # one sieve for both
        planned = replace(planned_for(decoder, prompt, full(spec, prompt), CONFIG), sieve=sieve)
        _, again = exhaust(Reader(decoder, planned).read())
        assert torch.equal(again.questions.logits, expected.questions.logits)
        assert again.hidden_kept == expected.hidden_kept


def test_thinned_and_cut_to_a_budget() -> None:
    """What a thinned layer cannot hold goes to the others, and the sum is the budget."""
    _, decoder, spec = tiny("llama")
    prompt = prompt_of()
    entries = int(0.7 * spec.full_entries(prompt.seq_len))
    want = Wanted(spec, prompt.seq_len, entries, prompt.always_kept)
    allocation = Allocation.of(UniformPolicy(), want)
    _, done = read(decoder, prompt, allocation, CONFIG, thin="gather:after=2,keep=0.4")
    assert tuple(tuple(map(len, layer)) for layer in positions_of(done.cache)) == allocation.plan.kept
    assert done.cache.entries == allocation.plan.entries == entries
    assert allocation.plan.kept[0] > allocation.plan.kept[3]


def test_a_question_without_a_document() -> None:
    _, decoder, spec = tiny("llama")
    bare = Prompt(Tokens.of(), (tokens(300, 1),))
    prompt = open_question(bare, recent=8)
    _, done = read(decoder, prompt, full_plan(spec, prompt), CONFIG, thin=GATHER)
    assert done.hidden_kept == (1.0,) * LAYERS
    assert bool(done.questions.logits.isfinite().all())


def test_a_family_that_cannot_be_thinned_is_told() -> None:
    preset = Preset(name="x", description="", budget="full", policy="full", thinning=GATHER)
    for family, thinned in (("llama", True), ("mistral-sliding", False), ("granite", False)):
        sieve, notes = make_sieve(tiny(family)[2], preset, CONFIG)
        assert sieve.active == thinned
        assert bool(notes) != thinned
        assert thinned or tiny(family)[2].model_type in notes[0]


def test_a_fixed_plan_of_fewer_tokens_than_stay_is_held() -> None:
    _, decoder, _ = tiny("llama")
    prompt = prompt_of(words=False)
    plan = BudgetPlan(prompt.seq_len, ((prompt.always_kept + 20,) * 2,) * LAYERS)
    _, done = read(decoder, prompt, plan, CONFIG, thin=GATHER)
    assert tuple(tuple(map(len, layer)) for layer in positions_of(done.cache)) == plan.kept


@pytest.mark.parametrize("chunk", [None, 500])
@pytest.mark.parametrize("thin", [GATHER, "gather:after=1,keep=0.1"])
def test_a_plan_says_what_thinning_leaves(thin: str, chunk: int | None) -> None:
    _, decoder, spec = tiny("llama")
    prompt = prompt_of()
    allocation = full(spec, prompt)
    planned = planned_for(decoder, prompt, allocation, CONFIG, chunk=chunk, thin=thin)
    said = planned.plan
    assert said.entries < planned.allocation.plan.entries == spec.full_entries(prompt.seq_len)
    exhaust(Reader(decoder, planned).read())
    assert said == planned.allocation.plan
    assert planned_for(decoder, prompt, full(spec, prompt), CONFIG, chunk=chunk).plan.keeps_everything


def test_a_plan_of_watched_thinning_is_the_most_that_it_leaves() -> None:
    _, decoder, spec = tiny("llama")
    prompt = prompt_of()
    planned = planned_for(decoder, prompt, full(spec, prompt), CONFIG, thin="uncertain:least=0.4,most=0.8")
    most = planned.plan.entries
    exhaust(Reader(decoder, planned).read())
    assert 0.4 * most < planned.allocation.plan.entries <= most
