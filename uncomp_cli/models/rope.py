"""Longer than trained: RoPE with other frequencies, chosen once for a run.

    linear  positions / F (position interpolation, Chen et al., arXiv 2306.15595)
    ntk     base θ·F^(D/(D−2)), D rotary dimensions (NTK-aware, section 3.1 of YaRN); some dimensions still see new
            angles, so it may lose quality before F times the trained length
    yarn    fast dimensions as trained, slow ones / F, softmax sharpened by 0.1·ln F + 1 (Peng et al., arXiv 2309.00071)

Keys are cached after rotation. These kinds depend on F alone, never on the length reached, so a cached key stays valid
while the text grows; kinds that change with the length (dynamic NTK, longrope) are not offered, and models trained
with one are refused.
"""

import copy
import difflib
import re
from dataclasses import dataclass
from typing import Any

from uncomp_cli.errors import ModelError, UsageError
from uncomp_cli.models.shape import text_config

__all__ = ["ROPE_KINDS", "RopeExtension", "check_fixed_rope", "extend_config", "parse_rope"]

ROPE_KINDS = ("linear", "ntk", "yarn")
LARGEST_FACTOR = 1024
_LENGTH_DEPENDENT = {"dynamic", "longrope", "su"}  # su is longrope's older name
_HINT = "write linear:2, ntk:4 or yarn:4: the kind, and how many times the trained length"
_FACTOR = re.compile(r"\d+(?:\.\d+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class RopeExtension:
    """A kind of ROPE_KINDS and the factor F, 1 < F ≤ 1024, by which the trained length grows."""

    kind: str
    factor: float

    def __post_init__(self) -> None:
        if self.kind not in ROPE_KINDS:
            near = difflib.get_close_matches(self.kind, ROPE_KINDS, n=1)
            hint = f"did you mean '{near[0]}:{self.factor:g}'?" if near else _HINT
            raise UsageError(f"unknown rope extension '{self.kind}'", hint=hint)
        if not 1 < self.factor <= LARGEST_FACTOR:
            message = f"rope factor {self.factor:g} is not above 1 and up to {LARGEST_FACTOR}"
            raise UsageError(message, hint=_HINT)


def parse_rope(text: str) -> RopeExtension:
    """Parse `kind:factor`; raises UsageError that names what is wrong."""
    kind, _, number = (part.strip() for part in text.lower().partition(":"))
    if not _FACTOR.fullmatch(number):
        near = difflib.get_close_matches(kind, ROPE_KINDS, n=1)
        hint = f"did you mean '{near[0]}:2'?" if near else _HINT
        raise UsageError(f"rope extension '{text}' needs a factor above 1", hint=hint)
    return RopeExtension(kind, float(number))


def check_fixed_rope(config: Any) -> None:
    """Raise ModelError when the model's own positions depend on the length reached, in any of its layers.

    `config` is a transformers configuration, or config.json as a namespace.
    """
    text = text_config(config)
    places = (getattr(text, name, None) for name in ("rope_parameters", "rope_scaling"))
    for kind in (kind for place in places for kind in own_kinds(place)):
        old_phi3 = kind == "yarn" and getattr(text, "model_type", None) == "phi3"  # transformers reads it as longrope
        if kind in _LENGTH_DEPENDENT or old_phi3:
            message = f"models whose positions depend on the length reached (rope_type {kind}) are not supported"
            raise ModelError(message, hint="use a model with another scaling: default, linear, llama3 or yarn")


def own_kinds(parameters: Any) -> list[str]:
    """The kinds that a RoPE dictionary names, itself or for its layer types."""
    fields = parameters if isinstance(parameters, dict) else getattr(parameters, "__dict__", {})
    own = fields.get("rope_type") or fields.get("type")
    nested = (kind for value in fields.values() if not isinstance(value, str) for kind in own_kinds(value))
    return [*([str(own)] if own else []), *nested]


def extend_config(config: Any, extension: RopeExtension) -> Any:
    """A copy of a transformers configuration, extended; `config` itself is left alone.

    Raises UsageError when its positions are scaled already, differ between layer types, or cannot take this kind.
    """
    extended = copy.deepcopy(config)
    text = text_config(extended)
    trained = plain_parameters(text)
    trained_length = int(text.max_position_embeddings)
    text.rope_parameters = {**trained, **changes(text, extension, trained, trained_length)}
    text.max_position_embeddings = int(trained_length * extension.factor)
    try:
        text.validate_rope()
    except (KeyError, ValueError) as error:
        hint = "use ntk:F, or leave the extension out"
        raise UsageError(f"{text.model_type} models cannot use rope extension '{extension.kind}'", hint=hint) from error
    return extended


def plain_parameters(text: Any) -> dict[str, Any]:
    """The trained RoPE's parameters. Raises UsageError when they are not one plain set for all layers."""
    parameters = getattr(text, "rope_parameters", None)
    if not parameters:
        raise UsageError(f"{text.model_type} models have no rotary positions to extend", hint="leave the extension out")
    if any(isinstance(value, dict) for value in parameters.values()):
        message = f"rope extensions are not supported for {text.model_type} models: their layers rotate differently"
        raise UsageError(message, hint="leave the extension out")
    kind = parameters.get("rope_type", "default")
    if kind != "default":
        hint = f"leave the extension out: up to {int(text.max_position_embeddings):,} tokens need none"
        raise UsageError(f"the model's own configuration already scales its positions ({kind})", hint=hint)
    return {key: value for key, value in parameters.items() if key != "type"}


def changes(text: Any, extension: RopeExtension, trained: dict[str, Any], trained_length: int) -> dict[str, Any]:
    """What an extension sets in `rope_parameters`."""
    if extension.kind == "ntk":
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        rotary_dim = int(head_dim * trained.get("partial_rotary_factor", 1.0))
        return {"rope_theta": trained["rope_theta"] * extension.factor ** (rotary_dim / (rotary_dim - 2))}
    scaled = {"rope_type": extension.kind, "factor": extension.factor}
    return scaled if extension.kind == "linear" else {**scaled, "original_max_position_embeddings": trained_length}
