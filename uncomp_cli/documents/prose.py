"""Prose to measure with when no document is given: plain English sentences from a seeded generator.

Words are drawn from lists, compounded (`harbour-ledger`), and joined by invented names, years and amounts, so the
vocabulary is large and grows with the text, as in a real document. It means nothing and is not for judging answers.
"""

import random

__all__ = ["write_prose"]

_NOUNS = (
    "harbour ledger bridge orchard engine letter winter market signal copper lantern council river valley garden "
    "school tower wagon mill quarry captain teacher doctor miller forest island chapel bakery station hospital library "
    "museum theatre furnace cellar kitchen window ladder barrel blanket compass needle hammer pencil mirror bottle "
    "basket candle saddle anchor feather marble timber leather cotton barley honey pepper silver granite amber thunder "
    "shadow morning evening season journey story promise question answer rumour debt wage price treaty border village"
)
_VERBS = (
    "carried opened measured painted repaired followed answered weighed counted sold bought gathered lifted crossed "
    "guarded mended planted described refused praised lent borrowed inspected delivered copied lost found emptied"
)
_ADJECTIVES = (
    "old narrow quiet heavy crooked patient bright distant wooden frozen careful hollow bitter gentle rusty stubborn "
    "polished generous nameless northern faded sturdy humble restless famous unfinished"
)
_PLACES = "beside behind under near above beyond opposite inside"
_ONSETS = "b br d f g h k l m n p r s st t th v w"
_RIMES = "a an ar e el en i il in o or on u us"
_SENTENCES_A_PARAGRAPH = 6


def write_prose(num_words: int, *, seed: int) -> str:
    """At least `num_words` words of prose in paragraphs; the same seed gives the same text."""
    chance = random.Random(seed)
    paragraphs: list[str] = []
    written = 0
    while written < num_words:
        paragraph = " ".join(_sentence(chance) for _ in range(_SENTENCES_A_PARAGRAPH))
        paragraphs.append(paragraph)
        written += len(paragraph.split())
    return "\n\n".join(paragraphs)


def _sentence(chance: random.Random) -> str:
    """One of four kinds of sentence."""
    kind = chance.randrange(4)
    if kind == 0:
        return f"In {chance.randint(1701, 1999)} {_name(chance)} {_act(chance)}."
    if kind == 1:
        return f"The {_thing(chance)} {_pick(chance, _PLACES)} the {_thing(chance)} belonged to {_name(chance)}."
    if kind == 2:
        return f"{_name(chance)} {_act(chance)}, and {_name(chance)} paid {chance.randint(2, 9999):,} crowns for it."
    return f"Nobody knew why the {_thing(chance)} {_act(chance)} before the {_pick(chance, _NOUNS)} came."


def _act(chance: random.Random) -> str:
    return f"{_pick(chance, _VERBS)} the {_thing(chance)}"


def _thing(chance: random.Random) -> str:
    noun = _pick(chance, _NOUNS)
    compound = f"{_pick(chance, _NOUNS)}-{noun}" if chance.random() < 0.3 else noun
    return f"{_pick(chance, _ADJECTIVES)} {compound}" if chance.random() < 0.6 else compound


def _name(chance: random.Random) -> str:
    syllables = chance.randint(2, 3)
    return "".join(_pick(chance, _ONSETS) + _pick(chance, _RIMES) for _ in range(syllables)).capitalize()


def _pick(chance: random.Random, words: str) -> str:
    return chance.choice(words.split())
