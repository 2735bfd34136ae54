"""Generation: when it ends, what it says, and that a seed means the same text."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from support.families import VOCAB, Rows, full_plan, make_prompt, read, tiny
from support.tiny import BYTES, byte_tokenizer
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.config import SamplingConfig
from uncomp_cli.engine.records import DecodeStep
from uncomp_cli.engine.write.generate import TextStream, generate, stop_tokens
from uncomp_cli.engine.write.sampling import Sampler

STOP = len(BYTES)


def ids_of(text: str) -> list[int]:
    return list(byte_tokenizer()(text).input_ids)


@dataclass
class Script:
    """A decoder that wants to say `rows`, whatever it reads; it notes the positions and tokens that it is given."""

    rows: list[list[int]]

    def __post_init__(self) -> None:
        self.device = torch.device("cpu")
        self.calls: list[tuple[list[int], list[int]]] = []

    def logits(self, index: int) -> Tensor:
        logits = torch.zeros(len(self.rows), STOP + 1)
        for row, wanted in enumerate(self.rows):
            logits[row, wanted[min(index, len(wanted) - 1)]] = 9.0
        return logits

    def forward(self, ids: Tensor, positions: Tensor, state: Any, last: int) -> Tensor:
        self.calls.append((ids[:, 0].tolist(), positions[:, 0].tolist()))
        return self.logits(len(self.calls))[:, None]


def run(script: Script, *, max_new_tokens: int = 20, stop: tuple[int, ...] = (STOP,)) -> list[DecodeStep]:
    steps = generate(
        script,
        RaggedKVCache(num_layers=0, num_rows=len(script.rows), num_kv_heads=1),
        script.logits(0),
        torch.tensor([[100 * (row + 1)] for row in range(len(script.rows))]),
        tokenizer=byte_tokenizer(),
        sampler=Sampler(SamplingConfig()),
        stop_ids=stop,
        max_new_tokens=max_new_tokens,
    )
    return list(steps)


def text_of(steps: list[DecodeStep], row: int = 0) -> str:
    return "".join(step.texts[row] for step in steps)


def test_a_stop_token_ends_and_is_not_shown() -> None:
    script = Script([[*ids_of("hi"), STOP]])
    steps = run(script)
    assert text_of(steps) == "hi"
    assert [step.finish_reasons for step in steps] == [(None,), (None,), ("stop",)]
    assert [step.index for step in steps] == [0, 1, 2]
    assert [step.token_ids for step in steps] == [(token,) for token in [*ids_of("hi"), STOP]]
    assert script.calls == [([ids_of("h")[0]], [100]), ([ids_of("i")[0]], [101])]  # the last token is not put in


def test_any_of_several_stop_tokens() -> None:
    assert text_of(run(Script([ids_of("a.b")]), stop=(STOP, ids_of(".")[0]))) == "a"


@pytest.mark.parametrize("limit", [1, 4])
def test_the_limit_of_new_tokens(limit: int) -> None:
    script = Script([ids_of("endless ")])
    steps = run(script, max_new_tokens=limit)
    assert text_of(steps) == "endless "[:limit]
    assert steps[-1].finish_reasons == ("length",)
    assert len(script.calls) == limit - 1


def test_a_stop_token_at_the_limit_is_a_stop() -> None:
    assert run(Script([[*ids_of("hi"), STOP]]), max_new_tokens=3)[-1].finish_reasons == ("stop",)


def test_rows_end_at_different_times() -> None:
    script = Script([[*ids_of("a"), STOP, *ids_of("junk")], [*ids_of("longer"), STOP]])
    steps = run(script)
    assert (text_of(steps, 0), text_of(steps, 1)) == ("a", "longer")
    assert [step.finish_reasons[0] for step in steps] == [None, *["stop"] * 6]
    assert [step.finish_reasons[1] for step in steps] == [*[None] * 6, "stop"]
    assert [positions for _, positions in script.calls] == [[100 + i, 200 + i] for i in range(6)]


def test_characters_come_whole() -> None:
    steps = run(Script([[*ids_of("é漢😀!"), STOP]]))
    assert [step.texts[0] for step in steps] == ["", "é", "", "", "漢", "", "", "", "😀", "!", ""]


def test_special_tokens_have_no_text() -> None:
    stream = TextStream(byte_tokenizer())
    assert [stream.push(token) for token in [ids_of("a")[0], STOP, ids_of("b")[0]]] == ["a", "", "b"]


def answer(config: SamplingConfig, *, rows: int = 1) -> list[tuple[int, ...]]:
    """Token ids by step of a tiny random model."""
    _, decoder, spec = tiny("llama")
    prompts = [make_prompt(12 + row, [3], seed=row) for row in range(rows)]
    done = Rows([read(decoder, prompt, full_plan(spec, prompt))[1] for prompt in prompts])
    steps = generate(
        decoder,
        done.cache,
        done.logits,
        done.next_positions(),
        tokenizer=byte_tokenizer(),
        sampler=Sampler(config),
        stop_ids=(),
        max_new_tokens=config.max_new_tokens,
    )
    return [step.token_ids for step in steps]


def test_sampling_is_reproducible_and_seeded() -> None:
    first, again, other = (
        answer(SamplingConfig(temperature=1.5, seed=seed, max_new_tokens=12), rows=2) for seed in (1, 1, 2)
    )
    assert first == again != other
    assert [row for row, _ in first] != [row for _, row in first]


def test_one_candidate_is_greedy() -> None:
    greedy = answer(SamplingConfig(max_new_tokens=12))
    assert answer(SamplingConfig(temperature=2.0, top_k=1, seed=5, max_new_tokens=12)) == greedy
    assert answer(SamplingConfig(temperature=2.0, top_p=1e-6, seed=5, max_new_tokens=12)) == greedy
    assert answer(SamplingConfig(temperature=5.0, seed=5, max_new_tokens=12)) != greedy


def test_a_records_bytes_are_the_caches() -> None:
    _, decoder, spec = tiny("llama")
    prompt = make_prompt(20, [3])
    _, done = read(decoder, prompt, full_plan(spec, prompt))
    done.begin_question()
    arguments = {"tokenizer": byte_tokenizer(), "sampler": Sampler(SamplingConfig()), "stop_ids": ()}
    steps = generate(decoder, done.cache, done.logits, done.next_positions(), max_new_tokens=30, **arguments)
    sizes = []
    for step in steps:
        assert step.kv_bytes == done.cache.nbytes
        sizes.append(step.kv_bytes)
    assert sizes[0] < sizes[-1]
    assert done.cache.entries == (23 + 29) * spec.num_layers * spec.num_kv_heads


GENERATED = torch.tensor([[3, 5]])
LOGITS = torch.tensor([[0.0, 1.0, 2.0, 3.0, 2.5, -1.0]])


def choices(draws: int = 400, **settings: Any) -> set[int]:
    sampler = Sampler(SamplingConfig(**settings))
    return {int(sampler.choose(LOGITS, GENERATED)) for _ in range(draws)}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {3}),
        ({"temperature": 3.0}, {0, 1, 2, 3, 4, 5}),
        ({"temperature": 3.0, "top_k": 2}, {3, 4}),
        ({"temperature": 1.0, "top_p": 0.7}, {3, 4}),
        ({"temperature": 1.0, "min_p": 0.5}, {3, 4}),
        ({"repetition_penalty": 2.0}, {4}),
    ],
)
def test_sampling_options(settings: dict[str, Any], expected: set[int]) -> None:
    assert choices(**settings) == expected


def test_sampling_follows_the_probabilities() -> None:
    sampler = Sampler(SamplingConfig(temperature=1.0))
    logits = torch.tensor([[0.7, 0.2, 0.1]]).log().expand(4000, -1)
    counts = torch.bincount(sampler.choose(logits, torch.empty(4000, 0, dtype=torch.int64)), minlength=3) / 4000
    torch.testing.assert_close(counts, torch.tensor([0.7, 0.2, 0.1]), atol=0.04, rtol=0)


def test_stop_tokens_come_from_every_source() -> None:
    _, decoder, _ = tiny("llama")
    model = decoder.model
    model.generation_config.eos_token_id = [7, 4]
    assert stop_tokens(model, byte_tokenizer()) == (2, 4, 7, STOP)
    model.generation_config.eos_token_id, model.config.eos_token_id = None, None
    assert stop_tokens(model, byte_tokenizer()) == (STOP,)
    assert VOCAB < STOP
