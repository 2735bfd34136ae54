"""Truncated matrix entropy: closed forms, invariances, chunks, precision and refusals."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from uncomp_cli.errors import ModelError, UsageError
from uncomp_cli.uncertainty import entropy
from uncomp_cli.uncertainty.entropy import gram, gram_spectrum, knee_rank, spectrum, token_sum, truncated_entropy

HEADS, TOKENS, SIZE = 3, 2500, 16


def states(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal states whose channels differ in scale and offset, as those of a model do."""
    generator = torch.Generator().manual_seed(seed)
    channel = torch.arange(shape[-1], dtype=torch.float64)
    normal = torch.randn(*shape, generator=generator, dtype=torch.float64)
    return (normal * 0.8**channel + channel.sin()).to(dtype)


def cross(size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Isotropic states [2 * size, size]: every axis in both directions."""
    axes = torch.eye(size, dtype=dtype)
    return torch.cat([axes, -axes])


def by_definition(x: Tensor, *, rank: int) -> float:
    """H_R of one head [S, D], row by row, with the eigenvalues as squared singular values."""
    rows = [row / row.norm() if row.norm() > 0 else row for row in x - x.mean(dim=0)]
    eigenvalues = torch.linalg.svdvals(torch.stack(rows)) ** 2
    shares = (eigenvalues / eigenvalues.sum()).tolist()
    return -sum(share * math.log(share) for share in shares[:rank] if share > 0) / math.log(x.shape[1])


def test_states_on_one_line_have_no_entropy() -> None:
    line = torch.linspace(-3, 5, 50)[:, None] * torch.arange(1.0, SIZE + 1)
    found = spectrum(line)
    torch.testing.assert_close(found, torch.eye(SIZE, dtype=torch.float64)[0], atol=1e-6, rtol=0)
    assert abs(float(truncated_entropy(found, rank=SIZE))) < 1e-5
    assert abs(float(truncated_entropy(found, rank=4, renormalise=True))) < 1e-5


@pytest.mark.parametrize("renormalise", [False, True])
def test_isotropic_states_have_entropy_1_at_full_rank(renormalise: bool) -> None:
    found = truncated_entropy(spectrum(cross(SIZE)), rank=SIZE, renormalise=renormalise)
    torch.testing.assert_close(found, torch.tensor(1.0, dtype=torch.float64))


@pytest.mark.parametrize("rank", [1, 2, 5, SIZE])
def test_isotropic_states_truncated(rank: int) -> None:
    """R equal eigenvalues 1/D: the paper's form gives R/D, the renormalised one 1, but 0 for a single one."""
    found = spectrum(cross(SIZE))
    assert float(truncated_entropy(found, rank=rank)) == pytest.approx(rank / SIZE)
    assert float(truncated_entropy(found, rank=rank, renormalise=True)) == pytest.approx(float(rank > 1))


def test_known_spectrum() -> None:
    """1/2, 1/4, 1/8, 1/8 of D = 4: by hand 1.75 ln 2 at full rank, ln 2 at rank 2."""
    known = torch.tensor([0.5, 0.25, 0.125, 0.125], dtype=torch.float64)
    assert float(truncated_entropy(known, rank=4)) == pytest.approx(1.75 / 2)
    assert float(truncated_entropy(known, rank=2)) == pytest.approx(1 / 2)
    two_thirds = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert float(truncated_entropy(known, rank=2, renormalise=True)) == pytest.approx(two_thirds)


@pytest.mark.parametrize("rank", [1, 4, SIZE])
def test_equals_the_definition(rank: int) -> None:
    x = states(HEADS, 200, SIZE, dtype=torch.float64)
    expected = [by_definition(head, rank=rank) for head in x]
    assert truncated_entropy(spectrum(x), rank=rank).tolist() == pytest.approx(expected, abs=1e-12)


def test_a_spectrum_sums_to_1_and_falls() -> None:
    found = spectrum(states(HEADS, TOKENS, SIZE))
    assert found.dtype == torch.float64
    torch.testing.assert_close(found.sum(dim=-1), torch.ones(HEADS, dtype=torch.float64))
    assert (found.diff(dim=-1) <= 0).all()
    assert (found >= 0).all()


def test_rotation_scale_and_shift_change_nothing() -> None:
    x = states(HEADS, TOKENS, SIZE, dtype=torch.float64)
    rotation = torch.linalg.qr(states(SIZE, SIZE, seed=1, dtype=torch.float64)).Q
    expected = spectrum(x)
    for moved in (x @ rotation, x * 40, x + 7, x.flip(-2)):
        torch.testing.assert_close(spectrum(moved), expected, atol=1e-12, rtol=0)
    assert not torch.allclose(spectrum(x * torch.linspace(1, 9, SIZE)), expected, atol=1e-3)


@given(st.lists(st.integers(min_value=1, max_value=900), min_size=1, max_size=5))
def test_chunks_equal_one_shot(lengths: list[int]) -> None:
    x = states(HEADS, sum(lengths), SIZE)
    chunks = x.split(lengths, dim=-2)
    mean = torch.stack([token_sum(chunk) for chunk in chunks]).sum(dim=0) / sum(lengths)
    total = torch.stack([gram(chunk, mean) for chunk in chunks]).sum(dim=0)
    torch.testing.assert_close(gram_spectrum(total), spectrum(x), atol=1e-6, rtol=0)


def test_blocks_are_invisible(monkeypatch: pytest.MonkeyPatch) -> None:
    x = states(HEADS, 100, SIZE)
    expected = spectrum(x)
    monkeypatch.setattr(entropy, "_BLOCK_TOKENS", 7)
    torch.testing.assert_close(spectrum(x), expected, atol=1e-6, rtol=0)


def test_float32_is_as_good_as_float64() -> None:
    """With offsets a hundred times the spread, as keys have them."""
    x = states(HEADS, 8000, 64, dtype=torch.float64) + 100
    single, double = spectrum(x.float()), spectrum(x.float().double())
    torch.testing.assert_close(single, double, atol=2e-6, rtol=0)
    for rank in (16, 64):
        found, expected = (truncated_entropy(one, rank=rank) for one in (single, double))
        torch.testing.assert_close(found, expected, atol=5e-6, rtol=0)


def test_half_precision_states_are_worked_on_in_float32() -> None:
    x = states(HEADS, TOKENS, SIZE, dtype=torch.bfloat16)
    torch.testing.assert_close(spectrum(x), spectrum(x.float()), atol=1e-6, rtol=0)


@pytest.mark.parametrize("leading", [(), (1,), (2, 3), (2, 1, 3)])
def test_any_leading_dimensions(leading: tuple[int, ...]) -> None:
    x = states(*leading, 40, 8)
    found = spectrum(x)
    assert found.shape == (*leading, 8)
    each = torch.stack([spectrum(head) for head in x.reshape(-1, 40, 8)]).view(*leading, 8)
    torch.testing.assert_close(found, each, atol=1e-6, rtol=0)
    assert truncated_entropy(found, rank=3).shape == leading
    assert knee_rank(found).shape == leading


@pytest.mark.parametrize("value", [0.0, 0.1, 1234.567])
@pytest.mark.parametrize("tokens", [0, 1, 50])
def test_states_that_are_all_the_same_have_a_zero_spectrum(value: float, tokens: int) -> None:
    """Also where the mean of equal numbers is rounded: what is left of a row then is no direction."""
    same = value * torch.arange(1.0, SIZE + 1).expand(HEADS, tokens, SIZE)
    found = spectrum(same)
    assert (found == 0).all()
    for renormalise in (False, True):
        assert truncated_entropy(found, rank=4, renormalise=renormalise).tolist() == [0.0] * HEADS


def test_rows_that_equal_the_mean_are_left_out() -> None:
    x = cross(SIZE)
    padded = torch.cat([x, torch.zeros(9, SIZE)])
    torch.testing.assert_close(spectrum(padded), spectrum(x))
    mean = torch.zeros(SIZE, dtype=torch.float64)
    assert float(gram(padded, mean).trace()) == pytest.approx(2 * SIZE)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_states_that_are_not_finite_are_refused(bad: float) -> None:
    x = states(HEADS, TOKENS, SIZE)
    x[1, 2000, 3] = bad
    with pytest.raises(ModelError, match="layer states are not finite, or above 2e\\+19") as caught:
        spectrum(x)
    assert str(caught.value.hint).startswith("use --dtype float32;")


@pytest.mark.parametrize("strong", [1, 3, 7])
def test_the_knee_is_where_the_flat_tail_begins(strong: int) -> None:
    tail = torch.linspace(0.02, 0.01, SIZE - strong)
    assert int(knee_rank(torch.cat([torch.full((strong,), 0.2), tail]))) == strong


def test_the_knee_of_a_falling_curve() -> None:
    """l = 2^-i, i = 0..9: the chord falls by about 1/9 a step, so the last step that falls more is that to i = 3."""
    assert int(knee_rank(0.5 ** torch.arange(10.0))) == 3


@pytest.mark.parametrize("flat", [[0.25] * 4, [0.0] * 4, [0.4, 0.3, 0.2, 0.1], [0.3, 0.3, 0.3, 0.1], [1.0]], ids=str)
def test_a_spectrum_without_a_knee_counts_whole(flat: list[float]) -> None:
    assert int(knee_rank(torch.tensor(flat, dtype=torch.float64))) == len(flat)


@pytest.mark.parametrize("renormalise", [False, True])
def test_ranks_per_head(renormalise: bool) -> None:
    found = spectrum(states(HEADS, TOKENS, SIZE))
    ranks = torch.tensor([1, 5, SIZE])
    expected = [
        float(truncated_entropy(head, rank=rank, renormalise=renormalise))
        for head, rank in zip(found, ranks.tolist(), strict=True)
    ]
    assert truncated_entropy(found, rank=ranks, renormalise=renormalise).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(("rank", "named"), [(0, 0), (-3, -3), (SIZE + 1, SIZE + 1)])
def test_a_rank_outside_the_width_is_refused(rank: int, named: int) -> None:
    found = spectrum(states(2, 30, SIZE))
    for given_rank in (rank, torch.tensor([4, rank])):
        with pytest.raises(UsageError, match=f"rank {named} is outside 1 to {SIZE}"):
            truncated_entropy(found, rank=given_rank)
