"""How the next token is chosen from the logits: the likeliest, or drawn.

    scores   of tokens that the answer has already, divided by the repetition penalty where positive, else multiplied
    shares   e^((score - largest) / T), of which the top-k, the fewest that make up top-p, and those of min-p or more of
             the largest are left, in this order, as transformers has it
    drawn    the first token at which the running sum of shares is above u times their total, u uniform

By numpy, on one thread: torch shares a whole vocabulary among its threads, which then spin where the step's should run.
A greedy answer that has come to repeat itself is stopped (`loop_period`): it would do so for ever.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from uncomp_cli.config import SamplingConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LOOP_TIMES, _LOOP_TOKENS, _LONGEST_LOOP = 4, 64, 128
_POOR_WORDS, _POOR_LOOP_TOKENS = 6, 160
LOOK_BACK = _LOOP_TIMES * _LONGEST_LOOP


class Sampler:
    """Greedy or random choice with its own seeded generator; the repetition penalty looks at generated tokens."""

    def __init__(self, config: SamplingConfig) -> None:
        self.is_greedy = config.temperature == 0
        self._config = config
        self._generator = torch.Generator().manual_seed(config.seed)

    def choose(self, logits: Tensor, generated: Tensor) -> Tensor:
        """Next tokens int64 [B] for logits [B, vocab], given the tokens generated so far [B, T]; on the CPU."""
        rows = zip(logits.float().numpy(force=True), generated.numpy(force=True), strict=True)
        return torch.tensor([self._choose(scores, said) for scores, said in rows])

    def _choose(self, scores: "NDArray[np.float32]", said: "NDArray[np.int64]") -> int:
        if self._config.repetition_penalty != 1:
            scores = _penalised(scores, said, self._config.repetition_penalty)
        return int(scores.argmax()) if self.is_greedy else self._draw(scores)

    def _draw(self, scores: "NDArray[np.float32]") -> int:
        shares = np.exp((scores - scores.max()) / np.float32(self._config.temperature))
        sums = _filtered(shares, self._config).cumsum(dtype=np.float64)
        uniform = float(torch.rand(1, generator=self._generator, dtype=torch.float64))
        return min(int(sums.searchsorted(uniform * sums[-1], side="right")), len(sums) - 1)


def _penalised(scores: "NDArray[np.float32]", said: "NDArray[np.int64]", penalty: float) -> "NDArray[np.float32]":
    changed, known = scores.copy(), np.unique(said)
    before = scores[known]
    changed[known] = np.where(before < 0, before * penalty, before / penalty)
    return changed


def _filtered(shares: "NDArray[np.float32]", config: SamplingConfig) -> "NDArray[np.float32]":
    """Shares, of which the largest is 1, without those that the settings drop; equal ones stay or go together."""
    least = np.float32(0.0)
    if 0 < config.top_k < len(shares):
        least = np.partition(shares, -config.top_k)[-config.top_k]
    if config.top_p < 1:
        falling = np.sort(shares[shares >= least])[::-1]
        sums = falling.cumsum(dtype=np.float64)
        least = falling[sums.searchsorted(config.top_p * sums[-1])]
    least = max(least, np.float32(config.min_p))
    return np.where(shares < least, np.float32(0.0), shares)


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
