"""Samples to calibrate on, and others like them to measure with: tasks' questions, plain text that is only continued.

    continuation    an excerpt: its last 64 tokens are the answer, the 32 before them the question

Samples of one length take the tasks in turn. A sample's number among those of its task grows by more than one a round,
so that tasks that go through a grid (needle: depths) do not all stand at the same place of it. Of several questions one
is asked, in turn, that has an answer of more than a token. What a calibration has read is no held-out sample; those
come from another seed, so from another place of the text, with other facts.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from uncomp_cli.errors import UsageError
from uncomp_cli.evals.tasks import Task, choose_subtasks
from uncomp_cli.evals.tasks.haystack import SEPARATOR, CountTokens, Haystack, closing
from uncomp_cli.evals.tasks.oracle import check_solvable
from uncomp_cli.evals.tasks.task import Query, Request, Sample

CONTINUATION = "continuation"
_QUESTION_TOKENS, _ANSWER_TOKENS = 32, 64
LEAST_SAMPLES = 2  # one sample has no spread, and its bound would be the loss itself
_SEED_STEP = 104_729  # any number will do, as long as nobody calibrates with two seeds that are this far apart

_ANSWERED = ("answers", "conversation")
_LEAST_ANSWER_TOKENS = 2  # no eviction changes the first token of an answer

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
            if task.judge not in _ANSWERED:
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

    def make(self, lengths: Sequence[int], samples: int) -> Iterator[Sample]:
        """`samples` of each length; raises UsageError when text or length is too short for them."""
        for index in range(samples):
            task, subtask = self.sources[index % len(self.sources)]
            for tokens in lengths:
                number = index + index // len(self.sources)
                if task is None:
                    yield self._continuation(number, tokens)
                else:
                    yield self._of_task(task, subtask, number, tokens)

    def _of_task(self, task: Task, subtask: str, number: int, tokens: int) -> Sample:
        sample = task.sample(Request(subtask, number, tokens, self.haystack, self.count_tokens, self.seed))
        check_solvable(sample)
        first = number % len(sample.queries)
        turned = [*sample.queries[first:], *sample.queries[:first]]
        long = (query for query in turned if self.count_tokens(query.answer) >= _LEAST_ANSWER_TOKENS)
        return replace(sample, queries=(replace(next(long, turned[0]), evidence=()),))

    def _continuation(self, number: int, tokens: int) -> Sample:
        length = tokens + _ANSWER_TOKENS
        request = Request(CONTINUATION, number, length, self.haystack, self.count_tokens, self.seed)
        text = SEPARATOR.join(request.excerpt(length))
        rest, answer = self._split_end(text, _ANSWER_TOKENS)
        context, question = self._split_end(rest, _QUESTION_TOKENS)
        return Sample(CONTINUATION, number, tokens, context, (Query(question, answer, accepted=()),))

    def _split_end(self, text: str, tokens: int) -> tuple[str, str]:
        """`text` in two; the second has at most about `tokens` tokens, and the space before it."""
        end = closing(text, tokens, count_tokens=self.count_tokens)
        begin = text[: len(text) - len(end)].rstrip()
        return begin, text[len(begin) :]


def held_out_maker(maker: SampleMaker, *, longest: int, generated: bool) -> SampleMaker:
    """A maker of other samples of the same tasks, in other prose when it is `generated`, elsewhere in the same text."""
    seed = maker.seed + _SEED_STEP
    haystack = Haystack.generated_for(longest, seed=seed) if generated else maker.haystack
    return replace(maker, haystack=haystack, seed=seed)


def held_out_samples(
    maker: SampleMaker, lengths: Sequence[int], samples: int, *, known: Collection[str]
) -> tuple[Sample, ...]:
    """`samples` of each length, each once, without those whose digests are `known`: of a short text some may be.

    A sample's index is taken from its digest, so that it is the same one whatever is asked for beside it. Raises
    UsageError when fewer than two are left.
    """
    made = {sample.sha256: sample for sample in maker.make(lengths, samples)}
    fresh = [replace(one, index=int(sha256[:12], 16)) for sha256, one in made.items() if sha256 not in known]
    if len(fresh) < LEAST_SAMPLES:
        raise UsageError(
            f"{len(fresh)} of the samples to measure quality on were not calibrated on, {LEAST_SAMPLES} are needed",
            hint="name more text with --file, or use more --quality-samples",
        )
    return tuple(fresh)
