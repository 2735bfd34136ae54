"""What a model will weigh, read from its files' headers without loading it.

Exact for unquantized weights. For quantized ones an estimate: embeddings and norms stay in the load type, matrices
shrink to 8 or 4 bits.
"""

from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from uncomp_cli.errors import ModelError
from uncomp_cli.models.catalog import read_config
from uncomp_cli.models.load import choose_dtype
from uncomp_cli.models.quiet import quiet_transformers
from uncomp_cli.models.rope import check_fixed_rope, extend_config, parse_rope
from uncomp_cli.models.shape import check_text_only, spec_from_config
from uncomp_cli.spec import ModelSpec

__all__ = ["footprint"]

_BITS = {"int8": 8, "nf4": 4, "fp4": 4}


def footprint(
    path: Path, *, dtype: str, device: torch.device, quantize: str, rope: str | None = None
) -> tuple[ModelSpec, int]:
    """The shape of the model in `path` and the bytes of its weights when loaded with these options.

    Raises ModelError when a weights file cannot be read and for a configuration that `load_model` refuses, UsageError
    when its RoPE cannot be extended by `rope`.
    """
    chosen = choose_dtype(dtype, device)
    spec = spec_from_config(_config(path, rope), chosen)
    total_bits = 0
    for file in sorted(path.glob("*.safetensors")):
        for name, shape in _shapes(file).items():
            is_matrix = len(shape) == 2 and "embed" not in name and "lm_head" not in name
            bits = _BITS.get(quantize, 8 * spec.dtype_bytes) if is_matrix else 8 * spec.dtype_bytes
            total_bits += prod(shape) * bits
    return spec, total_bits // 8


def _config(path: Path, rope: str | None) -> Any:
    """The model's configuration, checked as for loading, extended if asked."""
    config = read_config(path)
    check_text_only(config)
    check_fixed_rope(config)
    if rope is None:
        return config
    from transformers import AutoConfig

    with quiet_transformers():
        return extend_config(AutoConfig.from_pretrained(str(path), local_files_only=True), parse_rope(rope))


def _shapes(file: Path) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(str(file), framework="pt") as tensors:
            names = tensors.keys()
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
    except Exception as error:  # safetensors raises its own, untyped
        raise ModelError(f"{file} cannot be read: {error}", hint="remove the model and pull it again") from error
