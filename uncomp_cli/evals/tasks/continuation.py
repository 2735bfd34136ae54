"""A text that goes on: is the same said of it with less memory, and how well is what follows foretold?

`fidelity`: an excerpt and the opening of a summary; no answer is right or wrong, the judge takes the full cache's own
greedy continuation as the reference.
`perplexity`: context and continuation are one run of paragraphs; the control, from elsewhere in the haystack, is as
long as the context and has nothing to do with the continuation. Tokens that the context foretells better than the
control does are those where long memory matters. Here `tokens` is the length of the context alone.
"""

from bisect import bisect_left, bisect_right
from dataclasses import dataclass, replace
from itertools import accumulate

from uncomp_cli.errors import UsageError
from uncomp_cli.evals.tasks.haystack import SEPARATOR, closing, paragraph_tokens
from uncomp_cli.evals.tasks.task import Query, Request, Sample

_QUESTION = "\n\nIn short, the text above says that"
_NEW_TOKENS = 64


def fidelity_sample(request: Request) -> Sample:
    """An excerpt and the opening of a summary: one query without an answer, the reference is left to the judge."""
    pieces = request.excerpt(request.text_room((_QUESTION,)))
    return request.sample(SEPARATOR.join(pieces), (Query(_QUESTION, "", (), max_new_tokens=_NEW_TOKENS),))


CONTINUATION_TOKENS = 560  # the judge takes the first 512
_SLACK_TOKENS = 8  # between the sum of the paragraphs' tokens and those of the joined text


def perplexity_sample(request: Request) -> Sample:
    """A context that ends with a paragraph, the text that follows as the answer to no question, and a control.

    Raises UsageError when the haystack cannot hold all three texts.
    """
    count_tokens = request.count_tokens
    borders = _Borders.of(request)
    choices = [border for border in range(len(borders.before)) if borders.controls(border)]
    if not choices:
        raise _too_short(request, borders)
    border = choices[int(request.place * len(choices))]
    control_border = request.chance("control").choice(borders.controls(border))
    paragraphs = request.haystack.paragraphs
    before = SEPARATOR.join(paragraphs[borders.first(border) : border])
    elsewhere = SEPARATOR.join(paragraphs[borders.first(control_border) : control_border])
    context = closing(before, request.tokens, count_tokens=count_tokens)
    control = closing(elsewhere, count_tokens(context), count_tokens=count_tokens, spare=0.0)
    answer = SEPARATOR + SEPARATOR.join(paragraphs[border : borders.last(border)])
    return replace(request.sample(context, (Query("", answer, (), max_new_tokens=1),)), control=control)


@dataclass(frozen=True, slots=True)
class _Borders:
    """Borders between paragraphs; `before[i]` is the number of tokens before the i-th."""

    before: tuple[int, ...]
    tokens: int

    @classmethod
    def of(cls, request: Request) -> "_Borders":
        counts = paragraph_tokens(request.haystack.paragraphs, request.count_tokens)
        return cls(tuple(accumulate(counts, initial=0)), request.tokens + _SLACK_TOKENS)

    def first(self, border: int) -> int:
        """The first paragraph of a context that ends at `border`; -1 when there is too little text before."""
        return bisect_right(self.before, self.before[border] - self.tokens) - 1

    def last(self, border: int) -> int:
        """Where the continuation after `border` ends; past the last border when there is too little text behind."""
        return bisect_left(self.before, self.before[border] + CONTINUATION_TOKENS + _SLACK_TOKENS)

    def controls(self, border: int) -> list[int]:
        """Where a control may end when the context ends at `border`; none where the context cannot."""
        first, last = self.first(border), self.last(border)
        if first < 0 or last >= len(self.before):
            return []
        return [*self._ends(0, first), *self._ends(last, len(self.before) - 1)]

    def _ends(self, begin: int, end: int) -> range:
        """Borders from `begin` to `end` with a context's length between `begin` and them."""
        return range(bisect_left(self.before, self.before[begin] + self.tokens), end + 1)


def _too_short(request: Request, borders: _Borders) -> UsageError:
    needed = 2 * borders.tokens + CONTINUATION_TOKENS + _SLACK_TOKENS
    return UsageError(
        f"haystack {request.haystack.name!r} has {borders.before[-1]:,} tokens, {request.subtask} needs more than "
        f"{needed:,} for context, continuation and control",
        hint="name more text with --file, or use a smaller --tokens",
    )
