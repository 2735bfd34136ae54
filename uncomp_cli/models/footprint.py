"""What a model will weigh, read from its files' headers without loading it.

Exact for unquantized weights. For quantized ones an estimate: embeddings and norms stay in the load type, matrices
shrink to 8 or 4 bits.
"""

from dataclasses import replace
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open

from uncomp_cli.errors import ModelError
from uncomp_cli.models.catalog import read_config
from uncomp_cli.models.extension import RopeChoice, parse_rope
from uncomp_cli.models.loading import choose_dtype
from uncomp_cli.models.quiet import quiet_transformers
from uncomp_cli.models.rope_application import apply_choice
from uncomp_cli.models.rope_parameters import check_rope, length_kind
from uncomp_cli.models.shape import check_text_only, spec_from_config
from uncomp_cli.spec import ModelSpec

__all__ = ["footprint"]

_BITS = {"int8": 8, "nf4": 4, "fp4": 4}


def footprint(
    path: Path, *, dtype: str, device: torch.device, quantize: str, rope: str | RopeChoice | None = None
) -> tuple[ModelSpec, int]:
    """The shape of the model in `path` and the bytes of its weights when loaded with these options.

    Raises ModelError when a weights file cannot be read and for a configuration that `load_model` refuses, UsageError
    for a `rope` that the model cannot take.
    """
    chosen = choose_dtype(dtype, device)
    spec = _spec(path, parse_rope(rope) if isinstance(rope, str) else rope, chosen)
    total_bits = 0
    for file in sorted(path.glob("*.safetensors")):
        for name, shape in _shapes(file).items():
            is_matrix = len(shape) == 2 and "embed" not in name and "lm_head" not in name
            bits = _BITS.get(quantize, 8 * spec.dtype_bytes) if is_matrix else 8 * spec.dtype_bytes
            total_bits += prod(shape) * bits
    return spec, total_bits // 8


def _spec(path: Path, choice: RopeChoice | None, dtype: torch.dtype) -> ModelSpec:
    """The model's shape and how long a text it may read then; its configuration is checked as for loading."""
    config = read_config(path)
    check_text_only(config)
    check_rope(config)
    spec = spec_from_config(config, dtype)
    if choice is None and length_kind(config) is None:
        return spec
    from transformers import AutoConfig

    with quiet_transformers():
        _, longest, _ = apply_choice(AutoConfig.from_pretrained(str(path), local_files_only=True), choice)
    return replace(spec, trained_length=longest)


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(str(file), framework="pt") as tensors:
            names = tensors.keys()
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
    except Exception as error:  # safetensors raises its own, untyped
        raise ModelError(f"{file} cannot be read: {error}", hint="remove the model and pull it again") from error
