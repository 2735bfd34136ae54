"""How long a run of `uncomp rope` takes, from a short probe on this machine.

    seconds(n tokens) = a·n + b·(pairs of tokens that attend to each other)

Both come from timing two lengths, n and 4n. A full cache has n²/2 pairs, a re-packed one at most n times the reach.
Logits of every token cost what their weights are of all weights. An estimate: the run corrects it as it goes.
"""

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from uncomp_cli.engine.forward.attention import attend_causal
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.models.loading import LoadedModel
from uncomp_cli.spec import ModelSpec

__all__ = ["ReadingCost", "probe"]

_SHORT, _LONG = 512, 2048


@dataclass(frozen=True, slots=True)
class ReadingCost:
    """Seconds a token and a pair of tokens, and what logits of every token add to a token's."""

    token_s: float
    pair_s: float
    logits_share: float

    @classmethod
    def fitted(cls, times_s: tuple[float, float], lengths: tuple[int, int], *, logits_share: float) -> "ReadingCost":
        """The cost that explains the times of two lengths, the shorter first; neither part is below zero."""
        (short_s, long_s), (short, long) = times_s, lengths
        pair_s = max(0.0, (long_s / long - short_s / short) * 2 / (long - short))
        token_s = max(0.0, (long_s - pair_s * long**2 / 2) / long)
        return cls(token_s, pair_s, logits_share)

    def seconds(self, tokens: int, *, reach: int | None = None, logits: bool = False) -> float:
        """What reading `tokens` takes, none of them looking back over more than `reach`."""
        back = tokens / 2 if reach is None else min(tokens / 2, reach)
        return tokens * (self.token_s * (1 + self.logits_share * logits) + self.pair_s * back)


class _Causal:
    """Exact causal attention; nothing is kept."""

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, sliding_window: int | None
    ) -> Tensor:
        """Attention [1, H, N, D]."""
        return attend_causal(query[0], key[0], value[0], scaling=scaling, window=sliding_window)[None]


def probe(loaded: LoadedModel) -> ReadingCost:
    """Time two short texts, after a shorter one that warms up."""
    decoder = Decoder(loaded.model, loaded.spec)
    longest = min(_LONG, loaded.info.trained_length)
    short = min(_SHORT, max(1, longest // 4))
    decoder.fix_regime(longest)
    _time(decoder, short)
    times_s = _time(decoder, short), _time(decoder, longest)
    return ReadingCost.fitted(times_s, (short, longest), logits_share=_logits_share(loaded.spec))


def _time(decoder: Decoder, tokens: int) -> float:
    ids = torch.arange(tokens)[None] % decoder.spec.vocab_size
    begun = time.perf_counter()
    # Reading one logit waits for the device.
    float(decoder.forward(ids, torch.arange(tokens)[None], _Causal(), 1)[0, 0, 0])
    return time.perf_counter() - begun


def _logits_share(spec: ModelSpec) -> float:
    """Weights of the vocabulary over those of all layers."""
    attention = 2 * spec.hidden_size * spec.head_dim * (spec.num_heads + spec.num_kv_heads)
    layers = spec.num_layers * (attention + 3 * spec.hidden_size * spec.intermediate_size)
    return spec.vocab_size * spec.hidden_size / layers
