"""The records that the engine's generators yield: one stream for the readout, JSON, benchmarks and tests.

Times are seconds since the phase began; bytes are what is allocated at that moment.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from uncomp_cli.numerals import format_count, format_decimal
from uncomp_cli.share import Share
from uncomp_cli.steps import Progress

FinishReason = Literal["stop", "length", "loop", "interrupted"]


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

    @property
    def progress(self) -> Progress:
        """How far the reading is."""
        fraction = self.layers_done / self.num_layers
        rate = f"{format_decimal(self.tokens * fraction / self.elapsed_s)} tok/s" if self.elapsed_s > 0 else None
        return Progress(f"prefill {format_count(self.tokens)} tok", fraction, rate, self.elapsed_s)


@dataclass(frozen=True, slots=True)
class DecodeStep:
    """One token of the row number `row`, counted in the order of asking; `text` became printable with it, if any did.

    `finish_reason` is there with a row's last token; the text of one that stops it is empty.
    """

    row: int
    index: int
    token: int
    text: str
    finish_reason: FinishReason | None
    elapsed_s: float
    kv_bytes: int


@dataclass(frozen=True, slots=True)
class RunStats:
    """What one answer took. `kv_full_bytes` is a full cache of the same tokens in numbers of
    `dtype_bytes`; `ttft_s` counts from the prefill.

    `signs` are those of the heads that were watched (look/watch.py), none where none was or before the answer's first
    token has been read, and what the text has of the question (context/telling.py). `whole`: what was asked for is all
    of the text, or nothing in particular. Of `guessed_tokens` from the text `accepted_tokens` were right (lookup.py).
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    prefill_s: float
    ttft_s: float
    decode_s: float
    kv_bytes: int
    kv_full_bytes: int
    peak_bytes: int
    finish_reason: FinishReason
    dtype_bytes: int = 2
    signs: Mapping[str, float] = field(default_factory=dict)
    guessed_tokens: int = 0
    accepted_tokens: int = 0
    whole: bool = False

    @property
    def kv_share(self) -> Share:
        """Allocated bytes over those of a full cache."""
        return Share(self.kv_bytes, self.kv_full_bytes, self.dtype_bytes)

    @property
    def kept_fraction(self) -> float:
        """The same of the run's own numbers; 1 at most: what lies beside the entries does not count."""
        return min(1.0, self.kv_share.of_run)

    @property
    def decode_tok_s(self) -> float | None:
        """Tokens per second after the first; None when there was only one."""
        return (self.completion_tokens - 1) / self.decode_s if self.completion_tokens > 1 and self.decode_s else None
