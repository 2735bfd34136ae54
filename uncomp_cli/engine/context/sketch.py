"""A sketch: what every passage of a text is about, small enough to stay when its keys and values go.

    v(p, h)     mean of the values that KV head h has of the tokens of passage p
    near(p)     mean over heads of cos(v(p, h) - m(h), v(q, h) - m(h))        m(h): mean over the passages

A question q in other words than the text's has values like those of the passage that answers it: what heads hand on is
meaning more than wording, and values are not turned by RoPE, so that places do not matter. Keys, which say what a head
looks for, found less (docs/log.md). Every third layer does. Directions are kept in 8 bits, one byte a channel: of a
16-bit cache 1/12 of a token for each passage. Nothing of it is attended to; recall.py goes by it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import normalize

from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.spec import ModelSpec

_EVERY, _STEP, _OFFSET = 3, 127, 128


@dataclass(frozen=True, slots=True, eq=False)
class Sketch:
    """Of P passages and K heads: `directions` uint8 [P, K, D] of their values from the `mean` float16 [K, D]."""

    directions: Tensor
    mean: Tensor

    @classmethod
    def of(cls, means: Tensor) -> "Sketch":
        """Of the mean values [P, K, D] of each passage."""
        mean = means.mean(dim=0).half()
        away = means - mean.float()
        largest = away.abs().amax(dim=-1, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        return cls((away / largest * _STEP).round().add(_OFFSET).to(torch.uint8), mean)

    def __len__(self) -> int:
        return len(self.directions)

    @property
    def tensors(self) -> tuple[Tensor, Tensor]:
        """What it takes memory for."""
        return self.directions, self.mean

    def near(self, asked: Tensor) -> Tensor:
        """How near [P] each passage is to a question whose words' mean values are `asked` [K, D]; -1 to 1."""
        away = normalize(asked.float().cpu() - self.mean.float(), dim=-1)
        return (normalize(self.directions.float() - _OFFSET, dim=-1) * away).sum(dim=-1).mean(dim=1)


class Sketcher:
    """Makes a sketch while a text is read; `passages` int64 [S] number each token's passage, -1 for none."""

    def __init__(self, spec: ModelSpec, passages: Tensor) -> None:
        self._layers, self._passages = sketched_layers(spec), passages
        count = int(passages.amax()) + 1 if len(passages) else 0
        self._sums = torch.zeros(len(self._layers), spec.num_kv_heads, count, spec.head_dim)

    def add(self, layer: int, first: int, values: Tensor) -> None:
        """Take in a layer's values [G, N, D] of the tokens from position `first` on."""
        if layer not in self._layers:
            return
        passages = self._passages[first : first + values.shape[1]]
        inside = (passages >= 0).nonzero()[:, 0]
        sums, own = self._sums[self._layers.index(layer)], values.cpu()[:, inside].float()
        sums.index_add_(1, passages[inside], own)

    def sketch(self) -> Sketch | None:
        """Of all that was taken in; None for a text without passages."""
        count = self._sums.shape[2]
        if not count:
            return None
        tokens = torch.bincount(self._passages[self._passages >= 0], minlength=count).clamp_min(1)
        return Sketch.of((self._sums.flatten(0, 1) / tokens[:, None]).transpose(0, 1))


def sketched_layers(spec: ModelSpec) -> tuple[int, ...]:
    """The layers whose heads are in a sketch."""
    return spec.full_layers[1::_EVERY] or spec.full_layers


def sketch_bytes(spec: ModelSpec, passages: int) -> int:
    """What a sketch of so many passages takes."""
    return len(sketched_layers(spec)) * spec.num_kv_heads * spec.head_dim * (passages + 2)


def asked_values(cache: RaggedKVCache, spec: ModelSpec, at: Sequence[int]) -> Tensor:
    """The mean values [K, D] of the tokens `at`, counted from the end (-1: the last), that were just put behind."""
    heads = [cache.layer(layer).tail(head)[1] for layer in sketched_layers(spec) for head in range(spec.num_kv_heads)]
    return torch.stack([values[list(at)].float().mean(dim=0) for values in heads])
