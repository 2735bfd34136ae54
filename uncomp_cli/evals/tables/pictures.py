"""The data of the pictures, without their look: what ui/plots.py draws and the JSON report carries."""

from dataclasses import dataclass

__all__ = ["CoverageMap", "Curve", "CurvePoint", "NeedleGrid"]


@dataclass(frozen=True, slots=True)
class NeedleGrid:
    """One setting's needle scores: rows are depths, columns lengths; None where nothing was measured."""

    title: str
    kept_fraction: float
    depths: tuple[float, ...]
    lengths: tuple[int, ...]
    scores: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Mean quality at the bytes that were kept, with its 95 % interval."""

    kept_fraction: float
    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Curve:
    """One contestant over its budgets, by rising kept fraction; a single point is drawn as a marker alone."""

    label: str
    points: tuple[CurvePoint, ...]


@dataclass(frozen=True, slots=True)
class CoverageMap:
    """Share of the evidence that one setting kept, [L][G], 0 to 1."""

    title: str
    kept_fraction: float
    shares: tuple[tuple[float, ...], ...]
