"""What `uncomp rope` compares: arms, each a way of reading past the trained length and a budget for the cache.

    KIND[:FACTOR][@BUDGET], by commas:  plain, linear:2, ntk, dynamic, yarn:2@10%, llama3, longrope, repack, reread

Without a factor it is the smallest whole one that reaches the longest text. `plain` reads on as trained. `repack:F`
holds what is kept within the trained length / F, so that it always has a budget; `reread:F` reads the passages that
were found so once more.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from uncomp_cli.budget.amount import FULL_BUDGET, Budget
from uncomp_cli.errors import UsageError
from uncomp_cli.models.extension import LONGEST, REPACKED, RopeChoice, parse_rope

DEFAULT_KINDS = "plain,linear,ntk,yarn,repack,reread"
FULL, PLAIN, REREAD = "full", "plain", "reread"
ANSWER_ROOM = 32
"""Tokens of a length that are left to the answer."""

_SHORTEST = 256
_LENGTH = re.compile(r"(\d+)(k?)", re.ASCII | re.IGNORECASE)
_SMALLEST_FACTOR = 2


@dataclass(frozen=True, slots=True)
class ModelLengths:
    """In tokens: what a model was trained for, what factors count from, and up to where `plain` can read on.

    Factors count from the length before the model's own scaling. Only a RoPE that depends on the length ends.
    """

    trained: int
    unscaled: int
    plain: int = LONGEST


@dataclass(frozen=True, slots=True)
class RopeArm:
    """A kind of RoPE, its factor where it has one, and the part of the KV cache that is kept."""

    kind: str
    factor: float | None
    budget: Budget

    @property
    def rope(self) -> str:
        """The value of --rope: `yarn:2`, `plain`, `repack`."""
        return self.kind if self.factor is None else f"{self.kind}:{self.factor:g}"

    @property
    def label(self) -> str:
        """`yarn:2`, `repack@10%`: what makes it unique."""
        return self.rope if self.budget.kind == FULL else f"{self.rope}@{self.budget}"

    @property
    def repacks(self) -> bool:
        """Whether what is held is packed before every chunk."""
        return self.kind in REPACKED

    @property
    def choice(self) -> RopeChoice:
        """The RoPE alone, for a model."""
        return RopeChoice(self.kind, self.factor, None)

    def choice_for(self, tokens: int) -> RopeChoice:
        """The RoPE for a text of so many tokens: `plain` reads no further, since some models cannot."""
        return RopeChoice(self.kind, None, tokens) if self.kind == PLAIN else self.choice

    def reach(self, trained_length: int) -> int | None:
        """The longest distance over which a re-packed text looks back; None where nothing bounds it."""
        return int(trained_length / (self.factor or 1)) if self.repacks else None

    def longest(self, lengths: ModelLengths) -> float:
        """The most tokens that the kind is meant for; no end is infinite."""
        if self.repacks:
            return math.inf
        if self.factor is not None:
            return self.factor * lengths.unscaled
        return lengths.plain if lengths.plain < LONGEST else math.inf

    def reads(self, tokens: int, lengths: ModelLengths) -> bool:
        """Whether a text of so many tokens is within what the kind is meant for."""
        return tokens <= self.longest(lengths)


def parse_lengths(text: str) -> tuple[int, ...]:
    """`12k,16384` → (12288, 16384), rising; raises UsageError that names what is no length."""
    found = sorted({_length(part.strip()) for part in text.split(",") if part.strip()})
    if not found:
        raise UsageError(f"--tokens '{text}' names no length", hint="write --tokens 12k,16k")
    return tuple(found)


def parse_arms(
    text: str, *, longest: int, unscaled_length: int, budget: Budget, compress: bool = False
) -> tuple[RopeArm, ...]:
    """The arms that `text` names, in its order; `repack`, and with `compress` every kind, has the `budget`.

    A factor that is not named is the one from `unscaled_length` to the `longest` text.

    Raises UsageError for an unknown kind, a factor or budget that is none, and for kinds that are named twice.
    """
    if budget.kind in (FULL, "auto"):
        raise UsageError(f"--budget {budget} is no part of the cache", hint="use --budget 5%")
    arms = list(_arms(text, longest, unscaled_length, budget, compress=compress))
    if not arms:
        raise UsageError(f"--kinds '{text}' names nothing to compare", hint=f"write --kinds {DEFAULT_KINDS}")
    labels = [arm.label for arm in arms]
    for label in labels:
        if labels.count(label) > 1:
            raise UsageError(f"--kinds '{text}' names {label} twice", hint="leave one of them out")
    return tuple(arms)


def _arms(text: str, longest: int, unscaled_length: int, budget: Budget, *, compress: bool) -> Iterator[RopeArm]:
    for part in (part.strip() for part in text.split(",")):
        if not part:
            continue
        rope, _, own = part.partition("@")
        choice = parse_rope(rope, context=str(longest))
        if choice is None or choice.kind == "auto":
            message = f"kind '{part}' is none to be measured: it chooses one of the others"
            raise UsageError(message, hint=f"write --kinds {DEFAULT_KINDS}")
        packed = choice.kind in REPACKED
        kept = Budget.parse(own) if own else budget if compress or packed else FULL_BUDGET
        if packed and kept.kind == FULL:
            message = f"kind '{part}' keeps everything, and nothing can be packed"
            raise UsageError(message, hint=f"write {choice.kind}@5%")
        yield RopeArm(choice.kind, _factor(choice, longest, unscaled_length), kept)


def _factor(choice: RopeChoice, longest: int, unscaled_length: int) -> float | None:
    if choice.kind == PLAIN:
        return None
    if choice.kind in REPACKED:
        return choice.repack_factor
    return choice.factor or float(max(_SMALLEST_FACTOR, math.ceil(longest / unscaled_length)))


def unread(arms: Sequence[RopeArm], tokens: Sequence[int], lengths: ModelLengths) -> Iterator[str]:
    """What is left out because it lies beyond an arm's own reach, a sentence each."""
    for arm in arms:
        beyond = [f"{each:,}" for each in tokens if not arm.reads(each, lengths)]
        if beyond:
            reach = f"{arm.longest(lengths):,.0f}"
            yield f"{arm.label} reads up to {reach} tokens: not measured at {', '.join(beyond)}"


def _length(text: str) -> int:
    match = _LENGTH.fullmatch(text)
    if match is None:
        raise UsageError(f"'{text}' is no length in tokens", hint="write --tokens 16k or --tokens 16384")
    tokens = int(match[1]) * (1024 if match[2] else 1)
    if tokens < _SHORTEST:
        raise UsageError(f"{text} tokens are too few for a needle and its text", hint=f"use {_SHORTEST} or more")
    return tokens
