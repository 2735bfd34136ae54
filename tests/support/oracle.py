"""Dense attention with a mask, in plain loops: what a ragged cache is held against, and what such a cache holds."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface

from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.cache.softmax import Form
from uncomp_cli.engine.tokens.prompt import Prompt

LAYERS, HEADS, KV_HEADS = 4, 4, 2
Positions = list[list[set[int]]]
"""Kept context positions by layer and KV head."""


class DenseOracle:
    """Eager attention with full keys in every layer; context tokens outside `kept` are masked from `masked_from` on.

    Nothing here is shared with the engine: keys are repeated for every query head, softmax is spelled out.
    """

    def __init__(self, kept: Positions, *, context: int, masked_from: int) -> None:
        self.kept, self.context, self.masked_from = kept, context, masked_from

    def __call__(
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, *, scaling: float, **_: Any
    ) -> tuple[Tensor, None]:
        _, heads, length, _ = query.shape
        output = torch.empty_like(query)
        for head in range(heads):
            group = head * key.shape[1] // heads
            allowed = torch.ones(length, length).tril().bool()
            for position in set(range(self.context)) - self.kept[module.layer_idx][group]:
                allowed[self.masked_from :, position] = False
            logits = (query[0, head] @ key[0, group].T) * scaling
            weights = logits.masked_fill(~allowed, float("-inf")).softmax(dim=-1)
            output[0, head] = weights @ value[0, group]
        return output.transpose(1, 2), None


@torch.no_grad()
def masked_logits(stock: Any, ids: tuple[int, ...], oracle: DenseOracle) -> Tensor:
    """Stock logits [S, vocab] with the oracle's attention."""
    AttentionInterface.register("dense_oracle", oracle)
    stock.set_attn_implementation("dense_oracle")
    logits: Tensor = stock(torch.tensor([ids]), use_cache=False).logits[0]
    return logits


class Leaving:
    """Causal attention over the tokens that are there; behind the layers of `keep` those that it names go on."""

    def __init__(self, keep: dict[int, Tensor]) -> None:
        self.keep = keep

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        repeated = [tensor.repeat_interleave(query.shape[1] // key.shape[1], dim=1) for tensor in (key, value)]
        logits = query @ repeated[0].transpose(2, 3) * form.scaling
        future = torch.ones(logits.shape[-2:]).triu(1).bool()
        return logits.masked_fill(future, float("-inf")).softmax(dim=-1) @ repeated[1]

    def keep_after(self, layer: int) -> Tensor | None:
        return self.keep.get(layer)


def heads(cache: RaggedKVCache) -> Iterator[tuple[int, int, Tensor]]:
    """(layer, head, positions) of everything in the cache."""
    for index in range(len(cache.layers)):
        layer = cache.layer(index)
        for head in range(len(layer.lengths)):
            yield index, head, layer.head(head)[2]


def kept_context(cache: RaggedKVCache, context: int) -> Positions:
    kept: Positions = [[set() for _ in range(KV_HEADS)] for _ in cache.layers]
    for layer, head, positions in heads(cache):
        kept[layer][head] = {at for at in positions.tolist() if at < context}
    return kept


def storage_bytes(cache: RaggedKVCache) -> int:
    """What the cache's tensors have allocated."""
    layers = [cache.layer(i) for i in range(len(cache.layers))]
    return sum(t.untyped_storage().nbytes() for layer in layers for t in (layer.keys, layer.values, layer.positions))


@torch.no_grad()
def brute_force_scores(stock: Any, prompt: Prompt, *, window: int, sinks: int) -> list[Tensor]:
    """Per layer [G, context]: stock attention weights, one forward a question; maximum over questions."""
    per_question = []
    for question in prompt.questions:
        ids = torch.tensor([[*prompt.context, *question]])
        layers = stock(ids, use_cache=False, output_attentions=True).attentions
        scores = []
        for weights in layers:
            rows = weights[0, :, -min(window, len(question)) :, : len(prompt.context)].clone()
            rows[..., :sinks] = 0
            rows /= rows.sum(dim=-1, keepdim=True)
            scores.append(rows.mean(dim=1).view(KV_HEADS, -1, rows.shape[-1]).mean(dim=1))
        per_question.append(scores)
    return [torch.stack(layer).amax(dim=0) for layer in zip(*per_question, strict=True)]
