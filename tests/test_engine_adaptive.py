"""Every policy with every scorer in the engine: exact counts, what is protected, and everything at 100 %."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from support.families import decode, full_plan, make_prompt, read, shared_tiny, tokens
from support.oracle import brute_force_scores, heads, kept_context, storage_bytes
from uncomp_cli.budget.plan import BudgetPlan, Wanted
from uncomp_cli.budget.policies import POLICIES, make_policy
from uncomp_cli.cache.scorers import SCORERS, make_scorer
from uncomp_cli.config import CacheConfig, ScorerConfig
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.tokens.prompt import Prompt, completion_prompt
from uncomp_cli.models.runnable import LoadedModel
from uncomp_cli.spec import ModelSpec

CONTEXT, QUESTION, PROTECTED = 60, 5, 4
LICENSE = Path(__file__).parents[1] / "LICENSE"
FAMILIES = ["llama", "qwen3-sliding"]


def plan_of(policy: str, spec: ModelSpec, prompt: Prompt, *, kept: float) -> BudgetPlan:
    entries = int(kept * spec.full_entries(prompt.seq_len))
    return make_policy(policy).plan(Wanted(spec, seq_len=prompt.seq_len, entries=entries, protected=prompt.always_kept))


def prompt_in_words(*questions: int) -> Prompt:
    """Words of three tokens."""
    return make_prompt(CONTEXT, questions or [QUESTION], protected=PROTECTED, words=torch.arange(CONTEXT) // 3)


@pytest.mark.sparse(1)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("policy", POLICIES)
def test_what_is_kept_is_what_was_planned(policy: str, scorer: str, family: str) -> None:
    _, decoder, spec = shared_tiny(family)
    prompt = prompt_in_words()
    plan = plan_of(policy, spec, prompt, kept=0.6)
    _, done = read(decoder, prompt, plan, ScorerConfig(scorer, window=4, width=5))
    done.begin()
    lengths = [tuple(done.cache.layer(layer).lengths) for layer in range(spec.num_layers)]
    assert done.cache.entries == plan.entries
    assert [sum(layer) for layer in lengths] == [sum(layer) for layer in plan.kept]
    assert plan.head_floor < 1 or tuple(lengths) == plan.kept
    end = set(range(CONTEXT, CONTEXT + QUESTION))
    for layer, _, positions in heads(done.cache):
        found = positions.tolist()
        assert found == sorted(set(found))
        assert end <= set(found)
        if spec.sliding_windows[layer] is None:
            assert set(range(PROTECTED)) <= set(found) <= set(range(prompt.seq_len))


@pytest.mark.sparse(1)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("scorer", SCORERS)
@pytest.mark.parametrize("policy", POLICIES)
def test_at_100_percent_nothing_differs_from_full(policy: str, scorer: str, family: str) -> None:
    _, decoder, spec = shared_tiny(family)
    prompt, forced = prompt_in_words(), torch.tensor([tokens(6, 7)])
    config = ScorerConfig(scorer, window=4, width=5)
    _, done = read(decoder, prompt, plan_of(policy, spec, prompt, kept=1.0), config)
    _, full = read(decoder, prompt, full_plan(spec, prompt))
    assert torch.equal(done.questions.logits, full.questions.logits)
    assert torch.equal(decode(decoder, done, forced), decode(decoder, full, forced))


@pytest.mark.parametrize("policy", ["uniform", "adaptive"])
@pytest.mark.parametrize("scorer", SCORERS)
def test_the_question_decides_where_the_scorer_says_so(policy: str, scorer: str) -> None:
    _, decoder, spec = shared_tiny("llama")
    first = prompt_in_words()
    second = replace(first, questions=(tokens(QUESTION, 77),))
    plan, config = plan_of(policy, spec, first, kept=0.4), ScorerConfig(scorer, pooling="none", whole_words=False)
    kept = [kept_context(read(decoder, prompt, plan, config)[1].cache, CONTEXT) for prompt in (first, second)]
    assert (kept[0] != kept[1]) == make_scorer(config).query_aware


def adaptive_counts(scores: Tensor, count: int, floor: float) -> list[float]:
    """What two heads are due of the tokens behind the protected ones: shares before they are rounded."""
    free = count - PROTECTED
    ranked = sorted((-float(scores[head, at]), head) for head in range(2) for at in range(PROTECTED, CONTEXT))
    best = [head for _, head in ranked[: 2 * free]]
    return [PROTECTED + floor * free + (1 - floor) * best.count(head) for head in range(2)]


def test_adaptive_heads_keep_the_best_of_their_layer() -> None:
    stock, decoder, spec = shared_tiny("llama")
    prompt = make_prompt(CONTEXT, [QUESTION], protected=PROTECTED)
    plan = plan_of("adaptive", spec, prompt, kept=0.4)
    assert {count for layer in plan.kept for count in layer} == {26}
    _, done = read(decoder, prompt, plan, ScorerConfig(window=4, pooling="none", whole_words=False))
    all_scores = brute_force_scores(stock, prompt, window=4, sinks=4)
    lengths = []
    for layer, head, positions in heads(done.cache):
        scores = all_scores[layer]
        due = adaptive_counts(scores, 26 - QUESTION, 0.2)[head]
        kept = positions[positions < CONTEXT]
        lengths.append(len(kept))
        assert abs(len(kept) - due) < 1
        best = scores[head].masked_fill(prompt.context.protected, float("inf")).topk(len(kept)).indices
        assert kept.tolist() == sorted(best.tolist())
    assert len(set(lengths)) > 2


@pytest.mark.parametrize("questions", [[2, 9], [QUESTION, QUESTION, 1]], ids=str)
def test_adaptive_heads_with_several_questions(questions: list[int]) -> None:
    _, decoder, spec = shared_tiny("llama")
    prompt = prompt_in_words(*questions)
    plan = plan_of("adaptive", spec, prompt, kept=0.5)
    _, done = read(decoder, prompt, plan, ScorerConfig(window=4))
    done.begin(questions.index(max(questions)))
    assert [sum(done.cache.layer(layer).lengths) for layer in range(4)] == [sum(layer) for layer in plan.kept]


@pytest.mark.slow
@pytest.mark.model
def test_adaptive_memory_is_ragged_with_the_default_model(default_model: LoadedModel) -> None:
    """A fifth of about 350 tokens of the licence: the heads of a layer differ, and so does what they allocate."""
    loaded = default_model
    decoder, spec, text = Decoder(loaded.model, loaded.spec), loaded.spec, LICENSE.read_text()[:1700]
    prompt = completion_prompt(loaded.tokenizer, text[:-60], text[-60:], sinks=4)
    plan = plan_of("adaptive", spec, prompt, kept=0.2)
    _, done = read(decoder, prompt, plan)
    done.begin()
    layers = [done.cache.layer(layer) for layer in range(spec.num_layers)]
    assert [sum(layer.lengths) for layer in layers] == [sum(layer) for layer in plan.kept]
    assert sum(max(layer.lengths) - min(layer.lengths) > 10 for layer in layers) > spec.num_layers // 2
    slack = CacheConfig().slack
    entries = sum(length + slack(length) for layer in layers for length in layer.lengths)
    assert storage_bytes(done.cache) == done.cache.nbytes == entries * (spec.kv_bytes_per_entry + 4)
