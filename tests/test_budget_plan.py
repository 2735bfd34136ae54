"""Plans: exact sums, floors and caps, and a way out of every refusal."""

import math
from fractions import Fraction
from functools import partial

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from support.budgets import make_spec, planned, requests
from uncomp_cli.budget.amount import Budget, resolve_entries
from uncomp_cli.budget.baselines import UniformPolicy
from uncomp_cli.budget.plan import BudgetPlan, Wanted, apportion
from uncomp_cli.budget.policies import POLICIES, make_policy
from uncomp_cli.cache.scorers import SCORERS
from uncomp_cli.errors import DoesNotFitError, UsageError
from uncomp_cli.spec import ModelSpec


@st.composite
def splits(draw: st.DrawFn) -> tuple[int, list[int], int, int]:
    """(total, weights, floor, cap) that can be split."""
    weights = draw(st.lists(st.integers(0, 12), min_size=1, max_size=9))
    floor = draw(st.integers(0, 8))
    cap = floor + draw(st.integers(0, 40))
    total = floor * len(weights) + draw(st.integers(0, 400))
    return total, weights, floor, cap


def exact_shares(amount: int, weights: list[int], room: int) -> list[Fraction]:
    """Shares min(room, scale · weight) that sum to `amount`: every breakpoint of the scale is tried, in fractions."""
    amount = min(amount, room * len(weights))
    weighted = [w for w in weights if w]
    if amount >= room * len(weighted):  # all weighted cells are full: the rest is spread evenly
        rest = Fraction(amount - room * len(weighted), max(1, len(weights) - len(weighted)))
        return [Fraction(room) if w else rest for w in weights]
    for full in range(len(weighted)):
        heaviest_first = sorted(weighted, reverse=True)
        scale = Fraction(amount - room * full, sum(heaviest_first[full:]))
        if scale * heaviest_first[full] <= room:
            return [min(Fraction(room), scale * w) for w in weights]
    raise AssertionError("unreachable")


@given(splits())
def test_apportion_is_largest_remainder_over_exact_shares(split: tuple[int, list[int], int, int]) -> None:
    total, weights, floor, cap = split
    counts = apportion(total, weights, floor=floor, cap=cap)
    assert sum(counts) == min(total, cap * len(weights))
    assert all(floor <= count <= cap for count in counts)
    shares = exact_shares(total - floor * len(weights), weights, cap - floor)
    extra = [count - floor for count in counts]
    assert all(math.floor(share) <= count <= math.ceil(share) for count, share in zip(extra, shares, strict=True))
    up = [share % 1 for count, share in zip(extra, shares, strict=True) if count > share]
    down = [share % 1 for count, share in zip(extra, shares, strict=True) if count < share]
    assert min(up, default=1) >= max(down, default=0)


@given(splits())
def test_a_heavier_cell_never_gets_less(split: tuple[int, list[int], int, int]) -> None:
    total, weights, floor, cap = split
    counts = apportion(total, weights, floor=floor, cap=cap)
    by_weight = sorted(zip(weights, counts, strict=True))
    assert [count for _, count in by_weight] == sorted(counts)
    for weight in set(weights):
        same = [count for w, count in by_weight if w == weight]
        assert max(same) - min(same) <= 1


@pytest.mark.parametrize(
    ("total", "weights", "floor", "cap", "counts"),
    [
        (10, [1, 1, 1], 0, 10, [4, 3, 3]),
        (10, [100, 1, 1], 0, 4, [4, 3, 3]),  # what the first cannot use goes to the others
        (10, [1, 0, 0], 1, 100, [8, 1, 1]),
        (9, [0, 0, 0], 0, 5, [3, 3, 3]),
        (99, [1, 2], 0, 5, [5, 5]),
        (4, [1, 9], 2, 9, [2, 2]),
        (0, [], 0, 5, []),
    ],
)
def test_apportion_by_hand(total: int, weights: list[float], floor: int, cap: int, counts: list[int]) -> None:
    assert apportion(total, weights, floor=floor, cap=cap) == counts


@pytest.mark.parametrize("total", [10**9, 10**12])
def test_apportion_is_exact_for_large_totals(total: int) -> None:
    weights = [1 / (layer + 3) for layer in range(320)]
    assert sum(apportion(total, weights, floor=7, cap=total)) == total


@pytest.mark.parametrize(("total", "weights", "floor"), [(5, [1, 1], 3), (5, [1, -1], 0)])
def test_what_cannot_be_split(total: int, weights: list[float], floor: int) -> None:
    with pytest.raises(ValueError, match="cannot split"):
        apportion(total, weights, floor=floor, cap=9)


@given(requests(), st.integers(0, 1800), st.data())
def test_shares_are_spent_exactly(request: tuple[ModelSpec, int, int], entries: int, data: st.DataObject) -> None:
    spec, seq_len, protected = request
    row = st.lists(st.floats(0, 5), min_size=spec.num_kv_heads, max_size=spec.num_kv_heads)
    weights = data.draw(st.lists(row, min_size=spec.num_layers, max_size=spec.num_layers))
    wanted = Wanted(spec, seq_len=seq_len, entries=entries, protected=protected)
    plan = planned(partial(BudgetPlan.of_shares, weights=weights), wanted)
    if plan is None:
        return
    assert plan.entries == min(entries, spec.full_entries(seq_len))
    for layer, window in zip(plan.kept, spec.sliding_windows, strict=True):
        assert len(layer) == spec.num_kv_heads
        if window is None:
            assert all(protected <= count <= seq_len for count in layer)
        else:
            assert set(layer) == {min(window, seq_len)}


@given(requests())
def test_what_is_always_kept_is_the_smallest_budget_that_is_not_refused(request: tuple[ModelSpec, int, int]) -> None:
    spec, seq_len, protected = request
    assume(protected > 0 and spec.full_layers)

    def plan(budget: str) -> BudgetPlan:
        entries = resolve_entries(Budget.parse(budget), spec, seq_len=seq_len, free_bytes=0)
        return UniformPolicy().plan(Wanted(spec, seq_len=seq_len, entries=entries, protected=protected))

    with pytest.raises(DoesNotFitError):
        UniformPolicy().plan(Wanted(spec, seq_len=seq_len, entries=0, protected=protected))
    smallest = min(protected, seq_len)
    assert plan(str(smallest)).entries <= spec.full_entries(seq_len)
    if smallest > 1:
        with pytest.raises(DoesNotFitError):
            plan(str(smallest - 1))


def test_a_refusal_has_numbers() -> None:
    with pytest.raises(DoesNotFitError) as caught:
        UniformPolicy().plan(Wanted(make_spec((None, None)), seq_len=5000, entries=4 * 1500, protected=2000))
    assert "1,500 tokens per head" in caught.value.message
    assert "2,000 are always kept" in caught.value.message
    assert "(250KiB hold what is always kept)" in str(caught.value.hint)


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("windows", [(None, None), (8, None), (None, 200, None)], ids=str)
def test_every_policy_spends_what_it_is_given(name: str, windows: tuple[int | None, ...]) -> None:
    spec = make_spec(windows)
    entries = spec.full_entries(100) * 3 // 4
    plan = POLICIES[name]().plan(Wanted(spec, seq_len=100, entries=entries, protected=12))
    assert plan.entries == (spec.full_entries(100) if name == "full" else entries)
    assert plan.seq_len == 100
    assert all(12 <= count <= 100 for layer in spec.full_layers for count in plan.kept[layer])


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_names_a_scorer_that_exists(name: str) -> None:
    policy = make_policy(name)
    assert policy.name == name
    assert policy.fixed_scorer is None or policy.fixed_scorer in SCORERS


def test_only_full_keeps_everything() -> None:
    spec = make_spec((None, None))
    assert make_policy("full").plan(Wanted(spec, seq_len=50, entries=1, protected=4)).keeps_everything
    assert not make_policy("uniform").plan(Wanted(spec, seq_len=50, entries=199, protected=4)).keeps_everything


def test_a_misspelt_policy() -> None:
    with pytest.raises(UsageError, match="unknown policy 'unifrom'") as caught:
        make_policy("unifrom")
    assert caught.value.hint == "did you mean 'uniform'?"
    with pytest.raises(UsageError) as caught:
        make_policy("xyz")
    assert "full, uniform, sinks, random" in str(caught.value.hint)


def test_the_entries_of_a_plan() -> None:
    assert BudgetPlan(9, ((1, 2), (3, 4))).entries == 10
