"""From a transformers configuration to a ModelSpec.

Reads attributes only, so it takes a `PreTrainedConfig` as well as a namespace made from config.json. Missing fields
follow transformers: head_dim = hidden_size / num_attention_heads, KV heads = heads. A sliding window holds for the
layers that `layer_types` names; without `layer_types`, for all layers (mistral, phi3), unless `use_sliding_window` is
off (qwen2, whose windows start at layer `max_window_layers`).
"""

from dataclasses import asdict
from typing import Any

from uncomp_cli.errors import ModelError
from uncomp_cli.models.families import load_families
from uncomp_cli.models.recurrent import carries_states, layer_state_bytes, layers_of, mixing_bytes, whole_config
from uncomp_cli.schema import shortened
from uncomp_cli.spec import ModelSpec

_MOST_LAYERS, _LARGEST = 10_000, 10**9
DTYPE_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


def dtype_name(dtype: Any) -> str:
    """`torch.float16` or `"float16"` → `"float16"`; None → `"float32"`."""
    return str(dtype or "float32").removeprefix("torch.")


def text_config(config: Any) -> Any:
    """The part of a configuration that describes the language model."""
    return getattr(config, "text_config", None) or config


def stored_dtype(config: Any) -> Any:
    """The type of the weights, under its new or old name; None when the configuration has none."""
    text = text_config(config)
    places = ((config, "dtype"), (config, "torch_dtype"), (text, "dtype"), (text, "torch_dtype"))
    return next((getattr(part, key) for part, key in places if getattr(part, key, None)), None)


def class_names(config: Any) -> list[str]:
    """The classes that a configuration names for its model."""
    names = getattr(config, "architectures", None)
    return [str(name) for name in names] if isinstance(names, list) else []


def check_text_only(config: Any) -> None:
    """Raise ModelError for a model that is no plain causal language model, unless its text part can be read alone."""
    if getattr(config, "model_type", None) in load_families().parts:
        return
    refused = next((name for name in class_names(config) if name.endswith("ForConditionalGeneration")), None)
    if refused is None and any(getattr(config, part, None) is not None for part in ("vision_config", "audio_config")):
        refused = str(getattr(config, "model_type", "this model"))
    if refused is not None:
        message = f"{refused} is not supported: it is no plain text model"
        raise ModelError(message, hint="use a model for text alone, for example --model smollm2-135m")


def check_unquantized(config: Any) -> None:
    """Raise ModelError, naming the method, for weights that are stored quantized: codes, which are not the numbers."""
    names = ("quantization_config", "compression_config")
    found = (getattr(part, name, None) for part in (config, text_config(config)) for name in names)
    stored = next((each for each in found if each), None)
    if stored is None:
        return
    fields = stored if isinstance(stored, dict) else vars(stored) if hasattr(stored, "__dict__") else {}
    method = fields.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in fields else "a method without a name")
    raise ModelError(
        f"weights that are stored quantized by {getattr(method, 'value', method)} are not supported",
        hint="use the same model unquantized; --quantize int8, nf4 or fp4 holds it in fewer bits",
    )


def spec_from_config(config: Any, dtype: Any) -> ModelSpec:
    """The shape of the model, with a cache of `dtype`.

    Raises ModelError when it is no decoder with attention, and for a type that uncomp cannot compute with.
    """
    if dtype_name(dtype) not in DTYPE_BYTES:
        message = f"weights of type {shortened(dtype_name(dtype))} are not supported"
        raise ModelError(message, hint=f"use a model stored as {', '.join(DTYPE_BYTES)}")
    try:
        return read_spec(text_config(config), DTYPE_BYTES[dtype_name(dtype)])
    except (AttributeError, TypeError, ValueError, ArithmeticError) as error:
        message = f"config.json does not describe a decoder that uncomp can run: {shortened(str(error), 200)}"
        raise ModelError(message, hint="use a model that generates text, for example --model smollm2-135m") from error


def read_spec(text: Any, dtype_bytes: int) -> ModelSpec:
    """The fields of a ModelSpec, as they stand in a text configuration; errors come as they are."""
    varies = any(hasattr(text, name) for name in ("global_head_dim", "per_layer_config"))
    text = whole_config(text) if varies or text.model_type in load_families().recurrent else text
    recurs = carries_states(text)
    num_heads = int(_named(text, "num_attention_heads", "n_head"))
    num_layers = len(text.layer_types) if recurs else int(_named(text, "num_hidden_layers", "n_layer"))
    hidden_size = int(_named(text, "hidden_size", "n_embd"))
    num_kv_heads, head_dim = _heads(text, num_heads, hidden_size)
    if not 1 <= num_layers <= _MOST_LAYERS:
        raise ValueError(f"it has {num_layers:,} layers")
    attending, recurrent = layers_of(text) if recurs else (tuple(range(num_layers)), ())
    windows = sliding_windows(text, num_layers)
    if len(windows) != num_layers:
        raise ValueError(f"of {num_layers} layers {len(windows)} are described: layers have no kind")
    spec = ModelSpec(
        model_type=str(text.model_type),
        num_layers=len(attending),
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        hidden_size=hidden_size,
        intermediate_size=_largest(getattr(text, "intermediate_size", None) or 4 * hidden_size),
        vocab_size=int(text.vocab_size),
        trained_length=int(_named(text, "max_position_embeddings", "n_positions")),
        dtype_bytes=dtype_bytes,
        sliding_windows=tuple(windows[number] for number in attending),
        attending=attending if recurs else (),
        recurrent=recurrent,
        state_bytes=len(recurrent) * layer_state_bytes(text, dtype_bytes) if recurs else 0,
        mixing_bytes=mixing_bytes(text) if recurs else 0,
    )
    sizes = asdict(spec)
    del sizes["state_bytes"], sizes["mixing_bytes"]
    wrong = next((key for key, size in sizes.items() if isinstance(size, int) and not 1 <= size <= _LARGEST), None)
    if wrong is not None:
        raise ValueError(f"{wrong} is {sizes[wrong]}")
    if spec.num_heads % spec.num_kv_heads:
        raise ValueError(f"{spec.num_heads} query heads share {spec.num_kv_heads} KV heads")
    return spec


def _heads(text: Any, num_heads: int, hidden_size: int) -> tuple[int, int]:
    """KV heads and their dimension: of all layers, or, where these differ, of the widest, to which others are padded.

    Raises ValueError where layers have different numbers of KV heads.
    """
    layers = getattr(text, "per_layer_config", None) or [text]
    counts = {int(getattr(each, "num_key_value_heads", None) or num_heads) for each in layers}
    if len(counts) > 1:
        raise ValueError(f"its layers have different numbers of KV heads: {', '.join(map(str, sorted(counts)))}")
    return counts.pop(), max(int(getattr(each, "head_dim", None) or hidden_size // num_heads) for each in layers)


def _largest(size: Any) -> int:
    """A size, or the largest of those that layers have."""
    return max(map(int, size)) if isinstance(size, list | tuple) else int(size)


def _named(text: Any, name: str, other: str) -> Any:
    """A field under its name, or under the one that GPT-2 and its kin give it in their files."""
    return getattr(text, other) if not hasattr(text, name) and hasattr(text, other) else getattr(text, name)


def sliding_windows(text: Any, num_layers: int) -> tuple[int | None, ...]:
    """The window of each layer, or None."""
    window = getattr(text, "sliding_window", None)
    if window is None or getattr(text, "use_sliding_window", True) is False:
        return (None,) * num_layers
    kinds = getattr(text, "layer_types", None)
    if kinds is not None:
        return tuple(int(window) if kind == "sliding_attention" else None for kind in kinds)
    first = int(getattr(text, "max_window_layers", None) or 0)
    return tuple(int(window) if layer >= first else None for layer in range(num_layers))
