"""The thirteen tasks of RULER (arXiv 2404.06654) by its definitions, with texts and word lists of our own."""

from collections.abc import Callable
from typing import ClassVar

from uncomp_cli.evals.tasks.aggregation import common_words_sample, frequent_words_sample
from uncomp_cli.evals.tasks.haystack import CountTokens, Haystack
from uncomp_cli.evals.tasks.qa import one_hop_sample, two_hop_sample
from uncomp_cli.evals.tasks.request import Request
from uncomp_cli.evals.tasks.retrieval_facts import VARIANTS, retrieval_sample
from uncomp_cli.evals.tasks.sample import JudgeName, Regime, Sample
from uncomp_cli.evals.tasks.tracing import tracing_sample

__all__ = ["Ruler"]

_SAMPLES: dict[str, Callable[[Request], Sample]] = {
    **dict.fromkeys(VARIANTS, retrieval_sample),
    "ruler/vt": tracing_sample,
    "ruler/cwe": common_words_sample,
    "ruler/fwe": frequent_words_sample,
    "ruler/qa_1": one_hop_sample,
    "ruler/qa_2": two_hop_sample,
}


class Ruler:
    """Retrieval, tracing, aggregation, question answering; all in completion form."""

    name: ClassVar[str] = "ruler"
    subtasks: ClassVar[tuple[str, ...]] = tuple(_SAMPLES)
    regimes: ClassVar[tuple[Regime, ...]] = ("aware", "agnostic")
    judge: ClassVar[JudgeName] = "answers"

    def sample(
        self, subtask: str, index: int, *, tokens: int, haystack: Haystack, count_tokens: CountTokens, seed: int
    ) -> Sample:
        """One sample of one of the thirteen; only the essay tasks read `haystack`."""
        return _SAMPLES[subtask](Request(subtask, index, tokens, haystack, count_tokens, seed))
