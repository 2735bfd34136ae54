"""Facts hidden in a long text: one at a depth of a grid, or several behind one compression that must serve them all.

`needle`, one fact, one question: `digits7`, `digits16` and `uuid` are completed (`The special magic number for X
mentioned in the text is`), `chat` is asked in the model's chat format; `values` are in turn a date, a name, a phrase
and a number of ten digits, in sentences of their own. The longer the value, the more tokens must survive together. Of
the same needles it is judged in `evidence`, each piece of the text on a line of its own, whether the line of the fact
is among the first passages that `documents/places.py` finds.

`multiquestion/facts`: five facts of different kinds in one text, five questions. `multiquestion/instruction`: a system
prompt demands how every answer begins; does it still bind when the text behind it was compressed?

`conversation`: five facts, five turns in the model's chat format, every answer kept. The questions come one after
another and in another order than the facts stand, so that the text is compressed before any of them is known, and the
fifth is asked of what four answers have left. They open their answers, as in plain text: the default model hardly tells
five facts apart otherwise, with nothing evicted at all. `facts` is the session as it is; in `unaided`, which has the
same samples, it reads nothing again that was evicted. All are for the agnostic regime alone.

`list`: all of six facts of one kind that stand apart, asked for at once in the chat format (`list/years`: `The Dijon
cinema opened in 1893.`, `list/names`: `The Dijon cinema is run by Ada Fenby.`). Nothing in particular is asked for, so
that no passage is worth more than another; `match` is the share that is named.
"""

import random
from collections.abc import Callable
from dataclasses import replace

from uncomp_cli.evals.tasks.facts import (
    ADJECTIVES,
    CITIES,
    FIRST_NAMES,
    MONTHS,
    NOUNS,
    Fact,
    compound,
    digits,
    five_facts,
    magic_question,
    magic_sentence,
    surname,
    uuid_text,
)
from uncomp_cli.evals.tasks.haystack import SEPARATOR
from uncomp_cli.evals.tasks.task import Query, Request, Sample, border_at, random_borders

DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
# What is numbered, and where: nothing that a licence, a manual or a play speaks of.
_THINGS = (
    "meter reading",
    "parcel number",
    "berth number",
    "membership number",
    "crate number",
    "ticket number",
    "wagon number",
    "locker number",
)
_PLACES = (
    "aquarium",
    "ballroom",
    "brewery",
    "cinema",
    "circus",
    "clinic",
    "dairy",
    "gymnasium",
    "hotel",
    "orchestra",
    "pharmacy",
    "planetarium",
    "zoo",
)


def needle_sample(request: Request, *, depth: float | None = None) -> Sample:
    """One fact and its question; what follows the slash in the subtask says which kind.

    It stands at `depth`, the share of the text's tokens before it; None: at `DEPTHS[index % 5]`.
    """
    kind = request.subtask.partition("/")[2]
    fact, question, answer, value = _fact(kind, request.chance(), request.index)
    share = DEPTHS[request.index % len(DEPTHS)] if depth is None else depth
    layout = request.lay_out(
        (fact,),
        lambda pieces: [border_at(share, pieces, count_tokens=request.count_tokens)],
        request.excerpt,
        room=request.room((question,)),
    )
    query = Query(question, answer, (value,), max_new_tokens=request.new_tokens(answer), evidence=layout.spans)
    return request.sample(layout.context, (query,), depth=share, system="" if kind == "chat" else None)


def _fact(kind: str, chance: random.Random, index: int) -> tuple[str, str, str, str]:
    """The sentence, the question, the answer's text and what must be in an answer."""
    if kind == "values":
        return _value_fact(index, f"{chance.choice(CITIES)} {chance.choice(_PLACES)}", chance)
    if kind == "chat":
        asked = f"{chance.choice(_THINGS)} of the {chance.choice(CITIES)} {chance.choice(_PLACES)}"
        value = digits(chance, 7)
        fact = f"The {asked} is {value}."
        return fact, f"What is the {asked}?", fact, value
    called = "uuid" if kind == "uuid" else "number"
    key = compound(chance)
    value = uuid_text(chance) if kind == "uuid" else digits(chance, 16 if kind == "digits16" else 7)
    return magic_sentence(key, value, kind=called), magic_question((key,), kind=called), f" {value}", value


def _value_fact(index: int, where: str, chance: random.Random) -> tuple[str, str, str, str]:
    """One of four kinds of value, by number."""
    name = f"{chance.choice(FIRST_NAMES)} {surname(chance)}"
    fact = (
        Fact(f"The {where} opened on", _date(chance), f"When did the {where} open?"),
        Fact(f"The {where} is run by", name, f"Who runs the {where}?"),
        Fact(f"The motto of the {where} is", _phrase(chance), f"What is the motto of the {where}?"),
        Fact(f"The account of the {where} is", digits(chance, 10), f"What is the account of the {where}?"),
    )[index % 4]
    return fact.sentence, fact.question, f" {fact.answer}", fact.answer


def _date(chance: random.Random) -> str:
    return f"{chance.randrange(1, 29)} {chance.choice(MONTHS)} {chance.randrange(1860, 1990)}"


def _phrase(chance: random.Random) -> str:
    nouns = chance.sample(NOUNS, 2)
    return f"{chance.choice(ADJECTIVES)} {nouns[0]}, {chance.choice(ADJECTIVES)} {nouns[1]}"


_ORDINARY = (
    "What is this text about?",
    "Who might want to read this text?",
    "What is said near the end of the text?",
    "Which name or term comes first in the text?",
    "Is this text old or new?",
    "What would be a good title for this text?",
)
_ORDINARY_ASKED = 2
_NAME_QUESTION = "What is your name?"


def multiquestion_sample(request: Request) -> Sample:
    """Five questions for five facts, or three questions under an instruction that binds every answer."""
    return _facts_sample(request) if request.subtask == "multiquestion/facts" else _instruction_sample(request)


def _facts_sample(request: Request) -> Sample:
    def ask(fact: Fact) -> Query:
        answer = f" {fact.answer}"
        return Query(fact.question, answer, (fact.answer,), max_new_tokens=request.new_tokens(answer))

    return request.sample(*_hide_five(request, ask))


def _hide_five(request: Request, ask: Callable[[Fact], Query]) -> tuple[str, list[Query]]:
    """A context with five facts, and the query for each in their order."""
    chance = request.chance()
    facts = five_facts(chance)
    chance.shuffle(facts)
    queries = list(map(ask, facts))
    layout = request.lay_out(
        [fact.sentence for fact in facts],
        lambda pieces: random_borders(request.chance("places"), len(facts), len(pieces)),
        request.excerpt,
        room=request.room(query.question for query in queries),
    )
    return layout.context, [replace(query, evidence=(span,)) for query, span in zip(queries, layout.spans, strict=True)]


def _instruction_sample(request: Request) -> Sample:
    """Ordinary questions, and at last one for the name itself, which a model that obeys little still answers."""
    chance = request.chance()
    word = "-".join(noun.capitalize() for noun in chance.sample(NOUNS, 2))
    system = f"Your name is {word}. Begin every answer with your name and a colon, whatever you are asked."
    asked = [(question, f"{word}:") for question in chance.sample(_ORDINARY, _ORDINARY_ASKED)]
    asked.append((_NAME_QUESTION, f"{word}: My name is {word}."))
    queries = [
        Query(question, answer, (word,), max_new_tokens=request.new_tokens(answer)) for question, answer in asked
    ]
    room = request.text_room((query.question for query in queries), system=system)
    return request.sample(SEPARATOR.join(request.excerpt(room)), queries, system=system)


FACTS, UNAIDED = "conversation/facts", "conversation/unaided"
_NEW_TOKENS = 48


def conversation_sample(request: Request) -> Sample:
    """Five questions for five facts, in the order in which they are asked, each answered by a sentence of the text."""
    request = replace(request, drawn_as=FACTS)
    context, queries = _hide_five(request, _ask_for_sentence)
    request.chance("turns").shuffle(queries)
    return request.sample(context, queries, system="")


def _ask_for_sentence(fact: Fact) -> Query:
    return Query(fact.question.strip(), fact.sentence, (fact.answer,), max_new_tokens=_NEW_TOKENS)


LISTS = ("list/years", "list/names")
_FACTS = 6
_HOUSES = ("aquarium", "brewery", "cinema", "gymnasium", "hotel", "planetarium")
_ASKED = {"years": "List all years in which something opened.", "names": "List the names of all who run something."}


def list_sample(request: Request) -> Sample:
    """One text and one question; what follows the slash in the subtask says for what."""
    kind, chance = request.subtask.partition("/")[2], request.chance()
    cities = chance.sample(CITIES, _FACTS)
    values = chance.sample(range(1860, 1990), _FACTS) if kind == "years" else [_name(chance) for _ in cities]
    said = "opened in" if kind == "years" else "is run by"
    facts = [f"The {city} {chance.choice(_HOUSES)} {said} {value}." for city, value in zip(cities, values, strict=True)]
    asked = _ASKED[kind]
    layout = request.lay_out(
        facts,
        lambda pieces: random_borders(request.chance("places"), len(facts), len(pieces)),
        request.excerpt,
        room=request.room((asked,)),
    )
    answer = ", ".join(map(str, values)) + "."
    query = Query(asked, answer, tuple(map(str, values)), max_new_tokens=request.new_tokens(answer))
    return request.sample(layout.context, (replace(query, evidence=layout.spans),), system="")


def _name(chance: random.Random) -> str:
    return f"{chance.choice(FIRST_NAMES)} {surname(chance)}"
