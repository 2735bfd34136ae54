"""What a saved document cache saves: the first question reads and saves, the second loads and is answered at once.

    python benchmarks/reuse.py [--tokens 6000] [--rounds 3] [--preset unseen] [--budget 30%] [--new-tokens 16]
        [--out reuse.json] [--markdown reuse.md]

A round, for each arm (the preset, the preset in 8 bits, the full cache): a session reads the document, answers the
first question and saves what it kept. New sessions then load the file, check its hash, and answer: the second question
with the file out of the system's memory, the same with it there, and the first question again, whose tokens must be
those of the first session. Times to the first token count reading or loading and the question; the model is there
already. Figures are medians over rounds, ratios medians of the ratios within a round. The last line of standard output
is the JSON; `--out` is written anew after each round.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent / "peers"))  # programs that import each other by name

from chat_turns import Arm, about, document, mib, parser_of
from records import say
from speed import machine_load

from uncomp_cli.budget.presets import load_preset
from uncomp_cli.cache.shelf import Shelf
from uncomp_cli.config import SamplingConfig, ScorerConfig
from uncomp_cli.engine.context.context import Context
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.tokens.prompt import Prompt, chat_prompt
from uncomp_cli.errors import UncompError
from uncomp_cli.models.loading import load_model
from uncomp_cli.models.runnable import LoadedModel

Line = dict[str, Any]
FIRST, SECOND = "What is this text about?", "How does it end?"
FIGURES = (
    "read_ttft_s",
    "save_s",
    "load_ttft_s",
    "cold_ttft_s",
    "load_to_read",
    "cold_to_read",
    "file_bytes",
    "tensor_bytes",
    "file_to_tensors",
    "full_kv_bytes",
)


def measure(loaded: LoadedModel, arm: Arm, text: str, *, new_tokens: int, folder: Path) -> Line:
    """One round of one arm."""
    sampling = SamplingConfig(max_new_tokens=new_tokens)
    shelf = Shelf(folder)
    first, second = (asked(loaded, text, question) for question in (FIRST, SECOND))
    engine = Engine(loaded, sampling=sampling)
    context = engine.read(first, arm.preset, for_any=True).finish()
    written, read_ttft_s = answer(engine, context)
    begun = time.perf_counter()
    entry, _ = engine.save(context, shelf, "bench")
    save_s = time.perf_counter() - begun
    forget_file(entry.path)
    cold_ttft_s = answer(engine, engine.open(shelf, entry, second, arm.preset))[1]
    load_ttft_s = answer(engine, engine.open(shelf, entry, second, arm.preset))[1]
    again, _ = answer(engine, engine.open(shelf, entry, first, arm.preset))
    tensor_bytes = entry.manifest.tensor_bytes
    return {
        "read_ttft_s": read_ttft_s,
        "save_s": save_s,
        "load_ttft_s": load_ttft_s,
        "cold_ttft_s": cold_ttft_s,
        "load_to_read": load_ttft_s / read_ttft_s,
        "cold_to_read": cold_ttft_s / read_ttft_s,
        "file_bytes": entry.file_bytes,
        "tensor_bytes": tensor_bytes,
        "file_to_tensors": entry.file_bytes / tensor_bytes,
        "full_kv_bytes": loaded.spec.full_kv_bytes(len(first.context)),
        "prompt_tokens": first.seq_len,
        "same_tokens": again == written,
    }


def asked(loaded: LoadedModel, text: str, question: str) -> Prompt:
    """The prompt of one question, as `uncomp ask` makes it."""
    return chat_prompt(loaded.tokenizer, text, [question], system=None, sinks=ScorerConfig().sinks)


def answer(engine: Engine, context: Context) -> tuple[list[int], float]:
    """The answer's tokens, and the time to the first of them."""
    writer = engine.writer(engine.asked(context))
    ids = [step.token for step in writer.write()]
    stats = writer.stats()
    if stats is None:
        raise RuntimeError("there was no answer")
    return ids, stats.ttft_s


def forget_file(path: Path) -> None:
    """Ask the system to drop a file that is on the disk from its memory; one that cannot be asked keeps it."""
    if not hasattr(os, "posix_fadvise"):
        return
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def summarise(arms: Sequence[Arm], runs: Sequence[Line]) -> list[Line]:
    """An object an arm: medians over rounds, and whether the answers were the same in all."""
    return [_arm(arm.label, [run for run in runs if run["label"] == arm.label]) for arm in arms]


def _arm(label: str, runs: Sequence[Line]) -> Line:
    medians = {name: median(run[name] for run in runs) for name in FIGURES}
    return {"label": label, "rounds": len(runs), **medians, "same_tokens": all(run["same_tokens"] for run in runs)}


def table(record: Line) -> str:
    """Markdown: an arm a row."""
    head = [
        "kept",
        "read",
        "save",
        "load",
        "of reading",
        "not in memory",
        "file",
        "to tensors",
        "of full",
        "same answer",
    ]
    rows = [_row(arm) for arm in record["arms"]]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


def _row(arm: Line) -> list[str]:
    return [
        arm["label"],
        f"{arm['read_ttft_s']:.2f} s",
        f"{arm['save_s']:.2f} s",
        f"{arm['load_ttft_s']:.2f} s",
        f"{100 * arm['load_to_read']:.1f} %",
        f"{arm['cold_ttft_s']:.2f} s",
        mib(arm["file_bytes"]),
        f"{arm['file_to_tensors']:.4f}",
        f"{100 * arm['file_bytes'] / arm['full_kv_bytes']:.1f} %",
        "yes" if arm["same_tokens"] else "NO",
    ]


def main() -> int:
    args = parser_of(__doc__.splitlines()[0], new_tokens=16).parse_args()
    evicted = replace(load_preset(args.preset), budget=args.budget, floor_tokens=0)
    arms = [
        Arm(f"{args.preset} {args.budget}", evicted),
        Arm(f"{args.preset} {args.budget}, 8 bits", replace(evicted, kv_bits=8)),
        Arm("full", load_preset("full")),
    ]
    loaded = load_model(args.model)
    text = document(loaded, args.tokens, seed=args.seed)
    record, runs = about(args, arms, kind="reuse"), []
    for turn in range(args.rounds):
        for arm in arms:
            load = machine_load()
            try:
                with TemporaryDirectory() as folder:
                    found = measure(loaded, arm, text, new_tokens=args.new_tokens, folder=Path(folder))
            except UncompError as error:
                say(f"{error.message}\nhint: {error.hint}")
                return 1
            runs.append({"round": turn, "label": arm.label, **load, **found})
            say(f"{turn + 1} {arm.label}: {found['read_ttft_s']:.2f} s, then {found['load_ttft_s']:.2f} s")
        record = {**record, "arms": summarise(arms, runs), "runs": runs}
        if args.out:
            args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    text = table(record)
    say(text)
    if args.markdown:
        args.markdown.write_text(text + "\n", encoding="utf-8")
    print(json.dumps(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
