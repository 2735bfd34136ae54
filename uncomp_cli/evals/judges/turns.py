"""Judge a conversation: the engine's own chat session, turn after turn, every answer kept as it was written.

    match         share of the turns whose answer has the value; match_first and match_last are those of two turns
    nll           of the reference answer behind everything that was said, mean over turns, in nats a token; from its
                  second token on, teacher-forced before the session writes its own answer, then forgotten
    coverage      share of the fact's entries that heads still hold when it is asked for, mean over turns
    reread        share of the turns that read again what had been evicted; none in `conversation/unaided`
    within        1 when the cache was within its budget after every turn; the full cache has none

A setting reads the text itself, so nothing is shared and no shortcut is taken: what is judged is what a chat does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from uncomp_cli.engine.context.session import Conversation
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.records import DecodeStep
from uncomp_cli.engine.tokens.messages import Message
from uncomp_cli.engine.tokens.prompt import encode
from uncomp_cli.errors import DoesNotFitError, ModelError
from uncomp_cli.evals.judges.answers import match_score
from uncomp_cli.evals.judges.case import evidence_tokens
from uncomp_cli.evals.judges.contestants import FULL, Setting
from uncomp_cli.evals.judges.forced_rows import token_nll
from uncomp_cli.evals.tables.outcome import Outcome
from uncomp_cli.evals.tasks.quiz import UNAIDED
from uncomp_cli.evals.tasks.task import Query, Sample

TURNS_TOKENS = 640
"""What five questions and their answers take at most, template included."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One question and what came of it; `kv_bytes` and `budget_bytes` are those after the answer."""

    text: str
    match: float
    nll: float
    coverage: float
    reread: bool
    kept_fraction: float
    kv_bytes: int
    budget_bytes: int


def judge_conversation(engine: Engine, sample: Sample, settings: Sequence[Setting]) -> list[Outcome]:
    """Outcomes of `settings`, each in a session of its own."""
    return [_outcome(engine, sample, setting) for setting in settings]


def converse(session: Conversation, sample: Sample) -> list[Turn]:
    """The turns of a conversation about the context of `sample`, a question each, in their order.

    Raises DoesNotFitError when a budget or the model's context is too small.
    """
    messages = [Message("system", sample.system)] if sample.system else []
    spans_from = len(sample.system or "")
    turns: list[Turn] = []
    for query in sample.queries:
        parts = (query.question,) if turns else (sample.context, "\n\n", query.question)
        messages.append(Message("user", "".join(parts), parts=parts))
        turns.append(_turn(session, messages, query, spans_from))
        messages.append(Message("assistant", turns[-1].text, ids=tuple(session.answer_ids)))
    return turns


def _turn(session: Conversation, messages: Sequence[Message], query: Query, spans_from: int) -> Turn:
    """Ask the last of `messages`; the context's characters begin at `spans_from` of all messages' text."""
    session.notes.clear()
    session.sampling = replace(session.sampling, max_new_tokens=query.max_new_tokens)
    text, nll, held = "", 0.0, 0.0
    steps = session.turn(messages)
    if session.growth.budget.shortage is not None:
        raise DoesNotFitError(session.growth.budget.shortage, hint="use a larger --budget")
    for step in steps:
        if isinstance(step, DecodeStep):
            if step.index == 0:  # what was asked is in the cache, and nothing behind it
                nll, held = _reference_nll(session, query.answer), _coverage(session, query, spans_from)
            text += step.text
    return Turn(
        text=text,
        match=match_score(text, query),
        nll=nll,
        coverage=held,
        reread=bool(session.notes),
        kept_fraction=session.kv_bytes / session.kv_full_bytes,
        kv_bytes=session.kv_bytes,
        budget_bytes=session.budget_bytes,
    )


def _reference_nll(session: Conversation, answer: str) -> float:
    """Mean NLL of the tokens of `answer` from the second on, behind all that is in the cache, which stays as it was."""
    ids = encode(session.loaded.tokenizer, answer, special=False)
    context, first = session.growth.context, session.cached_tokens
    mark = context.cache.mark()
    logits = context.feed(ids[:-1], first, last=len(ids) - 1)
    context.cache.rollback(mark)
    return float(token_nll(logits[None], ids[1:]).mean())


def _coverage(session: Conversation, query: Query, spans_from: int) -> float:
    """Mean share of the heads that hold the tokens of the fact that `query` asks for."""
    spans = [(begin + spans_from, end + spans_from) for begin, end in query.evidence]
    return float(session.survival()[evidence_tokens(session.tokens.offsets, spans)].mean())


def _outcome(engine: Engine, sample: Sample, setting: Setting) -> Outcome:
    named = Outcome.of(sample, setting, "agnostic")
    try:
        session = engine.conversation(setting.preset)
        session.recalls = sample.subtask != UNAIDED
        turns = converse(session, sample)
    except (DoesNotFitError, ModelError) as refusal:
        return replace(named, refused=refusal.message)
    return replace(
        named,
        kept_fraction=turns[-1].kept_fraction,
        kv_bytes=turns[-1].kv_bytes,
        metrics={**_means(turns), **({} if setting.budget == FULL else _within(turns))},
        answer="\n".join(" ".join(turn.text.split()) for turn in turns),
    )


def _means(turns: Sequence[Turn]) -> dict[str, float]:
    return {
        "match": fmean(turn.match for turn in turns),
        "match_first": turns[0].match,
        "match_last": turns[-1].match,
        "nll": fmean(turn.nll for turn in turns),
        "coverage": fmean(turn.coverage for turn in turns),
        "reread": fmean(turn.reread for turn in turns),
    }


def _within(turns: Sequence[Turn]) -> dict[str, float]:
    return {"within": float(all(turn.kv_bytes <= turn.budget_bytes for turn in turns))}
