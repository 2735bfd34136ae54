"""Judge answers: the likelihood of the right one, whether greedy decoding would write it, and what it cites.

    nll             mean over the reference's tokens from the second on, teacher-forced, in nats
    exact           1 when every reference token is the argmax after those before it: greedy decoding begins with it
    match           share of the accepted strings in the greedy text (RULER, arXiv 2404.06654, string match)
    f1              of a whole answer: words shared with the best accepted one (SQuAD, arXiv 1606.05250)
    choice          1 when the right one of several choices is the likeliest
    top_1, top_3    1 when the fact's line is the first, or one of the first three, of the evidence; of right answers
                    alone, since what a wrong one looked at is not what it should have

The first token is left out of `nll`: with the question in the prefill its logits come from before the eviction, and
would flatter every setting alike (but those that thin hidden states, which are judged by the same tokens); so does an
answer of one token, which has no `nll` there. `exact` and `match` are what a user gets, that first token included.
The evidence is that of `ask --evidence`: the answer's tokens are replayed behind the cache that they were written with
(engine/look/replay.py), heads weighed by the setting's own trust, and passages ranked by attention.
"""

import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from torch import Tensor

from uncomp_cli.cache.ragged import survival
from uncomp_cli.documents.places import Evidence, Places, Source, find_evidence
from uncomp_cli.engine.look.replay import attended_by
from uncomp_cli.engine.tokens.prompt import decode, encode
from uncomp_cli.evals.judges.case import Case, Compressed
from uncomp_cli.evals.judges.contestants import Setting
from uncomp_cli.evals.judges.forced_rows import Rows, RowsMark, in_batches, token_nll
from uncomp_cli.evals.tables.outcome import Outcome
from uncomp_cli.evals.tasks.task import Query, Regime, Sample


@dataclass(frozen=True, slots=True)
class Answered:
    """One setting's scores on one query; `text` is what greedy decoding writes."""

    nll: float | None
    exact: float
    match: float
    text: str
    more: dict[str, float]


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
    """Means over queries; a metric that not every query has over those that have it."""
    found: dict[str, list[float]] = {}
    for one in answers:
        likelihood = {} if one.nll is None else {"nll": one.nll}
        for name, value in {**likelihood, "exact": one.exact, "match": one.match, **one.more}.items():
            found.setdefault(name, []).append(value)
    return {name: fmean(values) for name, values in found.items()}


def match_score(text: str, query: Query) -> float:
    """Share of the accepted strings in `text`, without regard to case; with need "any" 1 when one is there."""
    found = [accepted.lower() in text.lower() for accepted in query.accepted]
    if not found:
        return 0.0
    return float(any(found)) if query.need == "any" else fmean(found)


_ARTICLE = re.compile(r"\b(a|an|the)\b")
_NO_WORD = re.compile(r"[^\w\s]|_")


def words_of(text: str) -> list[str]:
    """Words as SQuAD compares them: without regard to case, articles and punctuation."""
    return _ARTICLE.sub(" ", _NO_WORD.sub("", text.lower())).split()


def f1_score(text: str, accepted: Sequence[str]) -> float:
    """The harmonic mean of precision and recall of `text`'s words, against the accepted answer that is nearest."""
    return max(_overlap(words_of(text), words_of(answer)) for answer in accepted)


def _overlap(written: list[str], wanted: list[str]) -> float:
    shared = (Counter(written) & Counter(wanted)).total()
    return 2 * shared / (len(written) + len(wanted)) if shared else float(written == wanted)


def _answer(
    case: Case, compressed: Sequence[Compressed], regime: Regime, query: int, stop_ids: Sequence[int]
) -> list[Answered]:
    """What every cache makes of one query. Only rows that would not write the reference have to write."""
    asked, reference = case.sample.queries[query], case.answers[query]
    choices = [encode(case.tokenizer, choice, special=False) for choice in asked.choices]
    longest = max(map(len, [reference, *choices]))
    rows, logits = case.begin(compressed, regime, query, room=longest)
    mark = rows.mark()
    likeliest = _likeliest(rows, logits, choices, mark)
    nll, right = teacher_forced(rows, logits, reference)
    texts = [asked.answer] * len(compressed)
    wrong = [
        row for row, is_right in enumerate(right) if asked.whole or not is_right or match_score(texts[row], asked) < 1
    ]
    if wrong:
        rows.rollback(mark)
        writing = rows.pick(wrong, reserve=asked.max_new_tokens)
        for row, text in zip(wrong, _write(case, writing, logits[wrong], query, stop_ids), strict=True):
            texts[row] = text
    judged = regime == "agnostic" or len(reference) > 1
    more = [{"f1": f1_score(text, asked.accepted)} if asked.whole else {} for text in texts]
    if judged and choices:
        wanted = asked.choices.index(asked.answer)
        more = [{**one, "choice": float(found == wanted)} for one, found in zip(more, likeliest, strict=True)]
    return [
        Answered(loss if judged else None, float(exact), match_score(text, asked), text, others)
        for loss, exact, text, others in zip(nll, right, texts, more, strict=True)
    ]


def _likeliest(rows: Rows, logits: Tensor, choices: Sequence[Sequence[int]], mark: RowsMark) -> list[int]:
    """For every row the number of the choice whose tokens are likeliest on average; nothing where there are none.

    The rows are as they were at `mark` afterwards.
    """
    losses = []
    for choice in choices:
        every = logits[:, None] if len(choice) == 1 else torch.cat([logits[:, None], rows.feed(choice[:-1])], dim=1)
        losses.append(token_nll(every, choice).mean(dim=1))
        rows.rollback(mark)
    return torch.stack(losses).argmin(dim=0).tolist() if losses else []


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
        if not asked.whole and all(match_score(case.tokenizer.decode(ids), asked) == 1 for ids in written):
            break
    return [decode(case.tokenizer, ids) for ids in written]


MOST = 3
"""Passages that are cited."""

_NAME = "text"


def judge_evidence(case: Case, settings: Sequence[Setting], regime: Regime, stop_ids: Sequence[int]) -> list[Outcome]:
    """Outcomes of `settings` on a case with one question."""
    compressed, outcomes = case.compress(settings, regime)
    places = _places(case)
    return outcomes + [_judged(case, one, regime, places, stop_ids) for one in compressed]


def hits(found: Sequence[Evidence], lines: Collection[int]) -> dict[str, float]:
    """Whether one of `lines` lies in the first passage, and in any of the first `MOST`."""
    cited = [any(evidence.line_start <= line <= evidence.line_end for line in lines) for evidence in found[:MOST]]
    return {"top_1": float(any(cited[:1])), f"top_{MOST}": float(any(cited))}


def evidence_lines(sample: Sample) -> set[int]:
    """The lines of the context, the first is 1, on which the evidence of the first query stands."""
    before = [(begin, sample.context.count("\n", 0, begin) + 1, end) for begin, end in sample.queries[0].evidence]
    return {
        line
        for begin, first, end in before
        for line in range(first, first + 1 + sample.context.count("\n", begin, end))
    }


def _places(case: Case) -> Places:
    """Where the context's lines are among the prompt's tokens."""
    text, offsets = case.sample.context, case.prompt.context.offsets
    first_char = len(text) - len(text.lstrip())
    return Places([Source(_NAME, text, first_char)], offsets.tolist())


def _judged(case: Case, one: Compressed, regime: Regime, places: Places, stop_ids: Sequence[int]) -> Outcome:
    query = case.sample.queries[0]
    ids, mass = _cited(case, one, regime, stop_ids)
    text = decode(case.tokenizer, ids)
    metrics = {"match": match_score(text, query)}
    if metrics["match"] == 1:
        spec = case.decoder.spec
        kept = survival(one.cache, case.context_len, layers=spec.full_layers)
        metrics |= hits(find_evidence(mass, kept.tolist(), places, most=MOST), evidence_lines(case.sample))
    return one.judged(metrics, answer=text)


def _cited(case: Case, one: Compressed, regime: Regime, stop_ids: Sequence[int]) -> tuple[list[int], list[float]]:
    """The greedy answer's tokens, and the attention that they paid to every token before them."""
    room = case.sample.queries[0].max_new_tokens
    rows, logits = case.begin([one], regime, 0, room=room)
    first = rows.position - 1
    written = case.writer(rows, logits, 0, max_new_tokens=room, stop_ids=stop_ids).write()
    ids = [step.token for step in written if step.finish_reason != "stop"]
    replayed = (case.prompt.questions[0][-1], *ids[:-1])
    return ids, attended_by(case.decoder, rows.cache, replayed, first, heads=one.trust).tolist()
