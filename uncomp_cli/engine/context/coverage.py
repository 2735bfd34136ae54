"""Coverage: which passages a question seems to be about, by its words, whatever is left of them in the cache.

What was evicted cannot draw attention, so the cache alone cannot say that something is missing. The text can:

    score(passage) = sum over the question's words w in it of idf(w) · tf (k + 1) / (tf + k (1 - b + b · length/mean))

(BM25, Robertson & Zaragoza 2009, eq. 3.15, k = 1.2, b = 0.75). A word that is in many passages points nowhere: those
in more than one of COMMON passages do not count. Words are compared as they are written, without their case; a
question in other words than the text's finds nothing here.

The best PASSAGES are missing when their tokens are held by less than SURVIVES of the heads on average.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

__all__ = ["matching_passages", "missing_passages", "tokens_of"]

_WORD = re.compile(r"\w+")
_SENTENCE = re.compile(r"[^.!?。！？\n]+(?:[.!?。！？]+|\n|$)")
_SATURATION, _LENGTH_SHARE = 1.2, 0.75
_COMMON = 10
"""A word in more than a tenth of the passages, and in more than two, points nowhere."""
_PASSAGES = 3
_LONGEST_TOKENS = 64
SURVIVES = 0.8


@dataclass(frozen=True, slots=True)
class _Passage:
    first: int
    last: int
    words: Counter[str]


def matching_passages(text: str, question: str) -> list[tuple[int, int]]:
    """The character ranges of sentences of `text` that share telling words with `question`, the best first."""
    passages = list(_passages(text))
    asked = set(_words(question))
    if not passages or not asked:
        return []
    frequency = Counter(word for passage in passages for word in passage.words if word in asked)
    telling = {word: count for word, count in frequency.items() if count <= max(2, len(passages) / _COMMON)}
    mean = sum(passage.words.total() for passage in passages) / len(passages)
    scored = [(_score(passage, telling, len(passages), mean), passage) for passage in passages]
    found = sorted((pair for pair in scored if pair[0] > 0), key=lambda pair: -pair[0])
    return [(passage.first, passage.last) for _, passage in found]


def missing_passages(text: str, question: str, *, offsets: Tensor, survival: Tensor) -> list[range]:
    """The tokens of passages that `question` points at and that were mostly evicted, a long one's beginning.

    offsets [S, 2] are the tokens' characters in `text`, -1 for none; survival [N], N <= S, of those that were read.
    """
    found = []
    for chars in matching_passages(text, question)[:_PASSAGES]:
        span = tokens_of(offsets, chars)
        if 0 < span.stop <= len(survival) and float(survival[span.start : span.stop].mean()) < SURVIVES:
            found.append(range(span.start, min(span.stop, span.start + _LONGEST_TOKENS)))
    return found


def tokens_of(offsets: Tensor, chars: tuple[int, int]) -> range:
    """The tokens that share a character with `chars`, by the characters [S, 2] of each, -1 for none."""
    inside = (offsets[:, 0] >= 0) & (offsets[:, 1] > chars[0]) & (offsets[:, 0] < chars[1])
    found = inside.nonzero().flatten()
    return range(int(found[0]), int(found[-1]) + 1) if len(found) else range(0)


def _passages(text: str) -> Iterator[_Passage]:
    for match in _SENTENCE.finditer(text):
        words = Counter(_words(match.group()))
        if words:
            yield _Passage(match.start(), match.end(), words)


def _words(text: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(text)]


def _score(passage: _Passage, telling: dict[str, int], count: int, mean: float) -> float:
    length = 1 - _LENGTH_SHARE + _LENGTH_SHARE * passage.words.total() / mean
    total = 0.0
    for word, frequency in telling.items():
        times = passage.words[word]
        rarity = math.log(1 + (count - frequency + 0.5) / (frequency + 0.5))
        total += rarity * times * (_SATURATION + 1) / (times + _SATURATION * length)
    return total
