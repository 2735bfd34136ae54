"""RULER's question answering (arXiv 2404.06654, section 3) on generated facts: documents among documents of their kind.

RULER takes SQuAD and HotpotQA; people, works and towns of our own cannot have been read in training. `qa_1` asks what
one sentence says, `qa_2` what follows from two sentences of two documents: the town of a person's employer.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from uncomp_cli.evals.tasks.facts import CITIES, FIRST_NAMES, OBJECTS, OCCUPATIONS, surname
from uncomp_cli.evals.tasks.haystack import SEPARATOR, opening
from uncomp_cli.evals.tasks.task import Query, Request, Sample, Span, random_borders

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
