"""How often a step waits for its device: once, for what the next tokens are chosen from.

The model and the cache are on `meta`, which has no numbers: whatever asks for one fails, but for the two ways by which
`fetch` asks and the one by which a watch counts a head's sinks when rows are laid out, and those are counted.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from support.batches import load_tiny
from support.tiny import byte_tokenizer
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.config import SamplingConfig
from uncomp_cli.engine.context.context import Asked, Begun, Behind, Context
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.look.watch import Watched
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.engine.tokens.tokens import Tokens
from uncomp_cli.engine.write.stores import PlacedRows
from uncomp_cli.engine.write.writer import Writer

META, TOKENS, ROWS, STEPS = torch.device("meta"), 50, 2, 4
READS = {"tolist": Tensor.tolist, "numpy": Tensor.numpy, "__int__": Tensor.__int__}


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The reads of tensors that are on the device."""
    found: list[str] = []

    def counted(name: str) -> Any:
        def read(tensor: Tensor, *given: Any, **named: Any) -> Any:
            if tensor.device.type != "meta":
                return READS[name](tensor, *given, **named)
            found.append(name)
            zeros = np.zeros(tuple(tensor.shape), np.float32)
            return {"tolist": zeros.tolist, "numpy": lambda: zeros, "__int__": lambda: 0}[name]()

        return read

    for name in READS:
        monkeypatch.setattr(Tensor, name, counted(name))
    return found


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    loaded = load_tiny("llama")
    return Decoder(loaded.model.to(META), loaded.spec)


def cache_of(spec: Any, rows: int, bits: int) -> RaggedKVCache:
    """Heads of different lengths without numbers."""
    cache = RaggedKVCache(num_layers=spec.num_layers, num_rows=rows, num_kv_heads=spec.num_kv_heads, kv_bits=bits)
    for layer in range(spec.num_layers):
        lengths = range(TOKENS - rows * spec.num_kv_heads, TOKENS)
        heads = [torch.empty(2, length, spec.head_dim, device="meta") for length in lengths]
        at = torch.arange(TOKENS, device="meta", dtype=torch.int32)
        cache.store(layer, [(both[0], both[1], at[: both.shape[1]]) for both in heads])
    return cache


def counted_steps(writer: Writer, waits: list[str]) -> Iterator[int]:
    """Waits for each round of tokens."""
    for _ in writer.rounds():
        yield len(waits)
        waits.clear()


@pytest.mark.parametrize(
    ("bits", "temperature", "watched"), [(16, 0.0, False), (16, 0.0, True), (16, 0.7, True), (4, 0.0, False)]
)
def test_a_step_of_rows_waits_once(
    decoder: Decoder, bits: int, temperature: float, watched: bool, waits: list[str]
) -> None:
    spec = decoder.spec
    cache, prompt = cache_of(spec, ROWS, bits), Prompt(Tokens.of([1] * TOKENS), ((),))
    begun = Begun(torch.zeros(1, spec.vocab_size, device="meta"))
    asked = [Asked(Context(decoder, prompt, cache, Behind(begun)), 0, 2 * STEPS) for _ in range(ROWS)]
    sampling = SamplingConfig(temperature=temperature)
    watch = Watched(((0, 0), (1, 1)), outputs=True) if watched else None
    store = PlacedRows(spec, cache)
    writer = Writer(decoder, byte_tokenizer(), sampling, asked, store=store, stop_ids=(), watch=watch)
    begun, first, *rest = islice(counted_steps(writer, waits), STEPS)  # an answer's end is read too, once a row
    assert begun == ROWS  # each row's first token, from where its prompt was read
    assert first == 1 + (2 * 2 * ROWS if watched else 0)
    assert rest == [1] * (STEPS - 2)
