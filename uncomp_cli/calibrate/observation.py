"""Observation: answers past and inside the trained length, watched while they are written, and whether they are right.

    sample → in every second round what it asks for is taken out of its text, look-alikes stay → read as `uncomp ask`
    would (the preset's budget, the RoPE that was chosen) → greedy answer, watched as one of `ask` → right when the text
    has what is asked and the answer too → a line of a journal, so that a command that was stopped goes on

Samples take the tasks in turn and walk down the grid of depths; their text and facts are others than those of the
profile and of the quality that the same command measures. An answer of a single token has nothing to watch, and is
left out. What an answer loses to compression counts as wrong too: the curve (reliability.py) is of what a user gets.
The settings of the journal say what all answers share: model, preset, RoPE and dtype; which sample a line is of is told
by a digest.
"""

from collections.abc import Generator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from uncomp_cli import __version__
from uncomp_cli.budget.presets import Preset
from uncomp_cli.calibrate.reliability import RiskAnswer
from uncomp_cli.config import SamplingConfig
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.look.watch import Watched, watched_heads
from uncomp_cli.errors import require
from uncomp_cli.evals.journal import Journal, Kind
from uncomp_cli.evals.judges.answers import match_score
from uncomp_cli.evals.judges.case import tokenise
from uncomp_cli.evals.tasks import Task, choose_subtasks
from uncomp_cli.evals.tasks.haystack import Haystack
from uncomp_cli.evals.tasks.maker import SampleMaker
from uncomp_cli.evals.tasks.oracle import check_solvable
from uncomp_cli.evals.tasks.task import Request, Sample
from uncomp_cli.models.runnable import LoadedModel, fingerprint
from uncomp_cli.schema import Count, read
from uncomp_cli.steps import Progress, resume
from uncomp_cli.uncertainty.error_rates import SIGNS


@dataclass(frozen=True, slots=True)
class RiskLine:
    """The answer to the sample of this digest, behind a prompt of `tokens`; `signs` are empty for one token.

    `absent`: what was asked for had been taken out of the text.
    """

    sha256: str
    subtask: str
    tokens: Count
    depth: float | None
    wrong: bool
    absent: bool
    text: str
    signs: dict[str, float]

    def __post_init__(self) -> None:
        known = not self.signs or self.signs.keys() == set(SIGNS)
        hint = "take its line out: it is answered again"
        require(known, f"answer {self.sha256} has other signs than {', '.join(SIGNS)}", hint=hint)

    def answer(self) -> RiskAnswer:
        """What a curve is fitted to."""
        return RiskAnswer(self.tokens, self.wrong, self.signs, self.absent, self.subtask)


ANSWERS = Kind(
    program="uncomp calibrate --risk",
    make=partial(read, RiskLine),
    key=lambda line: line.sha256,
    place=lambda line: f"the answer to {line.subtask} at {line.tokens:,} tokens",
)


RISK_TASKS = (
    "needle/digits7",
    "ruler/niah_multikey_1",
    "needle/uuid",
    "ruler/niah_multikey_2",
    "needle/digits16",
    "needle/chat",
    "conversation/facts",
)
"""From what is nearly always found to what is often missed: both kinds of answers are needed."""
_SEED_STEP = 15_485_863  # the quality's samples are another step away


@dataclass(frozen=True, slots=True)
class RiskRun:
    """The answers that were measured, and how many had nothing to watch."""

    answers: tuple[RiskAnswer, ...]
    unwatched: int


def risk_samples(
    maker: SampleMaker, lengths: Sequence[int], samples: int, *, generated: bool, outside: Sequence[Task]
) -> tuple[Sample, ...]:
    """`samples` of each length, of `RISK_TASKS` in turn, in other prose than the maker's when it is `generated`.

    Of every task's samples each second one lacks what is asked for. Of tasks from `outside` those with a gold passage
    are asked beside the others, by their half for development where they have one. Raises UsageError where too few fit.
    """
    seed = maker.seed + _SEED_STEP
    haystack = Haystack.generated_for(max(lengths), seed=seed) if generated else maker.haystack
    names = [name for one in outside if one.judge == "answers" for name in one.subtasks if not _is_reserved(name, one)]
    chosen = choose_subtasks([*RISK_TASKS, *names], outside)
    made: list[Sample] = []
    for index in range(samples):
        task, subtask = chosen[index % len(chosen)]
        for tokens in lengths:
            sample = task.sample(Request(subtask, index // len(chosen), tokens, haystack, maker.count_tokens, seed))
            check_solvable(sample)
            sample = replace(sample, queries=(sample.queries[index % len(sample.queries)],))
            if sample.queries[0].evidence:
                made.append(without_evidence(sample) if index // len(chosen) % 2 else sample)
    return tuple(made)


def _is_reserved(subtask: str, task: Task) -> bool:
    """Whether a half is there to report, since the other one is there to choose by."""
    return subtask == f"{task.name}/test" and f"{task.name}/development" in task.subtasks


def without_evidence(sample: Sample) -> Sample:
    """The sample, whose question has no answer any more: what holds it is cut from the text, look-alikes are not."""
    context = sample.context
    for begin, end in sorted(sample.queries[0].evidence, reverse=True):
        context = context[:begin] + context[end:]
    return replace(sample, context=context, queries=(replace(sample.queries[0], evidence=()),))


def risk_file_settings(turned: LoadedModel, preset: Preset) -> dict[str, Any]:
    """What all lines of a file of answers share; a line says by a digest which sample it is of."""
    plain = {
        key: value for key, value in preset.to_dict().items() if key not in ("risk", "absent", "quality", "description")
    }
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
    watched = tuple(line.answer() for line in lines if line.signs)
    return RiskRun(watched, len(lines) - len(watched))


def _judge(loaded: LoadedModel, preset: Preset, sample: Sample) -> RiskLine:
    (query,), (prompt, _) = sample.queries, tokenise(loaded.tokenizer, sample)
    engine = Engine(loaded, sampling=SamplingConfig(temperature=0.0, max_new_tokens=query.max_new_tokens))
    watched = Watched(watched_heads(preset, loaded.spec), preset.scorer.sinks)
    writer = engine.writer(engine.asked(engine.read(prompt, preset).finish(), words=[query.question]), watch=watched)
    text, absent = "".join(step.text for step in writer.write()), not query.evidence
    stats = writer.stats()
    seen = {} if stats is None or "attention" not in stats.signs else stats.signs
    signs = {name: round(value, 6) for name, value in seen.items()}
    return RiskLine(
        sha256=sample.sha256,
        subtask=sample.subtask,
        tokens=prompt.seq_len,
        depth=sample.depth,
        wrong=absent or match_score(text, query) < 1,
        absent=absent,
        text=text,
        signs=signs,
    )
