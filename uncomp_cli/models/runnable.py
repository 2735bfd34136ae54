"""A model that is loaded: its weights, tokenizer, shape, and how its positions are turned."""

from dataclasses import dataclass, field
from typing import Any

import torch

from uncomp_cli.models.catalog import ModelInfo
from uncomp_cli.models.extension import RopeState
from uncomp_cli.spec import ModelSpec

__all__ = ["LoadedModel"]


@dataclass(frozen=True, slots=True)
class LoadedModel:
    """A model that is ready to run. `weights_bytes` is what its parameters and buffers have allocated.

    `spec.trained_length` is what may be read, `info.trained_length` what it was trained for. `own_config` is the
    configuration that the model came with; None when it runs by that.
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

    @property
    def device(self) -> torch.device:
        """Where the model runs."""
        device: torch.device = self.model.device
        return device
