"""RULER's aggregation tasks (arXiv 2404.06654, section 3): answers that no single place of the context holds.

`cwe`, common words: a numbered list with ten words that come 30 times among words that come 3 times. That needs about
4,096 tokens; below, as in RULER's released settings, 6 times against once; where even that is more than half of the
list, 5, 4, 3 or 2 times against once. A short worked example stands first.
`fwe`, frequent words: coined words, the word of rank k about N k^-2 / zeta(2) times, the first rank drawn as dots that
are to be passed over; the next three are asked for.
"""

import random
from collections.abc import Callable
from math import pi

from uncomp_cli.evals.tasks.facts import ADJECTIVES, NOUNS, coined_word, compound, list_items
from uncomp_cli.evals.tasks.task import Query, Request, Sample

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
    chosen = [_take(chance, words) for _ in range(_COMMON + uncommon)]
    entries = chosen[:_COMMON] * common + chosen[_COMMON:] * rare
    chance.shuffle(entries)
    text = " ".join(f"{number}. {word}" for number, word in enumerate(entries, start=1))
    return f"{_CWE_HEAD}\n{text}", tuple(sorted(chosen[:_COMMON], key=entries.index))


def _take(chance: random.Random, words: list[str]) -> str:
    return words.pop() if words else compound(chance)


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
