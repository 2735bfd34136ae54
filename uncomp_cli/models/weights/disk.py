"""Weights that stay in their safetensors files: each is read when it is used, a piece at a time, widened as it comes.

accelerate puts them into the layers and takes them out again. By itself it would open and map a file anew for every
matrix; here files stay open and are read, so that a model that is removed meanwhile is read on, what is read takes no
memory beside its numbers, and a file that is cut short is an error, where a map of it would end the process.
"""

import json
import os
import struct
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from uncomp_cli.errors import ModelError

_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_COUNT = struct.Struct("<Q")
_PIECE_BYTES = 2**20
_HINT = "ask again, or use --weights auto, which holds them in memory"


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where numbers lie in an open file, which had this size and time of change."""

    path: Path
    descriptor: int
    state: tuple[int, int]
    begin: int
    shape: tuple[int, ...]
    dtype: torch.dtype


class DiskWeights(Mapping[str, Tensor]):
    """By their names in a model, weights of type `dtype`; `index` says of each, as accelerate's, the file and name."""

    def __init__(self, index: Mapping[str, Mapping[str, str]], dtype: torch.dtype) -> None:
        self._dtype = dtype
        files = {}
        for path in {each["safetensors_file"] for each in index.values()}:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            weakref.finalize(self, os.close, descriptor)
            files[path] = _listed(Path(path), descriptor)
        self._stored = {
            name: files[each["safetensors_file"]][each.get("weight_name", name)] for name, each in index.items()
        }

    def __getitem__(self, name: str) -> Tensor:
        """Read it. Raises ModelError for a file that was changed, or cannot be read."""
        stored = self._stored[name]
        numbers = torch.empty(prod(stored.shape), dtype=self._dtype)
        piece, offset = torch.empty(_PIECE_BYTES // stored.dtype.itemsize, dtype=stored.dtype), stored.begin
        for first in range(0, len(numbers), len(piece)):
            part = numbers[first : first + len(piece)]
            offset += _fill(piece[: len(part)], stored, offset)
            part.copy_(piece[: len(part)])
        return numbers.view(stored.shape)

    def shape_of(self, name: str) -> tuple[int, ...]:
        """As it is stored."""
        return self._stored[name].shape

    def __contains__(self, name: object) -> bool:
        return name in self._stored  # a mapping by itself would read it

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)


def leave(model: Any, dtype: torch.dtype) -> None:
    """Have accelerate take the weights that it left on the disk for `model` from files that stay open.

    Raises ValueError for those that have another shape there, at which transformers has not looked.
    """
    maps = (getattr(getattr(module, "_hf_hook", None), "weights_map", None) for module in model.modules())
    loader = next(each.dataset for each in maps if each is not None)
    loader.state_dict = weights = DiskWeights(loader.index, dtype)  # it looks there first
    for name, weight in model.named_parameters():
        if name in weights and weights.shape_of(name) != weight.shape:
            stored, wanted = weights.shape_of(name), tuple(weight.shape)
            raise ValueError(f"{name} is stored as {stored}, and is {wanted} by config.json")


def _listed(path: Path, descriptor: int) -> dict[str, _Stored]:
    """What a file, which safetensors has found whole, stores under which name."""
    (length,) = _COUNT.unpack(os.pread(descriptor, _COUNT.size, 0))
    header = json.loads(os.pread(descriptor, length, _COUNT.size))
    begin, state = _COUNT.size + length, _state(descriptor)
    return {
        name: _Stored(
            path, descriptor, state, begin + each["data_offsets"][0], tuple(each["shape"]), _TYPES[each["dtype"]]
        )
        for name, each in header.items()
        if name != "__metadata__" and each["dtype"] in _TYPES  # no layer is of another type
    }


def _state(descriptor: int) -> tuple[int, int]:
    now = os.fstat(descriptor)
    return now.st_size, now.st_mtime_ns


def _fill(piece: Tensor, stored: _Stored, offset: int) -> int:
    """Read what lies at `offset` into a piece; returns its bytes."""
    try:
        count = os.preadv(stored.descriptor, [piece.view(torch.uint8).numpy().data], offset)
        whole = count == piece.nbytes and _state(stored.descriptor) == stored.state
    except OSError as error:
        raise ModelError(f"{stored.path} cannot be read: {error.strerror}", hint=_HINT) from error
    if not whole:
        raise ModelError(f"{stored.path} was changed while its weights were in use", hint=_HINT)
    return count
