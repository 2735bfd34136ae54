"""Telling words: how much of what a question asks for stands in a text, and how close together.

    weight(word) = Σ ln(2 + id) over its tokens    ids of a vocabulary rise as what they stand for becomes rarer, and
                                                   names are of several tokens; twice that for a number and a word
                                                   with a capital inside a sentence; nothing for an asking word
    share(text)  = Σ weight of the words in it / Σ weight of all; two words are the same when they begin with the same
                   STEM letters (found, founded, founder), accents apart
    together     = the largest share of two neighbouring sentences of the text

A question for the `whole` of a text, a summary or a list, tells nothing by its words, nor does what is said of the
conversation ("thanks", "say it shorter"): it is known by a word for one of these, or has none but asking words and such
as are for texts and talk. All these words are English: a question without one that marks English gets `together` 1.

Byte pairs are numbered in the order in which they were merged, the most frequent ones first (Sennrich et al. 2016).
Meaning is not looked at: a question in quite other words than the text's is not found.
"""

import math
import re
import unicodedata
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import pairwise

from tokenizers import Tokenizer

from uncomp_cli.engine.context.recall import sentences, words_of

STEM, _NAME = 5, 2
_GENERAL = words_of(
    "text document article file passage story about main key topic topics theme themes point points content contents "
    "title mentioned "
    "thank thanks hello hi hey bye goodbye good morning evening welcome sorry pardon yes yeah no ok okay great "
    "perfect nice fine sure certain right wrong correct true false helpful useful interesting enough "
    "say says said saying mean means meant ask asked asking answer answers answered answering reply question "
    "questions repeat rephrase reword rewrite elaborate clarify translate shorten simplify continue understand "
    "understood think thought believe know go going try show check quote read look make put get let see talk speak "
    "forget mind help need want sound sounds "
    "example examples word words sentence sentences paragraph paragraphs line lines page pages table bullet bullets "
    "detail details sense reason source part bit thing things something anything everything nothing else rest lot "
    "short shorter brief briefly long longer simple simpler simply plain easy easier clear clearer exact exactly "
    "specific precise other others another same different again once before after first last previous earlier next "
    "now then"
)
"""Words for texts, and those of a conversation about what was said in it."""
_ASKING = words_of(
    "a an the this that it its there of in on at to for from by with and or is are was were do does did has have had "
    "can could will would who whom whose what when where which why how much many i me my you your tell describe "
    "explain give write please "
    "he him his she her they them their we us our these those be been being am might should must as if but because "
    "than into up out over like also too just really actually already still only very so not all any some more most "
    "less few s t m re ve ll d don doesn didn isn wasn aren"
)
"""Words that hold a question together."""
_ENGLISH = words_of("the of it that this who whom whose what when where which why how did does are were")
"""Words of English questions that are hardly ones of another language: what tells nothing is known in English alone."""
_OPENING = re.compile(r"(?:^|[!?]|[a-z]{3}\.)\W*(\w+)")
"""The first word of a sentence, where a capital tells nothing; "Mr." and "St." end none."""
_RUN_ON = re.compile(r"[\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
"""Scripts without spaces between words: whole sentences would be words, and stand in no text."""
_WHOLE = re.compile(
    r"(?:^|[.!?:;,]\s*|\bplease\s+)(?:list|enumerate|name\s+(?:all|every|each)\b)|\b(?:summar|overview|outline|gist\b|tl;?dr\b)"
    r"|\babstract\s+of\b",
    re.IGNORECASE,
)
"""Of a question for all of a text: an order to list, or a word for a summary."""

_MANNER = re.compile(
    r"\b(?:in|into|to)\s+(?:Arabic|Chinese|Czech|Danish|Dutch|English|Finnish|French|German|Greek|Hindi|Italian|Japanese"
    r"|Korean|Norwegian|Polish|Portuguese|Russian|Spanish|Swedish|Turkish|Ukrainian)\b"
    r"|\b(?:in|into|as|with)\s+(?:\w+\s+){0,2}?(?:\d+|one|two|three|four|five|ten)\s+(?:\w+\s+)?"
    r"(?:words?|sentences?|lines?|points?|paragraphs?|bullets?)\b",
    re.IGNORECASE,
)
"""How an answer is wished: its language, its length."""


def rarity(encoder: Tokenizer, word: str) -> float:
    """How much a word tells by itself, by the numbers of its tokens."""
    return sum(math.log(2 + number) for number in encoder.encode(f" {word}", add_special_tokens=False).ids)


@dataclass(frozen=True, slots=True)
class Telling:
    """What a question's words tell, by their stems.

    `together` is the largest share of two neighbouring sentences of its text. `whole`: it asks for all of a text, and
    for nothing in particular.
    """

    words: dict[str, float]
    together: float
    whole: bool = False

    @classmethod
    def of(cls, question: str, text: str, weight: Callable[[str], float]) -> "Telling":
        """Of a question about a text."""
        whole = bool(_WHOLE.search(question))
        asked = {} if whole or _RUN_ON.search(question) else _named(question)
        words = {word[:STEM]: weight(word) * (_NAME if name else 1) for word, name in asked.items()}
        found = [words.keys() & stems(sentence) for sentence in sentences(text)]
        pairs = [*(first | second for first, second in pairwise(found)), *found[:1]]
        together = max((_part(words, one) for one in pairs), default=0.0) if _has(question, _ENGLISH) else 1.0
        wished = bool(_MANNER.search(question)) or _has(question, _GENERAL)
        return cls(words, together, whole or (wished and not words))

    def share(self, text: str) -> float:
        """How much of it stands in another text."""
        return _part(self.words, stems(text))


def _named(question: str) -> dict[str, bool]:
    """The words of a question that are no asking words, and whether each is written as a name or a number."""
    question = _plain(_MANNER.sub("", question))
    written = re.findall(r"\w+", question)
    capitals = {word for word in written if word[0].isupper()}
    inside = capitals.difference(_OPENING.findall(question)) if any(word[0].islower() for word in written) else set()
    names = {word.casefold() for word in written if word[0].isdigit() or word in inside}
    silent = {*_ASKING, *({*_GENERAL} - names)}  # Mr Long, the Good Word
    return {word: word in names for word in words_of(question) if word not in silent}


def _has(question: str, words: Collection[str]) -> bool:
    return any(word in words for word in words_of(question))


def stems(text: str) -> set[str]:
    """How the words of a text begin."""
    return {word[:STEM] for word in words_of(_plain(text))}


def _plain(text: str) -> str:
    """Without what people leave out when they type: accents, and the marks of _Macbeth_ and max_tokens."""
    letters = (one for one in unicodedata.normalize("NFD", text) if not unicodedata.combining(one))
    return unicodedata.normalize("NFC", "".join(letters)).replace("_", " ")


def _part(words: dict[str, float], found: Collection[str]) -> float:
    """The share of what `words` tell that those `found` do; all where none tells anything."""
    total = sum(words.values())
    return sum(tells for word, tells in words.items() if word in found) / total if total > 0 else 1.0
