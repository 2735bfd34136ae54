"""RULER's retrieval tasks (arXiv 2404.06654, section 3 and appendix B): needles that differ in what surrounds them.

A variant is named by its haystack (repeated noise, essay, or look-alike needles alone), its kinds of key and value,
and how many keys there are, how many values a key has, how many keys are asked for. Depths are random.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from typing import Literal

from uncomp_cli.evals.tasks.magic import magic_question, magic_sentence
from uncomp_cli.evals.tasks.request import Filler, Request, fill, random_borders
from uncomp_cli.evals.tasks.sample import Query, Sample
from uncomp_cli.evals.tasks.words import NOUNS, compound, digits, list_items, uuid_text

__all__ = ["NOISE", "VARIANTS", "retrieval_sample"]

NOISE = "The kettle is warm. The road is long. The clouds are grey. On we walk. Home and out again."


@dataclass(frozen=True, slots=True)
class Variant:
    """One retrieval task; of `keys` keys with `values` values each, `asked` keys are asked for."""

    haystack: Literal["noise", "essay", "needles"] = "essay"
    key: Literal["compound", "noun", "uuid"] = "compound"
    value: Literal["number", "uuid"] = "number"
    keys: int = 1
    values: int = 1
    asked: int = 1


VARIANTS = {
    "ruler/niah_single_1": Variant("noise"),
    "ruler/niah_single_2": Variant(),
    "ruler/niah_single_3": Variant(value="uuid"),
    "ruler/niah_multikey_1": Variant(key="noun", keys=4),
    "ruler/niah_multikey_2": Variant("needles"),
    "ruler/niah_multikey_3": Variant("needles", key="uuid", value="uuid"),
    "ruler/niah_multivalue": Variant(values=4),
    "ruler/niah_multiquery": Variant(keys=4, asked=4),
}


def retrieval_sample(request: Request) -> Sample:
    """Facts in document order, one question for all that is asked, the answers in the same order."""
    variant, chance = VARIANTS[request.subtask], request.chance()
    keys = _distinct_keys(chance, variant)
    facts = [(key, _value(chance, variant.value)) for key in keys for _ in range(variant.values)]
    chance.shuffle(facts)
    wanted = set(chance.sample(keys, variant.asked))
    asked = tuple(dict.fromkeys(key for key, _ in facts if key in wanted))
    several = variant.values > 1
    question = magic_question(asked, kind=variant.value, several=several)
    layout = request.lay_out(
        [magic_sentence(key, value, kind=variant.value, several=several) for key, value in facts],
        lambda pieces: random_borders(request.chance("places"), len(facts), len(pieces)),
        _filler(request, variant, keys),
        room=request.room((question,)),
    )
    places = [place for place, (key, _) in enumerate(facts) if key in wanted]
    values = tuple(facts[place][1] for place in places)
    answer = f" {list_items(values)}"
    evidence = tuple(layout.spans[place] for place in places)
    query = Query(question, answer, values, max_new_tokens=request.new_tokens(answer), evidence=evidence)
    depth = request.share_before(layout, places[0]) if len(places) == 1 else None
    return request.sample(layout.context, (query,), depth=depth)


def _distinct_keys(chance: random.Random, variant: Variant) -> list[str]:
    keys: dict[str, None] = {}
    while len(keys) < variant.keys:
        keys[_key(chance, variant)] = None
    return list(keys)


def _key(chance: random.Random, variant: Variant) -> str:
    if variant.key == "uuid":
        return uuid_text(chance)
    return chance.choice(NOUNS) if variant.key == "noun" else compound(chance)


def _value(chance: random.Random, kind: Literal["number", "uuid"]) -> str:
    return uuid_text(chance) if kind == "uuid" else digits(chance, 7)


def _filler(request: Request, variant: Variant, keys: list[str]) -> Filler:
    if variant.haystack == "essay":
        return request.excerpt
    if variant.haystack == "noise":
        return lambda tokens: fill(repeat(NOISE), tokens, count_tokens=request.count_tokens)
    return lambda tokens: fill(_look_alikes(request, variant, keys), tokens, count_tokens=request.count_tokens)


def _look_alikes(request: Request, variant: Variant, keys: list[str]) -> Iterator[str]:
    """Needles for other keys, without end."""
    chance, used = request.chance("text"), set(keys)
    while True:
        key = _key(chance, variant)
        if key not in used:
            used.add(key)
            yield magic_sentence(key, _value(chance, variant.value), kind=variant.value)
