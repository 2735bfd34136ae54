"""The oracle: it answers from context and question alone, and catches samples that cannot be answered as accepted."""

import re
from collections import Counter
from dataclasses import replace

import pytest

from support.town import count_tokens
from uncomp_cli.errors import UncompError
from uncomp_cli.evals.tasks import TASKS, choose_subtasks
from uncomp_cli.evals.tasks.haystack import Haystack
from uncomp_cli.evals.tasks.oracle import check_solvable, solve
from uncomp_cli.evals.tasks.task import Request, Sample

HAYSTACK = Haystack.generated(seed=5, tokens=4000)
OTHERS = ("fidelity", "perplexity", "lm-eval")
"""What asks for no answer, and what another package asks."""
SUBTASKS = [subtask for task in TASKS.values() if task.name not in OTHERS for subtask in task.subtasks]
HIDDEN = [
    "needle/digits7",
    "needle/digits16",
    "needle/uuid",
    "needle/chat",
    "needle/values",
    "evidence/uuid",
    "evidence/chat",
    "conversation/facts",
    "ruler/niah_single_2",
    "ruler/niah_single_3",
    "ruler/niah_multikey_1",
    "ruler/niah_multivalue",
    "ruler/niah_multiquery",
    "multiquestion/facts",
]


def make(subtask: str, index: int = 0, *, haystack: Haystack = HAYSTACK) -> Sample:
    [(task, _)] = choose_subtasks([subtask])
    return task.sample(Request(subtask, index, 900, haystack, count_tokens, seed=0))


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_it_does_not_look_at_what_is_accepted(subtask: str) -> None:
    for index in range(5):
        sample = make(subtask, index)
        blind = [replace(query, answer="", accepted=("nothing",), evidence=()) for query in sample.queries]
        assert solve(replace(sample, queries=tuple(blind))) == tuple(query.accepted for query in sample.queries)


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_another_accepted_answer_is_caught(subtask: str) -> None:
    sample = make(subtask, 2)
    last = sample.queries[-1]
    wrong = replace(last, accepted=(*last.accepted[:-1], "1234567"))
    with pytest.raises(UncompError) as caught:
        check_solvable(replace(sample, queries=(*sample.queries[:-1], wrong)))
    assert subtask in caught.value.message
    assert "sample 2" in caught.value.message
    assert "--seed" in (caught.value.hint or "")


@pytest.mark.parametrize("subtask", HIDDEN)
def test_a_haystack_with_a_conflicting_fact_is_caught(subtask: str) -> None:
    sample = make(subtask)
    begin, end = sample.queries[0].evidence[0]
    fact, value = sample.context[begin:end], sample.queries[0].accepted[0]
    other = fact.replace(value, re.sub(r"\d", "3", value) if re.search(r"\d", value) else "harpoon")
    assert other != fact
    paragraphs = [f"{paragraph} {other}" for paragraph in HAYSTACK.paragraphs]
    conflicting = make(subtask, haystack=Haystack.of_texts("conflicting", paragraphs))
    with pytest.raises(UncompError) as caught:
        check_solvable(conflicting)
    assert subtask in caught.value.message
    assert "--file" in (caught.value.hint or "")


@pytest.mark.parametrize("subtask", [s for s in SUBTASKS if make(s).queries[0].evidence])
def test_a_text_without_its_evidence_does_not_give_the_answer(subtask: str) -> None:
    sample = make(subtask, 1)
    query = sample.queries[0]
    begin, end = query.evidence[-1]
    gone = replace(sample, context=sample.context[:begin] + sample.context[end:])
    assert solve(gone)[0] != query.accepted


@pytest.mark.parametrize("subtask", [s for s in SUBTASKS if make(s).queries[0].evidence])
def test_evidence_in_the_wrong_place_is_caught(subtask: str) -> None:
    sample = make(subtask, 1)
    shifted = replace(sample.queries[0], evidence=tuple((0, 3) for _ in sample.queries[0].evidence))
    with pytest.raises(UncompError, match="evidence of question 1"):
        check_solvable(replace(sample, queries=(shifted, *sample.queries[1:])))


def test_evidence_past_the_end_is_caught() -> None:
    sample = make("needle/digits7", 4)
    [(begin, end)] = sample.queries[0].evidence
    assert end == len(sample.context)
    query = replace(sample.queries[0], evidence=((begin, end + 1),))
    with pytest.raises(UncompError, match="evidence of question 1"):
        check_solvable(replace(sample, queries=(query,)))


def test_spans_that_are_idle_doubled_or_out_of_order_are_caught() -> None:
    sample = make("ruler/niah_multivalue")
    spans = sample.queries[0].evidence
    first, *others = spans
    end = first[1]
    for wrong in (((0, 1), *others), (first, *spans), (*others, first), (first, (end, end + 2), *others)):
        with pytest.raises(UncompError, match="evidence of question 1"):
            check_solvable(replace(sample, queries=(replace(sample.queries[0], evidence=wrong),)))


def test_words_that_come_equally_often_have_no_answer() -> None:
    sample = make("ruler/fwe")
    third = sample.queries[0].accepted[2]
    (_, times), (fourth, fewer) = Counter(re.findall(r"\b[a-z]{6}\b", sample.context.split("\n\n")[1])).most_common()[
        2:4
    ]
    level = replace(sample, context=f"{sample.context}{f' {fourth}' * (times - fewer)}")
    more = replace(level, context=f"{level.context} {third}")
    assert solve(level) == ((),)
    assert solve(more) == solve(sample)


def test_tasks_without_right_answers_pass() -> None:
    for subtask in ("fidelity/continuation", "perplexity/continuation"):
        sample = make(subtask)
        assert solve(sample) == ((),)
        check_solvable(sample)
