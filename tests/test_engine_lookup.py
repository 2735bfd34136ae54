"""Guesses from the text: an answer is the same with and without them, and what was not right leaves no trace."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from support.batches import FULL, HALF, ask, engine_of, load_tiny
from support.families import make_prompt
from support.matrix import some
from support.native import fresh_library
from uncomp_cli.config import SamplingConfig
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.look.watch import Watched
from uncomp_cli.engine.records import RunStats
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.engine.write import lookup
from uncomp_cli.engine.write.lookup import MOST_GUESSES, Lookup
from uncomp_cli.engine.write.writer import Writer


@pytest.fixture(autouse=True)
def tireless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random models copy little: it must not rest for that."""
    fresh_library()
    monkeypatch.setattr(lookup, "_ROW_COST", -1.0)
    monkeypatch.setattr(lookup, "_SHORTEST", 1)


def written(
    engine: Engine, prompt: Prompt, *, constant: bool = False, half: bool = False
) -> tuple[list[int], RunStats, list[tuple[Tensor, ...]], list[int]]:
    """An answer of 60 tokens, its figures, what each head then holds, and the tokens that were told of."""
    told: list[int] = []
    asked = ask(engine, HALF if half else FULL, prompt)[0]
    asked = replace(asked, max_new_tokens=60, on_token=lambda index, token: told.append(token), pause_tokens=16)
    watch = Watched(((1, 0), (2, 1)))
    given = engine.decoder, engine.loaded.tokenizer, engine.sampling, [asked]
    writer = Writer(*given, stop_ids=(), constant_size=constant, watch=watch)
    said = [step.token for step in writer.write()]
    stats = writer.stats()
    assert stats is not None
    layers = range(engine.loaded.spec.num_layers)
    groups = range(engine.loaded.spec.num_kv_heads)
    return said, stats, [writer.store.held(at, head) for at in layers for head in groups], told


@pytest.mark.sparse(1)
@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen3-sliding", "olmo2"])
@pytest.mark.parametrize("way", ["greedy", "drawn", "penalised", "constant", "half"])
def test_an_answer_is_the_same_with_and_without(family: str, way: str) -> None:
    settings = {"drawn": {"temperature": 0.3, "seed": 5}, "penalised": {"repetition_penalty": 1.1}}.get(way, {})
    loaded, right = load_tiny(family), 0
    for seed in some(3, 6):
        prompt = make_prompt(40 + seed, [5], seed=seed)
        found = []
        for looks_up in (True, False):
            engine = engine_of(loaded, SamplingConfig(**settings, lookup=looks_up, max_new_tokens=60))
            found.append(written(engine, prompt, constant=way == "constant", half=way == "half"))
        (said, stats, held, told), (expected, plain, kept, heard) = found
        assert said == expected
        assert [at.tolist() for _, _, at in held] == [at.tolist() for _, _, at in kept]
        torch.testing.assert_close(held, kept, atol=1e-4, rtol=1e-4)
        assert told == heard == said[: len(told)]
        assert (plain.guessed_tokens, stats.guessed_tokens > 0) == (0, True)
        assert stats.signs == pytest.approx(plain.signs, abs=1e-4)
        assert stats.completion_tokens == plain.completion_tokens
        right += stats.accepted_tokens
    assert right > 0


def test_a_loop_is_stopped_where_it_was() -> None:
    loaded, ends = load_tiny("llama"), []
    for looks_up in (True, False):
        engine = engine_of(loaded, SamplingConfig(lookup=looks_up, max_new_tokens=600))
        asked = ask(engine, FULL, make_prompt(40, [5], seed=1))
        steps = list(Writer(engine.decoder, loaded.tokenizer, engine.sampling, asked, stop_ids=(60,)).write())
        ends.append((steps[-1].finish_reason, [step.token for step in steps]))
        assert [step.finish_reason for step in steps[:-1]] == [None] * (len(steps) - 1)
        assert [step.index for step in steps] == list(range(len(steps)))
    assert ends[0] == ends[1]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=40), st.lists(st.integers(0, 3), max_size=10))
def test_a_guess_follows_the_latest_of_the_longest_ends(text: list[int], answer: list[int]) -> None:
    guesses = Lookup(text)
    for token in answer:
        guesses.append(token)
    ids = text + answer

    def shared(end: int) -> int:
        """How many tokens up to `end` are those that the whole ends in."""
        same = 0
        while same < min(end, 16) and ids[end - 1 - same] == ids[-1 - same]:
            same += 1
        return same

    best = max(range(1, len(ids)), key=lambda end: (shared(end), end), default=0)
    expected = ids[best : best + MOST_GUESSES] if best and shared(best) else []
    assert guesses.guess(MOST_GUESSES) == expected


def test_it_rests_when_guesses_do_not_pay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "_ROW_COST", 0.25)
    guesses, tried = Lookup([1, 2, 3, 4, 1, 2]), []
    for _ in range(400):
        made = guesses.guess(MOST_GUESSES)
        tried.append(bool(made))
        if made:
            guesses.learn(len(made), 0)
    assert sum(tried) < 40
    assert any(tried[200:])
    paying = Lookup([1, 2, 3, 4, 1, 2])
    for _ in range(50):
        made = paying.guess(MOST_GUESSES)
        assert made == [3, 4, 1, 2]
        paying.learn(4, 2)
