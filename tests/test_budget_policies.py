"""Policies: their texts, exact sums for every shape, and the field's own laws."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.budgets import A_POLICY, make_spec, planned, requests
from uncomp_cli.budget.baselines import AdaptivePolicy, PyramidPolicy, UniformPolicy, ZigzagPolicy
from uncomp_cli.budget.plan import BudgetPlan, Wanted
from uncomp_cli.budget.policies import POLICIES, make_policy
from uncomp_cli.budget.uncertain import UncertainPolicy
from uncomp_cli.budget.uncomp import UncompPolicy
from uncomp_cli.errors import UsageError
from uncomp_cli.spec import ModelSpec

SEQ_LEN = 4000


@pytest.mark.parametrize("name", POLICIES)
def test_a_bare_name_is_a_policy_by_its_defaults(name: str) -> None:
    policy = make_policy(name)
    assert policy.name == policy.text == str(policy) == name
    assert policy == make_policy(f" {name} ") == POLICIES[name]()
    assert (policy.scope == "none") == (policy.measures == ())


@pytest.mark.parametrize(
    ("text", "policy", "canonical"),
    [
        ("uncomp:groups=4,rank=16", UncompPolicy(groups=4, rank="16"), "uncomp:groups=4,rank=16"),
        ("uncomp: rank = 2/8 , low=.25", UncompPolicy(low=0.25), "uncomp:low=0.25"),
        ("uncomp:groups=3,low=0.50,rank=0.25", UncompPolicy(), "uncomp"),
        ("uncomp:rank=0.125,high=2.0", UncompPolicy(rank="1/8", high=2), "uncomp:high=2,rank=1/8"),
        ("uncomp:paper=TRUE,stages=true", UncompPolicy(paper=True, stages=True), "uncomp:stages=true,paper=true"),
        ("zigzag:by=lmba-free,floor=1e-1", ZigzagPolicy(floor=0.1, by="lmba-free"), "zigzag:floor=0.1,by=lmba-free"),
        ("uncertain:power=2,by=loss", UncertainPolicy(by="loss", power=2), "uncertain:by=loss,power=2"),
        ("uncertain:by=random,seed=-7", UncertainPolicy(by="random", seed=-7), "uncertain:by=random,seed=-7"),
        ("uncertain:by=auto,reverse=false", UncertainPolicy(), "uncertain"),
    ],
)
def test_a_text_is_a_policy(text: str, policy: object, canonical: str) -> None:
    made = make_policy(text)
    assert made == policy
    assert made.name == text.partition(":")[0]
    assert str(made) == canonical
    assert make_policy(canonical) == made


@pytest.mark.parametrize(
    ("text", "says", "hint"),
    [
        ("uncom", "unknown policy 'uncom'", "did you mean 'uncomp'?"),
        ("", "unknown policy ''", "choose one of: full, uniform"),
        ("uncomp:group=3", "unknown setting 'group'", "did you mean 'groups'?"),
        ("uncomp:xyz=3", "unknown setting 'xyz'", "choose one of: groups, low"),
        ("uniform:groups=3", "unknown setting 'groups'", "policy uniform takes no settings"),
        ("uncomp:name=x", "unknown setting 'name'", "choose one of"),
        ("uncomp:", "'' is not key=value", "NAME:key=value"),
        ("uncomp:groups", "'groups' is not key=value", "NAME:key=value"),
        ("uncomp:groups=", "'groups=' is not key=value", "NAME:key=value"),
        ("uncomp:groups=3,", "'' is not key=value", "NAME:key=value"),
        ("uncomp:groups=3,groups=4", "sets groups twice", "once"),
        ("uncomp:groups=three", "groups is 'three'", "whole number"),
        ("uncomp:groups=3.0", "groups is '3.0'", "whole number"),
        ("uncomp:groups=٣", "groups is '٣'", "whole number"),
        ("uncomp:low=half", "low is 'half'", "a number"),
        ("uncomp:low=nan", "low is 'nan'", "a number"),
        ("uncomp:high=inf", "high is 'inf'", "a number"),
        ("uncomp:high=1e999", "high is inf", "low <= high"),
        ("uncomp:paper=1", "paper is '1'", "true or false"),
        ("zigzag:by=lmba_free", "by is 'lmba_free'", "did you mean 'lmba-free'?"),
        ("uncertain:state=x", "state is 'x'", "choose one of: q, k, v, hidden"),
    ],
)
def test_a_text_that_is_no_policy(text: str, says: str, hint: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_policy(text)
    assert says in caught.value.message
    assert hint in str(caught.value.hint)


KEYS = ["groups", "low", "high", "rank", "state", "by", "floor", "power", "seed", "reverse", "paper"]
WORDS = [
    "3",
    "0",
    "-1",
    "0.5",
    "1/4",
    "1/0",
    "1.5",
    "true",
    "q",
    "hidden",
    "loss",
    "lmbo",
    "random",
    "nan",
    "",
    "=",
    "٣",
]


@given(st.sampled_from(list(POLICIES)), st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(WORDS)), max_size=3))
def test_any_text_makes_a_policy_or_is_refused(name: str, parts: list[tuple[str, str]]) -> None:
    text = ":".join([name, ",".join(f"{key}={value}" for key, value in parts)]) if parts else name
    try:
        policy = make_policy(text)
    except UsageError:
        return
    assert make_policy(policy.text) == policy


@pytest.mark.parametrize("name", POLICIES)
@A_POLICY
@given(request=requests(), share=st.floats(0, 1))
def test_sums_are_exact_for_every_shape(name: str, request: tuple[ModelSpec, int, int], share: float) -> None:
    spec, seq_len, protected = request
    full = spec.full_entries(seq_len)
    entries = round(full * share)
    plan = planned(make_policy(name).plan, Wanted(spec, seq_len, entries, protected), refuses=name != "full")
    if plan is None:
        return
    assert plan.entries == (full if name == "full" else entries)
    for layer, window in zip(plan.kept, spec.sliding_windows, strict=True):
        assert len(layer) == spec.num_kv_heads
        if window is None:
            assert all(protected <= count <= seq_len for count in layer)
        else:
            assert set(layer) == {min(window, seq_len)}


@pytest.mark.parametrize("name", POLICIES)
def test_everything_is_everything(name: str) -> None:
    spec = make_spec((None, 300, None, None))
    plan = make_policy(name).plan(Wanted(spec, seq_len=200, entries=spec.full_entries(200), protected=7))
    assert plan.keeps_everything


@pytest.mark.parametrize("name", POLICIES)
def test_only_adaptive_leaves_the_heads_open(name: str) -> None:
    plan = make_policy(name).plan(Wanted(make_spec((None, None)), seq_len=100, entries=200, protected=7))
    assert plan.head_floor == (0.2 if name == "adaptive" else 1.0)


def layer_sums(plan: BudgetPlan) -> list[int]:
    return [sum(layer) for layer in plan.kept]


def pyramid(spec: ModelSpec, *, entries: int, seq_len: int = SEQ_LEN, protected: int = 0) -> BudgetPlan:
    return PyramidPolicy().plan(Wanted(spec, seq_len=seq_len, entries=entries, protected=protected))


def test_a_pyramid_falls_on_a_line_from_39_to_1() -> None:
    """2 - 1/20 to 1/20 of the mean, 400 tokens a head in 9 layers of 2 heads."""
    sums = layer_sums(pyramid(make_spec((None,) * 9), entries=9 * 2 * 400))
    assert (sums[0], sums[-1]) == (2 * 780, 2 * 20)
    assert sums == [2 * (780 - 95 * layer) for layer in range(9)]


def test_heads_of_a_pyramids_layer_are_equal() -> None:
    plan = pyramid(make_spec((None,) * 6, kv_heads=3), entries=6 * 3 * 333)
    assert all(max(layer) - min(layer) <= 1 for layer in plan.kept)


def test_a_pyramid_counts_full_layers_alone() -> None:
    windows = (50, None, 50, None, None)
    plan = pyramid(make_spec(windows), entries=2 * (2 * 50 + 3 * 200))
    assert layer_sums(plan) == [100, 2 * 390, 100, 2 * 200, 2 * 10]


def test_protected_tokens_lie_under_the_pyramid() -> None:
    sums = layer_sums(pyramid(make_spec((None,) * 3), entries=3 * 2 * 230, protected=30))
    assert sums == [2 * (30 + 390), 2 * (30 + 200), 2 * (30 + 10)]


def test_what_the_foot_cannot_use_goes_up() -> None:
    """At 60 % of the cache the first layer would get more than the prompt has."""
    spec = make_spec((None,) * 4)
    sums = layer_sums(pyramid(spec, seq_len=100, entries=spec.full_entries(100) * 6 // 10))
    assert sum(sums) == 480
    assert sums[0] == 200
    assert sums == sorted(sums, reverse=True)


@pytest.mark.parametrize("windows", [(None,), (8, None), (8, 8)], ids=str)
def test_a_pyramid_of_one_layer_or_none_is_uniform(windows: tuple[int | None, ...]) -> None:
    spec = make_spec(windows)
    request = {"seq_len": 100, "entries": spec.full_entries(100) * 3 // 4, "protected": 5}
    if None not in windows:
        request["entries"] = spec.full_entries(100)
    assert PyramidPolicy().plan(Wanted(spec, **request)) == UniformPolicy().plan(Wanted(spec, **request))


def test_adaptive_plans_what_uniform_does() -> None:
    spec = make_spec((None, 8, None))
    request = {"seq_len": 100, "entries": 250, "protected": 5}
    assert AdaptivePolicy().plan(Wanted(spec, **request)).kept == UniformPolicy().plan(Wanted(spec, **request)).kept


def test_the_controls_fix_their_scorers() -> None:
    fixed = {name: make_policy(name).fixed_scorer for name in POLICIES}
    named = {name: scorer for name, scorer in fixed.items() if scorer is not None}
    assert named == {"sinks": "recent", "random": "random", "reversed": "reversed"}
