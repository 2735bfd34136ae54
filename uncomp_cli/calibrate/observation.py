"""Observation: answers past and inside the trained length, watched while they are written, and whether they are right.

    sample → read as `uncomp ask` would (the preset's budget, the RoPE that was chosen) → greedy answer, every head
    watched → right when the needle is in it → a line of a journal, so that a command that was stopped goes on

Samples take the tasks in turn and walk down the grid of depths; their text and facts are others than those of the
profile and of the quality that the same command measures. An answer of a single token has nothing to watch, and is
left out. What an answer loses to compression counts as wrong too: the curve (reliability.py) is of what a user gets.
The settings of the journal say what all answers share: model, preset, RoPE and dtype; which sample a line is of is told
by a digest.
"""

from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from math import log
from typing import Any

import numpy as np
import torch

from uncomp_cli import __version__
from uncomp_cli.budget.presets import Preset
from uncomp_cli.calibrate.reliability import RiskAnswer
from uncomp_cli.config import SamplingConfig
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.look.watch import HeadAt, Watched, all_heads
from uncomp_cli.errors import require
from uncomp_cli.evals.journal import Journal, Kind
from uncomp_cli.evals.judges.answers import match_score
from uncomp_cli.evals.judges.case import tokenise
from uncomp_cli.evals.tasks import choose_subtasks
from uncomp_cli.evals.tasks.haystack import Haystack
from uncomp_cli.evals.tasks.maker import SampleMaker
from uncomp_cli.evals.tasks.oracle import check_solvable
from uncomp_cli.evals.tasks.task import Request, Sample
from uncomp_cli.models.runnable import LoadedModel, fingerprint
from uncomp_cli.schema import Count, read
from uncomp_cli.steps import Progress, resume


@dataclass(frozen=True, slots=True)
class RiskLine:
    """The answer to the sample of this digest; `entropy` [T][K] of its tokens in every head is empty for one token."""

    sha256: str
    subtask: str
    tokens: Count
    depth: float | None
    wrong: bool
    text: str
    output_entropy: float
    entropy: list[list[float]]

    def __post_init__(self) -> None:
        even = len({len(row) for row in self.entropy}) <= 1
        require(
            even,
            f"the tokens of answer {self.sha256} have entropies of different heads",
            hint="take its line out: it is answered again",
        )

    def answer(self) -> RiskAnswer:
        """What a curve is fitted to."""
        return RiskAnswer(self.tokens, self.wrong, np.array(self.entropy), self.output_entropy)


def _flat_header(header: dict[str, Any]) -> dict[str, Any] | None:
    """A header whose settings stand beside its version, as they did until version 0.1."""
    if header.get("measured") != "risk":
        return None
    settings = {key: value for key, value in header.items() if key not in ("schema_version", "measured")}
    return {"schema_version": header.get("schema_version"), "kind": ANSWERS.program, "settings": settings}


ANSWERS = Kind(
    program="uncomp calibrate --risk",
    make=partial(read, RiskLine),
    key=lambda line: line.sha256,
    place=lambda line: f"the answer to {line.subtask} at {line.tokens:,} tokens",
    older=_flat_header,
)


RISK_TASKS = (
    "needle/digits7",
    "ruler/niah_multikey_1",
    "needle/uuid",
    "ruler/niah_multikey_2",
    "needle/digits16",
    "needle/chat",
)
"""From what is nearly always found to what is often missed: both kinds of answers are needed."""
_SEED_STEP = 15_485_863  # the quality's samples are another step away


@dataclass(frozen=True, slots=True)
class RiskRun:
    """The answers that were measured, the heads [K] of their entropies, and how many had nothing to watch."""

    answers: tuple[RiskAnswer, ...]
    heads: tuple[HeadAt, ...]
    unwatched: int


def risk_samples(
    maker: SampleMaker, lengths: Sequence[int], samples: int, *, generated: bool, tasks: Sequence[str] = RISK_TASKS
) -> tuple[Sample, ...]:
    """`samples` of each length, of the tasks in turn, in other prose than the maker's when it is `generated`."""
    seed = maker.seed + _SEED_STEP
    haystack = Haystack.generated_for(max(lengths), seed=seed) if generated else maker.haystack
    chosen = choose_subtasks(tasks)
    made: list[Sample] = []
    for index in range(samples):
        task, subtask = chosen[index % len(chosen)]
        for tokens in lengths:
            made.append(task.sample(Request(subtask, index, tokens, haystack, maker.count_tokens, seed)))
            check_solvable(made[-1])
    return tuple(made)


def risk_file_settings(turned: LoadedModel, preset: Preset) -> dict[str, Any]:
    """What all lines of a file of answers share; a line says by a digest which sample it is of."""
    plain = {key: value for key, value in preset.to_dict().items() if key not in ("risk", "quality", "description")}
    return {
        "uncomp": __version__,
        "model": asdict(fingerprint(turned)),
        "dtype": str(turned.model.dtype).removeprefix("torch."),
        "quantization": turned.quantization or "none",
        "rope": str(turned.rope),
        "preset": plain,
    }


def measure_risk(
    loaded: LoadedModel, preset: Preset, samples: Sequence[Sample], *, results: Journal[RiskLine]
) -> Generator[Progress, None, RiskRun]:
    """Answer what `results` lacks; yields before each sample and once at the end.

    `loaded` is turned as the texts are to be read. Raises DoesNotFitError for a sample that is too long or too large.
    """
    todo = [sample for sample in samples if sample.sha256 not in results.done]
    yield from resume(
        todo,
        lambda sample: [_judge(loaded, preset, sample)],
        results.append,
        label=lambda sample: f"risk, {sample.subtask}, {sample.tokens:,} tokens",
        done="risk done",
    )
    lines = [results.done[sample.sha256] for sample in samples]
    watched = tuple(line.answer() for line in lines if line.entropy)
    return RiskRun(watched, all_heads(loaded.spec), len(lines) - len(watched))


def _judge(loaded: LoadedModel, preset: Preset, sample: Sample) -> RiskLine:
    (query,), (prompt, _) = sample.queries, tokenise(loaded.tokenizer, sample)
    sampling = SamplingConfig(temperature=0.0, max_new_tokens=query.max_new_tokens)
    watched = Watched(all_heads(loaded.spec), preset.scorer.sinks)
    engine = Engine(loaded, sampling=sampling)
    context = engine.read(prompt, preset).finish()
    writer = engine.writer(engine.asked(context), watch=watched)
    ids: list[int] = []
    text, entropy = "", []
    for step in writer.write():
        if ids and writer.watching is not None:  # the token before has been read to choose this one
            entropy.append([round(value, 5) for value in writer.watching.latest[0].tolist()])
        ids.append(step.token)
        text += step.text
    logits = context.predict(ids).float()
    output, output_tokens = torch.special.entr(logits.softmax(dim=-1)).sum(dim=-1), logits.shape[-1]
    return RiskLine(
        sha256=sample.sha256,
        subtask=sample.subtask,
        tokens=sample.tokens,
        depth=sample.depth,
        wrong=match_score(text, query) < 1,
        text=text,
        output_entropy=round(float(output.mean()) / log(output_tokens), 6),
        entropy=entropy,
    )
