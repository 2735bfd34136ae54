"""A choice of RoPE made true: in a configuration before a model is loaded, or in a model that is.

apply_choice(config, choice) → the configuration to run, what may be read, how it is turned
use_rope(loaded, choice)     the same weights turned in another way
resolve_rope(loaded, choice, tokens=…)   `auto`, once the length of the text is known
"""

import copy
from dataclasses import replace
from typing import Any

from uncomp_cli.errors import UsageError
from uncomp_cli.models.extension import LONGEST, REPACKED, RopeChoice, RopeState
from uncomp_cli.models.quiet import quiet_transformers
from uncomp_cli.models.rope_parameters import (
    can_repack,
    extend_config,
    length_kind,
    reading_length,
    shipped_scaling,
    unscaled_length,
)
from uncomp_cli.models.runnable import LoadedModel
from uncomp_cli.models.shape import text_config

__all__ = ["apply_choice", "resolve_choice", "resolve_rope", "use_rope"]

_CHANGED = ("rope_parameters", "max_position_embeddings", "original_max_position_embeddings")


def apply_choice(config: Any, choice: RopeChoice | None) -> tuple[Any, int, RopeState]:
    """The (transformers) configuration to run, the tokens that may be read, and how the model is turned then.

    `config` is the model's own; it is not changed. Raises UsageError for a choice that this model cannot take.
    """
    trained_length = reading_length(config)
    if choice is None:
        return config, trained_length, RopeState()
    if choice.kind == "plain":
        _check_plain(config, choice)
    if choice.kind in ("plain", "auto", *REPACKED):
        state = _repacked(config, choice) if choice.kind in REPACKED else RopeState(choice.kind)
        return config, max(trained_length, choice.context or LONGEST), state
    extension = choice.extension(unscaled_length(config, asked=choice))
    if extension is None:
        return config, trained_length, RopeState()
    extended = extend_config(config, extension)
    longest = min(choice.context or reading_length(extended), reading_length(extended))
    return extended, longest, RopeState(extension.kind, extension.factor, replaced=shipped_scaling(config))


def use_rope(loaded: LoadedModel, choice: RopeChoice | None) -> LoadedModel:
    """The model turned as `choice` says, None for as trained; what was loaded before has the same weights, and is void.

    `info.trained_length` stays what the model was trained for, `spec.trained_length` is what may be read. Raises
    UsageError, and changes nothing, for a choice that this model cannot take.
    """
    from uncomp_cli.models.regime import set_rotary

    own = loaded.own_config or copy.deepcopy(loaded.model.config)
    with quiet_transformers():
        config, longest, state = apply_choice(own, choice)
        _copy_rope(config, loaded.model.config)
        set_rotary(loaded.model, copy.deepcopy(config))
    return replace(loaded, spec=replace(loaded.spec, trained_length=longest), rope=state, own_config=own)


def resolve_rope(
    loaded: LoadedModel, choice: RopeChoice | None, *, tokens: int, grows: bool = False
) -> tuple[LoadedModel, str | None]:
    """The model turned so that it can read `tokens`, prompt and answer, and what `auto` took.

    What `grows` is read on later, and is not re-packed. Any other choice than `auto` was made when the model was
    loaded, and stays.
    """
    if choice is None or choice.kind != "auto":
        return loaded, None
    own = loaded.own_config or loaded.model.config
    chosen, note = resolve_choice(own, choice, tokens=tokens, grows=grows)
    return use_rope(loaded, chosen), note


def resolve_choice(
    config: Any, choice: RopeChoice, *, tokens: int, grows: bool = False
) -> tuple[RopeChoice | None, str]:
    """What `auto` means for a text of `tokens` and a model whose own (transformers) configuration is `config`.

    None is as trained. Of a text that `grows` a context that was asked for has to hold too.
    """
    trained_length = reading_length(config)
    tokens = max(tokens, choice.context or 0) if grows else tokens
    if tokens <= trained_length:
        return None, f"rope auto: {tokens:,} tokens fit into the {trained_length:,} of the model, read as trained"
    past = f"rope auto: {tokens:,} tokens are more than the {trained_length:,} of the model"
    if can_repack(config) and not grows:
        return RopeChoice("reread", None, choice.context, only_past=True), f"{past}, read with --rope reread"
    factor = -(-max(tokens, choice.context or 0) // unscaled_length(config))
    chosen = RopeChoice("yarn", float(factor))
    why = "a text that grows" if grows else "its keys"
    return chosen, f"{past}, and {why} cannot be re-packed, read with --rope {chosen}"


def _check_plain(config: Any, choice: RopeChoice) -> None:
    """Raise UsageError when nothing says how positions as far as `choice` reads are turned."""
    kind, longest = length_kind(config), reading_length(config)
    if kind is not None and (choice.context or LONGEST) > longest:
        message = f"this model cannot read on as trained (--rope plain, --force): its {kind} RoPE ends"
        hint = f"no larger context is possible so; up to {longest:,} tokens leave it out, else --rope auto or yarn:F"
        raise UsageError(f"{message} at {longest:,} tokens", hint=hint)


def _repacked(config: Any, choice: RopeChoice) -> RopeState:
    if not can_repack(config):
        message = f"keys of this {text_config(config).model_type} model cannot be re-packed"
        raise UsageError(f"{message}: not all of its layers turn alike at every length", hint="--rope yarn:F")
    return RopeState.repacked(choice, reading_length(config))


def _copy_rope(source: Any, target: Any) -> None:
    """Write what `source` says about RoPE into the configuration that a model's modules share."""
    of_source, of_target = text_config(source), text_config(target)
    for name in _CHANGED:
        if hasattr(of_source, name):
            setattr(of_target, name, copy.deepcopy(getattr(of_source, name)))
