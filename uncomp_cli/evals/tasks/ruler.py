"""The thirteen tasks of RULER (arXiv 2404.06654) by its definitions, with texts and word lists of our own.

Retrieval (section 3 and appendix B): needles that differ in what surrounds them. A variant is named by its haystack
(repeated noise, essay, or look-alike needles alone), its kinds of key and value, and how many keys there are, how many
values a key has, how many keys are asked for. Depths are random.
Variable tracking: `VAR QWERT = 48213`, then four times `VAR NEXT = VAR BEFORE`, in document order among noise; every
name with one value is asked for. A short worked example stands first, as in RULER; its names and value are others.

Aggregation: answers that no single place of the context holds. `cwe`, common words: a numbered list with ten words that
come 30 times among words that come 3 times. That needs about 4,096 tokens; below, as in RULER's released settings, 6
times against once; where even that is more than half of the list, 5, 4, 3 or 2 times against once. `fwe`, frequent
words: coined words, the word of rank k about N k^-2 / zeta(2) times, the first rank drawn as dots that are to be passed
over; the next three are asked for.
Question answering: RULER takes SQuAD and HotpotQA; people, works and towns of our own cannot have been read in
training. `qa_1` asks what one sentence says, `qa_2` what follows from two sentences of two documents: the town of a
person's employer.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice, pairwise, repeat
from math import pi
from typing import Literal

from uncomp_cli.evals.tasks.facts import (
    ADJECTIVES,
    CITIES,
    FIRST_NAMES,
    NOUNS,
    OBJECTS,
    OCCUPATIONS,
    coined_word,
    compound,
    digits,
    list_items,
    magic_question,
    magic_sentence,
    surname,
    uuid_text,
)
from uncomp_cli.evals.tasks.haystack import SEPARATOR, opening
from uncomp_cli.evals.tasks.task import Filler, Query, Request, Sample, Span, fill, random_borders

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
    question = _tracing_question(value)
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
    return f"{_HEAD}\n{lines}{_tracing_question(value)} {list_items(names)}\n\n{_HEAD}\n"


def _assignments(names: tuple[str, ...], value: str) -> list[str]:
    return [f"VAR {names[0]} = {value}", *(f"VAR {b} = VAR {a}" for a, b in pairwise(names))]


def _tracing_question(value: str) -> str:
    return (
        f"\n\nQuestion: Find all variables that are assigned the value {value} in the text above.\n"
        f"Answer: By the assignments in the text above, {_HOPS + 1} variables are assigned the value {value}:"
    )


def _names(chance: random.Random, number: int) -> tuple[str, ...]:
    names: dict[str, None] = {}
    while len(names) < number:
        names["".join(chance.choices(_LETTERS, k=5))] = None
    return tuple(names)


_COMMON = 10
_LONG_TOKENS = 4096
_LONG_REPEATS, _SHORT_REPEATS = (30, 3), tuple((repeats, 1) for repeats in (6, 5, 4, 3, 2))
_CWE_HEAD = "Here is a numbered list of words, some of which come more often than others."
_CWE_QUESTION = (
    "\n\nQuestion: Which 10 words come most often in the list above?\n"
    "Answer: The 10 words that come most often in the list are"
)
_ALPHA = 2.0
_ASKED = 3
_DOTS = "...."
_FEWEST_WORDS = 100  # below, ranks four and five come equally often
_FWE_HEAD = "Here is a text of coined words. Some come more often than others; dots mean nothing."
_FWE_QUESTION = (
    "\n\nQuestion: Leaving out the dots, which three coined words come most often in the text above?\n"
    "Answer: The three coined words that come most often in the text above are"
)


def common_words_sample(request: Request) -> Sample:
    """The ten common words, in the order in which they first come."""
    room = request.room((_CWE_QUESTION,))

    def write(entries: int) -> tuple[str, tuple[str, ...]]:
        chance = request.chance()
        words = _vocabulary(chance)
        example, shown = _numbered(chance, words, common=2, uncommon=5, rare=1)
        common, rare = _repeats(entries, request.tokens)
        text, wanted = _numbered(chance, words, common=common, uncommon=(entries - _COMMON * common) // rare, rare=rare)
        return f"{example}{_CWE_QUESTION} {list_items(shown)}.\n\n{text}", wanted

    entries = _largest(lambda entries: request.count_tokens(write(entries)[0]) <= room, 2 * 2 * _COMMON, request.tokens)
    if entries is None:
        raise request.too_short(request.tokens - room + request.count_tokens(write(2 * 2 * _COMMON)[0]))
    return _answered(request, write(entries), _CWE_QUESTION)


def frequent_words_sample(request: Request) -> Sample:
    """The three words that come most often after the dots, the most frequent first."""
    room = request.room((_FWE_QUESTION,))

    def write(total: int) -> tuple[str, tuple[str, ...]]:
        chance = request.chance()
        counts = _zipf(total)
        words = _coined(chance, len(counts) - 1)
        text = [word for word, count in zip([_DOTS, *words], counts, strict=True) for _ in range(count)]
        chance.shuffle(text)
        return f"{_FWE_HEAD}\n\n{' '.join(text)}", tuple(words[:_ASKED])

    total = _largest(lambda total: request.count_tokens(write(total)[0]) <= room, _FEWEST_WORDS, request.tokens)
    if total is None:
        raise request.too_short(request.tokens - room + request.count_tokens(write(_FEWEST_WORDS)[0]))
    return _answered(request, write(total), _FWE_QUESTION)


def _answered(request: Request, written: tuple[str, tuple[str, ...]], question: str) -> Sample:
    context, wanted = written
    answer = f" {list_items(wanted)}"
    return request.sample(context, (Query(question, answer, wanted, max_new_tokens=request.new_tokens(answer)),))


def _largest(fits: Callable[[int], bool], low: int, high: int) -> int | None:
    """The largest number from `low` to `high` that fits, by bisection; None when `low` does not."""
    if low > high or not fits(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def _repeats(entries: int, tokens: int) -> tuple[int, int]:
    """How often a common and an uncommon word come: the first choice that leaves the common ones half of the list."""
    choices = (_LONG_REPEATS, *_SHORT_REPEATS) if tokens >= _LONG_TOKENS else _SHORT_REPEATS
    return next((choice for choice in choices if 2 * _COMMON * choice[0] <= entries), _SHORT_REPEATS[-1])


def _vocabulary(chance: random.Random) -> list[str]:
    """Words of the lists in random order; long lists go on with compounds."""
    words = [*NOUNS, *ADJECTIVES]
    chance.shuffle(words)
    return words


def _numbered(
    chance: random.Random, words: list[str], *, common: int, uncommon: int, rare: int
) -> tuple[str, tuple[str, ...]]:
    """A shuffled list, and the common words in the order of their first place; takes its words from `words`."""
    chosen = [words.pop() if words else compound(chance) for _ in range(_COMMON + uncommon)]
    entries = chosen[:_COMMON] * common + chosen[_COMMON:] * rare
    chance.shuffle(entries)
    text = " ".join(f"{number}. {word}" for number, word in enumerate(entries, start=1))
    return f"{_CWE_HEAD}\n{text}", tuple(sorted(chosen[:_COMMON], key=entries.index))


def _zipf(total: int) -> list[int]:
    """How often the words of rank 1, 2, ... come, as long as that is at least once."""
    scale = total / (pi**2 / 6)
    ranks = range(1, int(scale ** (1 / _ALPHA)) + 1)
    return [int(scale / rank**_ALPHA) for rank in ranks]


def _coined(chance: random.Random, number: int) -> list[str]:
    words: dict[str, None] = {}
    while len(words) < number:
        words[coined_word(chance)] = None
    return list(words)


_WORKS = ("Bakery", "Brewery", "Foundry", "Ironworks", "Laundry", "Mill", "Press", "Tannery", "Timberyard", "Workshop")
_STAFF = 2  # people for each works: a works is found by its name, not by being the only one
_FEWEST_TOKENS = 12  # that a document may have


@dataclass(frozen=True, slots=True)
class _Person:
    name: str
    city: str
    occupation: str
    thing: str
    employer: str

    @property
    def sentences(self) -> tuple[str, ...]:
        return (
            f"{self.name} lives in {self.city}.",
            f"{self.name} is a {self.occupation} by trade.",
            f"{self.name} owns a {self.thing}.",
            f"The employer of {self.name} is {self.employer}.",
        )


@dataclass(frozen=True, slots=True)
class _Works:
    name: str
    city: str
    founder: str

    @property
    def sentences(self) -> tuple[str, ...]:
        return (f"{self.name} stands in {self.city}.", f"{self.name} was founded by {self.founder}.")


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question with its opened answer, the answer, and the sentences that say it."""

    question: str
    answer: str
    sentences: tuple[str, ...]


def one_hop_sample(request: Request) -> Sample:
    """One of four things about one person."""
    person, _ = _first_works(request)
    lives, trade, owns, employer = person.sentences
    name = person.name
    asked = request.chance("question").choice(
        (
            _Asked(_question(f"In which city does {name} live?", f"{name} lives in"), person.city, (lives,)),
            _Asked(_question(f"What is the trade of {name}?", f"{name} is a"), person.occupation, (trade,)),
            _Asked(_question(f"What does {name} own?", f"{name} owns a"), person.thing, (owns,)),
            _Asked(_question(f"Who employs {name}?", f"The employer of {name} is"), person.employer, (employer,)),
        )
    )
    return _sample(request, asked, [person.sentences])


def two_hop_sample(request: Request) -> Sample:
    """The city of the works that employs one person."""
    person, works = _first_works(request)
    question = _question(
        f"In which city does the employer of {person.name} stand?", f"The employer of {person.name} stands in"
    )
    asked = _Asked(question, works.city, (person.sentences[3], works.sentences[0]))
    return _sample(request, asked, [person.sentences, works.sentences])


def _question(question: str, begun: str) -> str:
    return f"\n\nQuestion: {question}\nAnswer: {begun}"


def _first_works(request: Request) -> tuple[_Person, _Works]:
    """Who is asked about, and their employer."""
    works, staff = next(_all_works(request))
    return staff[0], works


def _others(request: Request) -> Iterator[str]:
    """The documents about colleagues and strangers, without end."""
    for number, (works, staff) in enumerate(_all_works(request)):
        documents = [works.sentences, *(person.sentences for person in staff)]
        yield from (" ".join(sentences) for sentences in (documents if number else documents[2:]))


def _all_works(request: Request) -> Iterator[tuple[_Works, list[_Person]]]:
    """Works and the people whom they employ, without end and the same each time; no name comes twice."""
    chance = request.chance()
    used: set[str] = set()
    while True:
        name = _unused(lambda: f"{surname(chance)} {chance.choice(_WORKS)}", used)
        founder, *staff = (
            _unused(lambda: f"{chance.choice(FIRST_NAMES)} {surname(chance)}", used) for _ in range(_STAFF + 1)
        )
        city = chance.choice(CITIES)
        yield _Works(name, city, founder), [_person(chance, name=person, works=name, city=city) for person in staff]


def _person(chance: random.Random, *, name: str, works: str, city: str) -> _Person:
    """Somebody who lives elsewhere than where they work, so that the one city is not taken for the other."""
    home = chance.choice([other for other in CITIES if other != city])
    return _Person(name, home, chance.choice(OCCUPATIONS), chance.choice(OBJECTS), works)


def _unused(draw: Callable[[], str], used: set[str]) -> str:
    while (name := draw()) in used:
        pass
    used.add(name)
    return name


def _sample(request: Request, asked: _Asked, needed: list[tuple[str, ...]]) -> Sample:
    """The needed documents, in any order, among others; the last of these is cut to fit."""
    chance = request.chance("order")
    documents = [" ".join(sentences) for sentences in needed]
    chance.shuffle(documents)

    def filler(tokens: int) -> list[str]:
        others = SEPARATOR.join(islice(_others(request), tokens // _FEWEST_TOKENS + 1))
        return opening(others, tokens, count_tokens=request.count_tokens, spare=1.0).split(SEPARATOR)

    layout = request.lay_out(
        documents,
        lambda pieces: random_borders(request.chance("places"), len(documents), len(pieces)),
        filler,
        room=request.room((asked.question,)),
    )
    answer = f" {asked.answer}"
    evidence = tuple(sorted(_span(layout.context, sentence) for sentence in asked.sentences))
    new_tokens = request.new_tokens(answer)
    query = Query(asked.question, answer, (asked.answer,), need="any", max_new_tokens=new_tokens, evidence=evidence)
    depth = request.share_before(layout, 0) if len(documents) == 1 else None
    return request.sample(layout.context, (query,), depth=depth)


def _span(context: str, sentence: str) -> Span:
    begin = context.index(sentence)
    return begin, begin + len(sentence)


RULER: dict[str, Callable[[Request], Sample]] = {
    **dict.fromkeys(VARIANTS, retrieval_sample),
    "ruler/vt": tracing_sample,
    "ruler/cwe": common_words_sample,
    "ruler/fwe": frequent_words_sample,
    "ruler/qa_1": one_hop_sample,
    "ruler/qa_2": two_hop_sample,
}
"""The thirteen; all in completion form, and only the essay tasks read the haystack."""
