"""Re-packing: a text longer than the model was trained for, read with every distance inside the trained length.

    a head that holds n tokens of the text before a chunk has the r-th of them (r = 0, …) at position first − n + r

`first` is where the chunk begins. What was evicted leaves no gap, so that a chunk's tokens look back over what is held,
not over what was read, and no frequency is changed. Keys are cached after RoPE, which turns each pair of dimensions by
position times frequency: a key moves by being turned once more, by the difference. Distances alone matter to RoPE, so
the chunk itself stays where it is in the text. StreamingLLM (arXiv 2309.17453) packs sinks and recent tokens alike;
here every head packs its own tokens, by rank.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from uncomp_cli.cache.ragged import Head
from uncomp_cli.cache.scorers import turn

__all__ = ["packed"]


def packed(heads: Sequence[Head], first: int, frequencies: Tensor) -> list[Head]:
    """The heads' entries, all of them before `first`, with keys turned to where they stand without gaps.

    `frequencies` [R] are radians a position. Positions stay those in the text: they say which token an entry is.
    """
    return [(_moved(keys, positions, first, frequencies), values, positions) for keys, values, positions in heads]


def _moved(keys: Tensor, positions: Tensor, first: int, frequencies: Tensor) -> Tensor:
    """Keys [N, D] of tokens at `positions` [N], turned to the N positions before `first`."""
    ahead = first - len(positions) + torch.arange(len(positions), device=keys.device) - positions
    radians = ahead[:, None].double() * frequencies.to(keys.device, torch.float64)
    return turn(keys.float(), radians.cos().float(), radians.sin().float()).to(keys.dtype)
