"""A question that competes: its tokens are evicted like the context's, but for the last, and they observe."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

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
from support.views import CONTEXT, DIM, HEADS, KV_HEADS, SCALING, make_view
from uncomp_cli.budget.baselines import UniformPolicy
from uncomp_cli.budget.plan import Wanted
from uncomp_cli.budget.presets import Preset
from uncomp_cli.cache.scorers import SCORERS, make_scorer
from uncomp_cli.cache.view import LayerView
from uncomp_cli.config import ScorerConfig
from uncomp_cli.engine.spend.allocation import make_allocation
from uncomp_cli.engine.spend.compression import plan_compression
from uncomp_cli.engine.tokens.prompt import Prompt, open_question
from uncomp_cli.engine.tokens.tokens import Tokens
from uncomp_cli.errors import UsageError

PER_GROUP, PROTECTED, RECENT = HEADS // KV_HEADS, 4, 8


def closed(context: int = 30, *questions: int) -> Prompt:
    return make_prompt(context, questions or [20], protected=PROTECTED, words=torch.arange(context) // 3)


def test_all_but_the_last_tokens_of_the_question_move_into_the_context() -> None:
    prompt = closed()
    opened = open_question(prompt, recent=8)
    (question,) = prompt.questions
    assert opened.context.ids == (*prompt.context, *question[:12])
    assert opened.questions == (question[12:],)
    assert opened.asked == 12
    assert (opened.seq_len, opened.flat_len, opened.waiting_tokens) == (50, 50, 0)
    assert opened.always_kept == PROTECTED + 8
    assert opened.context.protected.tolist() == [True] * PROTECTED + [False] * 38
    assert opened.context.words.tolist() == [*(torch.arange(30) // 3).tolist(), *range(10, 22)]  # each its own word
    assert prompt.asked == 0  # the given one is as it was


@pytest.mark.parametrize("recent", [20, 21, 500])
def test_a_short_question_stays_whole(recent: int) -> None:
    prompt = closed()
    assert open_question(prompt, recent=recent) is prompt


def test_opening_again_moves_only_what_is_more() -> None:
    once = open_question(closed(), recent=8)
    assert open_question(once, recent=8) is once
    further, direct = open_question(once, recent=3), open_question(closed(), recent=3)
    assert (further.context.ids, further.questions, further.asked) == (direct.context.ids, direct.questions, 17)
    assert torch.equal(further.context.protected, direct.context.protected)
    assert torch.equal(further.context.words, direct.context.words)


def test_several_questions_are_not_touched() -> None:
    prompt = closed(30, 20, 15)
    assert open_question(prompt, recent=8) is prompt


def test_a_prompt_without_a_context() -> None:
    opened = open_question(Prompt(Tokens.of(), (tokens(10, 1),)), recent=8)
    assert (len(opened.context), opened.asked, opened.context.words.tolist()) == (2, 2, [0, 1])


@pytest.mark.parametrize("recent", [0, -1])
def test_a_question_keeps_a_token_at_least(recent: int) -> None:
    with pytest.raises(UsageError, match="recent"):
        ScorerConfig(recent=recent)


@pytest.mark.sparse(1)
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recent", [1, 8])
def test_kept_in_full_an_opened_question_is_the_stock_model(family: str, recent: int) -> None:
    stock, decoder, spec = shared_tiny(family)
    prompt = closed(30, 20)
    opened = open_question(prompt, recent=recent)
    ids, forced = (*prompt.context, *prompt.questions[0]), tokens(6, 7)
    expected = stock_logits(stock, ids + forced)
    plan = UniformPolicy().plan(Wanted(spec, seq_len=50, entries=spec.full_entries(50), protected=opened.always_kept))
    for config in (ScorerConfig(), ScorerConfig("agreement")):
        _, done = read(decoder, opened, plan, config)
        assert done.cache.entries == spec.full_entries(50)
        assert_same(done.questions.logits, expected[len(ids) - 1][None])
        assert_same(decode(decoder, done, torch.tensor([forced]))[0], expected[len(ids) :])


@pytest.mark.sparse(1)
@pytest.mark.parametrize("scorer", [name for name in SCORERS if name != "expected"])
@pytest.mark.parametrize("kept", [12, 16, 30])
def test_in_a_small_budget_sinks_and_the_last_tokens_survive(scorer: str, kept: int) -> None:
    _, decoder, spec = shared_tiny("llama")
    prompt = open_question(closed(60, 40), recent=RECENT)
    plan = UniformPolicy().plan(
        Wanted(spec, seq_len=100, entries=kept * spec.num_layers * spec.num_kv_heads, protected=prompt.always_kept)
    )
    _, done = read(decoder, prompt, plan, ScorerConfig(scorer, window=16))
    for layer in range(spec.num_layers):
        for head in range(spec.num_kv_heads):
            positions = done.cache.layer(layer).head(head)[2].tolist()
            assert len(positions) == kept
            assert positions == sorted(set(positions))
            assert {*range(PROTECTED), *range(100 - RECENT, 100)} <= set(positions)


def kept_of_question(prompt: Prompt, scorer: str, *, seed: int = 0) -> list[int]:
    """How many of the question's 40 tokens each head keeps at 30 of 100."""
    _, decoder, spec = shared_tiny("llama")
    plan = (
        UniformPolicy().plan(
            Wanted(spec, seq_len=100, entries=30 * spec.num_layers * spec.num_kv_heads, protected=prompt.always_kept)
        )
        if prompt.always_kept <= 30
        else full_plan(spec, prompt)
    )
    _, done = read(decoder, prompt, plan, ScorerConfig(scorer, window=16, seed=seed))
    heads = [done.cache.layer(i).head(g)[2] for i in range(spec.num_layers) for g in range(spec.num_kv_heads)]
    return [int((positions >= 60).sum()) for positions in heads]


def test_question_tokens_are_evicted_like_the_contexts() -> None:
    assert kept_of_question(closed(60, 40), "window") == [40] * 8  # closed, it is kept whole
    kept = kept_of_question(open_question(closed(60, 40), recent=RECENT), "window")
    assert all(RECENT <= count <= 26 for count in kept)
    assert len(set(kept)) > 1
    random = kept_of_question(open_question(closed(60, 40), recent=RECENT), "random")
    assert any(count > RECENT for count in random)
    assert any(count < 26 for count in random)


def opened_view(asked: int, rest: int, *, seed: int = 0) -> LayerView:
    """A question of `asked` + `rest` tokens behind CONTEXT: the first are part of the context that is scored."""
    view = make_view([asked + rest], seed=seed)
    ((queries, own),) = view.branches
    return replace(
        view,
        queries=torch.cat([view.queries, queries[:, :asked]], dim=1),
        keys=torch.cat([view.keys, own[:, :asked]], dim=1),
        values=torch.cat([view.values, torch.ones(KV_HEADS, asked, DIM)], dim=1),
        branches=((queries[:, asked:], own[:, asked:]),),
        asked=asked,
    )


def score_by_hand(view: LayerView, group: int, position: int, config: ScorerConfig) -> float:
    """Over the rows of the window behind `position`, in plain loops: attention to it, each row's own token aside."""
    ((branch, own),) = view.branches
    queries, keys = torch.cat([view.queries, branch], dim=1), torch.cat([view.keys, own], dim=1)
    total, length = queries.shape[1], view.keys.shape[1]
    first = total - min(config.window, view.asked + branch.shape[1])
    behind = [row for row in range(first, total) if row > position]
    if (config.renormalise and position < config.sinks) or not behind:
        return 0.0
    summed = 0.0
    for head in range(group * PER_GROUP, (group + 1) * PER_GROUP):
        for row in behind:
            weights = [math.exp(SCALING * float(queries[head, row] @ keys[group, at])) for at in range(row + 1)]
            others = [weights[at] for at in range(config.sinks, min(length, row + 1)) if at != row]
            summed += weights[position] / (sum(others) if config.renormalise else sum(weights))
    return summed / (PER_GROUP * len(behind))


@pytest.mark.sparse(1)
@pytest.mark.parametrize("renormalise", [True, False])
@pytest.mark.parametrize("window", [1, 3, 6, 8, 50])
@pytest.mark.parametrize(("asked", "rest"), [(5, 3), (1, 1), (9, 2)])
def test_window_scores_of_a_question_that_competes_are_the_plain_loop(
    asked: int, rest: int, window: int, renormalise: bool
) -> None:
    view = opened_view(asked, rest)
    config = ScorerConfig(window=window, sinks=2, renormalise=renormalise)
    scores = make_scorer(config).score(view)
    assert scores.shape == (KV_HEADS, CONTEXT + asked)
    for group in range(KV_HEADS):
        for position in range(CONTEXT + asked):
            expected = score_by_hand(view, group, position, config)
            assert float(scores[group, position]) == pytest.approx(expected, abs=1e-5)


def test_a_token_is_not_kept_because_it_looks_at_itself() -> None:
    """A question's token that only its own query attends to scores nothing."""
    view = opened_view(5, 3)
    at = CONTEXT + 2
    view.keys[:, at] = 0.0
    view.keys[:, at, 0] = 50.0
    view.queries[:, :, 0] = 0.0
    view.queries[:, at, 0] = 50.0
    view.branches[0][0][:, :, 0] = -50.0
    for name in ("window", "agreement"):
        scores = make_scorer(ScorerConfig(name, window=8, sinks=2)).score(view)
        assert float(scores[:, at].max()) < 0.1
        assert bool(scores.isfinite().all())
    raw = make_scorer(ScorerConfig(window=8, sinks=2, renormalise=False)).score(view)
    assert float(raw[:, at].max()) < 0.1


def test_the_documents_scores_without_renormalising_do_not_change_when_a_question_is_opened() -> None:
    config = ScorerConfig(window=6, renormalise=False)
    closed_scores = make_scorer(config).score(make_view([8]))
    opened_scores = make_scorer(config).score(opened_view(5, 3))
    torch.testing.assert_close(opened_scores[:, :CONTEXT], closed_scores)


def test_reversed_is_minus_the_window_score_of_an_opened_question_too() -> None:
    view = opened_view(5, 3)
    one, other = (make_scorer(ScorerConfig(name, window=6)).score(view) for name in ("window", "reversed"))
    assert torch.equal(one, -other)


def preset(budget: str, **settings: Any) -> Preset:
    return Preset("x", "", budget, "uniform", ScorerConfig(**settings))


def test_a_session_opens_the_question_by_its_scorers_setting() -> None:
    _, _, spec = shared_tiny("llama")
    prompt = closed(60, 40)
    for recent, always in ((8, 12), (20, 24), (60, 44)):
        planned = plan_compression(spec, preset("50%", recent=recent), prompt, available=2**40)
        assert planned.prompt.always_kept == always
        assert planned.prompt.seq_len == 100
        assert planned.allocation.plan.entries == spec.full_entries(100) // 2


def test_a_budget_below_the_question_is_enough_once_it_is_opened() -> None:
    _, _, spec = shared_tiny("llama")
    prompt = closed(60, 40)
    assert make_allocation(spec, preset("15%"), prompt, available=2**40).shortage is not None
    planned = plan_compression(spec, preset("15%"), prompt, available=2**40)
    assert planned.allocation.plan.entries == 15 * 8
    assert planned.allocation.shortage is None
    several = plan_compression(spec, preset("15%"), closed(60, 40, 20), available=2**40)
    assert several.allocation.shortage is not None  # they stay whole
