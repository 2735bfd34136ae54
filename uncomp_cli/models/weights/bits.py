"""Numbers into blocks of 32 as a GGUF has them, some rows at a time, and how far off they are then.

    Q8_0    w ~ d c         d = max |w| / 127
    Q4_1    w ~ d c + m     codes over the whole range first; then d and m by least squares behind them, and codes anew

Scales and minima are rounded to 16 bits before the codes are, which make up for it. Of normally distributed weights
Q8_0 is off by 0.5 %, Q4_1 by 7.5 % (7.8 without the second codes; measured), in Frobenius norm. The embedding and the
logits, which `q4` would harm most, are Q8_0 there too, as llama.cpp has them in more bits.
"""

from dataclasses import dataclass, field
from math import isfinite

import torch
from torch import Tensor

from uncomp_cli.errors import ModelError
from uncomp_cli.kernels.library import BLOCKS, Kind, Library
from uncomp_cli.kernels.matrix import Matrix
from uncomp_cli.kernels.pages import Pages

INNER = {"float32": Kind.FLOAT32, "bfloat16": Kind.BFLOAT16, "q8": Kind.Q8_0, "q4": Kind.Q4_1}
"""How a matrix of a layer is held."""
OUTER = {**INNER, "q4": Kind.Q8_0}
"""How the embedding and the logits are."""
COLS = 32
_MOST_BYTE, _MOST_NIBBLE = 127, 15
_PART_NUMBERS = 2**18
"""What is made of so many numbers at a time stays in a cache."""
_SHORT = {Kind.FLOAT32: torch.float32, Kind.BFLOAT16: torch.bfloat16}
_LEAST = torch.finfo(torch.float32).tiny


@dataclass(slots=True)
class Loss:
    """How far the matrices of a model are from their numbers: relative Frobenius norms, by the names of weights."""

    of: dict[str, float] = field(default_factory=dict)

    @property
    def worst(self) -> tuple[str, float]:
        """The weight that is farthest off."""
        return max(self.of.items(), key=lambda item: item[1])

    @property
    def mean(self) -> float:
        """Over the matrices."""
        return sum(self.of.values()) / len(self.of)


def held(
    name: str, numbers: Tensor, kind: Kind, library: Library | None, pages: Pages, loss: Loss | None = None
) -> Matrix:
    """Numbers [rows, cols] as a matrix of a kind; `loss` learns how far it is off. ModelError where it cannot be."""
    off = whole = 0.0
    made, at = _room(numbers, kind), 0
    for part in torch.split(numbers, max(1, _PART_NUMBERS // numbers.shape[1])):
        wide = part.float()
        packed, again = _PACKED[kind](wide) if kind in BLOCKS else _rounded(wide, kind)
        made[at : at + len(part)] = packed
        at += len(part)
        off += float((again - wide).square_().sum(dtype=torch.float64))
        whole += float(wide.square().sum(dtype=torch.float64))
    error = (off / whole) ** 0.5 if whole else 0.0
    if not isfinite(error):
        raise ModelError(f"{name} cannot be held as {kind.name}: its numbers are too large", hint="use --weights auto")
    if loss is not None:
        loss.of[name] = error
    return Matrix.of_blocks(library, kind, made, pages) if kind in BLOCKS else Matrix.of(made)


def _room(numbers: Tensor, kind: Kind) -> Tensor:
    """For all rows, as a file has them."""
    rows, cols = numbers.shape
    if kind not in BLOCKS:
        return torch.empty(rows, cols, dtype=_SHORT[kind])
    return torch.empty(rows, cols // COLS * BLOCKS[kind].block_bytes, dtype=torch.uint8)


def as_bytes(wide: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers [rows, cols] of float32 as Q8_0, and what they are then."""
    blocks = wide.view(len(wide), -1, COLS)
    scale = (blocks.abs().amax(-1, keepdim=True) / _MOST_BYTE).half()
    step = scale.float()
    codes = (blocks / step.clamp(min=_LEAST)).round_().clamp_(-_MOST_BYTE, _MOST_BYTE)
    packed = torch.cat([scale.view(torch.uint8), codes.to(torch.int8).view(torch.uint8)], -1)
    return packed.view(len(wide), -1), codes.mul_(step).view_as(wide)


def _as_nibbles(wide: Tensor) -> tuple[Tensor, Tensor]:
    """The same as Q4_1."""
    blocks = wide.view(len(wide), -1, COLS)
    least, most = blocks.aminmax(dim=-1, keepdim=True)
    codes = _coded(blocks, (most - least) / _MOST_NIBBLE, least)[0]
    middle = codes.mean(-1, keepdim=True)
    beside = codes.sub_(middle)
    varies = beside.square().sum(-1, keepdim=True).clamp_(min=_LEAST)
    scale = (beside * blocks).sum(-1, keepdim=True) / varies
    codes, step, low = _coded(blocks, scale, blocks.mean(-1, keepdim=True) - scale * middle)
    whole = codes.to(torch.uint8)
    pairs = whole[..., : COLS // 2] | whole[..., COLS // 2 :] << 4
    packed = torch.cat([step.view(torch.uint8), low.view(torch.uint8), pairs], -1)
    return packed.view(len(wide), -1), codes.mul_(step.float()).add_(low.float()).view_as(wide)


def _coded(blocks: Tensor, scale: Tensor, least: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes of 4 bits, with the scales and minima of 16 that they are counted in."""
    step, low = scale.half(), least.half()
    codes = (blocks - low.float()).div_(step.float().clamp(min=_LEAST)).round_().clamp_(0, _MOST_NIBBLE)
    return codes, step, low


_PACKED = {Kind.Q8_0: as_bytes, Kind.Q4_1: _as_nibbles}


def _rounded(wide: Tensor, kind: Kind) -> tuple[Tensor, Tensor]:
    short = wide.to(_SHORT[kind])
    return short, short.float()
