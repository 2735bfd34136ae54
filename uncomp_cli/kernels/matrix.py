"""A weight matrix as the library reads it, with every bound checked before it is called.

Numbers lie row by row as torch has them. A GGUF's blocks are laid out in tiles (blocks.h), which is another order of
their bits: nothing is rounded, and `numbers` gives what gguf's own `dequantize` gives.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from uncomp_cli.kernels.library import (
    BLOCKS,
    MOST_ROWS,
    TILE_ROWS,
    Change,
    Kind,
    Library,
    Product,
    kind_of,
)

_NARROWED_COLS, _NARROWED_FLOATS = 32, 4
"""So many activations have so many floats beside their whole numbers."""


@dataclass(frozen=True, slots=True)
class Matrix:
    """Weights [rows, cols]: `data` are numbers, or the bytes of tiles."""

    kind: Kind
    rows: int
    cols: int
    data: Tensor

    def __post_init__(self) -> None:
        block = BLOCKS.get(self.kind)
        wanted = (
            self.rows * self.cols if block is None else _tiles(self.rows) * self.cols // block.cols * block.tile_bytes
        )
        fits = self.data.numel() == wanted and self.data.is_contiguous() and self.data.device.type == "cpu"
        typed = kind_of(self.data.dtype) == self.kind if block is None else self.data.dtype == torch.uint8
        if not (fits and typed and self.cols % (1 if block is None else block.cols) == 0):
            raise ValueError(
                f"{tuple(self.data.shape)} {self.data.dtype} are no {self.rows} x {self.cols} {self.kind.name}"
            )

    @classmethod
    def of(cls, weight: Tensor) -> "Matrix":
        """Numbers [rows, cols] of a type that the library reads, where they lie."""
        kind = kind_of(weight.dtype)
        if kind is None or weight.dim() != 2:
            raise ValueError(f"{tuple(weight.shape)} {weight.dtype} is no matrix that the library reads")
        rows, cols = weight.shape
        return cls(kind, rows, cols, weight.detach())

    @classmethod
    def of_blocks(cls, library: Library, kind: Kind, blocks: Tensor) -> "Matrix":
        """A file's blocks, uint8 [rows, bytes of a row], in tiles of their own."""
        (rows, row_bytes), block = blocks.shape, BLOCKS[kind]
        count, rest = divmod(row_bytes, block.block_bytes)
        if rest or blocks.dtype != torch.uint8 or blocks.device.type != "cpu":
            raise ValueError(f"rows of {row_bytes} {blocks.dtype} are no blocks of {kind.name}")
        source, cols = blocks.contiguous(), count * block.cols
        made = cls(kind, rows, cols, torch.empty(_tiles(rows) * count * block.tile_bytes, dtype=torch.uint8))
        library.pack(Change(kind, rows, cols, source.data_ptr(), made.data.data_ptr()), torch.get_num_threads())
        return made

    def numbers(self, library: Library) -> Tensor:
        """The matrix in float32 [rows, cols]."""
        if self.kind not in BLOCKS:
            return self.data.view(self.rows, self.cols).float()
        made = torch.empty(self.rows, self.cols)
        change = Change(self.kind, self.rows, self.cols, self.data.data_ptr(), made.data_ptr())
        library.unpack(change, torch.get_num_threads())
        return made

    def multiply(self, library: Library, input: Tensor) -> Tensor:
        """Rows [..., cols] of float32, MOST_ROWS at most, times the matrix: [..., rows]."""
        count, threads = input.numel() // max(1, self.cols), torch.get_num_threads()
        if input.shape[-1] != self.cols or input.dtype != torch.float32 or count > MOST_ROWS:
            raise ValueError(f"{tuple(input.shape)} {input.dtype} are no 1 to {MOST_ROWS} rows of {self.cols}")
        given, output = input.contiguous(), input.new_empty(*input.shape[:-1], self.rows)
        floats = count * narrowed_floats(self.kind, self.cols)
        scratch = torch.empty(threads * floats)
        addresses = self.data.data_ptr(), given.data_ptr(), output.data_ptr(), scratch.data_ptr()
        library.product(Product(self.kind, self.rows, self.cols, count, *addresses, floats), threads)
        return output


def narrowed_floats(kind: Kind, cols: int) -> int:
    """The room, in floats, of a row of activations as a matrix of this kind wants it."""
    return cols // 2 + cols // _NARROWED_COLS * _NARROWED_FLOATS if kind in BLOCKS else 0


def _tiles(rows: int) -> int:
    return -(-rows // TILE_ROWS)
