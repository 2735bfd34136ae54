"""RoPE in a configuration: what an extension makes of it, which kinds there are, what is refused."""

import json
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
)

from uncomp_cli.errors import ModelError, UsageError
from uncomp_cli.models.extension import ROPE_KINDS, RopeChoice
from uncomp_cli.models.footprint import footprint
from uncomp_cli.models.loading import load_model
from uncomp_cli.models.rotary import can_repack, check_rope, extend_config, length_kind, reading_length

TRAINED, HEAD_DIM, THETA = 64, 16, 10_000.0
SMALL = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "vocab_size": 99,
    "max_position_embeddings": TRAINED,
}
ORIGINAL = {"factor": 2.0, "rope_theta": THETA, "original_max_position_embeddings": TRAINED}
# What a user of stock transformers would write, by hand.
STOCK = {
    "linear": {"rope_type": "linear", "factor": 2.0, "rope_theta": THETA},
    "ntk": {"rope_type": "default", "rope_theta": THETA * 2 ** (HEAD_DIM / (HEAD_DIM - 2))},
    "dynamic": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": THETA},
    "yarn": {"rope_type": "yarn", **ORIGINAL},
    "llama3": {"rope_type": "llama3", **ORIGINAL, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
    "longrope": {
        "rope_type": "longrope",
        **ORIGINAL,
        "short_factor": [1.0] * 8,
        "long_factor": [2 ** (pair / 7) for pair in range(8)],
    },
}
FAMILIES = {
    "llama": LlamaConfig,
    "qwen2": Qwen2Config,
    "qwen3": Qwen3Config,
    "mistral": MistralConfig,
    "olmo2": Olmo2Config,
    "granite": GraniteConfig,
    "smollm3": SmolLM3Config,
}


@pytest.mark.parametrize("kind", ROPE_KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_supported_family_is_extended_by_a_copy(family: str, kind: str) -> None:
    config = FAMILIES[family](**SMALL, head_dim=HEAD_DIM, rope_parameters={"rope_type": "default", "rope_theta": THETA})
    before = config.to_dict()
    extended = extend_config(config, RopeChoice(kind, 2.0))
    assert config.to_dict() == before
    assert type(extended) is type(config)
    assert extended.rope_parameters == STOCK[kind]
    assert reading_length(extended) == 2 * TRAINED
    assert extended.max_position_embeddings == (TRAINED if kind == "dynamic" else 2 * TRAINED)


def test_ntk_counts_only_the_dimensions_that_rotate() -> None:
    parameters = {"rope_type": "default", "rope_theta": THETA, "partial_rotary_factor": 0.5}
    config = Phi3Config(**SMALL, pad_token_id=0, rope_parameters=parameters)
    extended = extend_config(config, RopeChoice("ntk", 2.0))
    assert extended.rope_parameters == {**parameters, "rope_theta": pytest.approx(THETA * 2 ** (8 / 6))}


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": THETA,
    "factor": 2.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


@pytest.mark.parametrize("kind", ROPE_KINDS)
@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            LlamaConfig(**SMALL, rope_scaling={"type": "linear", "factor": 8.0}),
            r"--rope {kind}:2 cannot replace .*linear:8: from which length",
        ),
        (Gemma3TextConfig(**SMALL), "not supported for gemma3_text models"),
        (GPT2Config(), "no rotary positions"),
    ],
    ids=["linear", "gemma3", "gpt2"],
)
def test_configurations_that_cannot_be_extended_are_refused(config: PretrainedConfig, message: str, kind: str) -> None:
    with pytest.raises(UsageError, match=message.replace("{kind}", kind)) as caught:
        extend_config(config, RopeChoice(kind, 2.0))
    assert "leave the extension out" in str(caught.value.hint)


@pytest.mark.parametrize("kind", ROPE_KINDS)
def test_a_shipped_scaling_is_replaced_from_its_original_length(kind: str) -> None:
    extended = extend_config(LlamaConfig(**SMALL, rope_parameters=dict(LLAMA3)), RopeChoice(kind, 2.0))
    assert reading_length(extended) == 2 * 32
    assert not {"low_freq_factor", "high_freq_factor"} & set(extended.rope_parameters) or kind == "llama3"
    assert extended.rope_parameters.get("original_max_position_embeddings", 32) == 32


@pytest.mark.parametrize("kind", ["linear", "dynamic", "yarn", "llama3"])
def test_a_kind_that_the_family_does_not_know_is_refused(kind: str) -> None:
    with pytest.raises(UsageError, match=f"phi3 models cannot use rope extension '{kind}'") as caught:
        extend_config(Phi3Config(**SMALL, pad_token_id=0), RopeChoice(kind, 2.0))
    assert "ntk:F" in str(caught.value.hint)


# Models whose own positions depend on the length


def namespace(value):
    """A dictionary as `catalog.read_config` reads it."""
    return json.loads(json.dumps(value), object_hook=lambda fields: SimpleNamespace(**fields))


DYNAMIC = {"rope_type": "dynamic", "rope_theta": THETA, "factor": 2.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": THETA,
    "factor": 2.0,
    "short_factor": [1.0] * 8,
    "long_factor": [2.0] * 8,
    "original_max_position_embeddings": 32,
}
PLAIN = {"rope_type": "default", "rope_theta": THETA}
PER_LAYER = {"sliding_attention": PLAIN, "full_attention": DYNAMIC}


@pytest.mark.parametrize(
    ("config", "kind"),
    [
        (LlamaConfig(**SMALL, rope_parameters=dict(DYNAMIC)), "dynamic"),
        (LlamaConfig(**SMALL, rope_scaling={"type": "dynamic", "factor": 2.0}), "dynamic"),
        (LlamaConfig(**SMALL, rope_parameters=dict(LONGROPE)), "longrope"),
        (namespace({"rope_scaling": {"type": "dynamic", "factor": 2.0}}), "dynamic"),
        (namespace({"text_config": {"rope_parameters": LONGROPE}}), "longrope"),
        (namespace({"model_type": "phi3", "rope_scaling": {"type": "su"}}), "longrope"),
        (namespace({"model_type": "phi3", "rope_scaling": {"type": "yarn"}}), "longrope"),
        (LlamaConfig(**SMALL), None),
        (LlamaConfig(**SMALL, rope_parameters=dict(LLAMA3)), None),
        (Phi3Config(**SMALL, pad_token_id=0), None),
        (Gemma3TextConfig(**SMALL), None),
        (GPT2Config(), None),
        (namespace({"model_type": "llama", "rope_scaling": None}), None),
        (namespace({"model_type": "llama", "rope_theta": THETA, "rope_parameters": LLAMA3}), None),
        (namespace({"rope_parameters": {"full_attention": PLAIN, "sliding_attention": None}}), None),
    ],
)
def test_the_kind_that_depends_on_the_length_is_known(config, kind: str | None) -> None:
    check_rope(config)
    assert length_kind(config) == kind


@pytest.mark.parametrize(
    "config",
    [
        Gemma3TextConfig(**SMALL, head_dim=HEAD_DIM, rope_parameters=PER_LAYER),
        namespace({"rope_parameters": PER_LAYER}),
        namespace({"rope_scaling": {"full_attention": {"type": "dynamic", "factor": 2.0}}}),
    ],
)
def test_such_a_kind_in_some_layers_is_refused_by_name(config) -> None:
    with pytest.raises(ModelError, match=r"only some .* \(rope_type dynamic\)") as caught:
        check_rope(config)
    assert "another scaling" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("config", "can"),
    [
        (LlamaConfig(**SMALL), True),
        (LlamaConfig(**SMALL, rope_parameters=dict(LLAMA3)), True),
        (Phi3Config(**SMALL, pad_token_id=0), True),
        (LlamaConfig(**SMALL, rope_parameters=dict(DYNAMIC)), False),
        (LlamaConfig(**SMALL, rope_parameters=dict(LONGROPE)), False),
        (Gemma3TextConfig(**SMALL), False),
        (SmolLM3Config(**SMALL, no_rope_layers=[1, 0]), False),
        (SmolLM3Config(**SMALL, no_rope_layers=[1, 1]), True),
        (GPT2Config(), False),
    ],
)
def test_only_what_turns_alike_at_every_length_can_be_repacked(config: PretrainedConfig, can: bool) -> None:
    assert can_repack(config) == can


def test_such_a_model_is_refused_before_its_weights_are_loaded(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("uncomp_cli.models.loading.load_weights", lambda *_, **__: pytest.fail("weights were loaded"))
    monkeypatch.setattr("uncomp_cli.models.loading.load_tokenizer", lambda path: None)
    config = Gemma3TextConfig(**SMALL, head_dim=HEAD_DIM, rope_parameters=PER_LAYER)
    config.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match="rope_type dynamic"):
        load_model(str(tmp_path), device="cpu")
    with pytest.raises(ModelError, match="rope_type dynamic"):
        footprint(tmp_path, dtype="auto", device=torch.device("cpu"), quantize="none")


@pytest.mark.parametrize("kind", ROPE_KINDS)
def test_a_single_frequency_can_only_be_divided(kind: str) -> None:
    config = LlamaConfig(**SMALL, head_dim=2, rope_parameters={"rope_type": "default", "rope_theta": THETA})
    if kind in ("ntk", "dynamic", "longrope"):
        with pytest.raises(UsageError, match=f"--rope {kind}:2 has nothing to change: 2 dimensions") as caught:
            extend_config(config, RopeChoice(kind, 2.0))
        assert "--rope linear:2" in str(caught.value.hint)
    else:
        assert extend_config(config, RopeChoice(kind, 2.0)).rope_parameters["rope_type"] == kind
