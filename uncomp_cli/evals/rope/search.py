"""One needle under one RoPE: is it found, how likely is it, and how widely do the heads look while it is written?

    sample → read as the arm reads (whole, compressed or re-packed) → NLL of the answer → greedy answer, watched

The entropy of a token is that of the attention row with which it looks back once it is written (arXiv 2406.13282); the
row behind the prompt, which chooses the first token, belongs to the prefill and is not watched.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from uncomp_cli.budget.presets import Preset
from uncomp_cli.config import SamplingConfig
from uncomp_cli.engine.context.context import Context
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.look.watch import HeadAt, Watched, all_heads
from uncomp_cli.engine.spend.allocation import scorer_config
from uncomp_cli.engine.write.writer import stop_tokens
from uncomp_cli.evals.judges.answers import match_score
from uncomp_cli.evals.judges.case import tokenise
from uncomp_cli.evals.judges.forced_rows import token_nll
from uncomp_cli.evals.rope.arms import ANSWER_ROOM, RopeArm
from uncomp_cli.evals.rope.cells import NeedleCell
from uncomp_cli.evals.rope.passage import counter
from uncomp_cli.evals.tasks.haystack import Haystack
from uncomp_cli.evals.tasks.needle import needle_sample
from uncomp_cli.evals.tasks.task import Query, Request, Sample
from uncomp_cli.models.runnable import LoadedModel

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
        text = str(tokenizer.decode(ids, skip_special_tokens=True))
        if ids and (ids[-1] in stop_ids or match_score(text, query) == 1 or len(ids) == query.max_new_tokens):
            break
        ids.append(step.token)
    if writer.watching is None:
        raise RuntimeError("all heads are watched")
    return _Written(text, writer.watching.by_head[0], writer.watching.raw_by_head[0])
