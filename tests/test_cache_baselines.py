"""The field's scorers and the sharing between heads: closed forms and plain loops."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from support.families import FAMILIES, full_plan, make_prompt, read, tiny
from support.views import CONTEXT, DIM, HEADS, KV_HEADS, SCALING, make_view
from uncomp_cli.budget.plan import BudgetPlan
from uncomp_cli.cache.eviction import select, share_heads
from uncomp_cli.cache.scorers import FUTURE_TOKENS, SCORERS, make_scorer, turn
from uncomp_cli.cache.view import LayerView
from uncomp_cli.config import ScorerConfig
from uncomp_cli.engine.forward.decoder import rope_frequencies
from uncomp_cli.errors import ModelError

PER_GROUP = HEADS // KV_HEADS


def scores_of(name: str, view: LayerView, **settings: Any) -> Tensor:
    return make_scorer(ScorerConfig(name, **settings)).score(view)


def view_of_keys(keys: Tensor) -> LayerView:
    return replace(make_view([2]), keys=keys)


def test_keydiff_by_hand() -> None:
    """Unit keys (1,0), (1,0), (0,1): the anchor points along (2,1); lengths have no say."""
    keys = torch.tensor([[[5.0, 0.0], [0.1, 0.0], [0.0, 7.0]], [[0.0, 2.0], [0.0, -3.0], [0.0, 1.0]]])
    root = math.sqrt(5)
    expected = torch.tensor([[-2 / root, -2 / root, -1 / root], [-1.0, 1.0, -1.0]])
    torch.testing.assert_close(scores_of("keydiff", view_of_keys(keys)), expected)


def test_keydiff_of_a_zero_key_and_of_keys_that_cancel() -> None:
    keys = torch.tensor([[[0.0, 0.0], [3.0, 4.0]], [[1.0, 0.0], [-1.0, 0.0]]])
    assert scores_of("keydiff", view_of_keys(keys)).tolist() == [[0.0, pytest.approx(-1)], [0.0, 0.0]]


def last_attention(view: LayerView, branch: int, position: int) -> float:
    """Attention of a question's last token to one context token, averaged over all heads, in plain loops."""
    queries, own = view.branches[branch]
    total = 0.0
    for head in range(HEADS):
        seen = [*view.keys[head // PER_GROUP], *own[head // PER_GROUP]]
        weights = [math.exp(SCALING * float(queries[head, -1] @ key)) for key in seen]
        total += weights[position] / sum(weights)
    return total / HEADS


@pytest.mark.parametrize("questions", [[5], [1], [2, 7, 4]], ids=str)
def test_tova_is_the_plain_loop_for_every_head(questions: list[int]) -> None:
    view = make_view(questions)
    scores = scores_of("tova", view)
    assert scores.shape == (KV_HEADS, CONTEXT)
    for position in range(CONTEXT):
        expected = max(last_attention(view, branch, position) for branch in range(len(questions)))
        assert scores[:, position].tolist() == [pytest.approx(expected, abs=1e-6)] * KV_HEADS


def test_reversed_keeps_what_window_drops() -> None:
    view = make_view([3])
    settings: dict[str, Any] = {"window": 3, "sinks": 0}
    assert torch.equal(scores_of("reversed", view, **settings), -scores_of("window", view, **settings))
    nothing = torch.zeros(CONTEXT, dtype=torch.bool)
    kept, dropped = (
        select(scores_of(name, view, **settings), [count] * KV_HEADS, protected=nothing, words=None)
        for name, count in (("window", 6), ("reversed", CONTEXT - 6))
    )
    for best, worst in zip(kept, dropped, strict=True):
        assert sorted([*best.tolist(), *worst.tolist()]) == list(range(CONTEXT))


def rotation(position: int, frequencies: Tensor) -> Tensor:
    """RoPE at one position as a matrix [D, D], in float64."""
    matrix, pairs = torch.eye(DIM, dtype=torch.float64), len(frequencies)
    for i, angle in enumerate((position * frequencies.double()).tolist()):
        matrix[i, i] = matrix[i + pairs, i + pairs] = math.cos(angle)
        matrix[i, i + pairs], matrix[i + pairs, i] = -math.sin(angle), math.sin(angle)
    return matrix


def expected_oracle(view: LayerView, frequencies: Tensor, sinks: int) -> Tensor:
    """Mean and covariance turned by the mean of explicit rotations, then the formula, head by head."""
    ahead = torch.stack([rotation(CONTEXT + step, frequencies) for step in range(FUTURE_TOKENS)]).mean(dim=0)
    scores = torch.zeros(KV_HEADS, CONTEXT, dtype=torch.float64)
    for head in range(HEADS):
        group = head // PER_GROUP
        plain = [rotation(s, frequencies).T @ view.queries[head, s].double() for s in range(sinks, CONTEXT)]
        sample = torch.stack(plain)
        mean, covariance = ahead @ sample.mean(dim=0), ahead @ torch.cov(sample.T, correction=0) @ ahead.T
        keys = view.keys[group, sinks:].double()
        logits = [SCALING * float(k @ mean) + SCALING**2 / 2 * float(k @ covariance @ k) for k in keys]
        scores[group, sinks:] += torch.tensor(logits, dtype=torch.float64).softmax(dim=0) / PER_GROUP
    return scores * view.values.double().norm(dim=-1)


@pytest.mark.parametrize("sinks", [0, 4])
@pytest.mark.parametrize("frequencies", [[1.0, 0.01], [0.3]], ids=["whole", "partial"])
def test_expected_attention_is_the_formula_over_explicit_rotations(frequencies: list[float], sinks: int) -> None:
    turned = torch.tensor(frequencies)
    view = replace(make_view([2]), frequencies=turned)
    scores = scores_of("expected", view, sinks=sinks)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), expected_oracle(view, turned, sinks), atol=1e-5, rtol=1e-4)


def test_sinks_have_no_part_in_expected_attention() -> None:
    view = replace(make_view([2]), frequencies=torch.tensor([1.0, 0.01]))
    before = scores_of("expected", view, sinks=4)
    view.queries[:, :4] += 9
    view.keys[:, :4] -= 9
    assert torch.equal(scores_of("expected", view, sinks=4), before)
    view.queries[:, 4] += 9
    assert not torch.equal(scores_of("expected", view, sinks=4), before)


@pytest.mark.parametrize("count", [1, 4, 5])
def test_a_later_chunk_asks_with_all_its_queries(count: int) -> None:
    """Its queries stand behind the sinks, which were read with the first chunk: one alone still ranks."""
    view = replace(make_view([2]), frequencies=torch.tensor([1.0, 0.01]))
    last = torch.arange(CONTEXT - count, CONTEXT)
    chunk = replace(view, queries=view.queries[:, -count:], positions=last)
    scores = scores_of("expected", chunk, sinks=4)
    assert bool(scores.isfinite().all())
    changed = chunk.queries.clone()
    changed[:, 0] += 9
    assert not torch.equal(scores, scores_of("expected", replace(chunk, queries=changed), sinks=4))


@pytest.mark.parametrize("length", [1, 3, 5])
def test_a_context_as_short_as_the_sinks(length: int) -> None:
    view = make_view([2])
    short = {name: getattr(view, name)[:, :length] for name in ("queries", "keys", "values")}
    scores = scores_of("expected", replace(view, **short, frequencies=torch.tensor([1.0, 0.01])), sinks=4)
    assert scores.shape == (KV_HEADS, length)
    assert bool(scores.isfinite().all())


def test_expected_attention_without_one_set_of_frequencies_is_refused() -> None:
    with pytest.raises(ModelError, match="RoPE frequencies") as caught:
        scores_of("expected", make_view([2]))
    words = str(caught.value.hint).split()
    named = [after for flag, after in pairwise(words) if flag == "--scorer"]
    assert named
    assert set(named) <= set(SCORERS) - {"expected"}


@dataclass
class Recorder:
    """A scorer that keeps what it is shown."""

    name = "recorder"
    query_aware = False
    repeats = False
    shared = 0.0
    published = ScorerConfig()
    views: list[LayerView] = field(default_factory=list)

    def score(self, view: LayerView) -> Tensor:
        self.views.append(view)
        return torch.zeros(view.keys.shape[:2])


QUERY_MODULES = {"qwen3": "q_norm", "olmo2": "q_norm", "phi3": "qkv_proj"}
"""The module whose output is, or begins with, the queries as RoPE gets them; in other families it is q_proj."""
YARN = {"rope_parameters": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}, "max_position_embeddings": 64}


@pytest.mark.parametrize(
    "family", ["llama", "llama-yarn", "mistral", "granite", "qwen2", "qwen3", "qwen3-sliding", "olmo2", "phi3"]
)
def test_queries_turned_back_are_those_before_rope(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "llama-yarn", ("Llama", YARN))
    _, decoder, spec = tiny(family)
    before: list[Tensor] = []
    module_name = QUERY_MODULES.get(family.partition("-")[0], "q_proj")
    for name, module in decoder.model.named_modules():
        if name.endswith(f"self_attn.{module_name}"):
            module.register_forward_hook(lambda module, given, output: before.append(output[0]))
    prompt, recorder = make_prompt(40, [3]), Recorder()
    kept = tuple((20 if window is None else window,) * 2 for window in spec.sliding_windows)
    read(decoder, prompt, BudgetPlan(43, kept), scorer=recorder)
    assert [view.layer for view in recorder.views] == list(spec.full_layers)
    for view in recorder.views:
        assert view.frequencies is not None
        angles = torch.arange(40)[:, None] * view.frequencies
        plain = before[view.layer].reshape(43, -1, spec.head_dim)[:40, : spec.num_heads].transpose(0, 1)
        scale = 0.1 * math.log(4) + 1 if family == "llama-yarn" else 1.0  # YaRN's, in cosines and sines alike
        torch.testing.assert_close(turn(view.queries, angles.cos(), -angles.sin()), scale * plain, atol=1e-5, rtol=0)
        assert (view.queries - scale * plain).abs().max() > 0.1  # they had been turned


@pytest.mark.parametrize("family", ["gemma3_text", "smollm3"])
def test_models_without_one_set_of_frequencies(family: str) -> None:
    _, decoder, spec = tiny(family)
    assert rope_frequencies(decoder.model) is None
    prompt = make_prompt(40, [3])
    read(decoder, prompt, full_plan(spec, prompt), ScorerConfig("expected"))  # nothing to score
    kept = tuple((20 if window is None else window,) * 2 for window in spec.sliding_windows)
    with pytest.raises(ModelError, match="RoPE frequencies"):
        read(decoder, prompt, BudgetPlan(43, kept), ScorerConfig("expected"))


def test_frequencies_of_what_is_no_such_model() -> None:
    two = nn.ModuleDict({"a": tiny("llama")[0].model.rotary_emb, "b": nn.Linear(2, 2)})
    assert rope_frequencies(two) is None
    both = nn.ModuleList([nn.ModuleDict({"rotary_emb": tiny(name)[0].model.rotary_emb}) for name in ("llama", "qwen2")])
    assert rope_frequencies(both[0]) is not None
    assert rope_frequencies(both) is None


def no_protected(length: int) -> Tensor:
    return torch.zeros(length, dtype=torch.bool)


def test_a_head_with_all_the_mass_gets_all_the_surplus() -> None:
    scores = torch.zeros(3, 50)
    scores[1] = 1 + torch.rand(50, generator=torch.Generator().manual_seed(0))
    assert share_heads(scores, [10, 10, 10], protected=no_protected(50), floor=0.2) == [2, 26, 2]
    assert share_heads(scores, [10, 10, 10], protected=no_protected(50), floor=0.0) == [0, 30, 0]
    assert share_heads(scores, [10, 10, 10], protected=no_protected(50), floor=1.0) == [10, 10, 10]
    protected = torch.arange(50) < 6
    assert share_heads(scores, [16, 16, 16], protected=protected, floor=0.2) == [8, 32, 8]
    # A plan that gives a head more than there is.
    assert share_heads(scores[:2], [54, 46], protected=protected, floor=0.2) == [50, 50]
    # Head 1 is full, and the 30 that it cannot use are the others' by the order of their tokens.
    assert share_heads(scores, [30, 30, 20], protected=no_protected(50), floor=0.0) == [15, 50, 15]


def test_equal_scores_leave_equal_heads() -> None:
    row = torch.rand(1, 40, generator=torch.Generator().manual_seed(0)).expand(4, -1)
    assert share_heads(row, [7] * 4, protected=no_protected(40), floor=0.2) == [7] * 4
    assert share_heads(torch.zeros(4, 40), [7] * 4, protected=no_protected(40), floor=0.2) == [7] * 4


@st.composite
def layers(draw: st.DrawFn) -> tuple[Tensor, list[int], Tensor, float]:
    """(scores [G, S] with ties, counts, protected, floor)."""
    heads, length = draw(st.integers(1, 4)), draw(st.integers(1, 20))
    numbers = draw(st.lists(st.integers(0, 6), min_size=heads * length, max_size=heads * length))
    must = draw(st.integers(0, length))
    counts = draw(st.lists(st.integers(must, length), min_size=heads, max_size=heads))
    protected = torch.arange(length) < must
    return torch.tensor(numbers, dtype=torch.float32).view(heads, length), counts, protected, draw(st.floats(0, 1))


def won_in_a_loop(scores: Tensor, protected: Tensor, total: int) -> list[int]:
    """The best tokens of all heads taken one by one."""
    heads, length = scores.shape
    free = [(-float(scores[g, s]), s, g) for g in range(heads) for s in range(length) if not protected[s]]
    taken = [g for _, _, g in sorted(free)[:total]]
    return [taken.count(g) for g in range(heads)]


@given(layers())
def test_shares_are_those_of_the_algorithm(layer: tuple[Tensor, Sequence[int], Tensor, float]) -> None:
    scores, counts, protected, floor = layer
    shares = share_heads(scores, counts, protected=protected, floor=floor)
    must = int(protected.sum())
    assert sum(shares) == sum(counts)
    assert all(must <= share <= scores.shape[1] for share in shares)
    won = won_in_a_loop(scores, protected, sum(counts) - must * len(counts))
    for share, count, best in zip(shares, counts, won, strict=True):
        assert abs(share - must - (floor * (count - must) + (1 - floor) * best)) < 1 + 1e-6
    assert shares == share_heads(scores, counts, protected=protected, floor=floor)


def test_a_plan_below_the_protected_tokens_is_left_to_be_refused() -> None:
    protected = torch.arange(9) < 4
    counts = share_heads(torch.zeros(2, 9), [3, 8], protected=protected, floor=0.2)
    with pytest.raises(ValueError, match="4 are protected"):
        select(torch.zeros(2, 9), counts, protected=protected, words=None)


OURS = ("agreement", "distinct")
"""Scorers of no paper."""


@pytest.mark.parametrize("name", [name for name in SCORERS if name not in OURS])
def test_published_settings_name_their_scorer_and_keep_single_tokens(name: str) -> None:
    published = make_scorer(ScorerConfig(name)).published
    assert published.name == name
    assert not published.whole_words
    if name in ("window", "reversed"):
        assert (published.window, published.pooling, published.width) == (64, "mean", 5)
    else:
        assert (published.window, published.pooling, published.width) == (1, "none", 1)


@pytest.mark.parametrize("name", OURS)
def test_our_own_scorers_come_with_our_coherence(name: str) -> None:
    published, ours = make_scorer(ScorerConfig(name)).published, ScorerConfig(name)
    assert replace(published, window=ours.window) == ours


def test_distinct_by_hand() -> None:
    """Keydiff's scores and the values' norms, each from 0 to 1 within its head."""
    keys = torch.tensor([[[5.0, 0.0], [0.1, 0.0], [0.0, 7.0]], [[0.0, 2.0], [0.0, -3.0], [0.0, 1.0]]])
    values = torch.tensor([[[3.0, 4.0], [0.0, 9.0], [1.0, 0.0]], [[2.0, 0.0], [0.0, 2.0], [4.0, 0.0]]])
    view = replace(view_of_keys(keys), values=values)
    torch.testing.assert_close(
        scores_of("distinct", view), torch.tensor([[0.5, 1.0, 1.0], [0.0, 1.0, 1.0]]), atol=1e-6, rtol=0
    )
    louder = replace(view, values=values * torch.tensor([[[7.0]], [[0.01]]]))  # scale is each head's own
    torch.testing.assert_close(scores_of("distinct", louder), scores_of("distinct", view), atol=1e-5, rtol=0)


def test_distinct_where_nothing_differs() -> None:
    """A head of equal keys goes by values, one of equal values by keys; one of both equal has zeros."""
    alike, apart = [[1.0, 2.0]] * 3, [[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0]]
    keys, values = torch.tensor([alike, apart, alike]), torch.tensor([[[0.0], [1.0], [4.0]], [[2.0]] * 3, [[2.0]] * 3])
    scores = scores_of("distinct", replace(view_of_keys(keys), values=values))
    torch.testing.assert_close(
        scores, torch.tensor([[0.0, 0.25, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]), atol=1e-6, rtol=0
    )


def test_distinct_does_not_look_at_the_question() -> None:
    view = make_view([3])
    other = replace(view, branches=make_view([5], seed=4).branches, queries=view.queries + 1)
    scores = scores_of("distinct", view)
    assert torch.equal(scores, scores_of("distinct", other))
    assert scores.shape == (KV_HEADS, CONTEXT)
    assert 0 <= float(scores.min()) < float(scores.max()) <= 2
