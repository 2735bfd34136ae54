"""Evidence by hand: shares add up, neighbours join, what was evicted is named."""

import pytest

from uncomp_cli.documents.places import MOSTLY_EVICTED, Places, Source, find_evidence

LINES = ["alpha", "beta", "", "gamma", "delta"]
TOKENS = {0: 1, 1: 2, 3: 3, 4: 4}  # line → its token; token 0 is the template's


def places() -> Places:
    text, offsets, begin = "\n".join(LINES), [(-1, -1)], 0
    for line in LINES:
        offsets += [(begin, begin + len(line))] if line else []
        begin += len(line) + 1
    return Places([Source("a.md", text, 0)], offsets)


def test_shares_are_of_the_attention_on_documents() -> None:
    found = find_evidence([0.7, 0.02, 0.0, 0.06, 0.0], [1.0, 0.5, 1.0, 0.25, 1.0], places(), most=3)
    assert [(e.where, e.text) for e in found] == [("a.md:4", "gamma"), ("a.md:1", "alpha")]
    assert [e.attention_share for e in found] == pytest.approx([0.75, 0.25])
    assert [e.kept_fraction for e in found] == [0.25, 0.5]


def test_no_more_than_asked_for_and_nothing_without_attention() -> None:
    found = find_evidence([0.0, 0.1, 0.0, 0.3, 0.2], [1.0] * 5, places(), most=1)
    assert [e.where for e in found] == ["a.md:4"]
    assert found[0].attention_share == pytest.approx(0.5)
    assert find_evidence([0.9, 0.0, 0.0, 0.0, 0.0], [1.0] * 5, places()) == []
    assert find_evidence([], [], places()) == []


def test_neighbouring_lines_are_one_passage_but_not_over_a_blank_line() -> None:
    found = find_evidence([0.0, 0.1, 0.0, 0.3, 0.2], [1.0, 1.0, 1.0, 0.5, 0.0], places(), most=3)
    assert [(e.where, e.text) for e in found] == [("a.md:4-5", "gamma\ndelta"), ("a.md:1", "alpha")]
    assert found[0].attention_share == pytest.approx(5 / 6)
    assert found[0].kept_fraction == 0.25
    found = find_evidence([0.0, 0.0, 0.1, 0.3, 0.0], [1.0] * 5, places(), most=3)
    assert [e.where for e in found] == ["a.md:4", "a.md:2"]


def test_tokens_of_the_answer_have_neither_attention_nor_survival() -> None:
    found = find_evidence([0.0, 0.0, 0.0, 0.0, 0.5], [1.0] * 3, places())
    assert [(e.where, e.kept_fraction) for e in found] == [("a.md:5", 0.0)]


def test_what_is_mostly_evicted_says_so() -> None:
    for kept, said in ((MOSTLY_EVICTED - 0.01, True), (MOSTLY_EVICTED, False)):
        (found,) = find_evidence([0.0, 0.1, 0.0, 0.0, 0.0], [kept] * 5, places())
        assert found.mostly_evicted is said


def test_sentences_of_one_line_join_with_a_space() -> None:
    first, second = f"One {'very ' * 60}long.", f"Two {'very ' * 60}long."
    text = f"{first} {second}"
    sources = Places([Source("a", text, 0)], [(0, len(first)), (len(first), len(text))])
    (found,) = find_evidence([0.5, 0.5], [1.0, 1.0], sources)
    assert (found.where, found.text) == ("a:1", text)
