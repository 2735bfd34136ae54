"""Evidence: the passages of the documents that an answer looked at most.

    attention_share = attention on the passage's tokens / attention on all tokens of the documents
    kept_fraction   = mean over its tokens of the share of KV heads that still hold them

What was attended to is not what the answer must be true of: a share says where the model looked, not that it read
well. What was evicted could not be looked at, so a passage that is mostly gone is named as such.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from uncomp_cli.documents.places import Passage, Places

__all__ = ["MOSTLY_EVICTED", "Evidence", "find_evidence"]

MOSTLY_EVICTED = 0.1
"""A cited passage of which less than this share of keys and values is left is warned of.

Of needles that were found by the default model, with a third of the cache or less, 14 % or more were left.
"""


@dataclass(frozen=True, slots=True)
class Evidence:
    """A passage, the share of the attention on the documents that it had, and the share of its KV that is left."""

    path: str
    line_start: int
    line_end: int
    text: str
    attention_share: float
    kept_fraction: float

    @property
    def lines(self) -> str:
        """`handbook.md:120-121`, or `handbook.md:120`."""
        end = "" if self.line_end == self.line_start else f"-{self.line_end}"
        return f"{self.path}:{self.line_start}{end}"

    @property
    def mostly_evicted(self) -> bool:
        """Whether hardly anything of it was left to look at."""
        return self.kept_fraction < MOSTLY_EVICTED


def find_evidence(mass: Sequence[float], survival: Sequence[float], places: Places, *, most: int = 3) -> list[Evidence]:
    """At most `most` passages, the most attended first; neighbours among them become one.

    `mass` [S] is the answer's attention by token, `survival` [S] the share of heads that hold each; a token past their
    ends has none. Empty when nothing of the documents was attended to.
    """
    passages = places.passages()
    weights = [sum(_values(mass, passage.tokens)) for passage in passages]
    total = sum(weights)
    ranked = sorted((i for i, weight in enumerate(weights) if weight > 0), key=lambda i: -weights[i])[:most]
    runs = _neighbours(ranked, passages)
    found = [_evidence([passages[i] for i in run], sum(weights[i] for i in run) / total, survival) for run in runs]
    return sorted(found, key=lambda evidence: -evidence.attention_share)


def _neighbours(chosen: Iterable[int], passages: Sequence[Passage]) -> list[list[int]]:
    """The chosen passages, in order, with those of one document that follow each other together."""
    runs: list[list[int]] = []
    for i in sorted(chosen):
        before = runs[-1][-1] if runs else None
        if before == i - 1 and passages[before].path == passages[i].path and _touch(passages[before], passages[i]):
            runs[-1].append(i)
        else:
            runs.append([i])
    return runs


def _touch(before: Passage, after: Passage) -> bool:
    """Whether no blank line lies between."""
    return after.line_start - before.line_end <= 1


def _evidence(run: Sequence[Passage], share: float, survival: Sequence[float]) -> Evidence:
    kept = [value for passage in run for value in _values(survival, passage.tokens)]
    tokens = sum(len(passage.tokens) for passage in run)
    text = run[0].text
    for before, after in pairwise(run):
        text += ("\n" if after.line_start > before.line_end else " ") + after.text
    return Evidence(run[0].path, run[0].line_start, run[-1].line_end, text, share, sum(kept) / tokens)


def _values(values: Sequence[float], tokens: range) -> Sequence[float]:
    return values[tokens.start : tokens.stop]
