"""kvpress settings: its presses at their defaults, and the variants with which they do best on these tasks.

kvpress counts what is removed: `compression_ratio` = 1 - kept fraction. Defaults are window 64, kernel 5; the kernel is
the width of the average pooling that keeps a fact's neighbouring tokens together. PyramidKV falls back to equal layers
when its smallest layer would be below the window: its variant has a smaller window and a gentler slope, so that it is a
pyramid at every fraction here.
"""

from collections.abc import Callable
from dataclasses import dataclass

from kvpress import (
    AdaKVPress,
    ChunkKVPress,
    ExpectedAttentionPress,
    KeyDiffPress,
    KVzipPress,
    PyramidKVPress,
    RandomPress,
    SnapKVPress,
    StreamingLLMPress,
    TOVAPress,
)
from kvpress.presses.base_press import BasePress

FRACTIONS = (0.5, 0.2, 0.1, 0.05)
FULL = "full"

PRESSES: dict[str, Callable[[float], BasePress]] = {
    "SnapKV (default)": lambda removed: SnapKVPress(removed),
    "SnapKV (kernel 15)": lambda removed: SnapKVPress(removed, kernel_size=15),
    "SnapKV (kernel 31)": lambda removed: SnapKVPress(removed, kernel_size=31),
    "SnapKV (window 32, kernel 15)": lambda removed: SnapKVPress(removed, window_size=32, kernel_size=15),
    "SnapKV (window 32, kernel 31)": lambda removed: SnapKVPress(removed, window_size=32, kernel_size=31),
    "PyramidKV (default)": lambda removed: PyramidKVPress(removed),
    "PyramidKV (kernel 31)": lambda removed: PyramidKVPress(removed, kernel_size=31),
    "PyramidKV (window 16, kernel 31, beta 5)": lambda removed: PyramidKVPress(
        removed, window_size=16, kernel_size=31, beta=5
    ),
    "AdaKV (SnapKV default)": lambda removed: AdaKVPress(SnapKVPress(removed)),
    "AdaKV (SnapKV kernel 31)": lambda removed: AdaKVPress(SnapKVPress(removed, kernel_size=31)),
    "TOVA": lambda removed: TOVAPress(removed),
    "KeyDiff": lambda removed: KeyDiffPress(removed),
    "ExpectedAttention": lambda removed: ExpectedAttentionPress(removed),
    "ChunkKV (SnapKV default, chunk 20)": lambda removed: ChunkKVPress(SnapKVPress(removed), chunk_length=20),
    "KVzip": lambda removed: KVzipPress(removed),
    "StreamingLLM": lambda removed: StreamingLLMPress(removed),
    "Random": lambda removed: RandomPress(removed),
}


@dataclass(frozen=True, slots=True)
class Setting:
    """A press and the fraction of the prompt's entries it is asked to keep; `press` None keeps all."""

    contestant: str
    fraction: float

    @property
    def budget(self) -> str:
        return FULL if self.contestant == FULL else f"{100 * self.fraction:g}%"

    @property
    def name(self) -> str:
        return FULL if self.contestant == FULL else f"{self.contestant} {self.budget}"

    def press(self) -> BasePress | None:
        """A new press of this setting."""
        return None if self.contestant == FULL else PRESSES[self.contestant](1 - self.fraction)


def settings(fractions: tuple[float, ...], only: list[str]) -> list[Setting]:
    """Full, then every press at every fraction; `only` are parts of the names of the presses wanted, none is all."""
    wanted = [name for name in PRESSES if not only or any(part in name for part in only)]
    return [Setting(FULL, 1.0), *(Setting(name, fraction) for fraction in fractions for name in wanted)]
