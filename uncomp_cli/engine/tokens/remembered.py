"""The tokens that were read, kept or not: what has to be known of them when something must go."""

from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor

from uncomp_cli.engine.tokens.messages import Rendered

__all__ = ["Remembered"]


@dataclass(frozen=True, slots=True)
class Remembered:
    """The tokens [S] that were read: ids, what is never evicted (bool [S]) and word numbers (int64 [S])."""

    ids: tuple[int, ...]
    protected: Tensor
    words: Tensor

    @classmethod
    def nothing(cls) -> "Remembered":
        """Before anything was read."""
        return cls((), torch.zeros(0, dtype=torch.bool), torch.zeros(0, dtype=torch.int64))

    @classmethod
    def of(cls, rendered: Rendered) -> "Remembered":
        """All of a rendered text."""
        return cls(rendered.ids, rendered.protected, rendered.words)

    def cut(self, length: int) -> "Remembered":
        """Its first `length` tokens."""
        return Remembered(self.ids[:length], self.protected[:length], self.words[:length])

    def with_token(self, token: int) -> "Remembered":
        """One more token, a word of its own."""
        last = int(self.words[-1]) + 1 if len(self.words) else 0
        protected = torch.cat([self.protected, torch.zeros(1, dtype=torch.bool)])
        return Remembered((*self.ids, token), protected, torch.cat([self.words, torch.tensor([last])]))

    def common(self, ids: tuple[int, ...]) -> int:
        """How many first tokens are those of `ids`."""
        pairs = zip(self.ids, ids, strict=False)
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
