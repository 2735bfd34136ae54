"""The keys and values of one KV head in 8 or 4 bits, and the numbers back.

    x̂ = zero + scale · code        code = round((x − zero) / scale), in 0 … 2^bits − 1

Asymmetric, keys per channel, values per token (KIVI, arXiv 2402.02750, section 3.2): a few channels of the keys are
large for every token, so every channel has its own scale, over a block of consecutive entries; values have no such
channels, so every entry has its own, over a group of channels. Scale and zero are float16, the zero rounded down and
the scale up, and the codes are computed with the rounded ones: |x − x̂| ≤ scale / 2 for every |x| ≤ 65504. A number
that is not finite changes no scale: it becomes the nearest number of its group (NaN the lowest). Two 4-bit codes share
a byte. KIVI keeps the latest tokens unquantised; here that is the cache's tail, which is not in this module.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor
from torch.nn.functional import pad

from uncomp_cli.config import CacheConfig
from uncomp_cli.kernels.library import Fewer

_LARGEST = torch.finfo(torch.float16).max
_EPS = torch.finfo(torch.float16).eps
_SMALLEST = torch.finfo(torch.float16).smallest_normal * _EPS


@dataclass(frozen=True, slots=True)
class QuantizedHead:
    """S entries of one head; nothing in it changes, so several caches may share it.

    key_codes, value_codes [S, D] (4 bits: [S, ⌈D/2⌉]) · key_scales, key_zeros [blocks, D] · value_scales, value_zeros
    [S, groups] · positions [S]. `blocks` is how many entries each block of keys has.
    """

    key_codes: Tensor
    key_scales: Tensor
    key_zeros: Tensor
    value_codes: Tensor
    value_scales: Tensor
    value_zeros: Tensor
    positions: Tensor
    blocks: tuple[int, ...]
    value_group: int
    bits: int

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def nbytes(self) -> int:
        """Bytes of all storages, as allocated."""
        return sum(tensor.untyped_storage().nbytes() for tensor in self._tensors())

    def _tensors(self) -> tuple[Tensor, ...]:
        keys = self.key_codes, self.key_scales, self.key_zeros
        return *keys, self.value_codes, self.value_scales, self.value_zeros, self.positions

    def keys(self, dtype: torch.dtype) -> Tensor:
        """The dequantised keys [S, D]."""
        out = self._empty(dtype)
        self.write_keys(out)
        return out

    def values(self, dtype: torch.dtype) -> Tensor:
        """The dequantised values [S, D]."""
        out = self._empty(dtype)
        self.write_values(out)
        return out

    def write_keys(self, out: Tensor) -> None:
        """Dequantise the keys into `out` [S, D]."""
        with _wide(out) as wide:
            _unpack(self.key_codes, wide, bits=self.bits)
            _scale_blocks(wide, self.key_scales, self.key_zeros, self.blocks)

    def write_values(self, out: Tensor) -> None:
        """Dequantise the values into `out` [S, D]."""
        with _wide(out) as wide:
            _unpack(self.value_codes, wide, bits=self.bits)
            for i in range(self.value_scales.shape[1]):
                group = wide[:, i * self.value_group : (i + 1) * self.value_group]
                _scale(group, self.value_scales[:, i : i + 1], self.value_zeros[:, i : i + 1])

    def fewer(self) -> tuple[Fewer, tuple[Tensor, ...]]:
        """What a step in one call reads, and the tensors that it points into."""
        owner = torch.arange(len(self.blocks), dtype=torch.int32).repeat_interleave(torch.tensor(self.blocks))
        keys, values = (self.key_scales, self.key_zeros), (self.value_scales, self.value_zeros)
        tensors = [each.contiguous() for each in (self.key_codes, self.value_codes, *keys, *values, owner)]
        addresses = (tensor.data_ptr() for tensor in tensors)
        return Fewer(*addresses, len(self), self.bits, self.value_scales.shape[1], self.value_group), tuple(tensors)

    def take(self, rows: Tensor) -> "QuantizedHead":
        """The entries `rows` (ascending), their codes and scales as they are."""
        count = len(self.blocks)
        sizes = torch.tensor(self.blocks, dtype=torch.int64, device=rows.device)
        owner = torch.arange(count, device=rows.device).repeat_interleave(sizes)
        left = torch.bincount(owner[rows], minlength=count)
        used = left.nonzero().flatten()
        return QuantizedHead(
            key_codes=self.key_codes[rows],
            key_scales=self.key_scales[used],
            key_zeros=self.key_zeros[used],
            value_codes=self.value_codes[rows],
            value_scales=self.value_scales[rows],
            value_zeros=self.value_zeros[rows],
            positions=self.positions[rows],
            blocks=tuple(left[used].tolist()),
            value_group=self.value_group,
            bits=self.bits,
        )

    def _empty(self, dtype: torch.dtype) -> Tensor:
        return torch.empty(len(self), self.key_scales.shape[1], dtype=dtype, device=self.key_codes.device)


def quantize_head(
    keys: Tensor, values: Tensor, positions: Tensor, bits: int, *, config: CacheConfig | None = None
) -> QuantizedHead:
    """Quantise keys and values [S, D] of one head to `bits` (8 or 4); `config` sets the sizes of blocks and groups."""
    config = config or CacheConfig()
    length, head_dim = keys.shape
    block, group = config.key_block, config.value_group
    rows = pad(keys.float(), (0, 0, 0, -length % block), value=torch.nan).view(-1, block, head_dim)
    key_codes, key_scales, key_zeros = _quantize(rows, dim=1, bits=bits)
    groups = -(-head_dim // group)
    columns = pad(values.float(), (0, groups * group - head_dim), value=torch.nan).view(length, groups, group)
    value_codes, value_scales, value_zeros = _quantize(columns, dim=2, bits=bits)
    return QuantizedHead(
        key_codes=_pack(key_codes.flatten(0, 1)[:length], bits=bits),
        key_scales=key_scales,
        key_zeros=key_zeros,
        value_codes=_pack(value_codes.view(length, groups * group)[:, :head_dim], bits=bits),
        value_scales=value_scales,
        value_zeros=value_zeros,
        positions=positions.to(torch.int32, copy=True),
        blocks=tuple(min(block, length - start) for start in range(0, length, block)),
        value_group=group,
        bits=bits,
    )


def _quantize(x: Tensor, *, dim: int, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes like `x`, and its scales and zeros over `dim`, which goes. What is not finite sets no scale."""
    levels = 2**bits - 1
    finite, x = x.isfinite(), x.clamp(-_LARGEST, _LARGEST)
    lowest = torch.where(finite, x, torch.inf).amin(dim, keepdim=True)
    highest = torch.where(finite, x, -torch.inf).amax(dim, keepdim=True)
    empty = lowest > highest
    zero = _rounded_down(torch.where(empty, 0.0, lowest))
    scale = -_rounded_down((zero.float() - torch.where(empty, 0.0, highest)) / levels)
    step = torch.where(scale > 0, scale.float(), 1.0)
    codes = ((x - zero.float()) / step).round_().clamp_(0, levels).nan_to_num_(0.0).to(torch.uint8)
    return codes, scale.squeeze(dim), zero.squeeze(dim)


def _rounded_down(x: Tensor) -> Tensor:
    """The float16 at or just below x: where the nearest lies above, that of a number a float16's step smaller."""
    nearest = x.half()
    return torch.where(nearest.float() > x, (x - x.abs() * _EPS - _SMALLEST).half(), nearest)


def _pack(codes: Tensor, *, bits: int) -> Tensor:
    """Codes [S, D] in a storage of their own; of 4 bits, the later half of the channels in the upper half-bytes."""
    if bits == 8:
        return codes.clone(memory_format=torch.contiguous_format)
    half = -(-codes.shape[1] // 2)
    upper = pad(codes[:, half:], (0, 2 * half - codes.shape[1]))
    return codes[:, :half] | upper << 4


def _unpack(codes: Tensor, out: Tensor, *, bits: int) -> None:
    """The inverse of `_pack`, as numbers into `out` [S, D]."""
    if bits == 8:
        out.copy_(codes)
        return
    half = codes.shape[1]
    out[:, :half] = codes & 15
    out[:, half:] = (codes >> 4)[:, : out.shape[1] - half]


def _scale_blocks(x: Tensor, scales: Tensor, zeros: Tensor, blocks: Sequence[int]) -> None:
    """x [S, D] ← zero + scale · x by block: in one view the first ones, which have one size, then the rest."""
    if not blocks:
        return
    even = sum(1 for _ in takewhile(lambda size: size == blocks[0], blocks))
    cut = even * blocks[0]
    _scale(x[:cut].view(even, blocks[0], -1), scales[:even, None], zeros[:even, None])
    sizes = torch.tensor(blocks[even:], dtype=torch.int64, device=x.device)
    _scale(x[cut:], scales[even:].repeat_interleave(sizes, dim=0), zeros[even:].repeat_interleave(sizes, dim=0))


def _scale(x: Tensor, scales: Tensor, zeros: Tensor) -> None:
    x.mul_(scales.to(x.dtype)).add_(zeros.to(x.dtype))


@contextmanager
def _wide(out: Tensor) -> Iterator[Tensor]:
    """`out` itself, or for one of 16 bits a float32 tensor that ends up in it: rounded once, not three times."""
    wide = out if out.dtype.itemsize >= 4 else torch.empty_like(out, dtype=torch.float32)
    yield wide
    if wide is not out:
        out.copy_(wide)
