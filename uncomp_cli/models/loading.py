"""Load a prepared model: weights, tokenizer, shape; and what it will weigh, which is read without loading it.

float32 on a CPU, bfloat16 on CUDA (float16 where it has none); SDPA attention; no gradients; no network; no code from
the model's directory (checkpoint.py). A GGUF's matrices stay its own blocks (weights.py) where a CPU computes in
float32. They become numbers on other devices, in other types, and where the C library, which reads blocks fast, is not
there and the numbers take no more than half of the free memory. What a model will weigh is in its files' headers: exact
for numbers and blocks; for --quantize an estimate, as embeddings and norms stay in the load type and matrices shrink to
8 or 4 bits.

Weights in 8 or 4 bits are bitsandbytes', through transformers: int8 is LLM.int8() (Dettmers et al. 2022); nf4 and fp4
are QLoRA's 4-bit types (Dettmers et al. 2023), without double quantization. Activations, keys and values keep the
model's type. Needs `pip install 'uncomp[quantize]'`.
"""

import logging
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import safe_open

from uncomp_cli.errors import ModelError, UncompError, UsageError
from uncomp_cli.kernels.library import find
from uncomp_cli.models.catalog import local_path, read_config, show_model
from uncomp_cli.models.checkpoint import (
    cannot_load,
    filled_model,
    generation_of,
    load_tokenizer,
    load_weights,
    out_of_memory,
    quiet_transformers,
    read_configuration,
    refuse_code,
)
from uncomp_cli.models.conversion import weights_files
from uncomp_cli.models.extension import RopeChoice, parse_rope
from uncomp_cli.models.families import check_family
from uncomp_cli.models.preamble import Preamble, read_preambles
from uncomp_cli.models.rotary import apply_choice, check_rope, length_kind
from uncomp_cli.models.runnable import LoadedModel
from uncomp_cli.models.shape import check_text_only, check_unquantized, spec_from_config, stored_dtype, text_config
from uncomp_cli.models.sources import hash_memo
from uncomp_cli.models.weights import block_model, blocks_bytes, numbers
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
    widened: bool = False,
    begin: Callable[[torch.device], None] = lambda device: None,
) -> LoadedModel:
    """Load the model that `name` means; it must be on this machine (run `ensure_local` first).

    `begin` is called with the device when all but the weights is there, which take longest.
    `widened` makes numbers of a GGUF's blocks in any case, which transformers' own layers multiply. `quantize` is int8,
    nf4, fp4 or None; `rope` is for texts longer than trained, as in yarn:4 (extension.py). Loading
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
        begin(chosen_device)
        files, how = weights_files(path, name, hash_memo()), (chosen_dtype, chosen_device, method)
        if files:
            model = _of_gguf(files, path, name, *how, config=config, widened=widened)
        else:
            model = load_weights(path, name, *how, config=config)
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


def _of_gguf(
    files: Sequence[Path],
    path: Path,
    name: str,
    dtype: torch.dtype,
    device: torch.device,
    method: str | None,
    *,
    config: Any,
    widened: bool,
) -> Any:
    """A model of a GGUF's files, described in `path`, in evaluation mode. Raises ModelError when it cannot be had."""
    preamble = read_preambles(files)
    try:
        if not widened and _keeps_blocks(preamble, dtype, device, method):
            model = block_model(preamble, config, dtype)
        else:
            model = filled_model(config, numbers(preamble, config, dtype), dtype, device, method)
        model.generation_config = generation_of(path)
    except UncompError:
        raise
    except Exception as error:  # numpy, gguf and transformers each have their own
        raise cannot_load(name, path, error) from error
    model = model if method else model.to(device)
    return model.eval().requires_grad_(False)


def _keeps_blocks(preamble: Preamble, dtype: torch.dtype, device: torch.device, method: str | None) -> bool:
    """Whether a GGUF's matrices stay as they are; without the library only where their numbers would fill memory."""
    if dtype != torch.float32 or device.type != "cpu" or method is not None:
        return False
    wide = sum(prod(entry.shape) for entry in preamble.entries) * dtype.itemsize
    return find() is not None or 2 * wide > psutil.virtual_memory().available


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


def load_config(path: Path, name: str) -> Any:
    """The model's own configuration: of one that takes pictures as well, that of its text part.

    Raises ModelError when it is damaged, or the model would run wrongly.
    """
    config = read_configuration(path, name)
    checked_spec(config, stored_dtype(config))
    text = text_config(config)
    if text is not config:
        text.tie_word_embeddings = config.tie_word_embeddings  # the whole model's decides
    return text


def checked_spec(config: Any, dtype: Any) -> ModelSpec:
    """The shape that a configuration describes. Raises ModelError when such a model would run wrongly."""
    check_text_only(config)
    check_family(str(getattr(text_config(config), "model_type", "without a name")))
    check_unquantized(config)
    check_rope(config)
    return spec_from_config(config, dtype)


def weights_bytes(model: Any) -> int:
    """Bytes allocated by parameters and buffers; shared storages count once."""
    storages = {}
    for tensor in (*model.parameters(), *model.buffers()):
        storage = tensor.untyped_storage()
        storages[(str(tensor.device), storage.data_ptr())] = storage.nbytes()
    return sum(storages.values())


_NO_TEXT = re.compile(r"(^|\.)(vision_tower|vision_model|visual|multi_modal_projector|mtp)\.")
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
    files, method = weights_files(path, path.name, hash_memo()), None if quantize == "none" else quantize
    preamble = read_preambles(files) if files else None
    if preamble is not None and _keeps_blocks(preamble, chosen, device, method):
        return spec, blocks_bytes(preamble, chosen)
    shapes = _gguf_shapes(preamble) if preamble else _safetensors_shapes(path)
    total_bits = 0
    for name, shape in shapes.items():
        if _NO_TEXT.search(name):
            continue
        is_matrix = len(shape) == 2 and "embed" not in name and "lm_head" not in name
        bits = _BITS.get(quantize, 8 * spec.dtype_bytes) if is_matrix else 8 * spec.dtype_bytes
        total_bits += prod(shape) * bits
    return spec, total_bits // 8


def _gguf_shapes(preamble: Preamble) -> dict[str, tuple[int, ...]]:
    """By names that say, as transformers' do, what is no matrix of a layer."""
    renamed = {"token_embd.weight": "embed_tokens.weight", "output.weight": "lm_head.weight"}
    return {renamed.get(entry.name, entry.name): entry.shape for entry in preamble.entries}


def _spec(path: Path, choice: RopeChoice | None, dtype: torch.dtype) -> ModelSpec:
    """The model's shape and how long a text it may read then; its configuration is checked as for loading."""
    refuse_code(path, f"the model in {path}")
    config = read_config(path)
    spec = checked_spec(config, dtype)
    if choice is None and length_kind(config) is None:
        return spec
    with quiet_transformers():
        _, longest, _ = apply_choice(read_configuration(path, str(path)), choice)
    return replace(spec, trained_length=longest)


def _safetensors_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for file in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(str(file), framework="pt") as tensors:
                names = tensors.keys()
                found |= {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
        except Exception as error:  # safetensors raises its own, untyped
            damaged = ModelError(f"{file} cannot be read: {error}", hint="remove the model and pull it again")
            raise out_of_memory(error, f"the weights in {file}") or damaged from error
    return found
