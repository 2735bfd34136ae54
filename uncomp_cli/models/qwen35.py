"""Qwen 3.5 in a GGUF, which transformers does not read: its configuration, names and layouts.

llama.cpp writes value heads of the linear layers in tiled order, v of key head i at i, i + K, i + 2K, …, where
transformers wants those of one key head together. Columns of blocks cannot be put back; queries and keys, which are
rows, are repeated instead: with as many key heads as value heads no order is asked for, and each meets its own.

    norms       stored as 1 + w, but the one behind the recurrence
    ssm_a       stored as -e^A
    ssm_conv1d  rows as those of attn_qkv: [queries, keys, values]
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

ARCHITECTURE = "qwen35"
_TOP = {"token_embd.weight": "model.embed_tokens.weight", "output_norm.weight": "model.norm.weight"}
_LAYER = {
    "attn_norm.weight": "input_layernorm.weight",
    "post_attention_norm.weight": "post_attention_layernorm.weight",
    **{f"ffn_{part}.weight": f"mlp.{part}_proj.weight" for part in ("gate", "up", "down")},
    **{f"attn_{part}.weight": f"self_attn.{part}_proj.weight" for part in ("q", "k", "v")},
    **{f"attn_{part}_norm.weight": f"self_attn.{part}_norm.weight" for part in ("q", "k")},
    "attn_output.weight": "self_attn.o_proj.weight",
    "attn_qkv.weight": "linear_attn.in_proj_qkv.weight",
    "attn_gate.weight": "linear_attn.in_proj_z.weight",
    "ssm_beta.weight": "linear_attn.in_proj_b.weight",
    "ssm_alpha.weight": "linear_attn.in_proj_a.weight",
    "ssm_a": "linear_attn.A_log",
    "ssm_dt.bias": "linear_attn.dt_bias",
    "ssm_conv1d.weight": "linear_attn.conv1d.weight",
    "ssm_norm.weight": "linear_attn.norm.weight",
    "ssm_out.weight": "linear_attn.out_proj.weight",
}
_REPEATED = ("attn_qkv.weight", "ssm_conv1d.weight")


def configuration(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a file's configuration, with a key head for every value head. Raises KeyError for what it lacks."""

    def of(key: str) -> Any:
        return metadata[f"{ARCHITECTURE}.{key}"]

    value_heads, head_dim = int(of("ssm.time_step_rank")), int(of("attention.key_length"))
    return {
        "model_type": "qwen3_5_text",
        "vocab_size": len(metadata["tokenizer.ggml.tokens"]),
        "hidden_size": int(of("embedding_length")),
        "intermediate_size": int(of("feed_forward_length")),
        "num_hidden_layers": int(of("block_count")) - int(metadata.get(f"{ARCHITECTURE}.nextn_predict_layers", 0)),
        "num_attention_heads": int(of("attention.head_count")),
        "num_key_value_heads": int(np.max(of("attention.head_count_kv"))),
        "head_dim": head_dim,
        "max_position_embeddings": int(of("context_length")),
        "rms_norm_eps": float(of("attention.layer_norm_rms_epsilon")),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": float(of("rope.freq_base")),
            "partial_rotary_factor": int(of("rope.dimension_count")) / head_dim,
            "mrope_section": [int(part) for part in of("rope.dimension_sections")][:3],
            "mrope_interleaved": True,
        },
        "full_attention_interval": int(metadata.get(f"{ARCHITECTURE}.full_attention_interval", 4)),
        "linear_conv_kernel_dim": int(of("ssm.conv_kernel")),
        "linear_key_head_dim": int(of("ssm.state_size")),
        "linear_value_head_dim": int(of("ssm.inner_size")) // value_heads,
        "linear_num_key_heads": value_heads,
        "linear_num_value_heads": value_heads,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
    }


def parameter_names(config: Any) -> dict[str, str]:
    """transformers' names of the tensors of a file."""
    layers = {
        f"blk.{layer}.{ours}": f"model.layers.{layer}.{theirs}"
        for layer in range(config.num_hidden_layers)
        for ours, theirs in _LAYER.items()
    }
    return {**_TOP, "output.weight": "lm_head.weight", **layers}


def arranged(config: Any, name: str, rows: Any) -> Any:
    """Rows of a file as transformers' model has them: numbers, or bytes of blocks."""
    if name.endswith(_REPEATED):
        rows = _repeated(config, rows)
    if name.endswith("ssm_conv1d.weight"):
        return rows[:, None]
    if name.endswith("ssm_a"):
        return np.log(-rows)
    return rows - 1 if name.endswith("norm.weight") and not name.endswith("ssm_norm.weight") else rows


def stored_shape(config: Any, name: str, found: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a parameter of `shape` has in a file where its tensor is as `found`: with fewer key heads."""
    if name.endswith("ssm_conv1d.weight"):
        shape = shape[0], shape[2]
    values = config.linear_num_value_heads * config.linear_value_head_dim
    keys, own = shape[0] - values, found[0] - values
    return (found[0], *shape[1:]) if name.endswith(_REPEATED) and own > 0 and keys % own == 0 else shape


def _repeated(config: Any, rows: Any) -> Any:
    """[queries, keys, values] with the first two as often as there are value heads to a key head."""
    values = config.linear_num_value_heads * config.linear_value_head_dim
    own = (len(rows) - values) // 2
    times = config.linear_num_key_heads * config.linear_key_head_dim // own
    return np.concatenate([*[rows[:own]] * times, *[rows[own : 2 * own]] * times, rows[2 * own :]])
