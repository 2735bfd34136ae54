"""A text longer than the model was trained for, read with every distance inside the trained length. Two ways:

    re-packed    a head that holds n tokens of the text before a chunk has the r-th of them (r = 0, …) at position
                 first − n + r, where `first` is where the chunk begins
    read again   the first pass, in re-packed chunks, ends with a score a token that all heads agree on. The passages
                 around the best tokens, and what must stay, are then read as a text of their own: in order, without
                 gaps, attended exactly

Re-packed: what was evicted leaves no gap, so that a chunk's tokens look back over what is held, not over what was read,
and no frequency is changed. Keys are cached after RoPE, which turns each pair of dimensions by position times
frequency: a key moves by being turned once more, by the difference. Distances alone matter to RoPE, so the chunk itself
stays where it is in the text. StreamingLLM (arXiv 2309.17453) packs sinks and recent tokens alike; here every head
packs its own tokens, by rank.

Read again: a key that was made behind other text remembers it, and what a long text leaves of a budget is mostly
distractors. The second pass knows the passages alone. A token keeps its position in the whole text, and an answer is
written behind all of it. What stands in no chosen passage is lost to the answer: a question about everything is not
helped. Selective recomputation after retrieval is the nearest published idea; here the model's own attention retrieves
(docs/long.md has the figures).

The longest distance is the reach:  reach ≥ held between two chunks + chunk + question.  A quarter of it is one chunk,
the rest is for what is held of the text before. Behind the last chunk the answer comes, which the trained length has
to hold too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from uncomp_cli.cache.layer import Head
from uncomp_cli.cache.scorers import turn
from uncomp_cli.cache.view import Scorer
from uncomp_cli.config import LEAST_CHUNK_TOKENS, Limits
from uncomp_cli.engine.read.overkeep import BETWEEN_CHUNKS
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.errors import DoesNotFitError
from uncomp_cli.models.extension import RopeState

PASSAGE_TOKENS = 64
_CHUNKS_IN_REACH = 4


def packed(heads: Sequence[Head], first: int, frequencies: Tensor) -> list[Head]:
    """The heads' entries, all of them before `first`, with keys turned to where they stand without gaps.

    `frequencies` [R] are radians a position. Positions stay those in the text: they say which token an entry is.
    """
    return [(_moved(keys, positions, first, frequencies), values, positions) for keys, values, positions in heads]


def _moved(keys: Tensor, positions: Tensor, first: int, frequencies: Tensor) -> Tensor:
    """Keys [N, D] of tokens at `positions` [N], turned to the N positions before `first`."""
    ahead = first - len(positions) + torch.arange(len(positions), device=keys.device) - positions
    radians = ahead[:, None].double() * frequencies.to(keys.device, torch.float64)
    return turn(keys.float(), radians.cos().float(), radians.sin().float()).to(keys.dtype)


def choose_passages(scores: Tensor, always: Tensor, *, most: int) -> Tensor:
    """Positions [K], ascending: tokens of `always` bool [S], and whole passages of `most` tokens together at most.

    A passage is PASSAGE_TOKENS tokens of the text from a multiple of that on; it is as good as its best token by
    `scores` [S]. Passages of score 0 are not taken.
    """
    best = torch.nn.functional.pad(scores, (0, -len(scores) % PASSAGE_TOKENS)).view(-1, PASSAGE_TOKENS).amax(dim=-1)
    wanted = min(max(1, most // PASSAGE_TOKENS), int((best > 0).sum()))
    chosen = torch.zeros(len(best), dtype=torch.bool, device=scores.device)
    chosen[best.topk(wanted).indices] = True
    return (chosen.repeat_interleave(PASSAGE_TOKENS)[: len(scores)] | always).nonzero()[:, 0]


@dataclass(frozen=True, slots=True)
class Reach:
    """The longest distance between a token of a prompt and one it looks at.

    Of a prompt that is re-packed within it, passages of `reread_tokens` tokens a question are read again.
    """

    tokens: int
    reread_tokens: int | None = None

    @classmethod
    def of(cls, rope: RopeState, prompt_tokens: int, *, trained_length: int, answer_tokens: int) -> "Reach | None":
        """The reach of a prompt, with its answer not more than the trained length; None: it is not re-packed."""
        fits = prompt_tokens + answer_tokens <= trained_length
        if rope.reach is None or (rope.only_past and fits):
            return None
        return cls(max(LEAST_CHUNK_TOKENS, min(rope.reach, trained_length - answer_tokens)), rope.reread_tokens)

    def limits_within(self, limits: Limits, prompt: Prompt) -> Limits:
        """`limits` with the chunks of a prompt that is re-packed. Raises DoesNotFitError when one leaves no room."""
        usual = max(LEAST_CHUNK_TOKENS, self.tokens // _CHUNKS_IN_REACH)
        chunk = limits.chunk_tokens or usual
        if chunk + 2 * prompt.always_kept > self.tokens:
            shorter = f"--chunk {usual}, " if chunk > usual else "--rope repack:1, a smaller --max-new-tokens, "
            raise DoesNotFitError(
                f"chunks of {chunk:,} tokens, the question and what must stay leave no room in the {self.tokens:,} "
                "tokens that a re-packed prompt may look back over",
                hint=f"use {shorter}a shorter question or fewer pins",
            )
        return replace(limits, chunk_tokens=chunk)

    def most_held(self, prompt: Prompt, chunk_tokens: int) -> int:
        """Tokens that a head may hold of a prompt, so that behind it a chunk and the question are within reach."""
        asked = prompt.flat_len - len(prompt.context)
        return int((self.tokens - chunk_tokens - asked) / BETWEEN_CHUNKS) + prompt.longest_question

    def tokens_to_reread(self, prompt: Prompt, scorer: Scorer) -> int | None:
        """Tokens of the passages that are read again, but no more than half of the reach together.

        None where none are: without the question nobody knows which passages matter.
        """
        if self.reread_tokens is None or not scorer.query_aware:
            return None
        return min(self.tokens // 2, self.reread_tokens * len(prompt.questions))
