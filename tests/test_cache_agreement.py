"""What heads agree on: closed forms, and the maximum where nobody is to be trusted."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from uncomp_cli.cache.scorers import make_scorer
from uncomp_cli.cache.window import agree, mix
from uncomp_cli.config import ScorerConfig
from uncomp_cli.errors import UsageError

SCORES = [torch.tensor([[1.0, 0.0, 4.0], [0.0, 8.0, 2.0]]), torch.tensor([[3.0, 2.0, 0.0], [5.0, 0.0, 6.0]])]


def test_trust_weighs_heads() -> None:
    """(1·[1,0,4] + 3·[3,2,0] + 4·[5,0,6]) / 8: the untrusted head's 8 does not count."""
    agreed = agree(SCORES, [[1.0, 0.0], [3.0, 4.0]])
    torch.testing.assert_close(agreed, torch.tensor([30 / 8, 6 / 8, 28 / 8]))


def test_only_the_ratio_of_trust_counts() -> None:
    one, other = (agree(SCORES, [[scale, 0.0], [3 * scale, 4 * scale]]) for scale in (1.0, 1e-9))
    torch.testing.assert_close(one, other)


def test_one_head_that_alone_is_trusted_is_followed() -> None:
    assert torch.equal(agree(SCORES, [[0.0, 0.0], [0.0, 0.25]]), SCORES[1][1])


def test_without_trust_the_largest_of_all_heads_of_all_layers_counts() -> None:
    assert agree(SCORES, None).tolist() == [5.0, 8.0, 6.0]
    assert agree(SCORES[:1], None).tolist() == [1.0, 8.0, 4.0]


def test_nobody_trusted_is_the_same() -> None:
    assert agree(SCORES, [[0.0, 0.0], [0.0, 0.0]]).tolist() == [5.0, 8.0, 6.0]


def test_equal_trust_is_the_mean() -> None:
    torch.testing.assert_close(agree(SCORES, [[2.0, 2.0]] * 2), torch.cat(SCORES).mean(dim=0))


def test_the_maximum_keeps_what_a_mean_washes_out() -> None:
    """One head of 64 finds the token 7, the others look at token 0 a little more."""
    found = torch.full((1, 64, 10), 0.05)
    found[:, :, 0] = 0.1
    found[0, 40] = 0.0
    found[0, 40, 7] = 1.0
    assert int(agree(list(found), None).argmax()) == 7
    assert int(agree(list(found), [[1.0] * 64]).argmax()) == 0


def test_a_mix_is_a_part_of_each() -> None:
    own, agreed = SCORES[0], torch.tensor([2.0, 4.0, 0.0])
    assert mix(own, agreed, shared=0.25).tolist() == [[1.25, 1.0, 3.0], [0.5, 7.0, 1.5]]
    assert torch.equal(mix(own, agreed, shared=0.0), own)
    assert mix(own, agreed, shared=1.0).tolist() == [agreed.tolist()] * 2


@st.composite
def heads(draw: st.DrawFn) -> tuple[list[Tensor], list[list[float]]]:
    layers, group, length = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 6))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    row = st.lists(st.floats(0, 10), min_size=group, max_size=group)
    trust = draw(st.lists(row, min_size=layers, max_size=layers))
    return [torch.rand(group, length, generator=generator) for _ in range(layers)], trust


@given(heads())
def test_no_token_is_agreed_to_be_worth_more_or_less_than_a_head_says(
    case: tuple[list[Tensor], list[list[float]]],
) -> None:
    scores, trust = case
    said = torch.cat(scores)
    agreed = agree(scores, trust)
    assert agreed.shape == said.shape[1:]
    assert agreed.dtype == torch.float32
    assert bool((agreed <= said.amax(dim=0) + 1e-5).all())
    assert bool((agreed >= said.amin(dim=0) - 1e-5).all())


@pytest.mark.parametrize("shared", [-0.1, 1.1])
def test_a_part_is_from_0_to_1(shared: float) -> None:
    with pytest.raises(UsageError, match="shared"):
        ScorerConfig("agreement", shared=shared)
    with pytest.raises(UsageError, match="held"):
        ScorerConfig("agreement", held=shared)


def test_the_scorer_says_how_much_is_shared_and_others_share_nothing() -> None:
    assert make_scorer(ScorerConfig("agreement", shared=0.3)).shared == 0.3
    for name in ("window", "tova", "reversed", "recent", "random", "keydiff", "distinct", "expected"):
        assert make_scorer(ScorerConfig(name, shared=0.3)).shared == 0
