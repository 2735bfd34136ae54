"""A GGUF of a real model's shape and random blocks: how long it takes to load, to read and to write, and what memory.

    python benchmarks/large_gguf.py make DIRECTORY/large.gguf [--shape 7b] [--kind Q4_0] [--layers 32]
    python benchmarks/large_gguf.py run DIRECTORY/large.gguf [--tokens 512] [--new 32] [--preset full] [--budget 5%]
    python benchmarks/large_gguf.py peer DIRECTORY/large.gguf --peers DIRECTORY [--tokens 512] [--new 32]
    python benchmarks/large_gguf.py calibrate DIRECTORY/large.gguf [--tokens 2000]

The shapes are Llama 2 7B's (32 layers of 4,096, 32 heads, an MLP of 11,008, a vocabulary of 32,000) and one of 0.5
billion weights (24 layers of 896, 14 heads over 2 KV heads, 4,864, 151,936). What it says means nothing; bytes and
operations are those of a real one. `peer` runs llama.cpp on the same tokens, with flash attention and all cores
(peers/README.md says how it is built). `calibrate` measures one sample, as `uncomp calibrate` does. The last line is
JSON.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import gguf
import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

sys.path.append(str(Path(__file__).resolve().parent / "peers"))  # programs that import each other by name

from timed import peer_arms, run_peer

from uncomp_cli.budget.amount import Budget
from uncomp_cli.budget.presets import Preset, load_preset

CONTEXT, ANSWER_TOKENS = 16_384, 128


@dataclass(frozen=True)
class Shape:
    """Of a Llama."""

    layers: int
    hidden: int
    inner: int
    heads: int
    kv_heads: int
    vocab: int

    def matrices(self) -> dict[str, tuple[int, int]]:
        """Those of a layer, [rows, cols]."""
        hidden, inner, narrow = self.hidden, self.inner, self.hidden // self.heads * self.kv_heads
        return {
            "attn_q": (hidden, hidden), "attn_k": (narrow, hidden), "attn_v": (narrow, hidden),
            "attn_output": (hidden, hidden),
            "ffn_gate": (inner, hidden), "ffn_up": (inner, hidden), "ffn_down": (hidden, inner),
        }  # fmt: skip


SHAPES = {"7b": Shape(32, 4096, 11008, 32, 32, 32_000), "0.5b": Shape(24, 896, 4864, 14, 2, 151_936)}


def random_blocks(kind: gguf.GGMLQuantizationType, rows: int, cols: int, chance: np.random.Generator) -> np.ndarray:
    """Blocks of random codes under small scales: of a kind whose block begins with its scale."""
    span, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.frombuffer(chance.bytes(rows * cols // span * size), np.uint8).reshape(rows, -1, size).copy()
    blocks[..., :2] = np.array([0.002], np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


def make(path: Path, shape: Shape, kind: gguf.GGMLQuantizationType) -> None:
    """Write the file."""
    writer, chance = gguf.GGUFWriter(str(path), "llama", use_temp_file=True), np.random.default_rng(0)
    writer.add_block_count(shape.layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.hidden // shape.heads)
    writer.add_vocab_size(shape.vocab)
    writer.add_file_type(2)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    letters = sorted(ByteLevel.alphabet())  # so that a text has as many tokens as bytes
    last = letters[-2:]  # hardly any text has them together: llama.cpp wants one merge
    tokens = [*letters, "".join(last), *(f"<{index}>" for index in range(shape.vocab - len(letters) - 1))]
    writer.add_token_list(tokens)
    writer.add_token_types([1] * shape.vocab)
    writer.add_token_merges([" ".join(last)])
    writer.add_eos_token_id(shape.vocab - 1)
    named = dict.fromkeys(("token_embd", "output"), (shape.vocab, shape.hidden))
    for layer in range(shape.layers):
        named |= {f"blk.{layer}.{name}": size for name, size in shape.matrices().items()}
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(shape.hidden, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(shape.hidden, np.float32))
    for name, (rows, cols) in named.items():
        writer.add_tensor(f"{name}.weight", random_blocks(kind, rows, cols, chance), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def prompt_ids(tokens: int, shape: Shape) -> list[int]:
    """The tokens of a prompt, the same for both programs."""
    return np.random.default_rng(1).integers(0, shape.vocab - 1, tokens).tolist()


def peer(path: Path, peers: Path, shape: Shape, tokens: int, new: int) -> dict[str, object]:
    """llama.cpp's first token, in seconds, and its tokens a second."""
    ids = prompt_ids(tokens, shape)
    arms = peer_arms(peers, ids, new_tokens=new, model=path, ggufs=[path], keep=1.0)
    arm = next(arm for arm in arms if arm.peer == "llama.cpp" and arm.label.endswith("flash attention"))
    return {"label": arm.label, **run_peer(arm)}


def run(path: Path, shape: Shape, tokens: int, new: int, preset: Preset) -> dict[str, object]:
    """Load, read and write; times in seconds, memory in bytes."""
    import torch

    from uncomp_cli.config import SamplingConfig
    from uncomp_cli.engine.engine import Engine
    from uncomp_cli.engine.spend.memory import peak_bytes, resident_bytes
    from uncomp_cli.engine.tokens.prompt import Prompt
    from uncomp_cli.engine.tokens.tokens import Tokens
    from uncomp_cli.models.catalog import ensure_local
    from uncomp_cli.models.loading import load_model

    begun = time.perf_counter()
    list(ensure_local(str(path)))
    pulled = time.perf_counter()
    loaded = load_model(str(path), device="cpu")
    engine = Engine(loaded, sampling=SamplingConfig(max_new_tokens=new, lookup=False), matmul="auto")
    ready, after_load = time.perf_counter(), peak_bytes(loaded.device)
    ids = prompt_ids(tokens, shape)
    context = engine.read(Prompt(Tokens.of(tuple(ids[:-8])), (tuple(ids[-8:]),)), preset).finish()
    read = time.perf_counter()
    arrivals = [time.perf_counter() for _ in engine.writer(engine.asked(context), stop_ids=()).write()]
    return {
        "file_bytes": path.stat().st_size, "weights_bytes": loaded.weights_bytes, "pull_s": pulled - begun,
        "load_s": ready - pulled, "read_s": read - ready, "tokens": tokens,
        "ttft_s": arrivals[0] - ready, "decode_tok_s": (len(arrivals) - 1) / (arrivals[-1] - arrivals[0]),
        "preset": preset.name, "budget": str(preset.budget), "kv_bytes": context.cache.nbytes,
        "resident_bytes": resident_bytes(loaded.device), "load_peak_bytes": after_load,
        "peak_bytes": peak_bytes(loaded.device), "threads": torch.get_num_threads(),
    }  # fmt: skip


def calibrate(path: Path, tokens: int) -> dict[str, object]:
    """Measure one sample; seconds, and the bytes at most beside those after loading."""
    import torch

    from uncomp_cli.calibrate.calibration import MeasuringConfig, measurable, read_and_measure
    from uncomp_cli.engine.forward.decoder import Decoder
    from uncomp_cli.engine.spend.memory import peak_bytes, reset_peak, resident_bytes
    from uncomp_cli.engine.tokens.prompt import Prompt
    from uncomp_cli.engine.tokens.tokens import Tokens
    from uncomp_cli.models.catalog import ensure_local
    from uncomp_cli.models.loading import load_model

    list(ensure_local(str(path)))
    loaded = load_model(str(path), device="cpu")
    decoder = Decoder(loaded.model, loaded.spec)
    chance, total = torch.Generator().manual_seed(0), tokens + ANSWER_TOKENS
    ids = torch.randint(0, min(30_000, loaded.spec.vocab_size - 1), (total,), generator=chance).tolist()
    prompt = Prompt(Tokens.of(tuple(ids[: tokens - 12])), (tuple(ids[tokens - 12 : tokens]),))
    config = MeasuringConfig(measurable(decoder, MeasuringConfig().measures))
    reset_peak(loaded.device)
    before, begun = resident_bytes(loaded.device), time.perf_counter()
    read_and_measure(decoder, prompt, ids[tokens:], config=config)
    peak, seconds = peak_bytes(loaded.device), time.perf_counter() - begun
    return {
        "file_bytes": path.stat().st_size, "weights_bytes": loaded.weights_bytes, "tokens": tokens,
        "sample_s": seconds, "loaded_bytes": before, "more_bytes": peak - before, "threads": torch.get_num_threads(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("make", "run", "peer", "calibrate"))
    parser.add_argument("path", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--kind", default="Q4_0")
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--new", type=int, default=32)
    parser.add_argument("--preset", default="full")
    parser.add_argument("--budget", type=Budget.parse)
    parser.add_argument("--peers", type=Path)
    args = parser.parse_args()
    shape, tokens = SHAPES[args.shape], args.tokens or 512
    if args.action == "make":
        make(args.path, replace(shape, layers=args.layers or shape.layers), gguf.GGMLQuantizationType[args.kind])
    elif args.action == "calibrate":
        print(json.dumps(calibrate(args.path, args.tokens or 2000)))
    elif args.action == "peer":
        print(json.dumps(peer(args.path, args.peers, shape, tokens, args.new)))
    else:
        preset = load_preset(args.preset)
        preset = replace(preset, budget=args.budget, floor_tokens=0) if args.budget else preset
        print(json.dumps(run(args.path, shape, tokens, args.new, preset)))


if __name__ == "__main__":
    main()
