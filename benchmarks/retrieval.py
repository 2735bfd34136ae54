"""Is what was planted still found? Two tasks on the default model, by the engine's own path.

(a) one 7-digit code in about 2,000 tokens of licence text, asked in the chat format, greedy, exact match;
(b) four look-alike facts in about 1,800 tokens, the question last in completion form, likelihood of the right answer
    (mean over all its tokens, the leading space included) and exact match by argmax.

    python benchmarks/retrieval.py [--docs N] [--out DIR] [--only a|b]

(a) runs one session a setting, the path of `uncomp ask`. In (b) each document is read once and every setting evicts
from that (replay.py); on the first document the likelihood is compared with that of a prefill of its own. Results go
to DIR/retrieval.md and DIR/retrieval.json.
"""

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from haystack import four_facts, read_source, single_fact
from replay import Recording, evict, forced_nll, read_alone, record, session_answer
from tally import markdown_table, summarise

from uncomp_cli import __version__
from uncomp_cli.bench.report import cpu_name
from uncomp_cli.budget.presets import Preset
from uncomp_cli.config import DEFAULT_MODEL, ScorerConfig
from uncomp_cli.engine.model import Decoder
from uncomp_cli.engine.prefill import Prefilled
from uncomp_cli.engine.prompt import chat_prompt, completion_prompt
from uncomp_cli.errors import DoesNotFitError
from uncomp_cli.models.catalog import ensure_local
from uncomp_cli.models.load import LoadedModel, load_model

BUDGETS = ("full", "20%", "10%", "5%", "2.5%")
POLICIES = ("uniform", "sinks", "random")
INCOHERENT = "uniform, single tokens"
CHECKED = (("uniform", "20%"), ("sinks", "5%"), (INCOHERENT, "10%"))
SINGLE_TOKENS, FOUR_TOKENS = 2000, 1800

Result = dict[str, Any]
Table = dict[str, dict[str, Result]]


@dataclass(frozen=True)
class Bench:
    """The model and the text."""

    loaded: LoadedModel
    decoder: Decoder
    paragraphs: list[str]


def preset(budget: str, column: str) -> Preset:
    """The setting in a column of the table."""
    scorer = ScorerConfig(pooling="none", whole_words=False) if column == INCOHERENT else ScorerConfig()
    return Preset(f"{column} {budget}", "", budget, "uniform" if column == INCOHERENT else column, scorer)


def settings(columns: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """(column, budget) of every setting; with nothing evicted all columns are one."""
    yield columns[0], "full"
    for column in columns:
        yield from ((column, budget) for budget in BUDGETS if budget != "full")


def judge(bench: Bench, recording: Recording, setting: Preset, judged: Callable[[Prefilled], Result]) -> Result:
    """One setting on one document."""
    try:
        read = evict(bench.decoder, recording, setting)
    except DoesNotFitError as refusal:
        return {"refused": refusal.message}
    full_bytes = bench.loaded.spec.full_kv_bytes(recording.prompt.seq_len)
    return {"kept_fraction": read.cache.nbytes / full_bytes, **judged(read)}


def ask_single(bench: Bench, number: int, columns: tuple[str, ...]) -> Iterator[tuple[str, str, Result]]:
    """Task (a) on document `number`: a session a setting."""
    fact = single_fact(bench.paragraphs, number, tokens=SINGLE_TOKENS)
    sinks = ScorerConfig().sinks
    prompt = chat_prompt(bench.loaded.tokenizer, fact.document, [fact.question], system=None, sinks=sinks)
    for column, budget in settings(columns):
        about = {"wanted": fact.answer, "tokens": prompt.seq_len, "depth": fact.depth}
        try:
            text, kept_fraction = session_answer(bench.loaded, prompt, preset(budget, column))
        except DoesNotFitError as refusal:
            yield column, budget, {"refused": refusal.message, **about}
            continue
        exact = fact.answer in text.replace(",", "")
        yield column, budget, {"exact": exact, "answer": text, "kept_fraction": kept_fraction, **about}


def complete_four(bench: Bench, number: int, columns: tuple[str, ...]) -> Iterator[tuple[str, str, Result]]:
    """Task (b) on document `number`."""
    facts = four_facts(bench.paragraphs, number, tokens=FOUR_TOKENS)
    tokenizer = bench.loaded.tokenizer
    prompt = completion_prompt(tokenizer, facts.document, facts.question, sinks=ScorerConfig().sinks)
    wanted = list(tokenizer(facts.answer, add_special_tokens=False)["input_ids"])
    recording = record(bench.decoder, prompt, preset("full", "uniform"))

    def judged(read: Prefilled) -> Result:
        nll, exact = forced_nll(bench.decoder, read, wanted)
        return {"nll": nll, "exact": exact}

    for column, budget in settings(columns):
        result = judge(bench, recording, preset(budget, column), judged)
        if number == 0 and (column, budget) in CHECKED:
            own, _ = forced_nll(bench.decoder, read_alone(bench.decoder, prompt, preset(budget, column)), wanted)
            if abs(own - result["nll"]) > 1e-3:
                sys.exit(f"{column} {budget}: a prefill of its own gives {own:.4f}, the replay {result['nll']:.4f}")
        yield column, budget, {**result, "tokens": prompt.seq_len}


def run_task(
    bench: Bench,
    documents: int,
    columns: tuple[str, ...],
    task: Callable[[Bench, int, tuple[str, ...]], Iterator[tuple[str, str, Result]]],
) -> dict[str, Any]:
    """Every document; per setting what each gave, and what they come to."""
    found: dict[str, dict[str, list[Result]]] = {column: {} for column in columns}
    begun = time.perf_counter()
    for number in range(documents):
        for column, budget, result in task(bench, number, columns):
            found[column].setdefault(budget, []).append(result)
        print(f"{task.__name__} {number + 1}/{documents} {time.perf_counter() - begun:.0f} s", file=sys.stderr)
    table: Table = {c: {b: summarise(results) for b, results in row.items()} for c, row in found.items()}
    return {"table": table, "documents": found}


def header(source: str, loaded: LoadedModel) -> dict[str, Any]:
    """Where, with what and how this was measured."""
    return {
        "schema_version": 1,
        "command": "python " + " ".join(sys.argv),
        "model": loaded.info.name,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "device": str(loaded.device),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "versions": {"uncomp": __version__, **{name: version(name) for name in ("torch", "transformers")}},
        "text": source,
        "scorer": repr(ScorerConfig()),
    }


def write(out: Path, about: dict[str, Any], tasks: dict[str, dict[str, Any]]) -> None:
    """retrieval.json and retrieval.md in `out`."""
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**about, "tasks": tasks}, indent=1, ensure_ascii=False)
    (out / "retrieval.json").write_text(text + "\n", encoding="utf-8")
    lines = ["# Retrieval", "", *(f"- {key}: `{value}`" for key, value in about.items() if key != "schema_version")]
    for name, task in tasks.items():
        lines += ["", f"## {TITLES[name]}", "", markdown_table(task["table"])]
    (out / "retrieval.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


TITLES = {
    "a": f"(a) One code in {SINGLE_TOKENS:,} tokens, chat format: exact match (95 % interval)",
    "b": f"(b) Four look-alike facts in {FOUR_TOKENS:,} tokens, completion: NLL per token, exact match (95 % interval)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--docs", type=int, help="documents a task (default: 20 for a, 12 for b)")
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="folder for the results")
    parser.add_argument("--only", choices=("a", "b"), help="one task")
    parser.add_argument("--model", default=DEFAULT_MODEL)
    args = parser.parse_args()
    for _ in ensure_local(args.model):
        pass
    torch.manual_seed(0)
    loaded = load_model(args.model)
    source, paragraphs = read_source()
    bench = Bench(loaded, Decoder(loaded.model, loaded.spec), paragraphs)
    tasks = {}
    if args.only != "b":
        tasks["a"] = run_task(bench, args.docs or 20, ("uniform",), ask_single)
    if args.only != "a":
        tasks["b"] = run_task(bench, args.docs or 12, (*POLICIES, INCOHERENT), complete_four)
    write(args.out, header(source, loaded), tasks)
    print((args.out / "retrieval.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
