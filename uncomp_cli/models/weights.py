"""A model over a GGUF's own blocks: nothing is widened before it is used, so that memory holds what the file holds.

Each weight matrix is the file's, in the library's tiles (kernels/matrix.py): another order of the same bits; numbers of
16 or 32 bits, and everything where the library is not there, lie in the mapped file. Rows of queries and keys are put
back into the order of the family's own model, embeddings are looked up row by row, norms and other vectors are numbers
of the type that the model computes in. Names and orders come from transformers' own GGUF tables (parameters.py).

Kinds that the library does not read (IQ, TQ, MXFP4, Q2_K, Q3_K) are held as Q8_0, the nearest that it does: off by
1/254 of the largest of 32 numbers at most.
"""

import mmap
from collections.abc import Iterator
from contextlib import suppress
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from gguf import GGMLQuantizationType, dequantize
from torch import Tensor, nn

from uncomp_cli.errors import ModelError
from uncomp_cli.kernels.library import BLOCKS, TILE_ROWS, Kind, Library, find
from uncomp_cli.kernels.matrix import Matrix
from uncomp_cli.kernels.pages import Pages
from uncomp_cli.models.checkpoint import empty_model
from uncomp_cli.models.parameters import HINT, TIED, Assigned, assign, row_order
from uncomp_cli.models.preamble import Entry, Preamble

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUMBERS = {"F32": Kind.FLOAT32, "F16": Kind.FLOAT16, "BF16": Kind.BFLOAT16}
_DTYPES = {Kind.FLOAT32: torch.float32, Kind.FLOAT16: torch.float16, Kind.BFLOAT16: torch.bfloat16}
_NEAREST = Kind.Q8_0
_MOST_CODE = 127
_PART_ROWS = 1024
"""Rows that are made anew together."""


def held_kind(kind: str) -> Kind:
    """How a matrix of a file's kind is held."""
    return NUMBERS[kind] if kind in NUMBERS else Kind.__members__.get(kind, _NEAREST)


class BlockLinear(nn.Module):
    """A linear layer over a matrix of a file; the engine's products read it faster than `forward`."""

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
    """Rows of a matrix of a file, looked up, in the type that the model computes in."""

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


def block_model(preamble: Preamble, config: Any, dtype: torch.dtype) -> Any:
    """A model over the file's matrices, with everything else in `dtype`. Raises ModelError as `assign` does."""
    library, model = find(), empty_model(config, dtype)
    for each, values in _values(preamble, config, model, library):
        if isinstance(values, Matrix):
            _put(model, each.name, values, dtype, library)
        else:
            path, _, leaf = each.name.rpartition(".")
            setattr(model.get_submodule(path), leaf, nn.Parameter(values.to(dtype), requires_grad=False))
    if config.tie_word_embeddings:
        _put(model, TIED, model.get_input_embeddings().matrix, dtype, library)
    for name, module in list(model.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):  # rotary embeddings
            model.set_submodule(name, type(module)(config=model.config))
    return model


def _put(model: nn.Module, name: str, matrix: Matrix, dtype: torch.dtype, library: Library | None) -> None:
    """Put a module over a matrix in the place of the one whose weight it is."""
    path = name.removesuffix(".weight")
    module = model.get_submodule(path)
    if isinstance(module, nn.Embedding):
        scale = float(getattr(module, "scalar_embed_scale", 1.0))
        model.set_submodule(path, BlockEmbedding(matrix, scale, dtype, library))
    elif isinstance(module, nn.Linear):
        model.set_submodule(path, BlockLinear(matrix, module.bias, library))
    else:
        raise ModelError(f"{name} belongs to a {type(module).__name__}, which is not supported", hint=HINT)


def numbers(preamble: Preamble, config: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights by transformers' names, as numbers of `dtype`."""
    library, found = find(), dict[str, Tensor]()
    for each, values in _values(preamble, config, empty_model(config, dtype), library):
        wide = values.numbers(library) if isinstance(values, Matrix) else values
        found[each.name] = wide.to(dtype)
    return found


def _values(
    preamble: Preamble, config: Any, skeleton: nn.Module, library: Library | None
) -> Iterator[tuple[Assigned, Matrix | Tensor]]:
    """Matrices as they are held, all else in float32; rows in the order of transformers' model."""
    order, maps, pages = row_order(preamble.architecture, config), dict[Path, _Mapped](), Pages()
    for each in assign(preamble, config, skeleton):
        entry = each.entry
        if entry.file not in maps:
            maps[entry.file] = _Mapped(entry.file)
        mapped = maps[entry.file]
        if len(entry.shape) == 2:
            yield each, _matrix(entry.kind, order(entry.name, mapped.values(entry)), library, pages)
            mapped.give_back(entry)
        else:
            wide = dequantize(mapped.values(entry), GGMLQuantizationType[entry.kind])
            yield each, torch.from_numpy(np.array(order(entry.name, wide)))


def _matrix(kind: str, values: "NDArray[Any]", library: Library | None, pages: Pages) -> Matrix:
    held, found = held_kind(kind), torch.from_numpy(np.ascontiguousarray(values))
    if held not in BLOCKS:
        return Matrix.of(found.view(_DTYPES[held]))
    return Matrix.of_blocks(library, held, found if kind == held.name else _nearest(kind, found), pages)


def _nearest(kind: str, blocks: Tensor) -> Tensor:
    """Rows of blocks of another kind as Q8_0: a scale of 16 bits, and 32 whole numbers up to 127."""
    return torch.cat([_as_bytes(kind, part) for part in torch.split(blocks, _PART_ROWS)])


def _as_bytes(kind: str, blocks: Tensor) -> Tensor:
    wide = torch.from_numpy(dequantize(blocks.numpy(), GGMLQuantizationType[kind])).view(len(blocks), -1, 32)
    scale = (wide.abs().amax(-1, keepdim=True) / _MOST_CODE).half()
    codes = (wide / scale.float().clamp(min=torch.finfo(torch.float32).tiny)).round().clamp(-_MOST_CODE, _MOST_CODE)
    return torch.cat([scale.view(torch.uint8), codes.to(torch.int8).view(torch.uint8)], -1).view(len(blocks), -1)


class _Mapped:
    """A file in memory as far as it is read."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)

    def values(self, entry: Entry) -> "NDArray[Any]":
        """Numbers in their shape, those of 16 bits as they lie, or the bytes of rows of blocks; nothing is copied."""
        kind: Any = np.float32 if entry.kind == "F32" else np.uint8
        found = np.frombuffer(self._map, kind, entry.size_bytes // np.dtype(kind).itemsize, entry.offset)
        return found.reshape(*entry.shape[:-1], -1)

    def give_back(self, entry: Entry) -> None:
        """What has been copied need not stay in memory; who reads it where it lies finds it in the file again."""
        first = -(-entry.offset // mmap.PAGESIZE) * mmap.PAGESIZE
        length = (entry.offset + entry.size_bytes) // mmap.PAGESIZE * mmap.PAGESIZE - first
        if length > 0 and hasattr(mmap, "MADV_DONTNEED"):
            with suppress(OSError):
                self._map.madvise(mmap.MADV_DONTNEED, first, length)


def blocks_bytes(preamble: Preamble, dtype: torch.dtype) -> int:
    """What a model over the file's matrices will take in memory."""
    matrices = [entry for entry in preamble.entries if len(entry.shape) == 2]
    vectors = sum(prod(entry.shape) for entry in preamble.entries if len(entry.shape) != 2)
    return sum(map(_held_bytes, matrices)) + vectors * dtype.itemsize


def _held_bytes(entry: Entry) -> int:
    block, (rows, cols) = BLOCKS.get(held_kind(entry.kind)), entry.shape
    return entry.size_bytes if block is None else -(-rows // TILE_ROWS) * (cols // block.cols) * block.tile_bytes
