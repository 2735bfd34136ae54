"""What does the model say about a text, and does it say the same with less memory? No answer is right or wrong.

The judge takes the full cache's own greedy continuation of the question as the reference.
"""

from typing import ClassVar

from uncomp_cli.evals.tasks.haystack import SEPARATOR, CountTokens, Haystack
from uncomp_cli.evals.tasks.request import Request
from uncomp_cli.evals.tasks.sample import JudgeName, Query, Regime, Sample

__all__ = ["Fidelity"]

_QUESTION = "\n\nIn short, the text above says that"
_NEW_TOKENS = 64


class Fidelity:
    """An excerpt and the opening of a summary; the reference is left to the judge."""

    name: ClassVar[str] = "fidelity"
    subtasks: ClassVar[tuple[str, ...]] = ("fidelity/continuation",)
    regimes: ClassVar[tuple[Regime, ...]] = ("aware", "agnostic")
    judge: ClassVar[JudgeName] = "fidelity"

    def sample(
        self, subtask: str, index: int, *, tokens: int, haystack: Haystack, count_tokens: CountTokens, seed: int
    ) -> Sample:
        """One query without an answer."""
        request = Request(subtask, index, tokens, haystack, count_tokens, seed)
        pieces = request.excerpt(request.text_room((_QUESTION,)))
        query = Query(_QUESTION, "", (), max_new_tokens=_NEW_TOKENS)
        return request.sample(SEPARATOR.join(pieces), (query,))
