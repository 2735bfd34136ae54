"""The samples through kvpress, in an environment that has kvpress (peers.py --build makes one).

    python benchmarks/peers/run_kvpress.py --model DIRECTORY --samples samples.jsonl --out kvpress.jsonl
        [--fractions 0.5 0.2 0.1 0.05] [--only SnapKV] [--limit N] [--check]

Query-aware: the press is active while context and question are read. Query-agnostic: while the context alone is read;
the question follows without the press, at the positions after the whole context, as kvpress's own pipeline does it.
Then the right answer is given token by token: its likelihood, and whether argmax would have said it. In fp32 on the
CPU with SDPA. Bytes are those allocated after the compression, over those of all tokens that it saw; `kept_claimed`
counts the entries that attention still sees, which is less than what is allocated where a press masks and evicts none.
"""

import argparse
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from presses import FRACTIONS, Setting, settings
from recording import Recording, compressed, entries, follow, layer_bytes, prefill_under, record
from records import Results, about_run, outcome, read_samples, say
from torch import Tensor
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.utils import logging

Line = dict[str, Any]
TOLERANCE = 1e-3  # nats a token, between the replay and a prefill under the press
PACKAGES = ("torch", "transformers", "kvpress")


def load(directory: Path) -> PreTrainedModel:
    """The model of a directory in Hugging Face format, in fp32."""
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, attn_implementation="sdpa")
    return model.eval()


def scores(logits: Tensor, answer_ids: list[int]) -> dict[str, float]:
    """Nats a token from the second token on (of a single token: that one's) and over all, and whether argmax says all.

    `logits` [N, vocab] stand before each of the answer's N tokens.
    """
    wanted = torch.tensor(answer_ids)
    losses = torch.nn.functional.cross_entropy(logits.double(), wanted, reduction="none")
    exact = float((logits.argmax(dim=-1) == wanted).all())
    later = losses[min(1, len(answer_ids) - 1) :]
    return {"nll": float(later.mean()), "nll_all": float(losses.mean()), "exact": exact}


def answered(
    model: PreTrainedModel, cache: DynamicCache, logits: Tensor, sample: Line, *, rest: list[int], position: int
) -> Line:
    """What a cache of the `position` tokens read and the logits [1, vocab] after them give; `rest` is yet unread."""
    weighed = weigh(model, cache, tokens=position)
    answer = sample["answer_ids"]
    if rest:
        logits = follow(model, cache, rest, position=position)[-1:]
    if len(answer) > 1:
        logits = torch.cat([logits, follow(model, cache, answer[:-1], position=position + len(rest))])
    return {**weighed, "metrics": scores(logits, answer), "refused": None}


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


def judge(model: PreTrainedModel, recording: Recording, sample: Line, setting: Setting, *, rest: list[int]) -> Line:
    """One setting on one sample, from the recording."""
    torch.manual_seed(sample["index"])  # for the random press, which would else drop the same tokens in every layer
    try:
        cache = compressed(model, recording, setting.press())
        return answered(model, cache, recording.logits, sample, rest=rest, position=recording.seq_len)
    except (AssertionError, ValueError) as error:
        return refused(error)


def check(
    model: PreTrainedModel, sample: Line, setting: Setting, found: Line, *, read: list[int], rest: list[int]
) -> None:
    """Compare with a prefill under the press. Ends the program when the likelihood differs."""
    if found["refused"]:
        return
    torch.manual_seed(sample["index"])
    cache, logits = prefill_under(model, read, setting.press())
    own = answered(model, cache, logits, sample, rest=rest, position=len(read))
    apart = abs(own["metrics"]["nll_all"] - found["metrics"]["nll_all"])
    say(f"  {setting.name}: {found['metrics']['nll_all']:.4f}, {apart:.1e} from a prefill of its own")
    if apart > TOLERANCE or own["kv_bytes"] != found["kv_bytes"]:
        sys.exit(f"{setting.name}: the replay gives {found}, a prefill under the press {own}")


@torch.no_grad()
def run_sample(
    model: PreTrainedModel, sample: Line, regime: str, wanted: list[Setting], results: Results, *, checked: bool
) -> None:
    """All settings that are missing, on one sample in one regime."""
    context, question = sample["context_ids"], sample["question_ids"]
    read, rest = (context + question, []) if regime == "aware" else (context, question)
    by_name = {setting.name: setting for setting in wanted}
    lines = (outcome(sample, regime=regime, setting=s.name, contestant=s.contestant, budget=s.budget) for s in wanted)
    missing = list(results.missing(lines))
    if not missing:
        return
    recording = record(model, read)
    for line in missing:
        setting = by_name[line["setting"]]
        found = judge(model, recording, sample, setting, rest=rest)
        if checked:
            check(model, sample, setting, found, read=read, rest=rest)
        results.append({**line, **found})


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="directory in Hugging Face format")
    parser.add_argument("--samples", type=Path, required=True, help="what export.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="results, continued when they are there")
    parser.add_argument("--fractions", type=float, nargs="+", default=FRACTIONS, help="fractions to keep")
    parser.add_argument("--only", nargs="+", default=[], help="presses whose name has one of these in it")
    parser.add_argument("--limit", type=int, help="the first so many samples")
    parser.add_argument("--check", action="store_true", help="compare each result with a prefill under the press")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    made, samples = read_samples(args.samples)
    run = about_run({name: version(name) for name in PACKAGES}, made, dtype="float32", attention="sdpa")
    results = Results(args.out, peer="kvpress", settings={"samples": made["made_with"]}, run=run)
    model = load(args.model)
    wanted = settings(tuple(args.fractions), args.only)
    chosen = samples[: args.limit]
    begun = time.perf_counter()
    for number, sample in enumerate(chosen, start=1):
        for regime in sample["regimes"]:
            run_sample(model, sample, regime, wanted, results, checked=args.check)
            spent = time.perf_counter() - begun
            say(f"kvpress {number}/{len(chosen)} {sample['subtask']} {sample['index']} {regime} {spent:.0f} s")


if __name__ == "__main__":
    main()
