"""Choosing the next token from its logits, with transformers' own logits processors."""

import torch
from torch import Tensor
from transformers import LogitsProcessorList
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from uncomp_cli.config import SamplingConfig

__all__ = ["Sampler"]


class Sampler:
    """Greedy or random choice with its own seeded generator; the repetition penalty looks at generated tokens."""

    def __init__(self, config: SamplingConfig) -> None:
        self._greedy = config.temperature == 0
        self._processors = _processors(config)
        self._generator = torch.Generator().manual_seed(config.seed)

    def choose(self, logits: Tensor, generated: Tensor) -> Tensor:
        """Next tokens int64 [B] for logits [B, vocab], given the tokens generated so far [B, T]; on the CPU."""
        scores = self._processors(generated.to(logits.device), logits.float()) if self._processors else logits
        if self._greedy:
            return scores.argmax(dim=-1).cpu()
        probabilities = scores.softmax(dim=-1).cpu()
        return torch.multinomial(probabilities, 1, generator=self._generator)[:, 0]


def _processors(config: SamplingConfig) -> LogitsProcessorList:
    """The processors that `config` switches on, in transformers' order; penalty first, filters last."""
    chosen = []
    if config.repetition_penalty != 1:
        chosen.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    if config.temperature > 0:
        chosen.append(TemperatureLogitsWarper(config.temperature))
        if config.top_k > 0:
            chosen.append(TopKLogitsWarper(config.top_k))
        if config.top_p < 1:
            chosen.append(TopPLogitsWarper(config.top_p))
        if config.min_p > 0:
            chosen.append(MinPLogitsWarper(config.min_p))
    return LogitsProcessorList(chosen)
