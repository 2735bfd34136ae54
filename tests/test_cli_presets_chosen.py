"""What `--preset`, `--budget`, `--policy`, `--scorer` and `--seed` come to together."""

import pytest

from uncomp_cli.cli.prepare import choose_preset
from uncomp_cli.errors import UsageError


def chosen(name=None, *, budget=None, policy=None, scorer=None, seed=0):
    preset = choose_preset(name, budget=budget, policy=policy, scorer=scorer, seed=seed)
    return preset.policy, preset.budget, preset.floor_tokens


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ("uniform", "20%", 512)),
        ({"budget": "5%"}, ("uniform", "5%", 0)),
        ({"budget": "FULL"}, ("full", "full", 0)),
        ({"policy": "full"}, ("full", "full", 0)),
        ({"policy": "full", "budget": "Full"}, ("full", "full", 0)),
        ({"name": "full"}, ("full", "full", 0)),
        ({"policy": "sinks"}, ("sinks", "20%", 512)),
        ({"name": "full", "policy": "sinks", "budget": "10%"}, ("sinks", "10%", 0)),
    ],
)
def test_budget_and_policy_agree(given: dict, expected: tuple) -> None:
    assert chosen(given.pop("name", None), **given) == expected


@pytest.mark.parametrize(
    "given",
    [
        {"policy": "full", "budget": "10%"},
        {"name": "full", "budget": "5%"},
        {"name": "full", "policy": "sinks"},
        {"policy": "sinks", "budget": "full"},
    ],
)
def test_what_keeps_everything_and_what_does_not_are_refused_together(given: dict) -> None:
    with pytest.raises(UsageError, match="keeps everything"):
        chosen(given.pop("name", None), **given)


def test_the_seed_reaches_the_random_control() -> None:
    first = choose_preset(None, budget="5%", policy="random", scorer=None, seed=1)
    second = choose_preset(None, budget="5%", policy="random", scorer=None, seed=2)
    assert (first.scorer.seed, second.scorer.seed) == (1, 2)
