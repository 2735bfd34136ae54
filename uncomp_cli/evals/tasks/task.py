"""What a task asks, and how its sample is brought to the length that was asked for.

A sample is a context and one or more queries whose right answers are known before any model runs. A query opens its
answer (`... for amber mentioned in the text is`), so that the reference continues the prompt at once and can be scored
by likelihood as well as by what a model writes.

Subtask, tokens, index and seed determine a sample, given the haystack: every random choice comes from a generator made
of them. Facts stand between the pieces of a filler; the filler takes what the facts and the longest question leave.
"""

import hashlib
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Literal

from uncomp_cli.errors import UsageError
from uncomp_cli.evals.tasks.haystack import SEPARATOR, CountTokens, Haystack

Regime = Literal["aware", "agnostic"]
"""Whether the question is seen when the cache is compressed. The two are never averaged, ranked or plotted together."""

JudgeName = Literal["answers", "fidelity", "perplexity", "evidence", "conversation"]
"""How a task's samples are judged: a key of `JUDGES` (judges/evaluation.py)."""

Span = tuple[int, int]
"""A character range [begin, end) of a context."""


@dataclass(frozen=True, slots=True)
class Query:
    """One thing asked of a context.

    `question` ends where the answer begins; `answer` is the reference continuation, its leading space included, for
    likelihood. Written answers are searched for the strings `accepted`: the score is the share that is found, or with
    `need` "any" 1 when one is found. `evidence` are the ranges of the context that the answer stands in. `whole`: the
    written answer is compared as a whole too, so that it is written to its end. Of `choices` the likeliest is judged.
    An `instruction` follows the question where the model has a chat format: one without follows none.
    """

    question: str
    answer: str
    accepted: tuple[str, ...]
    need: Literal["all", "any"] = "all"
    max_new_tokens: int = 32
    evidence: tuple[Span, ...] = ()
    whole: bool = False
    choices: tuple[str, ...] = ()
    instruction: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """Number `index` of a subtask (`needle/uuid`).

    `tokens` is the length that was asked for, context and longest question together; `depth` in [0, 1] is where the
    evidence stands, None when it stands in several places. `system` makes it a chat: the context is the user's
    document, under that system prompt ("" is the model's own); None is plain text to continue. `control` is another
    context of the same length that has nothing to do with the answer, for tasks that need one.
    """

    subtask: str
    index: int
    tokens: int
    context: str
    queries: tuple[Query, ...]
    depth: float | None = None
    system: str | None = None
    control: str | None = None

    @property
    def task(self) -> str:
        """The task that the subtask belongs to."""
        return self.subtask.partition("/")[0]

    @property
    def sha256(self) -> str:
        """The digest of what is read, and of the first answer."""
        parts = (self.context, self.queries[0].question, self.queries[0].answer, repr(self.system))
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()


Filler = Callable[[int], list[str]]
"""Pieces of at most so many tokens."""

Places = Callable[[list[str]], list[int]]
"""For every fact, in rising order, the number of the piece that it stands before; one past the last is the end."""

_GOLDEN = (5**0.5 - 1) / 2
_LEAST_FILLER_TOKENS = 48
_SPARE_ANSWER_TOKENS, _MOST_NEW_TOKENS = 8, 96


@dataclass(frozen=True, slots=True)
class Layout:
    """A context, the character range of each fact in it, and the filler's pieces with the borders of the facts."""

    context: str
    spans: tuple[Span, ...]
    pieces: tuple[str, ...]
    borders: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Request:
    """Sample `index` of a subtask, `tokens` long (context and longest question), and what to make it of.

    `drawn_as` is the subtask whose random choices it has, where they are not its own.
    """

    subtask: str
    index: int
    tokens: int
    haystack: Haystack = field(repr=False)
    count_tokens: CountTokens
    seed: int
    drawn_as: str | None = None

    def chance(self, purpose: str = "facts") -> random.Random:
        """A generator that gives the same numbers each time it is made."""
        return random.Random(f"{self.drawn_as or self.subtask} {self.tokens} {self.index} {self.seed} {purpose}")

    @property
    def place(self) -> float:
        """Where in the haystack to read, in [0, 1): steps of the golden ratio, so that few samples share their text."""
        begin = random.Random(f"{self.drawn_as or self.subtask} {self.tokens} {self.seed} place").random()
        return (begin + self.index * _GOLDEN) % 1

    def new_tokens(self, answer: str) -> int:
        """How much a model may write where `answer` is due."""
        return min(_MOST_NEW_TOKENS, self.count_tokens(answer) + _SPARE_ANSWER_TOKENS)

    def room(self, questions: Iterable[str], *, system: str = "") -> int:
        """Tokens that the context may have."""
        longest = max(self.count_tokens(question) for question in questions)
        return self.tokens - longest - (self.count_tokens(system) if system else 0)

    def text_room(self, questions: Iterable[str], *, system: str = "") -> int:
        """`room` for a context that is an excerpt alone; UsageError where hardly any is left."""
        room = self.room(questions, system=system)
        if room < _LEAST_FILLER_TOKENS:
            raise self.too_short(self.tokens - room + _LEAST_FILLER_TOKENS)
        return room

    def share_before(self, layout: Layout, fact: int) -> float:
        """Share of the filler's tokens that stand before a fact."""
        weights = _weights(layout.pieces, self.count_tokens)
        return sum(weights[: layout.borders[fact]]) / sum(weights)

    def excerpt(self, tokens: int) -> list[str]:
        """A filler: the haystack's text."""
        return self.haystack.excerpt_at(self.place, tokens=tokens, count_tokens=self.count_tokens)

    def lay_out(
        self, facts: Sequence[str], places: Places, filler: Filler, *, room: int, separator: str = SEPARATOR
    ) -> Layout:
        """`facts` among the pieces of `filler`, `room` tokens together at most; UsageError where they do not fit."""
        filled = room - sum(self.count_tokens(separator + fact) for fact in facts)
        while True:
            if filled < _LEAST_FILLER_TOKENS:
                raise self.too_short(self.tokens - filled + _LEAST_FILLER_TOKENS)
            layout = _lay(facts, places, filler(filled), separator)
            excess = self.count_tokens(layout.context) - room
            if excess <= 0:
                return layout
            filled -= excess

    def too_short(self, needed: int) -> UsageError:
        """The error of a length in which the subtask's facts have no room."""
        return UsageError(
            f"{self.subtask} needs about {needed:,} tokens, {self.tokens:,} were asked for",
            hint=f"--tokens {-(-needed // 100) * 100} or more, or other --tasks",
        )

    def sample(
        self, context: str, queries: Iterable[Query], *, depth: float | None = None, system: str | None = None
    ) -> Sample:
        """The sample that was asked for."""
        return Sample(self.subtask, self.index, self.tokens, context, tuple(queries), depth=depth, system=system)


def fill(pieces: Iterable[str], tokens: int, *, count_tokens: CountTokens, separator: str = SEPARATOR) -> list[str]:
    """As many of `pieces`, from the first, as `tokens` tokens hold; `pieces` may have no end."""
    taken: list[str] = []
    for piece in pieces:
        tokens -= count_tokens(separator + piece)
        if tokens < 0:
            break
        taken.append(piece)
    return taken


def border_at(depth: float, pieces: Sequence[str], *, count_tokens: CountTokens) -> int:
    """The border that is nearest to `depth`, a share of the tokens."""
    before = list(accumulate(_weights(pieces, count_tokens), initial=0))
    return min(range(len(before)), key=lambda border: abs(before[border] - depth * before[-1]))


def random_borders(chance: random.Random, facts: int, pieces: int) -> list[int]:
    """Borders in rising order, all different where there are enough."""
    borders = range(pieces + 1)
    return sorted(chance.sample(borders, facts) if facts <= len(borders) else chance.choices(borders, k=facts))


def _weights(pieces: Sequence[str], count_tokens: CountTokens) -> list[int]:
    return [count_tokens(SEPARATOR + piece) for piece in pieces]


def _lay(facts: Sequence[str], places: Places, pieces: list[str], separator: str) -> Layout:
    borders = places(pieces)
    parts: list[tuple[str, bool]] = []
    for number in range(len(pieces) + 1):
        parts += [(fact, True) for fact, border in zip(facts, borders, strict=True) if border == number]
        parts += [(piece, False) for piece in pieces[number : number + 1]]
    begins = accumulate((len(text) + len(separator) for text, _ in parts), initial=0)
    spans = tuple((begin, begin + len(text)) for begin, (text, is_fact) in zip(begins, parts, strict=False) if is_fact)
    return Layout(separator.join(text for text, _ in parts), spans, tuple(pieces), tuple(borders))
