"""What a task asks: a context, and one or more queries whose right answers are known before any model runs.

A query opens its answer (`... for amber mentioned in the text is`), so that the reference continues the prompt at once
and can be scored by likelihood as well as by what a model writes.
"""

from dataclasses import dataclass
from typing import Literal

__all__ = ["JudgeName", "Query", "Regime", "Sample", "Span"]

Regime = Literal["aware", "agnostic"]
"""Whether the question is seen when the cache is compressed. The two are never averaged, ranked or plotted together."""

JudgeName = Literal["answers", "fidelity", "perplexity", "evidence", "conversation"]
"""How a task's samples are judged: a key of `JUDGES` (runner.py)."""

Span = tuple[int, int]
"""A character range [begin, end) of a context."""


@dataclass(frozen=True, slots=True)
class Query:
    """One thing asked of a context.

    `question` ends where the answer begins; `answer` is the reference continuation, its leading space included, for
    likelihood. Written answers are searched for the strings `accepted`: the score is the share that is found, or with
    `need` "any" 1 when one is found. `evidence` are the ranges of the context that the answer stands in.
    """

    question: str
    answer: str
    accepted: tuple[str, ...]
    need: Literal["all", "any"] = "all"
    max_new_tokens: int = 32
    evidence: tuple[Span, ...] = ()


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
