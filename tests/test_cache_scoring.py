"""Scorers against loops."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from support.views import CONTEXT, DIM, HEADS, KV_HEADS, SCALING, make_view
from uncomp_cli.cache.scorers import SCORERS, make_scorer
from uncomp_cli.cache.softmax import Form
from uncomp_cli.cache.view import LayerView
from uncomp_cli.cache.window import window_attention
from uncomp_cli.config import ScorerConfig
from uncomp_cli.errors import UsageError


def window_score(view: LayerView, branch: int, group: int, position: int, config: ScorerConfig) -> float:
    """Mean over the group's query heads and the window's rows of sink-free attention to one token, in plain loops."""
    if position < config.sinks:
        return 0.0
    queries, own = view.branches[branch]
    count, per_group = own.shape[1], HEADS // KV_HEADS
    total, rows = 0.0, range(max(0, count - config.window), count)
    for head in range(group * per_group, (group + 1) * per_group):
        for row in rows:
            seen = [*view.keys[group], *own[group, : row + 1]]
            weights = [math.exp(SCALING * float(queries[head, row] @ key)) for key in seen]
            context = sum(weights[config.sinks : CONTEXT])
            total += weights[position] / context
    return total / (per_group * len(rows))


@pytest.mark.parametrize("questions", [[5], [1], [2, 7, 4]], ids=str)
@pytest.mark.parametrize("config", [ScorerConfig(window=3), ScorerConfig(window=50, sinks=0)], ids=["short", "long"])
def test_window_scores_are_the_plain_loop(config: ScorerConfig, questions: list[int]) -> None:
    view = make_view(questions)
    scores = make_scorer(config).score(view)
    assert scores.shape == (KV_HEADS, CONTEXT)
    assert scores.dtype == torch.float32
    for group in range(KV_HEADS):
        for position in range(CONTEXT):
            expected = max(window_score(view, branch, group, position, config) for branch in range(len(questions)))
            assert float(scores[group, position]) == pytest.approx(expected, abs=1e-5)


def test_window_attention_is_causal_among_the_questions_own_keys() -> None:
    view = make_view([5])
    queries, own = view.branches[0]
    weights = window_attention(queries, view.keys, own, Form(SCALING), window=3)
    assert weights.shape == (KV_HEADS, HEADS // KV_HEADS, 3, CONTEXT + 5)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:3]))
    for row in range(3):
        seen = CONTEXT + 2 + row + 1
        assert bool((weights[..., row, :seen] > 0).all())
        assert bool((weights[..., row, seen:] == 0).all())


def test_sinks_are_taken_out_and_rows_normalised_again() -> None:
    """A row that looks at nothing but the sink still ranks the rest."""
    view = make_view([3])
    view.branches[0][0].fill_(1.0)
    view.keys[:, 0] = 7.0  # logits: 20 for the sink, a few for the others
    scores = make_scorer(ScorerConfig(window=3, sinks=1)).score(view)
    assert scores[:, 0].tolist() == [0.0] * KV_HEADS
    torch.testing.assert_close(scores.sum(dim=1), torch.ones(KV_HEADS))


@pytest.mark.parametrize("name", SCORERS)
def test_scores_do_not_overflow_in_half_precision(name: str) -> None:
    view = make_view([3])
    big = LayerView(
        layer=0,
        queries=(view.queries * 100).half(),
        keys=(view.keys * 100).half(),
        values=view.values.half(),
        branches=tuple(((queries * 100).half(), keys.half()) for queries, keys in view.branches),
        form=Form(SCALING),
        frequencies=torch.tensor([1.0, 0.01]),
    )
    assert bool(big.keys.isfinite().all())
    scores = make_scorer(ScorerConfig(name)).score(big)
    assert scores.shape == (KV_HEADS, CONTEXT)
    assert scores.dtype == torch.float32
    assert bool(scores.isfinite().all())


def test_random_scores_come_from_the_seed_and_the_layer() -> None:
    def score(seed: int, layer: int) -> Tensor:
        return make_scorer(ScorerConfig(name="random", seed=seed)).score(make_view([2], layer=layer, seed=9 * seed))

    assert torch.equal(score(1, 3), score(1, 3))
    assert not torch.equal(score(1, 3), score(1, 4))
    assert not torch.equal(score(1, 3), score(2, 3))
    assert not torch.equal(score(1, 3)[0], score(1, 3)[1])
    assert score(1, 3).shape == (KV_HEADS, CONTEXT)


def test_recent_is_the_position() -> None:
    scores = make_scorer(ScorerConfig(name="recent")).score(make_view([2]))
    assert scores.tolist() == [list(map(float, range(CONTEXT)))] * KV_HEADS


@pytest.mark.parametrize("name", SCORERS)
def test_only_scorers_that_say_so_look_at_the_question(name: str) -> None:
    views = [replace(make_view([4]), frequencies=torch.tensor([1.0, 0.01])) for _ in range(2)]
    views[1].branches[0][0].add_(torch.arange(DIM))
    scorer = make_scorer(ScorerConfig(name))
    assert torch.equal(scorer.score(views[0]), scorer.score(views[1])) != scorer.query_aware


@pytest.mark.parametrize("name", SCORERS)
def test_names(name: str) -> None:
    assert make_scorer(ScorerConfig(name=name)).name == name


def test_a_misspelt_scorer() -> None:
    with pytest.raises(UsageError, match="unknown scorer 'windwo'") as caught:
        make_scorer(ScorerConfig(name="windwo"))
    assert caught.value.hint == "did you mean 'window'?"
