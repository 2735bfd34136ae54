"""Generation: one token at a time behind a cache, as a stream of records."""

import time
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.engine.forward.attention import AppendState, in_turn
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.look.watching import AnswerWatch
from uncomp_cli.engine.records import DecodeStep, FinishReason
from uncomp_cli.engine.write.constant import ConstantSize
from uncomp_cli.engine.write.sampling import Sampler

__all__ = ["TextStream", "generate", "stop_tokens"]


class TextStream:
    """Turns one row's token ids into text as soon as it is whole characters."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def push(self, token_id: int) -> str:
        """What became printable with this token; empty while a character is incomplete."""
        return self._stream.step(self._tokenizer, token_id) or ""


def generate(
    decoder: Decoder,
    cache: RaggedKVCache,
    logits: Tensor,
    positions: Tensor,
    *,
    tokenizer: PreTrainedTokenizerFast,
    sampler: Sampler,
    stop_ids: Sequence[int],
    max_new_tokens: int,
    constant: ConstantSize | None = None,
    watch: AnswerWatch | None = None,
) -> Iterator[DecodeStep]:
    """Generate behind `cache` from the logits [B, vocab] of the last prompt token; one record a token.

    positions [B, 1] is where the first new token stands. A row ends at a stop token, which is not shown, or at
    `max_new_tokens`; the others go on. The last chosen token is not put into the cache. `constant` keeps the size of
    its own `cache`, which must be the one given here; without it the cache grows with every token. `watch` sees every
    token that is put into the cache. Raises ValueError for another cache.
    """
    if constant is not None and constant.cache is not cache:
        raise ValueError("a constant size is that of its own cache: pass constant.cache")
    begun = time.perf_counter()
    streams = [TextStream(tokenizer) for _ in range(len(logits))]
    reasons: list[FinishReason | None] = [None] * len(logits)
    generated = torch.empty(len(logits), max_new_tokens, dtype=torch.int64)
    positions = positions.to(decoder.device)
    # The watch first: a cache of constant size may lose what the token has just looked at.
    on_query = in_turn(*(one.observe for one in (watch, constant) if one is not None))
    for index in range(max_new_tokens):
        if watch is not None:
            watch.predict(logits)
        chosen = sampler.choose(logits, generated[:, :index])
        generated[:, index] = chosen
        ids = chosen.tolist()
        silent = [reason is not None or token in stop_ids for reason, token in zip(reasons, ids, strict=True)]
        texts = tuple(
            "" if hush else stream.push(token) for hush, stream, token in zip(silent, streams, ids, strict=True)
        )
        reasons = [
            reason or _reason(token, index, stop_ids, max_new_tokens)
            for reason, token in zip(reasons, ids, strict=True)
        ]
        yield DecodeStep(index, tuple(ids), texts, tuple(reasons), time.perf_counter() - begun, cache.nbytes)
        if all(reasons):
            return
        state = AppendState(cache, positions, on_query=on_query)
        logits = decoder.forward(chosen[:, None], positions, state, 1)[:, -1]
        positions = positions + 1


def stop_tokens(model: Any, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """The tokens that end an answer: the generation config's, the model config's and the tokenizer's."""
    found: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        found.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
    return tuple(sorted(found))


def _reason(token: int, index: int, stop_ids: Sequence[int], max_new_tokens: int) -> FinishReason | None:
    if token in stop_ids:
        return "stop"
    return "length" if index + 1 == max_new_tokens else None
