"""Judge answers: the likelihood of the right one, whether greedy decoding would write it, and what it does write.

    nll     mean over the reference's tokens from the second on, teacher-forced, in nats
    exact   1 when every reference token is the argmax after those before it: greedy decoding begins with it
    match   share of the accepted strings in the greedy text (RULER, arXiv 2404.06654, string match)

The first token is left out of `nll`: with the question in the prefill its logits come from before the eviction, and
would flatter every setting alike (but those that thin hidden states, which are judged by the same tokens); so does an
answer of one token, which has no `nll` there. `exact` and `match` are what a user gets, that first token included.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from uncomp_cli.evals.judges.case import Case, Compressed
from uncomp_cli.evals.judges.contestants import Setting
from uncomp_cli.evals.judges.forced_rows import Rows, in_batches, token_nll
from uncomp_cli.evals.tables.outcome import Outcome
from uncomp_cli.evals.tasks.task import Query, Regime

__all__ = ["Answered", "judge_answers", "match_score", "teacher_forced"]


@dataclass(frozen=True, slots=True)
class Answered:
    """One setting's scores on one query; `text` is what greedy decoding writes."""

    nll: float | None
    exact: float
    match: float
    text: str


def judge_answers(case: Case, settings: Sequence[Setting], regime: Regime, stop_ids: Sequence[int]) -> list[Outcome]:
    """Outcomes of `settings` on `case`, means over its queries."""
    compressed, outcomes = case.compress(settings, regime)
    longest = max(len(answer) for answer in case.answers)
    for batch in in_batches([c.cache for c in compressed], case.decoder.spec, tokens=longest):
        chosen = [compressed[i] for i in batch]
        answered = [_answer(case, chosen, regime, query, stop_ids) for query in range(len(case.answers))]
        for one, answers in zip(chosen, zip(*answered, strict=True), strict=True):
            outcomes.append(one.judged(_means(answers), answer=answers[0].text))
    return outcomes


def _means(answers: Sequence[Answered]) -> dict[str, float]:
    """Means over queries; `nll` over those that have one."""
    losses = [answered.nll for answered in answers if answered.nll is not None]
    likelihood = {"nll": fmean(losses)} if losses else {}
    return {**likelihood, "exact": fmean(a.exact for a in answers), "match": fmean(a.match for a in answers)}


def match_score(text: str, query: Query) -> float:
    """Share of the accepted strings in `text`, without regard to case; with need "any" 1 when one is there."""
    found = [accepted.lower() in text.lower() for accepted in query.accepted]
    if not found:
        return 0.0
    return float(any(found)) if query.need == "any" else fmean(found)


def _answer(
    case: Case, compressed: Sequence[Compressed], regime: Regime, query: int, stop_ids: Sequence[int]
) -> list[Answered]:
    """What every cache makes of one query. Only rows that would not write the reference have to write."""
    asked, reference = case.sample.queries[query], case.answers[query]
    rows, logits = case.begin(compressed, regime, query, room=len(reference))
    mark = rows.mark()
    nll, right = teacher_forced(rows, logits, reference)
    texts = [asked.answer] * len(compressed)
    wrong = [row for row, is_right in enumerate(right) if not is_right or match_score(texts[row], asked) < 1]
    if wrong:
        rows.rollback(mark)
        writing = rows.pick(wrong, reserve=asked.max_new_tokens)
        for row, text in zip(wrong, _write(case, writing, logits[wrong], query, stop_ids), strict=True):
            texts[row] = text
    judged = regime == "agnostic" or len(reference) > 1
    return [
        Answered(loss if judged else None, float(exact), match_score(text, asked), text)
        for loss, exact, text in zip(nll, right, texts, strict=True)
    ]


def teacher_forced(rows: Rows, logits: Tensor, reference: Sequence[int]) -> tuple[list[float], list[bool]]:
    """Every row's mean NLL from the second token on (of a single token: that one's) and whether argmax says it.

    `logits` [B, vocab] are those of the first token; the rows hold the others afterwards.
    """
    every = logits[:, None]
    if len(reference) > 1:
        every = torch.cat([every, rows.feed(reference[:-1])], dim=1)
    losses = token_nll(every, reference)
    right = (every.argmax(dim=-1) == torch.tensor(reference, device=every.device)).all(dim=1)
    return losses[:, min(1, len(reference) - 1) :].mean(dim=1).tolist(), right.tolist()


def _write(case: Case, rows: Rows, logits: Tensor, query: int, stop_ids: Sequence[int]) -> list[str]:
    """Every row's greedy text, until each has stopped or holds all that is accepted."""
    written: list[list[int]] = [[] for _ in range(len(rows))]
    asked = case.sample.queries[query]
    writer = case.writer(rows, logits, query, max_new_tokens=asked.max_new_tokens, stop_ids=stop_ids)
    for steps in writer.rounds():
        for step in steps:
            written[step.row] += [] if step.finish_reason == "stop" else [step.token]
        if all(match_score(case.tokenizer.decode(ids), asked) == 1 for ids in written):
            break
    return [str(case.tokenizer.decode(ids, skip_special_tokens=True)) for ids in written]
