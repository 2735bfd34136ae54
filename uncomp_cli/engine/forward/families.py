"""The model families whose attention the engine computes exactly, by transformers' `model_type`.

A family is added here when its parity test passes (tests/test_engine_parity.py). Others are refused by name: a model
that needs a keyword we do not honour would run and be wrong. Of those that pass tests/test_engine_layer_loop.py too
tokens may leave between layers.
"""

from uncomp_cli.errors import ModelError
from uncomp_cli.spec import ModelSpec

SUPPORTED_FAMILIES = frozenset(
    {"llama", "qwen2", "qwen3", "mistral", "phi3", "gemma3_text", "olmo2", "granite", "smollm3"}
)
LOOP_FAMILIES = frozenset({"llama", "qwen2", "qwen3", "mistral", "olmo2", "phi3", "smollm3"})

# Keywords that decoder layers pass to attention and that change nothing in it.
_HARMLESS = frozenset(
    {"cache_position", "dropout", "is_causal", "output_attentions", "output_hidden_states", "output_router_logits"}
    | {"position_bias", "position_ids", "return_dict", "use_cache"}
)


def check_family(model_type: str) -> None:
    """Raise ModelError when the engine has not been proven on `model_type`."""
    if model_type not in SUPPORTED_FAMILIES:
        raise ModelError(
            f"models of the family '{model_type}' are not supported",
            hint=f"use a model of one of: {', '.join(sorted(SUPPORTED_FAMILIES))}",
        )


def can_thin(spec: ModelSpec) -> bool:
    """Whether tokens may leave between layers: the family is proven, and no layer counts neighbours in a window."""
    return spec.model_type in LOOP_FAMILIES and len(spec.full_layers) == spec.num_layers


def check_causal(attention: object) -> None:
    """Raise ModelError when a model's attention module looks ahead, as an encoder's does."""
    if not getattr(attention, "is_causal", True):
        raise ModelError(
            "this model's attention looks in both directions, which is not supported",
            hint="use a model that generates text, for example --model smollm2-135m",
        )


def check_keywords(keywords: dict[str, object]) -> None:
    """Raise ModelError when attention is given a keyword whose meaning the engine does not honour."""
    for name, value in keywords.items():
        if value is not None and name not in _HARMLESS:
            raise ModelError(
                f"this model's attention needs '{name}', which is not supported",
                hint="use a model without it, for example --model smollm2-135m",
            )
