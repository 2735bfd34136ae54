"""A saved context against the one that was read: the same logits and answers, and never for another model or text."""

import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from support.caches import resave
from support.tiny import make_tiny_model
from uncomp_cli.budget.presets import Preset, load_preset
from uncomp_cli.cache.cache_file import StoredCache
from uncomp_cli.cache.shelf import Entry, Shelf
from uncomp_cli.cache.states import States
from uncomp_cli.config import Limits, Matmul, SamplingConfig
from uncomp_cli.engine.context.context import Context
from uncomp_cli.engine.context.saved import misfit, record_of, tensors_of
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.forward import products
from uncomp_cli.engine.records import RunStats
from uncomp_cli.engine.tokens.prompt import Prompt, chat_prompt
from uncomp_cli.errors import DoesNotFitError, UncompError, UsageError
from uncomp_cli.models.extension import RopeChoice
from uncomp_cli.models.loading import load_model
from uncomp_cli.models.runnable import LoadedModel

TEXT = "the lamp is lit at dusk and the keeper writes the hour in the book. " * 9
QUESTIONS = ["when is the lamp lit?", "who writes?"]
SAMPLING = SamplingConfig(max_new_tokens=6)
UNIFORM = Preset(name="mine", description="", budget="40%", policy="uniform", scorer=load_preset("unseen").scorer)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def tiny(model_dir: Path) -> LoadedModel:
    return load_model(str(model_dir))


def prompt_of(loaded: LoadedModel, text: str = TEXT, system: str | None = None) -> Prompt:
    return chat_prompt(loaded.tokenizer, text, QUESTIONS, system=system, sinks=4)


def engine_of(loaded: LoadedModel, limits: Limits | None = None) -> Engine:
    return Engine(loaded, sampling=SAMPLING, limits=limits)


def read(loaded: LoadedModel, preset: Preset = UNIFORM, text: str = TEXT) -> Context:
    return engine_of(loaded).read(prompt_of(loaded, text), preset, for_any=True).finish()


def save(loaded: LoadedModel, context: Context, shelf: Shelf, name: str | None = "x") -> Entry:
    return engine_of(loaded).save(context, shelf, name)[0]


def behind(context: Context, question: int) -> Tensor:
    """The logits behind a question."""
    return context.begin(question).logits


def answer(loaded: LoadedModel, context: Context, question: int) -> tuple[str, RunStats]:
    engine = engine_of(loaded)
    writer = engine.writer([engine.asked(context)[question]])
    text = "".join(step.text for step in writer.write())
    stats = writer.stats()
    assert stats is not None
    return text, stats


def key_of(loaded: LoadedModel, prompt: Prompt, preset: Preset = UNIFORM, limits: Limits | None = None) -> str:
    return engine_of(loaded, limits).origin(prompt, preset).key


@pytest.mark.sparse(1)
@pytest.mark.parametrize("kv_bits", [16, 8, 4])
@pytest.mark.parametrize("budget", ["25%", "full"])
def test_a_reload_gives_the_same_logits_bit_by_bit(
    tiny: LoadedModel, tmp_path: Path, budget: str, kv_bits: int
) -> None:
    preset = replace(UNIFORM, budget=budget, kv_bits=kv_bits)
    first, shelf = read(tiny, preset), Shelf(tmp_path)
    entry = save(tiny, first, shelf)
    before = [behind(first, question).clone() for question in (0, 1)]
    said = [answer(tiny, first, question)[0] for question in (0, 1)]
    again = engine_of(tiny).open(shelf, entry, prompt_of(tiny), preset)
    assert [torch.equal(behind(again, question), before[question]) for question in (0, 1)] == [True, True]
    # the order of questions changes nothing
    assert [answer(tiny, again, question)[0] for question in (1, 0)] == said[::-1]


@pytest.mark.parametrize("room", [1, 3, 20])
def test_an_answer_ends_where_the_context_does(tiny: LoadedModel, room: int) -> None:
    seq_len = prompt_of(tiny).seq_len
    shorter = replace(tiny, spec=replace(tiny.spec, trained_length=seq_len + room))
    _, stats = answer(shorter, read(shorter), 0)
    said = stats.completion_tokens
    assert said == min(room, SAMPLING.max_new_tokens)


@pytest.mark.parametrize(
    ("tensors", "record", "told"),
    [
        ({"extra.ids": None}, {}, "its ids are not those of"),
        ({"extra.ids": torch.zeros(3, dtype=torch.int32)}, {}, "its ids are not those of"),
        ({"extra.words": torch.zeros(3)}, {}, "its words are not those of"),
        ({}, {"context_tokens": 2**40}, "its ids are not those of 1,099,511,627,776 tokens"),
    ],
)
def test_what_is_no_context_of_the_model_is_set_aside(
    tiny: LoadedModel, tmp_path: Path, tensors: dict[str, Tensor | None], record: dict[str, int], told: str
) -> None:
    shelf = Shelf(tmp_path)
    entry = save(tiny, read(tiny), shelf)
    plain = asdict(entry.manifest.record)
    resave(entry.path, tensors=tensors, manifest={"record": {**plain, **record}})
    assert shelf.verify(shelf.find("x")) is None
    with pytest.raises(UncompError, match=f"cache 'x' is damaged: {told}.* set aside as"):
        engine_of(tiny).open(shelf, shelf.find("x"), prompt_of(tiny), UNIFORM, as_saved=True)
    assert [path.name for path in tmp_path.glob("x*")] == ["x.safetensors.corrupt"]


def test_numbers_that_the_model_cannot_have_are_a_misfit(tiny: LoadedModel) -> None:
    context = read(tiny)
    record = record_of(context, engine_of(tiny).origin(context.prompt, UNIFORM), tiny)
    held = tensors_of(context.prompt.context)
    stored = StoredCache(context.cache, held, record)
    assert misfit(stored, tiny.spec, States()) is None
    for change, told in (
        ({"ids": held["ids"] + tiny.spec.vocab_size}, "tokens that the model does not know"),
        ({"ids": held["ids"] - 300}, "tokens that the model does not know"),
        ({"words": held["words"].flip(0)}, "words are not numbered in order"),
    ):
        assert told in str(misfit(stored._replace(tensors={**held, **change}), tiny.spec, States()))
    for name in ("num_layers", "num_kv_heads", "head_dim"):
        assert misfit(stored, replace(tiny.spec, **{name: 1}), States()) is not None
    half = {name: tensor[: len(tensor) // 2] for name, tensor in held.items()}
    shorter = replace(record, context_tokens=len(half["ids"]))
    assert "holds the position" in str(misfit(StoredCache(context.cache, half, shorter), tiny.spec, States()))


def test_an_answer_leaves_nothing_behind(tiny: LoadedModel, tmp_path: Path) -> None:
    context, shelf = read(tiny), Shelf(tmp_path)
    clean = save(tiny, context, shelf, "before")
    before = behind(context, 0).clone()
    answer(tiny, context, 1)
    entry = save(tiny, context, shelf, "after")
    assert entry.manifest.tensor_bytes == clean.manifest.tensor_bytes
    assert entry.manifest.record.kept_entries == clean.manifest.record.kept_entries
    assert torch.equal(behind(context, 0), before)
    assert torch.equal(behind(read(tiny), 0), before)


def test_a_full_budget_answers_as_the_whole_prompt_does(tiny: LoadedModel) -> None:
    context = read(tiny, replace(UNIFORM, budget="full", policy="full"))
    prompt = context.prompt
    ids = torch.tensor([[*prompt.context, *prompt.questions[1]]])
    fresh = load_model(str(tiny.info.path))
    expected = fresh.model(ids).logits[:, -1]
    torch.testing.assert_close(behind(context, 1), expected, atol=1e-4, rtol=0)


def test_what_is_kept_does_not_depend_on_the_question(tiny: LoadedModel) -> None:
    window = replace(UNIFORM, scorer=load_preset("live").scorer)
    reading = engine_of(tiny).read(prompt_of(tiny), window, for_any=True)
    assert reading.note is not None
    assert reading.preset.scorer.name == load_preset("unseen").scorer.name
    other = replace(prompt_of(tiny), questions=((5, 6, 7),))
    assert key_of(tiny, prompt_of(tiny), window) == key_of(tiny, other, window)


def test_figures_of_reading_and_of_reuse(tiny: LoadedModel, tmp_path: Path) -> None:
    context, shelf = read(tiny), Shelf(tmp_path)
    prompt = context.prompt
    (_, first), (_, second) = answer(tiny, context, 0), answer(tiny, context, 1)
    entry = save(tiny, context, shelf, None)
    assert entry.name == entry.key[:16]
    opened = engine_of(tiny).open(shelf, entry, prompt, UNIFORM)
    _, third = answer(tiny, opened, 1)
    assert [stats.cached_tokens for stats in (first, second, third)] == [0, len(prompt.context), len(prompt.context)]
    assert second.prompt_tokens == third.prompt_tokens == len(prompt.context) + len(prompt.questions[1])
    assert first.ttft_s > context.seconds
    assert third.ttft_s > opened.seconds > 0
    assert entry.manifest.record.kv_full_bytes == tiny.spec.full_kv_bytes(len(prompt.context))
    assert entry.file_bytes < 0.5 * entry.manifest.record.kv_full_bytes


@pytest.mark.parametrize(
    "change",
    [
        {"budget": "30%"},
        {"kv_bits": 8},
        {"policy": "pyramid"},
        {"floor_tokens": 64},
        {"scorer": replace(UNIFORM.scorer, width=5)},
        {"scorer": replace(UNIFORM.scorer, sinks=8)},
    ],
)
def test_the_key_changes_with_what_is_kept(tiny: LoadedModel, change: dict[str, object]) -> None:
    prompt = prompt_of(tiny)
    key = key_of(tiny, prompt)
    assert key_of(tiny, prompt) == key
    assert key_of(tiny, prompt, replace(UNIFORM, name="other", description="x")) == key
    assert key_of(tiny, prompt, replace(UNIFORM, **change)) != key


def test_the_key_changes_with_text_system_prompt_pins_and_limits(tiny: LoadedModel) -> None:
    prompt = prompt_of(tiny)
    pinned = replace(prompt, context=prompt.context.guarded(torch.arange(len(prompt.context)) == 99))
    keys = {
        key_of(tiny, prompt),
        key_of(tiny, prompt_of(tiny, TEXT[1:])),
        key_of(tiny, prompt_of(tiny, system="be brief")),
        key_of(tiny, pinned),
        key_of(tiny, prompt, limits=Limits(chunk_tokens=128)),
        key_of(tiny, prompt, limits=Limits(kv_bytes=10 * 2**20)),
    }
    assert len(keys) == 6


def other_weights(directory: Path, target: Path) -> LoadedModel:
    made = make_tiny_model(target, sayable="abc")
    assert (made / "config.json").read_text() == (directory / "config.json").read_text()
    return load_model(str(made))


def other_tokenizer(directory: Path, target: Path) -> LoadedModel:
    shutil.copytree(directory, target)
    template = target / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    return load_model(str(target))


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("weights", r"the weights was \w{16}, not \w{16}"),
        ("tokenizer", r"the tokenizer was \w{16}, not \w{16}"),
        ("dtype", "the number format was float32, not bfloat16"),
        ("rope", r"the RoPE was .*4096.*, not .*8192"),
    ],
)
def test_another_model_is_refused_with_both_values(
    tiny: LoadedModel, model_dir: Path, tmp_path: Path, kind: str, words: str
) -> None:
    shelf = Shelf(tmp_path / "shelf")
    entry = save(tiny, read(tiny), shelf)
    if kind == "weights":
        other = other_weights(model_dir, tmp_path / "other")
    elif kind == "tokenizer":
        other = other_tokenizer(model_dir, tmp_path / "other")
    elif kind == "dtype":
        other = load_model(str(model_dir), dtype="bfloat16")
    else:
        other = load_model(str(model_dir), rope="yarn:2")
    with pytest.raises(UsageError, match=f"cache 'x' was made with another model: {words}"):
        engine_of(other).open(shelf, entry, prompt_of(other), UNIFORM, as_saved=True)


@pytest.mark.parametrize(
    ("saved", "asked", "words"),
    [
        ("dynamic:2", "dynamic:4", r'"factor": 2.0.*"regime": 8192.*, not .*"factor": 4.0.*"regime": 16384'),
        ("longrope:2", "longrope:4", r'"regime": 8192.*, not .*"regime": 16384'),
        ("dynamic:2", None, r'"regime": 8192, .*"dynamic".*, not \{.*"default"'),
        ("yarn:2", "llama3:2", r'"yarn".*, not .*"llama3"'),
    ],
)
def test_another_rope_is_refused_with_both_values(
    model_dir: Path, tmp_path: Path, saved: str, asked: str | None, words: str
) -> None:
    maker = load_model(str(model_dir), rope=saved)
    entry = save(maker, read(maker), Shelf(tmp_path))
    other = load_model(str(model_dir), rope=asked)
    with pytest.raises(UsageError, match=f"the RoPE was .*{words}"):
        engine_of(other).open(Shelf(tmp_path), entry, prompt_of(other), UNIFORM, as_saved=True)


@pytest.mark.parametrize(("saved", "asked"), [("bfloat16", "auto"), ("bfloat16", "float32"), ("auto", "bfloat16")])
def test_what_was_read_in_float32_or_bfloat16_opens_under_the_other(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: Matmul, asked: Matmul
) -> None:
    """In so small a model `auto` is float32. Bytes are other weights, and by its key only the own is found."""
    monkeypatch.setattr(products, "has_fast_bfloat16", lambda: True)
    shelf, made = Shelf(tmp_path), (saved, asked, "int8")
    maker, other, whole = (Engine(load_model(str(model_dir)), matmul=each) for each in made)
    prompt = prompt_of(maker.loaded)
    context = maker.read(prompt, UNIFORM, for_any=True).finish()
    entry, _ = maker.save(context, shelf, "x")
    again = other.open(shelf, entry, prompt, UNIFORM)
    assert again.account.record == entry.manifest.record
    assert torch.allclose(behind(again, 0), behind(context, 0), atol=0.1)  # 0.04 to 0.06, by the CPU
    assert (other.saved(shelf, prompt, UNIFORM) is not None) == (asked == "auto")
    with pytest.raises(UsageError, match=r"the products \(--matmul\) was .*, not int8"):
        whole.open(shelf, entry, prompt, UNIFORM)


def test_how_far_is_read_is_no_other_rope(tiny: LoadedModel, model_dir: Path) -> None:
    """The same frequencies turn the same keys, however long a text may be."""
    mine = engine_of(tiny).origin(prompt_of(tiny), UNIFORM).model
    for rope in ("plain", RopeChoice("plain", None, 8192), RopeChoice("yarn", None, 100)):
        other = load_model(str(model_dir), rope=rope)
        assert engine_of(other).origin(prompt_of(other), UNIFORM).model == mine


def test_a_saved_context_is_asked_in_the_frequencies_it_was_read_in(model_dir: Path, tmp_path: Path) -> None:
    """Whoever read something short with the same model before."""
    loaded = load_model(str(model_dir), rope="dynamic:2")
    context = read(loaded)
    entry = save(loaded, context, Shelf(tmp_path))
    expected = behind(context, 0)
    engine = engine_of(loaded)
    engine.decoder.fix_regime(1)
    again = engine.open(Shelf(tmp_path), entry, prompt_of(loaded), UNIFORM)
    engine.decoder.fix_regime(1)
    assert torch.equal(behind(again, 0), expected)


def test_other_text_is_refused_unless_it_is_asked_as_saved(tiny: LoadedModel, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    first = read(tiny)
    entry = save(tiny, first, shelf)
    engine, everything = engine_of(tiny), replace(UNIFORM, budget="full", policy="full")
    with pytest.raises(UsageError, match=r"made from other text: its tokens have the hash \w{16}, these have \w{16}"):
        engine.open(shelf, entry, prompt_of(tiny, "something else"), everything)
    opened = engine.open(shelf, entry, prompt_of(tiny, ""), everything, as_saved=True)
    assert torch.equal(behind(opened, 1), behind(first, 1))
    preset = opened.account.preset
    assert (str(preset.budget), preset.policy) == ("40%", "uniform")  # its own, not the one that was given
    copy = save(tiny, opened, shelf, "copy")
    assert copy.key == entry.key


def test_a_cap_holds_a_question_and_its_answer_too(tiny: LoadedModel, tmp_path: Path) -> None:
    prompt = prompt_of(tiny)
    cap = 620 * tiny.spec.kv_bytes_per_token
    full = replace(UNIFORM, budget="full", policy="full")
    talkative = replace(SAMPLING, max_new_tokens=200)
    engine = Engine(tiny, sampling=talkative, limits=Limits(kv_bytes=cap, chunk_tokens=128))
    reading = engine.read(prompt, full, for_any=True)
    most = max(step.kv_bytes for step in reading)
    written = list(engine.writer(engine.asked(reading.context)[:1]).write())
    assert len(written) == 200
    assert max(most, *(step.kv_bytes for step in written)) <= cap
    entry, _ = engine.save(reading.context, Shelf(tmp_path), "x")
    tight = engine_of(tiny, Limits(kv_bytes=cap * 5 // 8))
    with pytest.raises(DoesNotFitError, match=r"cache 'x' has .* MiB, --kv-mem leaves it"):
        tight.open(Shelf(tmp_path), entry, prompt, UNIFORM)
    with pytest.raises(DoesNotFitError, match=r"needs .* MiB of KV cache \(question, answer\), --kv-mem allows"):
        engine_of(tiny, Limits(kv_bytes=1000)).read(prompt, UNIFORM, for_any=True)


def test_a_damaged_cache_is_refused(tiny: LoadedModel, tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    entry = save(tiny, read(tiny), shelf)
    entry.path.write_bytes(entry.path.read_bytes()[:-9])
    with pytest.raises(UncompError, match="'x' is damaged"):
        engine_of(tiny).open(shelf, entry, prompt_of(tiny), UNIFORM)


@pytest.mark.model
def test_the_default_model_reloads_bit_by_bit_and_quickly(default_model: LoadedModel, tmp_path: Path) -> None:
    loaded = default_model
    text = (Path(__file__).parent.parent / "docs" / "demo" / "lighthouse-handbook.md").read_text()[:2500]
    preset = replace(load_preset("unseen"), budget="30%", floor_tokens=0)
    begun_s = time.process_time()
    first = read(loaded, preset, text)
    read_s = time.process_time() - begun_s
    prompt = first.prompt
    shelf = Shelf(tmp_path)
    entry = save(loaded, first, shelf)
    before = [behind(first, question).clone() for question in (0, 1)]
    begun_s = time.process_time()
    again = engine_of(loaded).open(shelf, entry, prompt, preset)
    assert time.process_time() - begun_s < 0.3 * read_s
    assert [torch.equal(behind(again, question), before[question]) for question in (0, 1)] == [True, True]
    assert answer(loaded, again, 1)[0] == answer(loaded, first, 1)[0]
    assert entry.file_bytes <= 1.02 * entry.manifest.tensor_bytes
