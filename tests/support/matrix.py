"""What the default run takes of many rows and of many seeds; `make slow` takes all."""

import re
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import pytest
from hypothesis import settings

_Row = list[tuple[str, str]]
"""What each parametrize gives a test, by the names that it gives."""


def some(few: int, many: int) -> range:
    """Seeds: `few` in the default run, `many` in the thorough one."""
    return range(many if settings().max_examples >= settings.get_profile("thorough").max_examples else few)


def thin_out(items: Sequence[pytest.Item]) -> None:
    """Mark slow, of tests marked `sparse(n)`, rows without which any n values of several parametrize still meet."""
    matrices: dict[str, dict[pytest.Item, _Row]] = {}
    for item in items:
        if item.get_closest_marker("sparse") is not None:
            matrices.setdefault(item.nodeid.partition("[")[0], {})[item] = _row(item)
    for rows in matrices.values():
        (together,) = next(next(iter(rows)).iter_markers("sparse")).args
        for item in rows.keys() - _covering(rows, together):
            item.add_marker("slow")


def _row(item: pytest.Item) -> _Row:
    given: dict[str, Any] = dict(item.callspec.params)  # of functions alone
    marks = [
        re.split(r"[\s,]+", mark.args[0]) if isinstance(mark.args[0], str) else mark.args[0]
        for mark in item.iter_markers("parametrize")
    ]
    row = [(" ".join(names), repr([given.pop(name) for name in names])) for names in marks]
    return row + [(name, repr(value)) for name, value in given.items()]  # of fixtures


def _covering(rows: dict[pytest.Item, _Row], together: int) -> set[pytest.Item]:
    """Items in which whatever meets in any does; each time one with the most that is missing, of values used least."""
    met = {item: set(combinations(row, together)) for item, row in rows.items()}
    missing, taken, uses = set().union(*met.values()), set[pytest.Item](), Counter[tuple[str, str]]()
    while missing:
        best = max(rows, key=lambda item: (len(met[item] & missing), -sum(uses[value] for value in rows[item])))
        taken.add(best)
        missing -= met[best]
        uses.update(rows[best])
    return taken
