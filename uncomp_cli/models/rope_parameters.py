"""RoPE in a transformers configuration: what it says, what an extension changes in a copy of it, what cannot be run.

A scaling that the model came with is replaced, never multiplied: factors count from the length before it, which yarn,
llama3 and longrope name (original_max_position_embeddings) and dynamic leaves in max_position_embeddings. Of linear
that length is not known, so that it is refused.
"""

import copy
from typing import Any

from uncomp_cli.errors import ModelError, UsageError
from uncomp_cli.models.extension import RopeExtension
from uncomp_cli.models.shape import text_config

__all__ = [
    "LENGTH_DEPENDENT",
    "can_repack",
    "check_rope",
    "extend_config",
    "length_kind",
    "reading_length",
    "shipped_scaling",
    "unscaled_length",
]

LENGTH_DEPENDENT = frozenset({"dynamic", "longrope"})
"""Kinds of transformers whose frequencies depend on the length of the text."""
_OF_THE_CONFIG = ("rope_theta", "partial_rotary_factor")
_LEAVE_OUT = "leave the extension out"


def check_rope(config: Any) -> None:
    """Raise ModelError when some of the model's layers turn by the length of the text and others do not.

    `config` is a transformers configuration, or config.json as a namespace.
    """
    for place in _places(text_config(config)):
        kind = next((kind for kind in _nested_kinds(place) if kind in LENGTH_DEPENDENT), None)
        if kind is not None:
            message = f"only some of the model's layers turn by the length reached (rope_type {kind})"
            raise ModelError(
                f"{message}, which is not supported",
                hint="use a model with another scaling: default, linear, llama3 or yarn",
            )


def length_kind(config: Any) -> str | None:
    """The kind of LENGTH_DEPENDENT by which a configuration turns all its layers; None when lengths change nothing."""
    text = text_config(config)
    kinds = (_own_kind(place) for place in _places(text))
    old_phi3 = {"su", "yarn"} if getattr(text, "model_type", None) == "phi3" else set()  # transformers reads longrope
    found = ("longrope" if kind in old_phi3 else kind for kind in kinds)
    return next((kind for kind in found if kind in LENGTH_DEPENDENT), None)


def reading_length(config: Any) -> int:
    """Tokens that a model with this (transformers) configuration may read: dynamic goes on past what it names."""
    text = text_config(config)
    named = int(text.max_position_embeddings)
    return round(named * text.rope_parameters["factor"]) if length_kind(config) == "dynamic" else named


def can_repack(config: Any) -> bool:
    """Whether keys can be moved by turning them: every layer turns alike, whatever the length."""
    text = text_config(config)
    parameters = getattr(text, "rope_parameters", None)
    everywhere = all(getattr(text, "no_rope_layers", None) or [True])
    return bool(parameters) and everywhere and not _per_layer(parameters) and length_kind(config) is None


def shipped_scaling(config: Any) -> str | None:
    """The scaling that a (transformers) configuration has, such as llama3:8; None for plain RoPE."""
    parameters = _parameters(text_config(config))
    kind, factor = parameters.get("rope_type", "default"), parameters.get("factor")
    return None if kind == "default" else f"{kind}:{factor:g}" if factor else str(kind)


def unscaled_length(config: Any, *, asked: object = "yarn") -> int:
    """The length that the factor of what is `asked` for counts from: the trained one, before any scaling.

    Raises UsageError when the configuration does not say it, has no RoPE, or one for each kind of layer.
    """
    text = text_config(config)
    parameters = _parameters(text)
    if parameters.get("rope_type", "default") in ("default", "dynamic"):
        return int(text.max_position_embeddings)
    original = parameters.get("original_max_position_embeddings")
    if original is None:
        shipped, hint = shipped_scaling(config), f"{_LEAVE_OUT}: up to {int(text.max_position_embeddings):,} tokens"
        message = f"--rope {asked} cannot replace the scaling that the model came with, {shipped}"
        raise UsageError(f"{message}: from which length it starts is not known", hint=f"{hint} none is needed")
    return int(original)


def extend_config(config: Any, extension: RopeExtension) -> Any:
    """A copy of a transformers configuration, extended; `config` itself is left alone.

    Raises UsageError when its positions differ between layer types, or cannot take this kind.
    """
    extended = copy.deepcopy(config)
    text = text_config(extended)
    plain = {key: value for key, value in _parameters(text).items() if key in _OF_THE_CONFIG}
    trained_length = unscaled_length(config, asked=extension)
    rotary_dim = int(_head_dim(text) * (plain.get("partial_rotary_factor") or 1.0))
    _check_width(extension, rotary_dim)
    text.rope_parameters = {**plain, **_changes(extension, plain["rope_theta"], trained_length, rotary_dim)}
    text.max_position_embeddings = trained_length if extension.kind == "dynamic" else extension.length(trained_length)
    if hasattr(text, "original_max_position_embeddings"):  # phi3's own field, which transformers prefers
        text.original_max_position_embeddings = trained_length
    try:
        text.validate_rope()
    except (KeyError, ValueError) as error:
        hint = "use ntk:F, or leave the extension out"
        raise UsageError(f"{text.model_type} models cannot use rope extension '{extension.kind}'", hint=hint) from error
    return extended


def _check_width(extension: RopeExtension, rotary_dim: int) -> None:
    """Raise UsageError for kinds that leave the fastest frequency alone, in a model that has no other."""
    if rotary_dim <= 2 and extension.kind in ("ntk", "dynamic", "longrope"):
        message = f"--rope {extension} has nothing to change: {rotary_dim} dimensions of a head turn"
        raise UsageError(message, hint=f"use --rope linear:{extension.factor:g}")


def _changes(extension: RopeExtension, theta: float, trained_length: int, rotary_dim: int) -> dict[str, Any]:
    """What an extension sets in `rope_parameters`."""
    factor = extension.factor
    if extension.kind == "ntk":
        return {"rope_type": "default", "rope_theta": theta * factor ** (rotary_dim / (rotary_dim - 2))}
    scaled = {"rope_type": extension.kind, "factor": factor}
    if extension.kind in ("linear", "dynamic"):
        return scaled
    scaled["original_max_position_embeddings"] = trained_length
    if extension.kind == "llama3":
        scaled |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    if extension.kind == "longrope":
        pairs = rotary_dim // 2
        scaled["short_factor"] = [1.0] * pairs
        scaled["long_factor"] = [factor ** (2 * pair / (rotary_dim - 2)) for pair in range(pairs)]
    return scaled


def _head_dim(text: Any) -> int:
    return int(getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)


def _parameters(text: Any) -> dict[str, Any]:
    """The RoPE of all layers. Raises UsageError when there is none, or one for each kind of layer."""
    parameters = getattr(text, "rope_parameters", None)
    if not parameters:
        raise UsageError(f"{text.model_type} models have no rotary positions to extend", hint=_LEAVE_OUT)
    if _per_layer(parameters):
        message = f"rope extensions are not supported for {text.model_type} models: their layers rotate differently"
        raise UsageError(message, hint=_LEAVE_OUT)
    return dict(parameters)


def _per_layer(parameters: Any) -> bool:
    return any(isinstance(value, dict) for value in parameters.values())


def _places(text: Any) -> list[dict[str, Any]]:
    """RoPE's dictionaries in a configuration, under their new and old name, from whatever holds them."""
    found = (getattr(text, name, None) for name in ("rope_parameters", "rope_scaling"))
    return [_fields(place) for place in found]


def _fields(place: Any) -> dict[str, Any]:
    return place if isinstance(place, dict) else dict(getattr(place, "__dict__", {}))


def _own_kind(place: dict[str, Any]) -> str | None:
    return place.get("rope_type") or place.get("type")


def _nested_kinds(place: dict[str, Any]) -> list[str | None]:
    """The kinds that a dictionary names for types of layers."""
    return [_own_kind(_fields(value)) for value in place.values() if not isinstance(value, str)]
