"""In which form does a model find the facts of a table? The same rows as prose, Markdown, CSV, JSON lines and pairs.

Every sample is a table of five columns, three of them numbers that look alike, so that an answer needs its row and its
column. It is asked for one cell of any row. Judged as by `uncomp eval`: the greedy answer (`found`), and the negative
log-likelihood of the right one, teacher-forced, from its second token on (`nll`).

    python benchmarks/forms.py --out forms.jsonl --minutes 4       run again to go on; prints a Markdown table and JSON
"""

import argparse
import json
import random
import re
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from uncomp_cli.config import DEFAULT_MODEL
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.tokens.prompt import count_tokens
from uncomp_cli.engine.write.writer import stop_tokens
from uncomp_cli.errors import UncompError
from uncomp_cli.evals.journal import Journal
from uncomp_cli.evals.judges.answers import judge_answers
from uncomp_cli.evals.judges.case import read_case
from uncomp_cli.evals.judges.contestants import Setting, make_settings
from uncomp_cli.evals.tables.outcome import OUTCOMES, Outcome
from uncomp_cli.evals.tables.statistics import Interval, paired_difference, stratified_mean
from uncomp_cli.evals.tasks.facts import CITIES, compound
from uncomp_cli.evals.tasks.task import Query, Sample
from uncomp_cli.models.loading import load_model
from uncomp_cli.table import Table

COLUMNS = ("item", "city", "price", "stock", "weight")
Row = tuple[str, ...]
_NUMBERS = COLUMNS[2:]
_BASE = "markdown"
_NATS = "{:.2f} ({:.2f} to {:.2f})"


def prose(rows: Sequence[Row]) -> str:
    """A sentence a row."""
    return "\n".join(
        f"The item {item} is sold in {city}; its price is {price}, its stock is {stock} and its weight is {weight}."
        for item, city, price, stock, weight in rows
    )


def markdown(rows: Sequence[Row], *, every: int = 10**9) -> str:
    """A Markdown table, its header and rule repeated before each `every` rows."""
    head = [_barred(COLUMNS), "|" + " --- |" * len(COLUMNS)]
    parts = [[*head, *map(_barred, rows[at : at + every])] for at in range(0, len(rows), every)]
    return "\n\n".join("\n".join(part) for part in parts)


def csv(rows: Sequence[Row]) -> str:
    """As a CSV file has it."""
    return "\n".join(",".join(row) for row in (COLUMNS, *rows))


def json_lines(rows: Sequence[Row]) -> str:
    """An object a row, the header's names in every row."""
    return "\n".join(json.dumps(dict(zip(COLUMNS, row, strict=True))) for row in rows)


def pairs(rows: Sequence[Row]) -> str:
    """`header: value` of every cell, a row a line."""
    return "\n".join(", ".join(f"{name}: {value}" for name, value in zip(COLUMNS, row, strict=True)) for row in rows)


def records(rows: Sequence[Row]) -> str:
    """`header: value` lines under each other, an empty line between rows."""
    return "\n\n".join("\n".join(f"{name}: {value}" for name, value in zip(COLUMNS, row, strict=True)) for row in rows)


FORMS: dict[str, Callable[[Sequence[Row]], str]] = {
    "prose": prose,
    "markdown": markdown,
    "markdown/30": partial(markdown, every=30),
    "markdown/10": partial(markdown, every=10),
    "csv": csv,
    "json": json_lines,
    "pairs": pairs,
    "records": records,
}


def _barred(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def make_rows(chance: random.Random, count: int) -> list[Row]:
    """Rows with different items."""
    items: dict[str, None] = {}
    while len(items) < count:
        items.setdefault(compound(chance))
    return [(item, chance.choice(CITIES), *(str(chance.randint(1000, 9999)) for _ in _NUMBERS)) for item in items]


def make_sample(form: str, index: int, *, rows: int, seed: int, tokenizer: Any) -> Sample:
    """Sample `index` in a form: the same facts and question in all of them."""
    chance = random.Random(f"{seed} {rows} {index}")
    table = make_rows(chance, rows)
    row = chance.choice(table)
    column = _NUMBERS[index % len(_NUMBERS)]
    value = row[COLUMNS.index(column)]
    question = f"\n\nQuestion: What is the {column} of {row[0]}?\nAnswer: The {column} of {row[0]} is"
    context = FORMS[form](table)
    return Sample(
        f"forms/{form}", index, count_tokens(tokenizer, context), context, (Query(question, f" {value}", (value,)),)
    )


def run(args: argparse.Namespace, journal: Journal[Outcome], settings: Sequence[Setting], loaded: Any) -> None:
    """Judge what the journal lacks, all forms of an index together, until the time is up."""
    decoder, stop_ids = Decoder(loaded.model, loaded.spec), stop_tokens(loaded.model, loaded.tokenizer)
    done = {(outcome.subtask, outcome.index) for outcome in journal.records}
    end = time.monotonic() + 60 * args.minutes
    for index in range(args.samples):
        for form in args.form or FORMS:
            if (f"forms/{form}", index) in done:
                continue
            if time.monotonic() > end:
                return
            sample = make_sample(form, index, rows=args.rows, seed=args.seed, tokenizer=loaded.tokenizer)
            with torch.no_grad():
                case = read_case(decoder, loaded.tokenizer, sample)
                journal.append(judge_answers(case, settings, "aware", stop_ids))


def summary(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """A line for every form and setting: found, NLL, tokens, the paired difference of the NLL to the Markdown table."""
    lines = []
    for setting in dict.fromkeys(outcome.setting for outcome in outcomes):
        by_form = {form: _of(outcomes, form, setting) for form in FORMS}
        base = {outcome.index: outcome.metrics["nll"] for outcome in by_form[_BASE]}
        for form, found in by_form.items():
            if found:
                nll = {outcome.index: outcome.metrics["nll"] for outcome in found}
                lines.append(
                    {
                        "form": form,
                        "setting": " ".join(re.sub("#.*? ", " ", setting).split()),
                        "samples": len(found),
                        "tokens": round(sum(outcome.tokens for outcome in found) / len(found)),
                        "found": _interval(stratified_mean([[o.metrics["match"] for o in found]], binary=True)),
                        "nll": _interval(stratified_mean([list(nll.values())])),
                        "nll_to_markdown": _interval(paired_difference(nll, base)),
                    }
                )
    return lines


def _of(outcomes: Sequence[Outcome], form: str, setting: str) -> list[Outcome]:
    return [o for o in outcomes if (o.subtask, o.setting) == (f"forms/{form}", setting) and o.refused is None]


def _interval(interval: Interval) -> list[float]:
    return [round(value, 3) for value in (interval.mean, interval.low, interval.high)]


def table_of(lines: Sequence[dict[str, Any]]) -> Table:
    """The summary for people."""
    shown = ["form", "setting", "samples", "tokens", "found", "NLL", "NLL less Markdown's"]
    kinds = (
        ("found", "{:.0%} ({:.0%} to {:.0%})"),
        ("nll", _NATS),
        ("nll_to_markdown", "{:+.2f} ({:+.2f} to {:+.2f})"),
    )
    rows = [
        [line["form"], line["setting"], str(line["samples"]), f"{line['tokens']:,}"]
        + [written.format(*line[key]) for key, written in kinds]
        for line in lines
    ]
    return Table(shown, rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--out", type=Path, default=Path("forms.jsonl"))
    parser.add_argument("--form", action="append", choices=tuple(FORMS), help="repeatable; all by default")
    parser.add_argument("--rows", type=int, default=24)
    parser.add_argument("--samples", type=int, default=48)
    parser.add_argument("--budget", default="20%")
    parser.add_argument("--minutes", type=float, default=10**6, help="stop after this time, and go on another time")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    try:
        loaded = load_model(args.model, device="cpu")
        settings = make_settings(["preset:balanced"], [args.budget], seed=args.seed)
        shared = {"model": args.model, "rows": args.rows, "seed": args.seed, "budget": args.budget}
        with Journal.open(args.out, OUTCOMES, shared) as journal:
            run(args, journal, settings, loaded)
            lines = summary(journal.records)
    except UncompError as error:
        print(f"{error.message}\nhint: {error.hint}", file=sys.stderr)
        return 1
    print(table_of(lines).markdown())
    print(json.dumps({**shared, "forms": lines}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
