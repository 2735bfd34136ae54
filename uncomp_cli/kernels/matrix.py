"""A weight matrix as the library reads it, with every bound checked before it is called.

Numbers lie row by row as torch has them. A GGUF's blocks are laid out in tiles (blocks.h), which is another order of
their bits: nothing is rounded, and `numbers` gives what gguf's own `dequantize` gives. Without the library blocks stay
as the file has them, and gguf's `dequantize` reads them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from uncomp_cli.kernels.library import BLOCKS, MOST_ROWS, TILE_ROWS, Change, Kind, Library, Product, kind_of
from uncomp_cli.kernels.pages import Pages

_NARROWED_COLS, _NARROWED_FLOATS = 32, 4
"""So many activations have so many floats beside their whole numbers."""
_PART_ROWS = 256


@dataclass(frozen=True, slots=True)
class Matrix:
    """Weights [rows, cols]: `data` are numbers, the bytes of tiles or, where `tiled` is off, of a file's blocks."""

    kind: Kind
    rows: int
    cols: int
    data: Tensor
    tiled: bool = True

    def __post_init__(self) -> None:
        block = BLOCKS.get(self.kind)
        wanted = self._at(self.rows) if block is None or not self.tiled else self._at(_tiles(self.rows) * TILE_ROWS)
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
    def of_blocks(cls, library: Library | None, kind: Kind, blocks: Tensor, pages: Pages | None = None) -> "Matrix":
        """A file's blocks, uint8 [rows, bytes of a row], in tiles of their own; without the library where they lie.

        Matrices that are read together lie in the same `pages`.
        """
        (rows, row_bytes), block = blocks.shape, BLOCKS[kind]
        count, rest = divmod(row_bytes, block.block_bytes)
        if rest or blocks.dtype != torch.uint8 or blocks.device.type != "cpu":
            raise ValueError(f"rows of {row_bytes} {blocks.dtype} are no blocks of {kind.name}")
        source, cols = blocks.contiguous(), count * block.cols
        if library is None:
            return cls(kind, rows, cols, source, tiled=False)
        made = cls(kind, rows, cols, (pages or Pages()).take(_tiles(rows) * count * block.tile_bytes))
        library.pack(Change(kind, rows, cols, source.data_ptr(), made.data.data_ptr()), torch.get_num_threads())
        return made

    def _at(self, row: int) -> int:
        """Where a row of numbers, of a file's blocks, or a row of tiles begins in `data`."""
        block = BLOCKS.get(self.kind)
        if block is None:
            return row * self.cols
        return (
            self.cols // block.cols * (row // TILE_ROWS * block.tile_bytes if self.tiled else row * block.block_bytes)
        )

    def part(self, first: int, last: int) -> "Matrix":
        """The rows from `first`, a multiple of TILE_ROWS, to `last`; nothing is copied."""
        end = last if self.kind not in BLOCKS or not self.tiled else _tiles(last) * TILE_ROWS
        data = self.data.view(-1)[self._at(first) : self._at(end)]
        return Matrix(self.kind, last - first, self.cols, data, self.tiled)

    def numbers(self, library: Library | None) -> Tensor:
        """The matrix in float32 [rows, cols]."""
        return self._numbers(library, self.rows, None)

    def picked(self, library: Library | None, rows: Tensor) -> Tensor:
        """These rows [n] in float32 [n, cols]."""
        if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < self.rows:
            raise IndexError(f"rows {int(rows.min())} to {int(rows.max())} of {self.rows}")
        return self._numbers(library, rows.numel(), rows.contiguous())

    def _numbers(self, library: Library | None, count: int, picked: Tensor | None) -> Tensor:
        if self.kind not in BLOCKS or not self.tiled:
            rows = self.data.view(self.rows, -1)
            chosen = rows if picked is None else rows[picked]
            return chosen.float() if self.kind not in BLOCKS else _dequantized(self.kind, chosen)
        made = torch.empty(count, self.cols)
        chosen_at = None if picked is None else picked.data_ptr()
        change = Change(self.kind, count, self.cols, self.data.data_ptr(), made.data_ptr(), chosen_at)
        _needed(library).unpack(change, torch.get_num_threads())
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


def _needed(library: Library | None) -> Library:
    if library is None:
        raise ValueError("tiles are read by the library alone")
    return library


def _dequantized(kind: Kind, blocks: Tensor) -> Tensor:
    """A file's blocks [n, bytes of a row] as numbers, some rows at a time: gguf makes ten times as much on the way."""
    from gguf import GGMLQuantizationType, dequantize

    block = BLOCKS[kind]
    made = torch.empty(len(blocks), blocks.shape[1] // block.block_bytes * block.cols)
    for at in range(0, len(blocks), _PART_ROWS):
        some = dequantize(blocks[at : at + _PART_ROWS].numpy(), GGMLQuantizationType[kind.name])
        made[at : at + _PART_ROWS] = torch.from_numpy(some)
    return made


def narrowed_floats(kind: Kind, cols: int) -> int:
    """The room, in floats, of a row of activations as a matrix of this kind wants it."""
    return cols // 2 + cols // _NARROWED_COLS * _NARROWED_FLOATS if kind in BLOCKS else 0


def _tiles(rows: int) -> int:
    return -(-rows // TILE_ROWS)
