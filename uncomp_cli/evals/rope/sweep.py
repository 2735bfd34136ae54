"""Run `uncomp rope`: every arm along a text and on a grid of needles, one loaded model, its RoPE changed between them.

    for each arm: the text, once, as far as the arm reads
    for each needle, length and depth: for each arm: read, predict, answer → append

The model is turned back to what it was trained with at the end, whatever happens. A run that was killed goes on where
its results file ends; more arms, lengths, depths or needles add to the file.

How long a run takes is told by a short probe: seconds(n tokens) = a·n + b·(pairs of tokens that attend to each other).
Both come from timing two lengths, n and 4n. A full cache has n²/2 pairs, a re-packed one at most n times the reach.
Logits of every token cost what their weights are of all weights. An estimate: the run corrects it as it goes.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from uncomp_cli.budget.amount import FULL_BUDGET
from uncomp_cli.budget.presets import Preset, load_preset
from uncomp_cli.cache.softmax import Form
from uncomp_cli.engine.forward.attention import AttentionState, attend_causal
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.look.watch import HeadAt, watched_heads
from uncomp_cli.engine.spend.memory import check_context, free_bytes
from uncomp_cli.errors import UsageError
from uncomp_cli.evals.journal import Journal
from uncomp_cli.evals.judges.evaluation import results_settings
from uncomp_cli.evals.rope.arms import FULL, PLAIN, REREAD, ModelLengths, RopeArm
from uncomp_cli.evals.rope.cells import CellKey, NeedleCell, RopeCell, TextCell
from uncomp_cli.evals.rope.passage import NeedlePlace, judge_needle, judge_text, make_needle, text_ids
from uncomp_cli.evals.tasks.haystack import Haystack
from uncomp_cli.models.checkpoint import quiet_transformers
from uncomp_cli.models.rotary import apply_choice, length_kind, reading_length, unscaled_length, use_rope
from uncomp_cli.models.runnable import LoadedModel
from uncomp_cli.spec import ModelSpec
from uncomp_cli.steps import Progress, resume

_SHORT, _LONG = 512, 2048


@dataclass(frozen=True, slots=True)
class ReadingCost:
    """Seconds a token and a pair of tokens, and what logits of every token add to a token's."""

    token_s: float
    pair_s: float
    logits_share: float

    @classmethod
    def fitted(cls, times_s: tuple[float, float], lengths: tuple[int, int], *, logits_share: float) -> "ReadingCost":
        """The cost that explains the times of two lengths, the shorter first; neither part is below zero."""
        (short_s, long_s), (short, long) = times_s, lengths
        pair_s = max(0.0, (long_s / long - short_s / short) * 2 / (long - short))
        token_s = max(0.0, (long_s - pair_s * long**2 / 2) / long)
        return cls(token_s, pair_s, logits_share)

    def seconds(self, tokens: int, *, reach: int | None = None, logits: bool = False) -> float:
        """What reading `tokens` takes, none of them looking back over more than `reach`."""
        back = tokens / 2 if reach is None else min(tokens / 2, reach)
        return tokens * (self.token_s * (1 + self.logits_share * logits) + self.pair_s * back)


class _Causal(AttentionState):
    """Exact causal attention; nothing is kept."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        """Attention [1, H, N, D]."""
        return attend_causal(query[0], key[0], value[0], form)[None]


def probe(loaded: LoadedModel) -> ReadingCost:
    """Time two short texts, after a shorter one that warms up."""
    decoder = Decoder(loaded.model, loaded.spec)
    longest = min(_LONG, loaded.info.trained_length)
    short = min(_SHORT, max(1, longest // 4))
    decoder.fix_regime(longest)
    _time(decoder, short)
    times_s = _time(decoder, short), _time(decoder, longest)
    return ReadingCost.fitted(times_s, (short, longest), logits_share=_logits_share(loaded.spec))


def _time(decoder: Decoder, tokens: int) -> float:
    ids = torch.arange(tokens)[None] % decoder.spec.vocab_size
    begun = time.perf_counter()
    # Reading one logit waits for the device.
    float(decoder.forward(ids, torch.arange(tokens)[None], _Causal(), 1)[0, 0, 0])
    return time.perf_counter() - begun


def _logits_share(spec: ModelSpec) -> float:
    """Weights of the vocabulary over those of all layers."""
    attention = 2 * spec.hidden_size * spec.head_dim * (spec.num_heads + spec.num_kv_heads)
    layers = spec.num_layers * (attention + 3 * spec.hidden_size * spec.intermediate_size)
    return spec.vocab_size * spec.hidden_size / layers


@dataclass(frozen=True, slots=True)
class RopeRequest:
    """What to measure on what; `preset` is what arms with a budget compress by, and what names the retrieval heads."""

    arms: tuple[RopeArm, ...]
    lengths: tuple[int, ...]
    depths: tuple[float, ...]
    samples: int
    seed: int
    haystack: Haystack
    preset: Preset


@dataclass(frozen=True, slots=True)
class _Work:
    """One cell that has no result yet: a needle at a place, or without one the text of so many tokens."""

    arm: RopeArm
    tokens: int
    place: NeedlePlace | None

    @property
    def key(self) -> CellKey:
        if self.place is None:
            return (TextCell.name, self.arm.label, self.tokens, 0.0, 0)
        return (NeedleCell.name, self.arm.label, self.tokens, self.place.depth, self.place.index)

    @property
    def label(self) -> str:
        where = "text" if self.place is None else f"needle {self.place.index + 1} at {100 * self.place.depth:.0f} %"
        return f"{self.arm.label} {self.tokens:,} tokens, {where}"


def run_rope(
    request: RopeRequest, loaded: LoadedModel, results: Journal[RopeCell], *, cost: ReadingCost
) -> Generator[Progress, None, None]:
    """Measure what `results` lacks; yields before each cell and once at the end.

    Raises UsageError for a kind that this model cannot take, DoesNotFitError when memory or a budget is too small.
    """
    heads = watched_heads(request.preset, loaded.spec)

    def measure(work: _Work) -> list[RopeCell]:
        return [_measure(work, request, use_rope(loaded, work.arm.choice_for(work.tokens)), heads)]

    with _turned_back(loaded):
        yield from resume(
            _todo(request, loaded, results),
            measure,
            results.append,
            label=lambda work: work.label,
            cost=lambda work: _cost(work, loaded, cost),
        )


def expected_seconds(request: RopeRequest, loaded: LoadedModel, results: Journal[RopeCell], cost: ReadingCost) -> float:
    """What is left to do is expected to take."""
    return sum(_cost(work, loaded, cost) for work in _todo(request, loaded, results))


def lengths_of(config: Any, trained: int) -> ModelLengths:
    """What the arms' lengths count from, of a model's own configuration and the length that it was trained for.

    Where factors count from nothing, check_arms refuses those that have one.
    """
    try:
        unscaled = unscaled_length(config)
    except UsageError:
        unscaled = trained
    if length_kind(config) is None:
        return ModelLengths(trained, unscaled)
    return ModelLengths(trained, unscaled, plain=reading_length(config))


def _known(loaded: LoadedModel) -> ModelLengths:
    return lengths_of(loaded.own_config or loaded.model.config, loaded.info.trained_length)


def check_arms(arms: Sequence[RopeArm], config: Any) -> None:
    """Raise UsageError for the first arm that a model of this configuration cannot take; `plain` ends by itself."""
    for arm in arms:
        try:
            with quiet_transformers():
                apply_choice(config, arm.choice_for(1))
        except UsageError as error:
            raise UsageError(error.message, hint=f"leave {arm.label} out of --kinds") from error


def check_memory(arms: Sequence[RopeArm], lengths: Sequence[int], preset: Preset, loaded: LoadedModel) -> None:
    """Raise DoesNotFitError when the cache of an arm's longest text exceeds the memory that is free."""
    available = free_bytes(loaded.device)
    for arm in arms:
        longest = max((n for n in lengths if arm.reads(n, _known(loaded))), default=None)
        held = arm.reach(loaded.info.trained_length)
        check_context(loaded.spec, _preset(arm, preset), context=longest, available=available, held_tokens=held)


def asked_for(request: RopeRequest, cells: Sequence[RopeCell]) -> list[RopeCell]:
    """Those of `cells` that a command asked for, and every text; a results file may hold more than that."""
    arms = {arm.label for arm in request.arms}
    return [
        cell
        for cell in cells
        if isinstance(cell, TextCell)
        or (
            cell.arm in arms
            and cell.tokens in request.lengths
            and cell.depth in request.depths
            and cell.index < request.samples
        )
    ]


def rope_settings(request: RopeRequest, loaded: LoadedModel) -> dict[str, object]:
    """What all lines of one results file share; the rest is in the lines themselves."""
    preset = request.preset
    compressed_by = f"{preset.name}: {preset.policy}/{preset.scorer.name}"
    return {
        **results_settings(loaded, request.haystack, seed=request.seed),
        "trained_length": loaded.info.trained_length,
        "preset": compressed_by,
        "retrieval_heads": [list(head) for head in watched_heads(preset, loaded.spec)],
    }


@contextmanager
def _turned_back(loaded: LoadedModel) -> Iterator[None]:
    try:
        yield
    finally:
        use_rope(loaded, None)


def _measure(work: _Work, request: RopeRequest, turned: LoadedModel, heads: Sequence[HeadAt]) -> NeedleCell | TextCell:
    preset = _preset(work.arm, request.preset)
    if work.place is None:
        ids = text_ids(turned.tokenizer, request.haystack, work.tokens)
        return judge_text(turned, work.arm, preset, ids, _shown(request, turned, work.tokens))
    sample = make_needle(work.place, turned.tokenizer, request.haystack, seed=request.seed)
    return judge_needle(turned, work.arm, preset, work.place, sample, heads)


def _preset(arm: RopeArm, preset: Preset) -> Preset:
    """How an arm compresses: a budget that was named is taken at its word, without a floor."""
    return load_preset(FULL) if arm.budget.kind == FULL else replace(preset, budget=arm.budget, floor_tokens=0)


def _shown(request: RopeRequest, loaded: LoadedModel, tokens: int) -> list[int]:
    """The lengths at which a text's pattern is taken: the trained one and those that were asked for."""
    return sorted({length for length in (loaded.info.trained_length, *request.lengths) if length <= tokens})


def _todo(request: RopeRequest, loaded: LoadedModel, results: Journal[RopeCell]) -> list[_Work]:
    every = [*_texts(request, loaded), *_needles(request, loaded)]
    return [work for work in every if work.key not in results.done]


def _texts(request: RopeRequest, loaded: LoadedModel) -> Iterator[_Work]:
    """Every arm as far as it reads, after the model as trained, whose pattern the others are compared with.

    What is read again is read for a question: on the way it is what re-packing is.
    """
    known = _known(loaded)
    farthest = {
        arm: max((length for length in request.lengths if arm.reads(length, known)), default=0) for arm in request.arms
    }
    if not any(arm.label == PLAIN and tokens >= known.trained for arm, tokens in farthest.items()):
        yield _Work(RopeArm(PLAIN, None, FULL_BUDGET), known.trained, None)
    for arm, tokens in farthest.items():
        if tokens and arm.kind != REREAD:
            yield _Work(arm, tokens, None)


def _needles(request: RopeRequest, loaded: LoadedModel) -> Iterator[_Work]:
    """Arms last, so that a run that is stopped has judged all of them on nearly the same needles."""
    known = _known(loaded)
    for index in range(request.samples):
        for tokens in request.lengths:
            for depth in request.depths:
                for arm in request.arms:
                    if arm.reads(tokens, known):
                        yield _Work(arm, tokens, NeedlePlace(tokens, depth, index))


def _cost(work: _Work, loaded: LoadedModel, cost: ReadingCost) -> float:
    reach = work.arm.reach(loaded.info.trained_length)
    return cost.seconds(work.tokens, reach=reach, logits=work.place is None)
