"""What stays: exact numbers, protected tokens, whole words."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from uncomp_cli.cache.coherence import share_by_word
from uncomp_cli.cache.eviction import REACH_TOKENS, select


@dataclass(frozen=True)
class Case:
    """One head: scores shared by word, which tokens are protected, how many stay."""

    scores: Tensor
    words: Tensor
    protected: Tensor
    kept: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    lengths = draw(st.lists(st.integers(1, 5), min_size=1, max_size=15))
    words = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    ranks = draw(st.lists(st.integers(0, 6), min_size=len(words), max_size=len(words)))  # few values: many ties
    protected = torch.zeros(len(words), dtype=torch.bool)
    protected[: draw(st.integers(0, len(words)))] = True
    protected |= torch.tensor(draw(st.lists(st.sampled_from([False] * 9 + [True]), min_size=len(words),
                                            max_size=len(words))))  # fmt: skip
    kept = draw(st.integers(int(protected.sum()), len(words)))
    return Case(share_by_word(torch.tensor([ranks]).float(), words), words, protected, kept)


def tokens_by_word(case: Case) -> list[list[int]]:
    """Unprotected positions of every word."""
    found: list[list[int]] = [[] for _ in range(int(case.words[-1]) + 1)]
    for at, (word, fixed) in enumerate(zip(case.words.tolist(), case.protected.tolist(), strict=True)):
        if not fixed:
            found[word].append(at)
    return found


@given(cases())
def test_counts_order_and_protection(case: Case) -> None:
    for words in (case.words, None):
        (positions,) = select(case.scores, [case.kept], protected=case.protected, words=words)
        assert len(positions) == case.kept
        assert positions.tolist() == sorted(set(positions.tolist()))
        assert set(case.protected.nonzero()[:, 0].tolist()) <= set(positions.tolist())


def expected(case: Case) -> set[int]:
    """Words in order of score, each when it still fits; the first that did not fills what is left."""
    words = [word for word in tokens_by_word(case) if word]
    words.sort(key=lambda word: (-float(case.scores[0, word[0]]), word[0]))
    kept = set(case.protected.nonzero()[:, 0].tolist())
    refused: list[int] = []
    for word in words:
        if len(kept) + len(word) <= case.kept:
            kept |= set(word)
        else:
            refused = refused or word
    return kept | set(refused[: case.kept - len(kept)])


@given(cases())
def test_better_words_stay_when_they_fit(case: Case) -> None:
    (positions,) = select(case.scores, [case.kept], protected=case.protected, words=case.words)
    assert set(positions.tolist()) == expected(case)


@given(cases())
def test_a_word_is_taken_or_left(case: Case) -> None:
    """One word at most is torn, and only when every word that is left, within reach, is longer than the gap."""
    assume(len(case.words) <= case.kept + REACH_TOKENS)
    (positions,) = select(case.scores, [case.kept], protected=case.protected, words=case.words)
    kept = set(positions.tolist())
    words = [word for word in tokens_by_word(case) if word]
    torn = [word for word in words if 0 < len(kept & set(word)) < len(word)]
    assert len(torn) <= 1
    for word in torn:
        gap = len(kept & set(word))
        assert all(len(left) > gap for left in words if not kept & set(left))


@given(st.data())
def test_without_words_it_is_the_top_scores(data: st.DataObject) -> None:
    scores = torch.tensor([data.draw(st.permutations(range(20))) for _ in range(2)]).float()
    protected = torch.arange(20) < data.draw(st.integers(0, 5))
    kept = [data.draw(st.integers(5, 20)) for _ in range(2)]
    for row, positions, count in zip(scores, select(scores, kept, protected=protected, words=None), kept, strict=True):
        ranked = row.masked_fill(protected, 99).argsort(descending=True)[:count]
        assert positions.tolist() == sorted(ranked.tolist())


def test_recent_scores_are_streaming_llm() -> None:
    scores = torch.arange(30.0).expand(2, -1)
    first, second = select(scores, [10, 6], protected=torch.arange(30) < 4, words=None)
    assert first.tolist() == [0, 1, 2, 3, 24, 25, 26, 27, 28, 29]
    assert second.tolist() == [0, 1, 2, 3, 28, 29]


def test_a_number_gives_way_to_the_next_words_that_fit() -> None:
    """The cut falls inside a number of four tokens: it goes whole, the next words come."""
    words = torch.tensor([0, 1, 2, 2, 2, 2, 3, 4, 4, 5])
    scores = torch.tensor([[9.0, 8, 7, 7, 7, 7, 1, 6, 6, 2]])
    nothing = torch.zeros(10, dtype=torch.bool)
    assert select(scores, [3], protected=nothing, words=words)[0].tolist() == [0, 1, 9]
    assert select(scores, [4], protected=nothing, words=words)[0].tolist() == [0, 1, 7, 8]
    assert select(scores, [5], protected=nothing, words=words)[0].tolist() == [0, 1, 7, 8, 9]
    assert select(scores, [6], protected=nothing, words=words)[0].tolist() == [0, 1, 2, 3, 4, 5]


def test_no_number_is_torn_where_there_are_no_single_tokens() -> None:
    words = torch.tensor([0, 0, 0, 0, 1, 1, 1, 2, 2])
    scores = torch.tensor([[9.0, 9, 9, 9, 8, 8, 8, 1, 1]])
    nothing = torch.zeros(9, dtype=torch.bool)
    assert select(scores, [6], protected=nothing, words=words)[0].tolist() == [0, 1, 2, 3, 7, 8]
    assert select(scores, [5], protected=nothing, words=words)[0].tolist() == [0, 1, 2, 3, 4]
    assert select(scores, [3], protected=nothing, words=words)[0].tolist() == [4, 5, 6]


def test_protected_single_tokens_do_not_count_twice() -> None:
    """A template's tokens are words of one token: they must not fill a gap that a split word leaves."""
    words = torch.tensor([0, 1, 2, 2, 2, 3, 3, 3])
    protected = words < 2
    scores = torch.tensor([[0.0, 0, 5, 5, 5, 4, 4, 4]])
    (positions,) = select(scores, [4], protected=protected, words=words)
    assert positions.tolist() == [0, 1, 2, 3]


def test_fewer_than_are_protected() -> None:
    with pytest.raises(ValueError, match="keeps 2 tokens, but 3 are protected"):
        select(torch.rand(2, 8), [5, 2], protected=torch.arange(8) < 3, words=None)
