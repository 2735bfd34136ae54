"""A decoder: a loaded transformers model whose attention the engine owns. Two drivers:

    forward          the stock forward as it is: embedding scaling, norms, RoPE and multipliers stay the model's
                     business
    layer_by_layer   embed → for each layer: layer(hidden), then keep what the state says → norm → logits. Hidden
                     states, positions and RoPE's cosines and sines follow the tokens that stay; each keeps its own
                     position. For families that may be thinned, whose tokens leave between layers

Both ask for the logits of the wanted columns only.

A family, by transformers' `model_type`, is supported when it has passed a census, and is refused by name otherwise
(models/families.py).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from uncomp_cli.cache.states import States
from uncomp_cli.config import Matmul
from uncomp_cli.engine.forward.attention import ATTENTION_NAME, AttentionState, StepState, attending, recur, register
from uncomp_cli.engine.forward.mixers import place_mixers, states_of
from uncomp_cli.engine.forward.products import chosen_matmul, one_thread, slice_mlps, use_product
from uncomp_cli.engine.forward.program import make_program
from uncomp_cli.kernels.library import find
from uncomp_cli.models.families import check_family, load_families
from uncomp_cli.models.ranks import ALONE, Ranks
from uncomp_cli.models.rotary import fix_regime, hold_rope, regime_of
from uncomp_cli.spec import ModelSpec


def can_thin(spec: ModelSpec) -> bool:
    """Whether tokens may leave between layers: the family is proven, and no layer counts neighbours in a window."""
    return spec.model_type in load_families().thinned and len(spec.full_layers) == spec.num_layers


class ThinningState(AttentionState, Protocol):
    """A state that also decides which tokens go on."""

    def keep_after(self, layer: int) -> Tensor | None:
        """Ascending indices of the tokens that enter the next layer, or None when all do."""
        ...


class Decoder:
    """Runs a supported model's forward with the engine's attention.

    The model's modules are replaced in place: MLPs take their rows in slices, and float32 layers on a CPU are
    multiplied as `matmul` says (products.py: with int8 their weights become bytes for good; where they are numbers of
    16 bits and the C library is there, they are held so). Layers with a state of their own get it from the engine's
    (mixers.py). Frequencies that would follow the length of the text are held (rotary.py). Raises UsageError for a
    `matmul` that this model or machine gains nothing from, ValueError for one that differs from an earlier decoder's
    over the same model. Of several `ranks` it is one, whose `spec` is that of its heads; its products are torch's.
    """

    def __init__(self, model: Any, spec: ModelSpec, *, matmul: Matmul = "float32", ranks: Ranks = ALONE) -> None:
        check_family(spec.model_type)
        register()
        model.set_attn_implementation(ATTENTION_NAME)
        self.model, self.ranks = model, ranks
        self.spec = spec = self.ranks.part_of(spec)
        self.device: torch.device = model.device
        """Where the model's inputs go; asked for once, since the model looks through its parameters for it."""
        self.matmul = chosen_matmul(matmul, model)
        alone = self.ranks.count == 1
        if alone:
            use_product(model, self.matmul, find())
        hold_rope(model)
        if not self.rows_interact:
            slice_mlps(model)
        place_mixers(model, recur)
        self._program = make_program(model, spec, find()) if alone else None

    @property
    def rows_interact(self) -> bool:
        """Whether a row of a matrix product depends on the others: LLM.int8() chooses its outlier columns from all."""
        return bool(getattr(self.model, "is_loaded_in_8bit", False))

    @property
    def has_program(self) -> bool:
        """Whether a few tokens are a step in one call."""
        return self._program is not None

    @torch.no_grad()
    def new_states(self) -> States:
        """The states [1, …] of one token, which say what every other text's are like."""
        return states_of(self.model, self.spec.hidden_size)

    def fix_regime(self, tokens: int | None) -> bool:
        """Choose, before a text is read, the frequencies for it and its answer, `tokens` together; None: the longest.

        Returns whether they changed, so that keys cached before are void; never where RoPE does not depend on the
        length. To go on past the regime is an error: the text has to be read again.
        """
        return fix_regime(self.model, tokens)

    @property
    def regime_tokens(self) -> int | None:
        """The tokens that the present frequencies are for; None where they do not depend on the length."""
        return regime_of(self.model)

    @torch.no_grad()
    def forward(self, ids: Tensor, positions: Tensor, state: AttentionState, last: Tensor | int) -> Tensor:
        """Logits [B, K, vocab] of the columns `last` (an index tensor, or the last n) for ids and positions [B, N].

        A few tokens are a step in one call (program.py) where the model and the state allow it.
        """
        if self._program is not None and isinstance(last, int) and isinstance(state, StepState):
            with one_thread():  # also for what makes room in the cache, and what sees the queries
                done = self._program.run(ids, state, last)
            if done is not None:
                return done
        with self._attending(state):
            logits: Tensor = self.model(**self._inputs(ids, positions, last)).logits
        return logits

    @property
    def shows_layers(self) -> bool:
        """Whether what each layer is given can be seen, and made again: all families' but the oldest."""
        return len(_seen_layers(self.model)) > self.spec.places[-1]

    def differentiable(self, ids: Tensor, positions: Tensor, state: AttentionState, last: Tensor | int) -> Tensor:
        """`forward` without the step in one call, that records gradients where the caller has them enabled.

        Of each layer only the input waits for the way back, where the layer runs again, alone: `state` attends twice.
        """

        def run(index: int, layer: Callable[..., Tensor], *given: Tensor) -> Tensor:
            def attended(*given: Tensor) -> Tensor:
                with self._attending(state):  # also in a thread that goes back
                    return layer(*given)

            output: Tensor = checkpoint(attended, *given, use_reentrant=False, preserve_rng_state=False)
            return output

        return self._layers_through(run, ids, positions, state, last)

    @torch.no_grad()
    def layer_inputs(
        self, ids: Tensor, positions: Tensor, state: AttentionState, see: Callable[[int, Tensor], None]
    ) -> None:
        """Tell the hidden states [B, N, hidden_size] that each of the L layers that attend is given, when it is."""

        def run(place: int, layer: Callable[..., Tensor], *given: Tensor) -> Tensor:
            if place in self.spec.places:
                see(self.spec.places.index(place), given[0])
            return layer(*given)

        self._layers_through(run, ids, positions, state, 1)

    def _layers_through(
        self, run: Callable[..., Tensor], ids: Tensor, positions: Tensor, state: AttentionState, last: Tensor | int
    ) -> Tensor:
        """The stock forward, whose layers `run(index, layer, hidden, …)` calls: where stock training would."""
        layers = _seen_layers(self.model)
        for index, layer in enumerate(layers):
            layer.gradient_checkpointing, layer.training = True, True  # the layer's own flag: nothing in it drops out
            layer._gradient_checkpointing_func = partial(run, index)
        try:
            with self._attending(state):
                logits: Tensor = self.model(**self._inputs(ids, positions, last)).logits
            return logits
        finally:
            for layer in layers:
                layer.training = False
                del layer.gradient_checkpointing, layer._gradient_checkpointing_func

    @torch.no_grad()
    def layer_by_layer(self, ids: Tensor, positions: Tensor, state: ThinningState, from_end: Tensor) -> Tensor:
        """Logits [B, K, vocab] of the tokens that stand `from_end` [K] before the end (1: the last) of ids [B, N]."""
        inner = self.model.model
        at = positions.to(self.device)
        hidden: Tensor = inner.embed_tokens(ids.to(self.device))
        turns: tuple[Tensor, Tensor] = inner.rotary_emb(hidden, at)
        for index, layer in enumerate(inner.layers):
            with self._attending(state):
                hidden = layer(hidden, attention_mask=None, position_embeddings=turns, position_ids=at)
            kept = state.keep_after(index)
            if kept is not None:
                hidden, at = hidden[:, kept], at[:, kept]
                turns = (turns[0][:, kept], turns[1][:, kept])
        last = hidden[:, (hidden.shape[1] - from_end).to(hidden.device)]
        logits: Tensor = self.model.lm_head(inner.norm(last))
        return logits

    def _attending(self, state: AttentionState) -> AbstractContextManager[None]:
        return attending(state, self.spec, narrow=self.matmul != "float32")

    def _inputs(self, ids: Tensor, positions: Tensor, last: Tensor | int) -> dict[str, object]:
        return {
            "input_ids": ids.to(self.device, non_blocking=True),
            "position_ids": positions.to(self.device, non_blocking=True),
            "use_cache": False,
            "logits_to_keep": last.to(self.device) if isinstance(last, Tensor) else last,
        }


def _seen_layers(model: nn.Module) -> list[Any]:
    """A model's layers in their order, as far as a function can be put round each."""
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def rope_frequencies(model: nn.Module) -> Tensor | None:
    """Radians a position [R] by which every layer of a transformers model turns its R pairs of dimensions.

    None when there is not one set for all layers: several rotary embeddings, one with a set for each kind of layer
    (gemma3), layers without RoPE (smollm3), or no rotary embedding at all.
    """
    rotary = [module for name, module in model.named_modules() if name.rpartition(".")[2] == "rotary_emb"]
    everywhere = all(getattr(module, "use_rope", True) for module in model.modules())
    frequencies = getattr(rotary[0], "inv_freq", None) if len(rotary) == 1 and everywhere else None
    return frequencies if isinstance(frequencies, Tensor) else None
