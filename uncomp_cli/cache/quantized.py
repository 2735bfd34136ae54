"""The keys and values of one KV head in 8 or 4 bits, and the numbers back.

    x̂ = zero + scale · code        code = round((x − zero) / scale), in 0 … 2^bits − 1

Asymmetric, every entry for itself, over a group of channels: so entries come, go and are put between others, and none
of them is quantised twice. A few channels of the keys are large for every token, which would leave the others few
codes: what is quantised of a key k is H k / n, with the Hadamard matrix H of n channels (1 and -1, H H = n), in which
no channel stands out (QuaRot, arXiv 2404.00456, section 4). As q · k = H q · H k / n, a step in one call turns its
queries, and no key. Keys need a bit more than values: beside values of 4 bits they have 5.

Scale and zero are float16, the zero rounded down and the scale up, and the codes are computed with the rounded ones:
|x − x̂| ≤ scale / 2 for every |x| ≤ 65504. A number that is not finite changes no scale: it becomes the nearest number
of its group (NaN the lowest). Codes of 4 bits lie two in a byte; of 5 bits, eight channels' fifth bits in another.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from uncomp_cli.config import CODE_PLANES, KEY_BITS, CacheConfig
from uncomp_cli.kernels.library import Fewer

_LARGEST = torch.finfo(torch.float16).max
_EPS = torch.finfo(torch.float16).eps
_SMALLEST = torch.finfo(torch.float16).smallest_normal * _EPS


@dataclass(frozen=True, slots=True)
class QuantizedHead:
    """S entries of one head; nothing in it changes, so several caches may share it.

    key_codes, value_codes [S, bytes] · key_scales, key_zeros, value_scales, value_zeros [S, groups] ·
    positions [S]. `group` channels share a scale; there are `head_dim`, D.
    """

    key_codes: Tensor
    key_scales: Tensor
    key_zeros: Tensor
    value_codes: Tensor
    value_scales: Tensor
    value_zeros: Tensor
    positions: Tensor
    head_dim: int
    group: int
    bits: int

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def nbytes(self) -> int:
        """Bytes of all storages, as allocated."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self._tensors())

    def _tensors(self) -> tuple[Tensor, ...]:
        return tuple(getattr(self, name) for name in TENSORS)

    def write_keys(self, out: Tensor) -> None:
        """Dequantise the keys into `out` [S, D]."""
        with _wide(out) as wide:
            self._write(wide, self.key_codes, self.key_scales, self.key_zeros, bits=KEY_BITS[self.bits])
            wide.copy_(spread(wide))

    def write_values(self, out: Tensor) -> None:
        """Dequantise the values into `out` [S, D]."""
        with _wide(out) as wide:
            self._write(wide, self.value_codes, self.value_scales, self.value_zeros, bits=self.bits)

    def fewer(self) -> tuple[Fewer, tuple[Tensor, ...]]:
        """What a step in one call reads, and the tensors that it points into."""
        tensors = tuple(tensor.contiguous() for tensor in self._tensors()[:-1])
        addresses = (tensor.data_ptr() for tensor in tensors)
        return Fewer(
            *addresses, len(self), KEY_BITS[self.bits], self.bits, self.value_scales.shape[1], self.group
        ), tensors

    def take(self, rows: Tensor) -> "QuantizedHead":
        """The entries `rows` (ascending), their codes and scales as they are."""
        return self._of(tensor[rows] for tensor in self._tensors())

    def joined(self, other: "QuantizedHead") -> "QuantizedHead":
        """The entries of both, which are at other positions, in the order of these."""
        pairs = [torch.cat(pair) for pair in zip(self._tensors(), other._tensors(), strict=True)]
        if len(self) == 0 or len(other) == 0 or self.positions[-1] < other.positions[0]:
            return self._of(pairs)
        order = pairs[-1].argsort()
        return self._of(tensor[order] for tensor in pairs)

    def _of(self, tensors: Iterable[Tensor]) -> "QuantizedHead":
        found: dict[str, Any] = dict(zip(TENSORS, tensors, strict=True))
        return replace(self, **found)

    def _write(self, out: Tensor, codes: Tensor, scales: Tensor, zeros: Tensor, *, bits: int) -> None:
        _unpack(codes, out, bits=bits)
        for i in range(scales.shape[1]):
            group = out[:, i * self.group : (i + 1) * self.group]
            group.mul_(scales[:, i : i + 1].to(out.dtype)).add_(zeros[:, i : i + 1].to(out.dtype))


TENSORS = ("key_codes", "value_codes", "key_scales", "key_zeros", "value_scales", "value_zeros", "positions")
"""What has a row for every entry, in the order in which kernels/step.h has it."""


def quantize_head(
    keys: Tensor, values: Tensor, positions: Tensor, bits: int, *, config: CacheConfig | None = None
) -> QuantizedHead:
    """Quantise keys and values [S, D] of one head to `bits` (8 or 4); `config` sets the size of groups."""
    group = (config or CacheConfig()).group
    keys = _finite(keys.float())
    return QuantizedHead(
        *_by_entry(spread(keys) / _turned_channels(keys.shape[1]), group, bits=KEY_BITS[bits]),
        *_by_entry(values.float(), group, bits=bits),
        positions=positions.to(torch.int32, copy=True),
        head_dim=keys.shape[1],
        group=group,
        bits=bits,
    )


def spread(x: Tensor) -> Tensor:
    """H x for every row of x [S, D]: channels in blocks of the largest power of two that fits."""
    size = _turned_channels(x.shape[1])
    blocks = x.reshape(len(x), x.shape[1] // size, size)
    return (blocks @ _hadamard(size, x.dtype, x.device)).flatten(1)


@lru_cache
def _hadamard(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The symmetric Hadamard matrix [n, n] of a power of two (Sylvester)."""
    made = torch.ones(1, 1, dtype=dtype, device=device)
    while len(made) < size:
        made = torch.cat([torch.cat([made, made], 1), torch.cat([made, -made], 1)])
    return made


def _turned_channels(head_dim: int) -> int:
    """n: the largest power of two that divides the channels."""
    return head_dim & -head_dim


def _finite(x: Tensor) -> Tensor:
    """x [S, D], in which what is not finite is the nearest number of its row, NaN the lowest; 0 where there is none."""
    finite = x.isfinite()
    lowest = torch.where(finite, x, torch.inf).amin(1, keepdim=True)
    highest = torch.where(finite, x, -torch.inf).amax(1, keepdim=True)
    x = torch.where(finite, x, torch.where(x > 0, highest, lowest))
    return x.nan_to_num(0.0, 0.0, 0.0).clamp(-_LARGEST, _LARGEST)


def _by_entry(x: Tensor, group: int, *, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Packed codes, scales and zeros of x [S, D]."""
    length, channels = x.shape
    groups = -(-channels // group)
    columns = pad(x, (0, groups * group - channels), value=torch.nan).view(length, groups, group)
    codes, scales, zeros = _quantize(columns, bits=bits)
    return _pack(codes.view(length, groups * group)[:, :channels], bits=bits), scales, zeros


def _quantize(x: Tensor, *, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes like `x`, and its scales and zeros over the last dimension. What is not finite sets no scale."""
    levels = 2**bits - 1
    finite, x = x.isfinite(), x.clamp(-_LARGEST, _LARGEST)
    lowest = torch.where(finite, x, torch.inf).amin(-1, keepdim=True)
    highest = torch.where(finite, x, -torch.inf).amax(-1, keepdim=True)
    empty = lowest > highest
    zero = _rounded_down(torch.where(empty, 0.0, lowest))
    scale = -_rounded_down((zero.float() - torch.where(empty, 0.0, highest)) / levels)
    step = torch.where(scale > 0, scale.float(), 1.0)
    codes = ((x - zero.float()) / step).round_().clamp_(0, levels).nan_to_num_(0.0).to(torch.uint8)
    return codes, scale.squeeze(-1), zero.squeeze(-1)


def _rounded_down(x: Tensor) -> Tensor:
    """The float16 at or just below x: where the nearest lies above, that of a number a float16's step smaller."""
    nearest = x.half()
    return torch.where(nearest.float() > x, (x - x.abs() * _EPS - _SMALLEST).half(), nearest)


def _pack(codes: Tensor, *, bits: int) -> Tensor:
    """Codes [S, D] as bytes of their own; of those that share one, the later channels in the upper bits."""
    planes, shift = [], 0
    for width in CODE_PLANES[bits]:
        per = 8 // width
        size = -(-codes.shape[1] // per)
        parts = pad(codes >> shift & 2**width - 1, (0, per * size - codes.shape[1])).view(-1, per, size)
        planes.append(sum((parts[:, i] << i * width for i in range(1, per)), start=parts[:, 0]))
        shift += width
    return torch.cat(planes, dim=1)


def _unpack(packed: Tensor, out: Tensor, *, bits: int) -> None:
    """The inverse of `_pack`, as numbers into `out` [S, D]."""
    channels, begin, shift = out.shape[1], 0, 0
    codes = packed.new_zeros(len(packed), channels)
    for width in CODE_PLANES[bits]:
        size = -(-channels * width // 8)
        places = torch.arange(0, 8, width, dtype=torch.uint8, device=packed.device)[:, None]
        parts = packed[:, None, begin : begin + size] >> places & 2**width - 1
        codes |= parts.flatten(1)[:, :channels] << shift
        begin, shift = begin + size, shift + width
    out.copy_(codes)


@contextmanager
def _wide(out: Tensor) -> Iterator[Tensor]:
    """`out` itself, or for one of 16 bits a float32 tensor that ends up in it: rounded once, not three times."""
    wide = out if out.dtype.itemsize >= 4 else torch.empty_like(out, dtype=torch.float32)
    yield wide
    if wide is not out:
        out.copy_(wide)
