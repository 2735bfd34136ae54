"""A few damaged files of every kind: the short run of fuzz.py, and that it sees what it is to see."""

from pathlib import Path
from random import Random

import pytest

from fuzz import KINDS, fuzz
from support.matrix import some
from uncomp_cli.errors import UsageError

INPUTS = len(some(25, 100))
TOLERANT = {"text", "html", "mail", "questions", "rtf", "srt", "tex", "csv", "jsonl"}
"""Damage leaves most of these readable: what is broken of them is counted as lost."""


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_damaged_files_are_refused_in_two_lines_soon_and_in_little_memory(kind: str) -> None:
    tally = fuzz(KINDS[kind](), inputs=range(INPUTS), seed=0)
    assert (tally.faults, tally.unforeseen) == (0, {})
    assert tally.inputs == tally.accepted + tally.refused == INPUTS
    assert tally.refused > (0 if kind in TOLERANT else INPUTS // 5)


class Odd:
    """A kind whose readers do everything that must not be."""

    name = "odd"

    def prepare(self, folder: Path) -> None:
        self.folder = folder

    def mutate(self, chance: Random) -> bytes:
        return chance.randbytes(1)

    def use(self, data: bytes) -> None:
        if data[0] < 64:
            raise KeyError("nobody foresaw this")
        if data[0] < 128:
            raise UsageError("what mends it?")
        if data[0] < 192:
            raise UsageError("refused", hint="another")


def test_what_is_wrong_is_counted_and_repeated_by_its_number() -> None:
    tally = fuzz(Odd(), inputs=range(60), seed=5)
    assert tally.accepted > 5
    assert tally.refused > 20
    (key_error, count), *_ = sorted(tally.unforeseen.items())
    assert key_error.startswith("KeyError at ")
    assert count > 5
    again = fuzz(Odd(), inputs=[tally.first[key_error]], seed=5)
    assert list(again.unforeseen) == [key_error]
    assert "no second line: 'what mends it?'" in tally.unforeseen
