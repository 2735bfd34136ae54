"""Models of random weights for gpu.py: an 8B shape, and a tiny one that takes the same path."""

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from uncomp_cli.models.catalog import ModelInfo
from uncomp_cli.models.loading import weights_bytes
from uncomp_cli.models.runnable import LoadedModel
from uncomp_cli.models.shape import spec_from_config


@dataclass(frozen=True, slots=True)
class Size:
    """What is measured: the model's shape, the lengths and the batches, and how often each."""

    config: LlamaConfig
    dtype: torch.dtype
    lengths: tuple[int, ...]
    batches: tuple[int, ...]
    new_tokens: int
    repeats: int
    copy_bytes: int
    square: int


def large() -> Size:
    """The shape of Llama-3.1-8B, in bf16."""
    config = LlamaConfig(
        num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, head_dim=128, hidden_size=4096,
        intermediate_size=14336, vocab_size=128256, max_position_embeddings=131072, rope_theta=500000.0,
    )  # fmt: skip
    return Size(config, torch.bfloat16, (8192, 16384, 32768, 65536), (1, 16), 17, 3, 2**30, 8192)


def tiny() -> Size:
    """The same code in seconds on a CPU."""
    config = LlamaConfig(
        num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=16, hidden_size=64,
        intermediate_size=128, vocab_size=256, max_position_embeddings=4096,
    )  # fmt: skip
    return Size(config, torch.float32, (512, 1024), (1, 4), 3, 2, 2**20, 128)


def random_model(size: Size, device: torch.device) -> LoadedModel:
    """A model of random weights, made on the device, as if it had been loaded."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(size.dtype)
    try:
        with device:
            model = LlamaForCausalLM(size.config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    spec = spec_from_config(size.config, size.dtype)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(spec.vocab_size)}, unk_token="w0"))
    info = ModelInfo(
        name="random", path=Path(), source="random", sha256="", architecture="LlamaForCausalLM",
        layers=spec.num_layers, heads=spec.num_heads, kv_heads=spec.num_kv_heads, head_dim=spec.head_dim,
        trained_length=spec.trained_length, kv_bytes_per_token=spec.kv_bytes_per_token,
        dtype=str(size.dtype).removeprefix("torch."), licence=None, size_bytes=0,
    )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0")
    return LoadedModel(model, tokenizer, spec, info, 0.0, weights_bytes(model), None)
