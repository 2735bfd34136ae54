"""Names, shapes and loading."""

import json
import shutil
import subprocess
import sys
from types import SimpleNamespace

import platformdirs
import pytest
import torch
from transformers import Gemma3TextConfig, Gemma4TextConfig, LlamaConfig, LlamaForCausalLM, MistralConfig, Qwen2Config

from uncomp_cli.engine.spend.memory import peak_bytes, reset_peak, resident_bytes
from uncomp_cli.errors import ModelError, UsageError
from uncomp_cli.models import downloads, loading
from uncomp_cli.models.catalog import ensure_local, known_names, list_models, local_path, remove_model, show_model
from uncomp_cli.models.conversion import describe, read_manifest, write_manifest
from uncomp_cli.models.footprint import footprint
from uncomp_cli.models.loading import load_model
from uncomp_cli.models.shape import spec_from_config
from uncomp_cli.models.sources import cache_dir, hash_memo

SMALL = {
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "vocab_size": 99,
    "max_position_embeddings": 256,
}
NO_WINDOWS = (None, None, None, None)


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNCOMP_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "snapshot", lambda model_id, cache: None)
    return tmp_path / "cache"


@pytest.fixture
def model_dir(tmp_path):
    """A small Llama in Hugging Face format, without a tokenizer."""
    path = tmp_path / "small"
    LlamaForCausalLM(LlamaConfig(**SMALL)).save_pretrained(path)
    return path


@pytest.mark.model
def test_the_default_model_loads_as_documented(default_model_dir):
    loaded = load_model("smollm2-135m", device="cpu")
    spec = loaded.spec
    assert (spec.num_layers, spec.num_heads, spec.num_kv_heads, spec.head_dim) == (30, 9, 3, 64)
    assert (spec.trained_length, spec.dtype_bytes, spec.sliding_windows) == (8192, 4, (None,) * 30)
    config = loaded.model.config
    assert config.rope_parameters["rope_theta"] == 100000
    assert config.rms_norm_eps == pytest.approx(1e-5, rel=1e-6)
    assert config.tie_word_embeddings
    assert config._attn_implementation == "sdpa"
    assert loaded.weights_bytes == pytest.approx(98_362_432, rel=0.03)  # the bytes of its file
    assert not any(weight.requires_grad for weight in loaded.model.parameters())
    assert loaded.info.licence == "apache-2.0"
    assert loaded.info.kv_bytes_per_token == 23040
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.inference_mode():
        assert loaded.tokenizer.decode(loaded.model(ids).logits[0, -1].argmax()) == " Paris"


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("method", loading.QUANTIZATIONS)
def test_quantized_weights_are_smaller_and_still_know_paris(default_model_dir, method):
    pytest.importorskip("bitsandbytes")
    device, before = torch.device("cpu"), list[int]()

    def begin(device: torch.device) -> None:
        reset_peak(device)
        before.append(resident_bytes(device))

    told = footprint(default_model_dir, dtype="auto", device=device, quantize=method)
    loaded = load_model("smollm2-135m", device="cpu", quantize=method, begin=begin)
    assert peak_bytes(device) - before[0] < told.weights_bytes + told.passing_bytes
    assert loaded.weights_bytes < 0.5 * 4 * 134_515_008
    assert loaded.quantization == method
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.inference_mode():
        assert loaded.tokenizer.decode(loaded.model(ids).logits[0, -1].argmax()) == " Paris"


def test_quantization_without_its_packages_is_refused_with_the_command(model_dir, monkeypatch):
    monkeypatch.setattr(loading, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match="bitsandbytes and accelerate") as caught:
        load_model(str(model_dir), quantize="nf4")
    assert caught.value.hint == "pip install 'uncomp[quantize]'"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"quantize": "int3"}, "int3"),
        ({"dtype": "float8"}, "float8"),
        ({"device": "toaster"}, "toaster"),
        ({"device": "cuda:99"}, "cuda:99"),
    ],
)
def test_unknown_settings_are_usage_errors(model_dir, change, words):
    with pytest.raises(UsageError, match=words):
        load_model(str(model_dir), **change)


def test_a_model_without_a_tokenizer_asks_for_one(model_dir):
    with pytest.raises(ModelError, match="tokenizer") as caught:
        load_model(str(model_dir))
    assert "--tokenizer DIR" in str(caught.value.hint)


def test_damaged_weights_are_refused_with_the_command(model_dir, monkeypatch):
    monkeypatch.setattr("uncomp_cli.models.loading.load_tokenizer", lambda path: None)
    weights = model_dir / "model.safetensors"
    whole = weights.read_bytes()
    for broken in (b"", whole[:100], whole[:-100], b"x" * 200):
        weights.write_bytes(broken)
        with pytest.raises(ModelError, match="cannot be loaded") as caught:
            load_model(str(model_dir), device="cpu")
        assert "uncomp model remove" in str(caught.value.hint)
    weights.write_bytes(whole)
    assert load_model(str(model_dir), device="cpu").spec.num_layers == 4


def test_missing_weights_are_refused_instead_of_filled_with_noise(model_dir, monkeypatch):
    monkeypatch.setattr("uncomp_cli.models.loading.load_tokenizer", lambda path: None)
    config = json.loads((model_dir / "config.json").read_text())
    (model_dir / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 5}))
    with pytest.raises(ModelError, match="lacks"):
        load_model(str(model_dir), device="cpu")
    (model_dir / "config.json").write_text(json.dumps({**config, "intermediate_size": 90}))
    with pytest.raises(
        ModelError, match=r"mlp\.down_proj\.weight is stored as \(\d+, \d+\), and is \(\d+, 90\) by config"
    ):
        load_model(str(model_dir), device="cpu")


def change_config(directory, change):
    """Set fields in config.json; None removes one."""
    path = directory / "config.json"
    fields = {**json.loads(path.read_text()), **change}
    path.write_text(json.dumps({key: value for key, value in fields.items() if value is not None}))


PICTURES = {
    "model_type": "aya_vision",
    "text_config": {"model_type": "cohere2", **SMALL},
    "vision_config": {"model_type": "siglip_vision_model", "hidden_size": 32},
}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({**PICTURES, "architectures": ["AyaVisionForConditionalGeneration"]}, "AyaVisionForConditionalGeneration"),
        ({**PICTURES, "architectures": None}, "aya_vision is not supported"),
        ({"architectures": ["LlamaForConditionalGeneration"]}, "LlamaForConditionalGeneration"),
    ],
)
def test_models_that_take_more_than_text_are_refused_by_name(model_dir, monkeypatch, change, named):
    change_config(model_dir, change)
    monkeypatch.setattr("uncomp_cli.models.loading.load_tokenizer", lambda path: pytest.fail("read before the check"))
    with pytest.raises(ModelError, match=named) as caught:
        load_model(str(model_dir), device="cpu")
    assert caught.value.hint
    with pytest.raises(ModelError, match=named):
        footprint(model_dir, dtype="auto", device=torch.device("cpu"), quantize="none")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"torch_dtype": "float8_e4m3fn", "dtype": None}, "float8_e4m3fn"),
        ({"dtype": "float8_e4m3fn"}, "float8_e4m3fn"),
        ({"vocab_size": None}, "vocab_size"),
        ({"model_type": None}, "model_type"),
        ({"num_attention_heads": 0, "head_dim": None}, "decoder"),
        ({"hidden_size": "wide"}, "decoder"),
        ({"sliding_window": "wide"}, "decoder"),
        ({"num_hidden_layers": 10**12}, "it has 1,000,000,000,000 layers"),
        ({"num_hidden_layers": -1}, "it has -1 layers"),
        ({"num_attention_heads": float("inf")}, "decoder"),
        ({"vocab_size": -5}, "vocab_size is -5"),
        ({"num_key_value_heads": 3}, "query heads share 3 KV heads"),
        ({"per_layer_config": {"1": {"num_key_value_heads": 1}}}, "different numbers of KV heads: 1, 2"),
        ({"global_head_dim": "wide", "model_type": "gemma4_text"}, "decoder"),
        ({"per_layer_config": 7}, "decoder"),
        ({"sliding_window": 16, "layer_types": ["full_attention"]}, "layers have no kind"),
        ({"dtype": {"a": "x" * 500}}, "weights of type namespace"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_a_model_error_and_does_not_break_the_list(
    tmp_path, own_cache, model_dir, change, words
):
    good, bad = own_cache / "models" / "good", own_cache / "models" / "bad"
    for place in (good, bad):
        shutil.copytree(model_dir, place)
        write_manifest(place, describe(place, "test", None))
    change_config(bad, change)
    with pytest.raises(ModelError, match=words) as caught:
        show_model("bad")
    assert caught.value.hint
    assert [info.name for info in list_models()] == ["good"]


def test_layers_of_other_widths_are_as_wide_as_the_widest():
    """Of shared layers each counts; the file that is written says the same."""
    kinds = ["sliding_attention", "full_attention"] * 2
    config = Gemma4TextConfig(**SMALL, head_dim=8, global_head_dim=16, num_kv_shared_layers=2, layer_types=kinds)
    stored = json.loads(json.dumps(config.to_dict()), object_hook=lambda fields: SimpleNamespace(**fields))
    for each in (config, stored):
        spec = spec_from_config(each, "float32")
        assert (spec.head_dim, spec.num_kv_heads, spec.num_layers) == (16, 2, 4)
        assert spec.sliding_windows == (512, None) * 2
    several = Gemma4TextConfig(**SMALL, attention_k_eq_v=True, num_global_key_value_heads=1)
    with pytest.raises(ModelError, match="different numbers of KV heads: 1, 2"):
        spec_from_config(several, "float32")


def test_a_type_that_cannot_be_run_is_refused_before_the_weights_are_read(model_dir, monkeypatch):
    change_config(model_dir, {"dtype": "float8_e4m3fn"})
    monkeypatch.setattr("uncomp_cli.models.loading.load_tokenizer", lambda path: pytest.fail("read before the check"))
    with pytest.raises(ModelError, match="float8_e4m3fn"):
        load_model(str(model_dir), device="cpu")


def test_architectures_that_are_no_list_fall_back_to_the_type(own_cache, model_dir):
    change_config(model_dir, {"architectures": {"odd": 1}})
    assert show_model(str(model_dir)).architecture == "llama"


def test_a_file_that_cannot_be_read_does_not_break_the_list(own_cache, model_dir, monkeypatch):
    shutil.copytree(model_dir, own_cache / "models" / "good")
    write_manifest(own_cache / "models" / "good", describe(model_dir, "test", None))

    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    assert len(list_models()) == 1
    monkeypatch.setattr("uncomp_cli.models.catalog.read_manifest", denied)
    assert list_models() == []


def test_models_that_are_still_being_built_have_no_name(own_cache, model_dir):
    staging = own_cache / "models" / ".staging-1-aa"
    shutil.copytree(model_dir, staging)
    write_manifest(staging, describe(staging, "test", None))
    assert known_names() == ["smollm2-135m"]
    assert list_models() == []
    with pytest.raises(UsageError, match="no model"):
        local_path(staging.name)


@pytest.mark.parametrize(
    ("config", "windows"),
    [
        (LlamaConfig(**SMALL), NO_WINDOWS),
        (MistralConfig(**SMALL, sliding_window=16), (16,) * 4),
        (MistralConfig(**SMALL, sliding_window=None), NO_WINDOWS),
        (Qwen2Config(**SMALL, sliding_window=16), NO_WINDOWS),
        (Qwen2Config(**SMALL, sliding_window=16, use_sliding_window=True, max_window_layers=3), (None, None, None, 16)),
        (
            Gemma3TextConfig(
                **SMALL, head_dim=8, sliding_window=16, layer_types=["sliding_attention", "full_attention"] * 2
            ),
            (16, None, 16, None),
        ),
    ],
)
def test_sliding_windows_by_family(config, windows):
    assert spec_from_config(config, torch.float32).sliding_windows == windows


def test_fields_that_are_missing_follow_transformers():
    bare = {key: value for key, value in SMALL.items() if key != "num_key_value_heads"}
    spec = spec_from_config(SimpleNamespace(model_type="gpt", **bare), "bfloat16")
    assert (spec.num_kv_heads, spec.head_dim, spec.dtype_bytes) == (4, 8, 2)
    nested = SimpleNamespace(model_type="outer", text_config=SimpleNamespace(model_type="inner", **SMALL))
    assert spec_from_config(nested, None).model_type == "inner"
    with pytest.raises(ModelError, match="decoder"):
        spec_from_config(SimpleNamespace(model_type="image"), None)


def test_names_that_mean_nothing_are_usage_errors(own_cache, tmp_path):
    with pytest.raises(UsageError, match=r"'smollm2-136m'.*did you mean smollm2-135m") as caught:
        local_path("smollm2-136m")
    assert caught.value.hint == "uncomp model list --known"
    with pytest.raises(UsageError, match=r"config\.json"):
        ensure_local(str(tmp_path))
    with pytest.raises(UsageError, match=r"none\.gguf"):
        ensure_local("some/none.gguf")


def test_a_directory_is_used_where_it_lies(own_cache, model_dir):
    assert list(ensure_local(str(model_dir))) == []
    assert local_path(str(model_dir)) == model_dir
    info = show_model(str(model_dir))
    assert (info.source, info.architecture, info.dtype) == ("directory", "LlamaForCausalLM", "float32")
    assert info == show_model(str(model_dir))
    with pytest.raises(ModelError, match="cache directory"):
        remove_model(str(model_dir))
    assert model_dir.exists()


def test_tests_keep_nothing_in_the_users_cache(model_dir):
    users = platformdirs.user_cache_path("uncomp")
    assert not cache_dir().is_relative_to(users)
    assert show_model(str(model_dir)).sha256 in hash_memo().read_text()
    memo = users / "hashes.json"
    assert not memo.exists() or str(model_dir) not in memo.read_text()


def test_what_is_not_here_names_the_pull_command(own_cache):
    assert cache_dir() == own_cache
    assert list_models() == []
    for call in (show_model, load_model):
        with pytest.raises(ModelError, match="not on this machine") as caught:
            call("org/name")
        assert str(caught.value.hint).startswith("uncomp model pull org/name")
    with pytest.raises(ModelError, match="--offline"):
        list(ensure_local("org/name", offline=True))
    with pytest.raises(ModelError, match="cache directory"):
        remove_model("smollm2-135m")


def test_a_hub_failure_is_one_line(own_cache, monkeypatch):
    monkeypatch.setattr(downloads, "FETCH", "raise ConnectionError('no route')")
    with pytest.raises(ModelError, match=r"cannot fetch org/name from the hub: ConnectionError: no route$"):
        list(ensure_local("org/name"))


def test_the_real_fetch_without_a_network(own_cache, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    with pytest.raises(ModelError, match="cannot fetch org/name from the hub: "):
        list(ensure_local("org/name"))


def test_a_pulled_hub_model_is_listed_and_removed(tmp_path, model_dir, monkeypatch):
    """The layout of huggingface_hub's cache, without a network."""
    monkeypatch.setenv("UNCOMP_CACHE_DIR", str(tmp_path / "cache"))
    commit = "a" * 40
    repository = tmp_path / "cache" / "hub" / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    model_dir.rename(repository / "snapshots" / commit)
    assert local_path("org/name") is None
    monkeypatch.setattr(downloads, "FETCH", "")
    assert {step.stage for step in ensure_local("org/name")} == {"download"}
    assert [info.name for info in list_models()] == ["org/name"]
    assert show_model("org/name").source == "hub"
    remove_model("org/name")
    assert list_models() == []


def test_a_repository_without_safetensors_leaves_nothing_on_disk(tmp_path, monkeypatch):
    monkeypatch.setenv("UNCOMP_CACHE_DIR", str(tmp_path / "cache"))
    commit = "a" * 40
    repository = tmp_path / "cache" / "hub" / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots" / commit).mkdir(parents=True)
    (repository / "snapshots" / commit / "config.json").write_text("{}")
    monkeypatch.setattr(downloads, "FETCH", "")
    with pytest.raises(ModelError, match="safetensors"):
        list(ensure_local("org/name"))
    assert not repository.exists()
    assert "org/name" not in known_names()


def test_a_hub_snapshot_is_complete_only_with_all_its_weights(tmp_path):
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    assert not downloads.has_all_weights(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "model-1.safetensors").touch()
    assert not downloads.has_all_weights(tmp_path)
    (tmp_path / "model-2.safetensors").touch()
    assert downloads.has_all_weights(tmp_path)
    for damaged in ([], {"weight_map": ["a"]}, {"weight_map": {"a": 1}}, {}):
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(damaged))
        with pytest.raises(UsageError):
            downloads.has_all_weights(tmp_path)


@pytest.mark.parametrize(
    "change", [{"sha256": "ab"}, {"size_bytes": "1"}, {"size_bytes": -1}, {"mood": 1}, {"source_mtime_ns": 10**30}]
)
def test_a_note_of_other_contents_is_none(model_dir, change):
    write_manifest(model_dir, describe(model_dir, "test", None))
    note = model_dir / "uncomp.json"
    assert read_manifest(model_dir) is not None
    note.write_text(json.dumps({**json.loads(note.read_text()), **change}))
    assert read_manifest(model_dir) is None


def test_the_catalog_imports_neither_torch_nor_transformers():
    code = "import sys, uncomp_cli.models.catalog; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
