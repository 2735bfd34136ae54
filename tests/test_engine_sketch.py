"""A sketch of a text: made while it is read, in whatever chunks; it points a question in other words at a passage."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from support.caches import resave
from support.tiny import make_tiny_model
from uncomp_cli.budget.presets import Preset, load_preset
from uncomp_cli.cache.shelf import Shelf
from uncomp_cli.config import Limits, SamplingConfig
from uncomp_cli.engine.context.context import Context
from uncomp_cli.engine.context.recall import matching_passages, missing_passages, part_of, passage_numbers
from uncomp_cli.engine.context.sketch import Sketch, Sketcher, sketch_bytes, sketched_layers
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.forward.attention import AttentionState, attend_causal
from uncomp_cli.engine.tokens.prompt import Prompt, chat_prompt
from uncomp_cli.errors import UncompError
from uncomp_cli.models.loading import load_model
from uncomp_cli.models.runnable import LoadedModel

SENTENCES = ("The lamp is lit at dusk.", " The keeper writes the hour!", " Gulls cry.\n", "No boat came in the storm.")
TEXT = "".join(SENTENCES) * 6
PRESET = Preset(name="mine", description="", budget="30%", policy="uniform", scorer=load_preset("unseen").scorer)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_model(str(make_tiny_model(tmp_path_factory.mktemp("tiny"))))


def asked(loaded: LoadedModel, *questions: str) -> Prompt:
    return chat_prompt(loaded.tokenizer, TEXT, questions or ("when?",), system=None, sinks=4)


def engine_of(loaded: LoadedModel, **limits: int) -> Engine:
    return Engine(loaded, sampling=SamplingConfig(max_new_tokens=4), limits=Limits(**limits))


def read(loaded: LoadedModel, prompt: Prompt, preset: Preset = PRESET, **limits: int) -> Context:
    return engine_of(loaded, **limits).read(prompt, preset, for_any=True).finish()


class _Values(AttentionState):
    """Exact attention that keeps the values of every layer."""

    def __init__(self) -> None:
        self.values: list[Tensor] = []

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: object) -> Tensor:
        self.values.append(value[0])
        return attend_causal(query[0], key[0], value[0], form)[None]


def test_passages_are_numbered_by_the_tokens_that_begin_in_them(tiny: LoadedModel) -> None:
    prompt = asked(tiny)
    numbers = passage_numbers(tiny.tokenizer, prompt.context)
    first = len(prompt.context) - len(TEXT)  # a token a character
    assert (numbers[:first] == -1).all()
    wanted = [-1 if sign == "\n" else number for number, sentence in enumerate(SENTENCES * 6) for sign in sentence]
    assert numbers[first:].tolist() == wanted


def test_a_sketch_is_of_the_mean_values_of_each_passage(tiny: LoadedModel) -> None:
    prompt, engine = asked(tiny), engine_of(tiny)
    sketch = read(tiny, prompt).sketch
    assert sketch is not None
    seen = _Values()
    ids = torch.tensor([list(prompt.context)])
    engine.decoder.forward(ids, torch.arange(ids.shape[1])[None], seen, 1)
    numbers, layers = passage_numbers(tiny.tokenizer, prompt.context), sketched_layers(tiny.spec)
    means = torch.stack(
        [
            torch.cat([seen.values[layer][:, numbers == number].mean(dim=1) for layer in layers])
            for number in range(len(SENTENCES) * 6)
        ]
    )
    torch.testing.assert_close(sketch.mean.float(), means.mean(dim=0), atol=1e-3, rtol=1e-3)
    for number in (0, 5, 23):
        near = sketch.near(means[number])
        assert near[number] > 0.999
        assert near.max() == near[number]
    assert sum(tensor.nbytes for tensor in sketch.tensors) == sketch_bytes(tiny.spec, len(sketch))


def test_chunks_give_every_token_once(tiny: LoadedModel) -> None:
    prompt = asked(tiny)
    numbers = passage_numbers(tiny.tokenizer, prompt.context)
    counted = Sketcher(tiny.spec, numbers)
    whole = Sketcher(tiny.spec, numbers)
    ones = torch.ones(tiny.spec.num_kv_heads, len(numbers), tiny.spec.head_dim)
    for layer in range(tiny.spec.num_layers):
        whole.add(layer, 0, ones)
    taken: list[tuple[int, int]] = []
    add = counted.add

    class Told(Sketcher):
        def add(self, layer: int, first: int, values: Tensor) -> None:
            taken.append((layer, values.shape[1]))
            add(layer, first, torch.ones_like(values))

    engine = engine_of(tiny, chunk_tokens=128)
    growth, planned = engine._plan_any(prompt, PRESET)
    assert planned.chunk_tokens == 128
    for _ in growth.read(prompt.context, planned, Told(tiny.spec, numbers)):
        pass
    assert len({count for _, count in taken}) > 1
    assert torch.equal(counted._sums, whole._sums)


def test_nothing_is_sketched_where_nothing_goes(tiny: LoadedModel) -> None:
    kept = replace(PRESET, budget="full", policy="full")
    assert read(tiny, asked(tiny), kept).sketch is None
    assert read(tiny, asked(tiny)).sketch is not None


def test_a_sketch_counts_in_the_bytes_and_under_the_cap(tiny: LoadedModel) -> None:
    prompt = asked(tiny)
    context = read(tiny, prompt)
    sketch = context.sketch
    assert sketch is not None
    layers = sum(context.layer_bytes())
    assert context.cache.nbytes == layers + sum(tensor.nbytes for tensor in sketch.tensors)
    everything = replace(PRESET, budget="full", policy="uniform")
    engine = engine_of(tiny, kv_bytes=tiny.spec.full_kv_bytes(len(prompt.context)))
    left = engine._limits_beside(prompt, everything, tokens=engine._tokens_beside(prompt)).kv_bytes or 0
    assert engine._plan_any(prompt, everything)[0].limits.kv_bytes == left - sketch_bytes(tiny.spec, len(sketch))


def test_what_is_near_comes_before_what_has_the_words() -> None:
    text = "The lamp is lit. The boat is late. Nobody sleeps. A ship sinks."
    words = matching_passages(text, "boat")
    assert [text[slice(*found)] for found in words] == [" The boat is late."]
    near = torch.tensor([0.1, 0.3, 0.0, 0.9])
    both = [text[slice(*found)] for found in matching_passages(text, "boat", near)]
    assert both == [" A ship sinks.", " The boat is late.", "The lamp is lit.", " Nobody sleeps."]
    assert matching_passages(text, "boat", near[:3]) == words  # of another cutting: words alone
    assert next(text[slice(*found)] for found in matching_passages(text, "vessel", near)) == " A ship sinks."


def test_only_what_was_lost_is_missing() -> None:
    text = "one two. three four. five six."
    offsets = torch.tensor([[at, at + 1] for at in range(len(text))])
    near = torch.tensor([0.0, 0.5, 1.0])
    held = torch.ones(len(text))
    held[20:] = 0
    found = missing_passages(text, "none", offsets=offsets, survival=held, near=near)
    assert found == [range(20, 30)]


def test_the_words_of_a_question_are_found_among_the_templates() -> None:
    assert part_of((9, 1, 2, 1, 2, 8), (1, 2)) == range(3, 5)
    assert part_of((9, 8), (1,)) == range(2)
    assert part_of((9, 8), ()) == range(2)


def test_a_question_without_shared_words_has_its_passage_read_again(tiny: LoadedModel) -> None:
    """By a sketch in which the question's own values are those of one passage."""
    prompt = asked(tiny, "xyzzy")
    context = read(tiny, prompt, replace(PRESET, budget="20%"))
    sketch = context.sketch
    assert sketch is not None
    assert context.begin(0, words="xyzzy") is not None
    told = context.recalled
    assert told is not None
    assert "3 passages" in told
    numbers = passage_numbers(tiny.tokenizer, prompt.context)
    again = context.survival(len(prompt.context))
    whole = [number for number in range(len(sketch)) if bool((again[numbers == number] == 1).all())]
    assert len(whole) == 3
    held = context.cache.layer(0).head(0)[2]
    assert bool((held[1:] > held[:-1]).all())  # the question is there once
    context.sketch = None
    context.begin(0, words="xyzzy")
    assert context.recalled is None


def test_a_sketch_is_saved_and_opened_with_its_context(tiny: LoadedModel, tmp_path: Path) -> None:
    prompt, shelf, engine = asked(tiny, "xyzzy"), Shelf(tmp_path), engine_of(tiny)
    context = read(tiny, prompt)
    entry, _ = engine.save(context, shelf, "x")
    opened = engine.open(shelf, entry, prompt, PRESET)
    assert context.sketch is not None
    assert opened.sketch is not None
    assert all(torch.equal(*pair) for pair in zip(context.sketch.tensors, opened.sketch.tensors, strict=True))
    logits = [each.begin(0, words="xyzzy").logits for each in (context, opened)]
    assert torch.equal(*logits)
    assert context.recalled is not None


def test_a_context_that_was_saved_without_one_opens(tiny: LoadedModel, tmp_path: Path) -> None:
    prompt, shelf, engine = asked(tiny, "the keeper"), Shelf(tmp_path), engine_of(tiny)
    engine.save(read(tiny, prompt), shelf, "x")
    resave(shelf.find("x").path, tensors={f"extra.sketch.1.{name}": None for name in ("directions", "mean")})
    opened = engine.open(shelf, shelf.find("x"), prompt, PRESET)
    assert opened.sketch is None
    assert opened.begin(0, words="the keeper").logits.isfinite().all()


@pytest.mark.parametrize(
    "change",
    [
        {"mean": None},
        {"directions": None},
        {"directions": torch.zeros(4, 2, 16, dtype=torch.uint8)[:, :1]},
        {"directions": torch.zeros(10**5, 2, 16, dtype=torch.uint8)},
        {"directions": torch.zeros(4, 2, 16)},
        {"mean": torch.full((2, 16), float("nan")).half()},
        {"mean": torch.zeros(3, 16).half()},
    ],
)
def test_a_hostile_sketch_is_set_aside(tiny: LoadedModel, tmp_path: Path, change: dict[str, Tensor | None]) -> None:
    prompt, shelf, engine = asked(tiny), Shelf(tmp_path), engine_of(tiny)
    engine.save(read(tiny, prompt), shelf, "x")
    resave(shelf.find("x").path, tensors={f"extra.sketch.1.{name}": tensor for name, tensor in change.items()})
    with pytest.raises(UncompError, match="its sketch is not of its passages and the model's heads"):
        engine.open(shelf, shelf.find("x"), prompt, PRESET)


def test_codes_are_as_near_as_what_they_are_of() -> None:
    chance = torch.Generator().manual_seed(0)
    means = torch.randn(40, 6, 64, generator=chance) + 3
    asked_for = torch.randn(6, 64, generator=chance) + 3
    away, own = means - means.mean(dim=0), asked_for - means.mean(dim=0)
    exact = torch.nn.functional.cosine_similarity(away, own[None], dim=-1).mean(dim=1)
    torch.testing.assert_close(Sketch.of(means).near(asked_for), exact, atol=5e-3, rtol=0)
