"""A decoder's forward, layer by layer, where tokens may leave between two layers.

    embed → for each layer: layer(hidden), then keep what the state says → norm → logits of the last tokens

Hidden states, positions and RoPE's cosines and sines follow the tokens that stay; each keeps its own position. The
layers themselves are the model's. Families are listed when their parity test passes (tests/test_engine_layer_loop.py).
"""

from typing import Any, Protocol

import torch
from torch import Tensor

from uncomp_cli.engine.forward.attention import AttentionState
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.spec import ModelSpec

__all__ = ["LOOP_FAMILIES", "ThinningState", "can_thin", "run_layers"]

LOOP_FAMILIES = frozenset({"llama", "qwen2", "qwen3", "mistral", "olmo2", "phi3", "smollm3"})


class ThinningState(AttentionState, Protocol):
    """A state that also decides which tokens go on."""

    def keep_after(self, layer: int) -> Tensor | None:
        """Ascending indices of the tokens that enter the next layer, or None when all do."""
        ...


def can_thin(spec: ModelSpec) -> bool:
    """Whether tokens may leave between layers: the family is proven, and no layer counts neighbours in a window."""
    return spec.model_type in LOOP_FAMILIES and len(spec.full_layers) == spec.num_layers


@torch.no_grad()
def run_layers(decoder: Decoder, ids: Tensor, positions: Tensor, state: ThinningState, from_end: Tensor) -> Tensor:
    """Logits [B, K, vocab] of the tokens that stand `from_end` [K] before the end (1: the last) of ids [B, N]."""
    model: Any = decoder.model
    inner = model.model
    at = positions.to(decoder.device)
    hidden: Tensor = inner.embed_tokens(ids.to(decoder.device))
    turns: tuple[Tensor, Tensor] = inner.rotary_emb(hidden, at)
    for index, layer in enumerate(inner.layers):
        hidden = layer(hidden, attention_mask=None, position_embeddings=turns, position_ids=at, engine=state)
        kept = state.keep_after(index)
        if kept is not None:
            hidden, at = hidden[:, kept], at[:, kept]
            turns = (turns[0][:, kept], turns[1][:, kept])
    last = hidden[:, (hidden.shape[1] - from_end).to(hidden.device)]
    logits: Tensor = model.lm_head(inner.norm(last))
    return logits
