"""Measuring: from what one layer hands to attention to the values of a measure.

Calibration calls this for every measure of a layer, a prefill for the one its policy needs, so a measure costs little
beside the layer's own attention. States are those of the context; attention is what the last queries of a question pay
to it. Of several questions the largest value counts, as a scorer keeps what any of them looks at. Tokens of a question
that compete with the context (`LayerView.asked`) are the question's here.

    entropy/…          of the context's states; `prerope` turns them back first (a whole-context shift changes nothing)
    lmba/raw           of the whole row: sinks and the question's own tokens count as tokens and as mass
    lmba/sinkfree      of the context's part of the row without the sinks
    lmbo               of the context's part, sinks included; of every fourth row, the last among them: it sorts rows
    attention_entropy  of the context's part without the sinks, divided by ln of its length: lengths can be compared
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from uncomp_cli.cache.scorers import angles, turn
from uncomp_cli.cache.view import LayerView
from uncomp_cli.cache.window import asked_attention
from uncomp_cli.errors import ModelError
from uncomp_cli.uncertainty.entropy import attention_entropy, knee_rank, spectrum, truncated_entropy
from uncomp_cli.uncertainty.mass import minimum_budget, minimum_output_budget
from uncomp_cli.uncertainty.measures import ATTENTION_MEASURES, Measure

_EVERY_ROW = 4  # for lmbo: 8 rows of a window of 32 give its mean at a quarter of the time


def measure_layer(measure: Measure, view: LayerView, *, window: int, sinks: int) -> Tensor:
    """Values [X] of one measure in float32: H for queries and attention, G for keys and values.

    Attention is that of the last `window` queries of each question; `sinks` are the context's first tokens. Raises
    ModelError, naming the layer, for states that are not finite and for `prerope` where the layers do not share one
    rotation; ValueError for a measure that one layer of a prefill does not show.
    """
    return LayerMeter(view, window=window, sinks=sinks).value(measure)


def measure_hidden(measure: Measure, states: Tensor) -> Tensor:
    """Value [1] of a matrix entropy of hidden states [S, hidden_size]."""
    return _entropy(measure, spectrum(states[None]))


@dataclass(slots=True)
class LayerMeter:
    """Measures one layer; what several measures need, spectra and attention rows, is computed once."""

    view: LayerView
    window: int
    sinks: int
    _spectra: dict[tuple[str, bool], Tensor] = field(default_factory=dict)
    _attention: tuple[Tensor, ...] = ()

    @torch.no_grad()
    def value(self, measure: Measure) -> Tensor:
        """`measure_layer`."""
        try:
            if measure.name in ATTENTION_MEASURES:
                return torch.stack([self._of_rows(measure, rows) for rows in self._rows()]).amax(dim=0)
            if measure.state is None or not measure.live:
                raise ValueError(f"measure '{measure}' is not that of one layer's attention")
            return _entropy(measure, self._spectrum(measure.state, measure.prerope))
        except ModelError as error:
            raise ModelError(f"layer {self.view.layer}: {error.message}", hint=error.hint) from error

    def _spectrum(self, state: str, prerope: bool) -> Tensor:
        if (state, prerope) not in self._spectra:
            states = {"q": self.view.queries, "k": self.view.keys, "v": self.view.values}[state]
            self._spectra[state, prerope] = spectrum(_turned_back(states, self.view) if prerope else states)
        return self._spectra[state, prerope]

    def _rows(self) -> tuple[Tensor, ...]:
        """Attention [G, H/G, W, S + N] of every question, its tokens that compete with the context included."""
        if not self._attention:
            self._attention = tuple(asked_attention(self.view, window=self.window))
        return self._attention

    @property
    def document(self) -> int:
        """Tokens of the context that are no question's; a sliding layer's keys are those of the last ones."""
        return self.view.keys.shape[1] - self.view.asked

    def _of_rows(self, measure: Measure, rows: Tensor) -> Tensor:
        """An attention measure [H] of the rows [G, H/G, W, S + N] of one question."""
        if measure.name == "lmba/raw":
            return minimum_budget(rows).mean(dim=-1).flatten().float()
        context = rows[..., : self.document]
        sinks = min(self.sinks, self.document - 1)
        if measure.name == "lmbo":
            some = context[:, :, (rows.shape[2] - 1) % _EVERY_ROW :: _EVERY_ROW]
            packed = minimum_output_budget(some.flatten(1, 2), self.view.values[:, : self.document])
            return packed.view(some.shape[:3]).mean(dim=-1).flatten().float()
        if measure.name == "lmba/sinkfree":
            return minimum_budget(context[..., sinks:]).mean(dim=-1).flatten().float()
        return attention_entropy(context[..., sinks:]).mean(dim=-1).flatten().float()


def _entropy(measure: Measure, spectra: Tensor) -> Tensor:
    """The matrix entropy [X] of spectra [X, D] at the measure's rank."""
    rank = measure.rank_of(spectra.shape[-1])
    ranks = knee_rank(spectra) if rank is None else rank
    return truncated_entropy(spectra, rank=ranks, renormalise=measure.renormalised).float()


def _turned_back(states: Tensor, view: LayerView) -> Tensor:
    """States [X, S, D] as they were before RoPE, up to one turn for all and RoPE's own constant factor."""
    if view.frequencies is None:
        raise ModelError(
            "its rotary embedding is not one for all layers, so that no state can be turned back",
            hint="leave measures with /prerope out",
        )
    positions = torch.arange(states.shape[1], device=states.device)
    cos, sin = angles(positions, view.frequencies.to(states.device))
    return turn(states.float(), cos, -sin)
