"""Answers of a batch are those one after another: every way of holding rows, and under a bound of bytes."""

from dataclasses import replace
from typing import Any

import pytest

from support.batches import FULL, HALF, QUESTIONS, STOPS, UNEVEN, ask, load_tiny, session_of
from support.families import make_prompt
from uncomp_cli.budget.presets import Preset
from uncomp_cli.config import SamplingConfig
from uncomp_cli.engine.context.session import RunStats
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.engine.write.batch import Batch, BatchSession, RowStep
from uncomp_cli.engine.write.branches import SharedRows
from uncomp_cli.engine.write.rows import Asked, OneRow, StackedRows

Answer = tuple[tuple[int, ...], RunStats]


def batch_of(session: BatchSession, kv_bytes: int | None = None) -> Batch:
    return Batch(session.loaded, session.decoder, session.sampling, kv_bytes=kv_bytes)


def one_after_another(session: BatchSession, prompt: Prompt) -> list[Answer]:
    answers = []
    for number in range(len(prompt.questions)):
        ids = tuple(step.token_ids[0] for step in session.answer(number))
        assert session.stats is not None
        answers.append((ids, session.stats))
    return answers


def together(batch: Batch, asked: list[Asked]) -> tuple[list[Answer], list[RowStep]]:
    steps = list(batch.answer(asked))
    answers = []
    for row in range(len(asked)):
        stats = batch.stats(row)
        assert stats is not None
        answers.append((tuple(s.step.token_ids[0] for s in steps if s.row == row), stats))
    return answers, steps


def assert_agree(found: list[Answer], expected: list[Answer]) -> None:
    assert [ids for ids, _ in found] == [ids for ids, _ in expected]
    for (_, stats), (_, alone) in zip(found, expected, strict=True):
        for name in ("prompt_tokens", "cached_tokens", "completion_tokens", "kv_full_bytes", "finish_reason"):
            assert getattr(stats, name) == getattr(alone, name), name


def cases(kv_bits: int) -> list[Any]:
    """Every preset with one family; with two whose layers slide, heads of unequal length and one other preset."""
    presets = {"full": FULL, "half": HALF, "uneven": UNEVEN, f"{kv_bits}": replace(HALF, kv_bits=kv_bits)}
    wanted = {"llama": presets, "qwen2-sliding": ("uneven", "full"), "gemma3_text": ("uneven", f"{kv_bits}")}
    return [pytest.param(family, presets[name], id=f"{family}-{name}") for family in wanted for name in wanted[family]]


@pytest.mark.parametrize(("family", "preset"), cases(8))
def test_questions_of_one_prompt_share_its_context(family: str, preset: Preset) -> None:
    prompt = make_prompt(60, QUESTIONS)
    session = session_of(load_tiny(family), preset)
    asked = ask(session, prompt)
    expected = one_after_another(session, prompt)
    assert len({len(ids) for ids, _ in expected}) > 1
    batch = batch_of(session)
    found, _ = together(batch, asked)
    assert isinstance(batch.store, SharedRows)
    assert_agree(found, expected)


@pytest.mark.parametrize(("family", "preset"), cases(4))
def test_several_prompts_are_rows_of_one_cache(family: str, preset: Preset) -> None:
    """Of one question, whose keys are in the cache, and of several, whose keys wait beside it."""
    prompts = [make_prompt(50 + 9 * n, counts, seed=n) for n, counts in enumerate([(5,), (3, 8), (2,), (4, 1, 6)])]
    session = session_of(load_tiny(family), preset)
    asked: list[Asked] = []
    expected: list[Answer] = []
    for prompt in prompts:
        asked += ask(session, prompt)
        expected += one_after_another(session, prompt)
    batch = batch_of(session)
    found, _ = together(batch, asked)
    assert isinstance(batch.store, StackedRows)
    assert_agree(found, expected)


@pytest.mark.parametrize("shared", [True, False])
def test_rows_wait_until_they_fit(shared: bool) -> None:
    """The bound holds at every step, rows come and go, and the answers stay the same."""
    prompts = [make_prompt(60, QUESTIONS)] if shared else [make_prompt(40 + n, (5,), seed=n) for n in range(7)]
    session = session_of(load_tiny("llama"), HALF)
    asked: list[Asked] = []
    expected: list[Answer] = []
    for prompt in prompts:
        asked += ask(session, prompt)
        expected += one_after_another(session, prompt)
    store = SharedRows(asked[0].read, session.decoder.spec) if shared else StackedRows(session.decoder.spec)
    bound = store.bytes_of(asked[:3])
    batch = batch_of(session, kv_bytes=bound)
    found: dict[int, list[int]] = {row: [] for row in range(7)}
    ended: set[int] = set()
    at_once = 0
    for taken in batch.answer(asked):
        found[taken.row].append(taken.step.token_ids[0])
        ended |= {taken.row} if taken.step.finish_reasons[0] else set()
        at_once = max(at_once, sum(1 for row, ids in found.items() if ids and row not in ended))
        assert batch.store.nbytes <= bound
        assert taken.step.kv_bytes == batch.store.nbytes
    assert 2 <= at_once <= 4
    assert [tuple(ids) for ids in found.values()] == [ids for ids, _ in expected]


def test_without_room_for_two_nothing_is_copied() -> None:
    prompt = make_prompt(60, QUESTIONS)
    session = session_of(load_tiny("llama"), HALF)
    asked = ask(session, prompt)
    expected = one_after_another(session, prompt)
    batch = batch_of(session, kv_bytes=1)
    found, steps = together(batch, asked)
    assert isinstance(batch.store, OneRow)
    assert_agree(found, expected)
    assert [taken.row for taken in steps] == sorted(taken.row for taken in steps)


def test_every_row_has_its_own_seed_and_penalty() -> None:
    sampling = SamplingConfig(temperature=1.3, top_k=20, repetition_penalty=1.2, seed=5, max_new_tokens=20)
    prompt = make_prompt(60, (4, 4, 4))
    prompt = replace(prompt, questions=(prompt.questions[0],) * 3)
    session = session_of(load_tiny("llama"), FULL, sampling)
    asked = ask(session, prompt)
    expected = one_after_another(session, prompt)
    assert len({ids for ids, _ in expected}) == 3
    assert_agree(together(batch_of(session), asked)[0], expected)


def test_a_row_that_stops_says_no_more() -> None:
    prompt = make_prompt(60, QUESTIONS)
    session = session_of(load_tiny("llama"), FULL)
    _, steps = together(batch_of(session), ask(session, prompt))
    for row in range(len(QUESTIONS)):
        own = [taken.step for taken in steps if taken.row == row]
        assert [step.index for step in own] == list(range(len(own)))
        assert [step.finish_reasons[0] is None for step in own] == [True] * (len(own) - 1) + [False]
        if own[-1].finish_reasons[0] == "stop":
            assert own[-1].token_ids[0] in STOPS
            assert own[-1].texts == ("",)


def test_the_figures_of_a_row_are_its_own() -> None:
    prompt = make_prompt(60, QUESTIONS)
    session = session_of(load_tiny("llama"), FULL)
    asked = ask(session, prompt)
    batch = batch_of(session)
    running = iter(batch.answer(asked))
    first = next(running)
    assert first.row == 0
    midway = batch.stats(0)
    assert midway is not None
    assert (midway.completion_tokens, midway.finish_reason) == (1, "interrupted")
    last = batch.stats(6)
    assert last is not None
    assert last.completion_tokens == 1  # all begin before any is told of
    for _ in running:
        pass
    stats = [batch.stats(row) for row in range(len(QUESTIONS))]
    assert all(one is not None for one in stats)
    done = [one for one in stats if one is not None]
    assert [one.prefill_s > 0 for one in done] == [True] + [False] * 6
    assert all(one.ttft_s >= one.prefill_s for one in done)
    assert all(one.decode_tok_s is None or one.decode_tok_s > 0 for one in done)
    context = sum(session.layer_bytes())
    assert all(one.kv_bytes > context for one in done)


def test_the_answer_ends_where_the_context_does() -> None:
    prompt = make_prompt(240, (5, 9))
    session = session_of(load_tiny("llama"), FULL)
    session.loaded.model.generation_config.eos_token_id = []
    session.loaded.model.config.eos_token_id = None
    asked = ask(session, prompt)
    assert [each.max_new_tokens for each in asked] == [11, 7]
    found, _ = together(batch_of(session), asked)
    assert [(len(ids), stats.finish_reason) for ids, stats in found] == [(11, "length"), (7, "length")]


def test_a_constant_size_holds_for_every_row() -> None:
    prompt = make_prompt(90, (5, 9))
    session = session_of(load_tiny("llama"), HALF, SamplingConfig(max_new_tokens=150))
    session.loaded.model.generation_config.eos_token_id = []
    asked = ask(session, prompt)
    batch = Batch(session.loaded, session.decoder, session.sampling, stop_ids=(), constant_size=True)
    _, steps = together(batch, asked)
    sizes = [{taken.step.kv_bytes for taken in steps if taken.row == row} for row in (0, 1)]
    assert [len(size) for size in sizes] == [1, 1]
    growing, steps = together(Batch(session.loaded, session.decoder, session.sampling, stop_ids=(), kv_bytes=1), asked)
    assert max(taken.step.kv_bytes for taken in steps) > max(sizes[0] | sizes[1])
    assert [stats.completion_tokens for _, stats in growing] == [150, 150]
