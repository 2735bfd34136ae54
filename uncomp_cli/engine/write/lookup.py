"""Prompt lookup: answers about a text copy from it, so its own words are guesses at what comes next.

    guess    the latest place where the text, or the answer so far, has what the answer ends in, the longest such end;
             what follows there, MOST_GUESSES tokens at most
    try      the latest token and the guesses are rows of one step, which reads the weights once for all
    keep     as many guesses as are what is chosen from the logits before them, which is how an answer is written
             anyway: with a temperature each token is drawn as ever, and a guess is kept with its own probability
             (Leviathan et al., arXiv 2211.17192, for a guess that is certain). The rest leaves the cache, and nobody
             has been told of it

A row more costs a part of a step; while guesses bring less than that, none are made (`Lookup.learn`). Saxena, Prompt
lookup decoding, 2023; Yang et al., arXiv 2304.04487.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.cache.softmax import Form
from uncomp_cli.engine.forward.attention import AppendState, OnQuery

MOST_GUESSES = 4
_SHORTEST, _LONGEST = 2, 16
"""Tokens that must be the same, and that are looked at."""
_ROW_COST = 0.2
"""A row more, in steps of one row (measured: 4 rows 1.6, 8 rows 2.8 of a 135M model in 4 bits, 2 cores of an EPYC)."""
_FADES = 0.2
_FIRST_GAIN = 0.5
_REST, _LONGEST_REST = 16, 256
"""Tokens for which nothing is guessed when it did not pay, twice as many each time."""


class Lookup:
    """Guesses at one answer to a text of `ids`; `guessed` and `accepted` count."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids, self._count = np.array(ids, dtype=np.int64), len(ids)
        self.guessed = self.accepted = 0
        self._gain, self._rest, self._resting = _FIRST_GAIN, _REST, 0

    def append(self, token: int) -> None:
        """The answer goes on with `token`."""
        if self._count == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros(max(256, self._count // 8), dtype=np.int64)])
        self._ids[self._count] = token
        self._count += 1

    def guess(self, most: int) -> list[int]:
        """The next tokens, `most` at most; none where there is no hint, or where hints were of no use."""
        if self._resting > 0:
            self._resting -= 1
            return []
        ids = self._ids[: self._count]
        ends = np.flatnonzero(ids[:-1] == ids[-1])  # earlier places of the last token
        length = 1
        while len(ends) and length < _LONGEST:
            longer = ends[ends >= length]
            longer = longer[ids[longer - length] == ids[-1 - length]]
            if not len(longer):
                break
            ends, length = longer, length + 1
        found: list[int] = ids[ends[-1] + 1 :][:most].tolist() if len(ends) and length >= _SHORTEST else []
        return found

    def learn(self, guessed: int, accepted: int) -> None:
        """So many of the guesses were right. While they bring less than they cost it rests, and then tries again."""
        self.guessed += guessed
        self.accepted += accepted
        self._gain += _FADES * (accepted - _ROW_COST * guessed - self._gain)
        if self._gain < 0:
            self._resting, self._gain = self._rest, _FADES
            self._rest = min(_LONGEST_REST, 2 * self._rest)


class Attempt(AppendState):
    """Tokens behind the cache of which only the first may stay: observers are told when it is known which."""

    def __init__(self, cache: RaggedKVCache, positions: Tensor, *, on_query: OnQuery | None) -> None:
        super().__init__(cache, positions, on_query=None if on_query is None else self._remember)
        self._observer, self._seen = on_query, list[tuple[int, Tensor, Form]]()

    def _remember(self, layer: int, query: Tensor, form: Form) -> None:
        self._seen.append((layer, query, form))

    def settle(self, kept: int) -> None:
        """The first `kept` tokens stay."""
        self.cache.withdraw(self.positions.shape[1] - kept)
        for layer, query, form in self._seen:
            if self._observer is not None:
                self._observer(layer, query[:, :, :kept], form)
