"""From options to a session: the preset with what the user changed in it, the model fetched and loaded.

Heavy imports happen here, inside functions, behind a line that says what is going on.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from uncomp_cli.errors import UsageError
from uncomp_cli.ui.console import Terminal

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.models.load import LoadedModel

__all__ = ["ModelChoice", "check_text", "choose_preset", "fetch", "load"]


@dataclass(frozen=True, slots=True)
class ModelChoice:
    """Which model to run, and how: the options of the model panel."""

    name: str
    tokenizer: Path | None = None
    quantize: str = "none"
    device: str = "auto"
    dtype: str = "auto"
    offline: bool = False
    rope: str | None = None


def choose_preset(name: str | None, *, budget: str | None, policy: str | None, scorer: str | None) -> "Preset":
    """The named preset (or the default one) with the given budget, policy and scorer in place of its own."""
    from uncomp_cli.budget.policies import make_policy
    from uncomp_cli.budget.presets import DEFAULT_PRESET, load_preset

    preset = load_preset(name or DEFAULT_PRESET)
    if policy == "full" and budget not in (None, "full"):
        raise UsageError(f"policy full keeps everything, budget {budget} does not", hint="leave one of the two out")
    if policy == "full":
        budget = "full"
    if budget is not None:  # taken at its word
        preset = replace(preset, budget=budget, floor_tokens=0)
    preset = replace(preset, policy=policy or preset.policy)
    if scorer is not None:
        fixed = make_policy(preset.policy).fixed_scorer
        if fixed not in (None, scorer):
            raise UsageError(
                f"policy {preset.policy} has its own scorer, {fixed}, and cannot use {scorer}",
                hint=f"--policy uniform --scorer {scorer}",
            )
        preset = replace(preset, scorer=replace(preset.scorer, name=scorer))
    from uncomp_cli.cache.scoring import make_scorer  # imports torch, so cheaper mistakes are found before

    make_scorer(preset.scorer)
    return preset


def check_text(text: str, what: str) -> None:
    """Raise UsageError when `text`, as typed, was no UTF-8: it came as surrogates, which no tokenizer takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{what} is not UTF-8 text", hint="type it again in a UTF-8 terminal") from error


def fetch(choice: ModelChoice, terminal: Terminal) -> Path:
    """Make sure that the model is on this machine; shows progress when it has to be fetched."""
    from uncomp_cli.models.catalog import ensure_local, local_path
    from uncomp_cli.models.rope import parse_rope
    from uncomp_cli.ui.live import watch_pull

    if choice.rope is not None:
        parse_rope(choice.rope)  # a slip in it must not wait for a download
    steps = ensure_local(choice.name, offline=choice.offline, tokenizer_dir=choice.tokenizer)
    for _ in watch_pull(steps, terminal):
        pass
    path = local_path(choice.name)
    if path is None:
        raise UsageError(f"model {choice.name} is not on this machine", hint=f"uncomp model pull {choice.name}")
    return path


def load(choice: ModelChoice, terminal: Terminal) -> "LoadedModel":
    """Fetch the model when needed, and load it."""
    from uncomp_cli.ui.live import loading

    fetch(choice, terminal)
    with loading(terminal, f"loading {choice.name}"):
        from uncomp_cli.models.load import load_model

        return load_model(
            choice.name,
            dtype=choice.dtype,
            device=choice.device,
            quantize=None if choice.quantize == "none" else choice.quantize,
            rope=choice.rope,
            offline=choice.offline,
            tokenizer_dir=choice.tokenizer,
        )
