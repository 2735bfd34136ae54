"""GGUF files: a tiny Llama as llama.cpp's converter writes it, and damaged ones."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from tokenizers import pre_tokenizers

from support.mutation import damage_bytes
from uncomp_cli.models.gguf import prepare_gguf

LAYERS, HEADS, KV_HEADS, HEAD_DIM, HIDDEN, INNER = 2, 4, 2, 8, 32, 64
TOKENS = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|end|>"]
WRITTEN = ("LLAMA", "QWEN2", "GEMMA3", "LFM2", "QWEN35")
PERMUTED = ("llama",)
SCALES_AT = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_K": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "IQ4_NL": (0,),
    "IQ4_XS": (0,),
}
"""Of the kinds that gguf reads and does not write: where in a block its scales are."""
SHAPE: dict[str, Any] = {
    "vocab_size": len(TOKENS),
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": True,
    "pad_token_id": None,
}


def tiny_llama(family: str = "Llama", **more: Any) -> Any:
    """A random model of a family, the oracle."""
    torch.manual_seed(0)
    theta = {"rope_parameters": {"rope_type": "default", "rope_theta": 50000.0}}
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **theta, **more})
    return getattr(transformers, f"{family.removesuffix('Text')}ForCausalLM")(config).eval()


def write_gguf(
    path: Path,
    model: Any,
    *,
    architecture: str = "llama",
    pre: str = "smollm",
    kind: Callable[[str], str] = lambda name: "F32",
    file_type: int = 0,
    edit: Callable[[Any], None] | None = None,
) -> Path:
    """What llama.cpp's converter writes: matrices of the kind that their names say, of Llama's with permuted rows."""
    writer, config = gguf.GGUFWriter(str(path), architecture), model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    attends = [kind == "full_attention" for kind in getattr(config, "layer_types", None) or ()]
    heads = [config.num_key_value_heads * here for here in attends]
    writer.add_head_count_kv(heads if architecture == "lfm2" else config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.norm_eps if architecture == "lfm2" else config.rms_norm_eps)
    writer.add_rope_freq_base(50000.0)
    writer.add_rope_dimension_count(head_dim // 4 if architecture == "qwen35" else head_dim)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_file_type(file_type)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * (len(TOKENS) - 1) + [3])
    writer.add_token_merges(["h e"] if "he" in TOKENS else [])
    writer.add_eos_token_id(len(TOKENS) - 1)
    if edit:
        edit(writer)
    known = {each.name.lower(): each for each in gguf.MODEL_ARCH if each.name in WRITTEN}
    names = gguf.get_tensor_name_map(known.get(architecture, gguf.MODEL_ARCH.LLAMA), config.num_hidden_layers)
    for name, values in model.state_dict().items():
        if name != "lm_head.weight" or not config.tie_word_embeddings:
            called = name.replace("dt_bias", "dt_proj.bias")
            called = names.get_name(called, try_suffixes=(".weight", ".bias"))
            _add(writer, called, _stored(name, values, config, architecture), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _stored(name: str, values: torch.Tensor, config: Any, architecture: str) -> np.ndarray:
    """A weight as the converter has it."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = next((heads[part] for part in heads if part in name), None)
    if count is not None and architecture in PERMUTED:
        values = (
            values.reshape(count, 2, len(values) // count // 2, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        )
    if architecture == "gemma3" and name.endswith("norm.weight"):
        values = values + 1
    if architecture == "qwen35":
        values = _delta_rule(name, values, config)
    return values.squeeze().numpy() if "conv" in name else values.numpy()


def _delta_rule(name: str, values: torch.Tensor, config: Any) -> torch.Tensor:
    """Norms but the recurrent layers' with 1 added, A as what it stands for, value heads in tiled order."""
    keys, heads, wide = config.linear_num_key_heads, config.linear_num_value_heads, config.linear_value_head_dim
    tiled = torch.arange(heads).view(keys, -1).T.flatten()
    each = (tiled[:, None] * wide + torch.arange(wide)).flatten()
    if "in_proj_qkv" in name or "conv1d" in name:
        cut = 2 * keys * config.linear_key_head_dim
        return torch.cat([values[:cut], values[cut:][each]])
    if "in_proj_z" in name:
        return values[each]
    if "linear_attn.out_proj" in name:
        return values[:, each]
    if name.endswith(("in_proj_a.weight", "in_proj_b.weight", "dt_bias")):
        return values[tiled]
    if name.endswith("A_log"):
        return -values[tiled].exp()
    return values + 1 if name.endswith("norm.weight") and "linear_attn" not in name else values


def _add(writer: Any, name: str, values: np.ndarray, kind: Callable[[str], str]) -> None:
    named = gguf.GGMLQuantizationType[kind(name) if values.ndim > 1 else "F32"]
    if named.name in ("F32", "F16"):
        writer.add_tensor(name, values.astype(np.float32 if named.name == "F32" else np.float16))
        return
    packed = _random_blocks(named, values.shape) if named.name in SCALES_AT else gguf.quantize(values, named)
    writer.add_tensor(name, packed, raw_dtype=named)


def _random_blocks(kind: gguf.GGMLQuantizationType, shape: tuple[int, ...]) -> np.ndarray:
    """Blocks of random bits with small scales."""
    cols, size = gguf.GGML_QUANT_SIZES[kind]
    chance = np.random.default_rng(0)
    blocks = chance.integers(0, 256, (shape[0], shape[1] // cols, size), dtype=np.uint8)
    for at in SCALES_AT[kind.name]:
        scales = (chance.standard_normal(blocks.shape[:2]) * 2e-5).astype(np.float16)
        blocks[..., at : at + 2] = scales[..., None].view(np.uint8)
    return blocks.reshape(shape[0], -1)


class GgufHeaders:
    """A GGUF file whose header is damaged, read as a model that is named by its file."""

    name = "gguf"

    def prepare(self, folder: Path) -> None:
        self.file, self.target = folder / "damaged.gguf", folder / "converted"
        self.target.mkdir()
        whole = write_gguf(folder / "whole.gguf", tiny_llama()).read_bytes()
        end = whole.index(b"output_norm.weight") + 60
        self.header, self.rest = whole[:end], whole[end:]

    def mutate(self, chance: Random) -> bytes:
        return damage_bytes(self.header, chance) + self.rest

    def use(self, data: bytes) -> None:
        self.file.write_bytes(data)
        for _ in prepare_gguf([self.file], self.target):
            pass
