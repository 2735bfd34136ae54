"""Measured policies: each one's formula by hand, its controls, and what over-keeping promises."""

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.budgets import A_POLICY, MEASURED, make_spec, measured, planned, requests
from uncomp_cli.budget.baselines import UniformPolicy, ZigzagPolicy
from uncomp_cli.budget.plan import BudgetPlan, Wanted
from uncomp_cli.budget.policies import make_policy
from uncomp_cli.budget.uncertain import UncertainPolicy
from uncomp_cli.budget.uncomp import UncompPolicy, group_ramp
from uncomp_cli.budget.values import Uncertainty
from uncomp_cli.errors import ModelError, UsageError
from uncomp_cli.spec import ModelSpec

LONG = 10_000
ENTROPY = "entropy/q/r1/4"
MODEL_SCOPE = [text for text in MEASURED if make_policy(text).scope == "model"]


def values_of(spec: ModelSpec, key: str, row: list[list[float]]) -> Uncertainty:
    assert len(row) == spec.num_layers
    return Uncertainty(key, tuple(map(tuple, row)))


@pytest.mark.parametrize("text", MEASURED)
@A_POLICY
@given(request=requests(), share=st.floats(0, 1), data=st.data())
def test_sums_are_exact_whatever_was_measured(
    text: str, request: tuple[ModelSpec, int, int], share: float, data: st.DataObject
) -> None:
    spec, seq_len, protected = request
    entries = round(spec.full_entries(seq_len) * share)
    values = data.draw(measured(spec, text))
    plan = planned(make_policy(text).plan, Wanted(spec, seq_len, entries, protected, uncertainty=values))
    if plan is None:
        return
    assert plan.entries == entries
    for layer, window in zip(plan.kept, spec.sliding_windows, strict=True):
        assert len(layer) == spec.num_kv_heads
        if window is None:
            assert all(protected <= count <= seq_len for count in layer)
        else:
            assert set(layer) == {min(window, seq_len)}


@pytest.mark.parametrize("text", MODEL_SCOPE)
@A_POLICY
@given(request=requests(), share=st.floats(0, 1), data=st.data())
def test_layers_only_shrink_as_others_report(
    text: str, request: tuple[ModelSpec, int, int], share: float, data: st.DataObject
) -> None:
    """A cell of k layers' plan is at least that of k + 1 layers', and so of the last; one token is rounding."""
    spec, seq_len, protected = request
    room = len(spec.full_layers) * spec.num_kv_heads * (seq_len - protected)
    entries = spec.full_entries(seq_len) - round(room * share)
    values = data.draw(measured(spec, text))
    request_ = {"seq_len": seq_len, "entries": entries, "protected": protected}
    plans = [
        make_policy(text).plan(Wanted(spec, **request_, uncertainty=Uncertainty(values.key, values.values[:layers])))
        for layers in range(1, spec.num_layers + 1)
    ]
    for layers, (earlier, later) in enumerate(pairwise(plans), start=1):
        for before, after in zip(earlier.kept[:layers], later.kept[:layers], strict=True):
            assert all(b >= a - 1 for b, a in zip(before, after, strict=True))


@pytest.mark.parametrize("text", [text for text in MEASURED if make_policy(text).scope == "layer"])
@A_POLICY
@given(request=requests(), data=st.data())
def test_a_layer_of_layer_scope_needs_its_own_values_alone(
    text: str, request: tuple[ModelSpec, int, int], data: st.DataObject
) -> None:
    spec, seq_len, _ = request
    values = data.draw(measured(spec, text))
    other = Uncertainty(values.key, data.draw(measured(spec, text)).values[:-1] + values.values[-1:])
    request_ = {"seq_len": seq_len, "entries": spec.full_entries(seq_len) - len(spec.full_layers), "protected": 0}
    plans = [make_policy(text).plan(Wanted(spec, **request_, uncertainty=given)) for given in (values, other)]
    assert plans[0].kept[-1] == plans[1].kept[-1]
    assert [sum(layer) for layer in plans[0].kept] == [sum(layer) for layer in plans[1].kept]


@pytest.mark.parametrize("text", MEASURED)
@pytest.mark.parametrize("value", [None, 0.0, 0.7])
def test_nothing_measured_or_nothing_to_tell_apart_is_even(text: str, value: float | None) -> None:
    spec = make_spec((None, 30, None), kv_heads=3)
    request = {"seq_len": 1000, "entries": 2500, "protected": 20}
    policy = make_policy(text)
    for key in policy.measures:
        uncertainty = None if value is None else values_of(spec, key, [[value] * 6] * 3)
        assert policy.plan(Wanted(spec, **request, uncertainty=uncertainty)) == UniformPolicy().plan(
            Wanted(spec, **request)
        )


def one_layer(text: str, values: list[float], *, mean: int, protected: int = 0) -> tuple[int, ...]:
    """Counts of one layer with as many KV heads as values, `mean` tokens each."""
    spec = make_spec((None,), kv_heads=len(values))
    uncertainty = Uncertainty(make_policy(text).measures[0], (tuple(values),))
    request = {"seq_len": LONG, "entries": mean * len(values), "protected": protected}
    return make_policy(text).plan(Wanted(spec, **request, uncertainty=uncertainty)).kept[0]


@pytest.mark.parametrize(
    ("text", "values", "counts"),
    [
        ("uncomp", [0.5, 0.1, 0.9], (384, 192, 576)),
        ("uncomp:groups=2", [0.9, 0.1], (576, 192)),
        ("uncomp:groups=2", [0.4, 0.3, 0.2, 0.1], (576, 576, 192, 192)),
        ("uncomp:groups=2,reverse=true", [0.4, 0.3, 0.2, 0.1], (192, 192, 576, 576)),
        ("uncomp:paper=true", [0.4, 0.3, 0.2, 0.1], (576, 576, 192, 192)),
        # The released averages at 384 tokens: the ends of each ramp, the steps between are its own.
        ("uncomp:low=32,high=736", [0.1, 0.2, 0.3], (32, 384, 736)),
        ("uncomp:groups=4,low=128,high=640", [0.1, 0.2, 0.3, 0.4], (128, 299, 469, 640)),
        ("uncomp:groups=5,low=256,high=512", [0.1, 0.2, 0.3, 0.4, 0.5], (256, 320, 384, 448, 512)),
        ("uncomp:groups=8,low=20,high=748", [i / 9 for i in range(8)], (20, 124, 228, 332, 436, 540, 644, 748)),
        # Ties share their places; groups that do not divide the heads still have mean 1; too many groups are one each.
        ("uncomp", [0.5, 0.5, 0.9], (288, 288, 576)),
        ("uncomp:groups=2", [0.1, 0.2, 0.3], (231, 230, 691)),
        ("uncomp:groups=8", [0.3, 0.1], (576, 192)),
        ("uncomp:groups=2", [0.3], (384,)),
    ],
)
def test_head_groups_by_hand(text: str, values: list[float], counts: tuple[int, ...]) -> None:
    assert one_layer(text, values, mean=384) == counts


@given(st.integers(2, 12), st.integers(1, 40), st.floats(0, 1), st.floats(1, 3))
def test_a_ramp_rises_with_mean_1(groups: int, heads: int, low: float, high: float) -> None:
    ramp = group_ramp(groups, heads, low=low, high=high)
    assert len(ramp) == heads
    assert sum(ramp) == pytest.approx(heads)
    assert ramp == sorted(ramp)
    assert len(set(ramp)) <= groups


def test_protected_tokens_lie_under_the_groups() -> None:
    assert one_layer("uncomp", [0.1, 0.2, 0.3], mean=400, protected=100) == (250, 400, 550)


def test_what_the_high_group_cannot_use_stays_in_its_layer() -> None:
    spec = make_spec((None, None), kv_heads=2)
    values = values_of(spec, ENTROPY, [[0.1, 0.2], [0.9, 0.8]])
    plan = UncompPolicy().plan(Wanted(spec, seq_len=100, entries=4 * 80, protected=0, uncertainty=values))
    assert plan.kept == ((60, 100), (100, 60))


def test_query_heads_count_by_their_mean() -> None:
    """The highest query head is in the first group, the higher mean in the second."""
    values = Uncertainty(ENTROPY, ((0.9, 0.0, 0.5, 0.6),))
    assert values.per_kv_head(2) == ((0.45, 0.55),)
    assert Uncertainty(ENTROPY, ((0.4,),)).per_kv_head(3) == ((0.4,) * 3,)
    plan = UncompPolicy().plan(Wanted(make_spec((None,)), seq_len=LONG, entries=400, protected=0, uncertainty=values))
    assert plan.kept == ((100, 300),)


STAGED = [[0.5, 0.5, 0.5, 0.5], [0.6, 0.6, 0.6, 0.6], [0.3, 0.3, 0.3, 0.3], [0.1, 0.1, 0.1, 0.1]]


def test_stages_by_hand() -> None:
    """Stages {0, 1} {2} {3}: 1.5, 1.5, 1, 0.5 of the mean, scaled to mean 1, times the head groups' 0.5 and 1.5."""
    spec = make_spec((None, None, 30, None, None), kv_heads=2)
    rows = [row if layer else [0.4, 0.4, 0.6, 0.6] for layer, row in enumerate(STAGED)]
    values = values_of(spec, ENTROPY, [*rows[:2], [9.0], *rows[2:]])
    entries = 2 * 30 + 8 * 900
    plan = make_policy("uncomp:stages=true").plan(
        Wanted(spec, seq_len=LONG, entries=entries, protected=0, uncertainty=values)
    )
    assert plan.kept == ((600, 1800), (1200, 1200), (30, 30), (800, 800), (400, 400))


def test_paper_stages_go_by_an_absolute_threshold() -> None:
    """exp(0.6) - exp(0.3) is 0.47 a head: a stage from three heads on, not with two."""
    policy = make_policy("uncomp:paper=true,stages=true")
    for heads, sums in ((2, [400, 400]), (3, [900, 300])):
        spec = make_spec((None, None), kv_heads=heads)
        values = values_of(spec, "entropy/q/r32", [[0.6] * heads, [0.3] * heads])
        plan = policy.plan(Wanted(spec, seq_len=LONG, entries=sum(sums), protected=0, uncertainty=values))
        assert [sum(layer) for layer in plan.kept] == sums


def zigzag(text: str, lmba: list[float], *, entries: int, seq_len: int, protected: int = 0) -> list[int]:
    spec = make_spec((None,) * len(lmba), kv_heads=1)
    policy = make_policy(text)
    values = values_of(spec, policy.measures[0], [[value] for value in lmba])
    plan = policy.plan(Wanted(spec, seq_len=seq_len, entries=entries, protected=protected, uncertainty=values))
    return [sum(layer) for layer in plan.kept]


def test_zigzag_by_hand() -> None:
    """b_min 0.2 * 100 = 20, u = 1/2, 1/3, 1/6: b = 20 + 80 * 3 * u."""
    assert zigzag("zigzag", [30, 20, 10], entries=300, seq_len=LONG) == [140, 100, 60]
    assert zigzag("zigzag:floor=0", [30, 20, 10], entries=300, seq_len=LONG) == [150, 100, 50]
    assert zigzag("zigzag:floor=1", [30, 20, 10], entries=300, seq_len=LONG) == [100, 100, 100]
    assert zigzag("zigzag", [30, 20, 10], entries=330, seq_len=LONG, protected=10) == [150, 110, 70]
    assert zigzag("zigzag:by=lmba-free,reverse=true,floor=0", [6, 3, 2], entries=600, seq_len=LONG) == [100, 200, 300]


def test_zigzag_hands_back_what_a_layer_cannot_use() -> None:
    """240 tokens in 3 layers of at most 120: 16 + 192 * 0.8 is above it, the others share what is left as 12 to 8."""
    assert zigzag("zigzag", [80, 12, 8], entries=240, seq_len=120) == [120, 69, 51]
    assert zigzag("zigzag", [80, 15, 5], entries=300, seq_len=120) == [120, 120, 60]


def test_layers_that_did_not_report_have_the_least() -> None:
    spec = make_spec((None,) * 4, kv_heads=1)
    values = Uncertainty("lmba/raw", ((30.0,), (10.0,)))
    plan = ZigzagPolicy().plan(Wanted(spec, seq_len=LONG, entries=400, protected=0, uncertainty=values))
    assert plan.kept == ((260,), (100,), (20,), (20,))


def test_heads_of_a_zigzag_layer_are_equal() -> None:
    spec = make_spec((None, None), kv_heads=2)
    values = values_of(spec, "lmba/raw", [[10, 20, 30, 40], [100, 100, 50, 50]])
    plan = ZigzagPolicy(floor=0).plan(Wanted(spec, seq_len=LONG, entries=400, protected=0, uncertainty=values))
    assert plan.kept == ((50, 50), (150, 150))


def uncertain(text: str, rows: list[list[float]], *, entries: int, key: str | None = None) -> list[int]:
    """Counts of all heads, layer by layer; protected tokens none."""
    spec = make_spec((None,) * len(rows), kv_heads=len(rows[0]))
    policy = make_policy(text)
    values = values_of(spec, key or policy.measures[0], rows)
    plan = policy.plan(Wanted(spec, seq_len=LONG, entries=entries, protected=0, uncertainty=values))
    return [count for layer in plan.kept for count in layer]


def test_loss_by_hand() -> None:
    """Weights v/max + 0.02: 0.52, 0.02, 1.02, 0.27, in units of 0.01; without a power it is 0.7."""
    rows = [[2.0, 0.0], [4.0, 1.0]]
    for text in ("uncertain:power=1", "uncertain:by=loss,power=1"):
        assert uncertain(text, rows, entries=1830, key="loss") == [520, 20, 1020, 270]
    assert uncertain("uncertain:floor=0.25,power=1", rows, entries=2750) == [750, 250, 1250, 500]
    assert uncertain("uncertain:by=loss,power=0.5,floor=0.5", rows[1:], entries=2500) == [1500, 1000]
    assert uncertain("uncertain:by=loss,floor=0", [[128.0, 1.0]], entries=1000) == [round(1000 / (1 + 2**-4.9)), 32]
    assert uncertain("uncertain:by=loss,floor=1,reverse=true", [[0.0, 1.0]], entries=300) == [200, 100]
    assert uncertain("uncertain:by=loss,floor=0,reverse=true", [[0.0, 1.0]], entries=300) == [300, 0]


def test_powers_by_hand() -> None:
    assert uncertain("uncertain:by=entropy", [[0.25], [0.5]], entries=1025) == [1, 1024]
    assert uncertain("uncertain:by=entropy,power=2", [[0.3], [0.1]], entries=100) == [90, 10]
    assert uncertain("uncertain:by=entropy,power=2,reverse=true", [[0.3], [0.1]], entries=100) == [10, 90]
    assert uncertain("uncertain", [[0.25], [0.5]], entries=1025, key=ENTROPY) == [1, 1024]
    assert uncertain("uncertain:by=lmba-free", [[40.0, 10.0]], entries=100) == [20, 80]
    assert uncertain("uncertain:by=lmba-free,reverse=true", [[40.0, 10.0]], entries=100) == [80, 20]
    assert uncertain("uncertain:by=lmbo,power=2", [[20.0, 10.0]], entries=100) == [80, 20]
    assert uncertain("uncertain:by=lmbo,reverse=true", [[40.0, 10.0]], entries=100) == [20, 80]


def test_a_least_budget_of_nothing_counts_as_one_token() -> None:
    """A head whose attention is all in the sinks must not take everything."""
    assert uncertain("uncertain:by=lmba-free", [[0.0, 4.0]], entries=100) == [80, 20]


@pytest.mark.parametrize(
    "text",
    ["uncomp", "zigzag", "uncertain:by=loss", "uncertain:by=entropy", "uncertain:by=lmba-free", "uncertain:by=lmbo"],
)
def test_reverse_turns_the_order_round(text: str) -> None:
    rows = [[0.1 + head / 10 + layer / 3 for head in range(3)] for layer in range(3)]
    if "lm" in text or text == "zigzag":
        rows = [[100 * value for value in row] for row in rows]
    setting = ",reverse=true" if ":" in text else ":reverse=true"
    forth, back = (uncertain(given, rows, entries=9000) for given in (text, text + setting))
    assert len(set(forth)) > 1
    assert sorted(range(9), key=forth.__getitem__) != sorted(range(9), key=back.__getitem__)
    for i in range(9):
        assert all((forth[i] - forth[j]) * (back[i] - back[j]) <= 0 for j in range(i))


def test_random_weights_follow_the_seed_alone() -> None:
    spec = make_spec((None,) * 3, kv_heads=3)
    policy, other = UncertainPolicy(by="random"), UncertainPolicy(by="random", seed=1)
    request = {"seq_len": LONG, "entries": 9000, "protected": 0}
    assert policy.measures == ()
    assert policy.scope == "none"
    plan = policy.plan(Wanted(spec, **request))
    assert plan.entries == 9000
    assert len({count for layer in plan.kept for count in layer}) > 5
    assert plan == policy.plan(Wanted(spec, **request, uncertainty=Uncertainty("loss", ((1.0,),))))
    assert plan != other.plan(Wanted(spec, **request))


def test_what_each_measures() -> None:
    measures = {
        "uncomp": (ENTROPY,), "uncomp:paper=true": ("entropy/q/r32",),
        "uncomp:rank=2/8,state=k,renormalise=true,rope=pre": ("entropy/k/r1/4/renormalised/prerope",),
        "zigzag": ("lmba/raw",), "zigzag:by=lmba-free": ("lmba/sinkfree",), "zigzag:by=lmbo": ("lmbo",),
        "uncertain": ("loss", ENTROPY), "uncertain:rank=0.125": ("loss", "entropy/q/r1/8"),
        "uncertain:by=loss": ("loss",), "uncertain:by=entropy,rank=knee": ("entropy/q/rknee",),
        "uncertain:by=lmba-free": ("lmba/sinkfree",), "uncertain:by=lmbo": ("lmbo",), "uncertain:by=random": (),
    }  # fmt: skip
    assert {text: make_policy(text).measures for text in measures} == measures
    scopes = {"uncomp": "layer", "uncomp:stages=true": "model", "zigzag": "model", "uncertain": "model"}
    assert {text: make_policy(text).scope for text in scopes} == scopes


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -0.5])
def test_no_values(value: float) -> None:
    with pytest.raises(ModelError, match=rf"entropy/q/r1/4 of layer 1, head 2 is {value}") as caught:
        Uncertainty(ENTROPY, ((0.5, 0.5, 0.5), (0.5, 0.5, value)))
    assert "uncomp calibrate" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("key", "widths", "says"),
    [
        (ENTROPY, (4, 3), "entropy/q/r1/4 of layer 1 has 3 values, the model has 4 query and 2 KV heads"),
        (ENTROPY, (0, 4), "of layer 0 has 0 values"),
        (ENTROPY, (4, 4, 4), "has values of 3 layers, the model has 2"),
        ("lmbo", (2, 2), "the policy needs entropy/q/r1/4, the values are lmbo"),
    ],
)
@pytest.mark.parametrize("text", ["uncomp", "uncomp:stages=true", "uncertain:by=entropy"])
def test_values_of_another_model(text: str, key: str, widths: tuple[int, ...], says: str) -> None:
    values = Uncertainty(key, tuple((0.5,) * width for width in widths))
    request = {"seq_len": 100, "entries": 200, "protected": 0}
    with pytest.raises(ModelError) as caught:
        make_policy(text).plan(Wanted(make_spec((None, None)), **request, uncertainty=values))
    assert says in caught.value.message
    assert caught.value.hint


def test_sliding_layers_need_no_values() -> None:
    spec = make_spec((None, 30, None))
    values = Uncertainty(ENTROPY, ((0.1, 0.3), (), (0.3, 0.1)))
    for text in ("uncomp", "uncomp:stages=true", "uncertain:by=entropy"):
        plan = make_policy(text).plan(Wanted(spec, seq_len=500, entries=460, protected=0, uncertainty=values))
        assert plan.kept[1] == (30, 30)
        assert plan.entries == 460


@pytest.mark.parametrize("width", [0, 3])
def test_values_that_no_kv_heads_share(width: int) -> None:
    with pytest.raises(ModelError, match=f"of layer 0 has {width} values for 2 KV heads"):
        Uncertainty("lmbo", ((1.0,) * width,)).per_kv_head(2)


def test_relative_rules_wait_for_all_layers() -> None:
    spec = make_spec((None, 30, None))
    for text, key in (("uncertain", "loss"), ("uncomp:stages=true", ENTROPY)):
        values = Uncertainty(key, ((0.5, 0.1), (0.2, 0.2)))
        plan = make_policy(text).plan(Wanted(spec, seq_len=100, entries=200, protected=0, uncertainty=values))
        assert plan == BudgetPlan.everything(Wanted(spec, seq_len=100, entries=0, protected=0))
        assert plan.kept == ((100, 100), (30, 30), (100, 100))


@pytest.mark.parametrize(
    ("settings_", "says"),
    [
        ("uncomp:groups=1", "groups is 1"), ("uncomp:low=2", "low is 2.0, high is 1.5"), ("uncomp:low=-1", "low is -1"),
        ("uncomp:low=0,high=0", "high is 0.0"), ("uncomp:rank=0", "rank is '0'"), ("uncomp:rank=1.5", "rank is '1.5'"),
        ("uncomp:rank=1.0e999999999", "rank is '1.0e999999999'"),
        ("uncomp:rank=1/0", "rank is '1/0'"), ("uncomp:rank=much", "rank is 'much'"),
        ("uncomp:rank=a.b", "rank is 'a.b'"), ("uncomp:rank=16/prerope", "rank is '16/prerope'"),
        ("uncomp:state=v,rope=pre", "only queries and keys are rotated"),
        ("uncomp:paper=true,groups=4", "paper=true sets groups itself"),
        ("zigzag:floor=1.5", "floor is 1.5"), ("zigzag:floor=-0.1", "floor is -0.1"),
        ("uncertain:floor=2", "floor is 2.0"), ("uncertain:power=0", "power is 0.0"), ("uncertain:power=33", "33.0"),
        ("uncertain:by=loss,rank=16", "by=loss has no use for rank"), ("uncertain:seed=3", "no use for seed"),
        ("uncertain:by=random,reverse=true", "no use for reverse"),
        ("uncertain:by=entropy,floor=0.1", "no use for floor"),
    ],
)  # fmt: skip
def test_settings_out_of_range(settings_: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_policy(settings_)
    assert says in caught.value.message
    assert caught.value.hint


@pytest.mark.parametrize("fields", [{"low": math.nan}, {"high": math.inf}, {"high": math.nan}, {"rank": "١"}], ids=str)
def test_numbers_that_are_none(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        UncompPolicy(**fields)
