"""Load a prepared model: weights, tokenizer, shape. What it will weigh is read without loading it (footprint.py).

float32 on a CPU, bfloat16 on CUDA (float16 where it has none); SDPA attention; no gradients; no network; no code from
the model's directory (checkpoint.py). A GGUF's matrices stay its own blocks (weights/mapping.py) where a CPU computes
in float32. They become numbers on other devices, in other types, and where the C library, which reads blocks fast, is
not there and the numbers take no more than half of the free memory. With `weights` other models' matrices become blocks
or numbers of 16 bits as they are read (weights/floats.py), or stay on the disk (checkpoint.py).

Weights in 8 or 4 bits are bitsandbytes', through transformers: int8 is LLM.int8() (Dettmers et al. 2022); nf4 and fp4
are QLoRA's 4-bit types (Dettmers et al. 2023), without double quantization. Activations, keys and values keep the
model's type. Needs `pip install 'uncomp[quantize]'`.
"""

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from math import prod
from pathlib import Path
from typing import Any, get_args

import psutil
import torch

from uncomp_cli.config import Weights
from uncomp_cli.errors import ModelError, UncompError, UsageError
from uncomp_cli.kernels.library import find
from uncomp_cli.models.catalog import local_path, show_model
from uncomp_cli.models.checkpoint import (
    cannot_load,
    filled_model,
    generation_of,
    load_tokenizer,
    load_weights,
    quiet_transformers,
    read_configuration,
)
from uncomp_cli.models.conversion import weights_files
from uncomp_cli.models.extension import RopeChoice, parse_rope
from uncomp_cli.models.families import check_family
from uncomp_cli.models.preamble import Preamble, read_preambles
from uncomp_cli.models.ranks import check_devices, check_heads, join
from uncomp_cli.models.rotary import apply_choice, check_rope
from uncomp_cli.models.runnable import LoadedModel
from uncomp_cli.models.shape import (
    check_text_only,
    check_unquantized,
    dtype_name,
    spec_from_config,
    stored_dtype,
    text_config,
)
from uncomp_cli.models.sources import hash_memo
from uncomp_cli.models.weights.bits import Loss
from uncomp_cli.models.weights.mapping import block_model, is_of_blocks, notes, numbers
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


def check_weights(weights: str, dtype: torch.dtype, device: torch.device, method: str | None) -> None:
    """Raise UsageError for weights that are unknown, or cannot be held so beside the other options.

    ModelError where a package is missing that leaves them on the disk.
    """
    if weights not in get_args(Weights):
        raise UsageError(f"weights '{weights}' are unknown", hint=f"--weights {', '.join(get_args(Weights))}")
    if weights == "auto":
        return
    if method is not None:
        message = f"--weights {weights} and --quantize {method} both say how weights are held"
        raise UsageError(message, hint="leave one of the two out")
    if dtype != torch.float32:
        message = f"--weights {weights} computes in float32, not in {dtype_name(dtype)}"
        raise UsageError(message, hint=f"leave --weights out, or use --dtype float32 (is: {dtype_name(dtype)})")
    if weights == "disk" and find_spec("accelerate") is None:
        raise ModelError("--weights disk needs accelerate", hint=HINT)
    if device.type != "cpu" and weights != "float32":
        message = f"--weights {weights} is for a CPU, and the model is to run on {device}"
        raise UsageError(message, hint="use --quantize int8 or nf4, or --device cpu")


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
    weights: str = "auto",
    ranks: int = 1,
    begin: Callable[[torch.device], None] = lambda device: None,
) -> LoadedModel:
    """Load the model that `name` means; it must be on this machine (run `ensure_local` first).

    `begin` is called with the device when all but the weights is there, which take longest.
    `widened` makes numbers of a GGUF's blocks in any case, which transformers' own layers multiply. `quantize` is int8,
    nf4, fp4 or None; `weights` float32, bfloat16, q8, q4, disk, or auto: float32, or the blocks of a GGUF; `rope` is
    for texts longer than trained, as in yarn:4 (extension.py); `ranks` processes share the heads (ranks.py). Loading
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
    check_weights(weights, chosen_dtype, chosen_device, method)
    among = join(ranks, chosen_device)
    loss, told = Loss(), list[str]()
    with quiet_transformers():
        own_config = load_config(path, name)
        config, longest, state = apply_choice(own_config, choice)
        tokenizer = load_tokenizer(tokenizer_dir or path)
        begin(chosen_device)
        files, how = weights_files(path, name, hash_memo()), (chosen_dtype, chosen_device, method)
        check_disk(weights, files, name)
        if ranks > 1:
            check_heads(ranks, spec_from_config(config, chosen_dtype), config, name)
            _check_plain(name, files, (quantize or "none", weights))
        if files:
            preamble = read_preambles(files)
            wide = widened or weights == "float32" or not keeps_blocks(preamble, *how)
            model = _of_gguf(preamble, path, name, *how, config=config, weights=None if wide else weights, loss=loss)
            told = [] if wide else [*notes(preamble), *_stay(preamble, name, weights)]
        elif weights in ("auto", "float32", "disk"):
            model = load_weights(path, name, *how, config=config, ranks=among.count, on_disk=weights == "disk")
        else:
            model, loss = _held_model(path, name, *how, config=config, weights=weights)
    return LoadedModel(
        model=model,
        tokenizer=tokenizer,
        spec=replace(spec_from_config(model.config, chosen_dtype), trained_length=longest),
        info=show_model(name),
        load_s=time.perf_counter() - start,
        weights_bytes=among.counted(among.total, [weights_bytes(model)], chosen_device)[0],
        quantization=method or (weights if any(loss.of.values()) else None),
        rope=state,
        own_config=own_config,
        loss=loss if loss.of else None,
        notes=tuple(told),
        ranks=among,
    )


def check_dealt(path: Path, name: str, ranks: int, *, device: str, how: tuple[str, str]) -> None:
    """Raise UsageError or ModelError where the model in `path` cannot be dealt out to processes on this machine.

    `how` its weights are to be held: quantize and weights.
    """
    check_devices(ranks, device)
    _check_plain(name, weights_files(path, name, hash_memo()), how)
    with quiet_transformers():
        config = load_config(path, name)
        check_heads(ranks, spec_from_config(config, torch.float32), config, name)


def _check_plain(name: str, files: list[Path], how: tuple[str, str]) -> None:
    """Raise UsageError for weights that are not numbers in Hugging Face format."""
    if files or how != ("none", "auto"):
        other = f"{name} is a GGUF file" if files else f"--quantize is {how[0]}, --weights {how[1]}"
        message = f"only weights in Hugging Face format, as numbers, can be dealt out to several ranks; {other}"
        raise UsageError(message, hint="use such a model, without --quantize and --weights")


def check_disk(weights: str, files: list[Path], name: str) -> None:
    """Raise UsageError for a GGUF that is to stay on the disk."""
    if weights == "disk" and files:
        message = f"--weights disk is for models in Hugging Face format, and {name} is a GGUF file"
        raise UsageError(message, hint="leave --weights out: its blocks stay as they are")


def file_notes(path: Path, name: str) -> list[str]:
    """What has to be said of how the weights of the model in `path` will be held."""
    files = weights_files(path, name, hash_memo())
    return notes(read_preambles(files)) if files else []


def _held_model(
    path: Path, name: str, dtype: torch.dtype, device: torch.device, method: str | None, *, config: Any, weights: str
) -> tuple[Any, Loss]:
    """A model in Hugging Face format whose matrices are held as `weights` say, and how far off they are."""
    from uncomp_cli.models.weights.floats import Holding

    holding = Holding(weights)
    model = load_weights(path, name, dtype, device, method, config=config, holding=holding)
    holding.settle(model, dtype)
    return model, holding.loss


def _stay(preamble: Preamble, name: str, weights: str) -> list[str]:
    """That a file's blocks are what they are, where something else was asked for."""
    if weights == "auto" or not is_of_blocks(preamble):
        return []
    return [f"the weights of {name} stay the blocks of its file: --weights {weights} is for those that are numbers"]


def _of_gguf(
    preamble: Preamble,
    path: Path,
    name: str,
    dtype: torch.dtype,
    device: torch.device,
    method: str | None,
    *,
    config: Any,
    weights: str | None,
    loss: Loss,
) -> Any:
    """A model of a GGUF's files, described in `path`, in evaluation mode; without `weights` they become numbers.

    Raises ModelError when it cannot be had.
    """
    try:
        if weights is not None:
            model = block_model(preamble, config, dtype, weights, loss)
        else:
            model = filled_model(config, numbers(preamble, config, dtype), dtype, device, method)
        model.generation_config = generation_of(path)
    except UncompError:
        raise
    except Exception as error:  # numpy, gguf and transformers each have their own
        raise cannot_load(name, path, error) from error
    model = model if method else model.to(device)
    return model.eval().requires_grad_(False)


def keeps_blocks(preamble: Preamble, dtype: torch.dtype, device: torch.device, method: str | None) -> bool:
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
    """Bytes allocated by parameters and buffers; shared storages count once, and what is on the disk not at all."""
    storages = {}
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_meta:
            continue
        dealt = hasattr(tensor, "to_local")
        own = tensor.to_local() if dealt else tensor  # of several ranks this one's part, which may lie in a mapped file
        storage = own.untyped_storage()
        storages[(str(tensor.device), storage.data_ptr())] = own.nbytes if dealt else storage.nbytes()
    return sum(storages.values())
