"""Coherence: what is kept must still be readable.

Window attention points at single tokens; a model with digit-level tokens that keeps half of a number answers with the
other half invented. Two remedies, both for ranking only: scores are pooled along the text, so that a token brings its
neighbours, and the tokens of one word or number are given the same score, so that eviction takes or leaves it whole.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from uncomp_cli.config import Pooling

MAX_WORD_TOKENS = 32
MAX_CODE_TOKENS = 48


def pool(scores: Tensor, *, kind: Pooling, width: int) -> Tensor:
    """Smooth scores [G, S] over `width` neighbouring tokens; the ends see fewer."""
    if kind == "none" or width == 1:
        return scores
    if kind == "max":
        return functional.max_pool1d(scores[None], width, stride=1, padding=width // 2)[0]
    return functional.avg_pool1d(scores[None], width, stride=1, padding=width // 2, count_include_pad=False)[0]


def share_by_word(scores: Tensor, words: Tensor) -> Tensor:
    """Give every token of scores [G, S] its word's maximum; `words` [S] holds ascending word numbers."""
    spread = words.expand_as(scores)
    best = scores.new_full((scores.shape[0], int(words[-1]) + 1), float("-inf"))
    return best.scatter_reduce(1, spread, scores, "amax").gather(1, spread)


def word_ids(text: str, offsets: Sequence[tuple[int, int]]) -> Tensor:
    """Number the words of `text` over its tokens: int64 [S], ascending from 0.

    `offsets` are the tokens' character ranges; the tokens of one character have overlapping ones and stay together. A
    word ends at white space; scripts without it are cut after MAX_WORD_TOKENS tokens, very long runs of ASCII (codes,
    addresses) after half as many more, or up to twice as many to spare a number.
    """
    ids: list[int] = []
    word, length, reached = -1, 0, 0
    for start, end in offsets:
        if start >= reached and (word < 0 or _begins_word(text, start, length)):
            word, length = word + 1, 0
        ids.append(word)
        length, reached = length + 1, end
    return torch.tensor(ids, dtype=torch.int64)


def _begins_word(text: str, start: int, length: int) -> bool:
    """Whether the token at `start` begins a new word after a word of `length` tokens."""
    before, here = text[start - 1 : start], text[start : start + 1]
    if before.isspace() or here.isspace():
        return True
    if length < MAX_WORD_TOKENS:
        return False
    if all(char.isdigit() or char in ".," for char in (before, here)):
        return length >= 2 * MAX_WORD_TOKENS
    return length >= (MAX_CODE_TOKENS if (before + here).isascii() else MAX_WORD_TOKENS)
