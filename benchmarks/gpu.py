"""Prefill, decode and the decode kernel on a GPU: one program, one JSON.

    python benchmarks/gpu.py --out gpu.json [--minutes 6]        on a CUDA device
    python benchmarks/gpu.py --dry [--tiny]                      what it would do, and what each step takes
    python benchmarks/gpu.py --tiny [--interpret]                the same code on tiny shapes, on any machine

Weights are random, in bf16, of the shapes of Llama-3.1-8B and Llama-2-7B: time does not depend on them. Every figure is
a median of several, after a warm-up, with the device synchronised around it.

    kernel   attention of one token over every layer's heads, alone: entries' bytes / time against a copy's, and the
             largest difference from torch's own attention (of 16, 8 and 4 bits). Without a GPU Triton interprets it
             when `--interpret` asks for it, which is no measure of time
    prefill  a prompt of N tokens, full, and thinned to 20 % of its tokens behind a quarter of the layers; peak memory
             against the plan's. FLOPs = 2 · weights · n + 2 · L · H · D · n², against a large matrix product's
    decode   a cache of random numbers, so that no long prefill comes first: full, packed for flash attention, against
             10 % and 5 % kept by the kernel. Bytes a step = weights + B · kept KV bytes; GB/s against a copy's
    largest  the same with as many rows as 64 GiB hold beside the weights
    needles  `uncomp eval` of the default model, where it is on this machine, on the GPU and on the CPU

After `--minutes` no new measurement begins; one that does not fit, and one that fails, is left out: all are listed with
the reason, and the JSON is written after each step. The last line of standard output is the JSON.
"""

import argparse
import gc
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
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
from uncomp_cli.cache.softmax import Form
from uncomp_cli.config import DEFAULT_MODEL, SamplingConfig
from uncomp_cli.engine.context.context import Asked, Begun, Behind, Context
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.forward.attention import attend_cached, attend_split
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.spend.memory import free_bytes, peak_bytes, reset_peak
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.engine.tokens.tokens import Tokens
from uncomp_cli.engine.write.stores import PlacedRows
from uncomp_cli.engine.write.writer import Writer
from uncomp_cli.errors import UncompError, is_out_of_memory
from uncomp_cli.kernels import launch
from uncomp_cli.models.catalog import ModelInfo, local_path
from uncomp_cli.models.loading import weights_bytes
from uncomp_cli.models.runnable import LoadedModel
from uncomp_cli.models.shape import spec_from_config
from uncomp_cli.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's shape, and the lengths and batches that are measured of it."""

    name: str
    config: LlamaConfig
    prefills: tuple[int, ...]
    decodes: tuple[int, ...]
    batches: tuple[int, ...]
    settings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Size:
    """What is measured, and how often each."""

    shapes: tuple[Shape, ...]
    dtype: torch.dtype
    new_tokens: int
    repeats: int
    copy_bytes: int
    square: int
    largest_bytes: int
    most_rows: int
    needle_tokens: int


FULL, THINNED = "full", "thinned to 20 %"
EVEN, RAGGED, FEW, PAPERS = "10 % kept", "10 % kept, ragged", "5 % kept, ragged", "4.74 % kept, ragged"
SHARES = {FULL: 1.0, EVEN: 0.1, RAGGED: 0.1, FEW: 0.05, PAPERS: 0.0474}


def large() -> Size:
    """The shapes of Llama-3.1-8B and Llama-2-7B, in bf16."""
    grouped = LlamaConfig(
        num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8, head_dim=128, hidden_size=4096,
        intermediate_size=14336, vocab_size=128256, max_position_embeddings=131072, rope_theta=500000.0,
    )  # fmt: skip
    every = LlamaConfig(
        num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=32, head_dim=128, hidden_size=4096,
        intermediate_size=11008, vocab_size=32000, max_position_embeddings=4096,
    )  # fmt: skip
    lengths = (8192, 32768, 65536, 131072)
    shapes = (
        Shape("8B", grouped, lengths, (8192, 32768, 131072), (1, 16, 64), (FULL, EVEN, RAGGED, FEW)),
        Shape("7B, all heads", every, (), (4096,), (1, 16), (FULL, PAPERS)),
    )
    return Size(shapes, torch.bfloat16, 17, 3, 2**30, 8192, 64 * 2**30, 256, 1800)


def tiny() -> Size:
    """The same code in seconds on a CPU."""
    grouped = LlamaConfig(
        num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2, head_dim=16, hidden_size=64,
        intermediate_size=128, vocab_size=256, max_position_embeddings=4096,
    )  # fmt: skip
    shapes = (
        Shape("tiny", grouped, (512, 1024), (512, 1024), (1, 4), (FULL, EVEN, RAGGED, FEW)),
        Shape("tiny, few", grouped, (), (512,), (1,), (FULL, PAPERS)),
    )
    return Size(shapes, torch.float32, 3, 2, 2**20, 128, 2**21, 4, 300)


def random_model(shape: Shape, size: Size, device: torch.device) -> LoadedModel:
    """A model of random weights, made on the device, as if it had been loaded."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(size.dtype)
    try:
        with device:
            model = LlamaForCausalLM(shape.config).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)
    spec = spec_from_config(shape.config, size.dtype)
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
_QUESTION_TOKENS = 16
_GIB = 2**30
_LONG_S = 5.0
"""A measurement that takes as long is not repeated."""
_ERRORS = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Of the largest number in the output, how far the kernel may be off."""


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
    """The median of `repeats` times, after a warm-up; of one where that took long."""
    warm_s = clock(work, device)
    return median(clock(work, device) for _ in range(1 if warm_s > _LONG_S else repeats))


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
    """One measurement to make; of `bits` a number that is kept."""

    shape: str
    phase: str
    tokens: int
    batch: int
    setting: str
    bits: int = 16

    def __str__(self) -> str:
        bits = "" if self.bits == 16 else f", {self.bits} bits"
        return f"{self.shape}: {self.phase}, {self.tokens:,} tokens, batch {self.batch}, {self.setting}{bits}"


def cases(shape: Shape, size: Size) -> Iterator[Case]:
    """What is asked first comes first, short lengths first, so that the time guard leaves out the longest."""
    spec, kept = spec_from_config(shape.config, size.dtype), shape.settings[1:]
    for tokens in shape.decodes:
        yield from (Case(shape.name, "kernel", tokens, 1, setting) for setting in shape.settings)
        yield from (Case(shape.name, "kernel", tokens, 1, kept[-1], bits) for bits in (8, 4))
    for batch in shape.batches:
        for tokens in shape.decodes:
            yield from (Case(shape.name, "decode", tokens, batch, setting) for setting in shape.settings)
    for tokens in shape.prefills:
        yield from (Case(shape.name, "prefill", tokens, 1, setting) for setting in (FULL, THINNED))
    for setting in (FULL, kept[-1]):
        yield Case(shape.name, "largest", shape.decodes[0], largest_batch(spec, setting, shape, size), setting)


def largest_batch(spec: ModelSpec, setting: str, shape: Shape, size: Size) -> int:
    """Rows that `size.largest_bytes` hold beside the weights, `size.most_rows` at most."""
    left = size.largest_bytes - step_weights(spec) * spec.dtype_bytes
    row = needed_bytes(Case(shape.name, "decode", shape.decodes[0], 1, setting), spec, size)
    return max(1, min(size.most_rows, left // row))


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

    planned = engine.plan(prompt, preset).peak_bytes
    seconds = median_s(work, loaded.device, repeats=size.repeats)
    beside = peak_bytes(loaded.device) - (loaded.weights_bytes if loaded.device.type == "cuda" else 0)
    tflop_s = prefill_flops(loaded.spec, case.tokens, read[0].hidden_kept) / seconds / 1e12
    measured = {"seconds": seconds, "tok_s": case.tokens / seconds, "kv_bytes": sum(read[0].layer_bytes())}
    memory = {"planned_peak_bytes": planned, "beside_weights_bytes": beside}
    return {**measured, **memory, "tflop_s": tflop_s, "of_matmul": tflop_s / ceiling["matmul_tflop_s"]}


def kept_lengths(case: Case, heads: int) -> list[int]:
    """Entries of each head: the setting's share on average, where ragged from half to one and a half times that."""
    mean = int(case.tokens * SHARES[case.setting])
    if not case.setting.endswith("ragged"):
        return [mean] * heads
    return [mean // 2 + mean * head // max(1, heads - 1) for head in range(heads)]


def filled_cache(spec: ModelSpec, case: Case, dtype: torch.dtype, device: torch.device, reserve: int) -> RaggedKVCache:
    """A cache of random keys and values, whose entries are the last of the prompt."""
    heads = [*kept_lengths(case, spec.num_kv_heads)] * case.batch
    cache = RaggedKVCache(
        num_layers=spec.num_layers, num_rows=case.batch, num_kv_heads=spec.num_kv_heads, kv_bits=case.bits
    )
    shape = (max(heads), spec.head_dim)
    keys, values = (torch.randn(shape, dtype=dtype, device=device) for _ in range(2))
    positions = torch.arange(case.tokens - max(heads), case.tokens, dtype=torch.int32, device=device)
    for layer in range(spec.num_layers):
        filled = [(keys[-kept:], values[-kept:], positions[-kept:]) for kept in heads]
        cache.store(layer, filled, reserve=reserve)
    return cache


def kernel_on(device: torch.device, *, interpret: bool) -> launch.SplitDecode:
    """The kernel. Raises UncompError with why there is none."""
    found = launch.load() if device.type == "cuda" or interpret else "it runs on a GPU; --interpret runs it here"
    if isinstance(found, str) or found.broken:
        raise UncompError(found if isinstance(found, str) else str(found.broken), hint="")
    return found


def measure_kernel(loaded: LoadedModel, case: Case, size: Size, ceiling: Line, *, interpret: bool = False) -> Line:
    """One token's attention in every layer, by the kernel alone, and by torch in the first."""
    spec, device = loaded.spec, loaded.device
    kernel = kernel_on(device, interpret=interpret)
    cache = filled_cache(spec, case, size.dtype, device, 0)
    query = torch.randn(case.batch, spec.num_heads, 1, spec.head_dim, dtype=size.dtype, device=device)
    form = Form(spec.head_dim**-0.5)
    found = attend_split(kernel, query, cache.layer(0), form)
    if found is None:
        raise UncompError(str(kernel.broken), hint="")
    with by_torch():
        expected = attend_cached(query, cache.layer(0), form)
    error = float((found.float() - expected.float()).abs().max() / expected.float().abs().max())

    def work() -> None:
        for layer in range(spec.num_layers):
            attend_split(kernel, query, cache.layer(layer), form)

    replay = captured(work, kernel) if device.type == "cuda" else None
    seconds = median_s(replay or work, device, repeats=size.repeats)
    read = sum(t.nbytes for layer in map(cache.layer, range(spec.num_layers)) for t in (layer.keys, layer.values))
    if case.bits != 16:
        heads = (head for layer in map(cache.layer, range(spec.num_layers)) for head in layer.quantized if head)
        read = sum(head.nbytes - head.positions.nbytes for head in heads)
    gb_s = read / seconds / 1e9
    figures = {"seconds": seconds, "tok_s": case.batch / seconds, "gb_s": gb_s, "of_copy": gb_s / ceiling["copy_gb_s"]}
    figures |= {"graphed": replay is not None}
    return {**figures, "largest_error": error, "agrees": error <= _ERRORS[size.dtype]}


def captured(work: Callable[[], None], kernel: launch.SplitDecode) -> Callable[[], None] | None:
    """Work as a CUDA graph, launched as one, so that the time is the kernel's and not Python's; None where it fails."""
    work()
    graph, broken = torch.cuda.CUDAGraph(), kernel.broken
    try:
        with torch.cuda.graph(graph):
            work()
    except Exception:  # whatever forbids it: it is measured as it is launched then
        kernel.broken = broken
        return None
    failed, kernel.broken = kernel.broken is not broken, broken
    return None if failed else graph.replay


@contextmanager
def by_torch() -> Iterator[None]:
    """The kernel is not taken inside the block: what is full and packed is flash attention's."""
    found = launch.load()
    before = None if isinstance(found, str) else found.broken
    if not isinstance(found, str):
        found.broken = before or "set aside"
    try:
        yield
    finally:
        if not isinstance(found, str):
            found.broken = before


def measure_decode(loaded: LoadedModel, case: Case, size: Size, ceiling: Line) -> Line:
    """Generate greedily behind a filled cache; the first token needs no step, so there is one step fewer."""
    steps = size.new_tokens - 1
    decoder = Decoder(loaded.model, loaded.spec)
    cache = filled_cache(loaded.spec, case, size.dtype, loaded.device, size.new_tokens)
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

    with by_torch() if case.setting == FULL else nullcontext():
        step_s = median_s(work, loaded.device, repeats=size.repeats) / steps
    step_bytes = step_weights(loaded.spec) * loaded.spec.dtype_bytes + kept_bytes
    gb_s = step_bytes / step_s / 1e9
    measured = {"step_ms": 1e3 * step_s, "tok_s": case.batch / step_s, "kv_bytes": cache.nbytes}
    return {**measured, "step_bytes": step_bytes, "gb_s": gb_s, "of_copy": gb_s / ceiling["copy_gb_s"]}


def needed_bytes(case: Case, spec: ModelSpec, size: Size) -> int:
    """What the cache of a measurement allocates; a prefill plans for itself."""
    if case.phase == "prefill":
        return 0
    heads = [kept + size.new_tokens for kept in kept_lengths(case, spec.num_kv_heads)]
    return int(1.05 * sum(heads) * case.batch * spec.num_layers * spec.kv_bytes_per_entry * case.bits / 16)


def release(device: torch.device) -> None:
    """Give back what the last measurement held, and start a new peak."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    reset_peak(device)


def measure(loaded: LoadedModel, case: Case, size: Size, ceiling: Line, *, interpret: bool = False) -> Line:
    """One case. Raises UncompError when it does not fit."""
    release(loaded.device)
    needed, free = needed_bytes(case, loaded.spec, size), free_bytes(loaded.device)
    if needed > free:
        raise UncompError(f"needs {needed / _GIB:.1f} GiB of cache, {free / _GIB:.1f} GiB are free", hint="")
    if case.phase == "kernel":
        found = measure_kernel(loaded, case, size, ceiling, interpret=interpret)
    else:
        found = (measure_prefill if case.phase == "prefill" else measure_decode)(loaded, case, size, ceiling)
    return {**found, "peak_bytes": peak_bytes(loaded.device)}


def guarded(work: Callable[[], Line], *, until: float) -> Line:
    """What was measured, or `why` not: whatever goes wrong, what comes next is tried."""
    if time.monotonic() > until:
        return {"why": "the time was up"}
    try:
        return work()
    except Exception as error:
        if is_out_of_memory(error):
            return {"why": "memory ran out"}
        return {"why": getattr(error, "message", f"{type(error).__name__}: {error}".splitlines()[0])}


def run_shape(
    shape: Shape, size: Size, device: torch.device, ceiling: Line, *, until: float, interpret: bool = False
) -> Iterator[tuple[Case, Line]]:
    """Every case of a shape with what it measured, or with `why` it was left out."""
    made: list[LoadedModel] = []

    def make() -> Line:
        release(device)
        made.append(random_model(shape, size, device))
        return {}

    missing = guarded(make, until=until)
    for case in cases(shape, size):
        work = partial(measure, *made, case, size, ceiling, interpret=interpret)
        yield case, missing or guarded(work, until=until)


def needles(device: str, size: Size, model: str) -> Line:
    """The needle table of a real model in float32 on `device` and on the CPU, and whether each answer is the same."""
    if local_path(model) is None:
        raise UncompError(f"{model} is not on this machine", hint="")
    found = {place: _needles_on(place, size, model) for place in ("cpu", device)}
    equal = found["cpu"] == found[device]
    return {"phase": "needles", "setting": model, "device": device, "equal": equal, "table": found[device]}


def _needles_on(device: str, size: Size, model: str) -> list[Line]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "needles.jsonl"
        options = ["-t", "needle", "--tokens", str(size.needle_tokens), "--samples", "2", "--regime", "aware"]
        options += ["--policy", "uniform/agreement", "-b", "10%", "-m", model, "--out", str(out), "--offline", "-q"]
        command = [sys.executable, "-m", "uncomp_cli", "eval", *options, "--device", device, "--dtype", "float32"]
        subprocess.run(command, check=True, capture_output=True, timeout=90)
        lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()[1:]]
    kept = ("match", "exact", "coverage")
    told = ({name: line["metrics"].get(name) for name in kept} for line in lines)
    return [
        {"subtask": line["subtask"], "setting": line["setting"], **each} for line, each in zip(lines, told, strict=True)
    ]


def hardware(device: torch.device) -> Line:
    """The device's name and memory."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        capability = f"{properties.major}.{properties.minor}"
        return {"name": properties.name, "memory_bytes": properties.total_memory, "capability": capability}
    return {"name": cpu_name(), "threads": torch.get_num_threads()}


def about(size: Size, device: torch.device) -> Line:
    """What is measured on what."""
    versions = {name: version(name) for name in ("torch", "transformers")}
    own = {"uncomp": __version__, "python": platform.python_version(), "cuda": torch.version.cuda}
    shapes = {}
    for shape in size.shapes:
        spec = spec_from_config(shape.config, size.dtype)
        shapes[shape.name] = {**asdict(spec), "sliding_windows": None, "layer_weights": layer_weights(spec)}
    return {
        "schema_version": 2,
        "kind": "gpu",
        "hardware": hardware(device),
        "versions": {**own, **versions, "decode_kernel": launch.state()},
        "shapes": shapes,
        "dtype": str(size.dtype).removeprefix("torch."),
        "repeats": size.repeats,
        "new_tokens": size.new_tokens,
    }


def run(
    size: Size,
    device: torch.device,
    *,
    minutes: float,
    keep: Callable[[Line], object],
    interpret: bool = False,
    model: str = DEFAULT_MODEL,
) -> Line:
    """The record, which is given to `keep` after each step."""
    begun = time.monotonic()
    until = begun + 60 * minutes
    ceiling = ceilings(size, device)
    record = {**about(size, device), "ceilings": ceiling, "measurements": [], "left_out": []}

    def take(what: Line, found: Line) -> None:
        record["left_out" if "why" in found else "measurements"].append({**what, **found})
        keep({**record, "seconds": time.monotonic() - begun})

    for shape in size.shapes:
        for case, found in run_shape(shape, size, device, ceiling, until=until, interpret=interpret):
            take(asdict(case), found)
            figure = found.get("why") or f"{found['tok_s']:,.1f} tok/s"
            print(f"{time.monotonic() - begun:4.0f} s  {case}: {figure}", file=sys.stderr, flush=True)
    found = guarded(lambda: needles(device.type, size, model), until=until)
    take({"phase": "needles"}, found)
    figure = found.get("why") or f"equal to the CPU's: {found['equal']}"
    print(f"{time.monotonic() - begun:4.0f} s  needles: {figure}", file=sys.stderr, flush=True)
    return {**record, "seconds": time.monotonic() - begun}


def dry(size: Size) -> Iterator[str]:
    """A line for each step, in order, and the bytes of the weights and of each cache."""
    yield "ceilings: a copy, a square matrix product"
    for shape in size.shapes:
        spec = spec_from_config(shape.config, size.dtype)
        yield f"{shape.name}: weights of {step_weights(spec) * spec.dtype_bytes / _GIB:.1f} GiB"
        for case in cases(shape, size):
            cache = needed_bytes(case, spec, size)
            yield f"{case}: " + (f"cache of {cache / _GIB:.2f} GiB" if cache else "as its plan says")
    yield f"needles of {size.needle_tokens:,} tokens: {DEFAULT_MODEL}, on the GPU and on the CPU"


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="tiny shapes in float32 on the CPU")
    parser.add_argument("--interpret", action="store_true", help="with --tiny: the kernel too, in Triton's interpreter")
    parser.add_argument("--dry", action="store_true", help="say what would be measured, and measure nothing")
    parser.add_argument("--model", default=DEFAULT_MODEL, help="whose needle table is compared")
    parser.add_argument("--minutes", type=float, default=6.0, help="begin no measurement after so many")
    parser.add_argument("--out", type=Path, help="the JSON")
    args = parser.parse_args(words)
    size, device = (tiny(), "cpu") if args.tiny else (large(), "cuda")
    if args.dry:
        print("\n".join(dry(size)))
        return 0
    if not args.tiny and not torch.cuda.is_available():
        print("there is no CUDA device\nhint: --tiny runs the same code on the CPU", file=sys.stderr)
        return 1
    if args.interpret and os.environ.get("TRITON_INTERPRET") != "1":  # which has to be known before Triton is imported
        again = [sys.executable, __file__, *(sys.argv[1:] if words is None else words)]
        return subprocess.run(again, env={**os.environ, "TRITON_INTERPRET": "1"}, check=False).returncode

    def keep(record: Line) -> None:
        if args.out:
            args.out.write_text(json.dumps(record) + "\n", encoding="utf-8")

    found = run(size, torch.device(device), minutes=args.minutes, keep=keep, interpret=args.interpret, model=args.model)
    keep(found)
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
