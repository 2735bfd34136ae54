"""What the tests of the risk flag share: a preset whose risk curve flags what is above a given entropy."""

from dataclasses import replace
from pathlib import Path

from uncomp_cli.budget.presets import load_preset, save_preset
from uncomp_cli.uncertainty.error_rates import Absence, RiskBin, RiskCurve

LOW, HIGH = 0.125, 0.625
"""Error rates below and above the band."""


def absent_below(share: float) -> Absence:
    """Two sentences of a text have less of the question where it has no answer."""
    return Absence({"together": -1.0}, -share, 0.75, 0.125, 32, (0, 8000))


def curve_up_to(top: float, *, tokens: tuple[int, ...] = (0, 8000), rope: str = "") -> RiskCurve:
    """A curve that flags entropies above `top`, on two heads of the tiny model."""
    bins = (RiskBin(0.0, top, LOW, 0.05, 0.25, 16), RiskBin(top, 9.0, HIGH, 0.4, 0.8, 16))
    heads = ((1, 0), (2, 1))
    return RiskCurve({"attention": 1.0}, heads, (0.0, top), bins, 0.9, 0.8, 0.95, 32, tokens, rope)


def seen(attention: float) -> dict[str, float]:
    """The signs of an answer whose heads had this entropy."""
    return {"attention": attention}


def risky(
    folder: Path,
    top: float,
    *,
    budget: str = "10%",
    rope: str = "",
    tokens: tuple[int, ...] = (0, 8000),
    absent: float | None = None,
) -> str:
    """The path of a preset with that curve, written into `folder`."""
    name = f"risky-{round(top * 1e6)}"
    live = load_preset("live")
    preset = replace(live, name=name, budget=budget, policy="uniform", thinning="none", floor_tokens=0)
    curve, told = curve_up_to(top, rope=rope, tokens=tokens), None if absent is None else absent_below(absent)
    return str(save_preset(replace(preset, risk=(curve,), absent=told), folder))
