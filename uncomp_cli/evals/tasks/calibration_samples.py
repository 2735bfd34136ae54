"""Samples to calibrate on: the tasks' contexts, questions and answers, and plain text that is only continued.

    continuation    an excerpt: its last 64 tokens are the answer, the 32 before them the question

Samples of one length take the tasks in turn. A sample's number among those of its task grows by more than one a round,
so that tasks that go through a grid (needle: depths) do not all stand at the same place of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from uncomp_cli.calibrate.calibration import CalibrationSample
from uncomp_cli.errors import UsageError
from uncomp_cli.evals.tasks import Task, choose_subtasks
from uncomp_cli.evals.tasks.haystack import SEPARATOR, CountTokens, Haystack, closing
from uncomp_cli.evals.tasks.oracle import check_solvable
from uncomp_cli.evals.tasks.request import Request

__all__ = ["CONTINUATION", "SampleMaker", "choose_sources"]

CONTINUATION = "continuation"
_QUESTION_TOKENS, _ANSWER_TOKENS = 32, 64

Source = tuple[Task | None, str]
"""A task and its subtask; no task where text is only continued."""


def choose_sources(names: Sequence[str]) -> list[Source]:
    """What `names` mean, each once, in their order; raises UsageError for unknown names and tasks without answers."""
    chosen: dict[str, Source] = {}
    for name in names:
        if name == CONTINUATION:
            chosen[name] = (None, name)
            continue
        for task, subtask in choose_subtasks([name]):
            if task.judge != "answers":
                raise UsageError(
                    f"task {name} has no answers to calibrate on", hint=f"--task needle, ruler or {CONTINUATION}"
                )
            chosen[subtask] = (task, subtask)
    return list(chosen.values())


@dataclass(frozen=True, slots=True)
class SampleMaker:
    """Makes samples of the sources in turn; the same arguments give the same samples."""

    sources: Sequence[Source]
    haystack: Haystack
    count_tokens: CountTokens
    seed: int

    def make(self, lengths: Sequence[int], samples: int) -> Iterator[CalibrationSample]:
        """`samples` of each length; raises UsageError when text or length is too short for them."""
        for index in range(samples):
            task, subtask = self.sources[index % len(self.sources)]
            for tokens in lengths:
                number = index + index // len(self.sources)
                if task is None:
                    yield self._continuation(number, tokens)
                else:
                    yield self._of_task(task, subtask, number, tokens)

    def _of_task(self, task: Task, subtask: str, number: int, tokens: int) -> CalibrationSample:
        sample = task.sample(
            subtask, number, tokens=tokens, haystack=self.haystack, count_tokens=self.count_tokens, seed=self.seed
        )
        check_solvable(sample)
        query = sample.queries[0]
        return CalibrationSample(
            sample.context, query.question, query.answer, self.haystack.name, subtask, system=sample.system
        )

    def _continuation(self, number: int, tokens: int) -> CalibrationSample:
        length = tokens + _ANSWER_TOKENS
        request = Request(CONTINUATION, number, length, self.haystack, self.count_tokens, self.seed)
        text = SEPARATOR.join(request.excerpt(length))
        rest, answer = self._split_end(text, _ANSWER_TOKENS)
        context, question = self._split_end(rest, _QUESTION_TOKENS)
        return CalibrationSample(context, question, answer, self.haystack.name, CONTINUATION)

    def _split_end(self, text: str, tokens: int) -> tuple[str, str]:
        """`text` in two; the second has at most about `tokens` tokens, and the space before it."""
        end = closing(text, tokens, count_tokens=self.count_tokens)
        begin = text[: len(text) - len(end)].rstrip()
        return begin, text[len(begin) :]
