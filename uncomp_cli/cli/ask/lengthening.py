"""How far a run may read: `--rope`, `--context` and `--force`, settled once the length of what is read is known.

`auto` becomes one way of turning positions: as trained where all fits; else re-packing, or yarn where what is read has
to serve later questions. What it came to is said, and so is a scaling of the model's own that had to give way.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from uncomp_cli.asking.request import ModelChoice
from uncomp_cli.errors import UsageError
from uncomp_cli.numerals import format_count
from uncomp_cli.ui.console import Terminal

if TYPE_CHECKING:
    from uncomp_cli.models.extension import RopeChoice, RopeState
    from uncomp_cli.models.loading import LoadedModel
    from uncomp_cli.spec import ModelSpec

__all__ = ["check_grows", "length_warnings", "lengthen", "lengthen_for_growth", "needs_length", "planned_length"]

_GROWTH = 2
"""Times the trained length that a chat with --rope auto can grow to when no --context is given."""


def check_grows(model: ModelChoice, what: str) -> None:
    """Raise UsageError for a way of turning positions that `what`, which is read on and on, cannot have."""
    from uncomp_cli.models.extension import REPACKED

    choice = model.rope_choice
    if choice is not None and choice.kind in REPACKED:
        message = f"{what} cannot be re-packed: what is kept of it has to stay where it is"
        hint = f"use --rope yarn:2; uncomp ask --rope {choice.kind}, without a saved cache, reads any length"
        raise UsageError(message, hint=hint)


def needs_length(choice: "RopeChoice | None") -> bool:
    """Whether the length of what is read decides how positions are turned."""
    return choice is not None and choice.kind == "auto"


def lengthen(
    loaded: "LoadedModel", choice: "RopeChoice | None", tokens: int, terminal: Terminal, *, grows: bool = False
) -> "LoadedModel":
    """The model turned so that it reads `tokens`, prompt and answer; what `auto` chose is said.

    What `grows` is read on later, and so is not re-packed.
    """
    from uncomp_cli.models.rotary import resolve_rope

    loaded, note = resolve_rope(loaded, choice, tokens=tokens, grows=grows)
    if note is not None:
        terminal.note(note)
    return loaded


def planned_length(
    model: ModelChoice, path: Path, spec: "ModelSpec", tokens: int, terminal: Terminal, *, grows: bool = False
) -> "tuple[ModelSpec, RopeState]":
    """The same without a model: its shape as it may then be read, and how its positions are turned."""
    from uncomp_cli.models.loading import load_config
    from uncomp_cli.models.rotary import apply_choice, resolve_choice

    choice, config = model.rope_choice, load_config(path, model.name)
    if choice is not None and needs_length(choice):
        choice, note = resolve_choice(config, choice, tokens=tokens, grows=grows)
        terminal.note(note)
    _, longest, state = apply_choice(config, choice)
    return replace(spec, trained_length=longest), state


def lengthen_for_growth(loaded: "LoadedModel", choice: "RopeChoice | None", terminal: Terminal) -> "LoadedModel":
    """The same for a chat, of which nobody knows how long it gets: for --context, or twice the trained length."""
    tokens = _GROWTH * loaded.info.trained_length
    if choice is not None and choice.context is not None:
        tokens = choice.context
    return lengthen(loaded, choice, tokens, terminal, grows=True)


def length_warnings(loaded: "LoadedModel", prompt_tokens: int) -> Iterator[str]:
    """What is less sure because the model was not trained for it.

    Nothing is, as far as the model reads by its own scaling and that is in force.
    """
    from uncomp_cli.models.rotary import reading_length

    trained, rope = loaded.info.trained_length, loaded.rope
    if rope.replaced is not None:
        yield f"the model's own RoPE scaling ({rope.replaced}) is replaced by --rope {rope}"
    own = reading_length(loaded.own_config or loaded.model.config) if rope.kind in ("trained", "plain") else trained
    if not max(trained, own) < prompt_tokens < loaded.spec.trained_length:
        return
    how = {
        "plain": "read on as trained (--rope plain)",
        "repack": f"re-packed within that length (--rope {rope})",
        "reread": f"re-packed within that length (--rope {rope})",
    }.get(rope.kind, f"extended by --rope {rope}")
    yield (
        f"the prompt has {format_count(prompt_tokens)} tokens, the model was trained for {format_count(trained)}: "
        f"answers from a context {how} are less reliable"
    )
