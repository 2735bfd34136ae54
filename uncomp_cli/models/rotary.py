"""A choice of RoPE made true: in a configuration before a model is loaded, or in a model that is.

    apply_choice(config, choice)             the configuration to run, what may be read, how it is turned
    use_rope(loaded, choice)                 the same weights turned in another way
    resolve_rope(loaded, choice, tokens=…)   `auto`, once the length of the text is known

Before that stands what a transformers configuration says of RoPE, and what an extension changes in a copy of it. A
scaling that the model came with is replaced, never multiplied: factors count from the length before it, which yarn,
llama3 and longrope name (original_max_position_embeddings) and dynamic leaves in max_position_embeddings. Of linear
that length is not known, so that it is refused.

RoPE whose frequencies depend on the length of the text is held still for the length of a run. Keys are cached after
they were turned, so frequencies must not change while keys are held. Stock transformers changes them between forward
passes, by the largest position so far: within a run they are those that it computes for T tokens,

    dynamic   T = the smallest of L, 2L, 4L, …, F·L that holds the prompt and its answer
    longrope  short factors up to L tokens, long ones up to the longest text

with L the trained length. A text that grows past its regime has to be read again. Until a regime is chosen it is the
longest.
"""

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from uncomp_cli.errors import ModelError, UsageError
from uncomp_cli.models.checkpoint import quiet_transformers
from uncomp_cli.models.extension import LONGEST, REPACKED, RopeChoice, RopeState
from uncomp_cli.models.runnable import LoadedModel
from uncomp_cli.models.shape import text_config

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


def extend_config(config: Any, extension: RopeChoice) -> Any:
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


def _check_width(extension: RopeChoice, rotary_dim: int) -> None:
    """Raise UsageError for kinds that leave the fastest frequency alone, in a model that has no other."""
    if rotary_dim <= 2 and extension.kind in ("ntk", "dynamic", "longrope"):
        message = f"--rope {extension} has nothing to change: {rotary_dim} dimensions of a head turn"
        raise UsageError(message, hint=f"use --rope linear:{extension.factor:g}")


def _changes(extension: RopeChoice, theta: float, trained_length: int, rotary_dim: int) -> dict[str, Any]:
    """What an extension sets in `rope_parameters`."""
    factor = extension.factor or 1.0
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
    return extended, longest, RopeState(extension.kind, extension.factor or 1.0, replaced=shipped_scaling(config))


def use_rope(loaded: LoadedModel, choice: RopeChoice | None) -> LoadedModel:
    """The model turned as `choice` says, None for as trained; what was loaded before has the same weights, and is void.

    `info.trained_length` stays what the model was trained for, `spec.trained_length` is what may be read. Raises
    UsageError, and changes nothing, for a choice that this model cannot take.
    """
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


def resolve_choice(config: Any, choice: RopeChoice, *, tokens: int, grows: bool) -> tuple[RopeChoice | None, str]:
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
        message = f"this model cannot read on as trained (--rope plain): its {kind} RoPE ends"
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


_NAME = "rotary_emb"


class HeldRope(nn.Module):
    """A stock rotary embedding in the regime for `tokens`; what is beyond them is an error, never another rotation."""

    def __init__(self, stock: Any, kind: str, lengths: tuple[int, ...]) -> None:
        super().__init__()
        self.stock = stock
        self.stock.rope_type = "default"  # by which its forward decides whether to compute frequencies anew
        self.kind = kind
        self.lengths = lengths
        self.tokens = 0
        self.fix(None)

    @property
    def inv_freq(self) -> Tensor:
        """Radians a position [R]."""
        frequencies: Tensor = self.stock.inv_freq
        return frequencies

    def fix(self, tokens: int | None) -> bool:
        """Take the regime that holds `tokens`, the longest for None; returns whether frequencies changed."""
        holding = (length for length in self.lengths if tokens is not None and length >= tokens)
        chosen = next(holding, self.lengths[-1])
        if chosen == self.tokens:
            return False
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        compute = ROPE_INIT_FUNCTIONS[self.kind]
        self.stock.inv_freq, self.stock.attention_scaling = compute(
            self.stock.config, self.inv_freq.device, seq_len=chosen
        )
        self.tokens = chosen
        return True

    def forward(self, states: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions [B, N]; `states` gives their type and device."""
        last = int(position_ids.max())
        if last >= self.tokens:
            regime = f"the {self.kind} regime of {self.tokens:,} tokens"
            raise RuntimeError(f"position {last:,} is outside {regime}: the text has to be read anew")
        turned: tuple[Tensor, Tensor] = self.stock(states, position_ids)
        return turned


def regime_lengths(config: Any) -> tuple[int, ...]:
    """The lengths of which each has frequencies of its own; empty for fixed kinds. The last is the longest text."""
    kind, text = length_kind(config), text_config(config)
    if kind is None:
        return ()
    longest = reading_length(config)
    if kind == "longrope":
        return int(text.rope_parameters["original_max_position_embeddings"]), longest
    lengths = [int(text.max_position_embeddings)]
    while 2 * lengths[-1] < longest:
        lengths.append(2 * lengths[-1])
    return tuple(dict.fromkeys([*lengths, longest]))


def hold_rope(model: nn.Module) -> None:
    """Hold the frequencies of a transformers model where they would follow the length; nothing is done to others.

    Raises ModelError when only some of its layers would.
    """
    config: Any = model.config
    check_rope(config)
    kind = length_kind(config)
    for name, module in _rotary(model) if kind else ():
        if kind is not None and not isinstance(module, HeldRope):
            model.set_submodule(name, HeldRope(module, kind, regime_lengths(config)))


def fix_regime(model: nn.Module, tokens: int | None) -> bool:
    """Take the regime that holds `tokens`, the longest for None; returns whether it changed: cached keys are void."""
    changed = [module.fix(tokens) for _, module in _rotary(model) if isinstance(module, HeldRope)]
    return any(changed)


def regime_of(model: nn.Module) -> int | None:
    """The tokens that the present regime holds; None when frequencies do not depend on the length."""
    return next((module.tokens for _, module in _rotary(model) if isinstance(module, HeldRope)), None)


def set_rotary(model: nn.Module, config: Any) -> None:
    """Turn by `config` from now on: new rotary embeddings of the model's own class. Weights stay as they are."""
    for name, module in _rotary(model):
        stock = module.stock if isinstance(module, HeldRope) else module
        with torch.device("cpu"):
            anew = type(stock)(text_config(config))
        model.set_submodule(name, anew.to(next(stock.buffers()).device))
    hold_rope(model)


def _rotary(model: nn.Module) -> list[tuple[str, Any]]:
    """The rotary embeddings of a model, by name."""
    return [(name, module) for name, module in model.named_modules() if name.rpartition(".")[2] == _NAME]
