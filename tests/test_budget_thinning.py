"""Thinning: each schedule by hand, what holds for all of them, and slips named."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.budgets import A_POLICY, SUMS_32, make_spec
from uncomp_cli.budget.thinning import THINNINGS, make_thinning
from uncomp_cli.budget.values import Uncertainty
from uncomp_cli.errors import ModelError, UsageError
from uncomp_cli.spec import ModelSpec

TEXTS = [
    "none", "gather", "gather:after=1,keep=0.05", "gather:keep=1", "stages", "stages:last=0.5,threshold=0",
    "uncertain", "uncertain:least=0.1,most=0.9,certain=0.2,unsure=0.6", "uncertain:share=1",
]  # fmt: skip
ENTROPIES = st.floats(0, 1)


@st.composite
def measured(draw: st.DrawFn, spec: ModelSpec, text: str) -> Uncertainty | None:
    """Values of the measure a thinning asks for; None where it can do without."""
    measures = make_thinning(text).measures
    if not measures or (text.startswith("uncertain") and draw(st.booleans())):
        return None
    row = st.lists(st.floats(0, 5), min_size=spec.num_kv_heads, max_size=spec.num_kv_heads).map(tuple)
    return Uncertainty(measures[0], tuple(draw(row) for _ in range(spec.num_layers)))


@pytest.mark.parametrize("text", TEXTS)
@A_POLICY
@given(windows=st.lists(st.one_of(st.none(), st.just(16)), min_size=1, max_size=12), data=st.data())
def test_a_schedule_falls_from_one_and_is_final_where_it_says_so(
    text: str, windows: list[int | None], data: st.DataObject
) -> None:
    """[L] shares in (0, 1], 1.0 first, never rising; read on, those of layers that were reached stay, others fall."""
    spec = make_spec(tuple(windows))
    values = data.draw(measured(spec, text))
    certainty = data.draw(st.lists(ENTROPIES, min_size=len(windows), max_size=len(windows)))
    thinning = make_thinning(text)
    before = thinning.schedule(spec, uncertainty=values)
    for read in range(len(windows) + 1):
        shares = thinning.schedule(spec, uncertainty=values, certainty=certainty[:read])
        assert len(shares) == spec.num_layers
        assert shares[0] == 1.0
        assert list(shares) == sorted(shares, reverse=True)
        assert all(0 < share <= 1 for share in shares)
        assert shares[:read] == before[:read]
        assert all(after <= early for after, early in zip(shares, before, strict=True))
        if not thinning.watches:
            assert shares == before
        before = shares


@pytest.mark.parametrize("text", TEXTS)
def test_the_text_makes_the_same_again(text: str) -> None:
    thinning = make_thinning(text)
    assert make_thinning(thinning.text) == thinning
    assert make_thinning(thinning.name).text == thinning.name
    assert type(thinning) is THINNINGS[thinning.name]


def test_gather_has_one_border() -> None:
    spec = make_spec((None,) * 6)
    assert make_thinning("gather:after=2,keep=0.3").schedule(spec, uncertainty=None) == (1, 1, 0.3, 0.3, 0.3, 0.3)
    assert make_thinning("gather:after=6").schedule(spec, uncertainty=None) == (1,) * 6
    assert make_thinning("gather:after=2,keep=1").schedule(spec, uncertainty=None) == (1,) * 6


def test_the_papers_schedule_by_its_own_stages() -> None:
    """Five stages of 32 layers: 0-1, 2-14, 15-25, 26-30, 31."""
    spec = make_spec((None,) * 32)
    values = Uncertainty("entropy/q/r1/4", tuple((value / 4,) * 4 for value in SUMS_32))
    shares = make_thinning("stages:last=0.2,threshold=1").schedule(spec, uncertainty=values)
    expected = [1.0] * 2 + [0.8] * 13 + [0.6] * 11 + [0.4] * 5 + [0.2]
    assert shares == pytest.approx(expected)
    assert make_thinning("stages").schedule(spec, uncertainty=values) == shares  # a tenth of the spread is 1 here


def test_stages_of_a_model_with_sliding_layers() -> None:
    """Sliding layers have no values of their own, and go with what is before them."""
    spec = make_spec((16, None, 16, None, 16))
    values = Uncertainty("entropy/q/r1/4", ((0.0,), (9.0,), (99.0,), (1.0,), (0.0,)))
    assert make_thinning("stages:last=0.5").schedule(spec, uncertainty=values) == (1, 1, 1, 0.5, 0.5)


def losses(*values: float) -> Uncertainty:
    return Uncertainty("loss", tuple((value, value) for value in values))


@pytest.mark.parametrize(
    ("certainty", "share"),
    [
        ([], 0.7),
        ([0.0], 0.7),  # the first layer does not say
        ([1, 0.2], 0.7),
        ([1, 0.1], 0.7),
        ([1, 0.2, 0.065], 0.6),
        ([1, 0.065, 0.2], 0.6),  # the lowest so far
        ([1, 0.2, 0.03], 0.5),
        ([1, 0.001, 0.2], 0.5),
        ([1, 0.2, 0.2, 0.0, 0.0], 0.7),  # behind the border it is too late
    ],
)
def test_the_share_follows_the_certainty_up_to_the_calibrated_border(certainty: list[float], share: float) -> None:
    spec = make_spec((None,) * 6)
    found = make_thinning("uncertain").schedule(
        spec, uncertainty=losses(0.2, 0.1, 0.25, 0.1, 1.0, 0.0), certainty=certainty
    )
    assert found == pytest.approx((1, 1, 1, share, share, share))


def test_the_border_needs_a_share_of_the_largest_loss_and_is_never_the_first_layer() -> None:
    spec, values = make_spec((None,) * 4), losses(0.5, 0.1, 0.6, 1.0)
    assert make_thinning("uncertain").schedule(spec, uncertainty=values) == (1, 1, 0.7, 0.7)
    assert make_thinning("uncertain:share=0.6").schedule(spec, uncertainty=values) == (1, 1, 1, 0.7)


@pytest.mark.parametrize(("earliest", "seen"), [("0", 2), ("0.4", 4), ("0.41", 5), ("0.9", 9)])
def test_no_border_is_before_a_share_of_the_layers(earliest: str, seen: int) -> None:
    spec, values = make_spec((None,) * 10), losses(0.1, 1.0, *[0.5] * 8)
    thinning = make_thinning(f"uncertain:earliest={earliest}")
    assert thinning.schedule(spec, uncertainty=values) == (1,) * seen + (0.7,) * (10 - seen)
    live = thinning.schedule(spec, uncertainty=None, certainty=[1, 1, 0.0])
    assert live == (1,) * max(3, seen) + (0.5,) * (10 - max(3, seen))


@pytest.mark.parametrize(
    ("certainty", "expected"),
    [
        ([], [1] * 6 + [0.7] * 4),  # L // 2 at the latest
        ([0.0, 0.0], [1] * 6 + [0.7] * 4),  # before L // 5 nobody is asked
        ([1, 1, 0.04, 0.2, 0.03], [1] * 5 + [0.5] * 5),
        ([1, 1, 0.04, 0.03], [1] * 4 + [0.5] * 6),
        ([1, 1, 0.065, 0.3, 0.3, 0.3, 0.0], [1] * 6 + [0.6] * 4),
    ],
)
def test_without_a_profile_the_border_is_found_live(certainty: list[float], expected: list[float]) -> None:
    spec = make_spec((None,) * 10)
    assert make_thinning("uncertain").schedule(spec, uncertainty=None, certainty=certainty) == pytest.approx(expected)


def test_a_prompt_has_to_be_watched_by_uncertain_alone() -> None:
    assert [name for name in THINNINGS if make_thinning(name).watches] == ["uncertain"]


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("gahter", "unknown thinning 'gahter'", "did you mean 'gather'"),
        ("", "unknown thinning ''", "none, gather, stages, uncertain"),
        ("gather:aftre=3", "thinning .* unknown setting 'aftre'", "did you mean 'after'"),
        ("gather:after=0", "gather after is 0", "1 or more"),
        ("gather:after=two", "after is 'two'", "whole number"),
        ("gather:keep=0", "gather keep is 0", "above 0 and up to 1"),
        ("gather:keep=1.2", "gather keep is 1.2", "above 0 and up to 1"),
        ("none:keep=1", "thinning .* unknown setting 'keep'", "thinning none takes no settings"),
        ("stages:last=0", "stages last is 0", "above 0 and up to 1"),
        ("stages:threshold=-1", "stages threshold is -1", "0 or more"),
        ("uncertain:least=0.8", "least is 0.8, most is 0.7", "least <= most"),
        ("uncertain:least=0", "least is 0", "0 < least"),
        ("uncertain:most=2", "most is 2", "<= 1"),
        ("uncertain:certain=0.1", "certain is 0.1, unsure is 0.1", "certain < unsure"),
        ("uncertain:share=0", "share is 0", "share of the largest"),
        ("uncertain:earliest=1", "earliest is 1", "share of the layers"),
    ],
)
def test_a_slip_is_named(text: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        make_thinning(text)
    assert hint in str(caught.value.hint)


def test_stages_need_a_profile() -> None:
    spec = make_spec((None,) * 3)
    for values in (None, Uncertainty("entropy/q/r1/4", ((1.0,),))):
        with pytest.raises(UsageError, match="thinning stages needs entropy/q/r1/4") as caught:
            make_thinning("stages").schedule(spec, uncertainty=values)
        assert "uncomp calibrate" in str(caught.value.hint)


@pytest.mark.parametrize("text", ["stages", "uncertain"])
def test_values_of_another_measure_or_shape(text: str) -> None:
    spec = make_spec((None,) * 2)
    for values in (Uncertainty("lmbo", ((1.0,),) * 2), Uncertainty(make_thinning(text).measures[0], ((1.0,) * 3,) * 2)):
        with pytest.raises(ModelError):
            make_thinning(text).schedule(spec, uncertainty=values)
