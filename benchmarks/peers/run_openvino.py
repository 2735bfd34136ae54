"""The samples through OpenVINO GenAI, in an environment that has openvino-genai (peers.py --build makes one).

    python benchmarks/peers/run_openvino.py --model FILE.gguf --samples samples.jsonl --out openvino.jsonl
        [--only SETTING...] [--limit N] [--threads N]

Its interface has no likelihood of a given answer: what greedy decoding finds is all that is compared. The cache lies
in blocks of 32 tokens. `CacheEvictionConfig` keeps the first 32 and the last 128 tokens and of the blocks between them,
in each layer, those that the prompt's last 8 tokens and the answer's look at most. A prompt that is shorter than the
limit loses nothing. Eviction begins behind the prompt, so with the question in view: samples whose question comes
after the compression are left out. A prompt is read with everything in the cache, and an answer's first two tokens are
said from it too: the blocks in use, which the library reports step by step, are fewer from the third on.

Bytes are those of the fewest blocks in use since the answer began, of `u8` with the scales. `u8` is the CPU plugin's
default; from a GGUF file it takes 16 bits unless it is told otherwise. The file has 16-bit numbers (weights.py) and the
arithmetic is in 32 bits, so that the cache is what differs from ours.
"""

import argparse
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai as genai
from gguf import GGUFReader
from records import Results, Writing, about_run, add_threads, arguments_of, outcome, read_samples, say

Line = dict[str, Any]
BLOCK_TOKENS = 32
REGIME = "aware"
START_TOKENS, RECENT_TOKENS = 32, 128  # the library's defaults


@dataclass(frozen=True, slots=True)
class Setting:
    """How keys and values are stored, and how many tokens of them; `crushed` of its blocks are chosen by KVCrush."""

    precision: str
    max_tokens: int | None = None
    crushed: int = 0

    def scheduler(self, blocks: int) -> genai.SchedulerConfig:
        """With a pool of `blocks` blocks."""
        config = genai.SchedulerConfig()
        config.num_kv_blocks = blocks
        if self.max_tokens:
            crush = genai.KVCrushConfig(self.crushed, genai.KVCrushAnchorPointMode.MEAN)
            tokens = self.max_tokens - self.crushed * BLOCK_TOKENS
            mode = genai.AggregationMode.NORM_SUM
            config.use_cache_eviction = True
            config.cache_eviction_config = genai.CacheEvictionConfig(
                START_TOKENS, RECENT_TOKENS, tokens, mode, kvcrush_config=crush
            )
        return config


SETTINGS = {
    "u8 KV": Setting("u8"),
    "u8 KV, 672 tokens (default)": Setting("u8", 672),
    "u8 KV, 1088 tokens": Setting("u8", 1088),
    "u8 KV, 256 tokens": Setting("u8", 256),
    "u8 KV, 672 tokens, KVCrush": Setting("u8", 672, crushed=2),
    "f16 KV": Setting("f16"),
}


class Pipeline:
    """The model with one setting."""

    def __init__(self, model: Path, setting: Setting, *, longest: int, threads: int) -> None:
        """`longest` is what a prompt and its answer come to, in tokens."""
        self._blocks = math.ceil(longest / BLOCK_TOKENS) + 1
        self._pipeline = genai.ContinuousBatchingPipeline(
            model,
            setting.scheduler(self._blocks),
            "CPU",
            {
                "INFERENCE_PRECISION_HINT": "f32",
                "KV_CACHE_PRECISION": setting.precision,
                "INFERENCE_NUM_THREADS": threads,
            },
        )
        tokenizer = self._pipeline.get_tokenizer()
        self.decode, self.end = tokenizer.decode, tokenizer.get_eos_token_id()

    def tokens(self, prompt: list[int], *, count: int) -> Iterator[tuple[int, int]]:
        """Up to `count` greedy tokens, each with the bytes of the blocks in use when it was made."""
        config = genai.GenerationConfig(max_new_tokens=count, do_sample=False)
        config.set_eos_token_id(self.end)
        handle = self._pipeline.add_request(0, openvino.Tensor(np.array([prompt], dtype=np.int64)), config)
        try:
            while self._pipeline.has_non_finished_requests():
                self._pipeline.step()
                metrics = self._pipeline.get_metrics()
                used = round(metrics.cache_usage / 100 * self._blocks)
                kv_bytes = used * metrics.cache_size_in_bytes // self._blocks
                if handle.can_read():
                    for made in handle.read().values():
                        yield from ((token, kv_bytes) for token in made.generated_ids)
        finally:
            handle.stop()
            while self._pipeline.has_non_finished_requests():
                self._pipeline.step()


def token_bytes(model: Path) -> int:
    """Bytes of a token's keys and values in 16 bits."""
    fields = GGUFReader(model).fields
    layers, width, heads, kv_heads = (
        fields[f"llama.{name}"].contents()
        for name in ("block_count", "embedding_length", "attention.head_count", "attention.head_count_kv")
    )
    return layers * kv_heads * (width // heads) * 2 * 2


def judge(pipeline: Pipeline, sample: Line, *, full_bytes: int) -> Line:
    """One sample; `full_bytes` are those of its prompt in 16 bits."""
    prompt = sample["context_ids"] + sample["question_ids"]
    writing = Writing(sample, pipeline.decode, exact=False)
    held = []
    for token, kv_bytes in pipeline.tokens(prompt, count=sample["max_new_tokens"]):
        held.append(kv_bytes)
        writing.push(token, [pipeline.end])
        if writing.done:
            break
    return {
        "kept_claimed": 1.0,
        "kept_fraction": min(held) / full_bytes,
        "kv_bytes": min(held),
        "metrics": {"match": writing.share},
        "answer": writing.text,
        "refused": None,
    }


def run_setting(args: argparse.Namespace, name: str, samples: list[Line], results: Results) -> None:
    """All samples that the file has not yet with one setting."""
    todo = [(sample, line) for sample in samples for line in results.missing(lines_of(sample, name))]
    if not todo:
        return
    longest = max(prompt_tokens(sample) + sample["max_new_tokens"] for sample in samples)
    pipeline = Pipeline(args.model, SETTINGS[name], longest=longest, threads=args.threads)
    check_ids(pipeline, samples[0])
    of_token = token_bytes(args.model)
    begun = time.perf_counter()
    for number, (sample, line) in enumerate(todo, start=1):
        results.append({**line, **judge(pipeline, sample, full_bytes=of_token * prompt_tokens(sample))})
        say(f"OpenVINO {name} {number}/{len(todo)} {time.perf_counter() - begun:.0f} s")


def check_ids(pipeline: Pipeline, sample: Line) -> None:
    """End the program when the ids are another tokenizer's: the text must come out of them again."""
    text = pipeline.decode(sample["answer_ids"])
    if text.strip() != sample["answer"].strip():
        sys.exit(f"this model reads the answer {sample['answer']!r} as {text!r}: it has another tokenizer")


def lines_of(sample: Line, setting: str) -> list[Line]:
    """The one line of results that a sample gives, or none."""
    if REGIME not in sample["regimes"]:
        return []
    return [outcome(sample, regime=REGIME, setting=setting, contestant=setting, budget="full")]


def prompt_tokens(sample: Line) -> int:
    return len(sample["context_ids"]) + len(sample["question_ids"])


def arguments() -> argparse.Namespace:
    parser = arguments_of(__doc__.splitlines()[0], model="GGUF file, of numbers in 16 bits")
    parser.add_argument("--only", nargs="+", choices=tuple(SETTINGS), default=tuple(SETTINGS), help="settings to run")
    add_threads(parser)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    made, samples = read_samples(args.samples)
    versions = {"openvino-genai": version("openvino-genai")}
    run = about_run(versions, made, weights=args.model.name, threads_used=args.threads)
    results = Results(args.out, peer="OpenVINO GenAI", settings={"samples": made["made_with"]}, run=run)
    for name in args.only:
        run_setting(args, name, samples[: args.limit], results)


if __name__ == "__main__":
    main()
