"""Every default of the program, in frozen dataclasses that check themselves.

The command line reads its defaults from here; nothing reads the environment at import.
"""

import math
import sys
from dataclasses import dataclass
from typing import Literal

from uncomp_cli.errors import require

DEFAULT_MODEL = "smollm2-135m"
DEFAULT_PRESET = "balanced"
LIVE_PRESET = "live"  # in the place of the default one for models that it was not calibrated for
AGNOSTIC_PRESET = "unseen"
"""For questions that nobody has asked yet."""
DEFAULT_CACHE_SIZE = "2GiB"
DEFAULT_TEXT_CACHE = "512MiB"

Side = Literal["head", "middle", "tail"]
Pooling = Literal["none", "mean", "max"]
Matmul = Literal["auto", "float32", "bfloat16", "int8"]
Weights = Literal["auto", "float32", "bfloat16", "q8", "q4", "disk"]


# Beyond these, logits divided by a number leave the range of float32.
_LEAST_TEMPERATURE = 0.0001
_MOST_PENALTY = 1000.0

LEAST_CHUNK_TOKENS = 128
_MOST_TOKENS = 2**20


LOCAL = "local"
"""As Ray calls it too: a cluster of its own, whatever others this machine is part of."""

KEY_BITS = {8: 8, 4: 5}
"""Bits of the keys, by those of the values."""
CODE_PLANES = {8: (8,), 5: (4, 1), 4: (4,)}
"""How the bits of a code are spread over bytes: so many together with those of other channels."""


@dataclass(frozen=True, slots=True)
class CacheConfig:
    """How much room a cache head has beyond its tokens, and what shares a scale in 8 or 4 bits: all of it is allocated.

    A head of up to `most_tokens`, a text with its answer where that is known, has no room for more than those.
    In 8 or 4 bits `group` channels of a key or value share a scale and a zero.
    """

    most_tokens: int = sys.maxsize
    min_slack: int = 16
    slack_divisor: int = 64
    position_bytes: int = 4
    group: int = 64

    def slack(self, length: int) -> int:
        """Free entries kept behind a head of `length` entries."""
        free = max(self.min_slack, length // self.slack_divisor)
        return free if length > self.most_tokens else min(free, self.most_tokens - length)

    def entry_bytes(self, *, head_dim: int, bits: int) -> int:
        """Bytes of a quantised entry: codes, float16 scales and zeros of key and value, its position."""
        codes = sum(code_bytes(head_dim, kind) for kind in (KEY_BITS[bits], bits))
        return codes + 8 * -(-head_dim // self.group) + self.position_bytes


def code_bytes(channels: int, bits: int) -> int:
    """Bytes of so many codes of one entry."""
    return sum(-(-channels * width // 8) for width in CODE_PLANES[bits])


@dataclass(frozen=True, slots=True)
class ScorerConfig:
    """Which tokens matter: the scorer, its observation window and the coherence of what it keeps.

    `window` is the number of last prompt tokens whose attention is observed; `pooling` and `width` smooth the scores
    along the text; `whole_words` keeps or drops a word or number as one.
    `renormalise` takes the `sinks` out of each row of attention and lets the rest sum to 1 before rows are averaged.
    Of a single question the `recent` last tokens are always kept, the others compete with the context.
    The scorer `agreement` takes the part `shared` of every score from what the heads of all layers agree on, and every
    layer holds the part `held` of the context until all have had their say.
    """

    name: str = "window"
    window: int = 32
    pooling: Pooling = "mean"
    width: int = 21
    whole_words: bool = True
    sinks: int = 4
    renormalise: bool = True
    recent: int = 8
    shared: float = 0.8
    held: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        require(self.window >= 1, f"scorer window is {self.window}", hint="use a window of 1 token or more")
        require(self.sinks >= 0, f"sinks is {self.sinks}", hint="use 0 or more")
        for name in ("window", "width", "sinks", "recent"):
            value = getattr(self, name)
            require(value <= _MOST_TOKENS, f"scorer {name} is {value:,}", hint=f"use {_MOST_TOKENS:,} tokens at most")
        require(0 <= self.shared <= 1, f"shared is {self.shared}", hint="use a part from 0 to 1")
        require(0 <= self.held <= 1, f"held is {self.held}", hint="use a part from 0 to 1")
        require(self.recent >= 1, f"recent is {self.recent}", hint="keep 1 token of the question or more")
        require(self.pooling in ("none", "mean", "max"), f"pooling is '{self.pooling}'", hint="use none, mean or max")
        odd = self.width >= 1 and self.width % 2 == 1
        require(odd, f"pooling width is {self.width}", hint="use an odd number of tokens, such as 21")


@dataclass(frozen=True, slots=True)
class Limits:
    """What bounds the memory of a run.

    A prompt is read `chunk_tokens` at a time; the KV cache never takes more than `kv_bytes`, what is held on the way
    to its budget included. None: chosen to fit the memory that is free. With `constant_size` the cache does not grow
    while an answer is written.
    """

    chunk_tokens: int | None = None
    kv_bytes: int | None = None
    constant_size: bool = False

    def __post_init__(self) -> None:
        chunk, hint = self.chunk_tokens, f"use --chunk {LEAST_CHUNK_TOKENS} or more, or auto"
        require(chunk is None or chunk >= LEAST_CHUNK_TOKENS, f"chunk is {chunk} tokens", hint=hint)
        some = self.kv_bytes is None or self.kv_bytes > 0
        require(some, f"kv-mem is {self.kv_bytes} bytes", hint="use --kv-mem auto")


@dataclass(frozen=True, slots=True)
class CrewConfig:
    """Where `uncomp batch` works, and with whom; None is what the machines there have room for."""

    ray: str = LOCAL
    actors: int | None = None
    threads: int | None = None
    gpus: float | None = None
    readers: int = 1
    batch_size: int = 16


@dataclass(frozen=True, slots=True)
class SamplingConfig:
    """How the next token is chosen; a temperature of 0 is greedy. With `lookup` tokens are guessed from the text."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    max_new_tokens: int = 256
    lookup: bool = True

    def __post_init__(self) -> None:
        warm = self.temperature == 0 or _LEAST_TEMPERATURE <= self.temperature < math.inf
        hint = f"use 0 (greedy), or {_LEAST_TEMPERATURE} and more"
        require(warm, f"temperature is {self.temperature}", hint=hint)
        require(0 < self.top_p <= 1, f"top-p is {self.top_p}", hint="use a value above 0 and up to 1")
        require(self.top_k >= 0, f"top-k is {self.top_k}", hint="use 0 (off) or more")
        require(0 <= self.min_p < 1, f"min-p is {self.min_p}", hint="use a value from 0 up to, not including, 1")
        mild = 1 / _MOST_PENALTY <= self.repetition_penalty <= _MOST_PENALTY
        hint = f"use 1 for none, {1 / _MOST_PENALTY} to {_MOST_PENALTY}"
        require(mild, f"repetition-penalty is {self.repetition_penalty}", hint=hint)
        require(-(2**63) <= self.seed < 2**64, f"seed is {self.seed}", hint="use a number of at most 18 digits")
        require(self.max_new_tokens >= 1, f"max-new-tokens is {self.max_new_tokens}", hint="use 1 or more")
