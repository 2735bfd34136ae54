"""Linear layers that use all cores for one row.

Decoding multiplies one row by every weight matrix. torch hands that to a BLAS routine that runs on one thread and
reads weights at a third of the memory's bandwidth (measured: 57 ms a token where reading takes 20, 2 cores, float32,
SmolLM2-135M). A batched product over blocks of output features is the same arithmetic on all threads: 33 ms.
Longer inputs, other types and other devices take torch's own way. The weights are shared, nothing is copied.
"""

import torch
from torch import Tensor, nn

__all__ = ["RowLinear", "use_all_cores_for_one_row"]

_MAX_BLOCKS = 16


class RowLinear(nn.Linear):
    """`nn.Linear` whose product with a single row is split into blocks of output features."""

    def __init__(self, linear: nn.Linear) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.blocks = next(b for b in (_MAX_BLOCKS, 8, 4, 2, 1) if linear.out_features % b == 0)

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] → [..., out]."""
        if input.numel() != self.in_features or torch.get_num_threads() == 1:
            return super().forward(input)
        row = input.reshape(1, 1, -1).expand(self.blocks, 1, -1)
        weight = self.weight.view(self.blocks, -1, self.in_features).transpose(1, 2)
        output = torch.bmm(row, weight).view(*input.shape[:-1], self.out_features)
        return output if self.bias is None else output + self.bias


def use_all_cores_for_one_row(model: nn.Module) -> None:
    """Replace the plain float32 linear layers of a model on the CPU; quantized and other layers stay."""
    for name, module in list(model.named_modules()):
        plain = type(module) is nn.Linear and module.weight.dtype == torch.float32
        if plain and module.weight.device.type == "cpu" and module.weight.is_contiguous():
            model.set_submodule(name, RowLinear(module))
