"""A second reading: what it scores is dense attention of the stock model, and what is cut by it is as planned."""

from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support.chunks import assert_as_planned, assert_same_entries, positions_of, words_of
from support.families import (
    SHAPE,
    assert_same,
    decode,
    exhaust,
    full_plan,
    make_prompt,
    planned_for,
    read,
    shared_tiny,
    stock_logits,
    tiny,
    tokens,
)
from support.memory import peak_of
from uncomp_cli.budget.baselines import AdaptivePolicy, UniformPolicy
from uncomp_cli.budget.plan import BudgetPlan, Wanted
from uncomp_cli.budget.presets import Preset
from uncomp_cli.cache.shelf import Shelf
from uncomp_cli.config import Limits, SamplingConfig, ScorerConfig
from uncomp_cli.engine.context.context import Context
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.read import repetition
from uncomp_cli.engine.read.reader import Reader
from uncomp_cli.engine.read.repetition import LEAST_PIECE_TOKENS, cut_pieces
from uncomp_cli.engine.spend.compression import plan_compression
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.errors import DoesNotFitError, ModelError, UsageError
from uncomp_cli.models.ranks import Ranks
from uncomp_cli.models.runnable import LoadedModel
from uncomp_cli.spec import ModelSpec

CONFIG = ScorerConfig("repeat")
CONTEXT, PROTECTED, QUESTION = 120, 5, 9
PRESET = Preset("test", "", budget="30%", policy="uniform", scorer=CONFIG)


def prompt_of(*questions: int, context: int = CONTEXT) -> Prompt:
    return make_prompt(context, questions or [QUESTION], protected=PROTECTED, words=words_of(context))


def plan_of(spec: ModelSpec, prompt: Prompt, *, kept: float = 0.4, policy: Any = UniformPolicy) -> BudgetPlan:
    entries = int(spec.full_entries(prompt.seq_len) * kept)
    made: BudgetPlan = policy().plan(Wanted(spec, prompt.seq_len, entries, prompt.always_kept))
    return made


def ranked(family: str, prompt: Prompt, *, chunk: int | None = None) -> tuple[Reader, Context]:
    decoder, spec = shared_tiny(family)[1:]
    reader = Reader(decoder, planned_for(decoder, prompt, plan_of(spec, prompt), CONFIG, chunk=chunk))
    return reader, exhaust(reader.read())[1]


@torch.no_grad()
def looked_at(family: str, ids: Sequence[int], pieces: Sequence[Sequence[int]]) -> list[Tensor]:
    """The highest attention [G, S] in every layer of the stock model, whose rows are all tokens of each piece."""
    stock, _, spec = shared_tiny(family)
    found = [torch.zeros(spec.num_kv_heads, len(ids)) for _ in range(spec.num_layers)]
    for piece in pieces:
        attentions = stock(torch.tensor([[*ids, *piece]]), use_cache=False, output_attentions=True).attentions
        for layer, weights in enumerate(attentions):
            rows = weights[0, :, len(ids) :, : len(ids)].amax(dim=1)
            found[layer] = torch.maximum(found[layer], rows.view(spec.num_kv_heads, -1, len(ids)).amax(dim=1))
    return found


@pytest.mark.parametrize("most", [512, 40])
@pytest.mark.parametrize("family", ["llama", "llama-mha", "phi3", "qwen3-sliding", "gemma3_text", "gemma2", "gpt_oss"])
def test_scores_are_the_highest_attention_of_the_stock_model(
    family: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repetition, "PIECE_TOKENS", most)
    monkeypatch.setattr(repetition, "LEAST_PIECE_TOKENS", 1)
    spec, prompt = shared_tiny(family)[2], prompt_of()
    reader, _ = ranked(family, prompt)
    ids = prompt.context.ids
    pieces = [ids] if most > CONTEXT else [ids[first : first + 40] for first in range(0, CONTEXT - 8, 32)]
    expected = looked_at(family, ids, pieces)
    assert list(reader.ranking) == list(spec.full_layers)
    for layer, scores in reader.ranking.items():
        assert_same(scores, expected[layer])


@pytest.mark.parametrize("most", [9, 40, 130, 500])
def test_pieces_have_every_token_and_overlap(most: int) -> None:
    ids = list(range(130))
    pieces = list(cut_pieces(ids, most))
    assert {token for piece in pieces for token in piece} == set(ids)
    assert max(map(len, pieces)) == min(most, 130)
    assert all(list(after[:8]) == list(before[-8:]) for before, after in pairwise(pieces))
    assert len(pieces) == 1 or len(pieces[-1]) > 8  # the last has something of its own


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "qwen2-sliding"])
def test_the_first_reading_may_be_in_chunks(family: str) -> None:
    prompt = prompt_of(context=300)
    (one, done), (many, other) = (ranked(family, prompt, chunk=chunk) for chunk in (None, 70))
    for layer, scores in one.ranking.items():
        assert_same(scores, many.ranking[layer])
    assert_same_entries(done.cache, other.cache)
    assert_same(done.questions.logits, other.questions.logits)
    forced = torch.tensor([tokens(4, 7)])
    assert_same(decode(shared_tiny(family)[1], done, forced), decode(shared_tiny(family)[1], other, forced))


@pytest.mark.parametrize("policy", [UniformPolicy, AdaptivePolicy])
@pytest.mark.parametrize("questions", [(QUESTION,), (4, 12)])
def test_what_is_kept_is_planned_and_ranked_first(policy: Any, questions: tuple[int, ...]) -> None:
    decoder, spec = shared_tiny("llama")[1:]
    prompt = prompt_of(*questions)
    plan, single = plan_of(spec, prompt, policy=policy), replace(CONFIG, whole_words=False)
    reader = Reader(decoder, planned_for(decoder, prompt, plan, single))
    done = exhaust(reader.read())[1]
    assert_as_planned(done, plan, prompt)
    if policy is UniformPolicy:
        for layer, heads in enumerate(positions_of(done.cache)):
            for head, held in enumerate(heads):
                scores = reader.ranking[layer][head].masked_fill(prompt.context.protected, 2.0)
                count = plan.kept[layer][head] - prompt.longest_question
                best = set(scores.topk(count).indices.tolist())
                assert best == {at for at in held.tolist() if at < CONTEXT}


def test_the_first_readings_cache_is_what_is_cut() -> None:
    """The second reading changes nothing of what it looks at."""
    stock, decoder, spec = shared_tiny("llama")
    prompt = prompt_of()
    _, full = read(decoder, prompt, full_plan(spec, prompt))
    _, done = read(decoder, prompt, plan_of(spec, prompt), CONFIG)
    done.begin()
    assert_same(done.questions.logits, stock_logits(stock, (*prompt.context, *prompt.questions[0]))[-1:])
    for layer in range(spec.num_layers):
        for head in range(spec.num_kv_heads):
            (keys, values, at), whole = (each.cache.layer(layer).head(head) for each in (done, full))
            assert torch.equal(keys, whole[0][at.long()])
            assert torch.equal(values, whole[1][at.long()])


@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_where_everything_is_kept_the_text_is_read_once(family: str) -> None:
    _, decoder, spec = shared_tiny(family)
    prompt, forced = prompt_of(), torch.tensor([tokens(4, 7)])
    steps, done = read(decoder, prompt, full_plan(spec, prompt), CONFIG)
    assert len(steps) == steps[-1].num_layers == spec.num_layers
    assert steps[-1].tokens == prompt.flat_len
    expected = stock_logits(shared_tiny(family)[0], (*prompt.context, *prompt.questions[0], *forced[0].tolist()))
    assert_same(decode(decoder, done, forced)[0], expected[prompt.seq_len :])


@pytest.mark.parametrize("chunk", [None, 50])
def test_progress_counts_both_readings(chunk: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repetition, "PIECE_TOKENS", 64)
    decoder, spec = shared_tiny("llama")[1:]
    prompt = prompt_of()
    planned = planned_for(decoder, prompt, plan_of(spec, prompt), CONFIG, chunk=chunk)
    steps, _ = exhaust(Reader(decoder, planned).read())
    once = spec.num_layers * len(Reader(decoder, planned).chunks)
    done = [step.layers_done for step in steps]
    assert done == sorted(done)
    assert done[once - 1] == once
    assert done[-1] == steps[-1].num_layers == 2 * once
    assert len(steps) == once + 2 * spec.num_layers
    assert steps[0].tokens == prompt.flat_len + CONTEXT


@pytest.mark.parametrize(("kept", "bits", "chunk"), [(0.1, 16, None), (0.1, 4, None), (0.3, 16, 256)])
def test_the_peak_is_planned(kept: float, bits: int, chunk: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in {"hidden_size": 64, "intermediate_size": 192, "max_position_embeddings": 4096}.items():
        monkeypatch.setitem(SHAPE, key, value)
    _, decoder, spec = tiny("llama")
    preset = replace(PRESET, budget=f"{100 * kept:g}%", kv_bits=bits)
    prompt, limits = make_prompt(1500, [20], protected=4), Limits(chunk_tokens=chunk)
    planned = plan_compression(spec, preset, prompt, available=10**12, limits=limits)
    assert planned.repeats

    def work() -> Any:
        reader = Reader(decoder, planned)
        for each in reader.chunks:
            reader.read_chunk(each)
        reader.cut_by(reader.repeat())
        return reader.cache

    peak = peak_of(work)
    assert 0.75 * planned.peak_bytes < peak <= planned.peak_bytes
    once = plan_compression(
        spec, replace(preset, scorer=ScorerConfig("distinct")), prompt, available=10**12, limits=limits
    )
    assert once.peak_bytes < planned.peak_bytes


def test_a_text_that_leaves_no_room_behind_it_is_refused_and_a_shorter_piece_does() -> None:
    spec = replace(shared_tiny("llama")[2], trained_length=400)
    with pytest.raises(DoesNotFitError, match="401 tokens and 64 at least: the model reads 400") as caught:
        plan_compression(spec, PRESET, prompt_of(context=400), available=10**12)
    assert "--scorer distinct" in str(caught.value.hint)
    room = 400 - LEAST_PIECE_TOKENS - 1  # a token of the question competes with the context
    assert plan_compression(spec, PRESET, prompt_of(context=room), available=10**12).repeated_tokens == room + 1
    kept = plan_compression(spec, replace(PRESET, budget="100%"), prompt_of(context=390), available=10**12)
    assert not kept.repeats


def test_what_cannot_be_read_again_is_refused() -> None:
    plan = partial(plan_compression, shared_tiny("llama")[2], prompt=prompt_of(), available=10**12)
    with pytest.raises(UsageError, match="thinning lets a part go on"):
        plan(preset=replace(PRESET, thinning="gather:after=2,keep=0.3"))
    with pytest.raises(DoesNotFitError, match="are free") as caught:
        plan(preset=PRESET, available=1000)
    assert "use another --scorer" in str(caught.value.hint)  # a smaller budget holds no less on the way
    with pytest.raises(DoesNotFitError, match="--kv-mem leaves it") as caught:
        plan(preset=PRESET, limits=Limits(kv_bytes=40_000))
    assert "--scorer distinct" in str(caught.value.hint)
    with pytest.raises(ModelError, match="layers have states that go on"):
        plan_compression(replace(shared_tiny("llama")[2], recurrent=(0,)), PRESET, prompt_of(), available=10**12)


def test_heads_that_are_dealt_out_do_not_read_again() -> None:
    decoder, spec = copy(shared_tiny("llama")[1]), shared_tiny("llama")[2]
    decoder.ranks = Ranks(0, 2)
    planned = planned_for(decoder, prompt_of(), plan_of(spec, prompt_of()), CONFIG)
    with pytest.raises(UsageError, match="all heads in one process"):
        Reader(decoder, planned)


@pytest.fixture
def engine(loaded: LoadedModel) -> Engine:
    return Engine(loaded, sampling=SamplingConfig(max_new_tokens=8))


@pytest.mark.parametrize("bits", [16, 4])
def test_a_saved_document_is_opened_as_it_was_read(engine: Engine, bits: int, tmp_path: Path) -> None:
    preset, prompt = replace(PRESET, kv_bits=bits), prompt_of(8, 5, context=200)
    reading = engine.read(prompt, preset, for_any=True)
    context = reading.finish()
    assert reading.note is None
    assert context.account.preset.scorer == CONFIG
    shelf, ids = Shelf(tmp_path, limit_bytes=10**9), tokens(5, 3)
    expected = [context.predict(ids, question) for question in (0, 1)]
    entry, _ = engine.save(context, shelf, "text")
    assert entry.manifest.record.compression.scorer == CONFIG
    again = engine.open(shelf, entry, prompt, preset)
    assert all(torch.equal(again.predict(ids, question), expected[question]) for question in (0, 1))


def test_a_document_keeps_what_its_second_reading_ranks_first(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions and slack take their room in the end: what goes for them is what was looked at least."""
    rankings: list[Any] = []

    def remembered(reader: Reader, ranking: Any) -> None:
        rankings.append(ranking)
        cut_by(reader, ranking)

    cut_by = Reader.cut_by
    monkeypatch.setattr(Reader, "cut_by", remembered)
    preset = replace(PRESET, scorer=replace(CONFIG, whole_words=False))
    context = engine.read(make_prompt(200, [8], protected=4), preset, for_any=True).finish()
    (ranking,) = rankings
    tail = set(range(192, 200))  # what stands in the place of a question: never scored, kept
    for layer, heads in enumerate(positions_of(context.cache)):
        for head, held in enumerate(heads):
            scores = ranking[layer][head].clone()
            scores[:4] = 2.0
            best = set(scores.topk(len(held) - len(tail)).indices.tolist())
            assert set(held.tolist()) == best | tail


def test_a_conversation_is_not_read_twice(engine: Engine) -> None:
    talk = engine.conversation(PRESET)
    assert talk.preset.scorer.name == "distinct"
    assert talk.notes == [
        "preset test reads a text a second time to rank it (repeat), and what grows is cut again and again: scorer "
        "distinct is used"
    ]
