"""Models in which few layers attend, and the others carry a state from token to token: which they are, and its size.

    gated delta rule   heads × key × value numbers a layer, and the last inputs of a short convolution
    mamba 2            heads × head × state, likewise;  mamba 1: channels × state
    short convolution  its last inputs alone

What a configuration file leaves out of all this is computed by transformers' class for it. That sizes are those of the
states themselves is part of the census (tests/census.py).
"""

from types import SimpleNamespace
from typing import Any

_ATTENDING = ("full_attention", "sliding_attention", "hybrid", "hybrid_sliding")
_CARRYING = ("linear_attention", "conv", "hybrid", "hybrid_sliding")
_FLOAT32_BYTES = 4


def whole_config(text: Any) -> Any:
    """A configuration with all that its family computes; one that was read from a file without transformers has not.

    Raises ValueError for one that transformers does not take.
    """
    if not isinstance(text, SimpleNamespace):
        return text
    from uncomp_cli.models.checkpoint import configuration_of

    try:
        return configuration_of(_plain(text))
    except Exception as error:  # its classes check themselves, each in its own way
        raise ValueError(str(error)) from error


def _plain(value: Any) -> Any:
    """Namespaces as the mappings that they were in the file."""
    if isinstance(value, SimpleNamespace):
        return {key: _plain(field) for key, field in vars(value).items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def carries_states(text: Any) -> bool:
    """Whether some of the layers have a state of their own."""
    return bool(set(getattr(text, "layer_types", None) or ()) & set(_CARRYING))


def layers_of(text: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The numbers of the layers that attend, and of those that have a state. Raises ValueError where none attends."""
    kinds = list(text.layer_types)
    attending = tuple(number for number, kind in enumerate(kinds) if kind in _ATTENDING)
    if not attending:
        raise ValueError("none of its layers attends: there are no keys and values to keep")
    return attending, tuple(number for number, kind in enumerate(kinds) if kind in _CARRYING)


def layer_state_bytes(text: Any, dtype_bytes: int) -> int:
    """Bytes of one layer's state of one text: inputs of a convolution in the model's type, what recurs in float32."""
    channels, width, recurring = _sizes(text)
    return channels * width * dtype_bytes + recurring * _FLOAT32_BYTES


def mixing_bytes(text: Any) -> int:
    """Bytes a token that transformers' loops of such a layer take at once, about: all in float32.

    Delta rule and mamba 2 go in blocks, whose tokens meet each other head by head; mamba 1 holds a state a token.
    """
    channels, _, recurring = _sizes(text)
    if hasattr(text, "conv_L_cache"):
        return 4 * channels * _FLOAT32_BYTES
    heads = _named(text, "linear_num_value_heads", "mamba_n_heads", "mamba_num_heads")
    if heads is None:
        return 4 * recurring * _FLOAT32_BYTES
    block = _named(text, "mamba_chunk_size", "chunk_size") or 64
    state = _named(text, "mamba_d_state", "ssm_state_size") or 0
    return int(8 * channels + heads * (3 * block + 6 * state)) * _FLOAT32_BYTES


def _sizes(text: Any) -> tuple[int, int, int]:
    """Channels and width of the convolution, and the numbers that recur."""
    if hasattr(text, "conv_L_cache"):
        return int(text.hidden_size), int(text.conv_L_cache), 0
    if hasattr(text, "linear_num_value_heads"):
        keys = text.linear_num_key_heads * text.linear_key_head_dim
        values = text.linear_num_value_heads * text.linear_value_head_dim
        return 2 * keys + values, text.linear_conv_kernel_dim, values * text.linear_key_head_dim
    state = _named(text, "mamba_d_state", "ssm_state_size")
    width = _named(text, "mamba_d_conv", "conv_kernel")
    heads = _named(text, "mamba_n_heads", "mamba_num_heads")
    if heads is None:
        channels = int(text.mamba_expand * text.hidden_size)
        return channels, width, channels * state
    channels = heads * _named(text, "mamba_d_head", "mamba_head_dim")
    return channels + 2 * _named(text, "mamba_n_groups", "n_groups") * state, width, channels * state


def _named(text: Any, *names: str) -> Any:
    """The first of these fields that there is."""
    return next((getattr(text, name) for name in names if getattr(text, name, None) is not None), None)
