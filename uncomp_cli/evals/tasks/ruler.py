"""The thirteen tasks of RULER (arXiv 2404.06654) by its definitions, with texts and word lists of our own.

Retrieval (section 3 and appendix B): needles that differ in what surrounds them. A variant is named by its haystack
(repeated noise, essay, or look-alike needles alone), its kinds of key and value, and how many keys there are, how many
values a key has, how many keys are asked for. Depths are random.
Variable tracking: `VAR QWERT = 48213`, then four times `VAR NEXT = VAR BEFORE`, in document order among noise; every
name with one value is asked for. A short worked example stands first, as in RULER; its names and value are others.
Aggregation is in aggregation.py, question answering in qa.py.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise, repeat
from typing import ClassVar, Literal

from uncomp_cli.evals.tasks.aggregation import common_words_sample, frequent_words_sample
from uncomp_cli.evals.tasks.facts import NOUNS, compound, digits, list_items, magic_question, magic_sentence, uuid_text
from uncomp_cli.evals.tasks.qa import one_hop_sample, two_hop_sample
from uncomp_cli.evals.tasks.task import Filler, JudgeName, Query, Regime, Request, Sample, fill, random_borders

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


_HOPS = 4
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_HEAD = "Follow the assignments of variables that stand in this text."


def tracing_sample(request: Request) -> Sample:
    """One chain of five names."""
    chance = request.chance()
    names = _names(chance, 2 * (_HOPS + 1))
    value, shown_value = (str(number) for number in chance.sample(range(10_000, 100_000), 2))
    shown, names = names[: _HOPS + 1], names[_HOPS + 1 :]
    example = _worked_example(shown, shown_value)
    question = _question(value)
    layout = request.lay_out(
        _assignments(names, value),
        lambda pieces: random_borders(request.chance("places"), len(names), len(pieces)),
        lambda tokens: fill(repeat(NOISE), tokens, count_tokens=request.count_tokens, separator="\n"),
        room=request.room((question,)) - request.count_tokens(example),
        separator="\n",
    )
    evidence = tuple((begin + len(example), end + len(example)) for begin, end in layout.spans)
    answer = f" {list_items(names)}"
    query = Query(question, answer, names, max_new_tokens=request.new_tokens(answer), evidence=evidence)
    return request.sample(example + layout.context, (query,))


def _worked_example(names: tuple[str, ...], value: str) -> str:
    lines = "\n".join(f"{assignment}\n{NOISE}" for assignment in _assignments(names, value))
    return f"{_HEAD}\n{lines}{_question(value)} {list_items(names)}\n\n{_HEAD}\n"


def _assignments(names: tuple[str, ...], value: str) -> list[str]:
    return [f"VAR {names[0]} = {value}", *(f"VAR {b} = VAR {a}" for a, b in pairwise(names))]


def _question(value: str) -> str:
    return (
        f"\n\nQuestion: Find all variables that are assigned the value {value} in the text above.\n"
        f"Answer: By the assignments in the text above, {_HOPS + 1} variables are assigned the value {value}:"
    )


def _names(chance: random.Random, number: int) -> tuple[str, ...]:
    names: dict[str, None] = {}
    while len(names) < number:
        names["".join(chance.choices(_LETTERS, k=5))] = None
    return tuple(names)


_SAMPLES: dict[str, Callable[[Request], Sample]] = {
    **dict.fromkeys(VARIANTS, retrieval_sample),
    "ruler/vt": tracing_sample,
    "ruler/cwe": common_words_sample,
    "ruler/fwe": frequent_words_sample,
    "ruler/qa_1": one_hop_sample,
    "ruler/qa_2": two_hop_sample,
}


class Ruler:
    """Retrieval, tracing, aggregation, question answering; all in completion form."""

    name: ClassVar[str] = "ruler"
    subtasks: ClassVar[tuple[str, ...]] = tuple(_SAMPLES)
    regimes: ClassVar[tuple[Regime, ...]] = ("aware", "agnostic")
    judge: ClassVar[JudgeName] = "answers"

    def sample(self, request: Request) -> Sample:
        """One sample of one of the thirteen; only the essay tasks read the haystack."""
        return _SAMPLES[request.subtask](request)
