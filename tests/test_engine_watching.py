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
from uncomp_cli.cache.softmax import Form
from uncomp_cli.config import SamplingConfig
from uncomp_cli.engine.context.context import Context
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.forward.attention import AppendState
from uncomp_cli.engine.look.watch import (
    FEW_TOKENS,
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
from uncomp_cli.uncertainty.entropy import attention_entropy
from uncomp_cli.uncertainty.error_rates import RiskBin, RiskCurve

GREEDY = SamplingConfig(max_new_tokens=12)
CURVE = RiskCurve(
    {"attention": 1.0}, ((0, 1), (2, 0)), (0.0, 0.5), (RiskBin(0, 1, 0.5, 0.2, 0.8, 9),), 0.5, 0.3, 0.7, 9, (100,)
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

    def observe(self, layer: int, query: Tensor, form: Form) -> None:
        grouped = query[0].reshape(self.groups, -1, query.shape[-1])
        for head in range(self.groups):
            keys, _, positions = self.cache.layer(layer).head(head)
            weights = (grouped[head] @ keys.float().T * form.scaling).softmax(dim=-1)
            self.rows.setdefault((layer, head), []).append((weights, positions.clone()))


@pytest.mark.parametrize("preset", [FULL, HALF, UNEVEN, replace(HALF, kv_bits=8)], ids=["full", "half", "uneven", "8"])
@pytest.mark.parametrize("packed", [False, True])
def test_entropies_and_patterns_are_those_of_the_weights(preset: Preset, packed: bool) -> None:
    loaded = load_tiny("llama")
    engine = engine_of(loaded)
    done = read(engine, preset)
    heads, edges = all_heads(loaded.spec), distance_edges(200)
    cache, groups = done.cache, loaded.spec.num_kv_heads
    what = Watched(heads, sinks=4, edges=edges, packed=packed)
    watch = AnswerWatch(what, held_in(cache), loaded.spec, texts=[50])
    witness = Witness(cache, groups)
    positions = next_positions(done)
    for token in (5, 9, 11):
        for state in (AppendState(cache, positions, on_query=lambda *a: (watch.observe(*a), witness.observe(*a))),):
            engine.decoder.forward(torch.tensor([[token]]), positions, state, 1)
        positions = positions + 1
    assert watch.tokens == 3
    mass = torch.zeros(100)
    for at, head in enumerate(heads):
        shares, raws, patterns = [], [], []
        for weights, places in witness.rows[head]:
            beyond = weights[:, places >= 4]
            shares.append(attention_entropy(beyond).mean())
            raws.append(shares[-1] * math.log(beyond.shape[1]))
            distances = torch.arange(len(places)).flip(0) if packed else (places[-1] - places).long()
            patterns.append(distance_pattern(beyond, distances[places >= 4], edges).mean(0))
        torch.testing.assert_close(watch.by_head[0, at], torch.stack(shares).mean(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(watch.raw_by_head[0, at], torch.stack(raws).mean(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(watch.pattern[0, at], torch.stack(patterns).mean(0), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(watch.latest[0, at], shares[-1], atol=1e-5, rtol=1e-4)
        weights, held = witness.rows[head][-1]
        seen = (weights[:, held >= 4] / weights[:, held >= 4].sum(1, keepdim=True)).mean(0)
        mass.index_add_(0, held[held >= 4].long(), seen)
    torch.testing.assert_close(watch.mass[0][-1], mass[:50], atol=1e-5, rtol=1e-4)


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


def test_an_answer_has_its_signs() -> None:
    loaded = load_tiny("llama")
    engine, heads = engine_of(loaded), ((1, 0), (2, 1))
    (asked,) = ask(engine, HALF, make_prompt(60, (5,)))
    writer = engine.writer([asked], watch=Watched(heads))
    latest, found, ids, mass = [], [], [], torch.zeros(60)
    for step in writer.write():
        ids.append(step.token)
        if step.index:
            latest.append(writer.watching.latest[0].clone())
            mass += writer.watching.mass[0][-1]
        found.append(writer.stats().signs)
    assert found[0] == {}  # chosen behind the prompt
    logits = asked.context.predict(ids)
    said = torch.special.entr(logits.softmax(-1)).sum(-1).mean() / math.log(logits.shape[-1])
    peak = max(mass[at : at + 8].sum() for at in range(53)) / mass.sum()
    expected = {"attention": torch.stack(latest).mean(), "peak": peak, "output": said}
    assert found[-1] == pytest.approx({name: float(value) for name, value in expected.items()}, rel=1e-5)


def test_nothing_is_watched_without_heads_or_when_not_wanted() -> None:
    loaded = load_tiny("llama")
    engine = engine_of(loaded)
    for preset, watch in ((HALF, True), (replace(HALF, risk=(CURVE,)), False)):
        writer = engine.writer(ask(engine, preset, make_prompt(60, (5,))), watch=watch)
        assert len(list(writer.write())) > 1
        assert writer.watching is None
        assert writer.stats().signs == {}


@pytest.mark.sparse(1)
@pytest.mark.parametrize(
    "way", [{}, {"kv_bytes": 0}, {"constant_size": True}], ids=["at once", "one by one", "constant"]
)
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
@pytest.mark.parametrize("preset", [FULL, UNEVEN, replace(HALF, kv_bits=8)], ids=["full", "uneven", "8"])
def test_a_row_of_a_batch_has_the_signal_that_it_has_alone(family: str, preset: Preset, way: dict[str, Any]) -> None:
    loaded = load_tiny(family)
    what = Watched(all_heads(loaded.spec)[:3])
    engine = engine_of(loaded, GREEDY)
    asked = ask(engine, preset, make_prompt(60, QUESTIONS))
    expected = [alone(engine, each, watch=what)[1].signs for each in asked]
    assert sum(map(bool, expected)) > 3  # an answer of one token has none
    writer = Writer(engine.decoder, loaded.tokenizer, GREEDY, asked, watch=what, **way)
    list(writer.write())
    for row, value in enumerate(expected):
        assert writer.stats(row).signs == pytest.approx(value, rel=1e-3, abs=1e-5)


def test_prompts_of_their_own_have_their_own_signals() -> None:
    loaded = load_tiny("llama")
    engine, what = engine_of(loaded, GREEDY), Watched(all_heads(loaded.spec))
    asked = [ask(engine, UNEVEN, make_prompt(length, (4,), seed=n))[0] for n, length in enumerate((40, 70, 55))]
    expected = [alone(engine, each, watch=what)[1].signs for each in asked]
    writer = engine.writer(asked, watch=what)
    list(writer.write())
    for row, signs in enumerate(expected):
        assert writer.stats(row).signs == pytest.approx(signs, rel=1e-3)


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
    curved = replace(HALF, risk=(CURVE,))
    assert watched_heads(curved, spec) == CURVE.heads
    assert watched(curved, spec) == Watched(CURVE.heads, HALF.scorer.sinks)
    assert watched_heads(curved, replace(spec, num_layers=2, sliding_windows=(None, None))) == ()
    assert watched_heads(curved, replace(spec, sliding_windows=(9, *spec.sliding_windows[1:]))) == ()


@pytest.mark.model
def test_a_profile_names_the_costly_heads(default_model: Any) -> None:
    preset = load_preset("balanced")
    found = watched_heads(replace(preset, risk=()), default_model.spec)
    assert len(found) == 4
    from uncomp_cli.engine.spend.allocation import profile_of

    losses = profile_of(preset).mean("loss")
    least = min(float(losses[head]) for head in found)
    assert sum(float(value) >= least for value in losses.flatten()) == 4
    assert watched_heads(replace(preset, risk=()), tiny("llama")[2]) == ()


def test_signs_are_of_the_first_tokens() -> None:
    tally, elsewhere = Tally(), torch.zeros(40)
    assert tally.signs == {}
    elsewhere[30] = 1000
    for number in range(FEW_TOKENS + 4):
        few = number < FEW_TOKENS
        tally.take(torch.tensor([0.2, 0.4 if few else 9.0]), torch.arange(40.0) % 20 if few else elsewhere)
    assert tally.peak == (16, pytest.approx(sum(range(12, 20)) / 380))
    assert tally.signs == pytest.approx({"attention": 0.3, "peak": tally.peak[1]})


def test_a_text_without_tokens_has_no_peak() -> None:
    tally = Tally()
    tally.take(torch.tensor([0.2]), torch.zeros(0))
    assert tally.peak == (0, 0.0)


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
