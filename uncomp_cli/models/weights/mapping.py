"""A model over a GGUF's own blocks: nothing is widened before it is used, so that memory holds what the file holds.

Each weight matrix is the file's, in the library's tiles (kernels/matrix.py): another order of the same bits; numbers of
16 or 32 bits, and everything where the library is not there, lie in the mapped file. Rows of queries and keys are put
back into the order of the family's own model, embeddings are looked up row by row, norms and other vectors are numbers
of the type that the model computes in. Names and orders come from transformers' own GGUF tables (parameters.py).

Kinds that the library does not read (IQ, TQ, MXFP4, Q2_K, Q3_K) are held as Q8_0, the nearest that it does: off by
1/254 of the largest of 32 numbers at most; `notes` says so. Matrices of numbers may be held in fewer bits (bits.py).
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

from uncomp_cli.kernels.library import BLOCKS, TILE_ROWS, Kind, Library, find
from uncomp_cli.kernels.matrix import Matrix
from uncomp_cli.kernels.pages import Pages
from uncomp_cli.models.checkpoint import empty_model
from uncomp_cli.models.parameters import TIED, Assigned, assign, row_order
from uncomp_cli.models.preamble import Entry, Preamble
from uncomp_cli.models.weights.bits import COLS, INNER, OUTER, Loss, as_bytes, held
from uncomp_cli.models.weights.modules import put
from uncomp_cli.numerals import format_bytes

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUMBERS = {"F32": Kind.FLOAT32, "F16": Kind.FLOAT16, "BF16": Kind.BFLOAT16}
_DTYPES = {Kind.FLOAT32: torch.float32, Kind.FLOAT16: torch.float16, Kind.BFLOAT16: torch.bfloat16}
_NEAREST = Kind.Q8_0
_PART_ROWS = 1024
"""Rows that are made anew together."""
_OUTER = ("token_embd.weight", "output.weight")


def held_kind(entry: Entry, weights: str = "auto") -> Kind:
    """How a matrix of a file is held; `weights` is for those that are numbers of more bits than that."""
    own = NUMBERS.get(entry.kind)
    if own is None:
        return Kind.__members__.get(entry.kind, _NEAREST)
    kind = (OUTER if entry.name in _OUTER else INNER).get(weights, own)
    fits = kind not in BLOCKS or entry.shape[-1] % COLS == 0
    return kind if fits and _held_bytes(entry, kind) < _held_bytes(entry, own) else own


def is_of_blocks(preamble: Preamble) -> bool:
    """Whether no matrix of the file is of numbers, which might be held in fewer bits."""
    return all(entry.kind not in NUMBERS for entry in _matrices(preamble))


def notes(preamble: Preamble) -> list[str]:
    """What is held otherwise than the file has it, in one sentence."""
    found = [entry for entry in _matrices(preamble) if not {entry.kind} & {*NUMBERS, *Kind.__members__}]
    if not found:
        return []
    kinds, stored = ", ".join(sorted({entry.kind for entry in found})), sum(entry.size_bytes for entry in found)
    taken = sum(_held_bytes(entry, _NEAREST) for entry in found)
    return [
        f"blocks of kind {kinds} are held as {_NEAREST.name}, the nearest kind that is read here: "
        f"{format_bytes(taken)} in memory for {format_bytes(stored)} of the file"
    ]


def _matrices(preamble: Preamble) -> list[Entry]:
    return [entry for entry in preamble.entries if len(entry.shape) == 2]


def block_model(
    preamble: Preamble, config: Any, dtype: torch.dtype, weights: str = "auto", loss: Loss | None = None
) -> Any:
    """A model over the file's matrices, with everything else in `dtype`. Raises ModelError as `assign` does.

    Of matrices that are made to be held as `weights` say, `loss` learns how far off they are.
    """
    library, model = find(), empty_model(config, dtype)
    for each, values in _values(preamble, config, model, library, weights, loss):
        if isinstance(values, Matrix):
            put(model, each.name, values, dtype, library)
        else:
            path, _, leaf = each.name.rpartition(".")
            setattr(model.get_submodule(path), leaf, nn.Parameter(values.to(dtype), requires_grad=False))
    if config.tie_word_embeddings:
        put(model, TIED, model.get_input_embeddings().matrix, dtype, library)
    for name, module in list(model.named_modules()):
        if any(buffer.is_meta for buffer in module.buffers(recurse=False)):  # rotary embeddings
            model.set_submodule(name, type(module)(config=model.config))
    return model


def numbers(preamble: Preamble, config: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """The weights by transformers' names, as numbers of `dtype`."""
    library, found = find(), dict[str, Tensor]()
    for each, values in _values(preamble, config, empty_model(config, dtype), library):
        wide = values.numbers(library) if isinstance(values, Matrix) else values
        found[each.name] = wide.to(dtype)
    return found


def _values(
    preamble: Preamble,
    config: Any,
    skeleton: nn.Module,
    library: Library | None,
    weights: str = "auto",
    loss: Loss | None = None,
) -> Iterator[tuple[Assigned, Matrix | Tensor]]:
    """Matrices as they are held, all else in float32; rows in the order of transformers' model."""
    order, maps, pages = row_order(preamble.architecture, config), dict[Path, _Mapped](), Pages()
    for each in assign(preamble, config, skeleton):
        entry = each.entry
        if entry.file not in maps:
            maps[entry.file] = _Mapped(entry.file)
        mapped = maps[entry.file]
        if len(entry.shape) == len(skeleton.get_parameter(each.name).shape) == 2:
            rows = torch.from_numpy(np.ascontiguousarray(order(entry.name, mapped.values(entry))))
            yield each, _matrix(entry, rows, held_kind(entry, weights), library, pages, loss)
            mapped.give_back(entry)
        else:
            wide = dequantize(mapped.values(entry), GGMLQuantizationType[entry.kind])
            yield each, torch.from_numpy(np.array(order(entry.name, wide)))


def _matrix(entry: Entry, rows: Tensor, kind: Kind, library: Library | None, pages: Pages, loss: Loss | None) -> Matrix:
    """Rows as a file has them, as a matrix of a kind."""
    own = NUMBERS.get(entry.kind)
    if own is not None:
        numbers = rows.view(_DTYPES[own])
        return Matrix.of(numbers) if kind is own else held(entry.name, numbers, kind, library, pages, loss)
    return Matrix.of_blocks(library, kind, rows if entry.kind == kind.name else _nearest(entry.kind, rows), pages)


def _nearest(kind: str, blocks: Tensor) -> Tensor:
    """Rows of blocks of another kind as Q8_0."""
    parts = (dequantize(part.numpy(), GGMLQuantizationType[kind]) for part in torch.split(blocks, _PART_ROWS))
    return torch.cat([as_bytes(torch.from_numpy(wide))[0] for wide in parts])


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


def blocks_bytes(preamble: Preamble, dtype: torch.dtype, weights: str = "auto") -> int:
    """What a model over the file's matrices will take in memory."""
    vectors = sum(prod(entry.shape) for entry in preamble.entries if len(entry.shape) != 2)
    matrices = (_held_bytes(entry, held_kind(entry, weights)) for entry in _matrices(preamble))
    return sum(matrices) + vectors * dtype.itemsize


def _held_bytes(entry: Entry, kind: Kind) -> int:
    block, (rows, cols) = BLOCKS.get(kind), entry.shape
    if block is None:
        return rows * cols * _DTYPES[kind].itemsize
    return -(-rows // TILE_ROWS) * (cols // block.cols) * block.tile_bytes
