"""A model that is loaded: its weights, tokenizer, shape, how its positions are turned, and which model it is.

A fingerprint says that, so that a profile is used on the model that it was measured on. The hash of the stored weights
and the shape of the attention decide. How the weights are held while it runs does not: a model in another dtype, on
another device, quantized to 8 or 4 bits while loading, or with its context extended is the same model, because its
files are. Another file of weights, such as a GGUF with fewer bits, is another model.
"""

from dataclasses import dataclass, field
from typing import Any

import torch

from uncomp_cli.models.catalog import ModelInfo
from uncomp_cli.models.extension import RopeState
from uncomp_cli.models.ranks import ALONE, Ranks
from uncomp_cli.models.weights.bits import Loss
from uncomp_cli.spec import ModelSpec
from uncomp_cli.uncertainty.profile import ModelFingerprint


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to run. `weights_bytes` is what its parameters and buffers have allocated.

    `spec.trained_length` is what may be read, `info.trained_length` what it was trained for. `own_config` is the
    configuration that the model came with; None when it runs by that. `quantization` is what made other numbers of the
    weights, `loss` how far off they are where that is known, `notes` what has to be said of how they are held.
    Of several `ranks` this process has a part of the model; `spec` is of the whole, and the bytes are those of all.
    """

    model: Any
    tokenizer: Any
    spec: ModelSpec
    info: ModelInfo
    load_s: float
    weights_bytes: int
    quantization: str | None
    rope: RopeState = field(default_factory=RopeState)
    own_config: Any = None
    loss: Loss | None = None
    notes: tuple[str, ...] = ()
    ranks: Ranks = ALONE

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        device: torch.device = self.model.device
        return device


def fingerprint(loaded: LoadedModel) -> ModelFingerprint:
    """The fingerprint of a loaded model."""
    return fingerprint_of(loaded.info, loaded.spec)


def fingerprint_of(info: ModelInfo, spec: ModelSpec) -> ModelFingerprint:
    """The same of a model that is on this machine and not loaded, from what is known about it and its shape."""
    return ModelFingerprint(
        name=info.name,
        model_type=spec.model_type,
        num_layers=spec.num_layers,
        num_heads=spec.num_heads,
        num_kv_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        weights_sha256=info.sha256,
    )
