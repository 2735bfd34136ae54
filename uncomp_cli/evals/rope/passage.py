"""A text under one RoPE: how well is it predicted, where do its tokens look, and is a needle in it found?

Plain text: one pass in slices, of which only the losses stay: a slice's logits are all that is held beside the cache.
Every token is predicted behind what the arm holds of the text before it, so that a re-packed or compressed arm is
judged by its own reading. The last tokens of the text stand for a question: they observe what is evicted, and are not
judged.

The pattern of attention by relative distance is taken at the end of the last slice before a length: the mean over the
last queries, by head, sinks left out. Distances are those that the model sees: re-packed entries are counted.

A needle: sample → read as the arm reads (whole, compressed or re-packed) → NLL of the answer → greedy answer, watched.
The entropy of a token is that of the attention row with which it looks back once it is written (arXiv 2406.13282); the
row behind the prompt, which chooses the first token, belongs to the prefill and is not watched.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from uncomp_cli.budget.presets import Preset
from uncomp_cli.cache.layer import Head
from uncomp_cli.cache.softmax import Form
from uncomp_cli.config import LEAST_CHUNK_TOKENS, Limits, SamplingConfig
from uncomp_cli.engine.context.context import Context
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.forward.attention import AttentionState
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.forward.mixers import Step
from uncomp_cli.engine.look.watch import AnswerWatch, HeadAt, Watched, all_heads
from uncomp_cli.engine.read.chunk import Chunk
from uncomp_cli.engine.read.distances import Reach, packed
from uncomp_cli.engine.read.reader import Reader
from uncomp_cli.engine.spend.allocation import scorer_config
from uncomp_cli.engine.spend.compression import Compression, plan_compression
from uncomp_cli.engine.spend.memory import free_bytes
from uncomp_cli.engine.tokens.prompt import Prompt, count_tokens, decode, encode
from uncomp_cli.engine.tokens.tokens import Tokens
from uncomp_cli.engine.write.writer import stop_tokens
from uncomp_cli.evals.judges.answers import match_score
from uncomp_cli.evals.judges.case import tokenise
from uncomp_cli.evals.judges.forced_rows import MAX_LOGITS_BYTES, token_nll
from uncomp_cli.evals.rope.arms import ANSWER_ROOM, RopeArm
from uncomp_cli.evals.rope.cells import NeedleCell, TextCell
from uncomp_cli.evals.tasks.haystack import SEPARATOR, CountTokens, Haystack
from uncomp_cli.evals.tasks.quiz import needle_sample
from uncomp_cli.evals.tasks.task import Query, Request, Sample
from uncomp_cli.models.runnable import LoadedModel
from uncomp_cli.spec import ModelSpec
from uncomp_cli.uncertainty.distance_pattern import distance_edges

BIN_TOKENS = 512
_OBSERVERS = 32
_LONGEST_SLICE = 2048
_SLICES_IN_REACH = 4
_LONGEST_DISTANCE = 1 << 20  # the same bins in every run, so that one can go on with longer texts
_SPARE = 1.05  # an excerpt is hardly shorter than what was asked for


@lru_cache(maxsize=4)
def counter(tokenizer: Any) -> CountTokens:
    """Counts the tokens of a text: one function a tokenizer, so that a haystack's paragraphs are counted once."""
    return partial(count_tokens, tokenizer)


def text_ids(tokenizer: Any, haystack: Haystack, tokens: int) -> tuple[int, ...]:
    """The first `tokens` tokens of the text. Raises UsageError when it is shorter."""
    wanted = int(_SPARE * tokens)
    text = SEPARATOR.join(haystack.excerpt_at(0.0, tokens=wanted, count_tokens=counter(tokenizer)))
    return tuple(encode(tokenizer, text, special=False)[:tokens])


def slice_tokens(spec: ModelSpec) -> int:
    """Tokens of a slice: as many as have their logits within bounds."""
    most = MAX_LOGITS_BYTES // (4 * spec.vocab_size)
    return max(LEAST_CHUNK_TOKENS, min(_LONGEST_SLICE, most // LEAST_CHUNK_TOKENS * LEAST_CHUNK_TOKENS))


def _chunk(spec: ModelSpec, reach: int | None) -> int:
    """The slice, no longer than leaves re-packed text room to look back over."""
    longest = slice_tokens(spec)
    return longest if reach is None else max(LEAST_CHUNK_TOKENS, min(longest, reach // _SLICES_IN_REACH))


@torch.no_grad()
def judge_text(
    loaded: LoadedModel, arm: RopeArm, preset: Preset, ids: Sequence[int], lengths: Sequence[int]
) -> TextCell:
    """Read `ids` with a model that has the arm's RoPE already; patterns are taken at `lengths`.

    Raises DoesNotFitError when memory or budget is too small.
    """
    begun = time.perf_counter()
    decoder = Decoder(loaded.model, loaded.spec)
    decoder.fix_regime(len(ids))
    reach = loaded.rope.reach
    limits = Limits(chunk_tokens=_chunk(loaded.spec, reach))
    available = free_bytes(decoder.device)
    within = None if reach is None else Reach(reach)
    planned = plan_compression(loaded.spec, preset, _prompt(ids), available=available, limits=limits, reach=within)
    slices = _Slices(decoder, planned)
    losses: list[float] = []
    patterns: dict[str, list[list[list[float]]]] = {}
    chunks = slices.reader.chunks
    ends = [chunk.first + len(chunk.prompt.context) for chunk in chunks]
    for number, chunk in enumerate(chunks):
        shown = tuple(length for length in lengths if _last_before(ends, length) == number)
        logits, watch = slices.read(chunk, watch=bool(shown))
        wanted = ids[chunk.first + 1 : ends[number] + 1]
        losses += token_nll(logits[:, : len(wanted)], wanted)[0].tolist()
        if watch is not None:
            pattern = _by_layer(watch.pattern[0], loaded.spec)
            patterns.update({str(length): pattern for length in shown})
    return TextCell(
        arm=arm.label,
        tokens=len(ids),
        losses=list(_binned(losses)),
        patterns=patterns,
        chunk_tokens=planned.chunk_tokens or len(ids),
        kv_bytes=slices.reader.cache.nbytes,
        seconds=time.perf_counter() - begun,
    )


def _prompt(ids: Sequence[int]) -> Prompt:
    return Prompt(Tokens.of(ids[:-_OBSERVERS]), (tuple(ids[-_OBSERVERS:]),))


def _last_before(ends: Sequence[int], length: int) -> int:
    """The number of the last chunk that ends within `length` tokens, or -1."""
    return sum(end <= length for end in ends) - 1


def _binned(losses: Sequence[float]) -> Iterator[tuple[int, float]]:
    """(position, mean) of every `BIN_TOKENS` tokens; the loss at index i is that of position i + 1."""
    for first in range(0, len(losses), BIN_TOKENS):
        part = losses[first : first + BIN_TOKENS]
        yield first + len(part) + 1, round(sum(part) / len(part), 5)


def _by_layer(pattern: Tensor, spec: ModelSpec) -> list[list[list[float]]]:
    """[K, bins] → [L][G][bins], an empty row for layers that are not watched."""
    rows: list[list[list[float]]] = [[] for _ in range(spec.num_layers)]
    for (layer, _), shares in zip(all_heads(spec), pattern.tolist(), strict=True):
        rows[layer].append([round(share, 7) for share in shares])
    return rows


class _Slices(AttentionState):
    """The engine's state for a text in slices: reads as planned, and shows a watch what the last queries look at."""

    def __init__(self, decoder: Decoder, planned: Compression) -> None:
        self.decoder, self.planned = decoder, planned
        self.reader = Reader(decoder, planned, all_rows=True)  # the logits of every token are wanted

    def read(self, chunk: Chunk, *, watch: bool) -> tuple[Tensor, AnswerWatch | None]:
        """Logits [1, N, vocab] of a chunk's own tokens, and what its last tokens looked at when that is wanted."""
        self._chunk, self._heads = chunk, list[Head]()
        self._watch = self._new_watch() if watch else None
        ids, positions = chunk.layout()
        self.reader.begin(chunk)
        return self.decoder.forward(ids, positions, self, torch.arange(len(chunk.prompt.context))), self._watch

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        """Attention of the chunk [1, H, N, D]."""
        if self._watch is not None and form.window is None:
            own = len(self._chunk.prompt.context)
            self._heads = self._seen(layer, key[0, :, :own], value[0, :, :own])
            self._watch.observe(layer, query[:, :, max(0, own - _OBSERVERS) : own], form)
        return self.reader.attend(layer, query, key, value, form)

    def recur(self, layer: int, hidden: Tensor, step: Step) -> Tensor:
        """A layer with a state of its own."""
        return self.reader.recur(layer, hidden, step)

    def _new_watch(self) -> AnswerWatch:
        spec, edges = self.decoder.spec, distance_edges(_LONGEST_DISTANCE)
        watched = Watched(all_heads(spec), self.planned.config.sinks, edges=edges, packed=self.planned.repack)
        return AnswerWatch(watched, lambda _, head: self._heads[head], spec)

    def _seen(self, layer: int, key: Tensor, value: Tensor) -> list[Head]:
        """What every KV head looks back over: what it holds of the text before the chunk, and its own [G, N, D]."""
        first = self._chunk.first
        own = torch.arange(first, first + key.shape[1], dtype=torch.int32, device=key.device)
        if first == 0:
            return [(keys, values, own) for keys, values in zip(key, value, strict=True)]
        held = self.reader.cache.layer(layer)
        past = [held.head(head) for head in range(len(held.lengths))]
        if self.planned.repack and self.reader.frequencies is not None:
            past = packed(past, first, self.reader.frequencies)
        return [
            (torch.cat([before[0], keys]), torch.cat([before[1], values]), torch.cat([before[2], own]))
            for before, keys, values in zip(past, key, value, strict=True)
        ]


_SUBTASK = "needle/digits7"
_STEP = 101  # more than the depths in per cent, so that every place of the grid has a fact of its own


@dataclass(frozen=True, slots=True)
class NeedlePlace:
    """Where in the grid: needle number `index` at `depth` of a text that fills `tokens`, the answer included."""

    tokens: int
    depth: float
    index: int


@dataclass(frozen=True, slots=True)
class _Written:
    """A greedy answer and the mean entropies [K] of its tokens, / ln n and in nats, in the order of `all_heads`."""

    text: str
    by_head: Tensor
    raw_by_head: Tensor


def make_needle(place: NeedlePlace, tokenizer: Any, haystack: Haystack, *, seed: int) -> Sample:
    """The sample of a place; the same for every arm. Raises UsageError when the haystack is too short."""
    count = counter(tokenizer)
    number = _STEP * place.index + round(100 * place.depth)
    request = Request(_SUBTASK, number, place.tokens - ANSWER_ROOM, haystack, count, seed)
    return needle_sample(request, depth=place.depth)


@torch.no_grad()
def judge_needle(
    loaded: LoadedModel, arm: RopeArm, preset: Preset, place: NeedlePlace, sample: Sample, heads: Sequence[HeadAt]
) -> NeedleCell:
    """Read `sample` with a model that has the arm's RoPE already; `heads` are the retrieval heads, if any are known.

    Raises DoesNotFitError when memory or budget is too small.
    """
    begun, query = time.perf_counter(), sample.queries[0]
    prompt, (reference,) = tokenise(loaded.tokenizer, sample)
    engine = Engine(loaded, sampling=SamplingConfig(max_new_tokens=ANSWER_ROOM))
    context = engine.read(prompt, preset).finish()
    loss, kv_bytes = _loss(context, reference), context.cache.nbytes
    written = _write(engine, context, query)
    known = dict(zip(all_heads(loaded.spec), written.by_head.tolist(), strict=True))
    return NeedleCell(
        arm=arm.label,
        tokens=place.tokens,
        depth=place.depth,
        index=place.index,
        nll=loss,
        match=match_score(written.text, query),
        answer=written.text,
        entropy=float(written.by_head.mean()),
        raw_entropy=float(written.raw_by_head.mean()),
        retrieval_entropy=sum(known[head] for head in heads) / len(heads) if heads else None,
        entropy_by_head=_rows(known, loaded.spec.num_layers),
        kv_bytes=kv_bytes,
        kept_fraction=kv_bytes / loaded.spec.full_kv_bytes(prompt.seq_len),
        seconds=time.perf_counter() - begun,
    )


def _rows(known: dict[HeadAt, float], num_layers: int) -> list[list[float]]:
    """[L][G], an empty row for layers that are not watched."""
    return [[round(value, 5) for (at, _), value in known.items() if at == layer] for layer in range(num_layers)]


def _loss(context: Context, reference: Sequence[int]) -> float:
    """Mean NLL of the answer's tokens from the second on; of a single token, that one's."""
    first = min(1, len(reference) - 1)
    return float(token_nll(context.predict(reference)[None, first:], reference[first:]).mean())


def _write(engine: Engine, context: Context, query: Query) -> _Written:
    """The greedy answer until it stops, holds the needle, or is as long as a query may take.

    A token is watched when it is read, for which the writer has to choose one more.
    """
    tokenizer, preset = engine.loaded.tokenizer, context.account.preset
    stop_ids = stop_tokens(engine.loaded.model, tokenizer)
    (asked,) = engine.asked(context)
    watched = Watched(all_heads(engine.spec), scorer_config(preset).sinks)
    writer = engine.writer([replace(asked, max_new_tokens=query.max_new_tokens + 1)], watch=watched, stop_ids=())
    ids: list[int] = []
    text = ""
    for step in writer.write():
        text = decode(tokenizer, ids)
        if ids and (ids[-1] in stop_ids or match_score(text, query) == 1 or len(ids) == query.max_new_tokens):
            break
        ids.append(step.token)
    if writer.watching is None:
        raise RuntimeError("all heads are watched")
    return _Written(text, writer.watching.by_head[0], writer.watching.raw_by_head[0])
