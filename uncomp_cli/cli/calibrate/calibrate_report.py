"""What `uncomp calibrate` tells at its end: the profile, and what was measured with the preset that was made of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uncomp_cli.cli.calibrate.calibrate_risk import risk_record, write_risk
from uncomp_cli.cli.calibrate.quality import quality_record, write_curve
from uncomp_cli.ui.console import Terminal

if TYPE_CHECKING:
    from uncomp_cli.calibrate.risk_fit import RiskFit
    from uncomp_cli.evals.judges.budget_curve import QualityCurve
    from uncomp_cli.uncertainty.profile import UncertaintyProfile

__all__ = ["Calibrated", "report"]


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What one command has measured; the preset is in `path`."""

    profile: "UncertaintyProfile"
    path: Path
    quality: "QualityCurve | None" = None
    risk: "RiskFit | None" = None


def report(found: Calibrated, terminal: Terminal, *, as_json: bool) -> None:
    """Write all of it, as tables or as one JSON object."""
    if as_json:
        terminal.write_json(_record(found))
    else:
        _write_tables(found, terminal)
    terminal.note(f"preset {found.path.stem}: {found.path}")


def _record(found: Calibrated) -> dict[str, Any]:
    from uncomp_cli.calibrate.findings import profile_record

    places = {"preset": str(found.path), "profile": str(found.path.with_suffix(".safetensors"))}
    quality = {} if found.quality is None else quality_record(found.quality)
    risk = {} if found.risk is None else risk_record(found.risk)
    return {"schema_version": 1, **places, **profile_record(found.profile), **quality, **risk}


def _write_tables(found: Calibrated, terminal: Terminal) -> None:
    from uncomp_cli.calibrate.findings import profile_rows

    terminal.write_table(*profile_rows(found.profile))
    terminal.note(
        "spread: over samples, of the mean; then the share of pairs in the same order, heads / layers (0.50 is "
        "chance): from text to text, from length to length, and as the last column's measure orders them"
    )
    if found.quality is not None:
        write_curve(found.quality, terminal)
    if found.risk is not None:
        write_risk(found.risk, terminal)
