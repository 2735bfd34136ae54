"""Whether the words of an answer (sure, unsure, probably not in the document) hold for a preset: on tasks that were not
calibrated on.

    python benchmarks/words.py --data DIRECTORY [--preset balanced] [--thin NAME …] [--samples 40] --out FOLDER

The halves of the outside tasks that are there to report, and values planted in other prose than any calibration's; of
every second sample what it asks for is taken out. With several `--thin` each answers the same samples. A run that is
stopped goes on. Printed: AUROC of the shipped curve's signal with its interval, the words, and what was flagged; the
last line is JSON.
"""

import argparse
import json
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from uncomp_cli.asking.doubts import Risk
from uncomp_cli.asking.request import ModelChoice
from uncomp_cli.asking.startup import load
from uncomp_cli.budget.presets import Preset, load_preset
from uncomp_cli.calibrate.observation import ANSWERS, measure_risk, risk_file_settings, without_evidence
from uncomp_cli.engine.tokens.prompt import count_tokens
from uncomp_cli.evals.journal import Journal
from uncomp_cli.evals.tasks import choose_subtasks
from uncomp_cli.evals.tasks.haystack import Haystack
from uncomp_cli.evals.tasks.outside import outside_tasks
from uncomp_cli.evals.tasks.task import Request, Sample
from uncomp_cli.models.runnable import LoadedModel
from uncomp_cli.steps import finished
from uncomp_cli.uncertainty.error_rates import auroc, auroc_interval

TASKS = ("nq/test", "hotpot/test", "needle/values")
SEED = 20_261_129


def samples_of(loaded: LoadedModel, data: list[Path], count: int, tokens: int) -> list[Sample]:
    """`count` samples of every task; of every second one what is asked for is not in the text."""
    outside = outside_tasks(data)[0]
    haystack = Haystack.generated_for(tokens, seed=SEED)
    counted = partial(count_tokens, loaded.tokenizer)
    made = []
    for index in range(count):
        for task, subtask in choose_subtasks(TASKS, outside):
            sample = task.sample(Request(subtask, index, tokens, haystack, counted, SEED))
            sample = replace(sample, queries=sample.queries[:1])
            made.append(without_evidence(sample) if index % 2 else sample)
    return made


def measured(loaded: LoadedModel, preset: Preset, samples: list[Sample], out: Path) -> dict[str, Any]:
    """What the words of `preset` came to on the samples."""
    bare = replace(preset, risk=())
    with Journal.open(out, ANSWERS, risk_file_settings(loaded, bare)) as results:
        finished(measure_risk(loaded, bare, samples, results=results))
        lines = [line for sample in samples if (line := results.done[sample.sha256]).signs]
    risks = [
        Risk(line.signs, preset.risk[0], line.tokens, str(loaded.rope), preset.budget, preset.scorer.name)
        for line in lines
    ]
    said = Counter(
        (risk.word or "nothing", "absent" if line.absent else "wrong" if line.wrong else "right")
        for risk, line in zip(risks, lines, strict=True)
    )
    wrong = [line.wrong for line in lines]
    area = auroc([risk.signal or 0.0 for risk in risks], wrong)
    low, high = auroc_interval(area, wrong=sum(wrong), right=len(wrong) - sum(wrong))
    return {
        "thinning": preset.thinning,
        "answers": len(lines),
        "right": len(wrong) - sum(wrong),
        "auroc": [round(each, 3) for each in (area, low, high)],
        "said": {f"{word}, {what}": count for (word, what), count in sorted(said.items())},
    }


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--preset", default="balanced")
    parser.add_argument("--thin", action="append", help="repeatable; default: the preset's own")
    parser.add_argument("--samples", type=int, default=40, help="of each task")
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--out", type=Path, required=True)
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    loaded, preset = finished(load(ModelChoice())), load_preset(asked.preset)
    samples = samples_of(loaded, asked.data, asked.samples, asked.tokens)
    found = []
    for number, thinning in enumerate(asked.thin or [preset.thinning]):
        each = replace(preset, thinning=thinning)
        found.append(measured(loaded, each, samples, asked.out / f"{asked.preset}-{number}.jsonl"))
        print(found[-1])
    print(json.dumps(found))


if __name__ == "__main__":
    main()
