"""How far back a token may look: prompts that are longer than that are re-packed, and perhaps read again.

    reach ≥ held between two chunks + chunk + question

A quarter of it is one chunk, the rest is for what is held of the text before. Behind the last chunk the answer comes,
which the trained length has to hold too.
"""

from dataclasses import dataclass, replace

from uncomp_cli.cache.view import Scorer
from uncomp_cli.config import LEAST_CHUNK_TOKENS, Limits
from uncomp_cli.engine.read.overkeep import BETWEEN_CHUNKS
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.errors import DoesNotFitError
from uncomp_cli.models.extension import RopeState

_CHUNKS_IN_REACH = 4


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
