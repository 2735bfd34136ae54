"""GGUF files: a tiny Llama as llama.cpp's converter writes it, and damaged ones."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import gguf
import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

from support.mutation import damage_bytes
from uncomp_cli.models.gguf import convert_gguf, licence_of

LAYERS, HEADS, KV_HEADS, HEAD_DIM, HIDDEN, INNER = 2, 4, 2, 8, 32, 64
TOKENS = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|end|>"]
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def tiny_llama() -> LlamaForCausalLM:
    """A random Llama, the oracle."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 50000.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def write_gguf(
    path: Path,
    model: LlamaForCausalLM,
    *,
    architecture: str = "llama",
    pre: str = "smollm",
    dtype: Any = np.float32,
    file_type: int = 0,
    edit: Callable[[Any], None] | None = None,
) -> Path:
    """What llama.cpp's converter writes for a Llama, with its permuted query and key weights."""
    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_block_count(LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50000.0)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_file_type(file_type)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * (len(TOKENS) - 1) + [3])
    writer.add_token_merges(["h e"] if "he" in TOKENS else [])
    writer.add_eos_token_id(len(TOKENS) - 1)
    if edit:
        edit(writer)
    for name, values in model.state_dict().items():
        if name != "lm_head.weight":
            kind = dtype if values.dim() > 1 else np.float32
            writer.add_tensor(gguf_name(name), permuted(name, values).numpy().astype(kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_name(name: str) -> str:
    if not name.startswith("model.layers."):
        return {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def permuted(name: str, values: torch.Tensor) -> torch.Tensor:
    heads = HEADS if "q_proj" in name else KV_HEADS if "k_proj" in name else None
    if heads is None:
        return values
    return values.reshape(heads, 2, HEAD_DIM // 2, HIDDEN).swapaxes(1, 2).reshape(values.shape)


class GgufHeaders:
    """A GGUF file whose header is damaged, converted as a model that is named by its file."""

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
        licence_of(self.file)
        for _ in convert_gguf(self.file, self.target):
            pass
