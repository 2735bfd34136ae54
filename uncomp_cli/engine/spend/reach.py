"""How far back a token may look: prompts that are longer than that are re-packed, and perhaps read again.

    reach ≥ held between two chunks + chunk + question

A quarter of it is one chunk, the rest is for what is held of the text before. Behind the last chunk the answer comes,
which the trained length has to hold too.
"""

from dataclasses import replace

from uncomp_cli.cache.scorers import Scorer
from uncomp_cli.config import LEAST_CHUNK_TOKENS, Limits
from uncomp_cli.engine.read.streamed import BETWEEN_CHUNKS
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.errors import DoesNotFitError
from uncomp_cli.models.extension import RopeState

__all__ = ["limits_within", "most_held", "prompt_reach", "tokens_to_reread"]

_CHUNKS_IN_REACH = 4


def prompt_reach(rope: RopeState, prompt_tokens: int, *, trained_length: int, answer_tokens: int) -> int | None:
    """The reach of a prompt, with its answer not more than the trained length; None: it is not re-packed."""
    fits = prompt_tokens + answer_tokens <= trained_length
    if rope.reach is None or (rope.only_past and fits):
        return None
    return max(LEAST_CHUNK_TOKENS, min(rope.reach, trained_length - answer_tokens))


def limits_within(limits: Limits, prompt: Prompt, reach: int) -> Limits:
    """`limits` with the chunks of a prompt that is re-packed. Raises DoesNotFitError when one leaves no room."""
    usual = max(LEAST_CHUNK_TOKENS, reach // _CHUNKS_IN_REACH)
    chunk = limits.chunk_tokens or usual
    if chunk + 2 * prompt.always_kept > reach:
        shorter = f"--chunk {usual}, " if chunk > usual else "--rope repack:1, a smaller --max-new-tokens, "
        raise DoesNotFitError(
            f"chunks of {chunk:,} tokens, the question and what must stay leave no room in the {reach:,} tokens "
            "that a re-packed prompt may look back over",
            hint=f"use {shorter}a shorter question or fewer pins",
        )
    return replace(limits, chunk_tokens=chunk)


def most_held(prompt: Prompt, chunk_tokens: int, reach: int) -> int:
    """Tokens that a head may hold of a prompt, so that behind it a chunk and the question are within reach."""
    asked = prompt.flat_len - len(prompt.context)
    return int((reach - chunk_tokens - asked) / BETWEEN_CHUNKS) + prompt.longest_question


def tokens_to_reread(prompt: Prompt, scorer: Scorer, *, reach: int, each: int | None) -> int | None:
    """Tokens of the passages that are read again, `each` a question, but no more than half of the reach together.

    None where none are: without the question nobody knows which passages matter.
    """
    if each is None or not scorer.query_aware:
        return None
    return min(reach // 2, each * len(prompt.questions))
