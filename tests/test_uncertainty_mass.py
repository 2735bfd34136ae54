"""Minimum budgets and attention entropy, against brute force and closed forms."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from uncomp_cli.errors import ModelError
from uncomp_cli.uncertainty import mass
from uncomp_cli.uncertainty.entropy import attention_entropy
from uncomp_cli.uncertainty.mass import minimum_budget, minimum_output_budget

# Whole numbers, so that a sum is exact in any order; many zeros and ties.
WEIGHTS = st.lists(st.sampled_from([0, 0, 1, 1, 2, 5, 40]), min_size=1, max_size=12)
# Shares of 16ths reach exact equality, and 1.
MASSES = st.integers(min_value=1, max_value=16).map(lambda n: n / 16)


def attention(*shape: int, sharpness: float = 2.0, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * sharpness).softmax(dim=-1).to(dtype)


def vectors(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def fewest(row: list[int], mass: float) -> int:
    """Takes the heaviest token until enough is held."""
    held, left = 0, sorted(row)
    while held < mass * sum(row):
        held += left.pop()
    return len(row) - len(left)


def output_errors(row: Tensor, values: Tensor) -> list[float]:
    """Error of the output kept by each count 1..S of the heaviest tokens, each from its own renormalised sum."""
    full = (row / row.sum()) @ values
    order = row.argsort(descending=True, stable=True)
    errors = []
    for count in range(1, len(row) + 1):
        kept = order[:count]
        output = (row[kept] / row[kept].sum()) @ values[kept]
        errors.append(float((output - full).norm() / full.norm()))
    return errors


def settled(errors: list[float], tolerance: float) -> int:
    """The first count from which on no error is above the tolerance."""
    return next(count for count in range(1, len(errors) + 1) if max(errors[count - 1 :]) <= tolerance + 1e-12)


@given(row=WEIGHTS, mass=MASSES)
def test_lmba_equals_brute_force(row: list[int], mass: float) -> None:
    assert int(minimum_budget(torch.tensor(row, dtype=torch.float32), mass=mass)) == fewest(row, mass)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("seq_len", [1, 10, 700, 5000])
def test_lmba_of_a_uniform_row_is_its_share_of_the_tokens(seq_len: int, dtype: torch.dtype) -> None:
    """Through every width of the search: nine tenths of the row, and not one more by rounding."""
    uniform = torch.ones(2, 3, seq_len, dtype=dtype)
    found = minimum_budget(uniform)
    assert found.dtype == torch.float32
    assert found.shape == (2, 3)
    assert found.unique().tolist() == [math.ceil(0.9 * seq_len)]
    assert minimum_budget(uniform, mass=1.0).unique().tolist() == [seq_len]


def test_lmba_of_rows_that_end_at_different_widths() -> None:
    flatness = torch.tensor([30.0, 3.0, 1.0, 0.0])
    rows = (vectors(4, 3000) * flatness[:, None]).softmax(dim=-1)
    expected = [
        int((row.sort(descending=True).values.double().cumsum(0) < 0.9 * row.double().sum()).sum()) + 1 for row in rows
    ]
    assert expected[0] < 20 < 600 < expected[2] < expected[3] == 2700
    assert minimum_budget(rows).tolist() == expected


def test_lmba_needs_no_normalised_rows() -> None:
    rows = attention(3, 200)
    assert torch.equal(minimum_budget(rows * 1000), minimum_budget(rows))


def test_a_row_without_weight_needs_no_tokens() -> None:
    rows = torch.tensor([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0]])
    assert minimum_budget(rows).tolist() == [0, 1]
    assert minimum_output_budget(rows, torch.ones(3, 4)).tolist() == [0, 1]
    assert attention_entropy(rows).tolist() == [0, 0]


def test_the_mean_budget_is_not_the_budget_of_the_mean_row() -> None:
    """Two rows that look at one token each: 1 token on average, but 2 for their mean."""
    rows = torch.eye(2)[None]
    assert minimum_budget(rows).tolist() == [[1.0, 1.0]]
    assert minimum_budget(rows.mean(dim=1)).tolist() == [2.0]


@given(
    seed=st.integers(min_value=0, max_value=10_000),
    seq_len=st.integers(min_value=1, max_value=40),
    sharpness=st.sampled_from([0.0, 1.0, 5.0]),
    tolerance=st.sampled_from([0.001, 0.05, 0.3, 0.9, 1.5]),
)
def test_lmbo_equals_brute_force(seed: int, seq_len: int, sharpness: float, tolerance: float) -> None:
    row = attention(seq_len, sharpness=sharpness, seed=seed, dtype=torch.float64)
    values = vectors(seq_len, 3, seed=seed, dtype=torch.float64)
    found = minimum_output_budget(row[None], values, tolerance=tolerance)
    assert int(found) == settled(output_errors(row, values), tolerance)


def test_lmbo_through_blocks_of_rows_and_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = attention(2, 5, 60, sharpness=1.0, dtype=torch.float64)
    values = vectors(2, 60, 4, dtype=torch.float64)
    expected = [[settled(output_errors(row, values[g]), 0.05) for row in rows[g]] for g in range(2)]
    for block_rows, block_tokens in ((8, 512), (2, 7), (1, 1)):
        monkeypatch.setattr(mass, "_BLOCK_ROWS", block_rows)
        monkeypatch.setattr(mass, "_BLOCK_TOKENS", block_tokens)
        assert minimum_output_budget(rows, values, tolerance=0.05).tolist() == expected


def test_lmbo_in_float32_and_float64_agree() -> None:
    rows, values = attention(3, 8, 2000, sharpness=3.0), vectors(3, 2000, 64)
    single = minimum_output_budget(rows, values)
    double = minimum_output_budget(rows.double(), values.double())
    assert (single - double).abs().max() <= 1
    assert double.min() > 10


def test_lmbo_waits_until_the_error_stays_small() -> None:
    """The heaviest token alone hits the output by accident; the second one spoils it, the third mends it."""
    row = torch.tensor([[0.4, 0.3, 0.3]])
    values = torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, -1.0]])
    errors = output_errors(row[0], values)
    assert errors[0] < 0.1 < errors[1]
    assert minimum_output_budget(row, values).tolist() == [3]


def test_lmbo_needs_one_token_where_all_values_agree() -> None:
    rows = attention(4, 100, sharpness=0.5)
    assert minimum_output_budget(rows, torch.ones(100, 8)).tolist() == [1] * 4
    assert minimum_output_budget(rows, torch.zeros(100, 8)).tolist() == [1] * 4
    assert minimum_budget(rows).min() > 50


def test_lmbo_without_tolerance_keeps_all_that_is_attended_to() -> None:
    rows = attention(2, 30)
    rows[0, 7:17] = 0
    assert minimum_output_budget(rows, vectors(30, 4), tolerance=0).tolist() == [20, 30]


def test_the_output_error_is_the_mass_lost_times_the_distance_of_the_evicted_output() -> None:
    """|o - o_S| = (1 - m_S) |o_E - o_S|, and both sides are what LMBO goes by."""
    row, values = attention(50, dtype=torch.float64), vectors(50, 6, dtype=torch.float64)
    order = row.argsort(descending=True)
    full = row @ values
    errors = output_errors(row, values)
    sizes = []
    for count in range(1, 50):
        kept, evicted = order[:count], order[count:]
        kept_output = (row[kept] @ values[kept]) / row[kept].sum()
        evicted_output = (row[evicted] @ values[evicted]) / row[evicted].sum()
        sizes.append(float((1 - row[kept].sum()) * (evicted_output - kept_output).norm() / full.norm()))
    assert sizes == pytest.approx(errors[:-1])
    tolerance = sizes[20] * (1 + 1e-9)
    assert int(minimum_output_budget(row[None], values, tolerance=tolerance)) == settled([*sizes, 0.0], tolerance)


@pytest.mark.parametrize("tokens", [2, 5, 1000])
def test_entropy_of_an_even_row_is_1(tokens: int) -> None:
    row = torch.full((tokens,), 3.0)
    assert float(attention_entropy(row)) == pytest.approx(1.0, rel=1e-5)


def test_entropy_closed_forms() -> None:
    rows = torch.tensor([[0.5, 0.25, 0.25, 0.0], [2.0, 0.0, 0.0, 0.0]])
    assert attention_entropy(rows).tolist() == pytest.approx([0.75, 0.0])
    assert attention_entropy(torch.ones(3, 1)).tolist() == [0.0] * 3


def test_entropy_in_float32_is_as_good_as_in_float64() -> None:
    rows = attention(4, 8000, sharpness=4.0)
    torch.testing.assert_close(attention_entropy(rows).double(), attention_entropy(rows.double()), atol=1e-5, rtol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_attention_that_is_not_finite_is_refused(bad: float) -> None:
    rows, values = attention(2, 9), vectors(9, 4)
    rows[1, 3] = bad
    for measure in (minimum_budget, attention_entropy, lambda spoilt: minimum_output_budget(spoilt, values)):
        with pytest.raises(ModelError, match="attention weights are not finite"):
            measure(rows)
    values[3, 0] = bad
    with pytest.raises(ModelError, match="values of a layer are not finite"):
        minimum_output_budget(attention(2, 9), values)


def test_logits_are_not_attention() -> None:
    with pytest.raises(ValueError, match="below 0"):
        minimum_budget(torch.tensor([0.5, -0.1]))


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    rows = attention(2, 3, 9)
    for shape in ((2, 8, 4), (3, 9, 4), (9, 4)):
        with pytest.raises(ValueError, match=r"do not belong to rows \(2, 3, 9\)"):
            minimum_output_budget(rows, torch.zeros(shape))
