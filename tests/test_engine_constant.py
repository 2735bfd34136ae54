"""Generation with a cache of constant size: what stays, what goes, and that bytes do not move."""

from typing import Any

import pytest
import torch
from torch import Tensor

from support.batches import writer_behind
from support.families import Rows, full_plan, make_prompt, next_positions, read, tiny
from uncomp_cli.cache.needs import ConstantConfig
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.cache.softmax import Form
from uncomp_cli.engine.context.context import Beside, Context
from uncomp_cli.engine.forward.attention import AppendState
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.records import DecodeStep
from uncomp_cli.engine.write.fixed_size import ConstantSize, shield
from uncomp_cli.engine.write.stores import OneRow
from uncomp_cli.errors import UsageError
from uncomp_cli.spec import ModelSpec

STEPS, BLOCK, RECENT = 200, 16, 8
SMALL = ConstantConfig(block=BLOCK, window=8, recent=RECENT, prompt_share=0.5)


def prefilled(family: str, contexts: tuple[int, ...], *, kv_bits: int = 16) -> tuple[Decoder, ModelSpec, Rows]:
    """Prompts of these lengths, held in full but ragged: each head loses a part of its own."""
    _, decoder, spec = tiny(family)
    prompts = [make_prompt(length, [3], seed=i + 1, protected=4) for i, length in enumerate(contexts)]
    done = Rows([read(decoder, prompt, full_plan(spec, prompt))[1] for prompt in prompts])
    thinned = RaggedKVCache(
        num_layers=spec.num_layers, num_rows=len(contexts), num_kv_heads=spec.num_kv_heads, kv_bits=kv_bits
    )
    for index in range(spec.num_layers):
        layer = done.cache.layer(index)
        heads = [layer.head(i) for i in range(len(layer.lengths))]
        keep = [torch.tensor([*range(4), *range(7 + 3 * (i % 2), len(h[2]))]) for i, h in enumerate(heads)]
        if spec.sliding_windows[index] is not None:
            keep = [torch.arange(len(head[2])) for head in heads]
        thinned.store(index, [(k[at], v[at], p[at]) for (k, v, p), at in zip(heads, keep, strict=True)])
    done.cache = thinned
    return decoder, spec, done


def run(
    decoder: Decoder, done: Rows, config: ConstantConfig | None, steps: int = STEPS
) -> tuple[list[DecodeStep], RaggedKVCache]:
    """The records of greedy generation, and the cache it was made with."""
    cache = done.cache.rows([0], reserve=0) if config is None else done.cache
    context = Context(decoder, done.prompts[0], cache, Beside([], done.logits))
    store = OneRow(decoder.spec, constant=config)
    records = list(writer_behind(context, steps, store=store).write())
    return records, store.cache


def held(cache: RaggedKVCache) -> list[list[Tensor]]:
    return [
        [layer.head(i)[2] for i in range(len(layer.lengths))] for layer in map(cache.layer, range(len(cache.layers)))
    ]


def flat(layers: list[list[Tensor]]) -> list[Tensor]:
    return [positions for heads in layers for positions in heads]


@pytest.mark.parametrize("family", ["llama", "qwen3-sliding", "granite"])
def test_bytes_are_flat_and_what_must_stay_stays(family: str) -> None:
    decoder, spec, done = prefilled(family, (60,))
    before = held(done.cache)
    records, cache = run(decoder, done, SMALL)
    assert {record.kv_bytes for record in records} == {cache.nbytes + done.cache.nbytes}
    assert sum(layer.nbytes for layer in map(cache.layer, range(spec.num_layers))) < cache.nbytes  # the queries count
    newest = 63 + STEPS - 2
    for index in spec.full_layers:
        for old, positions in zip(before[index], held(cache)[index], strict=True):
            at = positions.tolist()
            assert at == sorted(set(at))
            assert len(old) <= len(at) < len(old) + BLOCK
            assert at[-RECENT:] == list(range(newest - RECENT + 1, newest + 1))
            assert {0, 1, 2, 3, 60, 61, 62} <= set(at)
            assert sum(position < 63 for position in at) >= len(old) / 2
            assert sum(RECENT < newest - position < newest - 63 for position in at) > 0  # some of the older text, too
    assert all(torch.equal(a, b) for a, b in zip(flat(before), flat(held(done.cache)), strict=True))  # a copy


@pytest.mark.parametrize("family", ["llama", "mistral-sliding"])
def test_a_block_that_is_never_full_changes_nothing(family: str) -> None:
    decoder, _, done = prefilled(family, (30,))
    bounded, _ = run(decoder, done, ConstantConfig(block=1000), 60)
    grown, _ = run(decoder, done, None, 60)
    assert [record.token for record in bounded] == [record.token for record in grown]


def test_a_sliding_layer_loses_only_what_it_no_longer_sees() -> None:
    decoder, _, done = prefilled("mistral-sliding", (30,))
    bounded, cache = run(decoder, done, SMALL, 60)
    grown, _ = run(decoder, done, None, 60)
    assert [record.token for record in bounded] == [record.token for record in grown]
    assert max(map(len, held(cache)[0])) <= 8 + BLOCK


def forced_logits(decoder: Decoder, constant: ConstantSize, start: Tensor, forced: Tensor) -> Tensor:
    outputs = []
    for step in range(forced.shape[1]):
        state = AppendState(constant.cache, start + step, on_query=constant.observe)
        outputs.append(decoder.forward(forced[:, step : step + 1], start + step, state, 1)[:, 0])
    return torch.stack(outputs, dim=1)


def test_a_block_at_once_is_as_token_by_token() -> None:
    decoder, spec, done = prefilled("llama", (60,))
    forced = torch.randint(3, 60, (1, 5 * BLOCK), generator=torch.Generator().manual_seed(5))
    start, marked = next_positions(done), [shield(prompt) for prompt in done.prompts]
    single, blocks = (ConstantSize(done.cache, spec, shields=marked, config=SMALL) for _ in range(2))
    expected = forced_logits(decoder, single, start, forced)
    nbytes, outputs = blocks.cache.nbytes, []
    for ids, at in zip(forced.split(BLOCK, dim=1), torch.arange(5 * BLOCK).split(BLOCK), strict=True):
        state = AppendState(blocks.cache, start + at, on_query=blocks.observe)
        outputs.append(decoder.forward(ids, start + at, state, BLOCK))
        assert blocks.cache.nbytes == nbytes
    torch.testing.assert_close(torch.cat(outputs, dim=1), expected, atol=1e-4, rtol=0)


def test_rows_are_as_they_are_alone() -> None:
    decoder, spec, done = prefilled("llama", (60, 41))
    forced = torch.randint(3, 60, (2, 70), generator=torch.Generator().manual_seed(5))
    marked = [shield(prompt) for prompt in done.prompts]
    together = ConstantSize(done.cache, spec, shields=marked, config=SMALL)
    logits = forced_logits(decoder, together, next_positions(done), forced)
    for row in (0, 1):
        alone = ConstantSize(done.cache.rows([row], reserve=0), spec, shields=[marked[row]], config=SMALL)
        expected = forced_logits(decoder, alone, next_positions(done)[row : row + 1], forced[row : row + 1])
        torch.testing.assert_close(logits[row], expected[0], atol=1e-4, rtol=0)
        for index in range(spec.num_layers):
            mine = held(together.cache)[index][2 * row : 2 * row + 2]
            assert all(torch.equal(a, b) for a, b in zip(mine, held(alone.cache)[index], strict=True))


@pytest.mark.parametrize("kv_bits", [8, 4])
def test_quantised_heads_keep_their_codes_and_never_take_more(kv_bits: int) -> None:
    decoder, _, done = prefilled("llama", (60,), kv_bits=kv_bits)
    entries = [len(at) for layer in held(done.cache) for at in layer]
    records, cache = run(decoder, done, SMALL)
    sizes = [record.kv_bytes for record in records]
    assert sizes == sorted(sizes, reverse=True)
    assert all(len(at) < count + BLOCK for at, count in zip(flat(held(cache)), entries, strict=True))
    old, new = done.cache.layer(0).quantized[0], cache.layer(0).quantized[0]
    assert old is not None
    assert new is not None
    same = torch.isin(old.positions, new.positions)
    assert torch.equal(old.key_codes[same], new.key_codes)
    assert len(new) < len(old)


def test_other_needs_may_be_given() -> None:
    decoder, spec, done = prefilled("llama", (60,))

    def latest(layer: Any, queries: Tensor, ages: Tensor, form: Form) -> Tensor:
        longest = max(layer.lengths)
        return (torch.arange(longest) / longest).expand(len(layer.lengths), -1)

    config = ConstantConfig(block=BLOCK, window=8, recent=RECENT, prompt_share=0.0)
    marked = [torch.zeros(63, dtype=torch.bool)]
    constant = ConstantSize(done.cache, spec, shields=marked, config=config, needs=latest)
    forced = torch.randint(3, 60, (1, STEPS), generator=torch.Generator().manual_seed(5))
    forced_logits(decoder, constant, next_positions(done), forced)
    for positions in flat(held(constant.cache)):
        assert positions.tolist() == list(range(int(positions[0]), int(positions[-1]) + 1))


@pytest.mark.parametrize(
    "wrong", [{"block": 0}, {"window": 0}, {"recent": 7}, {"prompt_share": 1.1}, {"width": 4}, {"width": 0}]
)
def test_settings_check_themselves(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=str(next(iter(wrong.values())))):
        ConstantConfig(**wrong)
