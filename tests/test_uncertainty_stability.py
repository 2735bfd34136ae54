"""Agreement of orders against closed forms and against all pairs counted one by one."""

import json
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from uncomp_cli.uncertainty.profile import ModelFingerprint, SampleInfo, UncertaintyProfile
from uncomp_cli.uncertainty.stability import (
    Agreement,
    LengthAgreement,
    LengthGroup,
    across_samples,
    compare,
    head_agreement,
    layer_agreement,
    length_groups,
    rank_agreement,
    stability,
)

PAIRS_OF_LISTS = st.integers(2, 7).flatmap(
    lambda size: st.tuples(*[st.lists(st.integers(-3, 3), min_size=size, max_size=size)] * 2)
)


def _counted(a: list[int], b: list[int]) -> float:
    pairs = list(combinations(range(len(a)), 2))
    same = sum((a[i] - a[j]) * (b[i] - b[j]) > 0 for i, j in pairs)
    tied = sum((a[i] - a[j]) * (b[i] - b[j]) == 0 for i, j in pairs)
    return (same + tied / 2) / len(pairs)


def _tensor(rows: object) -> Tensor:
    return torch.tensor(rows, dtype=torch.float32)


@pytest.mark.parametrize(
    ("b", "agreement"),
    [
        ([10, 20, 30, 40], 1.0),
        ([4, 3, 2, 1], 0.0),
        ([1, 2, 4, 3], 5 / 6),
        ([3, 4, 1, 2], 2 / 6),
        ([1, 1, 2, 3], 5.5 / 6),
        ([7, 7, 7, 7], 0.5),
    ],
)
def test_the_share_of_pairs_in_the_same_order(b: list[int], agreement: float) -> None:
    assert rank_agreement(_tensor([1, 2, 3, 4]), _tensor(b)) == pytest.approx(agreement)


@given(PAIRS_OF_LISTS)
def test_it_is_what_counting_gives(lists: tuple[list[int], list[int]]) -> None:
    a, b = lists
    agreement = rank_agreement(_tensor(a), _tensor(b))
    assert agreement == pytest.approx(_counted(a, b))
    assert rank_agreement(_tensor(b), _tensor(a)) == agreement
    assert rank_agreement(-_tensor(a), _tensor(b)) == pytest.approx(1 - agreement)


@given(st.permutations(range(6)), st.permutations(range(6)))
def test_only_the_order_counts(a: list[int], b: list[int]) -> None:
    exact = rank_agreement(_tensor(a), _tensor(b))
    assert rank_agreement(_tensor(a).exp(), 3 * _tensor(b) - 100) == pytest.approx(exact)


def test_orders_by_chance_agree_half_the_time() -> None:
    torch.manual_seed(0)
    a, b = torch.rand(400, 9), torch.rand(400, 9)
    # The variance of Kendall's tau is 2(2X + 5) / (9X(X − 1)) = 0.071; halved, over 400 layers: 0.0067.
    assert head_agreement(a, b) == pytest.approx(0.5, abs=4 * 0.0067)


def test_layers_count_equally_in_the_agreement_of_heads() -> None:
    a = _tensor([[1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3]])
    b = _tensor([[1, 2, 3], [3, 2, 1], [1, 3, 2], [5, 5, 5]])
    assert head_agreement(a, b) == pytest.approx((1 + 0 + 2 / 3 + 0.5) / 4)


def test_heads_of_other_layers_are_never_compared() -> None:
    a = _tensor([[1, 2], [100, 200]])
    assert head_agreement(a, _tensor([[100, 200], [1, 2]])) == 1.0
    assert layer_agreement(a, _tensor([[100, 200], [1, 2]])) == 0.0


def test_layers_are_compared_by_their_means_whatever_their_widths() -> None:
    a = _tensor([[1, 3], [0, 8], [5, 6]])  # means 2, 4, 5.5
    assert layer_agreement(a, _tensor([[2], [4], [3]])) == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("a", "b"), [([1.0], [1.0]), ([1.0, 2.0], [1.0, 2.0, 3.0]), ([[1.0, 2.0]], [[1.0, 2.0]]), ([], [])]
)
def test_what_has_no_order_is_refused(a: object, b: object) -> None:
    with pytest.raises(ValueError, match="no order"):
        rank_agreement(_tensor(a), _tensor(b))


def test_no_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match="no numbers"):
        rank_agreement(_tensor([1.0, float("nan")]), _tensor([1.0, 2.0]))


@given(st.integers(2, 5), st.integers(1, 3), st.integers(2, 5), st.integers(0, 10**6))
def test_across_samples_is_the_mean_over_all_pairs(count: int, layers: int, heads: int, seed: int) -> None:
    torch.manual_seed(seed)
    values = torch.randint(0, 4, (count, layers, heads)).float()
    pairs = list(combinations(values, 2))
    found = across_samples(values)
    assert found.heads == pytest.approx(sum(head_agreement(a, b) for a, b in pairs) / len(pairs))
    if layers > 1:
        assert found.layers == pytest.approx(sum(layer_agreement(a, b) for a, b in pairs) / len(pairs))
    else:
        assert found.layers is None


def test_query_heads_meet_kv_heads_as_their_groups_means() -> None:
    queries = _tensor([[1, 9, 2, 2, 0, 3]])  # of three KV heads: 5, 2, 1.5
    assert compare(queries, _tensor([[3, 2, 1]]), num_kv_heads=3) == Agreement(1.0, None)
    assert compare(_tensor([[3, 1, 2]]), queries, num_kv_heads=3).heads == pytest.approx(2 / 3)


def test_one_value_a_layer_has_layers_alone() -> None:
    hidden, queries = _tensor([[1], [2], [3]]), _tensor([[1, 1], [5, 5], [9, 9]])
    assert compare(hidden, queries, num_kv_heads=2) == Agreement(None, 1.0)
    assert compare(hidden, queries, num_kv_heads=1) == Agreement(None, 1.0)
    assert compare(hidden, -hidden, num_kv_heads=2) == Agreement(None, 0.0)


def test_lengths_within_a_tenth_are_one_group() -> None:
    assert length_groups([2000, 500, 2010, 505, 1000, 2200, 2201]) == (
        LengthGroup(502, (1, 3)),
        LengthGroup(1000, (4,)),
        LengthGroup(2070, (0, 2, 5)),
        LengthGroup(2201, (6,)),
    )


FINGERPRINT = ModelFingerprint("m", "llama", num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8, weights_sha256="a")


def _profile(values: dict[str, Tensor], tokens: list[int]) -> UncertaintyProfile:
    samples = tuple(SampleInfo("text", f"{index}", length, "plain") for index, length in enumerate(tokens))
    return UncertaintyProfile(FINGERPRINT, samples, values, {"window": 32})


def _planted() -> UncertaintyProfile:
    """Two short and two long samples: q keeps its order at all lengths, lmbo turns round at the long ones."""
    up = _tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    noise = _tensor([[0, 0, 0, 0], [0, 0, 0, 0]])
    queries = torch.stack([up, up + 10, up * 2, up * 3])
    output = torch.stack([up, up, -up, -up])
    keys = torch.stack([_tensor([[2, 1], [4, 3]])] * 4)
    return _profile(
        {
            "entropy/q/r1/4": queries,
            "lmbo": output,
            "entropy/k/r1/4": keys,
            "lmba/raw": torch.stack([noise] * 4),
            "entropy/hidden/r1/4": queries.mean(-1, keepdim=True),
        },
        tokens=[500, 505, 2000, 2010],
    )


def test_what_was_planted_is_reported() -> None:
    report = stability(_planted())
    assert [group.tokens for group in report.groups] == [502, 2005]
    assert report.texts["entropy/q/r1/4"] == Agreement(1.0, 1.0)
    # Two of the six pairs of samples agree, four are reversed.
    assert report.texts["lmbo"] == Agreement(pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert report.texts["lmba/raw"] == Agreement(0.5, 0.5)
    assert report.texts["entropy/hidden/r1/4"] == Agreement(None, 1.0)
    assert report.lengths["entropy/q/r1/4"] == (LengthAgreement((502, 2005), Agreement(1.0, 1.0)),)
    assert report.lengths["lmbo"] == (LengthAgreement((502, 2005), Agreement(0.0, 0.0)),)


def test_measures_are_compared_with_each_other() -> None:
    report = stability(_planted())
    matrix = {(a, b): report.measures[i][j] for i, a in enumerate(report.keys) for j, b in enumerate(report.keys)}
    assert matrix["entropy/q/r1/4", "entropy/q/r1/4"] == Agreement(1.0, 1.0)
    assert matrix["entropy/q/r1/4", "entropy/k/r1/4"] == Agreement(0.0, 1.0)
    assert matrix["entropy/q/r1/4", "entropy/hidden/r1/4"] == Agreement(None, 1.0)
    assert matrix["lmba/raw", "lmba/raw"] == Agreement(0.5, 0.5)
    assert all(matrix[a, b] == matrix[b, a] for a in report.keys for b in report.keys)


def test_one_sample_has_nothing_to_agree_with_but_other_measures() -> None:
    values = {key: value[:1] for key, value in _planted().values.items()}
    report = stability(_profile(values, tokens=[500]))
    assert set(report.texts.values()) == {Agreement(None, None)}
    assert set(report.lengths.values()) == {()}
    assert report.measures[0][0] == Agreement(1.0, 1.0)
    assert report.rows()[0].lengths == Agreement(None, None)


def test_the_report_is_plain_data() -> None:
    report = stability(_planted())
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data == report.to_dict()
    assert data["lengths"] == [{"tokens": 502, "samples": 2}, {"tokens": 2005, "samples": 2}]
    assert data["across_texts"]["entropy/q/r1/4"] == {"heads": 1.0, "layers": 1.0}
    assert data["across_lengths"]["lmbo"] == [{"tokens": [502, 2005], "heads": 0.0, "layers": 0.0}]
    assert data["across_measures"]["heads"][0][2] == 0.0
    assert data["measures"][2] == "entropy/k/r1/4"


def test_a_table_has_a_row_for_each_measure() -> None:
    report = stability(_planted())
    rows = {row.measure: row for row in report.rows()}
    assert tuple(rows) == report.keys
    assert rows["lmbo"].lengths == Agreement(0.0, 0.0)
    assert rows["entropy/k/r1/4"].reference == Agreement(0.0, 1.0)
    by_keys = {row.measure: row for row in report.rows("entropy/k/r1/4")}
    assert by_keys["entropy/k/r1/4"].reference == Agreement(1.0, 1.0)
    assert by_keys["entropy/q/r1/4"].reference == Agreement(0.0, 1.0)


def test_three_lengths_make_three_pairs_and_one_mean() -> None:
    up = _tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
    report = stability(_profile({"lmbo": torch.stack([up, up, -up])}, tokens=[500, 1000, 2000]))
    assert [(pair.tokens, pair.agreement.heads) for pair in report.lengths["lmbo"]] == [
        ((500, 1000), 1.0),
        ((500, 2000), 0.0),
        ((1000, 2000), 0.0),
    ]
    assert report.rows()[0].lengths.heads == pytest.approx(1 / 3)
