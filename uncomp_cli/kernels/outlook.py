"""Attention of many tokens at once by the library (attend.c): bounds are checked here, and its memory is made here.

    query [H, N, D] over P earlier entries and, causally, N of their own: key, value [G, P, D] and [G, N, D]

Keys and values are packed once a call, in float32 or, narrow, in bfloat16, and padded to whole panels.
"""

import torch
from torch import Tensor

from uncomp_cli.kernels.library import Library, Outlook

_PANEL, _LANES, _ROWS, _KEYS = 64, 16, 96, 128
"""The most entries of a panel, columns that are padded to, rows and entries that are taken at once (attend.c)."""

Pair = tuple[Tensor, Tensor]


def attend_many(
    library: Library,
    query: Tensor,
    past: Pair | None,
    own: Pair,
    *,
    scaling: float,
    window: int | None,
    narrow: bool,
    sinks: Tensor | None = None,
) -> Tensor:
    """Attention [H, N, D], which lies in memory as [N, H, D]. Raises ValueError for shapes that do not fit together.

    Of each head the logit in `sinks` [H] takes its part of the weight and gives nothing.
    """
    (heads, tokens, width), groups = query.shape, len(own[0])
    query, own, earlier = _in_rows(query), _alike(own), None if past is None else _alike(past)
    count = 0 if earlier is None else earlier[0].shape[1]
    _check(query, earlier, own)
    sinks = None if sinks is None else sinks.detach().to(query).contiguous().expand(heads)
    earlier = earlier or own
    output = query.new_empty(tokens, heads, width).transpose(0, 1)
    entries, padded = -(-(count + tokens) // _PANEL) * _PANEL, -(-width // _LANES) * _LANES
    packed = [torch.empty(groups * entries * padded) for _ in own]
    threads, floats = torch.get_num_threads(), 3 * _ROWS + _ROWS * (2 * _KEYS + 2 * padded)
    scratch = torch.empty(threads * floats)
    strides = (stride for each in (query, own[0], earlier[0], output) for stride in each.stride()[:2])
    given = (each.data_ptr() for each in (query, *own, *earlier, output))
    memory = (each.data_ptr() for each in (*packed, scratch))
    sunk = None if sinks is None else sinks.data_ptr()
    sizes = heads, groups, width, tokens, count, window or 0
    looks = Outlook(*sizes, *given, *strides, scaling, sunk, *memory, floats, 0)
    library.attend(looks, threads, narrow=narrow)
    return output


def _in_rows(tensor: Tensor) -> Tensor:
    """As the library reads it: a token's numbers lie together."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _alike(pair: Pair) -> Pair:
    """Keys and values that lie in the same way."""
    keys, values = map(_in_rows, pair)
    return (keys, values) if keys.stride() == values.stride() else (keys.contiguous(), values.contiguous())


def _check(query: Tensor, past: Pair | None, own: Pair) -> None:
    """Raise ValueError for shapes that do not fit together, and for numbers that the library does not read."""
    (heads, tokens, width), groups = query.shape, len(own[0])
    pairs = [own] if past is None else [past, own]
    fits = heads % groups == 0 and tokens > 0 and own[0].shape[1] == tokens
    for keys, values in pairs:
        fits = fits and keys.shape == values.shape and (len(keys), keys.shape[2]) == (groups, width)
    known = (each.dtype == torch.float32 and each.device.type == "cpu" for pair in ([query], *pairs) for each in pair)
    if not (fits and all(known)):
        raise ValueError(f"{tuple(query.shape)} is no query of {[tuple(keys.shape) for keys, _ in pairs]}")
