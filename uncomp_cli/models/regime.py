"""RoPE whose frequencies depend on the length of the text, held still for the length of a run.

Keys are cached after they were turned, so frequencies must not change while keys are held. Stock transformers changes
them between forward passes, by the largest position so far: within a run they are those that it computes for T tokens,

    dynamic   T = the smallest of L, 2L, 4L, …, F·L that holds the prompt and its answer
    longrope  short factors up to L tokens, long ones up to the longest text

with L the trained length. A text that grows past its regime has to be read again. Until a regime is chosen it is the
longest.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from uncomp_cli.models.rope_parameters import check_rope, length_kind, reading_length
from uncomp_cli.models.shape import text_config

__all__ = ["HeldRope", "fix_regime", "hold_rope", "regime_lengths", "regime_of", "set_rotary"]

_NAME = "rotary_emb"


class HeldRope(nn.Module):
    """A stock rotary embedding in the regime for `tokens`; what is beyond them is an error, never another rotation."""

    def __init__(self, stock: Any, kind: str, lengths: tuple[int, ...]) -> None:
        super().__init__()
        self.stock = stock
        self.stock.rope_type = "default"  # by which its forward decides whether to compute frequencies anew
        self.kind = kind
        self.lengths = lengths
        self.tokens = 0
        self.fix(None)

    @property
    def inv_freq(self) -> Tensor:
        """Radians a position [R]."""
        frequencies: Tensor = self.stock.inv_freq
        return frequencies

    def fix(self, tokens: int | None) -> bool:
        """Take the regime that holds `tokens`, the longest for None; returns whether frequencies changed."""
        holding = (length for length in self.lengths if tokens is not None and length >= tokens)
        chosen = next(holding, self.lengths[-1])
        if chosen == self.tokens:
            return False
        compute = ROPE_INIT_FUNCTIONS[self.kind]
        self.stock.inv_freq, self.stock.attention_scaling = compute(
            self.stock.config, self.inv_freq.device, seq_len=chosen
        )
        self.tokens = chosen
        return True

    def forward(self, states: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions [B, N]; `states` gives their type and device."""
        last = int(position_ids.max())
        if last >= self.tokens:
            regime = f"the {self.kind} regime of {self.tokens:,} tokens"
            raise RuntimeError(f"position {last:,} is outside {regime}: the text has to be read anew")
        turned: tuple[Tensor, Tensor] = self.stock(states, position_ids)
        return turned


def regime_lengths(config: Any) -> tuple[int, ...]:
    """The lengths of which each has frequencies of its own; empty for fixed kinds. The last is the longest text."""
    kind, text = length_kind(config), text_config(config)
    if kind is None:
        return ()
    longest = reading_length(config)
    if kind == "longrope":
        return int(text.rope_parameters["original_max_position_embeddings"]), longest
    lengths = [int(text.max_position_embeddings)]
    while 2 * lengths[-1] < longest:
        lengths.append(2 * lengths[-1])
    return tuple(dict.fromkeys([*lengths, longest]))


def hold_rope(model: nn.Module) -> None:
    """Hold the frequencies of a transformers model where they would follow the length; nothing is done to others.

    Raises ModelError when only some of its layers would.
    """
    config: Any = model.config
    check_rope(config)
    kind = length_kind(config)
    for name, module in _rotary(model) if kind else ():
        if kind is not None and not isinstance(module, HeldRope):
            model.set_submodule(name, HeldRope(module, kind, regime_lengths(config)))


def fix_regime(model: nn.Module, tokens: int | None) -> bool:
    """Take the regime that holds `tokens`, the longest for None; returns whether it changed: cached keys are void."""
    changed = [module.fix(tokens) for _, module in _rotary(model) if isinstance(module, HeldRope)]
    return any(changed)


def regime_of(model: nn.Module) -> int | None:
    """The tokens that the present regime holds; None when frequencies do not depend on the length."""
    return next((module.tokens for _, module in _rotary(model) if isinstance(module, HeldRope)), None)


def set_rotary(model: nn.Module, config: Any) -> None:
    """Turn by `config` from now on: new rotary embeddings of the model's own class. Weights stay as they are."""
    for name, module in _rotary(model):
        stock = module.stock if isinstance(module, HeldRope) else module
        with torch.device("cpu"):
            anew = type(stock)(text_config(config))
        model.set_submodule(name, anew.to(_device(stock)))
    hold_rope(model)


def _rotary(model: nn.Module) -> list[tuple[str, Any]]:
    """The rotary embeddings of a model, by name."""
    return [(name, module) for name, module in model.named_modules() if name.rpartition(".")[2] == _NAME]


def _device(module: nn.Module) -> torch.device:
    return next(module.buffers()).device
