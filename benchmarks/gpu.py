"""Prefill and decode of an 8B-shaped model on a GPU: one program, one JSON.

    python benchmarks/gpu.py --out gpu.json [--minutes 8]        on a CUDA device
    python benchmarks/gpu.py --tiny                              the same code on tiny shapes, on any machine

Weights are random, in bf16: time does not depend on them. Prefill: a prompt of N tokens, full, and thinned to 20 % of
its tokens behind a quarter of the layers. Decode: a cache filled with random numbers, so that no long prefill comes
first: full, and with 10 % kept, evenly and with heads of different lengths. Every figure is a median of several, after
a warm-up, with the device synchronised around it.

    decode  bytes a step = weights read + B · kept KV bytes; GB/s = bytes / time of a step, against a copy's
    prefill FLOPs = 2 · weights · n + 2 · L · H · D · n², against a large matrix product's; thinned, n of each layer

After `--minutes` no new measurement begins, and one that needs more memory than is free is left out: both are listed,
with the reason. The last line of standard output is the JSON.
"""

import argparse
import gc
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from ceilings import layer_weights, prefill_flops, step_weights
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from uncomp_cli import __version__
from uncomp_cli.bench.rounds import cpu_name
from uncomp_cli.budget.presets import load_preset
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.config import SamplingConfig
from uncomp_cli.engine.context.context import Asked, Begun, Behind, Context
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.spend.memory import free_bytes, peak_bytes, reset_peak
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.engine.tokens.tokens import Tokens
from uncomp_cli.engine.write.stores import PlacedRows
from uncomp_cli.engine.write.writer import Writer
from uncomp_cli.errors import UncompError, is_out_of_memory
from uncomp_cli.models.catalog import ModelInfo
from uncomp_cli.models.loading import weights_bytes
from uncomp_cli.models.runnable import LoadedModel
from uncomp_cli.models.shape import spec_from_config


@dataclass(frozen=True, slots=True)
class Size:
    """What is measured: the model's shape, the lengths and the batches, and how often each."""

    config: LlamaConfig
    dtype: torch.dtype
    lengths: tuple[int, ...]
    batches: tuple[int, ...]
    new_tokens: int
    repeats: int
    copy_bytes: int
    square: int


def large() -> Size:
    """The shape of Llama-3.1-8B, in bf16."""
    config = LlamaConfig(
        num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, head_dim=128, hidden_size=4096,
        intermediate_size=14336, vocab_size=128256, max_position_embeddings=131072, rope_theta=500000.0,
    )  # fmt: skip
    return Size(config, torch.bfloat16, (8192, 16384, 32768, 65536), (1, 16), 17, 3, 2**30, 8192)


def tiny() -> Size:
    """The same code in seconds on a CPU."""
    config = LlamaConfig(
        num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=16, hidden_size=64,
        intermediate_size=128, vocab_size=256, max_position_embeddings=4096,
    )  # fmt: skip
    return Size(config, torch.float32, (512, 1024), (1, 4), 3, 2, 2**20, 128)


def random_model(size: Size, device: torch.device) -> LoadedModel:
    """A model of random weights, made on the device, as if it had been loaded."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(size.dtype)
    try:
        with device:
            model = LlamaForCausalLM(size.config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    spec = spec_from_config(size.config, size.dtype)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(spec.vocab_size)}, unk_token="w0"))
    info = ModelInfo(
        name="random", path=Path(), source="random", sha256="", architecture="LlamaForCausalLM",
        layers=spec.num_layers, heads=spec.num_heads, kv_heads=spec.num_kv_heads, head_dim=spec.head_dim,
        trained_length=spec.trained_length, kv_bytes_per_token=spec.kv_bytes_per_token,
        dtype=str(size.dtype).removeprefix("torch."), licence=None, size_bytes=0,
    )  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="w0")
    return LoadedModel(model, tokenizer, spec, info, 0.0, weights_bytes(model), None)


Line = dict[str, Any]
FULL, THINNED, EVEN, RAGGED = "full", "thinned to 20 %", "10 % kept", "10 % kept, ragged"
_QUESTION_TOKENS = 16
_GIB = 2**30


def synchronise(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of `work`, with nothing else on the device."""
    synchronise(device)
    begun = time.perf_counter()
    work()
    synchronise(device)
    return time.perf_counter() - begun


def median_s(work: Callable[[], object], device: torch.device, *, repeats: int) -> float:
    """The median of `repeats` times, after a warm-up."""
    work()
    return median(clock(work, device) for _ in range(repeats))


def ceilings(size: Size, device: torch.device) -> Line:
    """A copy's GB/s, reads and writes counted, and a square matrix product's TFLOP/s in the model's type."""
    source = torch.ones(size.copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copy_s = median_s(lambda: target.copy_(source), device, repeats=5)
    square = torch.randn(size.square, size.square, dtype=size.dtype, device=device)
    product_s = median_s(lambda: square @ square, device, repeats=5)
    return {"copy_gb_s": 2 * size.copy_bytes / copy_s / 1e9, "matmul_tflop_s": 2 * size.square**3 / product_s / 1e12}


@dataclass(frozen=True, slots=True)
class Case:
    """One measurement to make."""

    phase: str
    tokens: int
    batch: int
    setting: str

    def __str__(self) -> str:
        return f"{self.phase}, {self.tokens:,} tokens, batch {self.batch}, {self.setting}"


def cases(size: Size) -> Iterator[Case]:
    """Short lengths first, so that the time guard leaves out the longest; batch 1 before batches."""
    for tokens in size.lengths:
        for setting in (FULL, THINNED):
            yield Case("prefill", tokens, 1, setting)
        for setting in (FULL, EVEN, RAGGED):
            yield Case("decode", tokens, 1, setting)
    for batch in size.batches[1:]:
        for tokens in size.lengths:
            for setting in (FULL, EVEN, RAGGED):
                yield Case("decode", tokens, batch, setting)


def random_prompt(tokens: int, vocab: int) -> Prompt:
    """Random ids; the last of them are the question."""
    ids = torch.randint(vocab, (tokens,), generator=torch.Generator().manual_seed(0)).tolist()
    context, question = ids[:-_QUESTION_TOKENS], ids[-_QUESTION_TOKENS:]
    return Prompt(Tokens.of(context), (tuple(question),))


def measure_prefill(loaded: LoadedModel, case: Case, size: Size, ceiling: Line) -> Line:
    """Read a prompt of random tokens into a cache that keeps all that enters a layer."""
    preset = replace(load_preset("full"), thinning="none")
    if case.setting == THINNED:
        preset = replace(preset, thinning=f"gather:after={loaded.spec.num_layers // 4},keep=0.2")
    engine = Engine(loaded)
    prompt = random_prompt(case.tokens, loaded.spec.vocab_size)
    read: list[Context] = []

    def work() -> None:
        read.clear()
        read.append(engine.read(prompt, preset).finish())

    seconds = median_s(work, loaded.device, repeats=size.repeats)
    tflop_s = prefill_flops(loaded.spec, case.tokens, read[0].hidden_kept) / seconds / 1e12
    measured = {"seconds": seconds, "tok_s": case.tokens / seconds, "kv_bytes": sum(read[0].layer_bytes())}
    return {**measured, "tflop_s": tflop_s, "of_matmul": tflop_s / ceiling["matmul_tflop_s"]}


def kept_lengths(case: Case, heads: int) -> list[int]:
    """Entries of each head: all, a tenth, or a tenth on average, from half to one and a half times that."""
    if case.setting == FULL:
        return [case.tokens] * heads
    mean = case.tokens // 10
    if case.setting == EVEN:
        return [mean] * heads
    return [mean // 2 + mean * head // max(1, heads - 1) for head in range(heads)]


def filled_cache(loaded: LoadedModel, case: Case, *, reserve: int) -> RaggedKVCache:
    """A cache of random keys and values, whose entries are the last of the prompt."""
    spec, device = loaded.spec, loaded.device
    heads = [*kept_lengths(case, spec.num_kv_heads)] * case.batch
    cache = RaggedKVCache(num_layers=spec.num_layers, num_rows=case.batch, num_kv_heads=spec.num_kv_heads)
    shape = (max(heads), spec.head_dim)
    keys, values = (torch.randn(shape, dtype=loaded.model.dtype, device=device) for _ in range(2))
    positions = torch.arange(case.tokens - max(heads), case.tokens, dtype=torch.int32, device=device)
    for layer in range(spec.num_layers):
        filled = [(keys[-kept:], values[-kept:], positions[-kept:]) for kept in heads]
        cache.store(layer, filled, reserve=reserve)
    return cache


def measure_decode(loaded: LoadedModel, case: Case, size: Size, ceiling: Line) -> Line:
    """Generate greedily behind a filled cache; the first token needs no step, so there is one step fewer."""
    steps = size.new_tokens - 1
    decoder = Decoder(loaded.model, loaded.spec)
    cache = filled_cache(loaded, case, reserve=size.new_tokens)
    kept_bytes = cache.entries * loaded.spec.kv_bytes_per_entry
    mark = cache.mark()
    logits = torch.randn(case.batch, loaded.spec.vocab_size, device=loaded.device)
    prompt = Prompt(Tokens.of([0] * case.tokens), ((),))
    asked = [Asked(Context(decoder, prompt, cache, Behind(Begun(row[None]))), 0, size.new_tokens) for row in logits]

    def work() -> None:
        cache.rollback(mark)
        store = PlacedRows(loaded.spec, cache)
        for _ in Writer(decoder, loaded.tokenizer, SamplingConfig(), asked, store=store, stop_ids=()).write():
            pass

    step_s = median_s(work, loaded.device, repeats=size.repeats) / steps
    step_bytes = step_weights(loaded.spec) * loaded.spec.dtype_bytes + kept_bytes
    gb_s = step_bytes / step_s / 1e9
    measured = {"step_ms": 1e3 * step_s, "tok_s": case.batch / step_s, "kv_bytes": cache.nbytes}
    return {**measured, "step_bytes": step_bytes, "gb_s": gb_s, "of_copy": gb_s / ceiling["copy_gb_s"]}


def needed_bytes(case: Case, loaded: LoadedModel) -> int:
    """What a decode measurement allocates at least; a prefill plans for itself."""
    kept = sum(kept_lengths(case, loaded.spec.num_kv_heads)) * case.batch * loaded.spec.num_layers
    return int(1.05 * kept * loaded.spec.kv_bytes_per_entry) if case.phase == "decode" else 0


def release(device: torch.device) -> None:
    """Give back what the last measurement held, and start a new peak."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    reset_peak(device)


def measure(loaded: LoadedModel, case: Case, size: Size, ceiling: Line) -> Line:
    """One case. Raises UncompError when it does not fit."""
    release(loaded.device)
    needed, free = needed_bytes(case, loaded), free_bytes(loaded.device)
    if needed > free:
        raise UncompError(f"needs {needed / _GIB:.1f} GiB of cache, {free / _GIB:.1f} GiB are free", hint="")
    work = measure_prefill if case.phase == "prefill" else measure_decode
    return {**asdict(case), **work(loaded, case, size, ceiling), "peak_bytes": peak_bytes(loaded.device)}


def run_all(loaded: LoadedModel, size: Size, ceiling: Line, *, until: float) -> Iterator[tuple[Case, Line]]:
    """Every case with what it measured, or with `why` it was left out."""
    for case in cases(size):
        if time.monotonic() > until:
            yield case, {"why": "the time was up"}
            continue
        try:
            yield case, measure(loaded, case, size, ceiling)
        except Exception as error:
            if not (isinstance(error, UncompError) or is_out_of_memory(error)):
                raise
            yield case, {"why": getattr(error, "message", "memory ran out")}


def hardware(device: torch.device) -> Line:
    """The device's name and memory."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        capability = f"{properties.major}.{properties.minor}"
        return {"name": properties.name, "memory_bytes": properties.total_memory, "capability": capability}
    return {"name": cpu_name(), "threads": torch.get_num_threads()}


def about(size: Size, loaded: LoadedModel) -> Line:
    """What was measured on what."""
    versions = {name: version(name) for name in ("torch", "transformers")}
    shape = {"dtype": loaded.info.dtype, "layer_weights": layer_weights(loaded.spec), **asdict(loaded.spec)}
    return {
        "schema_version": 1,
        "kind": "gpu",
        "hardware": hardware(loaded.device),
        "versions": {
            "uncomp": __version__,
            "python": platform.python_version(),
            **versions,
            "cuda": torch.version.cuda,
        },
        "model": {**shape, "weights_bytes": loaded.weights_bytes, "sliding_windows": None},
        "repeats": size.repeats,
        "new_tokens": size.new_tokens,
    }


def run(size: Size, device: torch.device, *, minutes: float) -> Line:
    """The record."""
    begun = time.monotonic()
    loaded = random_model(size, device)
    ceiling = ceilings(size, device)
    record = {**about(size, loaded), "ceilings": ceiling, "measurements": [], "left_out": []}
    for case, found in run_all(loaded, size, ceiling, until=begun + 60 * minutes):
        left_out = "why" in found
        record["left_out" if left_out else "measurements"].append({**asdict(case), **found})
        figure = found.get("why") or f"{found['tok_s']:,.1f} tok/s"
        print(f"{time.monotonic() - begun:4.0f} s  {case}: {figure}", file=sys.stderr, flush=True)
    return {**record, "seconds": time.monotonic() - begun}


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="tiny shapes in float32 on the CPU")
    parser.add_argument("--minutes", type=float, default=6.5, help="begin no measurement after so many")
    parser.add_argument("--out", type=Path, help="the JSON")
    args = parser.parse_args(words)
    if not args.tiny and not torch.cuda.is_available():
        print("there is no CUDA device\nhint: --tiny runs the same code on the CPU", file=sys.stderr)
        return 1
    size, device = (tiny(), "cpu") if args.tiny else (large(), "cuda")
    text = json.dumps(run(size, torch.device(device), minutes=args.minutes))
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
