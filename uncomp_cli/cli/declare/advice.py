"""What is said once on a machine, to whoever sits at a terminal: a better model, what to measure, what was kept.

That it was said is an empty file in the user's state directory. Pipes, scripts and `--quiet` hear nothing, and use
nothing up.
"""

import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import platformdirs

from uncomp_cli.config import DEFAULT_MODEL, LIVE_PRESET

if TYPE_CHECKING:
    from uncomp_cli.ui.console import Terminal

_CALIBRATED_TOKENS = 10 * 2000
"""Of the samples that `uncomp calibrate` takes when nothing else is asked for."""
_PASSES = 3
"""Reading forth and back costs as much as reading three times."""


def advise_model(terminal: "Terminal", model: str) -> None:
    """Say of the default model what it is for, and which known one fits here."""
    if model != DEFAULT_MODEL or not _is_new(terminal, "model"):
        return
    from uncomp_cli.engine.spend.fitting import best_known

    best = best_known()
    better = (
        "" if best is None else f"; the best known that fits here: uncomp model pull {best.alias}, then -m {best.alias}"
    )
    terminal.note(f"{DEFAULT_MODEL} is a demonstration model{better}")


def advise_calibration(terminal: "Terminal", model: str, record: Mapping[str, Any]) -> None:
    """Propose to calibrate a model that was read with the preset for any; the time that takes is by this `record`."""
    speed = record["timing"]["prefill_tok_s"]
    if record["compression"]["preset"] != LIVE_PRESET or not speed or not _is_new(terminal, record["model"]["id"]):
        return
    about = f"{max(1, round(_PASSES * _CALIBRATED_TOKENS / speed / 60))} min"
    terminal.note(
        f"no preset was measured on this model; uncomp calibrate -m {shlex.quote(model)} makes one in about {about}"
    )


def advise_unsaved(terminal: "Terminal") -> None:
    """Say of conversations that were ended from outside where they are."""
    from uncomp_cli.sessions.folder import session_path, unsaved_names

    for name in unsaved_names():
        if _is_new(terminal, name):
            kept = f"a conversation that was cut off is in {session_path(name)}"
            terminal.note(f"{kept}; uncomp chat --session {name} goes on with it")


def _is_new(terminal: "Terminal", what: str) -> bool:
    """Whether nobody was told of `what` on this machine yet, and somebody is now."""
    if terminal.quiet or not terminal.stderr_is_terminal:
        return False
    mark = platformdirs.user_state_path("uncomp") / "told" / what.replace("/", "--")
    try:
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch(exist_ok=False)
    except OSError:
        return False
    return True
