"""Judge predictions behind a compressed cache: how far from the full cache's, and how well the text that follows.

    kl, kl_p99     KL(full || setting) per token, mean and 99th percentile, in nats
    agreement      share of tokens whose argmax is the same
    divergence     where the argmax differs first, as a share of the text (1: nowhere)

Fidelity is along the full cache's greedy continuation; stop tokens do not end it, so all samples have one length.

    nll            mean over the next 512 tokens; nll_to_32, _to_128, _to_512 by offset: tokens 1-31, 32-127, 128-511
    nll_weighted   the same, each token weighted by what the prefix helps: max(0, nll behind an unrelated prefix - full)
    gain_lost      share of that help which compression lost: (setting - full) / (unrelated - full), both weighted

Perplexity is along the text that follows. Most of its tokens follow from the words just before them, so a plain mean
hides what is lost of the long context. The unrelated prefix, of the same length and held in full, is a row of its own:
the floor of what a context is worth. The first token is left out of both: with the question in the prefill its logits
are everybody's but of settings that thin hidden states; without one it follows from the prefix alone.

`uncomp compare` is one prompt under two settings: the second's predictions are compared with the first's along the
first's own answer. Times are of one run each, one after the other: `uncomp bench` alternates and repeats.
"""

import difflib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from torch import Tensor

from uncomp_cli.budget.presets import Preset
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.config import SamplingConfig
from uncomp_cli.engine.context.context import Context
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.records import DecodeStep, PrefillStep, RunStats
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.errors import UncompError
from uncomp_cli.evals.judges.case import Case, Compressed, read_case
from uncomp_cli.evals.judges.contestants import FULL, Setting, make_settings
from uncomp_cli.evals.judges.forced_rows import Rows, in_batches, token_nll
from uncomp_cli.evals.tables.outcome import Outcome
from uncomp_cli.evals.tasks.task import Regime
from uncomp_cli.models.runnable import LoadedModel


def judge_fidelity(case: Case, settings: Sequence[Setting], regime: Regime, stop_ids: Sequence[int]) -> list[Outcome]:
    """Outcomes of `settings`, which need not hold the full cache."""
    compressed, outcomes = case.compress(settings, regime)
    full = next((one for one in compressed if one.outcome.contestant == FULL), None)
    if full is None:
        (full,), _ = case.compress(make_settings([FULL], [], seed=0), regime)
    text = _continue(case, full, regime)
    (reference,) = _predict(case, [full], regime, text)
    for batch in in_batches([one.cache for one in compressed], case.decoder.spec, tokens=len(text)):
        predictions = _predict(case, [compressed[i] for i in batch], regime, text)
        for index, logits in zip(batch, predictions, strict=True):
            outcomes.append(compressed[index].judged(compare_logits(reference, logits)))
    return outcomes


def compare_logits(full: Tensor, ours: Tensor) -> dict[str, float]:
    """The metrics of two predictions of one text: logits [N, vocab] each."""
    expected, log_ours = full.float().log_softmax(dim=-1), ours.float().log_softmax(dim=-1)
    kl = (expected.exp() * (expected - log_ours)).sum(dim=-1).clamp_min(0)
    same = full.argmax(dim=-1) == ours.argmax(dim=-1)
    differs = (~same).nonzero()
    first = int(differs[0]) if len(differs) else len(same)
    return {
        "kl": float(kl.mean()),
        "kl_p99": float(kl.quantile(0.99)),
        "agreement": float(same.float().mean()),
        "divergence": first / len(same),
    }


def _continue(case: Case, full: Compressed, regime: Regime) -> list[int]:
    room = case.sample.queries[0].max_new_tokens
    rows, logits = case.begin([full], regime, 0, room=room)
    return [step.token for step in case.writer(rows, logits, 0, max_new_tokens=room, stop_ids=()).write()]


def _predict(case: Case, compressed: Sequence[Compressed], regime: Regime, text: Sequence[int]) -> Iterator[Tensor]:
    """Every row's logits [N - 1, vocab] of the text's tokens from the second on."""
    rows, _ = case.begin(compressed, regime, 0, room=len(text))
    return iter(rows.feed(text[:-1]))


NEXT_TOKENS = 512
UNRELATED = "unrelated prefix"
_OFFSETS = (1, 32, 128, NEXT_TOKENS)


def judge_perplexity(case: Case, settings: Sequence[Setting], regime: Regime, stop_ids: Sequence[int]) -> list[Outcome]:
    """Outcomes of `settings` and of the unrelated prefix. Raises UncompError for a continuation that is too short."""
    text = case.answers[0][:NEXT_TOKENS]
    if len(text) < NEXT_TOKENS:
        message = f"sample {case.sample.subtask} {case.sample.index} has {len(text)} tokens to predict"
        raise UncompError(message, hint=f"{NEXT_TOKENS} are needed: give longer text with --file")
    compressed, outcomes = case.compress(settings, regime)
    full = _losses(case, [_full(case, regime).cache], regime, text)[0]
    control = read_case(case.decoder, case.tokenizer, replace(case.sample, context=case.sample.control or ""))
    weighed = _full(control, regime)
    unrelated = _losses(control, [weighed.cache], regime, text)[0]
    caches = [c.cache for c in compressed]
    for batch in in_batches(caches, case.decoder.spec, tokens=len(text)):
        losses = _losses(case, [caches[i] for i in batch], regime, text)
        for index, row in zip(batch, losses, strict=True):
            outcomes.append(compressed[index].judged(perplexity_metrics(row, full, unrelated)))
    outcome = weighed.judged(perplexity_metrics(unrelated, full, unrelated))
    return [*outcomes, replace(outcome, setting=UNRELATED, contestant=UNRELATED)]


def perplexity_metrics(ours: Tensor, full: Tensor, unrelated: Tensor) -> dict[str, float]:
    """The metrics of one setting from token losses [N] in nats; the first belongs to offset 1."""
    weights = (unrelated - full).clamp_min(0)
    weights = weights / weights.sum().clamp_min(1e-12)
    behind_ours, behind_full, behind_unrelated = ((weights * row).sum() for row in (ours, full, unrelated))
    gain = (behind_unrelated - behind_full).clamp_min(1e-12)
    by_offset = {f"nll_to_{end}": float(ours[begin - 1 : end - 1].mean()) for begin, end in pairwise(_OFFSETS)}
    return {
        "nll": float(ours.mean()),
        **by_offset,
        "nll_weighted": float(behind_ours),
        "gain_lost": float((behind_ours - behind_full) / gain),
    }


def _full(case: Case, regime: Regime) -> Compressed:
    (only,), _ = case.compress(make_settings([FULL], [], seed=0), regime)
    return only


def _losses(case: Case, caches: Sequence[RaggedKVCache], regime: Regime, text: Sequence[int]) -> Tensor:
    """Losses [B, N - 1] of the text's tokens from the second on, right behind the context."""
    rows = Rows(case.decoder, caches, position=case.seen_tokens(regime), reserve=len(text))
    return token_nll(rows.feed(text[:-1]), text[1:])


@dataclass(frozen=True, slots=True)
class Side:
    """One setting's answer."""

    preset: Preset
    answer: str
    token_ids: tuple[int, ...]
    stats: RunStats


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sides; `metrics` are those of `compare_logits` along the first's answer, None when it has one token.

    `first_divergence` is the first generated token in which the answers differ, None when they are the same.
    """

    sides: tuple[Side, Side]
    metrics: dict[str, float] | None
    first_divergence: int | None


def compare(
    loaded: LoadedModel, prompt: Prompt, presets: tuple[Preset, Preset], sampling: SamplingConfig
) -> Generator[PrefillStep | DecodeStep, None, Comparison]:
    """Answer `prompt`, which has one question, under both presets. Raises DoesNotFitError as `Engine.read` does."""
    engine = Engine(loaded, sampling=sampling)
    first, text = yield from _answer(engine, prompt, presets[0])
    expected = first.predict(text.token_ids)
    del first  # its cache need not lie beside the other one
    second, other = yield from _answer(engine, prompt, presets[1])
    metrics = None
    if len(text.token_ids) > 1:  # the first token follows from the exact prefill under any setting
        metrics = compare_logits(expected[1:], second.predict(text.token_ids)[1:])
    return Comparison((text, other), metrics, _first_difference(text.token_ids, other.token_ids))


def _answer(
    engine: Engine, prompt: Prompt, preset: Preset
) -> Generator[PrefillStep | DecodeStep, None, tuple[Context, Side]]:
    reading = engine.read(prompt, preset)
    yield from reading
    writer = engine.writer(engine.asked(reading.context))
    pieces: list[str] = []
    ids: list[int] = []
    for step in writer.write():
        pieces.append(step.text)
        ids.append(step.token)
        yield step
    stats = writer.stats()
    if stats is None:
        raise RuntimeError("an answer has one token at least")
    return reading.context, Side(preset, "".join(pieces), tuple(ids), stats)


def _first_difference(first: Sequence[int], second: Sequence[int]) -> int | None:
    shorter = min(len(first), len(second))
    differing = (i for i in range(shorter) if first[i] != second[i])
    return next(differing, None if len(first) == len(second) else shorter)


def word_diff(first: str, second: str) -> Iterator[tuple[str, str]]:
    """("same" | "first" | "second", words) in order: what both say, and what one of them says alone."""
    a, b = first.split(), second.split()
    for kind, a0, a1, b0, b1 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind == "equal":
            yield "same", " ".join(a[a0:a1])
            continue
        if a1 > a0:
            yield "first", " ".join(a[a0:a1])
        if b1 > b0:
            yield "second", " ".join(b[b0:b1])
