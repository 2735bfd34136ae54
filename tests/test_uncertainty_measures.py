"""Keys of measures: parsed, written back in one form, refused with the nearest known key."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uncomp_cli.errors import UsageError
from uncomp_cli.spec import ModelSpec
from uncomp_cli.uncertainty.measures import DEFAULT_MEASURES, Measure, Rank, canonical_keys, parse_measure

SPEC = ModelSpec(
    model_type="llama",
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    hidden_size=576,
    intermediate_size=1536,
    vocab_size=49152,
    trained_length=8192,
    dtype_bytes=4,
    sliding_windows=(None,) * 30,
)

RANKS = st.one_of(
    st.integers(1, 4096),
    st.fractions(min_value=Fraction(1, 1000), max_value=1, max_denominator=1000),
    st.sampled_from(["knee", "full"]),
)


@pytest.mark.parametrize(
    ("key", "measure"),
    [
        ("entropy/q/r16", Measure("entropy", "q", 16)),
        ("entropy/q/r1/4", Measure("entropy", "q", Fraction(1, 4))),
        ("entropy/q/rknee", Measure("entropy", "q", "knee")),
        ("entropy/hidden/rfull", Measure("entropy", "hidden", "full")),
        ("entropy/v/r3/8/renormalised", Measure("entropy", "v", Fraction(3, 8), renormalised=True)),
        ("entropy/k/r16/prerope", Measure("entropy", "k", 16, prerope=True)),
        ("entropy/q/r1/4/renormalised/prerope", Measure("entropy", "q", Fraction(1, 4), True, True)),
        ("lmba/raw", Measure("lmba/raw")),
        ("lmba/sinkfree", Measure("lmba/sinkfree")),
        ("lmbo", Measure("lmbo")),
        ("attention_entropy", Measure("attention_entropy")),
    ],
)
def test_a_key_is_read_and_written(key: str, measure: Measure) -> None:
    assert parse_measure(key) == measure
    assert str(measure) == key


@pytest.mark.parametrize(
    ("key", "canonical"),
    [
        ("entropy/q/r2/8", "entropy/q/r1/4"),
        ("entropy/q/r4/4", "entropy/q/rfull"),
        ("entropy/q/r016", "entropy/q/r16"),
        (" lmbo\n", "lmbo"),
        ("entropy/k/r16/prerope/renormalised", "entropy/k/r16/renormalised/prerope"),
    ],
)
def test_equal_measures_have_one_key(key: str, canonical: str) -> None:
    assert str(parse_measure(key)) == canonical
    assert canonical_keys([key, canonical, "lmba/raw"]) == (canonical, "lmba/raw")


@given(state=st.sampled_from(["q", "k", "v", "hidden"]), rank=RANKS, renormalised=st.booleans(), prerope=st.booleans())
def test_what_is_written_is_read_back(state: str, rank: Rank, renormalised: bool, prerope: bool) -> None:
    measure = Measure("entropy", state, rank, renormalised, prerope and state in "qk")
    assert parse_measure(str(measure)) == measure
    assert hash(parse_measure(str(measure))) == hash(measure)


@given(st.text(max_size=40))
def test_no_text_ends_in_another_error(text: str) -> None:
    try:
        measure = parse_measure(text)
    except UsageError:
        return
    assert parse_measure(str(measure)) == measure


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("entropy/q/knee", "'entropy/q/rknee'"),
        ("entropy/q/16", "'entropy/q/r16'"),
        ("entropy/q/r1/4/renormalized", "'entropy/q/r1/4/renormalised'"),
        ("entropy/hiden/rfull", "'entropy/hidden/rfull'"),
        ("lmba/sink-free", "'lmba/sinkfree'"),
        ("lmb0", "'lmbo'"),
        ("attention-entropy", "'attention_entropy'"),
    ],
)
def test_a_mistyped_key_is_refused_with_the_nearest(key: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"measure '{key}' is unknown") as caught:
        parse_measure(key)
    assert caught.value.hint == f"did you mean {near}?"


def test_a_suffix_said_twice_is_refused() -> None:
    with pytest.raises(UsageError, match="unknown") as caught:
        parse_measure("entropy/q/r1/4/renormalised/renormalised")
    assert "entropy/q/r1/4" in str(caught.value.hint)


def test_a_key_far_from_all_is_refused_with_the_forms_there_are() -> None:
    with pytest.raises(UsageError, match="'zzz' is unknown") as caught:
        parse_measure("zzz")
    assert caught.value.hint is not None
    assert "entropy/q/r1/4" in caught.value.hint
    assert "attention_entropy" in caught.value.hint


@pytest.mark.parametrize(
    ("key", "message", "hint"),
    [
        ("entropy/q/r0", "rank 0 of measure 'entropy/q/r0' keeps no eigenvalue", "r1/4"),
        ("entropy/q/r0/4", "keeps no eigenvalue", "r1/4"),
        ("entropy/q/r5/4", "rank 5/4 of measure 'entropy/q/r5/4' is more than all", "rfull"),
        ("entropy/q/r1/0", "rank 1/0 of measure 'entropy/q/r1/0' divides by zero", "r1/4"),
        ("entropy/v/r16/prerope", "only queries and keys are rotated", "use entropy/v/r16"),
        ("entropy/hidden/r1/4/renormalised/prerope", "only queries and keys", "use entropy/hidden/r1/4/renormalised"),
    ],
)
def test_what_cannot_be_measured_is_refused(key: str, message: str, hint: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        parse_measure(key)
    assert hint in str(caught.value.hint)


@pytest.mark.parametrize(
    "fields",
    [("entropy", "x", 16), ("entropy", "q"), ("lmbo", "q"), ("lmba/raw", None, 16), ("lmba/other",)],
)
def test_fields_that_do_not_belong_together_are_refused(fields: tuple[str, ...]) -> None:
    with pytest.raises(UsageError):
        Measure(*fields)


@pytest.mark.parametrize(
    ("key", "dim", "rank"),
    [
        ("entropy/q/r16", 64, 16),
        ("entropy/q/r1/4", 64, 16),
        ("entropy/q/r1/4", 128, 32),
        ("entropy/hidden/r1/4", 576, 144),
        ("entropy/q/r1/4", 6, 1),
        ("entropy/q/r1/4", 2, 1),
        ("entropy/q/r3/8", 64, 24),
        ("entropy/q/rfull", 64, 64),
        ("entropy/q/rknee", 64, None),
    ],
)
def test_the_rank_for_a_dimension(key: str, dim: int, rank: int | None) -> None:
    assert parse_measure(key).rank_of(dim) == rank


def test_a_rank_above_the_dimension_is_refused_with_both() -> None:
    with pytest.raises(UsageError, match=r"rank 128 of .* above the dimension 64"):
        parse_measure("entropy/q/r128").rank_of(64)


def test_attention_has_no_rank() -> None:
    with pytest.raises(ValueError, match="lmbo"):
        parse_measure("lmbo").rank_of(64)


@pytest.mark.parametrize(
    ("key", "width"),
    [
        ("entropy/q/r16", 9),
        ("entropy/q/r16/prerope", 9),
        ("entropy/k/r16", 3),
        ("entropy/v/r16", 3),
        ("entropy/hidden/r16", 1),
        ("lmba/raw", 9),
        ("lmba/sinkfree", 9),
        ("lmbo", 9),
        ("attention_entropy", 9),
    ],
)
def test_values_in_a_layer(key: str, width: int) -> None:
    assert parse_measure(key).width(SPEC) == width


def test_hidden_states_alone_are_not_seen_live() -> None:
    assert [key for key in DEFAULT_MEASURES if not parse_measure(key).live] == ["entropy/hidden/r1/4"]


def test_the_defaults_are_canonical_and_each_there_once() -> None:
    assert canonical_keys(DEFAULT_MEASURES) == DEFAULT_MEASURES
    assert DEFAULT_MEASURES[0] == "entropy/q/r1/4"
    for rank in ("r1/8", "r1/2", "rknee", "rfull", "r1/4/prerope", "r1/4/renormalised"):
        assert f"entropy/q/{rank}" in DEFAULT_MEASURES
