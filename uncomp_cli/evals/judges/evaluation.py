"""Run an evaluation: every sample is read once, judged under every setting that has no result yet, and written down.

    for each subtask, length and index: sample → check that it can be solved → read once → each regime: judge → append

A conversation is not read once: every setting has a session of its own, which reads what it is given.

A run that was killed goes on where its results file ends; more samples, settings, tasks or budgets add to the file.
"""

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from uncomp_cli import __version__
from uncomp_cli.config import Matmul
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.spend.allocation import profile_of
from uncomp_cli.engine.tokens.prompt import count_tokens
from uncomp_cli.engine.write.writer import stop_tokens
from uncomp_cli.errors import DoesNotFitError, UsageError
from uncomp_cli.evals.journal import Journal
from uncomp_cli.evals.judges.answers import judge_answers, judge_evidence
from uncomp_cli.evals.judges.case import Case, read_case
from uncomp_cli.evals.judges.contestants import Setting
from uncomp_cli.evals.judges.predictions import NEXT_TOKENS, UNRELATED, judge_fidelity, judge_perplexity
from uncomp_cli.evals.judges.turns import TURNS_TOKENS, judge_conversation
from uncomp_cli.evals.tables.outcome import Outcome
from uncomp_cli.evals.tasks import Task
from uncomp_cli.evals.tasks.haystack import CountTokens, Haystack
from uncomp_cli.evals.tasks.oracle import check_solvable
from uncomp_cli.evals.tasks.task import JudgeName, Regime, Request, Sample
from uncomp_cli.models.extension import REPACKED, RopeChoice, RopeState
from uncomp_cli.models.runnable import LoadedModel, fingerprint
from uncomp_cli.steps import Progress, resume

Judge = Callable[[Case, Sequence[Setting], Regime, Sequence[int]], list[Outcome]]
SessionJudge = Callable[[Engine, Sample, Sequence[Setting]], list[Outcome]]

JUDGES: dict[JudgeName, Judge] = {
    "answers": judge_answers,
    "fidelity": judge_fidelity,
    "perplexity": judge_perplexity,
    "evidence": judge_evidence,
}
SESSION_JUDGES: dict[JudgeName, SessionJudge] = {"conversation": judge_conversation}


_LEAST_ROOM = 128
_ROOM: dict[JudgeName, int] = {"perplexity": NEXT_TOKENS, "conversation": TURNS_TOKENS}
"""Tokens behind a sample that answers may take."""


@dataclass(frozen=True, slots=True)
class EvalRequest:
    """What to judge on what: `tokens` are the lengths, `samples` how many of each subtask and length.

    `data` are the names and digests of the files whose records are asked; `matmul` is how a text's rows are multiplied.
    """

    subtasks: tuple[tuple[Task, str], ...]
    settings: tuple[Setting, ...]
    regimes: tuple[Regime, ...]
    tokens: tuple[int, ...]
    samples: int
    seed: int
    haystack: Haystack
    data: tuple[tuple[str, str], ...] = ()
    matmul: Matmul = "float32"

    def samples_of(self, task: Task, subtask: str, tokens: int, count: CountTokens) -> int:
        """How many samples of a subtask are judged at a length; of records there are only so many."""
        if task.count is None:
            return self.samples
        return min(self.samples, task.count(Request(subtask, 0, tokens, self.haystack, count, self.seed)))


@dataclass(frozen=True, slots=True)
class _Work:
    """One sample, and the settings of each regime that have no result yet."""

    task: Task
    subtask: str
    tokens: int
    index: int
    missing: tuple[tuple[Regime, tuple[Setting, ...]], ...]


def run_eval(request: EvalRequest, loaded: LoadedModel, results: Journal[Outcome]) -> Generator[Progress, None, None]:
    """Judge what `results` lacks; yields before each sample and once at the end.

    Raises UsageError for int8 weights and for a contestant whose profile is another model's.
    """
    engine = Engine(loaded, matmul=request.matmul)
    if engine.decoder.rows_interact:
        raise UsageError(
            "in int8 weights a token's numbers depend on those read beside it, so that no prefill can be shared",
            hint="use --quantize nf4, fp4 or none",
        )
    for profile in filter(None, (profile_of(setting.preset) for setting in request.settings)):
        profile.fingerprint.check(fingerprint(loaded))
    count = partial(count_tokens, loaded.tokenizer)
    stop_ids = stop_tokens(loaded.model, loaded.tokenizer)

    def judge(work: _Work) -> list[Outcome]:
        sample = _make_sample(request, work, count)
        if work.task.judge in SESSION_JUDGES:
            return _judge_sessions(work, sample, engine)
        return _judge(work, sample, engine, stop_ids)

    def keep(outcomes: list[Outcome]) -> None:
        results.append([outcome for outcome in outcomes if outcome.key not in results.done])

    yield from resume(
        list(_missing(request, results, count)),
        judge,
        keep,
        label=lambda work: f"{work.subtask} {work.index + 1} of {request.samples}, {work.tokens:,} tokens",
    )


@torch.no_grad()
def _judge(work: _Work, sample: Sample, engine: Engine, stop_ids: Sequence[int]) -> list[Outcome]:
    case = read_case(engine.decoder, engine.loaded.tokenizer, sample, reach=engine.reach)
    judge = JUDGES[work.task.judge]
    return [outcome for regime, settings in work.missing for outcome in judge(case, settings, regime, stop_ids)]


def _judge_sessions(work: _Work, sample: Sample, engine: Engine) -> list[Outcome]:
    judge = SESSION_JUDGES[work.task.judge]
    return [outcome for _, settings in work.missing for outcome in judge(engine, sample, settings)]


def _make_sample(request: EvalRequest, work: _Work, count: Callable[[str], int]) -> Sample:
    wanted = Request(work.subtask, work.index, work.tokens, request.haystack, count, request.seed)
    sample = work.task.sample(wanted)
    check_solvable(sample)
    return sample


def _missing(request: EvalRequest, results: Journal[Outcome], count: CountTokens) -> Iterator[_Work]:
    """Index first, so that a run that is stopped has judged all subtasks on equally many samples."""
    most = {
        (subtask, tokens): request.samples_of(task, subtask, tokens, count)
        for task, subtask in request.subtasks
        for tokens in request.tokens
    }
    for index in range(request.samples):
        for tokens in request.tokens:
            for task, subtask in (pair for pair in request.subtasks if index < most[pair[1], tokens]):
                missing = []
                for regime in (r for r in request.regimes if r in task.regimes):
                    settings = tuple(
                        s for s in request.settings if (subtask, tokens, index, regime, s.label) not in results.done
                    )
                    if settings:
                        missing.append((regime, settings))
                if missing:
                    yield _Work(task, subtask, tokens, index, tuple(missing))


def check_regimes(request: EvalRequest, rope: RopeChoice | None) -> None:
    """Raise UsageError for a task that none of the wanted regimes has, and for one that cannot be read by `rope`."""
    for task, _ in request.subtasks:
        if not set(task.regimes) & set(request.regimes):
            raise UsageError(
                f"task {task.name} is measured with the question unseen alone",
                hint=f"leave it out, or use --regime {task.regimes[0]} or both",
            )
        if rope is not None and rope.kind in REPACKED and reads_unseen(request):
            message = f"with the question unseen no text is read with --rope {rope}: what is kept has to stay there"
            raise UsageError(message, hint="use --regime aware, or --rope yarn:2")


def reads_unseen(request: EvalRequest) -> bool:
    """Whether any text is read without its question."""
    return any("agnostic" in task.regimes and "agnostic" in request.regimes for task, _ in request.subtasks)


def room_for(request: EvalRequest) -> int:
    """Tokens behind a sample that its answers may take."""
    return max(_ROOM.get(task.judge, _LEAST_ROOM) for task, _ in request.subtasks)


def check_lengths(request: EvalRequest, trained_length: int) -> None:
    """Raise DoesNotFitError when a length leaves no room for the answers inside the model's context."""
    room = room_for(request)
    for tokens in request.tokens:
        if tokens + room > trained_length:
            raise DoesNotFitError(
                f"samples of {tokens:,} tokens and {room} to answer do not fit into the model's {trained_length:,}",
                hint=f"use --tokens {trained_length - room} or fewer, --rope auto, or another --model",
            )


def check_text(request: EvalRequest, tokenizer: Any) -> list[str]:
    """Raise what making the first sample of every kind does: a text that is too short is known from the tokenizer.

    Returns a sentence for every subtask of records that has no sample of a length, where others have.
    """
    count = partial(count_tokens, tokenizer)
    kinds = [(task, subtask, tokens) for task, subtask in request.subtasks for tokens in request.tokens]
    made = [kind for kind in kinds if request.samples_of(*kind, count)]
    for task, subtask, tokens in made or kinds:
        _make_sample(request, _Work(task, subtask, tokens, 0, ()), count)
    empty = [kind for kind in kinds if kind not in made]
    return [f"{subtask} has no sample that fits into {tokens:,} tokens" for _, subtask, tokens in empty]


def results_settings(
    loaded: LoadedModel,
    haystack: Haystack,
    *,
    seed: int,
    data: Sequence[tuple[str, str]] = (),
    matmul: Matmul = "float32",
) -> dict[str, object]:
    """What all lines of one results file share; anything else is in the lines themselves.

    Float32 products, and reading as trained, go unsaid.
    """
    read = f"{loaded.rope} past the trained length" if loaded.rope.only_past else str(loaded.rope)
    return {
        "uncomp": __version__,
        "model": loaded.info.name,
        "revision": loaded.info.sha256,
        "dtype": str(loaded.model.dtype).removeprefix("torch."),
        "device": loaded.device.type,
        "quantization": loaded.quantization,
        "tokenizer_sha256": hashlib.sha256(loaded.tokenizer.backend_tokenizer.to_str().encode()).hexdigest(),
        "seed": seed,
        "haystack": haystack.name,
        "haystack_sha256": haystack.sha256,
        **({"data": dict(data)} if data else {}),
        **({} if matmul == "float32" else {"matmul": matmul}),
        **({} if read == str(RopeState()) else {"rope": read}),
    }


def asked_for(request: EvalRequest, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those of `outcomes` that a command asked for; a results file may hold more than that."""
    subtasks = {subtask for _, subtask in request.subtasks}
    settings = {setting.label for setting in request.settings} | {UNRELATED}
    return [
        outcome
        for outcome in outcomes
        if outcome.subtask in subtasks
        and outcome.setting in settings
        and outcome.tokens in request.tokens
        and outcome.index < request.samples
        and outcome.regime in request.regimes
    ]
