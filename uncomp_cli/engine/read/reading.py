"""Reading one prompt as it was planned: in one pass (prefill.py), in chunks, or thinned on the way (streamed.py)."""

import time
from collections.abc import Callable, Generator
from dataclasses import replace

import torch
from torch import Tensor

from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.cache.scorers import Scorer
from uncomp_cli.config import ScorerConfig
from uncomp_cli.engine.context.context import Context
from uncomp_cli.engine.forward.decoder import Decoder, rope_frequencies
from uncomp_cli.engine.forward.thread import stream
from uncomp_cli.engine.read.prefill import prefill
from uncomp_cli.engine.read.rereading import choose_passages, read_again
from uncomp_cli.engine.read.streamed import StreamedState
from uncomp_cli.engine.read.thinner import Thinner
from uncomp_cli.engine.records import PrefillStep
from uncomp_cli.engine.spend.allocation import Allocation
from uncomp_cli.engine.spend.compression import Compression
from uncomp_cli.engine.tokens.chunks import Chunk, cut_chunks
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.errors import ModelError

__all__ = ["read_compressed", "read_streamed"]


def read_compressed(decoder: Decoder, planned: Compression) -> Generator[PrefillStep, None, Context]:
    """Read one prompt as planned: in one pass, or in chunks, or thinned."""
    if not planned.streamed:
        prompts, plans = [planned.prompt], [planned.allocation]
        return (yield from prefill(decoder, prompts, plans, scorer=planned.scorer, config=planned.config))
    return (
        yield from read_streamed(
            decoder,
            planned.prompt,
            planned.allocation,
            scorer=planned.scorer,
            config=planned.config,
            thinner=planned.thinner,
            chunk_tokens=planned.chunk_tokens,
            repack=planned.repack,
            reread_tokens=planned.reread_tokens,
        )
    )


def read_streamed(
    decoder: Decoder,
    prompt: Prompt,
    allocation: Allocation,
    *,
    scorer: Scorer,
    config: ScorerConfig,
    thinner: Thinner,
    chunk_tokens: int | None = None,
    repack: bool = False,
    reread_tokens: int | None = None,
) -> Generator[PrefillStep, None, Context]:
    """Read a prompt `chunk_tokens` at a time (None: at once), thinned on the way; one record a chunk and layer.

    With `repack` it may be longer than the model was trained for (repacked.py); of `reread_tokens` tokens of it a cache
    of their own is made in the end (rereading.py). Raises ModelError where the model's
    layers do not share one RoPE.
    """
    spec, frequencies = decoder.spec, rope_frequencies(decoder.model)
    if repack and frequencies is None:
        raise ModelError(
            f"models of the family {spec.model_type} cannot be re-packed: their layers do not share one RoPE",
            hint="use --rope yarn instead of repack, or --truncate",
        )
    cache = RaggedKVCache(
        num_layers=spec.num_layers, num_rows=1, num_kv_heads=spec.num_kv_heads, kv_bits=allocation.plan.kv_bits
    )
    chunks = list(cut_chunks(prompt, chunk_tokens))
    passes = len(chunks) + (reread_tokens is not None)
    begun = time.perf_counter()

    def work(emit: Callable[[PrefillStep], None]) -> Context:
        done = 0

        def on_layer(layer: int) -> None:
            nonlocal done
            done += 1
            elapsed = time.perf_counter() - begun
            emit(PrefillStep(done, passes * spec.num_layers, prompt.flat_len, elapsed, cache.nbytes))

        state = StreamedState(
            prompt,
            allocation,
            scorer=scorer,
            config=config,
            cache=cache,
            thinner=thinner,
            on_layer=on_layer,
            rows_interact=decoder.rows_interact,
            frequencies=frequencies,
            repack=repack,
        )
        read = Context([prompt], cache, state.questions)
        for chunk in chunks:
            state.begin(chunk, decoder.device)
            read.logits = _read_chunk(decoder, chunk, state)
            state.finish()
        if reread_tokens is not None:
            again = torch.zeros(len(prompt.context), dtype=torch.bool) | prompt.protected
            again[len(prompt.context) - prompt.asked :] = True
            at = choose_passages(state.agreed().cpu(), again, most=reread_tokens)
            cache.clear()  # what the first pass held has said what it knew
            read = read_again(
                decoder, prompt, at, allocation, cache=cache, scorer=scorer, config=config, on_layer=on_layer
            )
        if thinner.active:
            read.hidden_kept = tuple(count / len(prompt.context) for count in thinner.entered)
            allocation.plan = replace(allocation.plan, hidden=read.hidden_kept)
        return read

    return (yield from stream(work))


def _read_chunk(decoder: Decoder, chunk: Chunk, state: StreamedState) -> Tensor:
    """Logits [Q, vocab] behind every question of a chunk."""
    ids, positions = chunk.layout()
    lengths = torch.tensor([len(question) for question in chunk.prompt.questions])
    from_end = lengths.sum() - lengths.cumsum(0) + 1
    if state.thinner.active:
        return decoder.layer_by_layer(ids, positions, state, from_end)[0]
    return decoder.forward(ids, positions, state, ids.shape[1] - from_end)[0]
