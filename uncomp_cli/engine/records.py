"""The records that the engine's generators yield: one stream for the readout, JSON, benchmarks and tests.

Times are seconds since the phase began; bytes are what is allocated at that moment.
"""

from dataclasses import dataclass
from typing import Literal

__all__ = ["DecodeStep", "FinishReason", "PrefillStep"]

FinishReason = Literal["stop", "length", "interrupted"]


@dataclass(frozen=True, slots=True)
class PrefillStep:
    """One layer of the prompt has been attended, scored and evicted.

    Of a prompt that is read in chunks both numbers count every layer once a chunk.
    """

    layers_done: int
    num_layers: int
    tokens: int
    elapsed_s: float
    kv_bytes: int


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """One token for every row of the batch; `texts` holds what became printable with it (may be empty)."""

    index: int
    token_ids: tuple[int, ...]
    texts: tuple[str, ...]
    finish_reasons: tuple[FinishReason | None, ...]
    elapsed_s: float
    kv_bytes: int
