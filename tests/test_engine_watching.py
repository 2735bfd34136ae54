"""The watch sees what attention saw: against explicit weights, alone and in a batch, and for the heads it should."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from support.batches import FULL, HALF, QUESTIONS, UNEVEN, alone, ask, engine_of, load_tiny
from support.families import make_prompt, next_positions, tiny
from support.native import fresh_library
from uncomp_cli.budget.presets import Preset, load_preset
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.config import SamplingConfig
from uncomp_cli.engine.context.context import Context
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.forward.attention import AppendState
from uncomp_cli.engine.look.watch import (
    AnswerWatch,
    Held,
    Tally,
    Watched,
    all_heads,
    watched,
    watched_heads,
)
from uncomp_cli.engine.write.writer import Writer
from uncomp_cli.uncertainty.distance_pattern import distance_edges, distance_pattern
from uncomp_cli.uncertainty.entropy import attention_entropy, score_entropy
from uncomp_cli.uncertainty.error_rates import RiskBin, RiskCurve

GREEDY = SamplingConfig(max_new_tokens=12)
CURVE = RiskCurve(
    "entropy/least", ((0, 1), (2, 0)), (0.0, 0.5), (RiskBin(0, 1, 0.5, 0.2, 0.8, 9),), 0.5, 0.3, 0.7, 9, (100,)
)


def read(engine: Engine, preset: Preset, context: int = 60, questions: tuple[int, ...] = (5,)) -> Context:
    done = engine.read(make_prompt(context, questions), preset).finish()
    done.begin()
    return done


def held_in(cache: RaggedKVCache) -> Held:
    return lambda layer, head: cache.layer(layer).head(head)


class Witness:
    """Notes every query that decoding used, and the weights [R, S] that it must have had."""

    def __init__(self, cache: Any, groups: int) -> None:
        self.cache, self.groups = cache, groups
        self.rows: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}

    def observe(self, layer: int, query: Tensor, scaling: float) -> None:
        grouped = query[0].reshape(self.groups, -1, query.shape[-1])
        for head in range(self.groups):
            keys, _, positions = self.cache.layer(layer).head(head)
            weights = (grouped[head] @ keys.float().T * scaling).softmax(dim=-1)
            self.rows.setdefault((layer, head), []).append((weights, positions.clone()))


@pytest.mark.parametrize("preset", [FULL, HALF, UNEVEN, replace(HALF, kv_bits=8)], ids=["full", "half", "uneven", "8"])
@pytest.mark.parametrize("packed", [False, True])
def test_entropies_and_patterns_are_those_of_the_weights(preset: Preset, packed: bool) -> None:
    loaded = load_tiny("llama")
    engine = engine_of(loaded)
    done = read(engine, preset)
    heads, edges = all_heads(loaded.spec), distance_edges(200)
    cache, groups = done.cache, loaded.spec.num_kv_heads
    watch = AnswerWatch(Watched(heads, sinks=4, edges=edges, packed=packed), held_in(cache), loaded.spec)
    witness = Witness(cache, groups)
    positions = next_positions(done)
    for token in (5, 9, 11):
        for state in (AppendState(cache, positions, on_query=lambda *a: (watch.observe(*a), witness.observe(*a))),):
            engine.decoder.forward(torch.tensor([[token]]), positions, state, 1)
        positions = positions + 1
    assert watch.tokens == 3
    for at, head in enumerate(heads):
        shares, raws, patterns = [], [], []
        for weights, places in witness.rows[head]:
            sinks = places < 4
            shares.append(attention_entropy(weights[:, ~sinks], normalise=True).mean())
            raws.append(attention_entropy(weights, exclude=sinks).mean())
            places = torch.arange(len(places)) if packed else places
            distances = (places[-1] - places).long()
            patterns.append(distance_pattern(weights, distances, edges, exclude=sinks).mean(0))
        torch.testing.assert_close(watch.by_head[0, at], torch.stack(shares).mean(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(watch.raw_by_head[0, at], torch.stack(raws).mean(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(watch.pattern[0, at], torch.stack(patterns).mean(0), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(watch.latest[0, at], shares[-1], atol=1e-5, rtol=1e-4)


def test_tokens_at_once_are_tokens_one_by_one() -> None:
    loaded = load_tiny("llama")
    what = Watched(all_heads(loaded.spec), edges=distance_edges(200))
    ids, found = torch.tensor([[5, 9, 11, 4]]), []
    for step in (1, 4):
        engine = engine_of(loaded)
        done = read(engine, UNEVEN)
        cache, first = done.cache, next_positions(done)
        watch = AnswerWatch(what, held_in(cache), loaded.spec)
        for begin in range(0, 4, step):
            positions = first + torch.arange(begin, begin + step)
            state = AppendState(cache, positions, on_query=watch.observe)
            engine.decoder.forward(ids[:, begin : begin + step], positions, state, 1)
        found.append(watch)
    one, many = found
    assert one.tokens == many.tokens == 4
    for name in ("by_head", "raw_by_head", "pattern", "latest", "raw"):
        torch.testing.assert_close(getattr(one, name), getattr(many, name), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("signal", ["entropy/mean", "entropy/least", "entropy/first", "entropy/joint"])
def test_a_session_tells_its_signal(signal: str) -> None:
    loaded = load_tiny("llama")
    engine = engine_of(loaded)
    (asked,) = ask(engine, HALF, make_prompt(60, (5,)))
    writer = engine.writer([asked], watch=Watched(((1, 0), (2, 1)), signal=signal))
    latest, found, ids = [], [], []
    for step in writer.write():
        ids.append(step.token)
        if step.index:
            latest.append(writer.watching.latest[0].clone())
        found.append(writer.stats().attention_entropy)
    assert found[0] is None  # chosen behind the prompt
    rows = torch.stack(latest)
    expected = {"entropy/mean": rows.mean(), "entropy/least": rows.amin(1).mean(), "entropy/first": rows[0].mean()}
    logits = asked.context.predict(ids)
    said = torch.special.entr(logits.softmax(-1)).sum(-1).mean() / math.log(logits.shape[-1])
    expected["entropy/joint"] = rows.mean() + said
    assert found[-1] == pytest.approx(float(expected[signal]), rel=1e-5)
    assert 0 < found[-1] < 2


def test_nothing_is_watched_without_heads_or_when_not_wanted() -> None:
    loaded = load_tiny("llama")
    engine = engine_of(loaded)
    for preset, watch in ((HALF, True), (replace(HALF, risk=CURVE), False)):
        writer = engine.writer(ask(engine, preset, make_prompt(60, (5,))), watch=watch)
        assert len(list(writer.write())) > 1
        assert writer.watching is None
        assert writer.stats().attention_entropy is None


@pytest.mark.sparse(1)
@pytest.mark.parametrize(
    "way", [{}, {"kv_bytes": 0}, {"constant_size": True}], ids=["at once", "one by one", "constant"]
)
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("preset", [FULL, UNEVEN, replace(HALF, kv_bits=8)], ids=["full", "uneven", "8"])
def test_a_row_of_a_batch_has_the_signal_that_it_has_alone(family: str, preset: Preset, way: dict[str, Any]) -> None:
    loaded = load_tiny(family)
    what = Watched(all_heads(loaded.spec)[:3], signal="entropy/joint")
    engine = engine_of(loaded, GREEDY)
    asked = ask(engine, preset, make_prompt(60, QUESTIONS))
    expected = [alone(engine, each, watch=what)[1].attention_entropy for each in asked]
    assert sum(value is not None for value in expected) > 3  # an answer of one token has none
    writer = Writer(engine.decoder, loaded.tokenizer, GREEDY, asked, watch=what, **way)
    list(writer.write())
    for row, value in enumerate(expected):
        found = writer.stats(row).attention_entropy
        assert found is None if value is None else found == pytest.approx(value, rel=1e-3, abs=1e-5)


def test_prompts_of_their_own_have_their_own_signals() -> None:
    loaded = load_tiny("llama")
    engine, what = engine_of(loaded, GREEDY), Watched(all_heads(loaded.spec))
    asked = [ask(engine, UNEVEN, make_prompt(length, (4,), seed=n))[0] for n, length in enumerate((40, 70, 55))]
    expected = [alone(engine, each, watch=what)[1].attention_entropy for each in asked]
    writer = engine.writer(asked, watch=what)
    list(writer.write())
    assert [writer.stats(row).attention_entropy for row in range(3)] == pytest.approx(expected, rel=1e-3)


def test_rows_of_two_regimes_are_refused() -> None:
    engine = engine_of(load_tiny("llama"))
    asked = ask(engine, FULL, make_prompt(40, (3, 4)))
    asked[0].context.regime_tokens = 64
    with pytest.raises(ValueError, match="regime"):
        engine.writer(asked)


def test_the_heads_are_those_of_the_curve_or_the_costly_ones() -> None:
    _, _, spec = tiny("llama")
    assert watched_heads(HALF, spec) == ()
    assert watched(HALF, spec) is None
    curved = replace(HALF, risk=CURVE)
    assert watched_heads(curved, spec) == CURVE.heads
    assert watched(curved, spec) == Watched(CURVE.heads, HALF.scorer.sinks, "entropy/least")
    assert watched_heads(curved, replace(spec, num_layers=2, sliding_windows=(None, None))) == ()
    assert watched_heads(curved, replace(spec, sliding_windows=(9, *spec.sliding_windows[1:]))) == ()


@pytest.mark.model
def test_a_profile_names_the_costly_heads(default_model: Any) -> None:
    preset = load_preset("balanced")
    found = watched_heads(replace(preset, risk=None), default_model.spec)
    assert len(found) == 4
    from uncomp_cli.engine.spend.allocation import profile_of

    losses = profile_of(preset).mean("loss")
    least = min(float(losses[head]) for head in found)
    assert sum(float(value) >= least for value in losses.flatten()) == 4
    assert watched_heads(replace(preset, risk=None), tiny("llama")[2]) == ()


def test_scores_give_the_entropy_of_their_softmax() -> None:
    scores = torch.randn(3, 7, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(score_entropy(scores), attention_entropy(scores.softmax(-1)))
    scores[:, 4:] = -1e30
    torch.testing.assert_close(score_entropy(scores), attention_entropy(scores[:, :4].softmax(-1)))
    assert score_entropy(torch.zeros(2, 1)).tolist() == [0, 0]


def test_a_tally_before_its_first_token() -> None:
    tally = Tally()
    assert tally.value("entropy/mean") is None
    with pytest.raises(ValueError, match="no token"):
        tally.signal("entropy/mean")


def test_a_step_in_one_call_wakes_no_thread_of_torchs() -> None:
    """What sees the queries, and what reads the logits, works on one: others would spin beside the library's own."""
    fresh_library()
    engine, seen = engine_of(load_tiny("llama"), GREEDY), list[int]()
    context, before = read(engine, FULL), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        at = next_positions(context)
        state = AppendState(context.cache, at, on_query=lambda *_: seen.append(torch.get_num_threads()))
        engine.decoder.forward(torch.zeros_like(at), at, state, 1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert set(seen) == {1}
