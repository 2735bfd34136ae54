"""What reading in bfloat16 costs: the same samples read in float32 and in bfloat16, and the paired differences.

    python benchmarks/rounding.py MODEL --preset balanced --data DIRECTORY --out rows.jsonl
    python benchmarks/rounding.py --show --out rows.jsonl

Needle and RULER's needles of 1,800 tokens between paragraphs of the pages that L-Eval's questions are about, and
questions of `nq/test` of 2,000 (evals/tasks/outside.py); DIRECTORY has the files of both. Along a right answer's first
24 tokens: KL(float32 || bfloat16), the difference of NLL, and whether the argmax is the answer. Means with paired
bootstrap intervals of 95 %. A run that was stopped goes on where it was.
"""

import argparse
import gzip
import json
import random
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from uncomp_cli.budget.presets import load_preset
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.tokens.prompt import count_tokens
from uncomp_cli.evals.judges.case import tokenise
from uncomp_cli.evals.judges.predictions import compare_logits
from uncomp_cli.evals.tasks import TASKS, Task
from uncomp_cli.evals.tasks.haystack import Haystack
from uncomp_cli.evals.tasks.outside import outside_tasks
from uncomp_cli.evals.tasks.ruler import VARIANTS
from uncomp_cli.evals.tasks.task import Request, Sample
from uncomp_cli.models.loading import load_model

ANSWER_TOKENS = 24
TYPES = ("float32", "bfloat16")


def samples(tokenizer: Any, data: Path, count: int) -> Iterator[Sample]:
    """`count` samples of each task, in turn."""
    with gzip.open(data / "leval-natural_question.jsonl.gz", "rt") as lines:
        pages = sorted({json.loads(line)["input"] for line in lines})
    found = ("\n\n".join(re.findall(r"<P>(.*?)</P>", page, re.S)) for page in pages)
    haystack = Haystack.of_texts("pages", [re.sub(r"<[^>]*>", " ", text) for text in found])
    outside = next(task for task in outside_tasks([data])[0] if task.name == "nq")
    kinds: list[tuple[Task, tuple[str, ...], int]] = [
        (TASKS["needle"], TASKS["needle"].subtasks, 1800),
        (TASKS["ruler"], tuple(VARIANTS), 1800),
        (outside, ("nq/test",), 2000),
    ]
    for index in range(count):
        for task, subtasks, tokens in kinds:
            subtask, number = subtasks[index % len(subtasks)], index // len(subtasks)
            yield task.sample(Request(subtask, number, tokens, haystack, partial(count_tokens, tokenizer), 5))


def judge(engines: dict[str, Engine], sample: Sample, preset: str) -> dict[str, float]:
    """The metrics of one sample in both types."""
    prompt, answers = tokenise(engines["float32"].loaded.tokenizer, sample)
    answer, prompt = answers[0][:ANSWER_TOKENS], replace(prompt, questions=prompt.questions[:1])
    logits = {}
    for name, engine in engines.items():
        reading = engine.read(prompt, load_preset(preset), for_any=preset == "unseen")
        logits[name] = reading.finish().predict(answer).float()
    ids = torch.tensor(answer)
    nll = {f"nll_{name}": float(torch.nn.functional.cross_entropy(each, ids)) for name, each in logits.items()}
    right = {f"found_{name}": float((each.argmax(dim=-1) == ids).all()) for name, each in logits.items()}
    return {**compare_logits(logits["float32"], logits["bfloat16"]), **nll, **right}


def interval(values: list[float]) -> str:
    """The mean, with its bootstrap interval of 95 %."""
    chance = random.Random(0)
    means = sorted(mean(chance.choices(values, k=len(values))) for _ in range(4000))
    return f"{mean(values):.4f} [{means[100]:.4f}, {means[-101]:.4f}]"


def show(rows: list[dict[str, Any]]) -> None:
    """A line a preset and task."""
    for preset, task in dict.fromkeys((row["preset"], row["subtask"].partition("/")[0]) for row in rows):
        some = [row for row in rows if row["preset"] == preset and row["subtask"].startswith(task)]
        lost = {
            what: interval([row[f"{what}_bfloat16"] - row[f"{what}_float32"] for row in some])
            for what in ("found", "nll")
        }
        print(preset, task, len(some), "KL", interval([row["kl"] for row in some]), "found, NLL", *lost.values())


def main() -> None:
    """Judge what is not in the file yet, and print what it has."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?")
    parser.add_argument("--preset", default="balanced")
    parser.add_argument("--samples", type=int, default=36)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--show", action="store_true")
    given = parser.parse_args()
    rows = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    if not given.show:
        engines = {name: Engine(load_model(given.model, device="cpu"), matmul=name) for name in TYPES}
        done = {(row["preset"], row["subtask"], row["index"]) for row in rows}
        for sample in samples(engines["float32"].loaded.tokenizer, given.data, given.samples):
            key = {"preset": given.preset, "subtask": sample.subtask, "index": sample.index}
            if tuple(key.values()) not in done:
                rows.append(key | judge(engines, sample, given.preset))
                with given.out.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
    show(rows)


if __name__ == "__main__":
    main()
