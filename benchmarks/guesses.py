"""What guesses from the text gain: answers that quote a document, with and without prompt lookup, in turn.

    python benchmarks/guesses.py [--model NAME] [--tokens 1500] [--budget 20%] [--new-tokens 120] [--rounds 5]
        [--out FILE]

Each question is read once and answered greedily behind the same cache, now with guesses and now without; that both give
the same tokens is checked. An answer's time is that of its tokens after the first. A figure of a question is the median
over rounds, a gain the median of the ratios within a round; questions that quote nothing stand beside those that do.
"""

import argparse
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent / "peers"))

from records import command_line, cpu_name, say

from uncomp_cli.budget.presets import load_preset
from uncomp_cli.config import DEFAULT_MODEL, SamplingConfig
from uncomp_cli.documents.prose import write_prose
from uncomp_cli.engine.context.context import Context
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.records import RunStats
from uncomp_cli.engine.tokens.prompt import chat_prompt
from uncomp_cli.engine.write.writer import Writer
from uncomp_cli.models.loading import load_model

QUOTING = (
    "Copy the first paragraph of the document, word for word.",
    "Quote the last three sentences of the document exactly.",
    "Repeat the document from its beginning.",
    "Which sentence comes first? Quote it and the ones behind it.",
)
OTHERS = ("What is this document about? Answer in a few sentences.", "Write a short poem about the sea.")


def answered(engine: Engine, context: Context, *, lookup: bool, new_tokens: int) -> tuple[list[int], RunStats]:
    """One greedy answer."""
    sampling = SamplingConfig(max_new_tokens=new_tokens, lookup=lookup)
    writer = Writer(engine.decoder, engine.loaded.tokenizer, sampling, engine.asked(context))
    said = [step.token for step in writer.write()]
    stats = writer.stats()
    if stats is None:
        raise RuntimeError("nothing was written")
    return said, stats


def measured(engine: Engine, context: Context, *, rounds: int, new_tokens: int) -> dict[str, Any]:
    """A question's answers, in turn."""
    times: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(rounds):
        found = {way: answered(engine, context, lookup=way, new_tokens=new_tokens) for way in (True, False)}
        for way, (said, stats) in found.items():
            times[way].append(stats.decode_s / max(1, len(said) - 1))
    (said, stats), (plain, _) = found[True], found[False]
    return {
        "tokens": len(said),
        "same": said == plain,
        "guessed": stats.guessed_tokens,
        "accepted": stats.accepted_tokens,
        "ms_with": 1e3 * median(times[True]),
        "ms_without": 1e3 * median(times[False]),
        "gain": median(plain / guessing for guessing, plain in zip(times[True], times[False], strict=True)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--tokens", type=int, default=1500)
    parser.add_argument("--budget", default="20%")
    parser.add_argument("--new-tokens", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    engine = Engine(load_model(args.model, device="cpu"), sampling=SamplingConfig(max_new_tokens=args.new_tokens))
    preset = replace(load_preset("balanced"), budget=args.budget)
    text = write_prose(args.tokens, seed=0)
    rows = []
    for question in (*QUOTING, *OTHERS):
        prompt = chat_prompt(engine.loaded.tokenizer, text, [question], system=None, sinks=preset.scorer.sinks)
        context = engine.read(prompt, preset).finish()
        found = measured(engine, context, rounds=args.rounds, new_tokens=args.new_tokens)
        rows.append({"question": question, "quotes": question in QUOTING, **found})
        say(json.dumps(rows[-1]))
    gains = {name: median(row["gain"] for row in rows if row["quotes"] == quotes) for name, quotes in WAYS.items()}
    about = {"command": command_line(folder="benchmarks"), "cpu": cpu_name(), "cores": os.cpu_count()}
    record = {**about, "model": args.model, "rounds": args.rounds, "median_gain": gains, "questions": rows}
    if args.out:
        args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record))


WAYS = {"quoting": True, "others": False}

if __name__ == "__main__":
    main()
