"""A GGUF of a 7B model's shape and random blocks: how long it takes to load, to read and to write, and what memory.

    python benchmarks/large_gguf.py make DIRECTORY/large.gguf [--layers 32] [--kind Q4_0]
    python benchmarks/large_gguf.py run DIRECTORY/large.gguf [--tokens 512] [--new 32]

The shape is Llama 2 7B's: 32 layers of 4,096, 32 heads, an MLP of 11,008, a vocabulary of 32,000. What it says means
nothing; bytes and operations are those of a real one. The last line of `run` is JSON.
"""

import argparse
import json
import time
from pathlib import Path

import gguf
import numpy as np

HIDDEN, INNER, HEADS, VOCAB, CONTEXT = 4096, 11008, 32, 32_000, 4096
MATRICES = {
    "attn_q": (HIDDEN, HIDDEN), "attn_k": (HIDDEN, HIDDEN), "attn_v": (HIDDEN, HIDDEN), "attn_output": (HIDDEN, HIDDEN),
    "ffn_gate": (INNER, HIDDEN), "ffn_up": (INNER, HIDDEN), "ffn_down": (HIDDEN, INNER),
}  # fmt: skip


def random_blocks(kind: gguf.GGMLQuantizationType, rows: int, cols: int, chance: np.random.Generator) -> np.ndarray:
    """Blocks of random codes under small scales: of a kind whose block begins with its scale."""
    span, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.frombuffer(chance.bytes(rows * cols // span * size), np.uint8).reshape(rows, -1, size).copy()
    blocks[..., :2] = np.array([0.002], np.float16).view(np.uint8)
    return blocks.reshape(rows, -1)


def make(path: Path, layers: int, kind: gguf.GGMLQuantizationType) -> None:
    """Write the file."""
    writer, chance = gguf.GGUFWriter(str(path), "llama", use_temp_file=True), np.random.default_rng(0)
    writer.add_block_count(layers)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(VOCAB)
    writer.add_file_type(2)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    tokens = [f"<{index}>" for index in range(VOCAB)]
    writer.add_token_list(tokens)
    writer.add_token_types([1] * VOCAB)
    writer.add_token_merges([])
    writer.add_eos_token_id(VOCAB - 1)
    named = {"token_embd": (VOCAB, HIDDEN), "output": (VOCAB, HIDDEN)}
    for layer in range(layers):
        named |= {f"blk.{layer}.{name}": shape for name, shape in MATRICES.items()}
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(HIDDEN, np.float32))
    writer.add_tensor("output_norm.weight", np.ones(HIDDEN, np.float32))
    for name, (rows, cols) in named.items():
        writer.add_tensor(f"{name}.weight", random_blocks(kind, rows, cols, chance), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def run(path: Path, tokens: int, new: int) -> dict[str, object]:
    """Load, read and write; times in seconds, memory in bytes."""
    import torch

    from uncomp_cli.budget.presets import load_preset
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
    engine = Engine(loaded, sampling=SamplingConfig(max_new_tokens=new))
    ready, after_load = time.perf_counter(), peak_bytes(loaded.device)
    ids = torch.randint(0, VOCAB - 1, (tokens + 8,), generator=torch.Generator().manual_seed(0)).tolist()
    context = engine.read(Prompt(Tokens.of(tuple(ids[:-8])), (tuple(ids[-8:]),)), load_preset("full")).finish()
    read = time.perf_counter()
    written = sum(1 for _ in engine.writer(engine.asked(context), stop_ids=()).write())
    done = time.perf_counter()
    return {
        "file_bytes": path.stat().st_size, "weights_bytes": loaded.weights_bytes, "pull_s": pulled - begun,
        "load_s": ready - pulled, "read_s": read - ready, "tokens": tokens,
        "ms_per_token": (done - read) / written * 1e3,
        "resident_bytes": resident_bytes(loaded.device), "load_peak_bytes": after_load,
        "peak_bytes": peak_bytes(loaded.device), "threads": torch.get_num_threads(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("make", "run"))
    parser.add_argument("path", type=Path)
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--kind", default="Q4_0")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--new", type=int, default=32)
    args = parser.parse_args()
    if args.action == "make":
        make(args.path, args.layers, gguf.GGMLQuantizationType[args.kind])
    else:
        print(json.dumps(run(args.path, args.tokens, args.new)))


if __name__ == "__main__":
    main()
