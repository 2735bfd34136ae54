"""The text that facts are hidden in: a user's files or generated prose, in paragraphs, and excerpts of it.

An excerpt is consecutive text from a random place, never wrapped around, never repeated: a haystack that is too short
is refused. Long paragraphs of an excerpt are cut at sentence ends, so that a fact can stand almost anywhere in it.
"""

import hashlib
import random
import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from pathlib import Path

from uncomp_cli.documents.collection import Document
from uncomp_cli.documents.prose import write_prose
from uncomp_cli.errors import UsageError

CountTokens = Callable[[str], int]

SEPARATOR = "\n\n"
_SHORTEST_CHARS = 40
_PARAGRAPH_CHARS = 1600  # a text without blank lines has places to begin at, too
_PIECE_CHARS = 240  # about 55 tokens: a border between pieces is never far from the depth that is asked for
GENERATED_TOKENS = 60_000
_SPARE = 0.02  # of the length, rather left empty than filled with half a sentence
# Ends of sentences, then of clauses, then of words: each is used only where the one before it leaves too much.
_ENDS = (
    re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"'”’)])\s+|\n\n"),
    re.compile(r"(?<=[,;:.!?])\s+|\n\n"),
    re.compile(r"\s+"),
)


@dataclass(frozen=True, slots=True)
class Haystack:
    """Paragraphs of a text; `sha256` is that of the paragraphs, so it tells whether two runs read the same."""

    name: str
    sha256: str
    paragraphs: tuple[str, ...] = field(repr=False)

    @classmethod
    def of_texts(cls, name: str, texts: Iterable[str]) -> "Haystack":
        """The paragraphs of `texts`: split at blank lines, wrapped lines joined, headings and scraps left out.

        A paragraph of more than a page becomes several.
        """
        parts = (" ".join(part.split()) for text in texts for part in re.split(r"\n\s*\n", text))
        kept = (part for part in parts if len(part) >= _SHORTEST_CHARS)
        paragraphs = tuple(piece for part in kept for piece in _cut(part, _PARAGRAPH_CHARS))
        return cls(name, hashlib.sha256(SEPARATOR.join(paragraphs).encode()).hexdigest(), paragraphs)

    @classmethod
    def of_documents(cls, documents: Sequence[Document]) -> "Haystack":
        """The texts of files, named by the first three."""
        names, more = [Path(one.path).name for one in documents[:3]], len(documents) - 3
        name = f"{', '.join(names)} and {more} more" if more > 0 else ", ".join(names)
        return cls.of_texts(name, [one.text for one in documents])

    @classmethod
    def generated(cls, *, seed: int, tokens: int) -> "Haystack":
        """Generated prose of at least `tokens` tokens; a word is never less than one."""
        return cls.of_texts(f"generated prose, seed {seed}", [write_prose(tokens, seed=seed)])

    @classmethod
    def generated_for(cls, longest: int, *, seed: int) -> "Haystack":
        """Generated prose for samples of up to `longest` tokens: the same for all that are not very long."""
        return cls.generated(seed=seed, tokens=max(GENERATED_TOKENS, 4 * longest))

    def excerpt(self, chance: random.Random, *, tokens: int, count_tokens: CountTokens) -> list[str]:
        """`excerpt_at` a random place."""
        return self.excerpt_at(chance.random(), tokens=tokens, count_tokens=count_tokens)

    def excerpt_at(self, place: float, *, tokens: int, count_tokens: CountTokens) -> list[str]:
        """Consecutive pieces of at most `tokens` tokens when joined by blank lines, and hardly fewer.

        `place` in [0, 1) is where they begin, from the first paragraph to the last that has as much text behind it.
        Raises UsageError when the haystack has fewer tokens than that.
        """
        before = [0, *accumulate(paragraph_tokens(self.paragraphs, count_tokens))]
        if before[-1] < tokens:
            raise UsageError(
                f"haystack {self.name!r} has {before[-1]:,} tokens, {tokens:,} are needed",
                hint="name more text with --file, or use a smaller --tokens",
            )
        start = int(place * bisect_right(before, before[-1] - tokens))
        end = bisect_left(before, before[start] + tokens + len(SEPARATOR))
        pieces = [piece for paragraph in self.paragraphs[start:end] for piece in _cut(paragraph, _PIECE_CHARS)]
        return opening(SEPARATOR.join(pieces), tokens, count_tokens=count_tokens).split(SEPARATOR)


@lru_cache(maxsize=4)
def paragraph_tokens(paragraphs: tuple[str, ...], count_tokens: CountTokens) -> tuple[int, ...]:
    """Tokens of each paragraph and the blank line before it; kept, since every sample of a run asks again."""
    return tuple(count_tokens(SEPARATOR + paragraph) for paragraph in paragraphs)


def opening(text: str, tokens: int, *, count_tokens: CountTokens, spare: float = _SPARE) -> str:
    """The longest beginning of `text` within `tokens` tokens.

    It ends with a sentence; where that leaves more than the share `spare` empty, with a clause; else with a word.
    """
    best = ""
    for pattern in _ENDS:
        ends = [*(match.start() for match in pattern.finditer(text)), len(text)]
        fitting = bisect_right(ends, tokens, key=lambda end: count_tokens(text[:end]))
        best = text[: ends[fitting - 1]] if fitting else best
        if best and count_tokens(best) >= tokens * (1 - spare):
            break
    return best


def closing(text: str, tokens: int, *, count_tokens: CountTokens, spare: float = _SPARE) -> str:
    """The longest end of `text` within `tokens` tokens; it begins as `opening` ends."""
    best = ""
    for pattern in _ENDS:
        begins = [0, *(match.end() for match in pattern.finditer(text))]
        first = bisect_left(begins, -tokens, key=lambda begin: -count_tokens(text[begin:]))
        best = text[begins[first] :] if first < len(begins) else best
        if best and count_tokens(best) >= tokens * (1 - spare):
            break
    return best


def _cut(text: str, limit: int, *, kind: int = 0) -> list[str]:
    """`text` in pieces of at most `limit` characters, cut as late as sentences, clauses, words allow."""
    if len(text) <= limit or kind == len(_ENDS):
        return [text]
    pieces: list[str] = []
    for part in _ENDS[kind].split(text):
        for unit in _cut(part, limit, kind=kind + 1):
            if pieces and len(pieces[-1]) + 1 + len(unit) <= limit:
                pieces[-1] += f" {unit}"
            else:
                pieces.append(unit)
    return pieces
