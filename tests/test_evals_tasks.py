"""Tasks: samples of the length asked, the same for the same seed, with facts where they are said to stand."""

import re
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import pytest

from support.matrix import some
from support.town import count_tokens
from uncomp_cli.engine.tokens.prompt import count_tokens as count_model_tokens
from uncomp_cli.errors import UsageError
from uncomp_cli.evals.judges.evaluation import JUDGES, SESSION_JUDGES
from uncomp_cli.evals.tasks import TASKS, choose_subtasks, facts
from uncomp_cli.evals.tasks.haystack import Haystack
from uncomp_cli.evals.tasks.oracle import check_solvable
from uncomp_cli.evals.tasks.quiz import DEPTHS
from uncomp_cli.evals.tasks.task import Request, Sample
from uncomp_cli.models.checkpoint import load_tokenizer

ROOT = Path(__file__).parent.parent
PROSE = Haystack.generated(seed=0, tokens=8000)
FILES = Haystack.of_texts(
    "files",
    [(ROOT / name).read_text(encoding="utf-8") for name in ("LICENSE", "docs/demo/lighthouse-handbook.md")],
)
SUBTASKS = [subtask for task in TASKS.values() if task.name != "lm-eval" for subtask in task.subtasks]
WITH_EVIDENCE = [
    subtask
    for subtask in SUBTASKS
    if subtask.startswith(("needle/", "ruler/", "multiquestion/facts", "evidence/", "conversation/"))
    and subtask not in ("ruler/cwe", "ruler/fwe")
]


def make(
    subtask: str,
    index: int = 0,
    *,
    tokens: int = 1800,
    haystack: Haystack = PROSE,
    seed: int = 0,
    count: Callable[[str], int] = count_tokens,
) -> Sample:
    [(task, _)] = choose_subtasks([subtask])
    return task.sample(Request(subtask, index, tokens, haystack, count, seed))


def length(sample: Sample, count: Callable[[str], int]) -> int:
    longest = max(count(query.question) for query in sample.queries)
    return count(sample.context) + longest + (count(sample.system) if sample.system else 0)


def least_share(subtask: str, tokens: int) -> float:
    """A needle of two UUIDs is a tenth of 600 tokens, and there is no half of it."""
    return 0.95 if subtask != "ruler/niah_multikey_3" else 1 - 100 / tokens


@pytest.mark.sparse(1)
@pytest.mark.parametrize("subtask", SUBTASKS)
@pytest.mark.parametrize("tokens", [600, 1800])
@pytest.mark.parametrize("haystack", [PROSE, FILES], ids=lambda haystack: haystack.name)
def test_samples_are_as_long_as_asked_and_solvable(subtask: str, tokens: int, haystack: Haystack) -> None:
    for index, seed in product(some(2, 3), (0, 7)):
        sample = make(subtask, index, tokens=tokens, haystack=haystack, seed=seed)
        assert (sample.subtask, sample.index, sample.tokens) == (subtask, index, tokens)
        assert least_share(subtask, tokens) * tokens <= length(sample, count_tokens) <= tokens
        assert all(query.max_new_tokens <= 96 for query in sample.queries)
        check_solvable(sample)


@pytest.mark.model
def test_lengths_hold_with_the_tokenizer_of_the_default_model(default_model_dir: Path) -> None:
    tokenizer = load_tokenizer(default_model_dir)
    count = partial(count_model_tokens, tokenizer)
    for subtask, index in product(SUBTASKS, some(1, 2)):
        sample = make(subtask, index, haystack=PROSE, count=count)
        assert 0.95 * 1800 <= length(sample, count) <= 1800, subtask
        check_solvable(sample)
        for query in sample.queries:
            assert query.max_new_tokens >= min(96, count(query.answer) + 8) or not query.accepted
    assert count(make("ruler/niah_multikey_1", count=count).queries[0].answer) in (7, 8)


@pytest.mark.parametrize("subtask", SUBTASKS)
def test_arguments_determine_the_sample_and_each_matters(subtask: str) -> None:
    assert make(subtask, 3, tokens=600) == make(subtask, 3, tokens=600)
    samples = [
        make(subtask, index, tokens=tokens, seed=seed)
        for index, tokens, seed in product(some(2, 6), (600, 1800), (0, 1))
    ]
    assert len({(sample.context, sample.queries) for sample in samples}) == len(samples)


@pytest.mark.parametrize("subtask", WITH_EVIDENCE)
def test_evidence_spans_are_the_facts(subtask: str) -> None:
    for index in range(6):
        sample = make(subtask, index, tokens=900)
        for query in sample.queries:
            facts = [sample.context[begin:end] for begin, end in query.evidence]
            expected = 2 if subtask == "ruler/qa_2" else len(query.accepted)
            assert len(facts) == expected
            assert all(any(answer in fact for fact in facts) for answer in query.accepted)
            assert all(fact.endswith(".") or fact.startswith("VAR ") for fact in facts)
            assert all("." not in fact[:-1] for fact in facts)


@pytest.mark.sparse(1)
@pytest.mark.parametrize("subtask", [s for s in WITH_EVIDENCE if s.startswith(("needle/", "ruler/", "evidence/"))])
@pytest.mark.parametrize("tokens", [600, 1800])
def test_depth_is_where_the_evidence_stands(subtask: str, tokens: int) -> None:
    for index, haystack in product(range(6), (PROSE, FILES)):
        sample = make(subtask, index, tokens=tokens, haystack=haystack)
        spans = sample.queries[0].evidence
        if len(spans) > 1:
            assert sample.depth is None
            continue
        begin, end = spans[0]
        before, fact = count_tokens(sample.context[:begin]), count_tokens(sample.context[begin:end])
        measured = before / (count_tokens(sample.context) - fact)
        assert sample.depth == pytest.approx(measured, abs=0.07)


def test_needles_go_through_the_grid_of_depths() -> None:
    assert DEPTHS == (0.0, 0.25, 0.5, 0.75, 1.0)
    samples = [make("needle/digits7", index, tokens=600) for index in range(10)]
    assert [sample.depth for sample in samples] == [*DEPTHS, *DEPTHS]
    assert samples[0].queries[0].evidence[0][0] == 0
    assert samples[4].queries[0].evidence[0][1] == len(samples[4].context)


def test_needle_values_have_the_length_of_their_name() -> None:
    found = {name: make(f"needle/{name}", tokens=600).queries[0].answer for name in ("digits7", "digits16", "uuid")}
    assert re.fullmatch(r" [1-9]\d{6}", found["digits7"])
    assert re.fullmatch(r" [1-9]\d{15}", found["digits16"])
    assert re.fullmatch(r" [\da-f]{8}-[\da-f]{4}-4[\da-f]{3}-[89ab][\da-f]{3}-[\da-f]{12}", found["uuid"])


def test_the_chat_needle_is_answered_by_its_sentence() -> None:
    sample = make("needle/chat", tokens=600)
    [query] = sample.queries
    assert sample.system == ""
    assert query.question.endswith("?")
    assert query.answer in sample.context
    assert re.fullmatch(r"\d{7}", query.accepted[0])
    assert query.answer.endswith(f" is {query.accepted[0]}.")
    assert not re.search("access code|secret number", query.answer)


def test_needle_values_are_a_date_a_name_a_phrase_and_a_number() -> None:
    kinds = (r"\d{1,2} [A-Z][a-z]+ 1[89]\d\d", r"[A-Z][a-z]+ [A-Z][a-z]+", r"\w+ \w+, \w+ \w+", r"\d{10}")
    for index in range(8):
        sample = make("needle/values", index, tokens=600)
        [query] = sample.queries
        assert re.fullmatch(kinds[index % 4], query.accepted[0])
        assert query.answer == f" {query.accepted[0]}"
        assert f"{query.question.rpartition('Answer: ')[2]}{query.answer}." in sample.context


def test_the_reference_task_has_its_wording() -> None:
    for index in range(5):
        sample = make("ruler/niah_multikey_1", index)
        facts = re.findall(r"(?:^|\n\n)The special magic number for ([a-z]+) is (\d{7})\.(?=\n\n|$)", sample.context)
        [query] = sample.queries
        asked = next(key for key, value in facts if value == query.accepted[0])
        assert len(dict(facts)) == 4
        assert query.question == (
            f"\n\nWhat is the special magic number for {asked} mentioned in the text? "
            f"The special magic number for {asked} mentioned in the text is"
        )
        assert query.answer == f" {query.accepted[0]}"
        assert sample.system is None


@pytest.mark.parametrize(
    ("subtask", "keys", "values"),
    [("niah_single_2", 1, 1), ("niah_multikey_1", 4, 4), ("niah_multivalue", 1, 4), ("niah_multiquery", 4, 4)],
)
def test_essay_variants_have_their_keys_and_values(subtask: str, keys: int, values: int) -> None:
    sample = make(f"ruler/{subtask}")
    facts = re.findall(r"special magic numbers? for ([\w-]+) is (\d{7})\.", sample.context)
    assert (len({key for key, _ in facts}), len({value for _, value in facts})) == (keys, values)
    if subtask in ("niah_multivalue", "niah_multiquery"):
        [query] = sample.queries
        assert query.accepted == tuple(value for _, value in facts)
        first, second, third, fourth = query.accepted
        assert query.answer == f" {first}, {second}, {third}, and {fourth}"


def test_haystacks_of_noise_and_of_needles_have_nothing_else() -> None:
    noise = make("ruler/niah_single_1").context.split("\n\n")
    assert len(Counter(noise)) == 2
    kinds = {
        "ruler/niah_multikey_2": r"number for [a-z]+-[a-z]+ is \d{7}",
        "ruler/niah_multikey_3": r"uuid for \S{36} is \S{36}",
    }
    for subtask, form in kinds.items():
        needles = make(subtask).context.split("\n\n")
        assert all(re.fullmatch(rf"The special magic {form}\.", needle) for needle in needles)
        assert len(needles) > 10
    keys = [needle.split()[5] for needle in make("ruler/niah_multikey_2", tokens=20_000).context.split("\n\n")]
    assert len(set(keys)) == len(keys) > 700


def test_a_chain_has_four_hops_and_its_example_another_value() -> None:
    sample = make("ruler/vt")
    [query] = sample.queries
    value = re.search(r"value (\d{5})", query.question)
    assert value is not None
    begins = [sample.context[begin:end] for begin, end in query.evidence]
    assert begins[0] == f"VAR {query.accepted[0]} = {value[1]}"
    for before, name, line in zip(query.accepted, query.accepted[1:], begins[1:], strict=False):
        assert line == f"VAR {name} = VAR {before}"
    values = re.findall(r"^VAR \w+ = (\d+)$", sample.context, re.MULTILINE)
    assert len(values) == len(set(values)) == 2
    assert len(set(re.findall(r"^VAR (\w+) =", sample.context, re.MULTILINE))) == 10


@pytest.mark.parametrize(("tokens", "common", "rare"), [(600, (2, 3, 4), 1), (1800, (6,), 1), (6000, (30,), 3)])
def test_common_words_come_as_often_as_their_length_allows(tokens: int, common: tuple[int, ...], rare: int) -> None:
    sample = make("ruler/cwe", tokens=tokens)
    numbered = re.findall(r"(\d+)\. ([a-z-]+)", sample.context.rpartition("list of words")[2])
    assert [int(number) for number, _ in numbered] == list(range(1, len(numbered) + 1))
    counts = Counter(word for _, word in numbered)
    top = {counts.pop(word) for word in sample.queries[0].accepted}
    assert len(sample.queries[0].accepted) == 10
    assert len(top) == 1
    assert top <= set(common)
    assert set(counts.values()) == {rare}


def test_frequent_words_follow_zipf_with_dots_first() -> None:
    sample = make("ruler/fwe")
    counts = Counter(sample.context.partition("\n\n")[2].split())
    ranked = counts.most_common()
    assert ranked[0][0] == "...."
    assert tuple(word for word, _ in ranked[1:4]) == sample.queries[0].accepted
    assert ranked[3][1] > ranked[4][1]
    for rank, (_, times) in enumerate(ranked[:5], start=1):
        assert times == pytest.approx(ranked[0][1] / rank**2, abs=1)


def test_questions_on_generated_facts_are_of_all_kinds_and_their_documents_whole() -> None:
    openings = {
        re.sub(r"(?<=by |of ).*", "", make("ruler/qa_1", i).queries[0].question.split("\n")[-2])[:26] for i in range(30)
    }
    assert len({opening.split()[1] for opening in openings}) == 3  # In, What, Who
    sample = make("ruler/qa_2")
    home = re.search(r"of ([\w ]+) stand\?", sample.queries[0].question)
    assert home is not None
    lives = re.search(rf"{home[1]} lives in (\w+)\.", sample.context)
    assert lives is not None
    assert lives[1] != sample.queries[0].accepted[0]
    assert sample.queries[0].need == "any"


def test_fidelity_leaves_the_answer_to_the_judge() -> None:
    [query] = make("fidelity/continuation").queries
    assert (query.answer, query.accepted, query.max_new_tokens) == ("", (), 64)


def test_five_questions_are_of_five_kinds_and_an_instruction_asks_ordinary_ones() -> None:
    facts = make("multiquestion/facts").queries
    assert len({query.accepted for query in facts}) == len({query.evidence for query in facts}) == 5
    kinds = {re.sub(r"[A-Z0-9].*", "", query.question.split("Answer: ")[1][1:])[:12] for query in facts}
    assert len(kinds) >= 4
    sample = make("multiquestion/instruction")
    for query in sample.queries:
        assert query.accepted[0] in (sample.system or "")
        assert query.answer.startswith(query.accepted[0])
        assert query.accepted[0] not in sample.context + query.question


@pytest.mark.parametrize("subtask", [subtask for subtask in SUBTASKS if not subtask.startswith("perplexity")])
def test_a_length_without_room_is_refused_with_one_that_does(subtask: str) -> None:
    with pytest.raises(UsageError) as refused:
        make(subtask, tokens=40)
    assert subtask in refused.value.message
    assert "40" in refused.value.message
    found = re.search(r"--tokens (\d+)", refused.value.hint or "")
    assert found is not None
    assert length(make(subtask, tokens=int(found[1])), count_tokens) <= int(found[1])


def test_names_choose_subtasks_once_in_their_order() -> None:
    chosen = choose_subtasks(["ruler/vt", "needle", "needle/uuid", "ruler/vt"])
    assert [subtask for _, subtask in chosen] == ["ruler/vt", *TASKS["needle"].subtasks]
    assert [task.name for task, _ in chosen] == ["ruler", *["needle"] * 5]
    assert len([subtask for subtask in SUBTASKS if subtask.startswith("ruler/")]) == 13


@pytest.mark.parametrize(
    ("name", "meant"),
    [("rular", "'ruler'"), ("niah_single_1", "'ruler/niah_single_1'"), ("needle/digits8", "'needle/digits7'")],
)
def test_an_unknown_name_is_answered_with_the_nearest(name: str, meant: str) -> None:
    with pytest.raises(UsageError) as refused:
        choose_subtasks([name])
    assert repr(name) in refused.value.message
    assert meant in (refused.value.hint or "")


def test_a_name_like_none_is_answered_with_all() -> None:
    with pytest.raises(UsageError) as refused:
        choose_subtasks(["@"])
    assert all(task in (refused.value.hint or "") for task in TASKS)


def test_every_task_says_what_it_is() -> None:
    for name, task in TASKS.items():
        assert task.name == name
        assert task.judge in {**JUDGES, **SESSION_JUDGES}
        assert set(task.regimes) <= {"aware", "agnostic"}
        assert all(subtask.startswith(f"{name}/") for subtask in task.subtasks)


def test_word_lists_are_large_single_and_without_repeats() -> None:
    assert min(len(facts.NOUNS), len(facts.ADJECTIVES)) >= 150
    every = (facts.NOUNS, facts.ADJECTIVES, facts.FIRST_NAMES, facts.CITIES, facts.OCCUPATIONS, facts.OBJECTS)
    assert all(len(set(listed)) == len(listed) for listed in every)
    assert not set(facts.NOUNS) & set(facts.ADJECTIVES)
    assert all(re.fullmatch(r"[b-df-hj-np-tv-z][a-z-]+", word) for word in facts.OCCUPATIONS + facts.OBJECTS)
