"""Load a prepared model: weights, tokenizer, shape.

float32 on a CPU, bfloat16 on CUDA (float16 where it has none); SDPA attention; no gradients; no network; no code from
the model's directory. A tokenizer.json is loaded as it stands, because AutoTokenizer may rebuild it by the model's type
and lose its pre-tokenizer. What a model will weigh is read from its files' headers without loading it: exact for
unquantized weights; for quantized ones an estimate, as embeddings and norms stay in the load type and matrices shrink
to 8 or 4 bits.

Weights in 8 or 4 bits are bitsandbytes', through transformers: int8 is LLM.int8() (Dettmers et al. 2022); nf4 and fp4
are QLoRA's 4-bit types (Dettmers et al. 2023), without double quantization. Activations, keys and values keep the
model's type. Needs `pip install 'uncomp[quantize]'`.
"""

import copy
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from uncomp_cli.errors import ModelError, OutOfMemoryError, UsageError
from uncomp_cli.models.catalog import local_path, read_config, show_model
from uncomp_cli.models.extension import RopeChoice, parse_rope
from uncomp_cli.models.quiet import quiet_transformers
from uncomp_cli.models.rotary import apply_choice, check_rope, length_kind
from uncomp_cli.models.runnable import LoadedModel
from uncomp_cli.models.shape import check_text_only, spec_from_config, stored_dtype
from uncomp_cli.spec import ModelSpec

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


DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def load_model(
    name: str,
    *,
    dtype: str = "auto",
    device: str = "auto",
    quantize: str | None = None,
    rope: str | RopeChoice | None = None,
    offline: bool = False,
    tokenizer_dir: Path | None = None,
    begin: Callable[[torch.device], None] = lambda device: None,
) -> LoadedModel:
    """Load the model that `name` means; it must be on this machine (run `ensure_local` first).

    `begin` is called with the device when all but the weights is there, which take longest.
    `quantize` is int8, nf4, fp4 or None; `rope` is for texts longer than trained, as in yarn:4 (extension.py). Loading
    never uses the network, whatever `offline` says; it only words the hint. Raises ModelError when the model is
    missing, damaged or of a kind that would run wrongly, UsageError for a device or type that is not there and for a
    `rope` that this model cannot take.
    """
    start = time.perf_counter()
    choice = parse_rope(rope) if isinstance(rope, str) else rope
    path = local_path(name)
    if path is None:
        need = " (with the network)" if offline else ""
        raise ModelError(f"model {name} is not on this machine", hint=f"uncomp model pull {name}{need}")
    chosen_device = choose_device(device)
    chosen_dtype = choose_dtype(dtype, chosen_device)
    method = None if quantize in (None, "none") else quantize
    if method is not None:
        check_quantization(method, chosen_device)
    with quiet_transformers():
        own_config = load_config(path, name)
        config, longest, state = apply_choice(own_config, choice)
        tokenizer = load_tokenizer(tokenizer_dir or path)
        model = load_weights(path, name, chosen_dtype, chosen_device, method, config=config, begin=begin)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        spec=replace(spec_from_config(model.config, chosen_dtype), trained_length=longest),
        info=show_model(name),
        load_s=time.perf_counter() - start,
        weights_bytes=weights_bytes(model),
        quantization=method,
        rope=state,
        own_config=own_config,
    )


def choose_device(device: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises UsageError for a device that is not there."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError as error:
        raise UsageError(f"device {device!r} is unknown", hint="--device auto, cpu, cuda or cuda:1") from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device {device!r} is not available on this machine", hint="--device auto")
    return chosen


def choose_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """`auto` is float32 on a CPU, bfloat16 on CUDA, float16 on CUDA without bfloat16."""
    if dtype == "auto":
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    if dtype not in DTYPES:
        raise UsageError(f"dtype {dtype!r} is unknown", hint=f"--dtype auto, {', '.join(DTYPES)}")
    return DTYPES[dtype]


def load_tokenizer(path: Path) -> Any:
    """The tokenizer in a directory. Raises ModelError when there is none, or it is damaged."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    loader = PreTrainedTokenizerFast if (path / "tokenizer.json").is_file() else AutoTokenizer
    try:
        return loader.from_pretrained(str(path), local_files_only=True, clean_up_tokenization_spaces=False)
    except Exception as error:  # the tokenizers library raises bare Exception
        message = f"{path} has no usable tokenizer: {first_line(error)}"
        raise ModelError(message, hint="name a directory with one: --tokenizer DIR") from error


def load_config(path: Path, name: str) -> Any:
    """The model's own configuration. Raises ModelError when it is damaged, or the model would run wrongly."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # json and transformers each have their own
        raise cannot_load(name, path, error) from error
    check_text_only(config)
    check_rope(config)
    spec_from_config(config, stored_dtype(config))
    return config


def cannot_load(name: str, path: Path, error: Exception) -> ModelError:
    """What to tell of an error of the libraries below."""
    hint = f"if its files are damaged: uncomp model remove {name} && uncomp model pull {name}"
    return ModelError(f"model {name} cannot be loaded from {path}: {first_line(error)}", hint=hint)


def load_weights(
    path: Path,
    name: str,
    dtype: torch.dtype,
    device: torch.device,
    method: str | None,
    *,
    config: Any,
    begin: Callable[[torch.device], None] = lambda device: None,
) -> Any:
    """The model itself, in evaluation mode. Raises ModelError when weights are damaged or missing."""
    from transformers import AutoModelForCausalLM

    begin(device)
    extra = {} if method is None else {"quantization_config": quantization_config(method, dtype)}
    placement = {} if method is None else {"device_map": {"": device}}
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            str(path),
            config=copy.deepcopy(config),
            dtype=dtype,
            attn_implementation="sdpa",
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            **extra,
            **placement,
        )
        model = model if method else model.to(device)
    except torch.OutOfMemoryError as error:
        raise OutOfMemoryError(f"no memory for the weights of {name}", hint="--quantize int8 or nf4") from error
    except Exception as error:  # safetensors, json and transformers each have their own
        raise cannot_load(name, path, error) from error
    check_report(report, name, path)
    return model.eval().requires_grad_(False)


def check_report(report: dict[str, Any], name: str, path: Path) -> None:
    """Raise ModelError when weights were missing: transformers would have filled them with noise."""
    missing = sorted(map(str, [*report.get("missing_keys", ()), *report.get("mismatched_keys", ())]))
    if missing:
        hint = f"uncomp model remove {name} && uncomp model pull {name}"
        raise ModelError(f"{path} lacks {len(missing)} weights, among them {missing[0]}", hint=hint)


def weights_bytes(model: Any) -> int:
    """Bytes allocated by parameters and buffers; shared storages count once."""
    storages = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        storages[(str(tensor.device), storage.data_ptr())] = storage.nbytes()
    return sum(storages.values())


def first_line(error: Exception) -> str:
    """The first line of an error's text, or its type."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


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
