"""A ragged cache of random numbers, and a record of what it might have been made from."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from uncomp_cli.budget.values import Uncertainty
from uncomp_cli.cache.header import METADATA_KEY, NO_HASH, MadeBy, MadeFrom, MadeWith, Record
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.config import ScorerConfig

LAYERS, KV_HEADS, DIM = 2, 3, 6


def make_cache(
    lengths: list[int], *, kv_bits: int = 16, dtype: torch.dtype = torch.float32, tail: int = 2, dim: int = DIM
) -> RaggedKVCache:
    """A cache of random numbers whose heads have these lengths in every layer, and `tail` tokens behind them."""
    torch.manual_seed(7)
    cache = RaggedKVCache(num_layers=LAYERS, num_rows=1, num_kv_heads=len(lengths), kv_bits=kv_bits)
    for layer in range(LAYERS):
        heads = [
            (torch.randn(n, dim).to(dtype), torch.randn(n, dim).to(dtype), torch.arange(n, dtype=torch.int32) * 2)
            for n in lengths
        ]
        cache.store(layer, heads, reserve=tail)
        if tail:
            first = 2 * max(lengths)
            new = torch.randn(2, 1, len(lengths), tail, dim).to(dtype)
            cache.append(layer, new[0], new[1], torch.arange(first, first + tail)[None])
    return cache


RECORD = Record(
    key=NO_HASH,
    created="2026-01-31T12:00:00+00:00",
    model=MadeWith("tiny", NO_HASH, NO_HASH, NO_HASH, {"rope_type": "default"}, "float32", None, "float32"),
    preset="unseen",
    compression=MadeBy("uniform", ScorerConfig(), "30%", 0, 16, None, None, None),
    query_aware=False,
    context_sha256=NO_HASH,
    context_tokens=1234,
    kept_entries=100,
    kv_full_bytes=100_000,
    uncertainty=Uncertainty("loss", ((0.5,), (0.25,))),
    documents=(MadeFrom("a.md", NO_HASH, 1200, False, 0), MadeFrom("zoë.md", NO_HASH, 34, False, 0)),
)


def make_record(*, key: str = "", **changes: Any) -> Record:
    """A record whose key begins with `key`."""
    return replace(RECORD, key=key.ljust(64, "0"), **changes)


def resave(
    path: Path,
    *,
    manifest: Mapping[str, Any] | None = None,
    tensors: Mapping[str, torch.Tensor | None] | None = None,
) -> None:
    """Change a saved cache and its checksum too, as somebody of bad intentions would; None takes a tensor out."""
    held = {name: tensor for name, tensor in {**load_file(path), **(tensors or {})}.items() if tensor is not None}
    described, end, data = {}, 0, b""
    for name, tensor in sorted(held.items(), key=lambda item: -item[1].element_size()):
        piece = tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
        begin, end = end, end + len(piece)
        described[name] = {"dtype": _CODES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        data += piece
    with safe_open(path, framework="pt") as file:
        written = json.loads(file.metadata()[METADATA_KEY])
    written |= {"tensor_bytes": len(data), **(manifest or {}), "sha256": NO_HASH}
    path.write_bytes(signed({"__metadata__": {METADATA_KEY: json.dumps(written)}, **described}, data))


_CODES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def signed(header: Any, data: bytes) -> bytes:
    """A file of this header (JSON text or data) and these tensors, with the checksum in the place of its zeros."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    head = len(text).to_bytes(8, "little") + text
    digest = hashlib.sha256(head + data).hexdigest()
    return head.replace(NO_HASH.encode(), digest.encode(), 1) + data
