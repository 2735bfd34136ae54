"""Layers over a matrix of blocks or numbers, in the places of a model's linear layers and its embedding."""

import torch
from torch import Tensor, nn

from uncomp_cli.errors import ModelError
from uncomp_cli.kernels.library import Library
from uncomp_cli.kernels.matrix import Matrix
from uncomp_cli.models.parameters import HINT


class BlockLinear(nn.Module):
    """A linear layer over a matrix that is held; the engine's products read it faster than `forward`."""

    matrix: Matrix
    data: Tensor
    bias: nn.Parameter | None
    library: Library | None

    def __init__(self, matrix: Matrix, bias: nn.Parameter | None, library: Library | None) -> None:
        super().__init__()
        self.in_features, self.out_features = matrix.cols, matrix.rows
        self.matrix, self.bias, self.library = matrix, bias, library
        self.register_buffer("data", matrix.data, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] → [..., out]."""
        return nn.functional.linear(input, self.matrix.numbers(self.library).to(input.dtype), self.bias)


class BlockEmbedding(nn.Module):
    """Rows of a matrix that is held, looked up, in the type that the model computes in."""

    matrix: Matrix
    library: Library | None
    dtype: torch.dtype

    def __init__(self, matrix: Matrix, scale: float, dtype: torch.dtype, library: Library | None) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = matrix.rows, matrix.cols
        self.matrix, self.scalar_embed_scale, self.dtype, self.library = matrix, scale, dtype, library
        self.register_buffer("data", matrix.data, persistent=False)

    def forward(self, input: Tensor) -> Tensor:
        """[...] → [..., hidden_size]."""
        rows = self.matrix.picked(self.library, input.reshape(-1)).to(self.dtype)
        if self.scalar_embed_scale != 1.0:
            rows *= torch.tensor(self.scalar_embed_scale, dtype=self.dtype)
        return rows.view(*input.shape, self.embedding_dim)


def put(model: nn.Module, name: str, matrix: Matrix, dtype: torch.dtype, library: Library | None) -> None:
    """Put a module over a matrix in the place of the one whose weight it is. Raises ModelError where there is none."""
    path = name.removesuffix(".weight")
    module = model.get_submodule(path)
    if isinstance(module, nn.Embedding):
        scale = float(getattr(module, "scalar_embed_scale", 1.0))
        model.set_submodule(path, BlockEmbedding(matrix, scale, dtype, library))
    elif isinstance(module, nn.Linear):
        model.set_submodule(path, BlockLinear(matrix, module.bias, library))
    else:
        raise ModelError(f"{name} belongs to a {type(module).__name__}, which is not supported", hint=HINT)
