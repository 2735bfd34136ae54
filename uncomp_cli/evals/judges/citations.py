"""Judge evidence: is the line that holds the fact among the passages that a right answer is said to have looked at?

    match           1 when the value is in the greedy answer
    top_1, top_3    1 when the fact's line is the first, or one of the first three, of the evidence; of right answers
                    alone, since what a wrong one looked at is not what it should have

The passages are those of `ask --evidence`: the answer's tokens are replayed behind the cache that they were written
with (engine/look/replay.py), heads weighed by the setting's own trust, and passages ranked by attention.
"""

from collections.abc import Sequence

from uncomp_cli.cache.ragged import survival
from uncomp_cli.documents.places import Evidence, Places, Source, find_evidence
from uncomp_cli.engine.look.replay import attended_by
from uncomp_cli.evals.judges.answers import match_score
from uncomp_cli.evals.judges.case import Case, Compressed
from uncomp_cli.evals.judges.contestants import Setting
from uncomp_cli.evals.tables.outcome import Outcome
from uncomp_cli.evals.tasks.task import Regime, Sample

__all__ = ["MOST", "fact_line", "hits", "judge_evidence"]

MOST = 3
"""Passages that are cited."""

_NAME = "text"


def judge_evidence(case: Case, settings: Sequence[Setting], regime: Regime, stop_ids: Sequence[int]) -> list[Outcome]:
    """Outcomes of `settings` on a case with one fact and one question."""
    compressed, outcomes = case.compress(settings, regime)
    places = _places(case)
    return outcomes + [_judged(case, one, regime, places, stop_ids) for one in compressed]


def hits(found: Sequence[Evidence], line: int) -> dict[str, float]:
    """Whether `line` lies in the first passage, and in any of the first `MOST`."""
    cited = [evidence.line_start <= line <= evidence.line_end for evidence in found[:MOST]]
    return {"top_1": float(any(cited[:1])), f"top_{MOST}": float(any(cited))}


def fact_line(sample: Sample) -> int:
    """The line of the context, the first is 1, on which the fact of the first query stands."""
    begin, _ = sample.queries[0].evidence[0]
    return sample.context.count("\n", 0, begin) + 1


def _places(case: Case) -> Places:
    """Where the context's lines are among the prompt's tokens."""
    text, offsets = case.sample.context, case.prompt.context.offsets
    first_char = len(text) - len(text.lstrip())
    return Places([Source(_NAME, text, first_char)], offsets.tolist())


def _judged(case: Case, one: Compressed, regime: Regime, places: Places, stop_ids: Sequence[int]) -> Outcome:
    query = case.sample.queries[0]
    ids, mass = _answer(case, one, regime, stop_ids)
    text = str(case.tokenizer.decode(ids, skip_special_tokens=True))
    metrics = {"match": match_score(text, query)}
    if metrics["match"] == 1:
        spec = case.decoder.spec
        kept = survival(one.cache, case.context_len, layers=spec.full_layers)
        metrics |= hits(find_evidence(mass, kept.tolist(), places, most=MOST), fact_line(case.sample))
    return one.judged(metrics, answer=text)


def _answer(case: Case, one: Compressed, regime: Regime, stop_ids: Sequence[int]) -> tuple[list[int], list[float]]:
    """The greedy answer's tokens, and the attention that they paid to every token before them."""
    room = case.sample.queries[0].max_new_tokens
    rows, logits = case.begin([one], regime, 0, room=room)
    first = rows.position - 1
    written = case.writer(rows, logits, 0, max_new_tokens=room, stop_ids=stop_ids).write()
    ids = [step.token for step in written if step.finish_reason != "stop"]
    replayed = (case.prompt.questions[0][-1], *ids[:-1])
    return ids, attended_by(case.decoder, rows.cache, replayed, first, heads=one.trust).tolist()
