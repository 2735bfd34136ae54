"""Weights of scores: capped, with sinks that were learnt, head by head; wherever they are computed they are these."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from support.families import make_prompt, tiny
from support.oracle import brute_force_scores
from support.views import CONTEXT, HEADS, KV_HEADS, make_view
from uncomp_cli.cache.needs import ConstantConfig, attention_needs
from uncomp_cli.cache.softmax import Form
from uncomp_cli.cache.view import LayerView
from uncomp_cli.cache.window import WindowScorer
from uncomp_cli.config import ScorerConfig
from uncomp_cli.engine.forward.attention import AttentionState, attend_causal

SINKS = torch.tensor([3.0, -2.0, 0.5, 1.0, -9.0, 2.0])


def by_hand(scores: Sequence[float], sink: float | None, softcap: float | None) -> list[float]:
    capped = [score if softcap is None else softcap * math.tanh(score / softcap) for score in scores]
    total = sum(map(math.exp, capped)) + (0.0 if sink is None else math.exp(sink))
    return [math.exp(score) / total for score in capped]


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("sinks", [None, SINKS])
def test_weights_are_the_formula(softcap: float | None, sinks: Tensor | None) -> None:
    scores = 3 * torch.randn(2, 3, 2, 5, generator=torch.Generator().manual_seed(3))
    unseen = torch.tensor([[False] * 4 + [True], [False] * 5])
    found = Form(1.0, softcap=softcap, sinks=sinks).weights(scores, unseen).flatten(0, 1)
    for head, rows in enumerate(scores.flatten(0, 1)):
        sink = None if sinks is None else float(sinks[head])
        for row, seen in zip(range(2), (4, 5), strict=True):
            expected = [*by_hand(rows[row, :seen].tolist(), sink, softcap), *[0.0] * (5 - seen)]
            torch.testing.assert_close(found[head, row], torch.tensor(expected))


def test_some_heads_of_several_rows_have_their_own_sinks() -> None:
    of = Form(0.3, 8, sinks=SINKS).of(slice(4, 9)).sinks
    assert of is not None
    assert of.tolist() == [-9.0, 2.0, 3.0, -2.0, 0.5]
    assert Form(0.3).of(slice(0, 3)) == Form(0.3)
    scores = torch.randn(2, 2, 3, 1, 4)  # rows, KV heads, query heads of each
    together = Form(1.0, sinks=SINKS).weights(scores)
    torch.testing.assert_close(together[1], Form(1.0, sinks=SINKS).weights(scores[1]))


def test_a_window_sees_what_the_layer_does() -> None:
    """Raw attention: what a head's sink takes is not the context's."""
    view = make_view([3])
    sunk = LayerView(0, view.queries, view.keys, view.values, view.branches, Form(view.scaling, sinks=SINKS))
    config = ScorerConfig("window", window=1, renormalise=False)
    query, own = view.branches[0]
    expected = torch.zeros(KV_HEADS, CONTEXT)
    for head in range(HEADS):
        group = head // (HEADS // KV_HEADS)
        keys = torch.cat([view.keys[group], own[group]])
        scores = (keys @ query[head, -1] * view.scaling).tolist()
        expected[group] += torch.tensor(by_hand(scores, float(SINKS[head]), None)[:CONTEXT])
    torch.testing.assert_close(WindowScorer(config).score(sunk), expected / (HEADS // KV_HEADS))


@pytest.mark.parametrize("family", ["gpt_oss", "gemma2"])
def test_scores_are_the_stock_models(family: str) -> None:
    stock, decoder, _ = tiny(family)
    prompt, scorer = make_prompt(20, [3]), WindowScorer(ScorerConfig("window", window=3, sinks=2))
    seen: list[Tensor] = []

    class Seeing(AttentionState):
        def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
            asked = query[0, :, 20:], key[0, :, 20:]
            context = (each[0, :, :20] for each in (query, key, value))
            seen.append(scorer.score(LayerView(layer, *context, (asked,), form)))
            return attend_causal(query[0], key[0], value[0], form)[None]

    ids = torch.tensor([[*prompt.context, *prompt.questions[0]]])
    decoder.forward(ids, torch.arange(23)[None], Seeing(), 1)
    for ours, theirs in zip(seen, brute_force_scores(stock, prompt, window=3, sinks=2), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-3)


def test_what_is_needed_goes_by_what_the_head_gives() -> None:
    """A query whose sink takes nearly all says little."""
    keys, queries, ages = [torch.eye(2)] * 2, torch.tensor([[[[4.0, 0.0]], [[0.0, 4.0]]]] * 2), torch.tensor([0])
    form, config = Form(1.0, sinks=torch.tensor([12.0, -30.0])), ConstantConfig(width=1, pooling="none")
    found = attention_needs(queries, keys, ages, form, config=config)
    expected = torch.tensor([by_hand([4, 0], 12.0, None), by_hand([0, 4], -30.0, None)]).mean(0)
    torch.testing.assert_close(found, expected.expand(2, -1))
