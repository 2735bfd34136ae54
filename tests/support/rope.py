"""A small model with plain positions, and how stock transformers is told to turn them otherwise."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

TRAINED, FACTOR, HEAD_DIM, THETA, VOCAB = 64, 4, 16, 10_000.0, 99
LONG = FACTOR * TRAINED
SMALL: dict[str, Any] = {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "hidden_size": 64,
    "intermediate_size": 96,
    "vocab_size": VOCAB,
    "initializer_range": 0.2,  # large, so that attention is peaked and a wrong key shows
    "pad_token_id": 0,
}
PLAIN: dict[str, Any] = {"rope_type": "default", "rope_theta": THETA}
NTK = [FACTOR ** (2 * pair / (HEAD_DIM - 2)) for pair in range(HEAD_DIM // 2)]
ORIGINAL = {"original_max_position_embeddings": TRAINED, "factor": float(FACTOR), "rope_theta": THETA}
# What a user of stock transformers would write, by hand: rope_parameters and max_position_embeddings.
STOCK: dict[str, tuple[dict[str, Any], int]] = {
    "plain": (PLAIN, LONG),
    "linear:4": ({"rope_type": "linear", "factor": 4.0, "rope_theta": THETA}, LONG),
    "ntk:4": ({**PLAIN, "rope_theta": THETA * FACTOR ** (HEAD_DIM / (HEAD_DIM - 2))}, LONG),
    "dynamic:4": ({"rope_type": "dynamic", "factor": 4.0, "rope_theta": THETA}, TRAINED),
    "yarn:4": ({"rope_type": "yarn", **ORIGINAL}, LONG),
    "llama3:4": ({"rope_type": "llama3", **ORIGINAL, "low_freq_factor": 1.0, "high_freq_factor": 4.0}, LONG),
    "longrope:4": ({"rope_type": "longrope", **ORIGINAL, "short_factor": [1.0] * 8, "long_factor": NTK}, LONG),
}


def make_plain_model(path: Path) -> Path:
    """Write the model."""
    torch.manual_seed(0)
    config = LlamaConfig(**SMALL, max_position_embeddings=TRAINED, rope_parameters=dict(PLAIN))
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def text(length: int) -> Tensor:
    return torch.randint(1, VOCAB, (length,), generator=torch.Generator().manual_seed(length))
