"""The next token, chosen from its logits with transformers' own logits processors; its text; what ends an answer."""

from typing import Any

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import LogitsProcessorList, PreTrainedTokenizerFast
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from uncomp_cli.config import SamplingConfig


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


class TextStream:
    """Turns one row's token ids into text as soon as it is whole characters."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self._tokenizer = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def push(self, token_id: int) -> str:
        """What became printable with this token; empty while a character is incomplete."""
        return self._stream.step(self._tokenizer, token_id) or ""


def stop_tokens(model: Any, tokenizer: PreTrainedTokenizerFast) -> tuple[int, ...]:
    """The tokens that end an answer: the generation config's, the model config's and the tokenizer's."""
    found: set[int] = set()
    for source in (getattr(model, "generation_config", None), model.config, tokenizer):
        ids = getattr(source, "eos_token_id", None)
        found.update(ids if isinstance(ids, list) else [] if ids is None else [ids])
    return tuple(sorted(found))


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
