"""Answers of a batch are those one after another: every way of holding rows, and under a bound of bytes."""

import gc
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any

import pytest
from torch import Tensor

from support.batches import FULL, HALF, QUESTIONS, STOPS, UNEVEN, alone, ask, engine_of, load_tiny
from support.families import make_prompt
from uncomp_cli.budget.presets import Preset
from uncomp_cli.cache.layer import LayerCache
from uncomp_cli.config import Limits, SamplingConfig
from uncomp_cli.engine.context.context import Asked
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.records import DecodeStep, RunStats
from uncomp_cli.engine.write.stores import OneRow, SharedRows, StackedRows
from uncomp_cli.engine.write.writer import Writer
from uncomp_cli.errors import DoesNotFitError

Answer = tuple[tuple[int, ...], RunStats]


def writer_of(engine: Engine, asked: list[Asked], kv_bytes: int | None = None) -> Writer:
    return Writer(engine.decoder, engine.loaded.tokenizer, engine.sampling, asked, kv_bytes=kv_bytes)


def one_after_another(engine: Engine, asked: list[Asked]) -> list[Answer]:
    return [alone(engine, each) for each in asked]


def together(writer: Writer) -> tuple[list[Answer], list[DecodeStep]]:
    steps = list(writer.write())
    answers = []
    for row in sorted({step.row for step in steps}):
        stats = writer.stats(row)
        assert stats is not None
        answers.append((tuple(step.token for step in steps if step.row == row), stats))
    return answers, steps


def assert_agree(found: list[Answer], expected: list[Answer]) -> None:
    assert [ids for ids, _ in found] == [ids for ids, _ in expected]
    for (_, stats), (_, by_itself) in zip(found, expected, strict=True):
        for name in ("prompt_tokens", "cached_tokens", "completion_tokens", "kv_full_bytes", "finish_reason"):
            assert getattr(stats, name) == getattr(by_itself, name), name


def cases(kv_bits: int) -> list[Any]:
    """Every preset with one family; with two whose layers slide, heads of unequal length and one other preset."""
    presets = {"full": FULL, "half": HALF, "uneven": UNEVEN, f"{kv_bits}": replace(HALF, kv_bits=kv_bits)}
    wanted = {"llama": presets, "qwen2-sliding": ("uneven", "full"), "gemma3_text": ("uneven", f"{kv_bits}")}
    return [pytest.param(family, presets[name], id=f"{family}-{name}") for family in wanted for name in wanted[family]]


@pytest.mark.parametrize(("family", "preset"), cases(8))
def test_questions_of_one_prompt_share_its_context(family: str, preset: Preset) -> None:
    prompt = make_prompt(60, QUESTIONS)
    engine = engine_of(load_tiny(family))
    asked = ask(engine, preset, prompt)
    expected = one_after_another(engine, asked)
    assert len({len(ids) for ids, _ in expected}) > 1
    writer = writer_of(engine, asked)
    found, _ = together(writer)
    assert isinstance(writer.store, SharedRows)
    assert_agree(found, expected)


@pytest.mark.parametrize(("family", "preset"), cases(4))
def test_several_prompts_are_rows_of_one_cache(family: str, preset: Preset) -> None:
    """Of one question, whose keys are in the cache, and of several, whose keys wait beside it."""
    prompts = [make_prompt(50 + 9 * n, counts, seed=n) for n, counts in enumerate([(5,), (3, 8), (2,), (4, 1, 6)])]
    engine = engine_of(load_tiny(family))
    asked = [each for prompt in prompts for each in ask(engine, preset, prompt)]
    expected = one_after_another(engine, asked)
    writer = writer_of(engine, asked)
    found, _ = together(writer)
    assert isinstance(writer.store, StackedRows)
    assert_agree(found, expected)


@pytest.mark.parametrize("shared", [True, False])
def test_rows_wait_until_they_fit(shared: bool) -> None:
    """The bound holds at every step, rows come and go, and the answers stay the same."""
    prompts = [make_prompt(60, QUESTIONS)] if shared else [make_prompt(40 + n, (5,), seed=n) for n in range(7)]
    engine = engine_of(load_tiny("llama"))
    asked = [each for prompt in prompts for each in ask(engine, HALF, prompt)]
    expected = one_after_another(engine, asked)
    store = SharedRows(asked[0].context, engine.decoder.spec) if shared else StackedRows(engine.decoder.spec)
    bound = store.bytes_of(asked[:3])
    writer = writer_of(engine, asked, kv_bytes=bound)
    found: dict[int, list[int]] = {row: [] for row in range(7)}
    ended: set[int] = set()
    at_once = 0
    for taken in writer.write():
        found[taken.row].append(taken.token)
        ended |= {taken.row} if taken.finish_reason else set()
        at_once = max(at_once, sum(1 for row, ids in found.items() if ids and row not in ended))
        assert writer.store.nbytes <= bound
        assert taken.kv_bytes == writer.store.nbytes
    assert 2 <= at_once <= 4
    assert [tuple(ids) for ids in found.values()] == [ids for ids, _ in expected]


def test_without_room_for_two_nothing_is_copied() -> None:
    prompt = make_prompt(60, QUESTIONS)
    engine = engine_of(load_tiny("llama"))
    asked = ask(engine, HALF, prompt)
    expected = one_after_another(engine, asked)
    writer = writer_of(engine, asked, kv_bytes=1)
    found, steps = together(writer)
    assert isinstance(writer.store, OneRow)
    assert_agree(found, expected)
    assert [taken.row for taken in steps] == sorted(taken.row for taken in steps)


def test_every_row_has_its_own_seed_and_penalty() -> None:
    sampling = SamplingConfig(temperature=1.3, top_k=20, repetition_penalty=1.2, seed=5, max_new_tokens=20)
    prompt = make_prompt(60, (4, 4, 4))
    prompt = replace(prompt, questions=(prompt.questions[0],) * 3)
    engine = engine_of(load_tiny("llama"), sampling)
    asked = ask(engine, FULL, prompt)
    expected = one_after_another(engine, asked)
    assert len({ids for ids, _ in expected}) == 3
    assert_agree(together(writer_of(engine, asked))[0], expected)


def test_the_last_seed_has_questions_behind_it() -> None:
    sampling = SamplingConfig(temperature=1.3, seed=2**64 - 1, max_new_tokens=3)
    engine = engine_of(load_tiny("llama"), sampling)
    asked = ask(engine, FULL, make_prompt(60, (4, 4)))
    assert_agree(together(writer_of(engine, asked))[0], one_after_another(engine, asked))


def test_a_row_that_stops_says_no_more() -> None:
    prompt = make_prompt(60, QUESTIONS)
    engine = engine_of(load_tiny("llama"))
    _, steps = together(writer_of(engine, ask(engine, FULL, prompt)))
    for row in range(len(QUESTIONS)):
        own = [taken for taken in steps if taken.row == row]
        assert [step.index for step in own] == list(range(len(own)))
        assert [step.finish_reason is None for step in own] == [True] * (len(own) - 1) + [False]
        if own[-1].finish_reason == "stop":
            assert own[-1].token in STOPS
            assert own[-1].text == ""


def test_the_figures_of_a_row_are_its_own() -> None:
    prompt = make_prompt(60, QUESTIONS)
    engine = engine_of(load_tiny("llama"))
    asked = ask(engine, FULL, prompt)
    writer = writer_of(engine, asked)
    running = iter(writer.write())
    first = next(running)
    assert first.row == 0
    midway = writer.stats(0)
    assert midway is not None
    assert (midway.completion_tokens, midway.finish_reason) == (1, "interrupted")
    last = writer.stats(6)
    assert last is not None
    assert last.completion_tokens == 1  # all begin before any is told of
    for _ in running:
        pass
    stats = [writer.stats(row) for row in range(len(QUESTIONS))]
    assert all(one is not None for one in stats)
    done = [one for one in stats if one is not None]
    assert [one.prefill_s > 0 for one in done] == [True] + [False] * 6
    assert all(one.ttft_s >= one.prefill_s for one in done)
    assert all(one.decode_tok_s is None or one.decode_tok_s > 0 for one in done)
    context = sum(asked[0].context.layer_bytes())
    assert all(one.kv_bytes > context for one in done)


def test_the_answer_ends_where_the_context_does() -> None:
    prompt = make_prompt(240, (5, 9))
    engine = engine_of(load_tiny("llama"))
    engine.loaded.model.generation_config.eos_token_id = []
    engine.loaded.model.config.eos_token_id = None
    asked = ask(engine, FULL, prompt)
    assert [each.max_new_tokens for each in asked] == [11, 7]
    found, _ = together(writer_of(engine, asked))
    assert [(len(ids), stats.finish_reason) for ids, stats in found] == [(11, "length"), (7, "length")]


def test_a_constant_size_holds_for_every_row() -> None:
    prompt = make_prompt(90, (5, 9))
    engine = engine_of(load_tiny("llama"), SamplingConfig(max_new_tokens=150))
    engine.loaded.model.generation_config.eos_token_id = []
    asked = ask(engine, HALF, prompt)
    given = engine.decoder, engine.loaded.tokenizer, engine.sampling, asked
    _, steps = together(Writer(*given, stop_ids=(), constant_size=True))
    sizes = [{taken.kv_bytes for taken in steps if taken.row == row} for row in (0, 1)]
    assert [len(size) for size in sizes] == [1, 1]
    growing, steps = together(Writer(*given, stop_ids=(), kv_bytes=1))
    held = asked[0].context.cache.nbytes  # what the copies were made of
    assert max(taken.kv_bytes for taken in steps) > max(sizes[0] | sizes[1]) - held
    assert [stats.completion_tokens for _, stats in growing] == [150, 150]


@pytest.mark.sparse(1)
@pytest.mark.parametrize("preset", [FULL, HALF, replace(HALF, budget="97%")], ids=["full", "half", "nearly"])
@pytest.mark.parametrize("steps", [1, 5, 20, 40])
def test_a_short_text_has_no_room_beyond_its_answer(preset: Preset, steps: int) -> None:
    loaded = load_tiny("llama")
    engine = engine_of(loaded, SamplingConfig(max_new_tokens=steps))
    for length in (12, 40, 200):
        (asked,) = ask(engine, preset, make_prompt(length, [4], protected=2))
        writer = engine.writer([asked], stop_ids=())
        ids = [step.token for step in writer.write()]
        stats, cache, spec = writer.stats(), asked.context.cache, loaded.spec
        assert stats is not None
        allocated = [
            each.untyped_storage().nbytes() for n in cache.layers if n for each in (n.keys, n.values, n.positions)
        ]
        assert (len(ids), stats.kv_bytes) == (steps, sum(allocated))
        entry = spec.kv_bytes_per_entry
        assert stats.kv_bytes <= spec.full_kv_bytes(stats.prompt_tokens + steps) * (entry + 4) / entry


def _layers() -> list[LayerCache]:
    return [each for each in gc.get_objects() if type(each) is LayerCache]


def _allocated(others: Sequence[LayerCache]) -> int:
    """Bytes of the storages of every layer of every cache that there is but `others`, each once."""
    left_out = set(map(id, others))  # they live as long as that list does
    layers = [each for each in _layers() if id(each) not in left_out]
    heads = [head for layer in layers for head in layer.quantized if head is not None]
    tensors = [t for layer in layers for t in (layer.keys, layer.values, layer.positions)]
    tensors += [t for head in heads for each in fields(head) if isinstance(t := getattr(head, each.name), Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


@pytest.mark.sparse(1)
@pytest.mark.parametrize("for_any", [False, True], ids=["for the question", "for any"])
@pytest.mark.parametrize("constant", [False, True], ids=["growing", "constant"])
@pytest.mark.parametrize("kv_bits", [16, 8, 4])
def test_allocated_bytes_stay_within_the_cap_and_what_is_said(for_any: bool, constant: bool, kv_bits: int) -> None:
    """By the least cap, of one and a half times the last, that is not refused."""
    loaded, prompt, others = load_tiny("llama"), make_prompt(120, (5, 9)), _layers()
    preset, sampling = replace(HALF, budget="90%", kv_bits=kv_bits), SamplingConfig(max_new_tokens=60)
    for cap in (int(1.5**power * loaded.spec.full_kv_bytes(129)) for power in range(8)):
        limits = Limits(kv_bytes=cap, constant_size=constant)
        with suppress(DoesNotFitError):
            engine = Engine(loaded, sampling=sampling, limits=limits)
            asked = engine.asked(engine.read(prompt, preset, for_any=for_any).finish())
            break
    gc.collect()  # refusals lie in cycles with what was begun before them
    most = 0
    for step in engine.writer(asked, stop_ids=()).write():
        if step.index in (0, 20, 59):
            most = max(most, _allocated(others))
    assert cap / 9 < most <= cap  # a text is held in the model's own numbers before it is in 4 bits


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_rows_join_and_leave_while_others_are_written(family: str) -> None:
    prompts = [make_prompt(50 + 9 * n, (3 + n,), seed=n) for n in range(5)]
    engine = engine_of(load_tiny(family))
    asked = [each for prompt in prompts for each in ask(engine, UNEVEN, prompt)]
    expected = one_after_another(engine, asked)
    writer = engine.writer(asked[:1], grows=True)
    tokens: dict[int, list[int]] = {}
    numbers, steps = [0], iter(())
    for turn in range(400):
        if turn % 2 == 0 and len(numbers) < len(asked):
            numbers.append(writer.add(asked[len(numbers)]))
        if (taken := next(steps, None)) is None:
            steps = writer.rounds()
            taken = next(steps, None)
        if taken is None and len(numbers) == len(asked):
            break
        for step in taken or ():
            tokens.setdefault(step.row, []).append(step.token)
            if step.row == 3:  # who asked has left
                writer.forget(3)
    else:
        raise AssertionError("it never ends")
    assert numbers == [0, 1, 2, 3, 4]
    for row, (ids, _) in enumerate(expected):
        assert tuple(tokens[row]) == (ids[:1] if row == 3 else ids)
    assert writer.stats(3) is None
    assert writer.stats(4) is not None


def test_each_row_is_sampled_in_its_own_way() -> None:
    engine = engine_of(load_tiny("llama"))
    prompt = make_prompt(50, (4,), seed=1)
    (greedy,) = ask(engine, FULL, prompt)
    warm = [
        replace(each, sampling=replace(engine.sampling, temperature=2.0, seed=9)) for each in ask(engine, FULL, prompt)
    ]
    (expected, _), (other, _) = alone(engine, greedy), alone(engine, warm[0])
    assert expected != other
    (first, second), _ = together(writer_of(engine, [*ask(engine, FULL, prompt), *ask(engine, FULL, prompt)]))
    assert first[0] == second[0] == expected
    mixed, _ = together(
        writer_of(
            engine, [*ask(engine, FULL, prompt), replace(ask(engine, FULL, prompt)[0], sampling=warm[0].sampling)]
        )
    )
    assert [ids for ids, _ in mixed] == [expected, other]
