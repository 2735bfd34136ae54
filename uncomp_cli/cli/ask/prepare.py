"""From options to a session: the preset with what the user changed in it, the model fetched and loaded.

Heavy imports happen here, inside functions, behind a line that says what is going on.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from uncomp_cli.asking.request import ModelChoice
from uncomp_cli.errors import DoesNotFitError, UsageError
from uncomp_cli.numerals import format_bytes
from uncomp_cli.ui.console import Terminal

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.models.loading import LoadedModel
    from uncomp_cli.spec import ModelSpec

__all__ = ["check_context_fits", "fetch", "load", "weigh"]


def fetch(choice: ModelChoice, terminal: Terminal) -> Path:
    """Make sure that the model is on this machine; shows progress when it has to be fetched."""
    from uncomp_cli.models.catalog import ensure_local, local_path
    from uncomp_cli.ui.meter import watch_pull

    _ = choice.rope_choice  # a slip in it must not wait for a download
    steps = ensure_local(choice.name, offline=choice.offline, tokenizer_dir=choice.tokenizer)
    for _ in watch_pull(steps, terminal):
        pass
    path = local_path(choice.name)
    if path is None:
        raise UsageError(f"model {choice.name} is not on this machine", hint=f"uncomp model pull {choice.name}")
    return path


def weigh(choice: ModelChoice, path: Path) -> "tuple[ModelSpec, int, int]":
    """The model's shape, the bytes of its weights and the bytes that are free; nothing is loaded.

    Raises what loading would raise for the family and the quantization, and DoesNotFitError for too large weights.
    """
    from uncomp_cli.engine.forward.families import check_family
    from uncomp_cli.engine.spend.memory import free_bytes
    from uncomp_cli.models.loading import check_quantization, choose_device, footprint

    device = choose_device(choice.device)
    if choice.quantize != "none":
        check_quantization(choice.quantize, device)
    spec, weights = footprint(
        path, dtype=choice.dtype, device=device, quantize=choice.quantize, rope=choice.rope_choice
    )
    check_family(spec.model_type)
    available = free_bytes(device)
    if weights > available:
        raise DoesNotFitError(
            f"the weights of {choice.name} need {format_bytes(weights)}, {format_bytes(available)} are free",
            hint="use --quantize int8 or nf4, --dtype bfloat16, or a smaller model",
        )
    return spec, weights, available


def check_context_fits(choice: ModelChoice, loaded: "LoadedModel", preset: "Preset") -> None:
    """Raise DoesNotFitError when memory does not hold what `preset` keeps of the --context that was asked for."""
    from uncomp_cli.engine.spend.memory import check_context, free_bytes

    wanted = choice.rope_choice
    held = loaded.info.trained_length if loaded.rope.kind == "auto" else loaded.rope.reach
    context = None if wanted is None else wanted.context
    check_context(loaded.spec, preset, context=context, available=free_bytes(loaded.device), held_tokens=held)


def load(choice: ModelChoice, terminal: Terminal) -> "LoadedModel":
    """Fetch the model when needed, and load it; refused before loading when it cannot fit."""
    from uncomp_cli.ui.meter import loading

    path = fetch(choice, terminal)
    with loading(terminal, f"loading {choice.name}"):
        from uncomp_cli.models.loading import load_model

        weigh(choice, path)
        return load_model(
            choice.name,
            dtype=choice.dtype,
            device=choice.device,
            quantize=None if choice.quantize == "none" else choice.quantize,
            rope=choice.rope_choice,
            offline=choice.offline,
            tokenizer_dir=choice.tokenizer,
        )
