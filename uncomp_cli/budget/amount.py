"""One budget, written in the unit the user thinks in, resolved to KV entries.

An entry is one key and one value of one KV head for one token. `10%` is a fraction of the full cache's KV bytes,
`512` is tokens per KV head on average, `256MiB` is allocated bytes, `auto` is what fits free memory, `full` is all.
A fraction is one of bytes in the model's own dtype: a context that is held in fewer bits has more entries in it.
Fractions and tokens are of what can be dropped: layers with a sliding window hold it whatever the budget, and on top.
Bytes are of all that there is.
"""

import math
import re
from dataclasses import dataclass
from typing import Literal

from uncomp_cli.config import CacheConfig
from uncomp_cli.errors import UsageError
from uncomp_cli.spec import ModelSpec

_HINT = "write 10% (of the full cache), 512 (tokens per KV head), 256MiB, auto or full"
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_NUMBER = re.compile(r"(?P<number>[0-9]{1,18}(?:\.[0-9]{1,18})?)\s*(?P<unit>%|[A-Za-z]*)")


@dataclass(frozen=True, slots=True)
class Budget:
    """A budget as requested: `amount` is a share, tokens or bytes, by its kind; `str()` gives the user's own words."""

    kind: Literal["full", "auto", "fraction", "tokens", "bytes"]
    amount: float
    text: str

    def __str__(self) -> str:
        return self.text

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """The budget that `text` says; raises UsageError that names it when it is none of the five forms."""
        stripped = text.strip()
        if stripped.lower() in ("full", "auto"):
            return cls("full" if stripped.lower() == "full" else "auto", 1.0, stripped.lower())
        match = _NUMBER.fullmatch(stripped)
        if match is None:
            raise UsageError(f"budget '{text}' is not a budget", hint=_HINT)
        number, unit = float(match["number"]), match["unit"].upper()
        if number <= 0 or (unit in _UNITS and number * _UNITS[unit] < 1):
            raise UsageError(f"budget '{text}' keeps nothing", hint=_HINT)
        if unit == "%":
            return _fraction(number, text)
        if unit in ("", "K"):
            return _tokens(number * (1024 if unit else 1), text)
        if unit not in _UNITS:
            raise UsageError(f"budget '{text}' has the unknown unit '{match['unit']}'", hint=_HINT)
        return cls("bytes", float(int(number * _UNITS[unit])), stripped)

    @classmethod
    def of(cls, given: "Budget | str") -> "Budget":
        """A budget that was given as a value, or as text."""
        return given if isinstance(given, Budget) else cls.parse(given)

    def times(self, factor: float) -> "Budget | None":
        """The budget times `factor`, in its own unit, `full` from 100 % on; None for full and auto.

        Raises UsageError when nothing is left of it.
        """
        amount = _NUMBER.fullmatch(self.text)
        if amount is None:
            return None
        product, unit = float(amount["number"]) * factor, self.text[amount.end("number") :]
        if self.kind == "fraction" and product >= 100:
            return FULL_BUDGET
        whole = self.kind == "tokens"
        return Budget.parse(f"{round(product) if whole else f'{product:.2f}'.rstrip('0').rstrip('.')}{unit}")


def _fraction(percent: float, text: str) -> Budget:
    if percent > 100:
        raise UsageError(f"budget '{text}' is more than the full cache", hint="use at most 100%, or full")
    return Budget("fraction", percent / 100, text.strip())


def _tokens(number: float, text: str) -> Budget:
    if number != int(number):
        raise UsageError(f"budget '{text}' is neither whole tokens nor per cent", hint=_HINT)
    return Budget("tokens", number, text.strip())


FULL_BUDGET = Budget("full", 1.0, "full")
"""All is kept."""


def resolve_entries(budget: Budget, spec: ModelSpec, *, seq_len: int, free_bytes: int) -> int:
    """KV entries that `budget` allows for a prompt of `seq_len` tokens, at most those of the full cache.

    Byte budgets count everything that is allocated for an entry: key, value, position and its share of the slack.
    `free_bytes` is what `auto` may use.
    """
    full, windows = spec.full_entries(seq_len), spec.window_entries(seq_len)
    heads = spec.num_layers * spec.num_kv_heads
    if budget.kind == "full":
        return full
    if budget.kind == "fraction":
        return windows + int((full - windows) * budget.amount + 1e-6)  # 0.29 * 100 is 28.999…
    if budget.kind == "tokens":
        return min(full, windows + int(budget.amount) * len(spec.full_layers) * spec.num_kv_heads)
    allowed = free_bytes if budget.kind == "auto" else int(budget.amount)
    room = allowed // (spec.kv_bytes_per_entry + CacheConfig().position_bytes)
    return max(0, min(full, _without_slack(room, heads=heads, longest=seq_len)))


def _without_slack(room: int, *, heads: int, longest: int) -> int:
    """Entries that fit into `room` with their slack, however unevenly they are spread over `heads`.

    A head's slack lies below the line from (0, min_slack) to (longest, slack of the longest head).
    """
    cache = CacheConfig()
    rise = max(0.0, longest / cache.slack_divisor - cache.min_slack) / max(1, longest)
    return math.floor((room - heads * cache.min_slack) / (1 + rise))


def resolve_quantized(
    budget: Budget,
    spec: ModelSpec,
    *,
    seq_len: int,
    free_bytes: int,
    kv_bits: int,
    question_tokens: int,
    waiting_tokens: int,
) -> int:
    """`resolve_entries` for a context of 8 or 4 bits, with `question_tokens` in the model's own dtype behind it.

    entries = question + (bytes − bytes of the question) / bytes of a quantised entry

    A quantised entry is its codes, scales and position. Byte budgets also count the question's positions and slack, and
    `waiting_tokens` of further questions.
    """
    cache, full, windows = CacheConfig(), spec.full_entries(seq_len), 0
    if budget.kind in ("full", "tokens"):
        return resolve_entries(budget, spec, seq_len=seq_len, free_bytes=free_bytes)
    questions = spec.full_entries(question_tokens)
    if budget.kind == "fraction":
        windows = spec.window_entries(seq_len)
        questions -= spec.window_entries(question_tokens)
        allowed = int((full - windows) * budget.amount + 1e-6) * spec.kv_bytes_per_entry
        room = allowed - questions * spec.kv_bytes_per_entry
    else:
        allowed = free_bytes if budget.kind == "auto" else int(budget.amount)
        room = allowed - _beside_context(spec, question_tokens, waiting_tokens, cache=cache)
    if room < 0:  # not even the question fits
        return windows + max(0, min(questions - 1, allowed // spec.kv_bytes_per_entry))
    return min(full, windows + questions + room // cache.entry_bytes(head_dim=spec.head_dim, bits=kv_bits))


def _beside_context(spec: ModelSpec, question_tokens: int, waiting_tokens: int, *, cache: CacheConfig) -> int:
    """Bytes that are allocated beside the context: the questions'."""
    heads = spec.num_layers * spec.num_kv_heads
    tails = sum(
        tokens + cache.slack(tokens)
        for tokens in (question_tokens if w is None else min(question_tokens, w) for w in spec.sliding_windows)
    )
    entry = spec.kv_bytes_per_entry + cache.position_bytes
    return (spec.num_kv_heads * tails + heads * waiting_tokens) * entry
