"""Haystacks: paragraphs kept as they are; excerpts that are consecutive, of their length, refused when too long;
and the texts that tasks cut out of them."""

import random
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.town import count_tokens
from uncomp_cli.errors import UsageError
from uncomp_cli.evals.tasks import choose_subtasks
from uncomp_cli.evals.tasks.haystack import Haystack, closing, opening
from uncomp_cli.evals.tasks.task import Request, Sample

ROOT = Path(__file__).parent.parent
LICENCE = Haystack.of_texts("LICENSE", [(ROOT / "LICENSE").read_text(encoding="utf-8")])
HANDBOOK = Haystack.of_texts("handbook", [(ROOT / "docs/demo/lighthouse-handbook.md").read_text(encoding="utf-8")])
PROSE = Haystack.generated(seed=0, tokens=6000)

FRAGMENTS = (
    "a word",
    "interminable ",
    "7.3 % ",
    "é, ",
    "so; ",
    "it ends. ",
    "is it? ",
    ".",
    " ",
    "\n",
    "\n\n",
    "x" * 50,
)
texts = st.lists(st.sampled_from(FRAGMENTS), min_size=1, max_size=120).map("".join)


def make(subtask: str, index: int = 0, *, tokens: int, haystack: Haystack = PROSE) -> Sample:
    [(task, _)] = choose_subtasks([subtask])
    return task.sample(Request(subtask, index, tokens, haystack, count_tokens, seed=0))


def is_run(part: list[str], whole: list[str]) -> bool:
    return any(whole[at : at + len(part)] == part for at in range(len(whole) - len(part) + 1))


def test_paragraphs_are_joined_lines_between_blank_lines_and_scraps_are_left_out() -> None:
    wrapped = "The first paragraph goes on\nover two lines  of text."
    text = f"# Title\n\n{wrapped}\n \t\nThe second, <b>as it is</b>, with 3 % of π.\n"
    haystack = Haystack.of_texts("two", [text, "A third paragraph comes from another file altogether."])
    assert haystack.paragraphs == (
        "The first paragraph goes on over two lines of text.",
        "The second, <b>as it is</b>, with 3 % of π.",
        "A third paragraph comes from another file altogether.",
    )


def test_a_text_without_blank_lines_has_places_to_begin_at() -> None:
    text = " ".join(PROSE.paragraphs)
    haystack = Haystack.of_texts("one line", [text])
    assert " ".join(haystack.paragraphs) == text
    assert max(map(len, haystack.paragraphs)) <= 1600
    assert all(paragraph.endswith(".") for paragraph in haystack.paragraphs)
    assert len(haystack.paragraphs) > 10


def test_the_hash_tells_texts_apart_and_does_not_depend_on_the_name() -> None:
    same = Haystack.of_texts("other name", [(ROOT / "LICENSE").read_text(encoding="utf-8")])
    assert same.sha256 == LICENCE.sha256 != HANDBOOK.sha256
    assert len(LICENCE.sha256) == 64


def test_generated_prose_is_seeded_and_as_long_as_asked() -> None:
    assert Haystack.generated(seed=3, tokens=500) == Haystack.generated(seed=3, tokens=500)
    assert Haystack.generated(seed=3, tokens=500).sha256 != Haystack.generated(seed=4, tokens=500).sha256
    text = " ".join(PROSE.paragraphs)
    assert count_tokens(text) >= 6000
    assert len(set(text.split())) > 1500
    assert not re.search(r"magic|password|lives in|VAR", text)


@pytest.mark.parametrize("tokens", [200, 600, 1800])
@pytest.mark.parametrize("haystack", [LICENCE, HANDBOOK, PROSE], ids=lambda haystack: haystack.name)
def test_an_excerpt_is_consecutive_and_as_long_as_asked(haystack: Haystack, tokens: int) -> None:
    whole = " ".join(haystack.paragraphs).split()
    for seed in range(5):
        pieces = haystack.excerpt(random.Random(seed), tokens=tokens, count_tokens=count_tokens)
        assert 0.95 * tokens <= count_tokens("\n\n".join(pieces)) <= tokens
        assert is_run(" ".join(pieces).split(), whole)
        assert max(map(len, pieces)) <= 240


def test_excerpts_begin_at_many_places_up_to_the_last_that_is_long_enough() -> None:
    begins = {PROSE.excerpt(random.Random(seed), tokens=2000, count_tokens=count_tokens)[0][:60] for seed in range(80)}
    places = sorted(next(at for at, p in enumerate(PROSE.paragraphs) if p.startswith(b[:40])) for b in begins)
    assert len(places) > 30
    assert places[0] < 5
    left = count_tokens("\n\n".join(PROSE.paragraphs[places[-1] :]))
    assert 2000 <= left < 2400


def test_a_haystack_of_just_the_length_gives_itself() -> None:
    haystack = Haystack.of_texts("exact", ["A sentence that is long enough to be a paragraph."])
    tokens = count_tokens("\n\n" + haystack.paragraphs[0])
    assert haystack.excerpt(random.Random(0), tokens=tokens, count_tokens=count_tokens) == list(haystack.paragraphs)


def test_a_short_haystack_is_refused_with_both_numbers() -> None:
    total = sum(count_tokens("\n\n" + paragraph) for paragraph in HANDBOOK.paragraphs)
    with pytest.raises(UsageError) as refused:
        HANDBOOK.excerpt(random.Random(0), tokens=total + 1, count_tokens=count_tokens)
    assert f"{total:,}" in refused.value.message
    assert f"{total + 1:,}" in refused.value.message
    assert "'handbook'" in refused.value.message
    assert refused.value.hint is not None
    assert "--file" in refused.value.hint
    assert "--tokens" in refused.value.hint


@given(text=texts, share=st.floats(0.05, 1.0), seed=st.integers(0, 99))
def test_no_excerpt_wraps_repeats_or_exceeds(text: str, share: float, seed: int) -> None:
    haystack = Haystack.of_texts("any", ["There is at least this one paragraph of text.", text])
    tokens = max(1, int(share * sum(count_tokens("\n\n" + paragraph) for paragraph in haystack.paragraphs)))
    pieces = haystack.excerpt(random.Random(seed), tokens=tokens, count_tokens=count_tokens)
    assert count_tokens("\n\n".join(pieces)) <= tokens
    assert is_run(" ".join(pieces).split(), " ".join(haystack.paragraphs).split())


@given(text=texts, tokens=st.integers(0, 300))
def test_openings_and_closings_are_ends_of_the_text_within_their_length(text: str, tokens: int) -> None:
    begin = opening(text, tokens, count_tokens=count_tokens)
    end = closing(text, tokens, count_tokens=count_tokens)
    assert text.startswith(begin)
    assert text.endswith(end)
    assert max(count_tokens(begin), count_tokens(end)) <= tokens
    if count_tokens(text) <= tokens:
        assert begin == end == text


def test_cuts_prefer_sentences_then_clauses_then_words() -> None:
    text = "One two three four. Five six, seven eight nine ten eleven."
    assert opening(text, 8, count_tokens=count_tokens, spare=0.5) == "One two three four."
    assert opening(text, 8, count_tokens=count_tokens, spare=0.05) == "One two three four. Five six,"
    assert opening(text, 9, count_tokens=count_tokens, spare=0.0) == "One two three four. Five six, seven"
    assert closing(text, 11, count_tokens=count_tokens, spare=0.5) == "Five six, seven eight nine ten eleven."
    assert closing(text, 8, count_tokens=count_tokens, spare=0.2) == "seven eight nine ten eleven."


@pytest.mark.parametrize("tokens", [300, 1500])
def test_perplexity_texts_follow_each_other_and_the_control_is_apart(tokens: int) -> None:
    whole = "\n\n".join(PROSE.paragraphs)
    for index in range(10):
        sample = make("perplexity/continuation", index, tokens=tokens)
        [query] = sample.queries
        assert query.question == ""
        assert 560 <= count_tokens(query.answer) < 560 + 250
        assert query.answer.startswith("\n\n")
        begin = whole.index(sample.context + query.answer)
        end = begin + len(sample.context + query.answer)
        assert whole[end : end + 2] in ("", "\n\n")
        assert sample.control is not None
        control = whole.index(sample.control)
        assert control >= end or control + len(sample.control) <= begin
        assert count_tokens(sample.context) - 3 <= count_tokens(sample.control) <= count_tokens(sample.context)


@pytest.mark.parametrize(
    "subtask", ["needle/uuid", "ruler/niah_multikey_1", "fidelity/continuation", "perplexity/continuation"]
)
def test_tasks_refuse_a_short_haystack_with_both_numbers(subtask: str) -> None:
    short = Haystack.generated(seed=0, tokens=800)
    total = sum(count_tokens("\n\n" + paragraph) for paragraph in short.paragraphs)
    with pytest.raises(UsageError) as refused:
        make(subtask, tokens=4000, haystack=short)
    numbers = [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]{2,}", refused.value.message)]
    assert total in numbers
    assert max(numbers) > total
    assert "--file" in (refused.value.hint or "")
