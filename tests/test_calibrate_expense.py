"""What a calibration is said to take before it begins, against what it takes."""

import re
import time
from typing import Any

import pytest

from support.commands import run_here, two_lines
from support.families import SHAPE, make_prompt, tiny, tokens
from support.memory import peak_of
from uncomp_cli.budget.amount import Budget
from uncomp_cli.calibrate import expense
from uncomp_cli.calibrate.calibration import MeasuringConfig, measurable, read_and_measure
from uncomp_cli.calibrate.expense import ANSWER_TOKENS, foreseen_seconds, sample_bytes
from uncomp_cli.engine.look.cost import eviction_loss
from uncomp_cli.engine.spend import memory

WIDE = 20_000


@pytest.mark.parametrize("vocab", [300, WIDE])
def test_a_sample_takes_what_is_said(vocab: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPE, "vocab_size", vocab)
    monkeypatch.setattr(expense, "PART_NUMBERS", 0)  # of a GGUF's blocks, which this model has not
    _, decoder, spec = tiny("llama")
    config = MeasuringConfig(measurable(decoder, MeasuringConfig().measures))

    def work() -> Any:
        return read_and_measure(decoder, make_prompt(1500, [12]), tokens(ANSWER_TOKENS, 3), config=config)

    assert 0.4 < peak_of(work) / sample_bytes(spec, 1512) < 1.1


def test_of_a_large_vocabulary_two_copies_of_an_answers_logits_are_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHAPE, "vocab_size", WIDE)
    _, decoder, spec = tiny("llama")
    config, layers = MeasuringConfig(("loss",)), []

    def keep(decoder: Any, read: Any, answer: Any, *, states: Any) -> Any:
        layers.append((read, states))
        return eviction_loss(decoder, read, answer, states=states)

    monkeypatch.setattr("uncomp_cli.calibrate.calibration.eviction_loss", keep)
    answer = tokens(ANSWER_TOKENS, 3)
    read_and_measure(decoder, make_prompt(100, [12]), answer, config=config)
    read, states = layers[0]
    logits = (ANSWER_TOKENS - 1) * spec.vocab_size * 4
    assert peak_of(lambda: eviction_loss(decoder, read, answer, states=states)) < 2.5 * logits


def test_seconds_are_foreseen_from_two_short_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def measure(count: int) -> None:
        now[0] += 2 + count / 100

    assert foreseen_seconds(measure, [3000, 5000]) == pytest.approx(2 + 30 + 2 + 50)
    assert foreseen_seconds(measure, [3000]) is None  # not worth it


@pytest.mark.usefixtures("alone")
def test_memory_is_told_and_too_little_is_refused(tiny_model: Any) -> None:
    command = ("calibrate", "-m", str(tiny_model), "--tokens", "400", "-t", "continuation", "--samples", "1")
    with pytest.MonkeyPatch.context() as small:  # not the one that holds the directories
        small.setattr(memory, "free_bytes", lambda device: 20 * 2**20)
        code, out, err = run_here(*command)
    assert (code, out) == (4, "")
    said, mends = two_lines(err)
    assert "a sample of 400 tokens needs" in said
    assert "20.0 MiB are free" in said
    assert "--tokens" in mends
    code, out, err = run_here(*command)
    assert code == 0, err
    told = re.search(r"weights and one sample need (.+) beside the program, about (.+) with it", err)
    assert told, err
    beside, together = (Budget.parse(each.replace(" ", "").replace(",", "")).amount for each in told.groups())
    assert beside + 100 * 2**20 < together < beside + 3 * 2**30  # torch and transformers are there, and other tests'
