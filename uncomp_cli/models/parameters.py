"""Which tensor of a GGUF is which parameter of transformers' model, by its own tables, and whether all are there."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from types import SimpleNamespace
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

from uncomp_cli.errors import ModelError
from uncomp_cli.models import qwen35
from uncomp_cli.models.preamble import OTHER_KIND, Entry, Preamble

HINT = "use a Hugging Face directory of this model instead: --model DIR"
TIED = "lm_head.weight"
KEPT = ("F32", "F16", "BF16")
"""Kinds that are numbers, and no blocks."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """A tensor of a file and the parameter of transformers' model that it is."""

    entry: Entry
    name: str


def assign(preamble: Preamble, config: Any, skeleton: Any) -> list[Assigned]:
    """Which tensors are which parameters. Raises ModelError when some are missing, do not fit or cannot be read."""
    names = parameter_names(preamble.architecture, config, skeleton)
    shapes = {name: tuple(value.shape) for name, value in skeleton.state_dict().items()}
    found = [Assigned(entry, names[entry.name]) for entry in preamble.entries if entry.name in names]
    for each in found:
        _check(each.entry, stored_shape(preamble.architecture, config, each.entry, shapes[each.name]))
    missing = shapes.keys() - {each.name for each in found} - ({TIED} if config.tie_word_embeddings else set())
    if missing:
        raise ModelError(f"GGUF file lacks weights, among them {min(missing)}", hint=HINT)
    return found


def stored_shape(architecture: str, config: Any, entry: Entry, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape that a file has a parameter of `shape` in: convolutions by channel have no dimension of 1."""
    if architecture == qwen35.ARCHITECTURE:
        return qwen35.stored_shape(config, entry.name, entry.shape, shape)
    return (shape[0], shape[2]) if len(shape) == 3 and shape[1] == 1 else shape


def _check(entry: Entry, shape: tuple[int, ...]) -> None:
    if entry.shape != shape:
        message = f"GGUF tensor {entry.name} has the shape {entry.shape}, its configuration says {shape}"
        raise ModelError(message, hint=HINT)
    if entry.kind not in KEPT and not _is_read(entry.kind):
        raise ModelError(f"GGUF tensor {entry.name} is of kind {entry.kind}, which is not supported", hint=OTHER_KIND)


@cache
def _is_read(kind: str) -> bool:
    """Whether gguf makes numbers of such blocks."""
    named = GGMLQuantizationType[kind]
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[named][1]), np.uint8), named)
    except NotImplementedError:  # what gguf says of a kind that it does not read
        return False
    return True


def shallow(module: Any, *, depth: int) -> Any:
    """As much of a module as transformers' table of names asks for; it would walk all children, for seconds."""
    prefix = getattr(module, "base_model_prefix", "")
    base = getattr(module, prefix, None) if depth and prefix else None
    children = [] if base is None else [(prefix, shallow(base, depth=depth - 1))]
    return SimpleNamespace(config=module.config, state_dict=module.state_dict, named_children=lambda: children)


def processor_of(architecture: str, config: Any) -> Any:
    """What transformers does to the tensors of an architecture."""
    from transformers import modeling_gguf_pytorch_utils as tables

    return tables.TENSOR_PROCESSORS.get(architecture, tables.TensorProcessor)(config=config.to_dict())


def parameter_names(architecture: str, config: Any, skeleton: Any) -> dict[str, str]:
    """transformers' names of the tensors of a file."""
    if architecture == qwen35.ARCHITECTURE:
        return qwen35.parameter_names(config)
    from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

    return dict(get_gguf_hf_weights_map(shallow(skeleton, depth=1), processor_of(architecture, config)))


def row_order(architecture: str, config: Any) -> Callable[[str, Any], Any]:
    """(name, rows) → the rows as transformers' model has them: llama.cpp permutes those of queries and keys."""
    if architecture == qwen35.ARCHITECTURE:
        return partial(qwen35.arranged, config)
    processor = processor_of(architecture, config)

    def ordered(name: str, rows: Any) -> Any:
        return processor.process(weights=rows, name=name, tensor_key_mapping={}, parsed_parameters={}).weights

    return ordered
