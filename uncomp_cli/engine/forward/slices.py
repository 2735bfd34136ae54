"""MLPs that take their rows in slices, so that a long prompt's intermediate activations stay small.

An MLP holds gate, up and their product, 3 · intermediate_size numbers a token, the widest point of a forward pass.
Each row is independent of the others, so rows in slices of `SLICE_ROWS` give the same result from a buffer of constant
size. Norms are left whole: their temporaries are no wider than the hidden states. The module inside may be of any kind
whose rows are independent: plain, fused or quantized weights, but not LLM.int8(), whose rows interact.
"""

import torch
from torch import Tensor, nn

__all__ = ["SLICE_ROWS", "SlicedRows", "slice_mlps"]

SLICE_ROWS = 2048


class SlicedRows(nn.Module):
    """A module that maps rows to rows [..., hidden_size], applied to at most SLICE_ROWS of them at a time."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, states: Tensor) -> Tensor:
        """[..., hidden_size] → [..., hidden_size]; in one piece where gradients are recorded."""
        rows = states.reshape(-1, states.shape[-1])
        if len(rows) <= SLICE_ROWS or torch.is_grad_enabled():
            whole: Tensor = self.inner(states)
            return whole
        output = torch.empty_like(rows)
        for source, target in zip(torch.split(rows, SLICE_ROWS), torch.split(output, SLICE_ROWS), strict=True):
            target.copy_(self.inner(source))
        return output.view(states.shape)


def slice_mlps(model: nn.Module) -> None:
    """Put SlicedRows round the MLP (`mlp`) of every layer; repeating it changes nothing."""
    for name, module in list(model.named_modules()):
        if name.endswith(".mlp") and not isinstance(module, SlicedRows):
            model.set_submodule(name, SlicedRows(module))
