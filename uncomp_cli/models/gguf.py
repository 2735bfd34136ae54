"""What a GGUF file says of its model, as transformers has it: configuration, generation, tokenizer, names of weights.

The weights themselves stay where they are (weights/). Names and layouts come from transformers' own GGUF tables. What
transformers drops or changes, RoPE scaling and the tokenizer, is rebuilt from the file, the latter in vocabulary.py.

llama.cpp stores linear and YaRN scaling as `<arch>.rope.scaling.*`, and Llama 3's scaling only as the finished divisors
of the inverse frequencies, in the tensor `rope_freqs.weight`. transformers reads neither. The Llama 3 parameters are
found by trying the published ones (factor 8 or 32, low 1, high 4, original length 8192) against the divisors; what
matches nothing is refused, because a model with wrong positions answers plausibly and wrongly.
"""

import gc
import json
import math
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

from uncomp_cli.errors import ModelError, UncompError, is_out_of_memory
from uncomp_cli.models import qwen35
from uncomp_cli.models.checkpoint import class_of, configuration_of, empty_model, gguf_configuration, quiet_transformers
from uncomp_cli.models.parameters import HINT, assign
from uncomp_cli.models.preamble import Header, Preamble, read_headers
from uncomp_cli.models.vocabulary import build_tokenizer, stop_ids
from uncomp_cli.steps import PullStep

LOW_FREQ_FACTOR, HIGH_FREQ_FACTOR, ORIGINAL_LENGTH = 1.0, 4.0, 8192


def rope_parameters(preamble: Preamble, metadata: dict[str, Any]) -> dict[str, Any]:
    """What to change in `config.rope_parameters`; empty when the file scales nothing."""
    architecture = preamble.architecture
    divisors = rope_divisors(preamble)
    theta = float(metadata.get(f"{architecture}.rope.freq_base", 10000.0))
    if divisors and max(divisors) > 1.0:
        return llama3_parameters(divisors, theta)
    if any(entry.name.startswith("rope_factors_") for entry in preamble.entries):
        raise ModelError("GGUF RoPE scaling 'longrope' is not supported", hint=HINT)
    kind = str(metadata.get(f"{architecture}.rope.scaling.type", "none"))
    return {} if kind == "none" or architecture == "gpt-oss" else scaled(kind, metadata, architecture)


def rope_divisors(preamble: Preamble) -> list[float]:
    """By what the file divides inverse frequencies; none where it does not."""
    import numpy as np

    entry = next((each for each in preamble.entries if each.name == "rope_freqs.weight"), None)
    if entry is None:
        return []
    values = np.fromfile(entry.file, np.float32, entry.size_bytes // 4, offset=entry.offset)
    return [float(value) for value in values]


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
_UNTRIED = ("gpt_oss", "gemma4")
"""transformers has tables for these, whose models are read from safetensors alone."""


def prepare_gguf(
    paths: Sequence[Path], target: Path, *, needs_tokenizer: bool = True
) -> Generator[PullStep, None, str | None]:
    """Write all of a model but its weights into the existing directory `target`, yielding progress.

    `paths` are its files, the first one first; returns the licence that it names for itself. With `needs_tokenizer`
    False, a vocabulary that is not supported is left out instead of refused. Raises ModelError on damage, unknown
    architectures, weights that are missing, do not fit or are of a kind that is not supported, and vocabularies as
    above.
    """
    yield PullStep("convert", 0, None)
    header = read_headers(paths)
    try:
        _prepare(header, target, needs_tokenizer=needs_tokenizer)
    except (UncompError, OSError):
        raise
    except Exception as error:  # values of any kind stand where others are expected
        if is_out_of_memory(error):
            raise
        message = f"{paths[0]} describes no model that can be read: {type(error).__name__}: {error}"
        raise ModelError(message, hint=HINT) from error
    gc.collect()  # a tokenizer of transformers holds itself, and of a large vocabulary a hundred megabytes
    licence = header.values.get("general.license")
    return licence if isinstance(licence, str) else None


def _prepare(header: Header, target: Path, *, needs_tokenizer: bool) -> None:
    preamble, metadata = header.preamble, header.values
    check_architecture(preamble.architecture)
    config = read_config(header, target)
    assign(preamble, config, empty_model(config))
    tokenizer = tokenizer_or_none(metadata, needs_tokenizer)  # last: what it takes is given back where it is the last
    with quiet_transformers():
        config.save_pretrained(target)
        generation_config(metadata, config).save_pretrained(target)
        if tokenizer is not None:
            save_tokenizer(tokenizer, target)


def check_architecture(name: str) -> None:
    """Raise ModelError for an architecture that transformers cannot read, or whose tensors nobody has tried here."""
    from transformers.modeling_gguf_pytorch_utils import GGUF_SUPPORTED_ARCHITECTURES

    renamed = {"qwen2moe": "qwen2_moe", "qwen3moe": "qwen3_moe", "gpt-oss": "gpt_oss"}.get(name, name)
    if renamed not in (*GGUF_SUPPORTED_ARCHITECTURES, qwen35.ARCHITECTURE):
        raise ModelError(f"GGUF architecture {name!r} is not supported", hint=HINT)
    if renamed in _UNTRIED:
        message = f"GGUF architecture {name!r} is not supported: that its files are read rightly has not been shown"
        raise ModelError(message, hint=HINT)


def tokenizer_or_none(metadata: dict[str, Any], needed: bool) -> Any:
    """The file's tokenizer; None when it is not supported and not needed."""
    try:
        return build_tokenizer(metadata)
    except ModelError:
        if needed:
            raise
        return None


def save_tokenizer(tokenizer: Any, target: Path) -> None:
    """Write it without line breaks, which are half of a large vocabulary.

    Its configuration says that no token is added beside those, else transformers reads them all twice to find out.
    """
    tokenizer.save_pretrained(target)
    tokenizer.backend_tokenizer.save(str(target / "tokenizer.json"), pretty=False)
    config = target / "tokenizer_config.json"
    said = {**json.loads(config.read_text(encoding="utf-8")), "added_tokens_decoder": {}}
    config.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def read_config(header: Header, folder: Path) -> Any:
    """The transformers configuration of the file, with RoPE scaling and without GGUF's quantization."""
    preamble, metadata = header.preamble, header.values
    try:
        own = preamble.architecture == qwen35.ARCHITECTURE
        config = configuration_of(qwen35.configuration(metadata)) if own else _outlined(header, folder)
    except Exception as error:
        raise ModelError(f"{preamble.path} has a configuration that cannot be used: {error}", hint=HINT) from error
    if preamble.architecture == "lfm2":  # whose epsilon transformers' table gives another name than its class
        config.norm_eps = float(metadata["lfm2.attention.layer_norm_rms_epsilon"])
    scaling = rope_parameters(preamble, metadata)
    if scaling:
        config.rope_parameters = {**(config.rope_parameters or {}), **scaling}
    config.tie_word_embeddings = all(entry.name != "output.weight" for entry in preamble.entries)
    config.architectures = [class_of(config).__name__]
    config.dtype = storage_dtype(metadata)
    return config


def _outlined(header: Header, folder: Path) -> Any:
    """What transformers makes of the file without its vocabulary, which it would read for a minute."""
    outline, metadata = folder / "outline.gguf", header.values
    outline.write_bytes(header.outline)
    try:
        config = gguf_configuration(outline)
    finally:
        outline.unlink()
    pieces = len(metadata.get("tokenizer.ggml.tokens") or ()) or config.vocab_size
    config.vocab_size = int(metadata.get(f"{header.preamble.architecture}.vocab_size", pieces))
    return config


def storage_dtype(metadata: dict[str, Any]) -> str:
    """The type that is nearest to the stored weights, by the file's `general.file_type`."""
    kinds = {BF16_FILE_TYPE: "bfloat16", F32_FILE_TYPE: "float32"}
    return kinds.get(int(metadata.get("general.file_type", -1)), "float16")


def generation_config(metadata: dict[str, Any], config: Any) -> Any:
    """Where generation starts and stops: the file's BOS, and what ends an answer."""
    from transformers import GenerationConfig

    stops = stop_ids(metadata)
    pad = metadata.get("tokenizer.ggml.padding_token_id")
    return GenerationConfig(
        bos_token_id=config.bos_token_id,
        eos_token_id=stops[0] if len(stops) == 1 else stops or None,
        pad_token_id=None if pad is None else int(pad),
    )
