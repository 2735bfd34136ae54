"""Layers with a state of their own, recurrent or convolutional, in stock models that have attention in other layers.

    document   state ← layer(document, state)                  chunk after chunk, row after row
    question   state_q ← layer(question, copy of state)        each of several; the document's is left as it is

The layer's module stays the model's. What is put round it hands its tokens to the engine's state, which says whose
they are; in transformers' argument for a cache the module finds the states (cache/states.py).
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from uncomp_cli.cache.states import States
from uncomp_cli.engine.forward.products import SLICE_ROWS

Step = Callable[[Tensor, States], Tensor]
"""Tokens [B, N, hidden_size] through one layer, whose states go on with them."""
Recur = Callable[[int, Tensor, Step], Tensor]
"""(layer of the model, tokens [B, N, hidden_size], step) → what the layer makes of them, with whatever states."""


class Mixer(nn.Module):
    """A module that mixes tokens by a state; who runs the model says by `recur` which state that is."""

    def __init__(self, inner: nn.Module, recur: Recur) -> None:
        super().__init__()
        numbered: Any = inner
        self.inner, self.recur, self.layer_idx = inner, recur, int(numbered.layer_idx)
        known = inspect.signature(inner.forward).parameters
        self._argument = "cache_params" if "cache_params" in known else "past_key_values"

    def forward(self, hidden_states: Tensor, **keywords: Any) -> Tensor:
        """[B, N, hidden_size] → [B, N, hidden_size]; so many tokens at a time as the module's buffers are made for."""

        def step(hidden: Tensor, states: States) -> Tensor:
            passed = keywords | {self._argument: states}
            parts = [self.inner(part, **passed) for part in torch.split(hidden, SLICE_ROWS, dim=1)]
            return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

        return self.recur(self.layer_idx, hidden_states, step)


def place_mixers(model: nn.Module, recur: Recur) -> None:
    """Put Mixer round every module of a layer that convolves along the text; repeating it changes nothing."""
    for name, module in list(model.named_modules()):
        convolves = any(isinstance(child, nn.Conv1d) for child in module.children())
        if convolves and hasattr(module, "layer_idx") and not name.endswith(".inner"):
            model.set_submodule(name, Mixer(module, recur))


def states_of(model: nn.Module, hidden_size: int) -> States:
    """The states [1, …] behind one token: what there is in a model, its shapes and types."""
    states, device = States(), next(model.parameters()).device
    dtype = getattr(model, "dtype", torch.float32)
    for module in model.modules():
        if isinstance(module, Mixer):
            module.inner(torch.zeros(1, 1, hidden_size, dtype=dtype, device=device), **{module._argument: states})
    return states


def go_on(states: States, layer: int, hidden: Tensor, step: Step) -> Tensor:
    """A prompt [1, N, hidden_size] behind what `states` have seen; they remember what was before its last token."""
    opening = [step(hidden[:, :-1], states)] if hidden.shape[1] > 1 else []
    states.remember(layer)
    return torch.cat([*opening, step(hidden[:, -1:], states)], dim=1)


def branch_off(
    trunk: States, branches: Sequence[States], layer: int, hidden: Tensor, starts: Sequence[int], step: Step
) -> Tensor:
    """A text's tokens, up to the first of `starts`, and of every question, which goes on from there by itself."""
    ends = [*starts[1:], hidden.shape[1]]
    outputs = [step(hidden[:, : starts[0]], trunk)] if starts[0] else []
    for branch, first, last in zip(branches, starts, ends, strict=True):
        branch.follow(trunk, layer)
        outputs.append(go_on(branch, layer, hidden[:, first:last], step))
    return torch.cat(outputs, dim=1)
