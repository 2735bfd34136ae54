"""One fact in a long text, and the question where it stands: are the passages that an answer cites those it needs?

The samples are needles (needle.py), each piece of the text on a line of its own; what is judged is whether the line
of the fact is among the first passages that `documents/evidence.py` finds.
"""

from typing import ClassVar

from uncomp_cli.evals.tasks.haystack import CountTokens, Haystack
from uncomp_cli.evals.tasks.needle import needle_sample
from uncomp_cli.evals.tasks.request import Request
from uncomp_cli.evals.tasks.sample import JudgeName, Regime, Sample

__all__ = ["Evidence"]


class Evidence:
    """The needles again: `chat` in the model's chat format, the others as plain text to continue."""

    name: ClassVar[str] = "evidence"
    subtasks: ClassVar[tuple[str, ...]] = ("evidence/digits7", "evidence/digits16", "evidence/uuid", "evidence/chat")
    regimes: ClassVar[tuple[Regime, ...]] = ("aware", "agnostic")
    judge: ClassVar[JudgeName] = "evidence"

    def sample(
        self, subtask: str, index: int, *, tokens: int, haystack: Haystack, count_tokens: CountTokens, seed: int
    ) -> Sample:
        """One fact, one question."""
        return needle_sample(Request(subtask, index, tokens, haystack, count_tokens, seed))
