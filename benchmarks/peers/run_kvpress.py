"""The samples through kvpress, in an environment that has kvpress (peers.py --build makes one).

    python benchmarks/peers/run_kvpress.py --model DIRECTORY --samples samples.jsonl --out kvpress.jsonl
        [--fractions 0.5 0.2 0.1 0.05] [--only SnapKV] [--limit N] [--check]

Query-aware: the press is active while context and question are read. Query-agnostic: while the context alone is read;
the question follows without the press, at the positions after the whole context, as kvpress's own pipeline does it.
Then the right answer is given token by token: its likelihood, and whether argmax would have said it; and from the same
cache greedy decoding writes its own. In fp32 on the CPU with SDPA. Bytes are those allocated after the compression,
over those of all tokens that it saw; `kept_claimed` counts the entries that attention still sees, which is less than
what is allocated where a press masks and evicts none.
"""

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from presses import FRACTIONS, Setting, settings
from recording import (
    Recording,
    compressed,
    copied,
    entries,
    follow,
    is_even,
    layer_bytes,
    mask,
    masks,
    prefill_under,
    record,
    together,
)
from records import Results, Writing, about_run, arguments_of, outcome, read_samples, say
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, PreTrainedModel
from transformers.utils import logging

Line = dict[str, Any]
TOLERANCE = 1e-3  # nats a token, between the replay and a prefill under the press
PACKAGES = ("torch", "transformers", "kvpress")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model, and what its tokens say."""

    model: PreTrainedModel
    decode: Callable[[list[int]], str]


@dataclass(frozen=True, slots=True)
class Left:
    """What a press left of the `position` tokens that were read, and the logits [1, vocab] after them.

    `masks` are the entries of each layer that it passes over instead of freeing them.
    """

    cache: DynamicCache
    masks: list[Any]
    logits: Tensor
    position: int

    @property
    def is_plain(self) -> bool:
        """Equal layers, nothing masked."""
        return is_even(self.cache) and all(found is None for found in self.masks)


def load(directory: Path) -> Loaded:
    """The model of a directory in Hugging Face format, in fp32."""
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="sdpa")
    tokenizer = AutoTokenizer.from_pretrained(directory)
    return Loaded(model.eval(), lambda ids: str(tokenizer.decode(ids, skip_special_tokens=True)))


def scores(logits: Tensor, answer_ids: list[int]) -> dict[str, float]:
    """Nats a token from the second token on (of a single token: that one's) and over all, and whether argmax says all.

    `logits` [N, vocab] stand before each of the answer's N tokens.
    """
    wanted = torch.tensor(answer_ids)
    losses = torch.nn.functional.cross_entropy(logits.double(), wanted, reduction="none")
    exact = float((logits.argmax(dim=-1) == wanted).all())
    later = losses[min(1, len(answer_ids) - 1) :]
    return {"nll": float(later.mean()), "nll_all": float(losses.mean()), "exact": exact}


def answered(loaded: Loaded, lefts: list[Left], sample: Line, *, rest: list[int]) -> list[Line]:
    """What caches give, as rows; `rest` is yet unread. They stay as they are.

    Several have equal layers each, mask nothing, and are of one prompt.
    """
    model, answer, position = loaded.model, sample["answer_ids"], lefts[0].position
    mask(model, lefts[0].masks)
    weighed = [weigh(model, left.cache, tokens=position) for left in lefts]
    cache, seen = together([left.cache for left in lefts])
    logits = torch.stack([left.logits for left in lefts])  # [B, 1, vocab]
    if rest:
        logits = follow(model, cache, _rows(rest, lefts), position=position, seen=seen)[:, -1:]
    position += len(rest)
    every, forced = logits, copied(cache)
    if len(answer) > 1:
        after = follow(model, forced, _rows(answer[:-1], lefts), position=position, seen=seen)
        every = torch.cat([logits, after], dim=1)
    metrics = [scores(row, answer) for row in every]
    writings = [Writing(sample, loaded.decode, exact=found["exact"] == 1) for found in metrics]
    write(model, cache, logits, writings, position=position, seen=seen)
    return [
        {**weight, "metrics": {**found, "match": writing.share}, "answer": writing.text, "refused": None}
        for weight, found, writing in zip(weighed, metrics, writings, strict=True)
    ]


def _rows(ids: list[int], lefts: list[Left]) -> Tensor:
    return torch.tensor([ids]).expand(len(lefts), -1)


def write(
    model: PreTrainedModel,
    cache: DynamicCache,
    logits: Tensor,
    writings: list[Writing],
    *,
    position: int,
    seen: Tensor | None,
) -> None:
    """Greedy decoding of every row at `position` and onwards, after `logits` [B, 1, vocab], until all are done."""
    ends = model.generation_config.eos_token_id
    stop_ids = ends if isinstance(ends, list) else [ends]
    while not all(writing.done for writing in writings):
        tokens = logits.argmax(dim=-1)
        for writing, token in zip(writings, tokens[:, 0].tolist(), strict=True):
            writing.push(token, stop_ids)
        if not all(writing.done for writing in writings):
            logits = follow(model, cache, tokens, position=position, seen=seen)
            position += 1


def weigh(model: PreTrainedModel, cache: DynamicCache, *, tokens: int) -> Line:
    """Bytes and entries, over those of a full cache of `tokens` tokens in the same type."""
    kv_bytes, keys = layer_bytes(cache), cache.layers[0].keys
    full_entries = tokens * sum(layer.keys.shape[1] for layer in cache.layers)
    full_bytes = full_entries * 2 * keys.shape[3] * keys.element_size()
    seen = entries(model, cache) / full_entries
    return {"kept_claimed": seen, "kept_fraction": kv_bytes / full_bytes, "kv_bytes": kv_bytes}


def refused(error: Exception) -> Line:
    """A press that does not take this prompt at this fraction."""
    reason = str(error) or type(error).__name__
    return {"kept_claimed": 0.0, "kept_fraction": 0.0, "kv_bytes": 0, "metrics": {}, "refused": reason}


def leave(loaded: Loaded, recording: Recording, sample: Line, setting: Setting) -> Left | Exception:
    """What one setting leaves of the recording, or why it does not take it."""
    torch.manual_seed(sample["index"])  # for the random press, which would else drop the same tokens in every layer
    try:
        cache = compressed(loaded.model, recording, setting.press())
    except (AssertionError, ValueError) as error:
        return error
    return Left(cache, masks(loaded.model), recording.logits, recording.seq_len)


def judge(loaded: Loaded, lefts: list[Left | Exception], sample: Line, *, rest: list[int]) -> list[Line]:
    """Several settings on one sample: those that may be rows of one cache together, the others by themselves."""
    found: list[Line | None] = [refused(left) if isinstance(left, Exception) else None for left in lefts]
    alike = [place for place, left in enumerate(lefts) if isinstance(left, Left) and left.is_plain]
    alone = [[place] for place, left in enumerate(lefts) if isinstance(left, Left) and not left.is_plain]
    for places in [*([alike] if alike else []), *alone]:
        try:
            answers = answered(loaded, [lefts[place] for place in places], sample, rest=rest)
        except (AssertionError, ValueError) as error:
            answers = [refused(error)] * len(places)
        for place, line in zip(places, answers, strict=True):
            found[place] = line
    return found


def check(loaded: Loaded, sample: Line, setting: Setting, found: Line, *, read: list[int], rest: list[int]) -> None:
    """Compare with a prefill under the press. Ends the program when the likelihood differs."""
    if found["refused"]:
        return
    torch.manual_seed(sample["index"])
    cache, logits = prefill_under(loaded.model, read, setting.press())
    [own] = answered(loaded, [Left(cache, masks(loaded.model), logits, len(read))], sample, rest=rest)
    apart = abs(own["metrics"]["nll_all"] - found["metrics"]["nll_all"])
    say(f"  {setting.name}: {found['metrics']['nll_all']:.4f}, {apart:.1e} from a prefill of its own")
    if apart > TOLERANCE or own["kv_bytes"] != found["kv_bytes"]:
        sys.exit(f"{setting.name}: the replay gives {found}, a prefill under the press {own}")


def parts(sample: Line, regime: str) -> tuple[list[int], list[int]]:
    """The ids that are read before the compression, and those of the prompt that follow it."""
    context, question = sample["context_ids"], sample["question_ids"]
    return (context + question, []) if regime == "aware" else (context, question)


@torch.no_grad()
def run_alike(
    loaded: Loaded, alike: list[Line], regime: str, wanted: list[Setting], results: Results, *, checked: bool
) -> None:
    """All settings that are missing, on samples of which the same is read: one prefill, one compression a setting."""
    missing = [(sample, _missing(sample, regime, wanted, results)) for sample in alike]
    needed = {line["setting"] for _, lines in missing for line in lines}
    if not needed:
        return
    by_name = {setting.name: setting for setting in wanted}
    recording = record(loaded.model, parts(alike[0], regime)[0])
    lefts = {name: leave(loaded, recording, alike[0], by_name[name]) for name in by_name if name in needed}
    for sample, lines in missing:
        read, rest = parts(sample, regime)
        judged = judge(loaded, [lefts[line["setting"]] for line in lines], sample, rest=rest)
        for line, found in zip(lines, judged, strict=True):
            if checked:
                check(loaded, sample, by_name[line["setting"]], found, read=read, rest=rest)
            results.append({**line, **found})


def _missing(sample: Line, regime: str, wanted: list[Setting], results: Results) -> list[Line]:
    """The beginnings of the results that a sample lacks."""
    lines = (outcome(sample, regime=regime, setting=s.name, contestant=s.contestant, budget=s.budget) for s in wanted)
    return list(results.missing(lines))


def arguments() -> argparse.Namespace:
    parser = arguments_of(__doc__.splitlines()[0], model="directory in Hugging Face format")
    parser.add_argument("--fractions", type=float, nargs="+", default=FRACTIONS, help="fractions to keep")
    parser.add_argument("--only", nargs="+", default=[], help="presses whose name has one of these in it")
    parser.add_argument("--check", action="store_true", help="compare each result with a prefill under the press")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    made, samples = read_samples(args.samples)
    run = about_run({name: version(name) for name in PACKAGES}, made, dtype="float32", attention="sdpa")
    results = Results(args.out, peer="kvpress", settings={"samples": made["made_with"]}, run=run)
    loaded = load(args.model)
    wanted = settings(tuple(args.fractions), args.only)
    chosen = samples[: args.limit]
    begun, done = time.perf_counter(), 0
    for _, group in groupby(chosen, key=lambda sample: sample["context_ids"]):
        alike = list(group)
        for regime in alike[0]["regimes"]:
            for part in [alike] if regime == "agnostic" else [[sample] for sample in alike]:
                run_alike(loaded, part, regime, wanted, results, checked=args.check)
        done += len(alike)
        spent = time.perf_counter() - begun
        say(f"kvpress {done}/{len(chosen)} {alike[0]['subtask']} {alike[0]['index']} {spent:.0f} s")


if __name__ == "__main__":
    main()
