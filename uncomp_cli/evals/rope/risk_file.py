"""The answers of a risk calibration, one a line of a journal, so that a command that was stopped goes on.

The settings say what all share: model, preset, RoPE and dtype. Which sample a line is of is told by a digest.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from uncomp_cli.calibrate.risk_fit import RiskAnswer
from uncomp_cli.evals.journal import Kind

__all__ = ["ANSWERS", "RiskLine"]


@dataclass(frozen=True, slots=True)
class RiskLine:
    """The answer to the sample of this digest; `entropy` [T][K] of its tokens in every head is empty for one token."""

    sha256: str
    subtask: str
    tokens: int
    depth: float | None
    wrong: bool
    text: str
    output_entropy: float
    entropy: list[list[float]]

    def answer(self) -> RiskAnswer:
        """What a curve is fitted to."""
        return RiskAnswer(self.tokens, self.wrong, np.array(self.entropy), self.output_entropy)


def _flat_header(header: dict[str, Any]) -> dict[str, Any] | None:
    """A header whose settings stand beside its version, as they did until version 0.1."""
    if header.get("measured") != "risk":
        return None
    settings = {key: value for key, value in header.items() if key not in ("schema_version", "measured")}
    return {"schema_version": header.get("schema_version"), "kind": ANSWERS.program, "settings": settings}


ANSWERS = Kind(
    program="uncomp calibrate --risk",
    make=lambda record: RiskLine(**record),
    plain=asdict,
    key=lambda line: line.sha256,
    place=lambda line: f"the answer to {line.subtask} at {line.tokens:,} tokens",
    older=_flat_header,
)
