"""Weights in 8 or 4 bits, by bitsandbytes through transformers.

int8 is LLM.int8() (Dettmers et al. 2022); nf4 and fp4 are QLoRA's 4-bit types (Dettmers et al. 2023), without double
quantization. Activations, keys and values keep the model's type. Needs `pip install 'uncomp[quantize]'`.
"""

import logging
from importlib.util import find_spec
from typing import Any

import torch

from uncomp_cli.errors import ModelError, UsageError

__all__ = ["QUANTIZATIONS", "check_quantization", "quantization_config"]

QUANTIZATIONS = ("int8", "nf4", "fp4")
HINT = "pip install 'uncomp[quantize]'"


def check_quantization(method: str, device: torch.device) -> None:
    """Raise UsageError for an unknown method, ModelError when it cannot run here."""
    if method not in QUANTIZATIONS:
        raise UsageError(f"quantization {method!r} is unknown", hint=f"--quantize none, {', '.join(QUANTIZATIONS)}")
    missing = [package for package in ("bitsandbytes", "accelerate") if find_spec(package) is None]
    if missing:
        raise ModelError(f"--quantize {method} needs {' and '.join(missing)}", hint=HINT)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it logs at import, and each product that casts
    try:
        import bitsandbytes
    except Exception as error:  # its native library may not load on this machine
        raise ModelError(f"bitsandbytes does not run on this machine: {error}", hint=HINT) from error
    if device.type not in getattr(bitsandbytes, "supported_torch_devices", {"cuda", "cpu"}):
        raise ModelError(f"bitsandbytes cannot run on {device}", hint="--device cpu or cuda, or --quantize none")


def quantization_config(method: str, dtype: torch.dtype) -> Any:
    """transformers' configuration for a method."""
    from transformers import BitsAndBytesConfig

    if method == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=method, bnb_4bit_compute_dtype=dtype)
