"""Read a GGUF file and write what transformers loads: safetensors, config, generation config, tokenizer.

Names and layouts of the weights come from transformers' own GGUF tables; the loop over the tensors is ours, so that it
reports progress, needs no accelerate and holds one copy in the storage type: bfloat16 for BF16 files, float32 for F32
files, else float16, or float32 where float16 would overflow. RoPE scaling and the tokenizer, which transformers drops
or changes, are rebuilt from the file, the tokenizer in vocabulary.py.

llama.cpp stores linear and YaRN scaling as `<arch>.rope.scaling.*`, and Llama 3's scaling only as the finished divisors
of the inverse frequencies, in the tensor `rope_freqs.weight`. transformers reads neither. The Llama 3 parameters are
found by trying the published ones (factor 8 or 32, low 1, high 4, original length 8192) against the divisors; what
matches nothing is refused, because a model with wrong positions answers plausibly and wrongly.
"""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from uncomp_cli.errors import ModelError, UncompError, is_out_of_memory
from uncomp_cli.models.checkpoint import empty_model, filled_model, gguf_configuration, quiet_transformers
from uncomp_cli.models.preamble import check_preamble
from uncomp_cli.models.vocabulary import END_KEYS, build_tokenizer
from uncomp_cli.steps import PullStep

if TYPE_CHECKING:
    import torch


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


BF16_FILE_TYPE, F32_FILE_TYPE = 32, 0


def open_gguf(path: Path) -> Any:
    """A gguf.GGUFReader on `path`. Raises ModelError when the file is corrupt, truncated or not GGUF."""
    from gguf import GGUFReader

    check_preamble(path)
    try:
        return GGUFReader(path)
    except Exception as error:  # the reader meets damage as any of a dozen numpy and Python errors
        hint = "the file is damaged or cut short: fetch it again"
        raise ModelError(f"{path} is not a readable GGUF file: {error}", hint=hint) from error


def read_metadata(reader: Any) -> dict[str, Any]:
    """The key-value pairs of an open GGUF file."""
    return {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}


def licence_of(path: Path) -> str | None:
    """The licence that a GGUF file names for itself."""
    found = read_metadata(open_gguf(path)).get("general.license")
    return found if isinstance(found, str) else None


def convert_gguf(path: Path, target: Path, *, needs_tokenizer: bool = True) -> Iterator[PullStep]:
    """Write the model in `path` into the existing directory `target`, yielding progress.

    With `needs_tokenizer` False, a vocabulary that is not supported is left out instead of refused.
    Raises ModelError on damage, unknown architectures, tensors that do not fit, and vocabularies as above.
    """
    yield PullStep("convert", 0, None)
    try:
        yield from _converted(path, target, needs_tokenizer=needs_tokenizer)
    except (UncompError, OSError):
        raise
    except Exception as error:  # values of any kind stand where others are expected
        if is_out_of_memory(error):
            raise
        message = f"{path} describes no model that can be converted: {type(error).__name__}: {error}"
        raise ModelError(message, hint=HINT) from error


def _converted(path: Path, target: Path, *, needs_tokenizer: bool) -> Iterator[PullStep]:
    reader = open_gguf(path)
    metadata = read_metadata(reader)
    architecture = check_architecture(metadata)
    tokenizer = tokenizer_or_none(metadata, needs_tokenizer)
    yield PullStep("convert", 0, total_bytes(reader))
    config = read_config(path, reader, metadata, architecture)
    yield from save_model(reader, metadata, config, target)
    if tokenizer is not None:
        tokenizer.save_pretrained(target)


def total_bytes(reader: Any) -> int:
    """Bytes of all tensors in the file."""
    return sum(int(tensor.n_bytes) for tensor in reader.tensors)


def check_architecture(metadata: dict[str, Any]) -> str:
    """The architecture's name, when transformers can read it."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    name = str(metadata.get("general.architecture", "missing"))
    renamed = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss"}.get(name, name)
    if renamed not in GGUF_SUPPORTED_ARCHITECTURES:
        raise ModelError(f"GGUF architecture {name!r} is not supported", hint=HINT)
    return name


def tokenizer_or_none(metadata: dict[str, Any], needed: bool) -> Any:
    """The file's tokenizer; None when it is not supported and not needed."""
    try:
        return build_tokenizer(metadata)
    except ModelError:
        if needed:
            raise
        return None


def read_config(path: Path, reader: Any, metadata: dict[str, Any], architecture: str) -> Any:
    """The transformers configuration of the file, with RoPE scaling and without GGUF's quantization."""
    try:
        config = gguf_configuration(path)
    except Exception as error:
        raise ModelError(f"{path} has a configuration that cannot be used: {error}", hint=HINT) from error
    scaling = rope_parameters(reader, metadata, architecture)
    if scaling:
        config.rope_parameters = {**(config.rope_parameters or {}), **scaling}
    return config


def storage_dtype(metadata: dict[str, Any]) -> "torch.dtype":
    """The type to store weights in, by the file's `general.file_type`."""
    import torch

    kinds = {BF16_FILE_TYPE: torch.bfloat16, F32_FILE_TYPE: torch.float32}
    return kinds.get(int(metadata.get("general.file_type", -1)), torch.float16)


def save_model(reader: Any, metadata: dict[str, Any], config: Any, target: Path) -> Iterator[PullStep]:
    """Write weights, config and generation config into `target`."""
    import torch

    weights: dict[str, torch.Tensor] = {}
    dtype = storage_dtype(metadata)
    yield from read_weights(reader, config, dtype, weights)
    if dtype == torch.float16 and not all(bool(tensor.isfinite().all()) for tensor in weights.values()):
        weights.clear()
        dtype = torch.float32
        yield from read_weights(reader, config, dtype, weights)
    yield PullStep("save", 0, sum(tensor.nbytes for tensor in weights.values()))
    with quiet_transformers():
        model = build_model(config, weights, dtype)
        model.generation_config = generation_config(metadata, config)
        model.save_pretrained(target)


def build_model(config: Any, weights: "dict[str, torch.Tensor]", dtype: "torch.dtype") -> Any:
    """A transformers model that holds `weights`. Raises ModelError when some are missing or do not fit."""
    try:
        model, info = filled_model(config, weights, dtype)
    except Exception as error:
        raise ModelError(f"GGUF weights cannot be loaded: {error}", hint=HINT) from error
    if info["missing_keys"]:
        raise ModelError(f"GGUF file lacks weights, among them {min(info['missing_keys'])}", hint=HINT)
    return model


def generation_config(metadata: dict[str, Any], config: Any) -> Any:
    """Where generation starts and stops: the file's BOS, and its EOS, end-of-turn and end-of-message tokens."""
    from transformers import GenerationConfig

    found = (metadata.get(f"tokenizer.ggml.{key}") for key in END_KEYS)
    stops = list(dict.fromkeys(int(token) for token in found if token is not None))
    pad = metadata.get("tokenizer.ggml.padding_token_id")
    return GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=stops[0] if len(stops) == 1 else stops or None,
        pad_token_id=None if pad is None else int(pad),
    )


def read_weights(
    reader: Any, config: Any, dtype: "torch.dtype", weights: "dict[str, torch.Tensor]"
) -> Iterator[PullStep]:
    """Fill `weights` by transformers' parameter names, dequantized and cast to `dtype`."""
    import numpy as np
    import torch
    from gguf import dequantize

    done, total = 0, total_bytes(reader)
    skeleton = empty_model(config)
    rename = weight_reader(reader, config, skeleton)
    shapes = {name: tuple(value.shape) for name, value in skeleton.state_dict().items()}
    for tensor in reader.tensors:
        try:
            name, values = rename(tensor.name, dequantize(tensor.data, tensor.tensor_type))
        except Exception as error:
            raise ModelError(f"GGUF tensor {tensor.name} cannot be read: {error}", hint=HINT) from error
        if name is not None:
            if shapes.get(name, values.shape) != values.shape:
                message = (
                    f"GGUF tensor {tensor.name} has the shape {values.shape}, its configuration says {shapes[name]}"
                )
                raise ModelError(message, hint=HINT)
            with np.errstate(over="ignore"):
                weights[name] = torch.from_numpy(np.array(values)).to(dtype)
        done += int(tensor.n_bytes)
        yield PullStep("convert", done, total)


def shallow(module: Any, *, depth: int) -> Any:
    """As much of a module as transformers' table of names asks for; it would walk all children, for seconds."""
    prefix = getattr(module, "base_model_prefix", "")
    base = getattr(module, prefix, None) if depth and prefix else None
    children = [] if base is None else [(prefix, shallow(base, depth=depth - 1))]
    return SimpleNamespace(config=module.config, state_dict=module.state_dict, named_children=lambda: children)


def weight_reader(reader: Any, config: Any, skeleton: Any) -> Callable[[str, Any], tuple[str | None, Any]]:
    """(GGUF name, values) → (transformers name or None, values in transformers' layout)."""
    from transformers import modeling_gguf_pytorch_utils as tables

    architecture = str(reader.fields["general.architecture"].contents())
    processor = tables.TENSOR_PROCESSORS.get(architecture, tables.TensorProcessor)(config=config.to_dict())
    names = tables.get_gguf_hf_weights_map(shallow(skeleton, depth=1), processor)
    parsed: dict[str, Any] = {"tensors": {}}

    def rename(name: str, values: Any) -> tuple[str | None, Any]:
        result = processor.process(weights=values, name=name, tensor_key_mapping=names, parsed_parameters=parsed)
        return names.get(result.name), result.weights

    return rename
