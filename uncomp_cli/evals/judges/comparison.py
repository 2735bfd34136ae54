"""One prompt under two settings, side by side: what each answers, how far their predictions are apart, what each took.

The second setting's predictions are compared with the first's along the first's own answer (predictions.py). Times are
of one run each, one after the other in one process: for a decision use `uncomp bench`, which alternates and repeats.
"""

import difflib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

from uncomp_cli.budget.presets import Preset
from uncomp_cli.config import SamplingConfig
from uncomp_cli.engine.context.context import Context
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.records import DecodeStep, PrefillStep, RunStats
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.evals.judges.predictions import compare_logits
from uncomp_cli.models.runnable import LoadedModel


@dataclass(frozen=True, slots=True)
class Side:
    """One setting's answer."""

    preset: Preset
    answer: str
    token_ids: tuple[int, ...]
    stats: RunStats


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sides; `metrics` are those of predictions.py along the first's answer, None when it has one token.

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
