"""What is kept of a full cache, as a share: the only place where one is reckoned.

It is told of a cache in numbers of 16 bits, which others hold, whatever the run's own are: one in float32 is twice as
large, and a tenth of it a fifth of what others start from.
"""

from dataclasses import dataclass
from typing import Self

from uncomp_cli.numerals import format_decimal, format_part
from uncomp_cli.spec import ModelSpec

_SIXTEEN = 2
_WIDER = {"float32": 4, "float64": 8}


def bytes_of_dtype(name: str) -> int:
    """Bytes of a number of a format that models run in."""
    return _WIDER.get(name, _SIXTEEN)


@dataclass(frozen=True, slots=True)
class Share:
    """`kept_bytes` beside those of a full cache, whose numbers have `dtype_bytes`."""

    kept_bytes: int
    full_bytes: int
    dtype_bytes: int = _SIXTEEN

    @classmethod
    def of(cls, spec: ModelSpec, kept_bytes: int, seq_len: int) -> Self:
        """Of a full cache of `seq_len` tokens."""
        return cls(kept_bytes, spec.full_kv_bytes(seq_len), spec.dtype_bytes)

    @property
    def width(self) -> float:
        """The full cache's size over that of one in 16 bits."""
        return self.dtype_bytes / _SIXTEEN

    @property
    def full_16_bit_bytes(self) -> int:
        """Bytes of the full cache in numbers of 16 bits."""
        return round(self.full_bytes / self.width)

    @property
    def of_run(self) -> float:
        """Of the full cache in the run's own numbers."""
        return self.kept_bytes / self.full_bytes

    @property
    def of_16_bit(self) -> float:
        """Of the full cache in numbers of 16 bits; above 1 where wider ones are kept."""
        return self.of_run * self.width

    def __str__(self) -> str:
        """`8.1 of 83 MiB (9.8 %)`; of a run in other numbers `8.1 of 83 MiB in 16 bits (9.8 %)`."""
        return self._told("")

    @property
    def whole(self) -> str:
        """The same with the share of the run's own numbers: `… in 16 bits (9.8 %, 4.9 % of float32)`."""
        return self._told(f", {format_decimal(100 * self.of_run)} % of float{8 * self.dtype_bytes}")

    def _told(self, own: str) -> str:
        sizes, share = format_part(self.kept_bytes, self.full_16_bit_bytes), format_decimal(100 * self.of_16_bit)
        return f"{sizes} ({share} %)" if self.width == 1 else f"{sizes} in 16 bits ({share} %{own})"
