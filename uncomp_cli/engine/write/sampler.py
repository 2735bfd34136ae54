"""How the next token is chosen from the logits: the likeliest, or drawn.

    scores   of tokens that the answer has already, divided by the repetition penalty where positive, else multiplied
    shares   e^((score - largest) / T), of which the top-k, the fewest that make up top-p, and those of min-p or more of
             the largest are left, in this order, as transformers has it
    drawn    the first token at which the running sum of shares is above u times their total, u uniform

Nothing is sorted that cannot be chosen, and running sums are of blocks: a draw from 49,152 takes 0.1 to 0.4 ms where it
took 0.4 to 1.4 (one core of an EPYC). By numpy, on one thread: torch shares a whole vocabulary among its threads, which
then spin where the step's should run. From a GPU all rows come in one copy, of which it is the step's only wait: two
numbers a row where the likeliest token is taken, else the vocabulary.
A greedy answer that has come to repeat itself is stopped (`loop_period`): it would do so for ever.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from uncomp_cli.config import SamplingConfig
from uncomp_cli.errors import ModelError

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LOOP_TIMES, _LOOP_TOKENS, _LONGEST_LOOP = 4, 64, 128
_POOR_WORDS, _POOR_LOOP_TOKENS = 6, 160
_GROUP, _BLOCK, _SIZE_BITS = 64, 256, 18
"""Shares that are looked at together for the k-th largest, and summed together; bits that do not count for a size."""
LOOK_BACK = _LOOP_TIMES * _LONGEST_LOOP


@dataclass(frozen=True, slots=True)
class Scores:
    """What one row's next token is chosen from: the likeliest, what it scores, and `every` score where wanted."""

    best: int
    highest: float
    every: "NDArray[np.float32] | None" = None

    @classmethod
    def of(cls, every: "NDArray[np.float32]") -> "Scores":
        """All that is known on the host."""
        best = int(every.argmax())
        return cls(best, float(every[best]), every)


def fetch(logits: Tensor, samplers: Sequence["Sampler"]) -> list[Scores]:
    """The scores of rows of logits [B, vocab], each with its sampler, in one copy from where they are."""
    if logits.device.type != "cpu" and all(sampler.takes_best for sampler in samplers):
        best = logits.argmax(dim=-1, keepdim=True)
        pairs = torch.cat([best.double(), logits.gather(1, best).double()], dim=1).tolist()
        return [Scores(int(place), highest) for place, highest in pairs]
    return [Scores.of(row) for row in logits.float().numpy(force=True)]


class Sampler:
    """Greedy or random choice with its own seeded generator; the repetition penalty looks at generated tokens."""

    def __init__(self, config: SamplingConfig) -> None:
        self.is_greedy = config.temperature == 0
        self.takes_best = self.is_greedy and config.repetition_penalty == 1
        self._config = config
        self._generator = torch.Generator().manual_seed(config.seed)

    def choose(self, scores: Scores, said: Tensor) -> int:
        """The next token, given the tokens [T] that were generated so far.

        Raises ModelError for scores that are no numbers, as damaged weights give them.
        """
        if scores.every is not None and self._config.repetition_penalty != 1:
            scores = Scores.of(_penalised(scores.every, said.numpy(force=True), self._config.repetition_penalty))
        if not isfinite(scores.highest):  # what is no number is taken for the largest
            message = "what the model computes is not finite: its weights are damaged, or too large for their type"
            raise ModelError(message, hint="use --dtype float32; if it says so again, fetch the model anew")
        return scores.best if self.is_greedy or scores.every is None else self._draw(scores.every - scores.highest)

    def _draw(self, below: "NDArray[np.float32]") -> int:
        """By how much scores are below the largest."""
        shares = np.exp(below / np.float32(self._config.temperature))
        uniform = float(torch.rand(1, generator=self._generator, dtype=torch.float64))
        least = _least(shares, self._config)
        if least == 0:
            return _drawn(shares, uniform)
        kept = np.flatnonzero(shares >= least)
        return int(kept[_drawn(shares[kept], uniform)])


def _penalised(scores: "NDArray[np.float32]", said: "NDArray[np.int64]", penalty: float) -> "NDArray[np.float32]":
    changed, known = scores.copy(), np.unique(said)
    before = scores[known]
    changed[known] = np.where(before < 0, before * penalty, before / penalty)
    return changed


def _least(shares: "NDArray[np.float32]", config: SamplingConfig) -> np.float32:
    """The smallest share, of which the largest is 1, that the settings leave; equal ones stay or go together."""
    least = np.float32(0.0)
    if 0 < config.top_k < len(shares):
        least = _kth(shares, config.top_k)
        shares = shares[shares >= least]
    if config.top_p < 1:
        least = _nucleus(shares, config.top_p)
    return max(least, np.float32(config.min_p))


def _kth(shares: "NDArray[np.float32]", k: int) -> np.float32:
    """The k-th largest. It is no smaller than the k-th largest of what is largest in each of many groups."""
    whole = len(shares) - len(shares) % _GROUP
    best = shares[:whole].reshape(_GROUP, -1).max(axis=0)
    if k <= len(best):
        shares = shares[shares >= np.partition(best, -k)[-k]]
    return np.float32(np.partition(shares, -k)[-k])


def _nucleus(shares: "NDArray[np.float32]", top_p: float) -> np.float32:
    """The smallest of the fewest largest that make up `top_p`.

    What is below (1 - top_p) / n of the total is not among them: all such together are less than the rest. The others
    are summed by their size, a positive number's first bits, and only those are sorted among which the sum is reached.
    """
    total = shares.sum(dtype=np.float64)
    shares = shares[shares >= np.float32(0.99 * (1 - top_p) * total / len(shares))]
    sizes = (shares.view(np.int32) >> _SIZE_BITS) - (int(shares.max().view(np.int32)) >> _SIZE_BITS)
    sums = np.bincount(-sizes, weights=shares).cumsum()
    size = min(int(sums.searchsorted(top_p * total)), len(sums) - 1)
    falling = np.sort(shares[sizes == -size])[::-1]
    rest = top_p * total - (sums[size - 1] if size else 0.0)
    return np.float32(falling[min(int(falling.cumsum(dtype=np.float64).searchsorted(rest)), len(falling) - 1)])


def _drawn(shares: "NDArray[np.float32]", uniform: float) -> int:
    """The first place at which the running sum is above `uniform` times the total: of blocks, then within one."""
    sums = np.add.reduceat(shares, np.arange(0, len(shares), _BLOCK), dtype=np.float64).cumsum()
    wanted = uniform * sums[-1]
    block = _first_above(sums, wanted)
    within = shares[block * _BLOCK :][:_BLOCK].cumsum(dtype=np.float64)
    return block * _BLOCK + _first_above(within, wanted - (sums[block - 1] if block else 0.0))


def _first_above(sums: "NDArray[np.float64]", wanted: float) -> int:
    """The first of the running sums above `wanted`; the last that adds something where rounding leaves none."""
    return min(int(sums.searchsorted(wanted, side="right")), int(sums.searchsorted(sums[-1])))


def loop_period(ids: Sequence[int]) -> int | None:
    """The tokens of the block that `ids` end in again and again; None when they do not.

    Every repetition is the same to the token, so a list, a table or code whose lines differ goes on. A block stands
    there four times at least and for 64 tokens; one of few different tokens, such as a rule or a row of zeros, for 160.
    """
    for period in range(1, min(_LONGEST_LOOP, len(ids) // _LOOP_TIMES) + 1):
        if ids[-1] == ids[-1 - period]:
            least = _LOOP_TOKENS if len(set(ids[-period:])) >= _POOR_WORDS else _POOR_LOOP_TOKENS
            span = max(_LOOP_TIMES, -(-least // period)) * period
            if span <= len(ids) and ids[-span:-period] == ids[period - span :]:
                return period
    return None
