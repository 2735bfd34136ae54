"""Tokens: ids with what is known of each, sliced, taken, joined and compared in this one place.

A text is cut into chunks, cut off, kept and saved as tokens; what is known of a token goes with it wherever it goes.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, takewhile

import numpy as np
import torch
from torch import Tensor

_PACKED_BYTES = 13
"""Of a token: its id and its two characters in 4 bytes each, whether it begins a word in one."""


@dataclass(frozen=True, slots=True, eq=False)
class Tokens:
    """Token ids [S] of a text.

    `protected` bool [S] marks what is never evicted; `words` int64 [S] numbers words, ascending; `offsets` int64 [S, 2]
    are each token's characters in the text, -1 where a token is not of it (a template's, or one that was generated).
    """

    ids: tuple[int, ...]
    protected: Tensor = field(repr=False)
    words: Tensor = field(repr=False)
    offsets: Tensor = field(repr=False)

    @classmethod
    def of(
        cls,
        ids: Iterable[int] = (),
        *,
        protected: Tensor | bool = False,
        words: Tensor | None = None,
        offsets: Tensor | None = None,
    ) -> "Tokens":
        """Tokens of which nothing else need be known: each is a word by itself, and none is of a text."""
        known = tuple(ids)
        count = len(known)
        return cls(
            known,
            protected if isinstance(protected, Tensor) else torch.full((count,), protected),
            torch.arange(count) if words is None else words,
            torch.full((count, 2), -1) if offsets is None else offsets,
        )

    @classmethod
    def join(cls, parts: Sequence["Tokens"]) -> "Tokens":
        """Texts one behind the other; no word goes on from one into the next."""
        words, last = [], 0
        for part in parts:
            words.append(part.words + last)
            last = int(words[-1][-1]) + 1 if len(part) else last
        nothing = cls.of()
        return cls(
            tuple(chain.from_iterable(part.ids for part in parts)),
            torch.cat([nothing.protected, *(part.protected for part in parts)]),
            torch.cat([nothing.words, *words]),
            torch.cat([nothing.offsets, *(part.offsets for part in parts)]),
        )

    @classmethod
    def unpacked(cls, data: bytes, *, characters: int) -> "Tokens | None":
        """What was packed of a text of so many characters; None where that is not what it is."""
        count, rest = divmod(len(data), _PACKED_BYTES)
        if rest:
            return None
        numbers, steps = np.frombuffer(data, "<i4", 3 * count), np.frombuffer(data, np.uint8, offset=12 * count)
        ids, offsets = numbers[:count], numbers[count:].reshape(count, 2)
        known = bool((ids >= 0).all()) and bool((steps <= 1).all())
        within = bool(((offsets[:, 0] >= 0) & (offsets[:, 0] <= offsets[:, 1]) & (offsets[:, 1] <= characters)).all())
        if not (known and within):
            return None
        words = torch.from_numpy(steps.astype(np.int64)).cumsum(0) - 1
        return cls.of(ids.tolist(), words=words, offsets=torch.from_numpy(offsets.astype(np.int64)))

    def packed(self) -> bytes:
        """The tokens of a text by itself: ids, characters, and where words begin; nothing of them is protected."""
        begins = torch.diff(self.words, prepend=torch.tensor([-1])).to(torch.uint8)
        numbers = np.concatenate([np.asarray(self.ids, "<i4"), self.offsets.flatten().numpy().astype("<i4")])
        return numbers.tobytes() + begins.numpy().tobytes()

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator[int]:
        return iter(self.ids)

    def __getitem__(self, part: slice) -> "Tokens":
        """Neighbouring tokens."""
        return Tokens(self.ids[part], self.protected[part], self.words[part], self.offsets[part])

    def ranges(self) -> Iterator[tuple[int, int]]:
        """The characters of each token, (-1, -1) where it has none."""
        return zip(*self.offsets.T.tolist(), strict=True)

    def take(self, at: Tensor) -> "Tokens":
        """The tokens at positions int64 [K], ascending, or where bool [S] is true."""
        places = at.nonzero()[:, 0] if at.dtype == torch.bool else at
        ids = tuple(self.ids[place] for place in places.tolist())
        return Tokens(ids, self.protected[places], self.words[places], self.offsets[places])

    def guarded(self, more: Tensor) -> "Tokens":
        """The same with the tokens that bool [N] marks, N at most S, protected as well."""
        protected = self.protected.clone()
        protected[: len(more)] |= more[: len(protected)]
        return replace(self, protected=protected)

    def common(self, ids: Iterable[int]) -> int:
        """How many first tokens are those of `ids`."""
        pairs = zip(self.ids, ids, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
