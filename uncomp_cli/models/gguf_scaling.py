"""RoPE scaling of a GGUF file, in transformers' words.

llama.cpp stores linear and YaRN scaling as `<arch>.rope.scaling.*`, and Llama 3's scaling only as the finished
divisors of the inverse frequencies, in the tensor `rope_freqs.weight`. transformers reads neither. The Llama 3
parameters are found by trying the published ones (factor 8 or 32, low 1, high 4, original length 8192) against the
divisors; what matches nothing is refused, because a model with wrong positions answers plausibly and wrongly.
"""

import math
from typing import Any

from uncomp_cli.errors import ModelError

__all__ = ["rope_parameters"]

LOW_FREQ_FACTOR, HIGH_FREQ_FACTOR, ORIGINAL_LENGTH = 1.0, 4.0, 8192
HINT = "use a Hugging Face directory of this model instead: --model DIR"


def rope_parameters(reader: Any, metadata: dict[str, Any], architecture: str) -> dict[str, Any]:
    """What to change in `config.rope_parameters`; empty when the file scales nothing."""
    divisors = next((tensor.data for tensor in reader.tensors if tensor.name == "rope_freqs.weight"), None)
    theta = float(metadata.get(f"{architecture}.rope.freq_base", 10000.0))
    if divisors is not None and max(divisors) > 1.0:
        return llama3_parameters([float(value) for value in divisors], theta)
    if any(tensor.name.startswith("rope_factors_") for tensor in reader.tensors):
        raise ModelError("GGUF RoPE scaling 'longrope' is not supported", hint=HINT)
    kind = str(metadata.get(f"{architecture}.rope.scaling.type", "none"))
    return {} if kind == "none" or architecture == "gpt-oss" else scaled(kind, metadata, architecture)


def scaled(kind: str, metadata: dict[str, Any], architecture: str) -> dict[str, Any]:
    """Linear or YaRN parameters from the file's metadata."""
    prefix = f"{architecture}.rope.scaling"
    if kind not in ("linear", "yarn"):
        raise ModelError(f"GGUF RoPE scaling {kind!r} is not supported", hint=HINT)
    found: dict[str, Any] = {"rope_type": kind, "factor": float(metadata.get(f"{prefix}.factor", 1.0))}
    original = metadata.get(f"{prefix}.original_context_length")
    if kind == "yarn" and original is not None:
        found["original_max_position_embeddings"] = int(original)
    return found


def llama3_parameters(divisors: list[float], theta: float) -> dict[str, Any]:
    """The Llama 3 parameters that give these divisors. Raises ModelError when none does."""
    factor = round(max(divisors), 3)
    expected = llama3_divisors(len(divisors), theta, factor)
    if any(not math.isclose(a, b, rel_tol=1e-2) for a, b in zip(divisors, expected, strict=True)):
        raise ModelError("GGUF RoPE frequencies (rope_freqs.weight) follow no known scaling", hint=HINT)
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LOW_FREQ_FACTOR,
        "high_freq_factor": HIGH_FREQ_FACTOR,
        "original_max_position_embeddings": ORIGINAL_LENGTH,
    }


def llama3_divisors(half: int, theta: float, factor: float) -> list[float]:
    """By what Llama 3 divides each inverse frequency: 1 for short wavelengths, `factor` for long, a blend between."""
    return [llama3_divisor(2 * math.pi * theta ** (index / half), factor) for index in range(half)]


def llama3_divisor(wavelength: float, factor: float) -> float:
    """The divisor for one wavelength, in positions."""
    turns = ORIGINAL_LENGTH / wavelength
    smooth = (turns - LOW_FREQ_FACTOR) / (HIGH_FREQ_FACTOR - LOW_FREQ_FACTOR)
    blend = min(1.0, max(0.0, smooth))
    return 1.0 / ((1.0 - blend) / factor + blend)
