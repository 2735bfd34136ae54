"""From a transformers configuration to a ModelSpec.

Reads attributes only, so it takes a `PreTrainedConfig` as well as a namespace made from config.json. Missing fields
follow transformers: head_dim = hidden_size / num_attention_heads, KV heads = heads. A sliding window holds for the
layers that `layer_types` names; without `layer_types`, for all layers (mistral, phi3), unless `use_sliding_window` is
off (qwen2, whose windows start at layer `max_window_layers`).
"""

from typing import Any

from uncomp_cli.errors import ModelError
from uncomp_cli.spec import ModelSpec

__all__ = ["DTYPE_BYTES", "dtype_name", "spec_from_config", "text_config"]

DTYPE_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}


def dtype_name(dtype: Any) -> str:
    """`torch.float16` or `"float16"` → `"float16"`; None → `"float32"`."""
    return str(dtype or "float32").removeprefix("torch.")


def text_config(config: Any) -> Any:
    """The part of a configuration that describes the language model."""
    return getattr(config, "text_config", None) or config


def spec_from_config(config: Any, dtype: Any) -> ModelSpec:
    """The shape of the model, with a cache of `dtype`. Raises ModelError when it is no decoder with attention."""
    text = text_config(config)
    try:
        num_heads = int(text.num_attention_heads)
        num_layers = int(text.num_hidden_layers)
        hidden_size = int(text.hidden_size)
        trained_length = int(text.max_position_embeddings)
    except (AttributeError, TypeError) as error:
        raise ModelError(f"config.json does not describe a decoder that uncomp can run: {error}") from error
    return ModelSpec(
        model_type=str(text.model_type),
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=int(getattr(text, "num_key_value_heads", None) or num_heads),
        head_dim=int(getattr(text, "head_dim", None) or hidden_size // num_heads),
        hidden_size=hidden_size,
        intermediate_size=int(getattr(text, "intermediate_size", None) or 4 * hidden_size),
        vocab_size=int(text.vocab_size),
        trained_length=trained_length,
        dtype_bytes=DTYPE_BYTES[dtype_name(dtype)],
        sliding_windows=sliding_windows(text, num_layers),
    )


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
