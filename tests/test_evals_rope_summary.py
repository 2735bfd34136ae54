"""What cells come to: rates, divergence, rank correlation and the recommendation, against values known in advance."""

import math
from dataclasses import replace

import pytest

from uncomp_cli.errors import UsageError
from uncomp_cli.evals.rope.cells import NeedleCell, RopeCell, TextCell, arm_maps
from uncomp_cli.evals.rope.verdict import summarise_rope
from uncomp_cli.evals.tables.statistics import rank_correlation

TRAINED = 1024
NEAR, FAR = [1.0, 0.0], [0.0, 1.0]


def needle(
    arm: str, tokens: int, depth: float = 0.0, *, found: bool = True, nll: float = 0.2, **more: float
) -> NeedleCell:
    entropy = more.get("entropy", 0.5)
    return NeedleCell(
        arm=arm, tokens=tokens, depth=depth, index=0, nll=nll, match=float(found), answer="1", entropy=entropy,
        raw_entropy=3.0, retrieval_entropy=more.get("retrieval"), entropy_by_head=[[entropy]], kv_bytes=100,
        kept_fraction=0.1, seconds=1.0,
    )  # fmt: skip


def text(arm: str, tokens: int, patterns: dict[str, list[float]]) -> TextCell:
    losses = [(513, 2.0), (1025, 3.0), (1537, 5.0), (2017, 7.0)]
    held = {at: [[pattern], []] for at, pattern in patterns.items()}  # the second layer slides: it has no pattern
    return TextCell(arm, tokens, [pair for pair in losses if pair[0] <= tokens + 1], held, 512, 100, 1.0)


CELLS: list[RopeCell] = [
    text("plain", 2048, {"1024": NEAR, "2048": FAR}),
    text("yarn:2", 2048, {"1024": NEAR, "2048": [0.5, 0.5]}),
    *(needle("plain", 2048, depth, found=False, nll=6.0) for depth in (0.0, 0.5)),
    *(needle("yarn:2", 2048, depth, nll=0.4) for depth in (0.0, 0.5)),
    *(needle("ntk:2", 2048, depth, nll=0.1) for depth in (0.0, 0.5)),
    *(needle("linear:1.5", 1536, depth, nll=0.0) for depth in (0.0, 0.5)),
]


def test_the_longest_length_decides_then_the_share_found_then_the_loss() -> None:
    summary = summarise_rope(CELLS, trained_length=TRAINED)
    assert summary.best is not None
    assert summary.reason is not None
    assert summary.best.arm == "ntk:2"
    assert "ntk:2 finds 2 of 2 needles (NLL 0.10) at 2,048 tokens" in summary.reason
    assert "yarn:2 2 of 2" in summary.reason
    assert "plain 0 of 2" in summary.reason
    missed = [
        replace(cell, match=0.0) if isinstance(cell, NeedleCell) and cell.arm == "ntk:2" else cell for cell in CELLS
    ]
    again = summarise_rope(missed, trained_length=TRAINED)
    assert again.best is not None
    assert again.best.arm == "yarn:2"


def test_nothing_is_recommended_where_nothing_is_found() -> None:
    summary = summarise_rope([needle("plain", 2048, found=False, nll=5.0)], trained_length=TRAINED)
    assert summary.best is None
    assert summary.reason is not None
    assert summary.reason.startswith("No kind finds a needle at 2,048 tokens")


def test_divergence_is_from_the_model_as_trained_at_its_trained_length() -> None:
    rows = {row.arm: row for row in summarise_rope(CELLS, trained_length=TRAINED).texts}
    assert rows["plain"].divergence_inside == pytest.approx(0)
    assert rows["plain"].divergence_past == pytest.approx(math.log(2))
    # m = (0.75, 0.25): JS = H(m) - (H(1, 0) + H(0.5, 0.5)) / 2
    apart = -0.75 * math.log(0.75) - 0.25 * math.log(0.25) - math.log(2) / 2
    assert rows["yarn:2"].divergence_past == pytest.approx(apart)
    by_arm = {row.arm: row for row in summarise_rope(CELLS, trained_length=TRAINED).needles}
    assert by_arm["yarn:2"].divergence == pytest.approx(apart)
    assert by_arm["ntk:2"].divergence is None


def test_losses_are_those_inside_and_past_the_trained_length() -> None:
    (row, _) = summarise_rope(CELLS, trained_length=TRAINED).texts
    assert row.nll_inside == pytest.approx(2.5)
    assert row.nll_past == pytest.approx((5 * 512 + 7 * 480) / 992)
    (short,) = summarise_rope([text("plain", 1024, {"1024": NEAR})], trained_length=TRAINED).texts
    assert (short.nll_past, short.divergence_past) == (None, None)


def test_a_rate_has_wilsons_interval() -> None:
    row = next(row for row in summarise_rope(CELLS, trained_length=TRAINED).needles if row.arm == "ntk:2")
    assert (row.found.mean, row.found.count) == (1.0, 2)
    assert row.found.low == pytest.approx(0.342, abs=0.001)


def test_ranks_of_ties_share_their_mean() -> None:
    # Ranks (1.5, 1.5, 3, 4, 5, 6, 7, 8) and 1 to 8: r = 41.5 / sqrt(41.5 * 42).
    found = rank_correlation([1, 1, 2, 3, 4, 5, 6, 7], [10, 20, 30, 40, 50, 60, 70, 800])
    assert found is not None
    assert found.rho == pytest.approx(41.5 / math.sqrt(41.5 * 42))
    assert found.low <= found.rho <= found.high <= 1
    falling = rank_correlation(list(range(8)), [-(value**3) for value in range(8)])
    assert falling is not None
    assert falling.rho == pytest.approx(-1)


def test_no_correlation_without_spread_or_with_few_cells() -> None:
    assert rank_correlation([1.0] * 9, list(range(9))) is None
    assert rank_correlation([1, 2, 3], [1, 2, 3]) is None
    with pytest.raises(ValueError, match="no pairs"):
        rank_correlation([1, 2], [1])


def test_entropy_is_correlated_with_loss_and_misses_over_all_cells_and_within_arms() -> None:
    cells = [
        needle(arm, tokens, depth, found=depth < 0.5, nll=depth + shift, entropy=depth, retrieval=1 - depth)
        for shift, arm in enumerate(("plain", "yarn:2"))
        for tokens in (1024, 2048)
        for depth in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    found = {(c.arm, c.signal, c.outcome): c.ranks.rho for c in summarise_rope(cells, trained_length=1024).correlations}
    assert found["plain", "entropy", "nll"] == pytest.approx(1)
    assert found["plain", "retrieval_entropy", "nll"] == pytest.approx(-1)
    assert found["plain", "entropy", "missed"] > 0.8
    assert 0 < found["all", "entropy", "nll"] < 1  # the arms differ by a shift that entropy knows nothing of


def test_maps_of_all_arms_have_the_same_axes_and_blanks_where_nothing_was_measured() -> None:
    plain, *_, linear = arm_maps(CELLS)
    assert plain.lengths == linear.lengths == (1536, 2048)
    assert plain.depths == linear.depths == (0.0, 0.5)
    assert plain.nll == ((None, 6.0), (None, 6.0))
    assert linear.found == ((1.0, None), (1.0, None))
    assert plain.heads == "all heads"
    assert arm_maps([needle("plain", 2048, retrieval=0.3)])[0].heads == "retrieval heads"


def test_patterns_of_other_bins_or_heads_are_refused() -> None:
    for odd in ([0.5, 0.25, 0.25], [-1.0, 2.0]):
        cells = [text("plain", 2048, {"1024": NEAR}), text("yarn:2", 2048, {"2048": odd})]
        with pytest.raises(UsageError, match="the patterns of yarn:2 at 2,048 tokens"):
            summarise_rope(cells, trained_length=TRAINED)
