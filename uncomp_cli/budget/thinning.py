"""Thinning: which share of the context's tokens enters each layer of a prefill (UNComp, arXiv 2410.03090, 3.3).

    none        all tokens enter all layers
    gather      the first `after` layers see all, the others the share `keep`
    stages      the paper: from the second stage of layers on (uncomp.py), on a line from 1 down to `last`
    uncertain   ours: one border, where a head of the model knows what is asked for, and behind it as few tokens as it
                is sure of

`uncertain` has its border at the first layer whose calibrated loss reaches `share` of the largest; with no profile, at
the first from L // 5 on in which a head is certain, and at the latest at L // 2; but never before `earliest` of all
layers: what stands in two places, and a value beside its key, are found later than one fact (docs/log.md). Certain is
a question row of a normalised attention entropy of `certain` at most. Behind the border `least` enters when the lowest
entropy from L // 5 to where the border was found is that low, `most` when it is `unsure` or more, on a line between.
Layers up to the border see all.

What the engine keeps whatever the share (template, sinks, question, observation window) is not counted here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import ceil
from typing import ClassVar, Protocol

from uncomp_cli.budget.notation import PolicyText, make_named
from uncomp_cli.budget.uncomp import layer_stages, relative_threshold
from uncomp_cli.budget.values import Uncertainty, is_complete, kv_rows
from uncomp_cli.errors import UsageError, require
from uncomp_cli.spec import ModelSpec

_LOSS = "loss"
_ENTROPY = "entropy/q/r1/4"
_SHARE_HINT = "use a share of the context's tokens, above 0 and up to 1"


class Thinning(Protocol):
    """A schedule of shares; a frozen dataclass that derives from PolicyText."""

    name: ClassVar[str]

    @property
    def text(self) -> str:
        """What `make_thinning` reads: name and settings."""

    @property
    def measures(self) -> tuple[str, ...]:
        """Keys of a profile's measures it can use, the preferred first; () when none is."""

    @property
    def watches(self) -> bool:
        """Whether it goes by the lowest attention entropy of every layer, measured while the prompt is read."""

    def schedule(
        self, spec: ModelSpec, *, uncertainty: Uncertainty | None, certainty: Sequence[float] = ()
    ) -> tuple[float, ...]:
        """The share [L] of the context's tokens that enters each layer: 1.0 first, never rising.

        `certainty[l]` is the lowest normalised attention entropy of a question row in layer l, of the layers read so
        far. Shares up to that of layer len(certainty) are final; later ones may fall until their layers are reached.
        """
        ...


@dataclass(frozen=True, slots=True)
class _Unwatched(PolicyText):
    """A schedule that is known before the prompt is read."""

    measures: ClassVar[tuple[str, ...]] = ()
    watches: ClassVar[bool] = False


@dataclass(frozen=True, slots=True)
class NoThinning(_Unwatched):
    """Every layer sees every token."""

    name: ClassVar[str] = "none"

    def schedule(
        self, spec: ModelSpec, *, uncertainty: Uncertainty | None, certainty: Sequence[float] = ()
    ) -> tuple[float, ...]:
        """All ones."""
        return (1.0,) * spec.num_layers


@dataclass(frozen=True, slots=True)
class GatherThinning(_Unwatched):
    """One border: the first `after` layers see all, the others the share `keep`."""

    name: ClassVar[str] = "gather"
    after: int = 8
    keep: float = 0.2

    def __post_init__(self) -> None:
        require(self.after >= 1, f"gather after is {self.after}", hint="the first layer sees all: use 1 or more")
        require(0 < self.keep <= 1, f"gather keep is {self.keep}", hint=_SHARE_HINT)

    def schedule(
        self, spec: ModelSpec, *, uncertainty: Uncertainty | None, certainty: Sequence[float] = ()
    ) -> tuple[float, ...]:
        """Ones, then `keep`; a model of no more layers than `after` is not thinned."""
        return _bordered(spec, self.after, self.keep)


@dataclass(frozen=True, slots=True)
class StagesThinning(_Unwatched):
    """The paper's: by the stages of the calibrated entropy; `threshold` None is a tenth of the sums' spread."""

    name: ClassVar[str] = "stages"
    measures: ClassVar[tuple[str, ...]] = (_ENTROPY,)
    last: float = 0.2
    threshold: float | None = None

    def __post_init__(self) -> None:
        require(0 < self.last <= 1, f"stages last is {self.last}", hint=_SHARE_HINT)
        falls = self.threshold is None or self.threshold >= 0
        require(falls, f"stages threshold is {self.threshold}", hint="use 0 or more: a fall of the entropy")

    def schedule(
        self, spec: ModelSpec, *, uncertainty: Uncertainty | None, certainty: Sequence[float] = ()
    ) -> tuple[float, ...]:
        """1 in the first stage, `last` in the last; sliding layers go with the layer before them.

        Raises UsageError without a profile's entropy, ModelError for values of another measure or shape.
        """
        if uncertainty is None or not is_complete(uncertainty, spec):
            raise UsageError(
                f"thinning {self.name} needs {_ENTROPY}, measured by calibration",
                hint="use the --preset that uncomp calibrate saves, or --thin uncertain",
            )
        kv_rows(uncertainty, spec, measures=self.measures)  # raises for values of another shape
        sums = [sum(uncertainty.values[layer]) for layer in spec.full_layers]
        threshold = relative_threshold(sums) if self.threshold is None else self.threshold
        stages = layer_stages(sums, threshold=threshold)
        step = (1 - self.last) / max(1, len(stages) - 1)
        of_full = iter([1 - step * order for order, stage in enumerate(stages) for _ in stage])
        shares = [next(of_full) if window is None else 1.0 for window in spec.sliding_windows]
        return tuple(accumulate(shares, min))


@dataclass(frozen=True, slots=True)
class UncertainThinning(PolicyText):
    """One border, by what an answer loses by a layer's heads, or found live; the share behind it goes by the prompt."""

    name: ClassVar[str] = "uncertain"
    measures: ClassVar[tuple[str, ...]] = (_LOSS,)
    watches: ClassVar[bool] = True
    least: float = 0.5
    most: float = 0.7
    certain: float = 0.03
    unsure: float = 0.1
    share: float = 0.25
    earliest: float = 0.4

    def __post_init__(self) -> None:
        ordered = 0 < self.least <= self.most <= 1
        message = f"uncertain least is {self.least}, most is {self.most}"
        require(ordered, message, hint="use 0 < least <= most <= 1, shares of the context's tokens")
        message = f"uncertain certain is {self.certain}, unsure is {self.unsure}"
        rising = 0 <= self.certain < self.unsure <= 1
        require(rising, message, hint="use 0 <= certain < unsure <= 1, normalised entropies")
        require(0 < self.share <= 1, f"uncertain share is {self.share}", hint="use a share of the largest loss, to 1")
        late = 0 <= self.earliest < 1
        require(late, f"uncertain earliest is {self.earliest}", hint="use a share of the layers, from 0 to below 1")

    def schedule(
        self, spec: ModelSpec, *, uncertainty: Uncertainty | None, certainty: Sequence[float] = ()
    ) -> tuple[float, ...]:
        """Ones up to the border, then one share; as long as more may be learnt, the most that it can be.

        Raises ModelError for values of another measure or shape.
        """
        found = self._found(spec, certainty) if uncertainty is None else self._measured(spec, uncertainty)
        border = max(found, ceil(self.earliest * spec.num_layers) - 1)
        seen = certainty[_first(spec) : found + 1]  # the first layers look at positions, and can be sure of them
        return _bordered(spec, border + 1, self._share_at(min(seen, default=1.0)))

    def _measured(self, spec: ModelSpec, uncertainty: Uncertainty) -> int:
        """The first layer whose mean loss reaches `share` of the largest, but not the very first."""
        rows = kv_rows(uncertainty, spec, measures=self.measures)
        losses = [0.0 if row is None else sum(row) / len(row) for row in rows]
        enough = self.share * max(losses)
        return max(1, next((layer for layer, loss in enumerate(losses) if loss >= enough), 0))

    def _found(self, spec: ModelSpec, certainty: Sequence[float]) -> int:
        """The first layer in which a head is certain; the latest that it can be, when none is so far."""
        latest = max(1, spec.num_layers // 2)
        return next((layer for layer in range(_first(spec), latest) if _at(certainty, layer) <= self.certain), latest)

    def _share_at(self, entropy: float) -> float:
        rise = (entropy - self.certain) / (self.unsure - self.certain)
        return self.least + (self.most - self.least) * min(1.0, max(0.0, rise))


def _first(spec: ModelSpec) -> int:
    """The first layer whose certainty counts."""
    return max(1, spec.num_layers // 5)


def _at(certainty: Sequence[float], layer: int) -> float:
    """A layer's entropy; of one that was not read yet, the largest."""
    return certainty[layer] if layer < len(certainty) else 1.0


def _bordered(spec: ModelSpec, after: int, keep: float) -> tuple[float, ...]:
    return tuple(1.0 if layer < after else keep for layer in range(spec.num_layers))


THINNINGS: dict[str, type[Thinning]] = {
    "none": NoThinning,
    "gather": GatherThinning,
    "stages": StagesThinning,
    "uncertain": UncertainThinning,
}


def make_thinning(text: str) -> Thinning:
    """The thinning that `text` names, `NAME[:key=value[,key=value...]]`; raises UsageError with the nearest names."""
    made: Thinning = make_named(text, THINNINGS, what="thinning")
    return made
