"""One row of a batch in one layer of a prefill: the unpadded prompt, cut into its context and its questions."""

from itertools import pairwise

import torch
from torch import Tensor

from uncomp_cli.cache.ragged import Head
from uncomp_cli.cache.view import LayerView
from uncomp_cli.engine.forward.attention import attend_after, attend_causal
from uncomp_cli.engine.tokens.prompt import Prompt

__all__ = ["Row"]


class Row:
    """One row of the batch in one layer: the unpadded prompt, cut into context and questions."""

    def __init__(self, prompt: Prompt, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> None:
        self.prompt, self.query, self.key, self.value, self.scaling = prompt, query, key, value, scaling
        starts = [len(prompt.context)]
        for question in prompt.questions:
            starts.append(starts[-1] + len(question))
        self.spans = [slice(a, b) for a, b in pairwise(starts)]

    def attend(self, *, window: int | None, last_only: bool) -> Tensor:
        """The attention output [H, N, D]; with `last_only` zero but for the rows whose logits are read."""
        if len(self.spans) == 1 and not last_only:
            return attend_causal(self.query, self.key, self.value, scaling=self.scaling, window=window)
        context = len(self.prompt.context)
        output = torch.zeros_like(self.query)
        if not last_only:
            trunk = self.query[:, :context], self.key[:, :context], self.value[:, :context]
            output[:, :context] = attend_causal(*trunk, scaling=self.scaling, window=window)
        for span in self.spans:
            rows = slice(span.stop - 1, span.stop) if last_only else span
            seen = [torch.cat([t[:, :context], t[:, span]], dim=1) for t in (self.key, self.value)]
            output[:, rows] = attend_after(self.query[:, rows], *seen, scaling=self.scaling, window=window)
        return output

    def view(self, layer: int, frequencies: Tensor | None) -> LayerView:
        """What scorers and measures may look at."""
        context = len(self.prompt.context)
        return LayerView(
            layer=layer,
            queries=self.query[:, :context],
            keys=self.key[:, :context],
            values=self.value[:, :context],
            branches=self.branches(),
            scaling=self.scaling,
            frequencies=frequencies,
            asked=self.prompt.asked,
        )

    def branches(self) -> tuple[tuple[Tensor, Tensor], ...]:
        """Every question's queries and keys."""
        return tuple((self.query[:, span], self.key[:, span]) for span in self.spans)

    def tails(self, window: int | None) -> list[list[Head]]:
        """Every question's entries, a head each; in a sliding layer those inside its `window`."""
        context = len(self.prompt.context)
        tails = []
        for span in self.spans:
            first = span.start if window is None else max(span.start, span.stop - window)
            keys, values = self.key[:, first : span.stop], self.value[:, first : span.stop]
            offset = context + first - span.start
            positions = torch.arange(offset, offset + keys.shape[1], device=keys.device, dtype=torch.int32)
            tails.append([(keys[g], values[g], positions) for g in range(len(keys))])
        return tails
