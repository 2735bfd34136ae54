"""Documents with planted facts: licence text in which one sentence, or four that look alike, stand between paragraphs.

The same document number gives the same document, on every machine that has the same text files.
"""

import random
import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FourFacts", "SingleFact", "four_facts", "read_source", "single_fact"]

_LICENCES = Path("/usr/share/common-licenses")
_NAMES = ("GPL-3", "GPL-2", "LGPL-2.1", "GFDL-1.3", "Apache-2.0", "MPL-2.0")
_REPOSITORY = Path(__file__).resolve().parent.parent
_CHARS_A_TOKEN = 4.8  # of these texts with the default model
_ROOMS = [
    "boiler room",
    "archive",
    "workshop",
    "wine cellar",
    "server room",
    "attic",
    "laboratory",
    "tool shed",
    "music room",
    "loading dock",
    "greenhouse",
    "print shop",
    "cold store",
    "radio room",
    "vault",
    "studio",
    "map room",
    "pump house",
    "chapel",
    "gatehouse",
]
_WORDS = [
    "amber",
    "violin",
    "glacier",
    "pepper",
    "lantern",
    "harbour",
    "meadow",
    "copper",
    "falcon",
    "marble",
    "walnut",
    "thunder",
    "saddle",
    "compass",
    "velvet",
    "orchid",
    "timber",
    "castle",
    "ribbon",
    "pelican",
    "quartz",
    "barley",
    "anchor",
    "monsoon",
]


@dataclass(frozen=True, slots=True)
class SingleFact:
    """A document, a question about the one fact in it, the seven digits, and where it stands (0 begin, 1 end)."""

    document: str
    question: str
    answer: str
    depth: float


@dataclass(frozen=True, slots=True)
class FourFacts:
    """A document with four look-alike facts, the opening of the sentence to complete, and its continuation."""

    document: str
    question: str
    answer: str


def read_source() -> tuple[str, list[str]]:
    """What the text is, for the report, and its paragraphs."""
    present = [_LICENCES / name for name in _NAMES if (_LICENCES / name).is_file()]
    files = present or [_REPOSITORY / "LICENSE", _REPOSITORY / "docs/demo/lighthouse-handbook.md"]
    paragraphs = []
    for path in files:
        text = path.read_text(encoding="utf-8")
        paragraphs += [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]
    label = ", ".join(path.name for path in files)
    return f"{_LICENCES}: {label}" if present else label, [part for part in paragraphs if len(part) > 80]


def single_fact(paragraphs: list[str], number: int, *, tokens: int) -> SingleFact:
    """Document `number` of about `tokens` tokens with one access code in it."""
    chance = random.Random(f"single {number}")
    room, code = _ROOMS[number % len(_ROOMS)], str(chance.randint(1_000_000, 9_999_999))
    body = _excerpt(paragraphs, chance, tokens)
    at = chance.randint(1, len(body) - 1)
    body.insert(at, f"The secret number of the {room} is {code}.")
    return SingleFact("\n\n".join(body), f"What is the secret number of the {room}?", code, at / (len(body) - 1))


def four_facts(paragraphs: list[str], number: int, *, tokens: int) -> FourFacts:
    """Document `number` of about `tokens` tokens with four special magic numbers in it; one of them is asked for."""
    chance = random.Random(f"four {number}")
    words = chance.sample(_WORDS, 4)
    numbers = [str(chance.randint(1_000_000, 9_999_999)) for _ in words]
    body = _excerpt(paragraphs, chance, tokens)
    places = sorted(chance.sample(range(1, len(body)), 4), reverse=True)
    for at, word, digits in zip(places, words, numbers, strict=True):
        body.insert(at, f"The special magic number for {word} is {digits}.")
    asked = chance.randrange(4)
    question = (
        f"\n\nWhat is the special magic number for {words[asked]} mentioned in the text? "
        f"The special magic number for {words[asked]} mentioned in the text is"
    )
    return FourFacts("\n\n".join(body), question, f" {numbers[asked]}")


def _excerpt(paragraphs: list[str], chance: random.Random, tokens: int) -> list[str]:
    """Consecutive paragraphs from a random place, about `tokens` long, the last one cut to fit."""
    wanted = round(tokens * _CHARS_A_TOKEN)
    at = chance.randrange(len(paragraphs))
    chosen: list[str] = []
    while (room := wanted - sum(map(len, chosen))) > 0:
        chosen.append(paragraphs[at % len(paragraphs)][:room])
        at += 1
    return chosen
