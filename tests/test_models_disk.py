"""Weights that stay on the disk: read when they are used, to the stock model's logits, and not held."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from support.families import FAMILIES, SHAPE, make_prompt
from support.gguf_files import tiny_llama, write_gguf
from support.tiny import VOCAB_SIZE, make_tiny_model
from uncomp_cli.asking.request import ModelChoice
from uncomp_cli.asking.startup import weigh
from uncomp_cli.budget.amount import Budget
from uncomp_cli.budget.presets import load_preset, preset
from uncomp_cli.config import Limits, SamplingConfig
from uncomp_cli.engine.engine import Engine
from uncomp_cli.errors import ModelError, OutOfMemoryError, UsageError
from uncomp_cli.models import loading
from uncomp_cli.models.catalog import ensure_local
from uncomp_cli.models.footprint import footprint
from uncomp_cli.models.loading import load_model
from uncomp_cli.steps import finished

SUPPORTED = ("llama", "llama-bias", "qwen2-sliding", "qwen3", "phi3", "gemma3_text", "olmo2", "smollm3")


def made(family: str, folder: Path) -> Path:
    """A tiny model of a family in Hugging Face format, its weights stored in bfloat16."""
    name, extra = FAMILIES[family]
    sizes = {**SHAPE, **extra, "vocab_size": VOCAB_SIZE, "max_position_embeddings": 1024}
    make_tiny_model(folder, config=getattr(transformers, f"{name}Config")(**sizes))
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", SUPPORTED)
def test_answers_are_those_of_weights_in_memory(family: str, tmp_path: Path) -> None:
    model, prompt = str(made(family, tmp_path)), make_prompt(600, (4, 6))
    few = SamplingConfig(temperature=0.0, max_new_tokens=12)
    engines = [Engine(load_model(model, weights=weights), sampling=few) for weights in ("float32", "disk")]
    for wanted in (preset("full"), preset("live", budget=Budget.parse("40%"))):
        found = [engine.read(prompt, wanted).finish() for engine in engines]
        logits = [context.predict([5, 6, 7], question=1) for context in found]
        torch.testing.assert_close(*logits, atol=1e-4, rtol=1e-4)
        assert found[0].hidden_kept == found[1].hidden_kept
        pairs = zip(engines, found, strict=True)
        written = [[step.token for step in engine.writer(engine.asked(context)).write()] for engine, context in pairs]
        assert written[0] == written[1]


def test_it_is_the_stock_forward_in_chunks_too(tmp_path: Path) -> None:
    folder = made("llama", tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompt = make_prompt(600, (4,))
    expected = stock(torch.tensor([[*prompt.context, *prompt.questions[0]]])).logits[0, -1]
    engine = Engine(load_model(str(folder), weights="disk"), limits=Limits(chunk_tokens=200))
    logits = engine.read(prompt, load_preset("full")).finish().predict([5])
    torch.testing.assert_close(logits[0], expected, atol=1e-4, rtol=1e-4)


def test_no_layer_is_held(tmp_path: Path) -> None:
    folder = made("llama", tmp_path)
    loaded, whole = (load_model(str(folder), weights=weights) for weights in ("disk", "float32"))
    rest = 4 * sum(weight.numel() for name, weight in whole.model.named_parameters() if "layers" not in name)
    assert rest <= loaded.weights_bytes < rest + 1024 < whole.weights_bytes  # frequencies beside
    assert loaded.device.type == "cpu"
    found: Any = footprint(folder, dtype="auto", device=torch.device("cpu"), quantize="none", weights="disk")
    assert found.weights_bytes == rest
    assert found.passing_bytes == 4 * SHAPE["hidden_size"] * SHAPE["intermediate_size"]
    Engine(loaded).read(make_prompt(100, (4,)), load_preset("full")).finish()
    layers = [weight for name, weight in loaded.model.named_parameters() if ".layers." in name]
    assert all(weight.is_meta for weight in layers)


def test_files_that_are_removed_are_read_on_and_changed_ones_refused(tmp_path: Path) -> None:
    folder, prompt = made("llama", tmp_path), make_prompt(100, (4,))
    stored = load_file(folder / "model.safetensors")
    save_file({**stored, "counter": torch.zeros(3, dtype=torch.int64)}, folder / "model.safetensors", {"format": "pt"})
    engine = Engine(load_model(str(folder), weights="disk"))
    expected = engine.read(prompt, preset("full")).finish().predict([5])
    kept = shutil.move(folder / "model.safetensors", tmp_path / "elsewhere")
    torch.testing.assert_close(engine.read(prompt, preset("full")).finish().predict([5]), expected)
    os.truncate(kept, kept.stat().st_size // 2)
    with pytest.raises(ModelError, match=r"model\.safetensors was changed while its weights were in use"):
        engine.read(prompt, preset("full")).finish()


def test_what_cannot_stay_there_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNCOMP_CACHE_DIR", str(tmp_path / "cache"))
    model = write_gguf(tmp_path / "tiny.gguf", tiny_llama())
    finished(ensure_local(str(model)))
    with pytest.raises(UsageError, match="--weights disk is for models in Hugging Face format"):
        load_model(str(model), weights="disk")
    other = made("llama", tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "intermediate_size": 90}))
    with pytest.raises(ModelError, match=r"gate_proj\.weight is stored as \(48, .* is \(90, "):
        load_model(str(other), weights="disk")
    experts = made("gpt_oss", tmp_path / "experts")
    with pytest.raises(ModelError, match="not stored as they are used"):
        load_model(str(experts), weights="disk")
    with pytest.raises(UsageError, match="--weights disk computes in float32"):
        load_model(str(experts), weights="disk", dtype="bfloat16")
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="--weights disk needs accelerate") as caught:
        load_model(str(experts), weights="disk")
    assert caught.value.hint == "pip install 'uncomp[quantize]'"


def test_it_is_a_way_out_where_nothing_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = made("llama", tmp_path)
    monkeypatch.setattr("uncomp_cli.engine.spend.memory.free_bytes", lambda device: 20_000)
    with pytest.raises(OutOfMemoryError) as caught:
        weigh(ModelChoice(str(folder)), folder)
    assert str(caught.value.hint).startswith("--weights disk reads them again for every token; or use ")
