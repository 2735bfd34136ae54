"""A chat watches its answers: what the watched heads said is in every turn's figures."""

from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest

from uncomp_cli.budget.presets import load_preset
from uncomp_cli.config import SamplingConfig
from uncomp_cli.engine.context.session import BLOCK_TOKENS
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.look.watch import FEW_TOKENS, Watched
from uncomp_cli.engine.records import DecodeStep
from uncomp_cli.engine.tokens.messages import Message
from uncomp_cli.engine.tokens.prompt import chat_prompt
from uncomp_cli.models.loading import load_model
from uncomp_cli.models.runnable import LoadedModel
from uncomp_cli.uncertainty.error_rates import RiskBin, RiskCurve

CURVE = RiskCurve(
    {"attention": 1.0}, ((0, 1), (1, 0)), (0.0, 0.5), (RiskBin(0, 1, 0.5, 0.2, 0.8, 9),), 0.5, 0.3, 0.7, 9, (100,)
)
PRESET = replace(load_preset("unseen"), budget="40%", kv_bits=16, floor_tokens=0, profile=None, risk=(CURVE,))


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> LoadedModel:
    return load_model(str(tiny_model), dtype="float32", device="cpu")


def test_every_turn_has_the_signal_of_its_answer(loaded: LoadedModel) -> None:
    session = Engine(loaded, sampling=SamplingConfig(max_new_tokens=BLOCK_TOKENS + 8, lookup=False)).conversation(
        PRESET
    )
    assert session.watched == Watched(CURVE.heads, PRESET.scorer.sinks)
    messages = [Message("user", "The harbour was quiet. " * 40 + "Who came?")]
    watches = []
    for _ in range(2):
        latest = []
        for step in session.turn(messages):
            if (
                isinstance(step, DecodeStep)
                and step.index
                and session.writer is not None
                and session.writer.watching is not None
            ):
                latest.append(float(session.writer.watching.latest[0].mean()))
        assert session.stats is not None
        assert len(latest) > 1
        assert session.stats.signs["attention"] == pytest.approx(fmean(latest[:FEW_TOKENS]), rel=1e-4)
        watches.append(session.writer)
        messages = [*messages, Message("assistant", "Nobody."), Message("user", "And then?")]
    assert watches[0] is not watches[1]


def test_another_preset_is_watched_by_its_own_heads(loaded: LoadedModel) -> None:
    session = Engine(loaded, sampling=SamplingConfig(max_new_tokens=4)).conversation(PRESET)
    session.use(replace(PRESET, risk=()))
    assert session.watched is None
    for _ in session.turn([Message("user", "The harbour was quiet. " * 40 + "Who came?")]):
        pass
    assert session.stats is not None
    assert session.stats.signs == {}
    assert session.writer is not None
    assert session.writer.watching is None


def test_a_reused_context_is_watched_too(loaded: LoadedModel) -> None:
    engine = Engine(loaded, sampling=SamplingConfig(max_new_tokens=6))
    prompt = chat_prompt(loaded.tokenizer, "the keeper writes the hour. " * 20, ["who writes?"], system=None, sinks=4)
    writer = engine.writer(engine.asked(engine.read(prompt, PRESET, for_any=True).finish()))
    assert len(list(writer.write())) > 1
    stats = writer.stats()
    assert stats is not None
    assert 0 < stats.signs["attention"] < 1
