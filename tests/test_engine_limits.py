"""A session with limits: interrupted, out of memory, and still usable; and the default model read in chunks."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from support.families import make_prompt
from support.town import CODE, QUESTION, town
from uncomp_cli.budget.presets import Preset
from uncomp_cli.config import LEAST_CHUNK_TOKENS, Limits, SamplingConfig, ScorerConfig
from uncomp_cli.engine.context.context import Context
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.tokens.prompt import chat_prompt
from uncomp_cli.errors import OutOfMemoryError
from uncomp_cli.models.loading import load_model
from uncomp_cli.models.runnable import LoadedModel

LAYERS, CHUNK = 3, 200
PRESET = Preset("x", "", "30%", "uniform", ScorerConfig(window=8, width=5))
PROMPT = make_prompt(900, [20], protected=4)
SAMPLING = SamplingConfig(max_new_tokens=4)


class Failing(torch.nn.Module):
    """A layer that raises `error` from its call number `first` on."""

    def __init__(self, layer: torch.nn.Module, error: Exception, first: int) -> None:
        super().__init__()
        self.layer, self.error, self.left = layer, error, first

    def forward(self, *inputs: Any, **keywords: Any) -> Any:
        self.left -= 1
        if self.left < 0:
            raise self.error
        return self.layer(*inputs, **keywords)


@pytest.fixture(scope="module")
def tiny_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2, head_dim=8, hidden_size=32,
        intermediate_size=48, vocab_size=64, max_position_embeddings=2048, initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    characters = Tokenizer(models.WordLevel({chr(48 + code): code for code in range(64)}, unk_token="0"))
    characters.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=characters, unk_token="0").save_pretrained(path)
    return path


@pytest.fixture
def loaded(tiny_dir: Path) -> LoadedModel:
    return load_model(str(tiny_dir), device="cpu")


def engine_of(loaded: LoadedModel, *, chunk: int | None = CHUNK) -> Engine:
    return Engine(loaded, sampling=SAMPLING, limits=Limits(chunk_tokens=chunk))


def answered(engine: Engine, context: Context) -> list[int]:
    return [step.token for step in engine.writer(engine.asked(context)).write()]


@pytest.mark.parametrize("thinning", ["none", "gather:after=1,keep=0.5"])
def test_an_interrupt_leaves_the_engine_usable(loaded: LoadedModel, thinning: str) -> None:
    preset = replace(PRESET, thinning=thinning)
    undisturbed, engine = engine_of(loaded), engine_of(loaded)
    expected = undisturbed.read(PROMPT, preset)
    steps = sum(1 for _ in expected)
    for stop in (1, LAYERS + 2):  # within the first chunk, and within a later one
        reading = engine.read(PROMPT, preset)
        running: Any = iter(reading)
        for _ in range(stop):
            next(running)
        running.close()
        with pytest.raises(RuntimeError, match="nothing has been read"):
            assert reading.context
    reading = engine.read(PROMPT, preset)
    assert sum(1 for _ in reading) == steps
    assert answered(engine, reading.context) == answered(undisturbed, expected.context)
    assert reading.context.hidden_kept == expected.context.hidden_kept
    assert reading.context.layer_bytes() == expected.context.layer_bytes()


@pytest.mark.parametrize("chunk", [None, 600, LEAST_CHUNK_TOKENS])
def test_out_of_memory_names_a_smaller_chunk(loaded: LoadedModel, chunk: int | None) -> None:
    layers = loaded.model.model.layers
    layers[1] = Failing(layers[1], torch.OutOfMemoryError("tried to allocate 9 GiB"), 0 if chunk is None else 1)
    engine = engine_of(loaded, chunk=chunk)
    with pytest.raises(OutOfMemoryError) as caught:
        engine.read(PROMPT, PRESET).finish()
    assert caught.value.exit_code == 4
    at_once = chunk or PROMPT.flat_len
    assert f"{at_once}" in str(caught.value)
    wanted = f"--chunk {at_once // 2}" if chunk != LEAST_CHUNK_TOKENS else "--budget"
    assert wanted in str(caught.value.hint)
    layers[1] = layers[1].layer
    reading = engine.read(PROMPT, PRESET)
    assert sum(1 for _ in reading) >= LAYERS
    assert len(answered(engine, reading.context)) == 4


def test_other_errors_stay_what_they_are(loaded: LoadedModel) -> None:
    layers = loaded.model.model.layers
    layers[1] = Failing(layers[1], ValueError("shape"), 1)
    with pytest.raises(ValueError, match="shape"):
        engine_of(loaded).read(PROMPT, PRESET).finish()


def test_a_cap_holds_for_reading_and_writing(loaded: LoadedModel) -> None:
    full = loaded.spec.full_kv_bytes(PROMPT.seq_len)
    engine = Engine(loaded, sampling=SAMPLING, limits=Limits(kv_bytes=full // 2))
    reading = engine.read(PROMPT, replace(PRESET, budget="full"))
    assert max(step.kv_bytes for step in reading) <= full // 2
    assert max(step.kv_bytes for step in engine.writer(engine.asked(reading.context)).write()) <= full // 2


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize(
    ("budget", "chunk", "thinning"),
    [("full", 300, "none"), ("full", None, "gather:after=8,keep=0.5"), ("50%", 300, "none")],
)
def test_the_default_model_finds_an_early_fact(
    default_model: LoadedModel, budget: str, chunk: int | None, thinning: str
) -> None:
    lines = town().splitlines()
    (fact,) = [line for line in lines if CODE in line]
    lines.remove(fact)
    text = "\n".join([*lines[:4], fact, *lines[4:]])
    prompt = chat_prompt(default_model.tokenizer, text, [QUESTION], system=None, sinks=4)
    preset = Preset("x", "", budget, "uniform", ScorerConfig("agreement"), thinning=thinning)
    limits = Limits(chunk_tokens=chunk)
    engine = Engine(default_model, sampling=SamplingConfig(max_new_tokens=14), limits=limits)
    reading = engine.read(prompt, preset)
    assert (sum(1 for _ in reading) > default_model.spec.num_layers) == (chunk is not None)
    assert (reading.context.hidden_kept[-1] < 0.6) == (thinning != "none")
    assert CODE[:5] in "".join(step.text for step in engine.writer(engine.asked(reading.context)).write())
