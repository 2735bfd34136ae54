"""What stays of what heads hold: counts, protected tokens, whole words, and shares between heads."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from uncomp_cli.cache.eviction import choose_held

LENGTH = 40


@given(st.integers(0, 2**31), st.lists(st.integers(0, 50), min_size=2, max_size=3))
def test_counts_protected_and_order(seed: int, counts: list[int]) -> None:
    chance = torch.Generator().manual_seed(seed)
    scores = torch.rand(len(counts), LENGTH, generator=chance)
    held = [torch.rand(LENGTH, generator=chance).lt(0.6).nonzero().flatten() for _ in counts]
    protected = torch.rand(LENGTH, generator=chance) < 0.1
    chosen = choose_held(scores, held, counts, protected=protected, words=None)
    for at, stay, count, row in zip(held, chosen, counts, scores, strict=True):
        must = int(protected[at].sum())
        kept = at[stay]
        assert len(stay) == min(len(at), max(count, must))
        assert stay.tolist() == sorted(set(stay.tolist()))
        assert protected[kept].sum() == must
        free = sorted(row[at[~protected[at]]].tolist(), reverse=True)[: len(stay) - must]
        assert sorted(row[kept[~protected[kept]]].tolist(), reverse=True) == free


def test_a_word_goes_by_its_best_token_and_is_not_torn() -> None:
    scores = torch.tensor([[0.1, 0.9, 0.2, 0.3, 0.4, 0.0]])
    words = torch.tensor([0, 0, 1, 1, 2, 3])
    none = torch.zeros(6, dtype=torch.bool)
    (stay,) = choose_held(scores, [torch.arange(6)], [3], protected=none, words=words)
    assert stay.tolist() == [0, 1, 4]
    (stay,) = choose_held(scores, [torch.tensor([0, 2, 3, 4, 5])], [3], protected=none, words=words)
    assert stay.tolist() == [2, 3, 4] or stay.tolist() == [1, 2, 3]


def test_heads_may_share_what_they_keep() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.6], [0.1, 0.1, 0.1, 0.1]])
    none = torch.zeros(4, dtype=torch.bool)
    held = [torch.arange(4)] * 2
    even = choose_held(scores, held, [2, 2], protected=none, words=None)
    shared = choose_held(scores, held, [2, 2], protected=none, words=None, floor=0.0)
    assert [len(stay) for stay in even] == [2, 2]
    assert [len(stay) for stay in shared] == [4, 0]
