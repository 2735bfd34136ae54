"""What stated rates of errors came to, as pictures: the shipped risk curves on answers that were not calibrated on.

    python benchmarks/risk.py [--from docs/results] [--out docs/results]

Reads `risk_ordinary.jsonl.gz` and `risk.jsonl.gz`, the signs of answers that were judged (docs/results/risk.md), and
writes `risk-ordinary.png` and `risk-long.png`; the last line is JSON.
"""

import argparse
import gzip
import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from uncomp_cli.budget.presets import load_preset
from uncomp_cli.calibrate.reliability import CROSS_FITTED, Judged, RiskAnswer, cross_rates, fit_risk, judge
from uncomp_cli.config import DEFAULT_MODEL, DEFAULT_PRESET
from uncomp_cli.ui.figure import write
from uncomp_cli.ui.roc import make_reliability
from uncomp_cli.uncertainty.error_rates import RiskCurve

HELD_OUT = "held out"
VOCABULARY = 49_152
"""Tokens of the model that wrote the answers of `risk.jsonl.gz`."""


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines that is compressed."""
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def ordinary(lines: Iterable[dict[str, Any]], curve: RiskCurve) -> list[Judged]:
    """The calibration's half, cross-fitted, and what the shipped curve says of the other half."""
    halves: dict[str, list[RiskAnswer]] = {"fit": [], "test": []}
    for line in lines:
        if line["preset"] == DEFAULT_PRESET:
            halves[line["half"]].append(RiskAnswer(line["tokens"], line["wrong"], line["signs"], line["absent"]))
    return [fit_risk(halves["fit"], curve.heads).judged, judge(curve, halves["test"], name=HELD_OUT)]


def long(lines: Iterable[dict[str, Any]], curve: RiskCurve) -> list[Judged]:
    """The same past the trained length, where the weights of the two signs were not fitted."""
    texts: dict[str, list[RiskAnswer]] = {"generated": [], "plays": []}
    for line in lines:
        output = fmean(line["output_entropy_nats"]) / math.log(VOCABULARY)
        signs = {"attention": fmean(map(fmean, line["attention_entropy"])), "output": output}
        texts[line["text"]].append(RiskAnswer(line["tokens"], line["wrong"], signs))
    calibrated = judge(curve, texts["generated"], name=CROSS_FITTED)
    verdict = calibrated.wrong
    rates = cross_rates(np.array(verdict.values), np.array(verdict.holds))
    return [replace(calibrated, rates=rates), judge(curve, texts["plays"], name=HELD_OUT)]


def main() -> None:
    """Draw both pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", type=Path, dest="folder", default=Path("docs/results"), help="where the answers are")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="where the pictures go")
    asked = parser.parse_args()
    preset = load_preset(DEFAULT_PRESET)
    title = f"What stated rates of errors came to: {DEFAULT_MODEL}, preset {DEFAULT_PRESET}"
    judged = {
        "ordinary": ordinary(lines_of(asked.folder / "risk_ordinary.jsonl.gz"), preset.risk[0]),
        "long": long(lines_of(asked.folder / "risk.jsonl.gz"), preset.risk[1]),
    }
    lengths = {"ordinary": "at ordinary lengths", "long": "past the trained length"}
    drawn = [
        write(make_reliability(each, title=f"{title}, {lengths[name]}"), asked.out / f"risk-{name}.png")
        for name, each in judged.items()
    ]
    print(json.dumps({"pictures": [*map(str, drawn)]}))


if __name__ == "__main__":
    main()
