"""Throughput at equal KV memory: how many tokens a second all rows get when the cache of the batch has so many bytes.

    python benchmarks/throughput.py                     2,000-token prompts, the bytes of 6 full rows
    python benchmarks/throughput.py --tokens 400 --new 16 --full-rows 2 --rounds 1 --documents 4

Both sides are this engine. The full cache has as many rows as the bytes allow, and fewer; the best counts. So does the
compressed one (preset balanced at --budget). Rounds alternate between all settings; figures are medians. Decoding is
timed from the moment when every row has its first token; no row stops before the last. Documents are generated prose,
each from a seed of its own; rows beyond --documents repeat them, each with a copy of its own in the cache.
Bytes are measured: the most that the batch has allocated, slack, padding and positions included; the bound is what
--full-rows full rows take, and a setting that takes more does not count. The last line is JSON.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median

import torch

from uncomp_cli.budget.presets import Preset, load_preset
from uncomp_cli.config import DEFAULT_MODEL, SamplingConfig
from uncomp_cli.documents.prose import write_prose
from uncomp_cli.engine.context.context import Asked
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.tokens.prompt import Prompt, chat_prompt
from uncomp_cli.engine.write.writer import Writer
from uncomp_cli.models.loading import load_model
from uncomp_cli.models.runnable import LoadedModel

QUESTION = "Who is named most often, and what did they do?"
WORDS_PER_TOKEN = 1.0  # more than prose has, so that there is something to cut


@dataclass(frozen=True)
class Setting:
    """One side with so many rows."""

    side: str
    rows: int


@dataclass(frozen=True)
class Run:
    """What one batch of a setting took."""

    tok_s: float
    kv_bytes: int


def make_prompt(loaded: LoadedModel, tokens: int, seed: int) -> Prompt:
    """A prompt of exactly `tokens` tokens about a document of its own."""
    text = write_prose(int(tokens * WORDS_PER_TOKEN), seed=seed)
    prompt = chat_prompt(loaded.tokenizer, text, [QUESTION], system=None, sinks=4)
    context = tokens - prompt.longest_question
    return replace(prompt, context=prompt.context[:context])


def read_all(engine: Engine, preset: Preset, prompts: Sequence[Prompt]) -> list[Asked]:
    """Every prompt, read and compressed."""
    asked = []
    for number, prompt in enumerate(prompts, start=1):
        print(
            f"\r{preset.name} {preset.budget}: reading {number} of {len(prompts)}",
            end="",
            file=sys.stderr,
        )
        asked += engine.asked(engine.read(prompt, preset).finish())
    print(file=sys.stderr)
    return asked


def measure(engine: Engine, asked: Sequence[Asked], rows: int) -> Run:
    """Decode `rows` rows at once to their end."""
    wanted = [asked[row % len(asked)] for row in range(rows)]
    given = engine.decoder, engine.loaded.tokenizer, engine.sampling, wanted
    writer = Writer(*given, kv_bytes=sys.maxsize - 1, stop_ids=())
    begun = most = tokens = 0
    for taken in writer.write():
        most = max(most, taken.kv_bytes)
        tokens += taken.index > 0
        if taken.index == 0 and taken.row == rows - 1:
            begun = time.perf_counter_ns()
    return Run(tokens / ((time.perf_counter_ns() - begun) / 1e9), most)


def rows_that_fit(engine: Engine, asked: Sequence[Asked], kv_bytes: int) -> int:
    """How many rows of these documents the bytes hold to the end, by what one row of several takes."""
    sample = min(len(asked), 8)
    return max(1, int(kv_bytes * sample / measure(engine, asked, sample).kv_bytes))


def swept(most: int, given: Sequence[int]) -> list[int]:
    """The numbers of rows to try: those given, or 1, 2, 4 and so on, and as many as fit."""
    doubled = [2**power for power in range(most.bit_length()) if 2**power < most]
    tried = given or [*doubled, max(1, most - most // 16), most]  # the last may pass the bound: buckets differ
    return sorted({rows for rows in tried if rows <= most})


def report(results: dict[Setting, list[Run]], kv_bytes: int, options: argparse.Namespace) -> dict[str, object]:
    """Write the table; returns the record."""
    medians = {setting: median(run.tok_s for run in runs) for setting, runs in results.items()}
    print(f"{'SIDE':12}{'ROWS':>6}{'TOK/S':>10}{'KV MiB':>10}{'OF BOUND':>10}")
    for setting, runs in results.items():
        most = max(run.kv_bytes for run in runs)
        figures = f"{medians[setting]:>10.1f}{most / 2**20:>10.1f}{100 * most / kv_bytes:>9.0f}%"
        print(f"{setting.side:12}{setting.rows:>6}{figures}")
    fitting = [s for s, runs in results.items() if all(one.kv_bytes <= kv_bytes for one in runs)]
    best = {side: max((s for s in fitting if s.side == side), key=lambda s: medians[s]) for side in ("full", "kept")}
    ratio = medians[best["kept"]] / medians[best["full"]]
    print(f"best {best['kept'].rows} kept rows against best {best['full'].rows} full rows: {ratio:.2f}x")
    recorded = [asdict(s) | {"tok_s": medians[s], "all": [asdict(one) for one in runs]} for s, runs in results.items()]
    return {
        "schema_version": 1,
        "options": vars(options),
        "threads": torch.get_num_threads(),
        "bound_bytes": kv_bytes,
        "best": {side: asdict(setting) | {"tok_s": medians[setting]} for side, setting in best.items()},
        "ratio": ratio,
        "runs": recorded,
    }


def sides(options: argparse.Namespace) -> dict[str, Preset]:
    """The two sides."""
    kept = replace(load_preset(options.preset), budget=options.budget, floor_tokens=0)
    return {"full": load_preset("full"), "kept": kept}


def run(options: argparse.Namespace) -> dict[str, object]:
    """Read the documents on both sides, decode every setting in turn, and report."""
    loaded = load_model(options.model, dtype=options.dtype, device=options.device)
    both, engine = sides(options), Engine(loaded, sampling=SamplingConfig(max_new_tokens=options.new))
    prompts = [make_prompt(loaded, options.tokens, seed) for seed in range(max(options.documents, options.full_rows))]
    texts = {"full": prompts[: options.full_rows], "kept": prompts}
    asked = {side: read_all(engine, preset, texts[side]) for side, preset in both.items()}
    kv_bytes = measure(engine, asked["full"], options.full_rows).kv_bytes
    most = {"full": options.full_rows, "kept": rows_that_fit(engine, asked["kept"], kv_bytes)}
    given = {"full": [*range(1, 3), *range(4, options.full_rows + 1, 2)], "kept": options.kept_rows}
    settings = [Setting(side, rows) for side in both for rows in swept(most[side], given[side])]
    results: dict[Setting, list[Run]] = {setting: [] for setting in settings}
    for number in range(options.rounds):
        for setting in settings:
            side = setting.side
            results[setting].append(measure(engine, asked[side], setting.rows))
            print(f"round {number + 1}: {setting} {results[setting][-1]}", file=sys.stderr)
    return report(results, kv_bytes, options)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--preset", default="balanced")
    parser.add_argument("--budget", default="5%")
    parser.add_argument("--tokens", type=int, default=2000, help="prompt length")
    parser.add_argument("--new", type=int, default=64, help="tokens of every answer")
    parser.add_argument("--full-rows", type=int, default=6, help="the bytes of so many full rows are the bound")
    parser.add_argument("--kept-rows", type=int, nargs="*", default=(), help="numbers of rows to try on the kept side")
    parser.add_argument("--documents", type=int, default=16, help="different documents")
    parser.add_argument("--rounds", type=int, default=3)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    print(json.dumps(run(parse())))
