"""Matrices of a model in Hugging Face format that become blocks or 16 bits as they are read, one at a time.

transformers reads a weight, renames and merges it as the family wants, and hands it to a quantizer, which is ours: the
wide numbers of one matrix are in memory at a time. What comes back takes the place of the weight until all is there;
then layers over it (modules.py) take the places of the modules.

Held so are the linear layers and the embedding, where columns come in blocks of 32. All else stays numbers of 32 bits:
norms, experts that are merged into one tensor, convolutions.
"""

from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from uncomp_cli.kernels.library import BLOCKS, TILE_ROWS, Kind, find
from uncomp_cli.kernels.matrix import Matrix
from uncomp_cli.kernels.pages import Pages
from uncomp_cli.models.weights.bits import COLS, INNER, OUTER, Loss, held
from uncomp_cli.models.weights.modules import put

_METHOD = "uncomp"
_ASKED = ".wg"
"""A router of which its family's code wants to know what type its weight is (hunyuan_v1_moe)."""


class Holding(QuantizationConfigMixin):  # type: ignore[misc]  # transformers does not type it
    """How transformers is told: what the weights are to be held as, and what came of it."""

    def __init__(self, weights: str) -> None:
        super().__init__(quant_method=_METHOD)
        self.weights, self.library, self.loss = weights, find(), Loss()
        self.pages, self.made = Pages(), list[Matrix]()

    def __deepcopy__(self, memo: object) -> "Holding":
        """A configuration that is copied on the way has the same."""
        return self

    def to_dict(self) -> dict[str, Any]:
        """What a configuration that is written down says."""
        return {"quant_method": _METHOD, "weights": self.weights}

    def take(self, name: str, numbers: Tensor, kind: Kind) -> nn.Parameter:
        """Hold a matrix; what stands for it until all is read."""
        matrix = held(name, numbers, kind, self.library, self.pages, self.loss)
        self.made.append(matrix)
        return nn.Parameter(matrix.data, requires_grad=False)

    def settle(self, model: nn.Module, dtype: torch.dtype) -> None:
        """Put layers over the matrices; one that is shared stays shared."""
        known = {matrix.data.data_ptr(): matrix for matrix in self.made}
        for name, module in list(model.named_modules()):
            weight = getattr(module, "weight", None)
            matrix = known.get(weight.data_ptr()) if isinstance(weight, Tensor) else None
            if matrix is not None:
                put(model, f"{name}.weight", matrix, dtype, self.library)


@register_quantizer(_METHOD)
class _Quantizer(HfQuantizer):  # type: ignore[misc]
    """What transformers asks which weights are ours."""

    def _process_model_before_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        self.kinds = kinds_of(model, self.quantization_config.weights)
        return model

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        return param_name in self.kinds

    def get_quantize_ops(self) -> ConversionOps:
        return _Hold(self)

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False


class _Hold(ConversionOps):  # type: ignore[misc]
    """Weights by their names → what is held of them."""

    def __init__(self, quantizer: _Quantizer) -> None:
        self.holding, self.kinds = quantizer.quantization_config, quantizer.kinds

    def convert(self, input_dict: dict[str, Any], **kwargs: Any) -> dict[str, Tensor]:
        given = {name: value[0] if isinstance(value, list) else value for name, value in input_dict.items()}
        return {
            name: self.holding.take(name, value, self.kinds[name]) if name in self.kinds else value
            for name, value in given.items()
        }


def kinds_of(model: Any, weights: str) -> dict[str, Kind]:
    """Which weights of a model are held as what."""
    outer = (model.get_input_embeddings(), model.get_output_embeddings())
    tied_bias = getattr(outer[1], "bias", None) is not None  # transformers makes it as long as the weight it finds
    found = dict[str, Kind]()
    for name, module in model.named_modules(remove_duplicate=False):
        if any(module is each for each in outer) and tied_bias:
            continue
        if (type(module) is nn.Linear and not name.endswith(_ASKED)) or (module is outer[0] and _is_plain(module)):
            kind = (OUTER if any(module is each for each in outer) else INNER)[weights]
            if kind not in BLOCKS or module.weight.shape[1] % COLS == 0:
                found[f"{name}.weight"] = kind
    return found


def _is_plain(embedding: nn.Module) -> bool:
    """Whether it looks rows up and at most scales them."""
    return type(embedding) is nn.Embedding or hasattr(embedding, "scalar_embed_scale")


def held_bytes(model: Any, weights: str, dtype: torch.dtype) -> int:
    """What an empty model's weights will take in memory."""
    kinds, seen = kinds_of(model, weights), dict[int, int]()
    for name, weight in model.named_parameters(remove_duplicate=False):
        seen[id(weight)] = _bytes_of(weight.shape, kinds.get(name), dtype)
    return sum(seen.values())


def _bytes_of(shape: "torch.Size", kind: Kind | None, dtype: torch.dtype) -> int:
    block = None if kind is None else BLOCKS.get(kind)
    if block is not None:
        return -(-shape[0] // TILE_ROWS) * (shape[1] // block.cols) * block.tile_bytes
    return prod(shape) * (torch.bfloat16.itemsize if kind is Kind.BFLOAT16 else dtype.itemsize)
