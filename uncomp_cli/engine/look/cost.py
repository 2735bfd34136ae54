"""Eviction loss: how much an answer's likelihood falls when one KV head keeps a few tokens, to the first order.

With o the attention output of a head on the answer's tokens, o_S that over the kept tokens S alone, and L the mean
negative log-likelihood of an answer token, replacing o by o_S moves L by about dL/do · (o_S - o). Of a KV head

    loss = sum over the answer's tokens | sum over its query heads  dL/do · (o_S - o) |

Errors of several tokens must not cancel, so the sum is over absolute values. One pass forward and one back through the
answer's tokens give dL/do of all heads: each layer's output gets a summand that is zero and wants a gradient (Michel et
al., arXiv 1905.10650, section 4, estimate so what a whole head is worth). The first answer token is told by the prefill
of the prompt, which evicts nothing: it does not count.

`keep` tokens of the context stay beside the protected ones: those that the window scorer, made coherent, ranks first.
Question and answer are always seen.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from uncomp_cli.cache.coherence import pool, share_by_word
from uncomp_cli.cache.eviction import select
from uncomp_cli.cache.softmax import Form
from uncomp_cli.cache.states import States
from uncomp_cli.cache.view import LayerView
from uncomp_cli.cache.window import WindowScorer
from uncomp_cli.config import ScorerConfig
from uncomp_cli.engine.forward.attention import AttentionState, attend_after
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.forward.mixers import Step
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.errors import ModelError, UsageError
from uncomp_cli.numerals import format_count


@dataclass(frozen=True, slots=True)
class ReadLayer:
    """One layer's keys and values [G, P, D] of a prompt of P tokens, question included, and what a head would keep.

    `kept` int64 [G, K] are ascending positions of the prompt; None in a layer that is never compressed.
    """

    keys: Tensor
    values: Tensor
    kept: Tensor | None


def few_tokens(view: LayerView, prompt: Prompt, *, keep: int, config: ScorerConfig) -> Tensor:
    """Positions [G, K] of the protected tokens, of `keep` others of the context, and of the question."""
    scores = pool(WindowScorer(config).score(view), kind=config.pooling, width=config.width)
    words = prompt.context.words.to(scores.device) if config.whole_words else None
    if words is not None:
        scores = share_by_word(scores, words)
    protected = prompt.context.protected.to(scores.device)
    count = min(keep + int(protected.sum()), len(prompt.context))
    kept = torch.stack(select(scores, [count] * len(scores), protected=protected, words=words))
    question = torch.arange(len(prompt.context), prompt.flat_len, device=kept.device)
    return torch.cat([kept, question.expand(len(kept), -1)], dim=1)


def eviction_loss(
    decoder: Decoder, layers: Sequence[ReadLayer], answer: Sequence[int], *, states: States | None = None
) -> Tensor:
    """Losses [L, G] in float32 of the prompt that `layers` hold, for the `answer` behind it; 0 where kept is None.

    Layers with a state of their own go on from `states`.

    The gradient costs memory for the answer's tokens alone, of one layer at a time. Raises UsageError for an answer of
    one token, ModelError for weights that pass no gradient back and, naming the layer, for a gradient that is not
    finite.
    """
    if len(answer) < 2:
        raise UsageError(
            f"an answer of {format_count(len(answer), 'token')} has none that eviction could change",
            hint="use tasks whose answers are longer",
        )
    probe = _Probe(layers, states or States())
    read = layers[0].keys.shape[1]
    ids = torch.tensor([answer[:-1]])
    positions = torch.arange(read, read + ids.shape[1])[None]
    with torch.enable_grad(), _weights_fixed(decoder.model):
        end, slope = _slope(decoder.differentiable(ids, positions, probe, ids.shape[1])[0], answer[1:])
        gradients = _gradients(end, slope, probe)
    losses = [
        _layer_loss(probe.calls[index], layer, gradient[0].float(), index)
        for index, (layer, gradient) in enumerate(zip(layers, gradients, strict=True))
    ]
    return torch.stack(losses)


def _slope(logits: Tensor, answer: Sequence[int]) -> tuple[GradientEdge | None, Tensor]:
    """Where the way back from logits [n, vocab] begins, and the slope there of the mean NLL of `answer`.

    dL / d logits = (softmax(logits) - 1 at the answer) / n is written down. The logits themselves are not needed then,
    and are let go: of a large vocabulary they are the most that a sample takes.
    """
    slope = logits.detach().softmax(dim=-1, dtype=torch.float32)
    slope[torch.arange(len(answer), device=slope.device), torch.tensor(answer, device=slope.device)] -= 1
    slope /= len(answer)
    return get_gradient_edge(logits) if logits.requires_grad else None, slope.to(logits.dtype)


def _gradients(end: GradientEdge | None, slope: Tensor, probe: "_Probe") -> list[Tensor]:
    """Of the mean NLL by every layer's shift.

    Raises ModelError when a layer passes none back, as 4-bit weights do on a CPU.
    """
    shifts = [probe.calls[index].shift for index in range(len(probe.layers))]
    found: Sequence[Tensor | None] = [None] * len(shifts)
    if end is not None:
        found = torch.autograd.grad([end], shifts, [slope], allow_unused=True)
    known = [gradient for gradient in found if gradient is not None]
    if len(known) < len(shifts):
        raise ModelError(
            "the weights of this model, as they are held here, pass no gradient back",
            hint="use --quantize none: what is measured serves the quantized model as well",
        )
    return known


@dataclass(frozen=True, slots=True)
class _Call:
    """What attention saw of the answer in one layer; `output` [H, n, D], and zero, `shift` [1, H, n, D]."""

    query: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    shift: Tensor
    form: Form


class _Probe(AttentionState):
    """Exact attention of an answer behind a prompt that was read; every output can be shifted.

    A layer that runs again on the way back is shifted as it was.
    """

    def __init__(self, layers: Sequence[ReadLayer], states: States) -> None:
        self.layers, self.states = layers, states
        self.calls: dict[int, _Call] = {}

    def recur(self, layer: int, hidden: Tensor, step: Step) -> Tensor:
        return step(hidden, self.states.copy())

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        read = self.layers[layer]
        seen = torch.cat([read.keys, key[0]], dim=1), torch.cat([read.values, value[0]], dim=1)
        output = attend_after(query[0], *seen, form)
        if layer not in self.calls:
            shift = torch.zeros_like(output[None], requires_grad=True)
            own = query[0].detach(), key[0].detach(), value[0].detach()
            self.calls[layer] = _Call(*own, output.detach(), shift, form)
        return output[None] + self.calls[layer].shift


def _layer_loss(call: _Call, layer: ReadLayer, gradient: Tensor, index: int) -> Tensor:
    """The losses [G] of one layer; gradient [H, n, D]."""
    if not gradient.isfinite().all():
        raise ModelError(f"layer {index}: the gradient of an answer's loss is not finite", hint="use --dtype float32")
    if layer.kept is None:
        return gradient.new_zeros(len(layer.keys))
    spread = layer.kept[..., None].expand(-1, -1, layer.keys.shape[-1])
    few = [
        torch.cat([read.gather(1, spread), own], dim=1).float()
        for read, own in ((layer.keys, call.key), (layer.values, call.value))
    ]
    change = attend_after(call.query.float(), few[0], few[1], call.form) - call.output.float()
    per_token = (gradient * change).sum(dim=-1).view(len(layer.keys), -1, change.shape[1]).sum(dim=1)
    return per_token.abs().sum(dim=-1)


@contextmanager
def _weights_fixed(model: torch.nn.Module) -> Generator[None]:
    """No weight wants a gradient meanwhile; those that did want one again afterwards."""
    wanting = [weight for weight in model.parameters() if weight.requires_grad]
    try:
        for weight in wanting:
            weight.requires_grad_(False)
        yield
    finally:
        for weight in wanting:
            weight.requires_grad_(True)
