"""What stated rates of errors came to, as pictures: the shipped risk curves on answers that were not calibrated on.

    python benchmarks/risk.py [--from docs/results] [--out docs/results] [--fit FOLDER]

Reads `risk_ordinary.jsonl.gz`, `risk_words.jsonl.gz` and `risk.jsonl.gz`, the signs of answers that were judged and
of questions (docs/results/risk.md), and writes `risk-ordinary.png` and `risk-long.png`; the last line is JSON. With
`--fit` what tells that a text does not answer a question is fitted anew, and the shipped presets, which all have it,
are written into a folder (`presets`).
"""

import argparse
import gzip
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from uncomp_cli.budget.presets import Preset, load_preset, save_preset, shipped_preset_dir
from uncomp_cli.calibrate.reliability import (
    CROSS_FITTED,
    Judged,
    RiskAnswer,
    Verdict,
    cross_rates,
    fit_absence,
    fit_risk,
    hardest,
)
from uncomp_cli.config import DEFAULT_MODEL, DEFAULT_PRESET
from uncomp_cli.ui.figure import write
from uncomp_cli.ui.roc import make_reliability
from uncomp_cli.uncertainty.error_rates import RiskCurve, weighed

HELD_OUT = "held out"
ASIDE = WHOLE, TALK = "whole", "talk"
"""Sources of what asks for no fact."""
SPAN = (150, 30_000)
"""Tokens of texts that hold what is said of absent answers: shorter and longer ones were asked of too (risk.md)."""
VOCABULARY = 49_152
"""Tokens of the model that wrote the answers of `risk.jsonl.gz`."""


def lines_of(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines that is compressed."""
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def questions(lines: Iterable[dict[str, Any]], half: str) -> list[RiskAnswer]:
    """The questions for a fact of one half that were looked at without their answers."""
    found = (line for line in lines if line["half"] == half and not line["preset"] and line["source"] not in ASIDE)
    return [RiskAnswer(line["tokens"], False, line["signs"], line["absent"], line["source"]) for line in found]


def judge(curve: RiskCurve, answers: Sequence[RiskAnswer], *, name: str) -> Judged:
    """What the curve says of answers that it was not fitted to."""
    values = signals(curve.weights, answers)
    rates = tuple(curve.bin_of(value).error_rate for value in values)
    wrong = tuple(answer.wrong for answer in answers)
    return Judged(name, rates, Verdict(values, wrong, curve.band[1]), None)


def signals(weights: Mapping[str, float], answers: Iterable[RiskAnswer]) -> tuple[float, ...]:
    """The weighted sum of every answer's signs."""
    return tuple(weighed(weights, answer.signs) or 0.0 for answer in answers)


def ordinary(calibrated: Iterable[dict[str, Any]], lines: Sequence[dict[str, Any]], preset: Preset) -> list[Judged]:
    """The calibration's answers and questions, cross-fitted, and what the shipped preset says of others."""
    fitted = [
        RiskAnswer(line["tokens"], line["wrong"], line["signs"], line["absent"])
        for line in calibrated
        if line["preset"] == DEFAULT_PRESET and line["half"] == "fit"
    ]
    held_out = [
        RiskAnswer(line["tokens"], line["wrong"], line["signs"], line["absent"])
        for line in lines
        if line["preset"] == DEFAULT_PRESET and line["half"] == "test" and line["source"] not in ASIDE
    ]
    asked, absent, curve = questions(lines, "test"), preset.absent, preset.risk[0]
    if absent is None:
        raise ValueError("the preset says nothing of what is not in the document")
    told = Verdict(signals(absent.weights, asked), tuple(one.absent for one in asked), absent.limit)
    _, cross_fitted = fit_absence(questions(lines, "fit"))
    return [
        replace(fit_risk(fitted, curve.heads).judged, absent=cross_fitted),
        replace(judge(curve, held_out, name=HELD_OUT), absent=told),
    ]


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
    parser.add_argument("--fit", type=Path, help="where the presets go, fitted anew")
    asked = parser.parse_args()
    preset, words = load_preset(DEFAULT_PRESET), lines_of(asked.folder / "risk_words.jsonl.gz")
    if asked.fit is not None:
        absent, _ = fit_absence(questions(words, "fit"))
        if absent is None:
            raise ValueError("too few questions lack an answer")
        test = questions(words, "test")
        above = np.array([absent.tells(each.signs, absent.tokens[0]) for each in test])
        caught, alarms, samples = hardest(test, above)  # what is said are rates of questions that it was not fitted to
        held_out = replace(absent, caught=caught, alarms=alarms, samples=samples, tokens=SPAN)
        preset = replace(preset, absent=held_out)
        for path in shipped_preset_dir().glob("*.json"):
            save_preset(replace(load_preset(str(path)), absent=held_out), asked.fit)
    title = f"What stated rates of errors came to: {DEFAULT_MODEL}, preset {DEFAULT_PRESET}"
    judged = {
        "ordinary": ordinary(lines_of(asked.folder / "risk_ordinary.jsonl.gz"), words, preset),
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
