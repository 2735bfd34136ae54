"""What transformers reads of a model: configuration, tokenizer and weights. This module alone lets it.

Code that lies beside a model is never run. A configuration may name classes of its own (`auto_map`), which are Python
files in the directory: those that transformers has under the same name are transformers', and a directory that names
others is refused before anything of it is loaded. Weights are safetensors, which hold numbers and nothing else.

A tokenizer.json is loaded as it stands, because AutoTokenizer may rebuild it by the model's type and lose its
pre-tokenizer. Only uncomp_cli/ui owns the terminal, so that transformers is kept from writing to it: nothing is changed
at import, and what was set before is set again afterwards.
"""

import copy
import json
import os
import shlex
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uncomp_cli.errors import (
    ModelError,
    OutOfMemoryError,
    UncompError,
    UsageError,
    check_encodable,
    is_out_of_memory,
    is_panic,
    memory_sizes,
)
from uncomp_cli.kernels.library import give_back
from uncomp_cli.models.conversion import file_sha256, joined_sha256
from uncomp_cli.models.template import renderer
from uncomp_cli.models.vocabulary import guard
from uncomp_cli.schema import MOST_BYTES, load_bytes, shown

if TYPE_CHECKING:
    import torch

    from uncomp_cli.models.weights.floats import Holding

OTHER_MODEL = "use another model, for example --model smollm2-135m"
_READ_WHOLE = (".json", ".jinja", ".txt", ".model")
_MAPPED = (".safetensors", ".gguf")
_MOST_VOCABULARY_BYTES = 256 * 2**20  # of a tokenizer or an index of weights; the largest known have some 40 MB
_MOST_LABELS = 2**20
_FLOATS = ("F64", "F32", "F16", "BF16")
TEXT_PART = {
    r"^(model\.)?language_model\.model\.": "model.",
    r"^model\.(language|text)_model\.": "model.",
    r"^(model\.)?language_model\.lm_head\.": "lm_head.",
}
"""How the weights of a model for text are called in one that takes pictures as well."""
OTHER_TOKENIZER = "name a directory with one: --tokenizer DIR"


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence progress bars, log lines below errors, and Python warnings of transformers."""
    from transformers.utils import logging

    verbosity, had_bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bar:
            logging.enable_progress_bar()


def refuse_code(directory: Path, what: str, *, hint: str = OTHER_MODEL) -> None:
    """Raise ModelError when a configuration in `directory`, that of `what`, names classes that transformers has not."""
    check_readable(directory, what)
    for file in sorted(directory.glob("*config.json")):
        data = _read_json(file)
        foreign = next(filter(_is_foreign, _named_classes(data)), None)
        if foreign is not None:
            message = f"{what} wants to run code of its own, which uncomp never does: {foreign}, named in {file.name}"
            raise ModelError(message, hint=hint)
        _check_numbers(data, f"{what}: {file.name}")


def _check_numbers(data: Any, where: str) -> None:
    """Raise ModelError for what transformers takes as it stands: no numbers of tokens, and labels to fill memory."""
    for part in (data, *data.values()) if isinstance(data, dict) else ():
        found = part if isinstance(part, dict) else {}
        stops, labels = found.get("eos_token_id"), found.get("num_labels")
        if any(type(stop) is not int for stop in (stops if isinstance(stops, list) else [stops]) if stop is not None):
            raise ModelError(f"{where}: eos_token_id is {shown(stops)}, no number of a token", hint=OTHER_MODEL)
        if isinstance(labels, int) and labels > _MOST_LABELS:
            raise ModelError(f"{where}: num_labels is {shown(labels)}", hint=OTHER_MODEL)


def check_readable(directory: Path, what: str) -> None:
    """Raise ModelError for a file that this user may not read, as in a cache of several, or that is no such file."""
    check_encodable(directory, what)
    for file in filter(Path.exists, sorted(directory.glob("*"))):
        if not os.access(file, os.R_OK):
            hint = f"its owner lets others read it with: chmod a+r {shlex.quote(str(file.resolve()))}"
            raise ModelError(f"{what}: {file} may not be read by this user", hint=hint)
        if file.suffix in (*_READ_WHOLE, *_MAPPED):
            _check_size(file, what)


def _check_size(file: Path, what: str) -> None:
    """Raise ModelError for what the libraries would wait for, or take more memory for than a model has."""
    most_bytes = MOST_BYTES if file.name.endswith("config.json") else _MOST_VOCABULARY_BYTES
    if not file.is_file():
        raise ModelError(f"{what}: {file} is not a regular file", hint=OTHER_MODEL)
    if (found_bytes := file.stat().st_size) > most_bytes and file.suffix not in _MAPPED:
        message = f"{what}: {file} has {found_bytes:,} bytes, and at most {most_bytes:,} are read"
        raise ModelError(message, hint=OTHER_MODEL)


def _read_json(file: Path) -> Any:
    """What a file holds; None when it cannot be read, which is told of when it is loaded."""
    try:
        return json.loads(load_bytes(file))
    except (UsageError, ValueError, RecursionError):
        return None


def _named_classes(data: Any) -> Iterator[str]:
    """The classes that `auto_map` names, wherever it stands: `module.Class`, or `repository--module.Class`."""
    waiting = [(data, False)]
    while waiting:
        value, named = waiting.pop()
        if isinstance(value, dict):
            waiting += [(inner, named or key == "auto_map") for key, inner in reversed(value.items())]
        elif isinstance(value, list):
            waiting += [(inner, named) for inner in reversed(value)]
        elif named and isinstance(value, str):
            yield value


def _is_foreign(reference: str) -> bool:
    import transformers

    return not isinstance(getattr(transformers, reference.rpartition(".")[2], None), type)


def read_configuration(path: Path, name: str) -> Any:
    """The transformers configuration in a directory. Raises ModelError when it is damaged, or wants its own code."""
    from transformers import AutoConfig

    refuse_code(path, f"model {name}")
    try:
        return AutoConfig.from_pretrained(str(path), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # json and transformers each have their own
        raise cannot_load(name, path, error) from error


def configuration_of(fields: dict[str, Any]) -> Any:
    """The transformers configuration that the fields of a file describe; errors come as they are."""
    from transformers import AutoConfig

    with quiet_transformers():
        return AutoConfig.for_model(**fields)


def load_tokenizer(path: Path) -> Any:
    """The tokenizer in a directory, with what its template needs to be rendered under way.

    Raises ModelError when there is none, it is damaged, or it wants its own code.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if not path.is_dir():
        raise ModelError(f"no directory {str(path)!r} with a tokenizer", hint=OTHER_TOKENIZER)
    refuse_code(path, f"the tokenizer in {path}", hint=OTHER_TOKENIZER)
    loader = PreTrainedTokenizerFast if (path / "tokenizer.json").is_file() else AutoTokenizer
    try:
        tokenizer = loader.from_pretrained(
            str(path), local_files_only=True, trust_remote_code=False, clean_up_tokenization_spaces=False
        )
    except BaseException as error:  # the tokenizers library raises bare Exception, and panics
        if not (isinstance(error, Exception) or is_panic(error)):
            raise
        message = f"{path} has no usable tokenizer: {first_line(error)}"
        raise out_of_memory(error, "the tokenizer") or ModelError(message, hint=OTHER_TOKENIZER) from error
    if not isinstance(tokenizer.model_max_length, (int, float)):
        message = f"the tokenizer in {path}: model_max_length is {tokenizer.model_max_length!r}, no number"
        raise ModelError(message, hint=OTHER_TOKENIZER)
    guard(tokenizer, _stops(path))
    give_back()  # of a large vocabulary, hundreds of megabytes that its parsing took
    tokenizer.files_sha256 = _files_sha256(path)
    if tokenizer.chat_template:
        renderer().start()
    return tokenizer


def _files_sha256(directory: Path) -> str:
    """The hash of all files that a tokenizer may be made of."""
    files = (file for file in sorted(directory.iterdir()) if file.suffix in _READ_WHOLE and file.exists())
    return joined_sha256([f"{file.name} {file_sha256(file)}\n" for file in files])


def _stops(directory: Path) -> set[int]:
    """The tokens that end an answer, by the configurations beside a tokenizer."""
    files = (_read_json(directory / name) for name in ("generation_config.json", "config.json"))
    named = (file.get("eos_token_id") for file in files if isinstance(file, dict))
    return {token for each in named for token in (each if isinstance(each, list) else [each]) if isinstance(token, int)}


def load_weights(
    path: Path,
    name: str,
    dtype: "torch.dtype",
    device: "torch.device",
    method: str | None,
    *,
    config: Any,
    holding: "Holding | None" = None,
    on_disk: bool = False,
    ranks: int = 1,
) -> Any:
    """The model itself, in evaluation mode; its matrices held as `holding` says, or left `on_disk`.

    Raises ModelError for damaged weights, and for those that cannot be left on the disk.
    """
    from transformers import AutoModelForCausalLM

    check_types(path, name)
    try:
        left = _left_on_disk(config, dtype, name) if on_disk else {}
        model, report = AutoModelForCausalLM.from_pretrained(
            str(path),
            config=copy.deepcopy(config),
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # check_report says which
            key_mapping=TEXT_PART,
            **_how(config, dtype, device, method),
            **_dealt(ranks),
            **left,
            **({} if holding is None else {"quantization_config": holding}),
        )
        if holding is not None:
            model.hf_quantizer.remove_quantization_config(model)
        if left:
            from uncomp_cli.models.weights.disk import leave

            leave(model, dtype)
        model = model if method or ranks > 1 or left else model.to(device)
    except ModelError:
        raise
    except Exception as error:  # safetensors, json and transformers each have their own
        raise cannot_load(name, path, error) from error
    check_report(report, name, path)
    return model.eval().requires_grad_(False)


def _left_on_disk(config: Any, dtype: "torch.dtype", name: str) -> dict[str, Any]:
    """What transformers is told of a model whose layers stay in its own files: a matrix is read when it is used.

    Nothing is written, so that weights must be stored as they are used, but for their type. Raises ModelError for
    others.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    model = empty_model(config, dtype)
    layers = [name for name, module in model.named_modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers or any(weight.dim() > 2 for weight in model.parameters()):
        message = f"the weights of {name} are not stored as they are used, and cannot be left on the disk"
        raise ModelError(message, hint="use --weights auto")
    inside = tuple(f"{layer}." for layer in layers)
    names = {
        name.rpartition(".")[0] for name, _ in (*model.named_parameters(remove_duplicate=False), *model.named_buffers())
    }
    loaded = [name for name in names if not f"{name}.".startswith(inside)]
    return {"device_map": {**dict.fromkeys(loaded, "cpu"), **dict.fromkeys(layers, "disk")}}


def _dealt(ranks: int) -> dict[str, Any]:
    """What transformers is told of the processes that share the matrices."""
    if ranks == 1:
        return {}
    from transformers.distributed import DistributedConfig

    return {"distributed_config": DistributedConfig(tp_size=ranks)}


def _attention(config: Any) -> str:
    """The name of transformers' attention for a model: the fast one, but for families that have it not (gemma2)."""
    return "sdpa" if getattr(class_of(config), "_supports_sdpa", True) else "eager"


def _how(config: Any, dtype: "torch.dtype", device: "torch.device", method: str | None) -> dict[str, Any]:
    """What transformers is told of how weights are to be held."""
    found: dict[str, Any] = {"dtype": dtype, "attn_implementation": _attention(config)}
    if method is not None:
        found |= {"quantization_config": quantization_config(method, dtype), "device_map": {"": device}}
    return found


def quantization_config(method: str, dtype: "torch.dtype") -> Any:
    """transformers' configuration for a method."""
    from transformers import BitsAndBytesConfig

    if method == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type=method, bnb_4bit_compute_dtype=dtype)


def check_types(path: Path, name: str) -> None:
    """Raise ModelError for weights that are no floating-point numbers: codes of a method that nothing names."""
    from safetensors import safe_open

    for file in sorted(path.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                kinds = {key: tensors.get_slice(key).get_dtype() for key in list(tensors.keys())}
        except Exception as error:  # safetensors has its own
            raise cannot_load(name, path, error) from error
        named = (key for key, kind in kinds.items() if key.endswith("weight") and kind not in _FLOATS)
        wrong = next(named, None)
        if wrong is not None:
            message = f"model {name} has weights of type {kinds[wrong]}, such as {wrong}"
            raise ModelError(message, hint="use the same model with weights of 16 or 32 bits")


def check_report(report: dict[str, Any], name: str, path: Path) -> None:
    """Raise ModelError when weights were missing or of another shape: transformers fills them with noise."""
    hint = f"uncomp model remove {name} && uncomp model pull {name}"
    for key, stored, wanted in sorted(report.get("mismatched_keys", ())):
        raise ModelError(
            f"{path}: {key} is stored as {tuple(stored)}, and is {tuple(wanted)} by config.json", hint=hint
        )
    missing = sorted(report.get("missing_keys", ()))
    if missing:
        raise ModelError(f"{path} lacks {len(missing)} weights, among them {missing[0]}", hint=hint)


def cannot_load(name: str, path: Path, error: Exception) -> UncompError:
    """What to tell of an error of the libraries below."""
    hint = f"if its files are damaged: uncomp model remove {name} && uncomp model pull {name}"
    damaged = ModelError(f"model {name} cannot be loaded from {path}: {first_line(error)}", hint=hint)
    return out_of_memory(error, f"the weights of {name}") or damaged


def out_of_memory(error: BaseException, what: str) -> OutOfMemoryError | None:
    """What to tell when memory ran out for `what`; None when it did not."""
    if not is_out_of_memory(error):
        return None
    return OutOfMemoryError(f"no memory for {what}{memory_sizes()}", hint="free some, or use --quantize int8 or nf4")


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def gguf_configuration(path: Path) -> Any:
    """The configuration that a GGUF file describes; errors come as they are."""
    from transformers import AutoConfig

    with quiet_transformers():
        return AutoConfig.from_pretrained(
            str(path.parent), gguf_file=path.name, local_files_only=True, trust_remote_code=False
        )


def class_of(config: Any) -> Any:
    """transformers' class of a language model."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM._model_mapping[type(config)]


def filled_model(
    config: Any, weights: "dict[str, torch.Tensor]", dtype: "torch.dtype", device: "torch.device", method: str | None
) -> Any:
    """A model of a configuration with these weights; errors come as they are."""
    return class_of(config).from_pretrained(
        None, config=copy.deepcopy(config), state_dict=weights, **_how(config, dtype, device, method)
    )


def empty_model(config: Any, dtype: "torch.dtype | None" = None) -> Any:
    """A model of a configuration that has shapes and no weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"), quiet_transformers():
        return AutoModelForCausalLM.from_config(
            copy.deepcopy(config), dtype=dtype, attn_implementation=_attention(config), trust_remote_code=False
        )


def generation_of(path: Path) -> Any:
    """How generation begins and ends, by a directory."""
    from transformers import GenerationConfig

    return GenerationConfig.from_pretrained(str(path), local_files_only=True)
