"""Does a chat stay fast? Time to first token and KV bytes of every turn of a conversation about one long document.

    python benchmarks/chat_turns.py [--tokens 6000] [--turns 10] [--rounds 3] [--preset unseen] [--budget 30%]
        [--new-tokens 32] [--out chat_turns.json] [--markdown chat_turns.md]

Two arms, in turn, round after round: the preset and the full cache. Each begins a session of its own in the same
process, asks its questions one after another and keeps the answers; nothing is timed but the turns. Figures are medians
over rounds; the ratio is the median of the last turn's over the second turn's in the same round, since the first reads
the document. `within` says whether the cache was within its budget at every token that was written. Before each arm the
machine's load is noted. The last line of standard output is the JSON; `--out` is written anew after each round.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent / "peers"))  # programs that import each other by name

from records import command_line, cpu_name, say
from speed import machine_load

from uncomp_cli import __version__
from uncomp_cli.budget.presets import Preset, load_preset
from uncomp_cli.config import DEFAULT_MODEL, SamplingConfig
from uncomp_cli.documents.prose import write_prose
from uncomp_cli.engine.context.session import Conversation
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.records import DecodeStep
from uncomp_cli.engine.tokens.messages import Message
from uncomp_cli.engine.tokens.prompt import count_tokens
from uncomp_cli.evals.tasks.haystack import opening
from uncomp_cli.models.loading import load_model
from uncomp_cli.models.runnable import LoadedModel

Line = dict[str, Any]
QUESTIONS = (
    "What is this text about?",
    "Who is named first in it?",
    "What was carried, and where to?",
    "Which year is mentioned?",
    "What does it say of a ledger?",
    "Which place comes last?",
    "What was measured?",
    "How much was paid, and for what?",
    "What is said about a bridge?",
    "How does it end?",
)
FIGURES = ("ttft_s", "prompt_tokens", "cached_tokens", "kv_bytes", "most_kv_bytes", "budget_bytes")


@dataclass(frozen=True, slots=True)
class Arm:
    """What is compared."""

    label: str
    preset: Preset


def document(loaded: LoadedModel, tokens: int, *, seed: int) -> str:
    """Generated prose of at most so many tokens, and hardly fewer."""
    return opening(
        write_prose(tokens, seed=seed), tokens, count_tokens=lambda text: count_tokens(loaded.tokenizer, text)
    )


def run_session(loaded: LoadedModel, arm: Arm, text: str, *, turns: int, new_tokens: int) -> list[Line]:
    """A line a turn."""
    session = Engine(loaded, sampling=SamplingConfig(max_new_tokens=new_tokens)).conversation(arm.preset)
    messages: list[Message] = []
    lines = []
    for turn in range(turns):
        question = QUESTIONS[turn % len(QUESTIONS)]
        parts = (question,) if turn else (text, "\n\n", question)
        messages.append(Message("user", "".join(parts), parts=parts))
        lines.append({"turn": turn + 1, **run_turn(session, messages)})
        answer = lines[-1].pop("answer")
        messages.append(Message("assistant", answer, ids=tuple(session.answer_ids)))
    return lines


def run_turn(session: Conversation, messages: Sequence[Message]) -> Line:
    """Figures of one turn, its answer among them; bytes are the last and the most while the answer was written."""
    session.notes.clear()
    answer, most, within = "", 0, True
    for step in session.turn(messages):
        if isinstance(step, DecodeStep):
            answer += step.text
            most = max(most, step.kv_bytes)
            within = within and step.kv_bytes <= session.budget_bytes
    stats = session.stats
    if stats is None:
        raise RuntimeError("the turn had no answer")
    return {
        "answer": answer,
        "ttft_s": stats.ttft_s,
        "prompt_tokens": stats.prompt_tokens,
        "cached_tokens": stats.cached_tokens,
        "kv_bytes": session.kv_bytes,
        "most_kv_bytes": most,
        "budget_bytes": session.budget_bytes,
        "full_kv_bytes": session.kv_full_bytes,
        "within": within and session.kv_bytes <= session.budget_bytes,
        "notes": list(session.notes),
    }


def summarise(arms: Sequence[Arm], runs: Sequence[Line]) -> list[Line]:
    """An object an arm: medians of each turn, the ratio of the last turn to the second, and what held throughout."""
    return [_arm(arm, [run["turns"] for run in runs if run["label"] == arm.label]) for arm in arms]


def _arm(arm: Arm, sessions: Sequence[Sequence[Line]]) -> Line:
    turns = [_turn(lines) for lines in zip(*sessions, strict=True)]
    ratios = [session[-1]["ttft_s"] / session[1]["ttft_s"] for session in sessions if len(session) > 1]
    return {
        "label": arm.label,
        "sessions": len(sessions),
        "turns": turns,
        "last_to_second": median(ratios) if ratios else None,
        "within": None
        if arm.preset.budget.kind == "full"
        else all(line["within"] for lines in sessions for line in lines),
    }


def _turn(lines: Sequence[Line]) -> Line:
    medians = {name: median(line[name] for line in lines) for name in FIGURES}
    notes = list(dict.fromkeys(note for line in lines for note in line["notes"]))
    return {"turn": lines[0]["turn"], **medians, "notes": notes}


def table(record: Line) -> str:
    """Markdown: a turn a row, two columns of time and bytes an arm."""
    arms = record["arms"]
    head = ["turn", "tokens", *(f"{arm['label']}: {what}" for arm in arms for what in ("first token", "KV", "budget"))]
    rows = []
    for number, first in enumerate(arms[0]["turns"]):
        cells = [str(first["turn"]), f"{first['prompt_tokens']:,.0f}"]
        for arm in arms:
            turn = arm["turns"][number]
            cells += [f"{turn['ttft_s']:.2f} s", mib(turn["most_kv_bytes"]), mib(turn["budget_bytes"])]
        rows.append(cells)
    lines = [head, ["---:"] * len(head), *rows]
    return "\n".join([*(f"- {_said(arm)}" for arm in arms), "", *("| " + " | ".join(cells) + " |" for cells in lines)])


def _said(arm: Line) -> str:
    said = [] if arm["last_to_second"] is None else [f"last turn to second {arm['last_to_second']:.2f}"]
    if arm["within"] is not None:
        said.append("within its budget at every token" if arm["within"] else "NOT within its budget at every token")
    return f"{arm['label']}: " + ", ".join([*said, f"{arm['sessions']} sessions"])


def mib(value: float) -> str:
    """`24.1 MiB`."""
    return f"{value / 2**20:.1f} MiB"


def about(args: argparse.Namespace, arms: Sequence[Arm], *, kind: str) -> Line:
    """What was measured with what."""
    return {
        "schema_version": 1,
        "kind": kind,
        "command": command_line(folder="benchmarks"),
        "model": args.model,
        "tokens": args.tokens,
        "new_tokens": args.new_tokens,
        "document": f"generated prose, seed {args.seed}",
        "settings": {arm.label: {**arm.preset.to_dict(), "quality": []} for arm in arms},
        "hardware": {"cpu": cpu_name(), "cores": os.cpu_count(), "threads": os.environ.get("OMP_NUM_THREADS")},
        "versions": {"uncomp": __version__, **{name: version(name) for name in ("torch", "transformers")}},
    }


def parser_of(description: str, *, new_tokens: int) -> argparse.ArgumentParser:
    """The flags of a benchmark over one document, a preset and the full cache."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--model", default=DEFAULT_MODEL)
    parser.add_argument("--preset", default="unseen")
    parser.add_argument("--budget", default="30%")
    parser.add_argument("--tokens", type=int, default=6000)
    parser.add_argument("--new-tokens", type=int, default=new_tokens)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="the JSON, written after each round")
    parser.add_argument("--markdown", type=Path, help="the table")
    return parser


def arguments() -> argparse.Namespace:
    parser = parser_of(__doc__.splitlines()[0], new_tokens=32)
    parser.add_argument("--turns", type=int, default=10)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    evicted = replace(load_preset(args.preset), budget=args.budget, floor_tokens=0)
    arms = [Arm(f"{args.preset} {args.budget}", evicted), Arm("full", load_preset("full"))]
    loaded = load_model(args.model)
    text = document(loaded, args.tokens, seed=args.seed)
    record, runs = about(args, arms, kind="chat turns"), []
    for turn in range(args.rounds):
        for arm in arms:
            load = machine_load()
            lines = run_session(loaded, arm, text, turns=args.turns, new_tokens=args.new_tokens)
            runs.append({"round": turn, "label": arm.label, **load, "turns": lines})
            say(f"{turn + 1} {arm.label}: " + " ".join(f"{line['ttft_s']:.2f}" for line in lines))
        record = {**record, "arms": summarise(arms, runs), "runs": runs}
        if args.out:
            args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    text = table(record)
    say(text)
    if args.markdown:
        args.markdown.write_text(text + "\n", encoding="utf-8")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
