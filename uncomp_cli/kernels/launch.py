"""Launching the decode kernel of a GPU (splits.py): what it is given, where it is taken, and why it is not.

It is taken on CUDA where Triton imports. The first call that fails, such as one that does not compile, is the last:
torch's operations go on, and `state` says why. Nothing here waits for the device: where heads begin and end lies on it,
the longest head's length is known here, and how often a head is cut follows from that and from all entries together.
"""

from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from uncomp_cli.config import KEY_BITS

HINT = "pip install 'uncomp[gpu]'"
_BLOCK, _MERGED, _PROGRAMS, _EVERYTHING = 64, 16, 512, 2**31 - 1
"""Entries of one product, parts that are merged together, programs that fill a GPU, and a window that hides nothing."""
_LEAST_SIDE = 16
"""Of a product of tiles."""


@dataclass(slots=True)
class Strands:
    """One layer of a ragged cache as the kernel reads it: head h has its entries in fewer bits, then its tail.

    keys, values [entries, D] · starts, ends int64 [heads] of the tails · fewer int64 [heads, 7]: how many entries, and
    the addresses of key and value codes, key scales and zeros, value scales and zeros, of `bits` for a value. `kept` is
    what they point to.
    """

    keys: Tensor
    values: Tensor
    starts: Tensor
    ends: Tensor
    longest: int
    entries: int
    fewer: Tensor | None = None
    bits: int = 16
    group: int = 0
    kept: list[tuple[Tensor, ...]] = field(default_factory=list, repr=False)

    def advance(self, new: int) -> None:
        """Every head has `new` more entries; `ends` says so already."""
        self.longest += new
        self.entries += new * len(self.starts)


class SplitDecode:
    """The kernel; `broken` is why it is not taken any more. Parts are chosen so that there are some `programs`."""

    def __init__(self, programs: int = _PROGRAMS) -> None:
        self.broken: str | None = None
        self._programs = programs
        self._kernels: Any = import_module("uncomp_cli.kernels.splits")

    def attend(
        self,
        query: Tensor,
        turned: Tensor | None,
        strands: Strands,
        *,
        scaling: float,
        window: int | None = None,
        softcap: float | None = None,
        sinks: Tensor | None = None,
    ) -> Tensor | None:
        """Attention [heads, R, D] of query [heads, R, D], which are one token's; None where torch has to do it.

        `turned` is the query as it meets keys in fewer bits, `sinks` [query heads of the model].
        """
        split, splits = self.parts(strands, window)
        heads, rows, width = query.shape
        outs = query.new_empty(heads, splits, rows, width, dtype=torch.float32)
        sums, output = outs.new_empty(heads, splits, rows), torch.empty_like(query)
        query, turned = query.contiguous(), (query if turned is None else turned).contiguous()
        sides = {"R": rows, "D": width, "D_PAD": _side(width)}
        bits = (KEY_BITS[strands.bits], strands.bits) if strands.fewer is not None else (0, 0)
        try:
            with torch.cuda.device(query.get_device()):  # which Triton takes; -1, of a CPU, is none
                self._kernels.attend_part[heads, splits](
                    *(query, turned, strands.keys, strands.values, strands.starts, strands.ends),
                    *(strands.starts if strands.fewer is None else strands.fewer, outs, sums),
                    *(scaling, softcap or 0.0, window or _EVERYTHING, split, splits),
                    **sides, R_PAD=_side(rows), BLOCK=_BLOCK, KEY_BITS=bits[0], VALUE_BITS=bits[1],
                    GROUP=strands.group, CAPPED=softcap is not None,
                )  # fmt: skip
                self._kernels.merge_parts[(heads * rows,)](
                    *(outs, sums, outs if sinks is None else sinks, output, splits, 1 if sinks is None else len(sinks)),
                    **sides, BLOCK=_MERGED, SINKS=sinks is not None,
                )  # fmt: skip
        except Exception as error:  # the compiler's own, of many kinds
            self.broken = _said("the decode kernel does not run", error)
            return None
        return output

    def tried(self, device: torch.device) -> str | None:
        """Why it does not run on `device`; None where it does."""
        if self.broken is not None:
            return self.broken
        one = torch.ones(1, _LEAST_SIDE, device=device, dtype=torch.float16)
        starts, ends = (torch.tensor([at], device=device) for at in (0, 1))
        self.attend(one[None], None, Strands(one, one, starts, ends, longest=1, entries=1), scaling=1.0)
        return self.broken

    def parts(self, strands: Strands, window: int | None) -> tuple[int, int]:
        """How many entries a part has, and how many parts the longest head has."""
        longest = min(strands.longest, window or _EVERYTHING)
        most = min(strands.entries, longest * len(strands.starts))
        split = _BLOCK * max(1, -(-most // (self._programs * _BLOCK)))
        return split, max(1, -(-longest // split))


def _said(what: str, error: Exception) -> str:
    return f"{what} ({type(error).__name__}: {error}".splitlines()[0] + ")"


def _side(size: int) -> int:
    """The power of two that holds `size`, as a tile's side."""
    return max(_LEAST_SIDE, 1 << (size - 1).bit_length())


@cache
def load() -> SplitDecode | str:
    """The kernel, or why there is none."""
    if find_spec("triton") is None:
        return f"Triton is missing ({HINT})"
    try:
        return SplitDecode()
    except Exception as error:  # a package for another machine
        return _said("Triton cannot be imported", error)


def find(device: torch.device) -> SplitDecode | None:
    """The kernel, where it can be taken on `device`."""
    found = load() if device.type == "cuda" else ""
    return None if isinstance(found, str) or found.broken else found


def state() -> str:
    """What there is, in one line; on a GPU the kernel is compiled to know it."""
    if not torch.cuda.is_available():
        return "no CUDA device, so no decode kernel"
    found = load()
    why = found if isinstance(found, str) else found.tried(torch.device("cuda"))
    return f"decode kernel by Triton {version('triton')}" if why is None else f"{why}: torch's operations decode"
