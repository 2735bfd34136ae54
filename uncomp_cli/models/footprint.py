"""What a model will weigh when it is loaded, read without loading it.

It is in its files' headers: exact for numbers and blocks; for --quantize an estimate, as embeddings and norms stay in
the load type and matrices shrink to 8 or 4 bits. What is told is of `load_model` (loading.py) with the same options,
which refuses the same.
"""

import re
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
from safetensors import safe_open

from uncomp_cli.errors import ModelError
from uncomp_cli.models.catalog import read_config
from uncomp_cli.models.checkpoint import empty_model, out_of_memory, quiet_transformers, read_configuration, refuse_code
from uncomp_cli.models.conversion import weights_files
from uncomp_cli.models.extension import RopeChoice, parse_rope
from uncomp_cli.models.loading import check_disk, check_weights, checked_spec, choose_dtype, keeps_blocks, load_config
from uncomp_cli.models.preamble import Preamble, read_preambles
from uncomp_cli.models.rotary import apply_choice, length_kind
from uncomp_cli.models.sources import hash_memo
from uncomp_cli.models.weights.mapping import blocks_bytes, is_of_blocks
from uncomp_cli.spec import ModelSpec

_NO_TEXT = re.compile(r"(^|\.)(vision_tower|vision_model|visual|multi_modal_projector|mtp)\.")
_LAYER = re.compile(r"(^|\.)(layers|h)\.\d+\.")
_BITS = {"int8": 8, "nf4": 4, "fp4": 4}
_LIBRARY_BYTES = 160 * 2**20
"""What the libraries that quantize take while they are imported, 134 MiB where it was measured, and some more."""


@dataclass(frozen=True, slots=True)
class Footprint:
    """A model's shape, the bytes of its weights, and those taken beside while they are made, which may stay taken."""

    spec: ModelSpec
    weights_bytes: int
    passing_bytes: int = 0


def footprint(
    path: Path,
    *,
    dtype: str,
    device: torch.device,
    quantize: str,
    rope: str | RopeChoice | None = None,
    weights: str = "auto",
    ranks: int = 1,
) -> Footprint:
    """What the model in `path` will take when loaded with these options, in the memory of one of `ranks`.

    Ranks share the matrices of layers and each hold the rest; on a CPU they share its memory too.

    Raises ModelError when a weights file cannot be read and for a configuration that `load_model` refuses, UsageError
    for a `rope` that the model cannot take and for `weights` that cannot be held so.
    """
    chosen, method = choose_dtype(dtype, device), None if quantize == "none" else quantize
    check_weights(weights, chosen, device, method)
    spec = _spec(path, parse_rope(rope) if isinstance(rope, str) else rope, chosen)
    files = weights_files(path, path.name, hash_memo())
    check_disk(weights, files, path.name)
    preamble = read_preambles(files) if files else None
    if preamble is not None and weights != "float32" and keeps_blocks(preamble, chosen, device, method):
        return Footprint(spec, blocks_bytes(preamble, chosen, weights))
    if preamble is None and weights not in ("auto", "float32"):
        own = _read_bytes(path, chosen) if weights == "disk" else _held_bytes(path, chosen, weights)
        return Footprint(spec, *own)
    shapes = _gguf_shapes(preamble) if preamble else _safetensors_shapes(path)
    total_bits = 0
    for name, shape in shapes.items():
        if _NO_TEXT.search(name):
            continue
        bits = _BITS.get(quantize, 8 * spec.dtype_bytes) if _is_quantized(name, shape) else 8 * spec.dtype_bytes
        shared = ranks if _is_quantized(name, shape) else 1
        copies = ranks if device.type == "cpu" else 1
        total_bits += prod(shape) * bits * copies // shared
    if method is None or device.type != "cpu":
        return Footprint(spec, total_bits // 8)
    return Footprint(spec, total_bits // 8, _quantizing_bytes(shapes, method, files))


def _quantizing_bytes(shapes: dict[str, tuple[int, ...]], method: str, files: list[Path]) -> int:
    """What bitsandbytes takes at most on a CPU beside the weights: for 8 bits its matrices in 32, for 4 the widest one.

    Of a GGUF's files, which are mapped meanwhile, all numbers are made before.
    """
    sizes = {name: 4 * prod(shape) for name, shape in shapes.items() if not _NO_TEXT.search(name)}
    widest = max(sizes.values(), default=0)
    layers = sum(size for name, size in sizes.items() if _is_quantized(name, shapes[name]))
    whole = sum(sizes.values()) + sum(file.stat().st_size for file in files) if files else 0
    return _LIBRARY_BYTES + whole + (max(layers, widest) if method == "int8" else widest)


def _is_quantized(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and "embed" not in name and "lm_head" not in name


def _held_bytes(path: Path, dtype: torch.dtype, weights: str) -> tuple[int, int]:
    """Those of the weights, and of the widest matrix as numbers."""
    from uncomp_cli.models.weights.floats import held_bytes

    _safetensors_shapes(path)
    with quiet_transformers():
        model = empty_model(load_config(path, path.name), dtype)
    return held_bytes(model, weights, dtype), max(weight.nbytes for weight in model.parameters())


def _read_bytes(path: Path, dtype: torch.dtype) -> tuple[int, int]:
    """Those of what is no layer's, which is loaded, and of the widest matrix that is read."""
    sizes = {name: prod(shape) * dtype.itemsize for name, shape in _safetensors_shapes(path).items()}
    read = {name: size for name, size in sizes.items() if _LAYER.search(name)}
    loaded = sum(size for name, size in sizes.items() if name not in read and not _NO_TEXT.search(name))
    return loaded, max(read.values(), default=0)


def narrower(path: Path, *, dtype: str, device: torch.device, quantize: str) -> tuple[str, ...]:
    """How the weights might be held in less memory than by `auto`, the widest first."""
    plain = device.type == "cpu" and choose_dtype(dtype, device) == torch.float32 and quantize == "none"
    return ("bfloat16", "q8", "q4") if plain and not has_blocks(path) else ()


def has_blocks(path: Path) -> bool:
    """Whether the weights of the model in `path` are all blocks of a file, which any other way to hold them widens."""
    files = weights_files(path, path.name, hash_memo())
    return bool(files) and is_of_blocks(read_preambles(files))


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
