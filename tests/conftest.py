"""Fixtures that several test modules share."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from uncomp_cli.models.builtin import DEFAULT_MODEL
from uncomp_cli.models.catalog import ensure_local, local_path

if TYPE_CHECKING:
    from uncomp_cli.models.loading import LoadedModel


@pytest.fixture(scope="session")
def default_model_dir() -> Path:
    """The default model in the cache directory, pulled when it is not there."""
    for _ in ensure_local(DEFAULT_MODEL):
        pass
    path = local_path(DEFAULT_MODEL)
    assert path is not None
    return path


@pytest.fixture(scope="session")
def default_model(default_model_dir: Path) -> "LoadedModel":
    """The default model, loaded once for all who change nothing of it; an engine may have replaced its layers.

    Who compares with the model as transformers loads it loads one of its own.
    """
    from uncomp_cli.models.loading import load_model

    assert default_model_dir.is_dir()
    return load_model(DEFAULT_MODEL, dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def small_model(default_model: "LoadedModel") -> "LoadedModel":
    """Random weights behind the default model's tokenizer: for which numbers are compared, not for what they say."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from uncomp_cli.models.shape import spec_from_config

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=default_model.spec.vocab_size, hidden_size=64, intermediate_size=96, num_hidden_layers=6,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.2,
    )  # fmt: skip
    model, spec = LlamaForCausalLM(config).eval(), spec_from_config(config, "float32")
    return replace(default_model, model=model, spec=spec, own_config=None)
