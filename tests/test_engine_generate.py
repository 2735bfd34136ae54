"""Generation: when it ends, what it says, and that a seed means the same text."""

from collections.abc import Sequence
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from support.batches import writer_behind
from support.families import VOCAB, full_plan, make_prompt, read, tiny
from support.tiny import BYTES, byte_tokenizer
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.config import SamplingConfig
from uncomp_cli.engine.context.context import Asked, Begun, Behind, Context
from uncomp_cli.engine.records import DecodeStep
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.engine.tokens.tokens import Tokens
from uncomp_cli.engine.write.sampler import loop_period
from uncomp_cli.engine.write.stores import OneRow
from uncomp_cli.engine.write.writer import TextStream, Writer, stop_tokens
from uncomp_cli.models.ranks import Ranks

STOP = len(BYTES)


def ids_of(text: str) -> list[int]:
    return list(byte_tokenizer()(text).input_ids)


class Script:
    """A decoder that wants to say `rows`, whatever it reads; it notes the positions and tokens that it is given."""

    def __init__(self, rows: list[list[int]]) -> None:
        self.rows, self.device, self.regime_tokens = rows, torch.device("cpu"), None
        self.spec, self.ranks = tiny("llama")[2], Ranks()
        self.calls: list[tuple[list[int], list[int]]] = []

    def logits(self, index: int) -> Tensor:
        logits = torch.zeros(len(self.rows), STOP + 1)
        for row, wanted in enumerate(self.rows):
            logits[row, wanted[min(index, len(wanted) - 1)]] = 9.0
        return logits

    def forward(self, ids: Tensor, positions: Tensor, state: Any, last: int) -> Tensor:
        self.calls.append((ids[:, 0].tolist(), positions[:, 0].tolist()))
        return self.logits(len(self.calls))[:, None]


class Nowhere(OneRow):
    """Rows that are there already, and of which nothing is held."""

    def lay_out(self, keep: Sequence[int], join: Sequence[Asked]) -> list[Begun]:
        return [asked.context.begin(asked.question) for asked in join]

    def state(self, positions: Tensor, *, on_query: Any = None) -> Any:
        return None

    def row_bytes(self, row: int) -> int:
        return 0


def run(script: Script, *, max_new_tokens: int = 20, stop: tuple[int, ...] = (STOP,)) -> list[DecodeStep]:
    """What is said behind prompts of 100, 200, … tokens, all rows at once."""
    cache = RaggedKVCache(num_layers=0, num_rows=1, num_kv_heads=1)
    asked = []
    for row, logits in enumerate(script.logits(0)):
        prompt = Prompt(Tokens.of([1] * 100 * (row + 1)), ((),))
        context = Context(cast("Any", script), prompt, cache, Behind(Begun(logits[None])))
        asked.append(Asked(context, 0, max_new_tokens))
    given = cast("Any", script), byte_tokenizer(), SamplingConfig(), asked
    return list(Writer(*given, store=Nowhere(script.spec, constant=None), stop_ids=stop).write())


def text_of(steps: list[DecodeStep], row: int = 0) -> str:
    return "".join(step.text for step in steps if step.row == row)


def test_a_stop_token_ends_and_is_not_shown() -> None:
    script = Script([[*ids_of("hi"), STOP]])
    steps = run(script)
    assert text_of(steps) == "hi"
    assert [step.finish_reason for step in steps] == [None, None, "stop"]
    assert [step.index for step in steps] == [0, 1, 2]
    assert [step.token for step in steps] == [*ids_of("hi"), STOP]
    assert script.calls == [([ids_of("h")[0]], [100]), ([ids_of("i")[0]], [101])]  # the last token is not put in


def test_any_of_several_stop_tokens() -> None:
    assert text_of(run(Script([ids_of("a.b")]), stop=(STOP, ids_of(".")[0]))) == "a"


@pytest.mark.parametrize("limit", [1, 4])
def test_the_limit_of_new_tokens(limit: int) -> None:
    script = Script([ids_of("endless ")])
    steps = run(script, max_new_tokens=limit)
    assert text_of(steps) == "endless "[:limit]
    assert steps[-1].finish_reason == "length"
    assert len(script.calls) == limit - 1


def test_a_stop_token_at_the_limit_is_a_stop() -> None:
    assert run(Script([[*ids_of("hi"), STOP]]), max_new_tokens=3)[-1].finish_reason == "stop"


def test_rows_end_at_different_times() -> None:
    script = Script([[*ids_of("a"), STOP, *ids_of("junk")], [*ids_of("longer"), STOP]])
    steps = run(script)
    assert (text_of(steps, 0), text_of(steps, 1)) == ("a", "longer")
    assert [step.finish_reason for step in steps if step.row == 0] == [None, "stop"]
    assert [step.finish_reason for step in steps if step.row == 1] == [*[None] * 6, "stop"]
    assert [positions for _, positions in script.calls] == [[100 + min(i, 1), 200 + i] for i in range(6)]


def test_characters_come_whole() -> None:
    steps = run(Script([[*ids_of("é漢😀!"), STOP]]))
    assert [step.text for step in steps] == ["", "é", "", "", "漢", "", "", "", "😀", "!", ""]


def test_special_tokens_have_no_text() -> None:
    stream = TextStream(byte_tokenizer())
    assert [stream.push(token) for token in [ids_of("a")[0], STOP, ids_of("b")[0]]] == ["a", "", "b"]


def answer(config: SamplingConfig, *, seed: int = 0) -> list[int]:
    """The tokens of a tiny random model."""
    _, decoder, spec = tiny("llama")
    prompt = make_prompt(12 + seed, [3], seed=seed)
    _, done = read(decoder, prompt, full_plan(spec, prompt))
    return [step.token for step in writer_behind(done, config.max_new_tokens, sampling=config).write()]


def test_sampling_is_reproducible_and_seeded() -> None:
    first, again, other = (answer(SamplingConfig(temperature=1.5, seed=seed, max_new_tokens=12)) for seed in (1, 1, 2))
    assert first == again != other
    assert answer(SamplingConfig(temperature=1.5, seed=1, max_new_tokens=12), seed=1) != first


def test_one_candidate_is_greedy() -> None:
    greedy = answer(SamplingConfig(max_new_tokens=12))
    assert answer(SamplingConfig(temperature=2.0, top_k=1, seed=5, max_new_tokens=12)) == greedy
    assert answer(SamplingConfig(temperature=2.0, top_p=1e-6, seed=5, max_new_tokens=12)) == greedy
    assert answer(SamplingConfig(temperature=5.0, seed=5, max_new_tokens=12)) != greedy


def test_a_records_bytes_are_the_caches() -> None:
    _, decoder, spec = tiny("llama")
    prompt = make_prompt(20, [3])
    _, done = read(decoder, prompt, full_plan(spec, prompt))
    sizes = []
    for step in writer_behind(done, 30).write():
        assert step.kv_bytes == done.cache.nbytes
        sizes.append(step.kv_bytes)
    assert sizes[0] < sizes[-1]
    assert done.cache.entries == (23 + 29) * spec.num_layers * spec.num_kv_heads


def test_stop_tokens_come_from_every_source() -> None:
    _, decoder, _ = tiny("llama")
    model = decoder.model
    model.generation_config.eos_token_id = [7, 4]
    assert stop_tokens(model, byte_tokenizer()) == (2, 4, 7, STOP)
    model.generation_config.eos_token_id, model.config.eos_token_id = None, None
    assert stop_tokens(model, byte_tokenizer()) == (STOP,)
    assert VOCAB < STOP


def test_a_stop_token_beyond_the_vocabulary_ends_nothing_and_stops_nothing() -> None:
    """A plain model's answer does not begin with its end, whatever other ends are named."""
    steps = run(Script([[STOP, *ids_of("ab"), STOP]]), stop=(STOP, STOP + 1, 10**6))
    assert text_of(steps)[1:] == "ab"
    assert steps[-1].finish_reason == "stop"


def test_a_greedy_answer_that_repeats_itself_is_stopped() -> None:
    words = ids_of("Yes. ") + ids_of("The lamp is lit. ") * 30
    steps = run(Script([words]), max_new_tokens=400)
    assert steps[-1].finish_reason == "loop"
    assert text_of(steps).startswith("Yes. The lamp is lit. The lamp is lit. ")
    assert len(steps) <= len("Yes. ") + 6 * len("The lamp is lit. ")


def test_a_loop_goes_on_where_nothing_ends_an_answer() -> None:
    steps = run(Script([ids_of("The lamp is lit. ") * 30]), max_new_tokens=200, stop=())
    assert [len(steps), steps[-1].finish_reason] == [200, "length"]


ROWS = "".join(f"| {number} | open | yes |\n" for number in range(100, 160))
CODE = "".join(f"    total += price[{number}] * count[{number}]\n" for number in range(60))
NAMES = "".join(f"- {name}: is in the list\n" for name in ("Ada", "Bob", "Cyn", "Dan", "Eve", "Fay", "Gus", "Hal") * 2)


@pytest.mark.parametrize(
    ("text", "period"),
    [
        ("The lamp is lit. " * 9, 17),
        ("So. " + "No, it is not the harbour but the hill that she remembers. " * 5, 59),
        ("-" * 150, None), ("-" * 400, 1), ("0, " * 50, None), ("0, " * 70, 3), ("| --- " * 20, None),
        (ROWS, None), (CODE, None), (NAMES, None), ("The lamp is lit. " * 3, None), ("", None),
        ("The lamp is lit. " * 9 + "Then", None),
    ],
)  # fmt: skip
def test_what_is_a_loop(text: str, period: int | None) -> None:
    assert loop_period(ids_of(text) if text else []) == period
