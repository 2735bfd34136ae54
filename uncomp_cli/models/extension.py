"""Texts longer than trained: what `--rope`, `--context` and `--force` say. F is a factor, L the trained length.

    linear    positions / F (position interpolation, Chen et al., arXiv 2306.15595)
    ntk       base θ·F^(D/(D−2)), D rotary dimensions (NTK-aware, section 3.1 of YaRN)
    dynamic   that base for the length T read, (F·T/L − F + 1) in place of F; as trained up to L
    yarn      fast dimensions as trained, slow ones / F, softmax sharpened by 0.1·ln F + 1 (Peng et al., 2309.00071)
    llama3    the same cut by wavelength, between L and L/4, softmax as trained (Llama 3.1)
    longrope  past L dimension i / F^(2i/(D−2)), softmax sharpened by √(1 + ln F / ln L) (Ding et al., 2402.13753, whose
              divisors are searched for each model; where a model ships none, NTK's stand in for them)
    plain     read on as trained
    repack    as trained; what is kept moves so close that no distance is longer than L / F, F = 4 unless it is given
    reread    repack, and then the passages that matter once more, L / 8 tokens a question, as a text of their own
    auto      as trained where a text fits, else reread, else yarn

What a choice changes in a model's configuration is rotary.py's.
"""

import difflib
import re
from dataclasses import dataclass

from uncomp_cli.errors import UsageError
from uncomp_cli.numerals import parse_count

ROPE_KINDS = ("linear", "ntk", "dynamic", "yarn", "llama3", "longrope")
"""Kinds that change frequencies, by a factor."""
REPACKED = ("repack", "reread")
"""Kinds that move what is kept together, and leave frequencies as they are."""
_UNSCALED = ("plain", *REPACKED, "auto")
LARGEST_FACTOR = 1024
_REPACK_FACTOR = 4.0
_REREAD_SHARE = 8
LONGEST = 1_048_576
"""Tokens that may be read where no factor bounds them."""
_HINT = "write linear:2, ntk:4 or yarn:4: the kind, and how many times the trained length"
_FACTOR = re.compile(r"\d+(?:\.\d+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class RopeChoice:
    """What the user asked for: a kind of ROPE_KINDS or REPACKED, plain or auto; a factor, a context in tokens, both.

    `only_past` leaves texts that fit as they are: what `auto` took for the longest one is not for all.
    """

    kind: str
    factor: float | None = None
    context: int | None = None
    only_past: bool = False

    def __post_init__(self) -> None:
        if self.kind not in (*ROPE_KINDS, *_UNSCALED):
            raise _unknown(self.kind, "" if self.factor is None else f":{self.factor:g}")
        if self.factor is not None:
            self._check_factor(self.factor)
        elif self.kind in ROPE_KINDS and self.context is None:
            hint = f"write {self.kind}:2, or add --context 32k"
            raise UsageError(f"rope extension '{self.kind}' needs a factor above 1", hint=hint)

    def __str__(self) -> str:
        return self.kind if self.factor is None else f"{self.kind}:{self.factor:g}"

    @property
    def repack_factor(self) -> float:
        """By how much re-packed distances stay below the trained length."""
        return self.factor or _REPACK_FACTOR

    def length(self, trained_length: int) -> int:
        """Tokens that may be read by the factor."""
        return round(trained_length * (self.factor or 1.0))

    def extension(self, trained_length: int) -> "RopeChoice | None":
        """By which kind and factor frequencies change; None when they do not, or the context fits as it was trained.

        Raises UsageError when the factor and the context contradict each other.
        """
        if self.kind not in ROPE_KINDS:
            return None
        if self.factor is not None:
            self._check_context(trained_length)
            return RopeChoice(self.kind, self.factor)
        factor = (self.context or trained_length) / trained_length
        if factor > LARGEST_FACTOR:
            past = f"--context {self.context:,} is more than {LARGEST_FACTOR:,} times the {trained_length:,} tokens"
            hint = f"use --context {LARGEST_FACTOR * trained_length} or less"
            raise UsageError(f"{past} that --rope {self.kind} starts from", hint=hint)
        return RopeChoice(self.kind, factor) if factor > 1 else None

    def _check_factor(self, factor: float) -> None:
        if self.kind in ("plain", "auto"):
            raise _takes_none(self.kind)
        if self.kind in ROPE_KINDS and not 1 < factor <= LARGEST_FACTOR:
            raise UsageError(f"rope factor {factor:g} is not above 1 and up to {LARGEST_FACTOR}", hint=_HINT)
        if self.kind in REPACKED and not 1 <= factor <= LARGEST_FACTOR:
            message = f"rope factor {factor:g} is not between 1 and {LARGEST_FACTOR}"
            raise UsageError(message, hint=f"write {self.kind}, or {self.kind}:2: half of the trained length")

    def _check_context(self, trained_length: int) -> None:
        if self.context is None or trained_length < self.context <= self.length(trained_length):
            return
        holds = f"--rope {self} makes {trained_length:,} tokens {self.length(trained_length):,}"
        hint = f"leave one of the two out: --rope {self.kind} --context N takes the factor that N needs"
        raise UsageError(f"{holds}, not the {self.context:,} of --context", hint=hint)


@dataclass(frozen=True, slots=True)
class RopeState:
    """How a loaded model is turned: `trained`, plain, a kind of ROPE_KINDS or REPACKED, or auto until a text is known.

    `replaced` is the scaling that the model came with, such as llama3:8, when it was taken out for this one. `reach` is
    the longest distance in tokens that re-packed text is read at; None when it is not re-packed. `reread_tokens` are
    those of the passages that are read again for a question; None when none are. With `only_past` texts that fit into
    the trained length are read as trained.
    """

    kind: str = "trained"
    factor: float = 1.0
    replaced: str | None = None
    reach: int | None = None
    reread_tokens: int | None = None
    only_past: bool = False

    @classmethod
    def repacked(cls, choice: RopeChoice, trained_length: int) -> "RopeState":
        """That of a choice of REPACKED for a model trained for `trained_length` tokens."""
        again = trained_length // _REREAD_SHARE if choice.kind == "reread" else None
        reach = max(1, int(trained_length / choice.repack_factor))
        return cls(choice.kind, choice.repack_factor, reach=reach, reread_tokens=again, only_past=choice.only_past)

    def __str__(self) -> str:
        scaled = self.kind in ROPE_KINDS or (self.repacks and self.factor != _REPACK_FACTOR)
        return f"{self.kind}:{self.factor:g}" if scaled else self.kind

    @property
    def repacks(self) -> bool:
        """Whether what is kept is moved into the trained length."""
        return self.kind in REPACKED


def parse_rope(rope: str | None, *, context: str | None = None, force: bool = False) -> RopeChoice | None:
    """What the three options say together; None when none was given. Raises UsageError that names what is wrong."""
    tokens = None if context is None else _parse_context(context)
    if force and rope is not None and rope.strip().lower() != "plain":
        message = f"--force reads on as the model was trained, --rope {rope} does not"
        raise UsageError(message, hint="leave one of the two out")
    if force:
        return RopeChoice("plain", None, tokens)
    if rope is not None:
        return _parse_choice(rope, tokens)
    return None if tokens is None else RopeChoice("auto", None, tokens)


def _parse_choice(text: str, context: int | None) -> RopeChoice:
    kind, colon, number = (part.strip() for part in text.lower().partition(":"))
    if colon and not _FACTOR.fullmatch(number):
        raise _no_factor(kind, text)
    return RopeChoice(kind, float(number) if colon else None, context)


def _parse_context(text: str) -> int:
    """Tokens: `32k` is 32 · 1024, a plain number is taken as it is."""
    tokens = parse_count(text)
    if not tokens:
        raise UsageError(f"context '{text}' is not a length in tokens", hint="write --context 32k, or 32768")
    return tokens


def _no_factor(kind: str, text: str) -> UsageError:
    """What is wrong with `text`, behind whose colon there is no number."""
    if kind in ROPE_KINDS:
        return UsageError(f"rope extension '{text}' needs a factor above 1", hint=f"did you mean '{kind}:2'?")
    if kind in REPACKED:
        return UsageError(f"rope '{text}' needs a factor of 1 or more", hint=f"write {kind}, or {kind}:2")
    return _takes_none(kind) if kind in _UNSCALED else _unknown(kind, "")


def _takes_none(kind: str) -> UsageError:
    return UsageError(f"rope '{kind}' takes no factor", hint=f"write {kind}, and --context 32k")


def _unknown(kind: str, factor: str) -> UsageError:
    near = difflib.get_close_matches(kind, (*ROPE_KINDS, *_UNSCALED), n=1)
    shown = "" if near and near[0] in _UNSCALED else factor or ":2"
    known = f"{_HINT}; or {', '.join(_UNSCALED)}"
    hint = f"did you mean '{near[0]}{shown}'?" if near else known
    return UsageError(f"unknown rope extension '{kind}'", hint=hint)
