"""Layer stages: the published boundaries from the published sums, and what a stage weighs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.budgets import SUMS_32
from uncomp_cli.budget.uncomp import PAPER_THRESHOLD, layer_stages, relative_threshold, stage_weights

SUMS_40 = [
    88.56142582324127, 83.1908786508794, 84.38408339204648, 83.21636804954474, 86.92246700703916, 87.53768984363012,
    89.18191230248249, 89.19035446942016, 89.9533398679659, 90.96597146195018, 91.86337784763947, 92.51877033291755,
    92.03969198399568, 92.46515476042592, 93.2050576149498, 91.42414335910942, 92.64186295234181, 93.00824597973778,
    92.98066834434528, 93.16376468223461, 93.37936712233315, 93.11623838602648, 94.16686739888758, 93.08618498622621,
    92.58229511268657, 92.879676711689, 93.11112275027877, 94.19428981060773, 94.16337504479995, 94.64360385186022,
    96.26818667060098, 94.77489512296752, 95.58909909940053, 95.22007943142523, 95.31731525843452, 94.19310590088801,
    95.28644231266685, 92.50816799468708, 92.20046121083985, 92.14139987322815,
]  # fmt: skip


def bounds(stages: list[range]) -> list[tuple[int, int]]:
    return [(stage[0], stage[-1]) for stage in stages]


def test_the_published_stages_of_32_layers() -> None:
    stages = layer_stages(SUMS_32, threshold=PAPER_THRESHOLD)
    assert bounds(stages) == [(0, 1), (2, 14), (15, 25), (26, 30), (31, 31)]


def test_the_published_stages_of_40_layers() -> None:
    stages = layer_stages(SUMS_40, threshold=PAPER_THRESHOLD)
    assert bounds(stages) == [(0, 0), (1, 2), (3, 14), (15, 22), (23, 30), (31, 34), (35, 36), (37, 39)]


def test_the_relative_threshold_finds_the_published_stages_too() -> None:
    assert layer_stages(SUMS_32, threshold=relative_threshold(SUMS_32)) == layer_stages(SUMS_32, threshold=1.0)
    assert len(layer_stages(SUMS_40, threshold=relative_threshold(SUMS_40))) == 5


@given(st.floats(0.001, 1000), st.floats(-50, 50))
def test_relative_stages_do_not_depend_on_the_unit(scale: float, shift: float) -> None:
    sums = [scale * (value + shift) for value in SUMS_32]
    assert layer_stages(sums, threshold=relative_threshold(sums)) == layer_stages(SUMS_32, threshold=1.0)


@given(st.lists(st.floats(0, 100), max_size=12), st.floats(0, 20))
def test_stages_are_all_layers_in_order(sums: list[float], threshold: float) -> None:
    stages = layer_stages(sums, threshold=threshold)
    assert [layer for stage in stages for layer in stage] == list(range(len(sums)))
    starts = {stage[0] for stage in stages}
    for layer in range(1, len(sums)):
        assert (layer in starts) == (sums[layer - 1] - sums[layer] > threshold)


@pytest.mark.parametrize("sums", [[], [3.0], [2.0] * 5, [1.0, 2.0, 3.0]], ids=str)
def test_what_does_not_fall_is_one_stage(sums: list[float]) -> None:
    assert layer_stages(sums, threshold=relative_threshold(sums)) == ([range(len(sums))] if sums else [])


def test_weights_fall_from_stage_to_stage() -> None:
    weights = stage_weights([range(1), range(1, 4), range(4, 5)], first=1.5, last=0.5)
    assert weights == pytest.approx([1.5, 1, 1, 1, 0.5])
    uneven = stage_weights([range(3), range(3, 4)], first=1.5, last=0.5)
    assert uneven == pytest.approx([1.2, 1.2, 1.2, 0.4])
    assert stage_weights([range(4)], first=1.5, last=0.5) == [1.0] * 4
    assert stage_weights([], first=1.5, last=0.5) == []
