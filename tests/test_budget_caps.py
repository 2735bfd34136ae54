"""Caps: what a layer cannot hold goes to the others, by every policy, to the last entry."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.budgets import A_POLICY, MEASURED, make_spec, measured, planned, requests
from uncomp_cli.budget.plan import Wanted, apportion
from uncomp_cli.budget.policies import POLICIES, make_policy
from uncomp_cli.budget.values import Uncertainty
from uncomp_cli.spec import ModelSpec


@given(
    cells=st.lists(st.tuples(st.integers(0, 12), st.integers(0, 30)), min_size=1, max_size=9),
    floor=st.integers(0, 8),
    spare=st.integers(0, 300),
    even_share=st.sampled_from([0.0, 0.2, 1.0]),
)
def test_cells_of_their_own_caps_sum_exactly(
    cells: list[tuple[int, int]], floor: int, spare: int, even_share: float
) -> None:
    weights, caps = [weight for weight, _ in cells], [floor + room for _, room in cells]
    total = floor * len(cells) + spare
    counts = apportion(total, weights, floor=floor, cap=caps, even_share=even_share)
    assert sum(counts) == min(total, sum(caps))
    assert all(floor <= count <= cap for count, cap in zip(counts, caps, strict=True))
    same = apportion(total, weights, floor=floor, cap=[max(caps)] * len(caps), even_share=even_share)
    assert same == apportion(total, weights, floor=floor, cap=max(caps), even_share=even_share)


@pytest.mark.parametrize(
    ("total", "weights", "caps", "counts"),
    [
        (12, [1, 1, 1], [2, 9, 9], [2, 5, 5]),
        (12, [1, 3, 1], [9, 3, 2], [7, 3, 2]),
        (12, [4, 1, 1], [2, 9, 9], [2, 5, 5]),
        (99, [1, 1, 1], [2, 3, 4], [2, 3, 4]),
    ],
)
def test_the_surplus_goes_to_the_others_by_weight(
    total: int, weights: list[float], caps: list[int], counts: list[int]
) -> None:
    assert apportion(total, weights, floor=0, cap=caps) == counts


def test_an_even_share_stops_at_a_cap() -> None:
    assert apportion(30, [1, 0, 1], floor=0, cap=[2, 30, 30], even_share=1.0) == [2, 10, 18]
    with pytest.raises(ValueError, match="cannot split"):
        apportion(30, [1, 1], floor=3, cap=[2, 30])


def capped(spec: ModelSpec, seq_len: int, protected: int, caps: list[int]) -> list[int]:
    """The most that a head of each layer can hold."""
    windows = (seq_len if window is None else min(seq_len, window) for window in spec.sliding_windows)
    return [min(window, max(cap, protected)) for window, cap in zip(windows, caps, strict=True)]


@pytest.mark.parametrize("text", sorted({*POLICIES, *MEASURED}))
@A_POLICY
@given(request=requests(), share=st.floats(0, 1), data=st.data())
def test_every_policy_spends_all_that_its_layers_can_hold(
    text: str, request: tuple[ModelSpec, int, int], share: float, data: st.DataObject
) -> None:
    spec, seq_len, protected = request
    caps = data.draw(st.lists(st.integers(1, 130), min_size=spec.num_layers, max_size=spec.num_layers))
    policy, entries = make_policy(text), round(spec.full_entries(seq_len) * share)
    values = data.draw(measured(spec, text)) if policy.measures else None
    plan = planned(
        policy.plan, Wanted(spec, seq_len, entries, protected, caps=caps, uncertainty=values), refuses=text != "full"
    )
    if plan is None:
        return
    most = capped(spec, seq_len, 0 if text == "full" else protected, caps)
    room = spec.num_kv_heads * sum(most)
    assert plan.entries == (room if text == "full" else min(entries, room))
    for layer, cap, window in zip(plan.kept, most, spec.sliding_windows, strict=True):
        assert all(count <= cap for count in layer)
        assert window is None or set(layer) == {cap}


@pytest.mark.parametrize("text", sorted({*POLICIES, *MEASURED}))
def test_caps_that_hold_everything_change_nothing(text: str) -> None:
    spec, policy = make_spec((None, 30, None), kv_heads=3), make_policy(text)
    for values in [None, *(Uncertainty(key, ((0.1,), (0.5,), (0.9,))) for key in policy.measures)]:
        wanted = {"seq_len": 200, "entries": 900, "protected": 20, "uncertainty": values}
        assert policy.plan(Wanted(spec, **wanted, caps=[200, 300, 200])) == policy.plan(Wanted(spec, **wanted))


def test_what_thinned_layers_cannot_hold_goes_to_those_that_see_all() -> None:
    spec = make_spec((None,) * 4)
    plan = make_policy("uniform").plan(Wanted(spec, seq_len=100, entries=8 * 50, protected=10, caps=[100, 100, 20, 5]))
    assert plan.kept == ((85, 85), (85, 85), (20, 20), (10, 10))  # a cap below what is protected is that
