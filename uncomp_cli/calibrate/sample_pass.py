"""One sample, read once: every measure of every layer, and what an answer loses.

    prefill (exact)           each layer is measured as it hands its queries, keys and values to attention, and its
                              keys and values are kept for the answer
    hidden states             of the same forward: what each layer was given
    answer, there and back    the eviction loss (engine/look/cost.py)

A sliding layer is never compressed: its attention is measured over the last tokens that its window holds, and it loses
nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from uncomp_cli.cache.view import LayerView
from uncomp_cli.config import ScorerConfig
from uncomp_cli.engine.forward.attention import AttentionState, attend_causal
from uncomp_cli.engine.forward.decoder import Decoder, rope_frequencies
from uncomp_cli.engine.look.cost import ReadLayer, eviction_loss, few_tokens
from uncomp_cli.engine.spend.gauge import LayerMeter, measure_hidden
from uncomp_cli.engine.tokens.prompt import Prompt
from uncomp_cli.errors import ModelError
from uncomp_cli.uncertainty.measures import DEFAULT_MEASURES, Measure, parse_measure

__all__ = ["MeasuringConfig", "measurable", "read_and_measure"]

LOSS = "loss"


@dataclass(frozen=True, slots=True)
class MeasuringConfig:
    """What is measured, and how: attention by the scorer's window, the loss of `keep` context tokens a head."""

    measures: tuple[str, ...] = (*DEFAULT_MEASURES, LOSS)
    keep: int = 20
    scorer: ScorerConfig = field(default_factory=ScorerConfig)


def measurable(decoder: Decoder, measures: Sequence[str]) -> tuple[str, ...]:
    """Those of `measures` that this model has: states can be turned back when one rotation holds for all layers."""
    turned_alike = rope_frequencies(decoder.model) is not None
    return tuple(key for key in measures if turned_alike or not parse_measure(key).prerope)


def read_and_measure(
    decoder: Decoder, prompt: Prompt, answer: Sequence[int], *, config: MeasuringConfig
) -> dict[str, Tensor]:
    """Values [L, X] of every measure on a prompt of one question and the answer that follows it.

    Raises ModelError, naming the layer, for states that are not finite.
    """
    state = _MeasuringState(decoder, prompt, config)
    ids = torch.tensor([[*prompt.context, *prompt.questions[0]]])
    inputs = decoder.layer_inputs(ids, torch.arange(ids.shape[1])[None], state)
    values = {str(measure): torch.stack(of_layers) for measure, of_layers in state.values.items()}
    for measure in (measure for measure in state.measures if measure.state == "hidden"):
        of_layers = [_hidden(measure, states[0, : len(prompt.context)], at) for at, states in enumerate(inputs)]
        values[str(measure)] = torch.stack(of_layers)
    del inputs  # as large as the model is wide: gone before the gradients come
    if LOSS in config.measures:
        values[LOSS] = eviction_loss(decoder, state.layers, answer)
    return {key: values[key].cpu() for key in config.measures}


class _MeasuringState(AttentionState):
    """Exact causal attention over one prompt; measures every layer."""

    def __init__(self, decoder: Decoder, prompt: Prompt, config: MeasuringConfig) -> None:
        self.prompt = prompt
        self.config = config
        self.frequencies = rope_frequencies(decoder.model)
        self.measures = [parse_measure(key) for key in config.measures]
        self.values: dict[Measure, list[Tensor]] = {measure: [] for measure in self.measures if measure.live}
        self.layers: list[ReadLayer] = []

    def attend(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, scaling: float, sliding_window: int | None
    ) -> Tensor:
        queries, keys, values = query[0], key[0].contiguous(), value[0].contiguous()
        view = partial(self._view, layer, queries, keys, values, scaling)
        length, config = len(self.prompt.context), self.config.scorer
        first = 0 if sliding_window is None else max(0, length - sliding_window)
        meter = LayerMeter(view(first), window=config.window, sinks=0 if first else config.sinks)
        for measure, of_layers in self.values.items():
            of_layers.append(meter.value(measure))
        few = None
        if sliding_window is None:
            few = few_tokens(view(0), self.prompt, keep=self.config.keep, config=config)
        self.layers.append(ReadLayer(keys, values, few))
        return attend_causal(queries, keys, values, scaling=scaling, window=sliding_window)[None]

    def _view(self, layer: int, queries: Tensor, keys: Tensor, values: Tensor, scaling: float, first: int) -> LayerView:
        """The context, its keys and values from token `first` on, and the question."""
        length = len(self.prompt.context)
        return LayerView(
            layer=layer,
            queries=queries[:, :length],
            keys=keys[:, first:length],
            values=values[:, first:length],
            branches=((queries[:, length:], keys[:, length:]),),
            scaling=scaling,
            frequencies=self.frequencies,
        )


def _hidden(measure: Measure, states: Tensor, layer: int) -> Tensor:
    try:
        return measure_hidden(measure, states)
    except ModelError as error:
        raise ModelError(f"layer {layer}: {error.message}", hint=error.hint) from error
