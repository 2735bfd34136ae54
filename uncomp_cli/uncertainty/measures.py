"""Names of what is measured: a measure is one number per layer and head, and its key is a plain string.

    entropy/STATE/RANK[/renormalised][/prerope]   truncated matrix entropy: UNComp (arXiv 2410.03090), section 3
        STATE  q, k, v, hidden                    q per query head; k, v per KV head; hidden one a layer
        RANK   r16, r1/4, rknee, rfull            16 eigenvalues, a quarter of the dimension, the spectrum's knee, all
    lmba/raw, lmba/sinkfree, lmbo                 least budgets of attention: ZigZagKV (arXiv 2412.09036), section 3
    attention_entropy                             of attention rows (arXiv 2406.13282), per query head
    loss                                          what an answer loses when a KV head keeps a few tokens, per KV head

States are those after the rotary embedding, `prerope` those before it. A rank as a fraction is the same key for models
of all dimensions. This file only names measures; nothing is computed here, and no torch is needed.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal, Protocol

from uncomp_cli.errors import UsageError, did_you_mean

Rank = int | Fraction | Literal["knee", "full"]
"""Eigenvalues that are kept: a number, a share of the dimension, those before the spectrum's knee, or all."""

STATES = ("q", "k", "v", "hidden")
ROTATED_STATES = ("q", "k")
ATTENTION_MEASURES = ("lmba/raw", "lmba/sinkfree", "lmbo", "attention_entropy")
ANSWER_MEASURES = ("loss",)
PLAIN_MEASURES = (*ATTENTION_MEASURES, *ANSWER_MEASURES)

DEFAULT_MEASURES: tuple[str, ...] = (
    "entropy/q/r1/4",
    "entropy/q/rfull",
    "entropy/q/r1/4/renormalised",
    "entropy/k/r1/4",
    "entropy/v/r1/4",
    "entropy/hidden/r1/4",
    "lmba/raw",
    "lmba/sinkfree",
    "lmbo",
    "attention_entropy",
    # For the stability report: the same entropy by other ranks, and before the rotary embedding.
    "entropy/q/r1/8",
    "entropy/q/r1/2",
    "entropy/q/rknee",
    "entropy/q/r1/4/prerope",
)
"""What a calibration measures unless told otherwise."""

_ENTROPY = re.compile(
    r"entropy/(?P<state>q|k|v|hidden)/r(?P<rank>knee|full|[0-9]{1,6}(?:/[0-9]{1,6})?)"
    r"(?P<suffixes>(?:/renormalised|/prerope)*)",
    re.ASCII,
)
_HINT = "write entropy/q/r16, entropy/q/r1/4 (states q, k, v, hidden; ranks r16, r1/4, rknee, rfull), " + ", ".join(
    PLAIN_MEASURES
)


class HeadCounts(Protocol):
    """What `Measure.width` needs to know of a model: a ModelSpec has it, a ModelFingerprint too."""

    @property
    def num_heads(self) -> int:
        """H, query heads of a layer."""

    @property
    def num_kv_heads(self) -> int:
        """G, KV heads of a layer."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A measure: `name` is entropy, an attention measure or loss; the other fields belong to entropy alone.

    `str()` is its key, the only one for equal measures: r2/8 is r1/4, r1/1 is rfull. Raises UsageError for a rank
    below 1 or above the dimension, and for `prerope` of states that no rotary embedding turns.
    """

    name: str
    state: str | None = None
    rank: Rank | None = None
    renormalised: bool = False
    prerope: bool = False

    def __post_init__(self) -> None:
        if self.name != "entropy":
            self._check_plain()
            return
        if self.state not in STATES or self.rank is None:
            raise UsageError(f"matrix entropy of state {self.state}, rank {self.rank} is no measure", hint=_HINT)
        if isinstance(self.rank, (int, Fraction)) and self.rank <= 0:
            raise UsageError(
                f"rank {self.rank} of measure '{self}' keeps no eigenvalue", hint="use r1/4, or r1 and more"
            )
        if isinstance(self.rank, Fraction) and self.rank > 1:
            raise UsageError(f"rank {self.rank} of measure '{self}' is more than all eigenvalues", hint="use rfull")
        if isinstance(self.rank, Fraction) and self.rank == 1:
            object.__setattr__(self, "rank", "full")
        if self.prerope and self.state not in ROTATED_STATES:
            plain = replace(self, prerope=False)
            raise UsageError(f"measure '{self}': only queries and keys are rotated", hint=f"use {plain}")

    def _check_plain(self) -> None:
        entropy_fields = (self.state, self.rank, self.renormalised, self.prerope)
        if self.name not in PLAIN_MEASURES or entropy_fields != (None, None, False, False):
            raise UsageError(f"measure '{self.name}' is unknown, or takes no state and no rank", hint=_HINT)

    def __str__(self) -> str:
        if self.name != "entropy":
            return self.name
        suffixes = [word for word, on in (("renormalised", self.renormalised), ("prerope", self.prerope)) if on]
        return "/".join(["entropy", str(self.state), f"r{self.rank}", *suffixes])

    @property
    def live(self) -> bool:
        """Whether it can be measured on the user's own prompt; hidden states and answers are for calibration only."""
        return self.state != "hidden" and self.name not in ANSWER_MEASURES

    def rank_of(self, head_dim: int) -> int | None:
        """Eigenvalues to keep of states of this dimension (hidden_size for hidden states); None is the knee.

        Fractions are rounded down, to at least one. Raises UsageError for a rank above the dimension, ValueError for
        a measure that has no rank.
        """
        if self.rank is None:
            raise ValueError(f"measure '{self}' has no rank")
        if self.rank == "knee":
            return None
        if self.rank == "full":
            return head_dim
        if isinstance(self.rank, Fraction):
            return max(1, int(self.rank * head_dim))
        if self.rank > head_dim:
            message = f"rank {self.rank} of measure '{self}' is above the dimension {head_dim}"
            raise UsageError(message, hint=f"use r{head_dim} or less, a fraction as r1/4, or rfull")
        return self.rank

    def width(self, spec: HeadCounts) -> int:
        """Values in a layer: G for keys, values and loss, 1 for hidden states, H for queries and attention measures."""
        if self.state == "hidden":
            return 1
        per_kv_head = self.state in ("k", "v") or self.name in ANSWER_MEASURES
        return spec.num_kv_heads if per_kv_head else spec.num_heads


def parse_measure(key: str) -> Measure:
    """The measure that a key names; raises UsageError, with the nearest known key, when it names none."""
    text = key.strip()
    if text in PLAIN_MEASURES:
        return Measure(text)
    match = _ENTROPY.fullmatch(text)
    suffixes = match["suffixes"].split("/")[1:] if match else []
    if match is None or len(suffixes) > len(set(suffixes)):
        raise UsageError(f"measure '{key}' is unknown", hint=did_you_mean(text, _candidates(), _HINT))
    rank = _parse_rank(match["rank"], key)
    return Measure("entropy", match["state"], rank, "renormalised" in suffixes, "prerope" in suffixes)


def canonical_keys(keys: Sequence[str]) -> tuple[str, ...]:
    """The keys as `str(parse_measure(key))`, in order, each once."""
    return tuple(dict.fromkeys(str(parse_measure(key)) for key in keys))


def _parse_rank(text: str, key: str) -> Rank:
    if text == "knee":
        return "knee"
    if text == "full":
        return "full"
    numerator, slash, denominator = text.partition("/")
    if not slash:
        return int(numerator)
    if int(denominator) == 0:
        raise UsageError(f"rank {text} of measure '{key}' divides by zero", hint="use r1/4")
    return Fraction(int(numerator), int(denominator))


def _candidates() -> list[str]:
    """Keys to compare a mistyped one with."""
    plain = [f"entropy/{state}/{rank}" for state in STATES for rank in ("r1/4", "r16", "r32", "rknee", "rfull")]
    renormalised = [f"{key}/renormalised" for key in plain]
    prerope = [f"{key}/prerope" for key in (*plain, *renormalised) if key.split("/")[1] in ROTATED_STATES]
    return [*PLAIN_MEASURES, *plain, *renormalised, *prerope]
