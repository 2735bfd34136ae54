"""Patterns by distance: every weight in its bin, and divergences in closed form."""

import math

import pytest
import torch

from uncomp_cli.uncertainty.distance_pattern import distance_edges, distance_pattern, js_divergence


def test_edges_grow_by_the_doubling() -> None:
    assert distance_edges(20).tolist() == [0, 1, 2, 3, 4, 6, 8, 11, 16, 21]
    assert distance_edges(0).tolist() == [0, 1]
    shorter, longer = distance_edges(1000), distance_edges(9000)
    assert shorter[:-1].tolist() == longer[: len(shorter) - 1].tolist()


def test_every_weight_is_in_the_bin_of_its_distance() -> None:
    rows = torch.tensor([[0.5, 0.2, 0.2, 0.1], [0.0, 0.0, 1.0, 3.0]])
    distances = torch.tensor([7, 5, 2, 0])
    edges = torch.tensor([0, 1, 4, 6, 8])
    pattern = distance_pattern(rows, distances, edges)
    torch.testing.assert_close(pattern, torch.tensor([[0.1, 0.2, 0.2, 0.5], [0.75, 0.25, 0.0, 0.0]]))


def test_rows_may_have_distances_of_their_own() -> None:
    rows = torch.full((2, 3), 1 / 3)
    distances = torch.tensor([[2, 1, 0], [5, 1, 1]])
    pattern = distance_pattern(rows, distances, torch.tensor([0, 1, 2, 6]))
    torch.testing.assert_close(pattern, torch.tensor([[1.0, 1.0, 1.0], [0.0, 2.0, 1.0]]) / 3)


@pytest.mark.parametrize("distance", [-1, 8])
def test_distances_outside_of_the_edges_are_refused(distance: int) -> None:
    with pytest.raises(ValueError, match="outside of the edges"):
        distance_pattern(torch.ones(1), torch.tensor([distance]), torch.tensor([0, 4, 8]))


def test_divergence_in_closed_form() -> None:
    p, q = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    assert float(js_divergence(p, q)) == pytest.approx(math.log(2))
    assert float(js_divergence(p, 5 * p)) == 0
    half = torch.tensor([0.5, 0.5])
    expected = (math.log(4 / 3) + 0.5 * math.log(2 / 3) + 0.5 * math.log(2)) / 2
    assert float(js_divergence(p, half)) == pytest.approx(expected)
    assert float(js_divergence(p, half)) == float(js_divergence(half, p))
    assert js_divergence(torch.ones(3, 4), torch.ones(3, 4)).shape == (3,)


def test_what_is_no_distribution_is_refused() -> None:
    with pytest.raises(ValueError, match="2 and 3 bins"):
        js_divergence(torch.ones(2), torch.ones(3))
    with pytest.raises(ValueError, match="below 0"):
        js_divergence(torch.tensor([1.0, -1.0]), torch.ones(2))
