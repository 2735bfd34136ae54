"""The samples through llama.cpp, in an environment that has llama-cpp-python (peers.py --build makes one).

    python benchmarks/peers/run_llamacpp.py --model FILE.gguf --samples samples.jsonl --out llamacpp.jsonl
        [--types f16 q8_0 q4_0] [--limit N] [--threads N]

llama.cpp evicts nothing by score: it keeps the full cache in 16, 8 or 4 bits, so both regimes are the same
measurement, which is written under each. Bytes are the size of the sequence's serialised state when the answer begins
(`llama_state_seq_get_size`: keys and values of the cells in use, with a few bytes of bookkeeping a cell), over those of
a 16-bit cache. Quantised values need flash attention; it is off with f16. The weights are the GGUF's, in Q4_1: the
same numbers that our safetensors were made from, but multiplied with activations that llama.cpp rounds to 8 bits.
"""

import argparse
import math
import sys
import time
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import numpy.typing as npt
from llama_cpp import Llama
from records import Results, Writing, about_run, add_threads, arguments_of, outcome, read_samples, say

Line = dict[str, Any]
Logits = npt.NDArray[np.float32]
BATCH_TOKENS = 512
CELLS = 256  # llama.cpp rounds the context up to a multiple of this


@dataclass(frozen=True, slots=True)
class KVType:
    """How keys and values are stored."""

    ggml_type: int
    flash_attention: bool


TYPES = {
    "f16": KVType(llama_cpp.GGML_TYPE_F16, flash_attention=False),
    "q8_0": KVType(llama_cpp.GGML_TYPE_Q8_0, flash_attention=True),
    "q4_0": KVType(llama_cpp.GGML_TYPE_Q4_0, flash_attention=True),
}


def load(path: Path, kv_type: KVType, *, context_tokens: int, threads: int) -> Llama:
    """The model with a context for `context_tokens`."""
    return Llama(
        str(path),
        n_ctx=math.ceil(context_tokens / CELLS) * CELLS,
        n_batch=BATCH_TOKENS,
        n_threads=threads,
        n_threads_batch=threads,
        type_k=kv_type.ggml_type,
        type_v=kv_type.ggml_type,
        flash_attn=kv_type.flash_attention,
        verbose=False,
    )


def next_logits(llama: Llama, ids: list[int]) -> Logits:
    """Logits [vocab] after `ids`, which are appended to what was read."""
    llama.eval(ids)
    pointer = llama_cpp.llama_get_logits_ith(llama.ctx, -1)
    return np.ctypeslib.as_array(pointer, shape=(llama.n_vocab(),)).copy()


def losses_of(logits: Logits, wanted: list[int]) -> npt.NDArray[np.float64]:
    """Negative log-likelihood [N] of each wanted token under `logits` [N, vocab]."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_total = np.log(np.exp(shifted).sum(axis=1))
    return log_total - shifted[np.arange(len(wanted)), wanted]


def scores(logits: Logits, answer_ids: list[int]) -> dict[str, float]:
    """Nats a token from the second on (of a single token: that one's) and over all, and whether argmax says all."""
    losses = losses_of(logits, answer_ids)
    exact = float((logits.argmax(axis=1) == answer_ids).all())
    later = losses[min(1, len(answer_ids) - 1) :]
    return {"nll": float(later.mean()), "nll_all": float(losses.mean()), "exact": exact}


def full_bytes(llama: Llama, tokens: int) -> int:
    """Bytes of a 16-bit cache of `tokens` tokens."""
    model = llama.model
    head_dim = llama_cpp.llama_model_n_embd(model) // llama_cpp.llama_model_n_head(model)
    entries = llama_cpp.llama_model_n_layer(model) * llama_cpp.llama_model_n_head_kv(model) * tokens
    return entries * head_dim * 2 * 2


def read_prompt(llama: Llama, sample: Line, *, known: list[int]) -> Logits:
    """Logits [vocab] after context and question; a context that is `known`, because it was read last, is kept."""
    context = sample["context_ids"]
    if context != known:
        llama.reset()
        next_logits(llama, context)
    forget(llama, len(context))
    return next_logits(llama, sample["question_ids"])


def forget(llama: Llama, position: int) -> None:
    """Take what stands at `position` and behind it out of the cache."""
    llama_cpp.llama_memory_seq_rm(llama_cpp.llama_get_memory(llama.ctx), 0, position, -1)
    llama.n_tokens = position


def judge(llama: Llama, sample: Line, *, known: list[int]) -> Line:
    """One sample."""
    prompt, answer = sample["context_ids"] + sample["question_ids"], sample["answer_ids"]
    logits = [read_prompt(llama, sample, known=known)]
    kv_bytes = llama_cpp.llama_state_seq_get_size(llama.ctx, 0)
    logits += [next_logits(llama, [token]) for token in answer[:-1]]
    metrics = scores(np.stack(logits), answer)
    writing = Writing(sample, partial(say_ids, llama), exact=metrics["exact"] == 1)
    write(llama, logits[0], writing, position=len(prompt))
    metrics["match"] = writing.share
    return {
        "kept_claimed": 1.0,
        "kept_fraction": kv_bytes / full_bytes(llama, len(prompt)),
        "kv_bytes": kv_bytes,
        "metrics": metrics,
        "answer": writing.text,
        "refused": None,
    }


def write(llama: Llama, logits: Logits, writing: Writing, *, position: int) -> None:
    """Greedy decoding at `position` and onwards, after `logits`; what stood there is forgotten."""
    forget(llama, position)
    while not writing.done:
        token = int(logits.argmax())
        writing.push(token, [llama.token_eos()])
        if not writing.done:
            logits = next_logits(llama, [token])


def say_ids(llama: Llama, ids: list[int]) -> str:
    """What tokens say."""
    return llama.detokenize(ids).decode(errors="replace")


def check_ids(llama: Llama, sample: Line) -> None:
    """End the program when the ids are another tokenizer's: the text must come out of them again."""
    text = say_ids(llama, sample["answer_ids"])
    if text.strip() != sample["answer"].strip():
        sys.exit(f"this model reads the answer {sample['answer']!r} as {text!r}: it has another tokenizer")


def run_type(args: argparse.Namespace, name: str, samples: list[Line], results: Results) -> None:
    """All samples with one type of cache."""
    setting = f"{name} KV"
    todo = [(sample, list(results.missing(lines_of(sample, setting)))) for sample in samples]
    todo = [(sample, lines) for sample, lines in todo if lines]
    if not todo:
        return
    llama = load(args.model, TYPES[name], context_tokens=max(map(length, samples)), threads=args.threads)
    check_ids(llama, samples[0])
    begun = time.perf_counter()
    known: list[int] = []
    for number, (sample, lines) in enumerate(todo, start=1):
        found = judge(llama, sample, known=known)
        known = sample["context_ids"]
        for line in lines:
            results.append({**line, **found})
        say(f"llama.cpp {name} {number}/{len(todo)} {time.perf_counter() - begun:.0f} s")
    llama.close()


def lines_of(sample: Line, setting: str) -> list[Line]:
    """The lines of results that one measurement gives: one for each regime."""
    return [
        outcome(sample, regime=regime, setting=setting, contestant=setting, budget="full")
        for regime in sample["regimes"]
    ]


def length(sample: Line) -> int:
    """Tokens of prompt and answer, the right one or what is written."""
    prompt = len(sample["context_ids"]) + len(sample["question_ids"])
    return prompt + max(len(sample["answer_ids"]), sample["max_new_tokens"])


def arguments() -> argparse.Namespace:
    parser = arguments_of(__doc__.splitlines()[0], model="GGUF file")
    parser.add_argument("--types", nargs="+", choices=tuple(TYPES), default=tuple(TYPES), help="storage of the cache")
    add_threads(parser)
    return parser.parse_args()


def main() -> None:
    args = arguments()
    made, samples = read_samples(args.samples)
    versions = {"llama-cpp-python": version("llama-cpp-python")}
    run = about_run(versions, made, weights=args.model.name, threads_used=args.threads)
    results = Results(args.out, peer="llama.cpp", settings={"samples": made["made_with"]}, run=run)
    for name in args.types:
        run_type(args, name, samples[: args.limit], results)


if __name__ == "__main__":
    main()
