"""Answer questions about long documents with a local model in the memory the user has.

The public names, loaded when they are used: importing this package loads neither torch nor transformers.

    import uncomp_cli as uncomp

    engine = uncomp.load("smollm2-135m")
    documents, preset = uncomp.collect("report.pdf", "notes/"), uncomp.preset("balanced", budget="10%")
    print(engine.read(documents, ["Who signed?"], preset).answer().text)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uncomp_cli.asking.assistant import Assistant, ReadText, load
    from uncomp_cli.asking.events import Began, Done, Noted, Piece, Planned, Refused, Stopped, Thought, Warned
    from uncomp_cli.budget.amount import Budget
    from uncomp_cli.budget.presets import Preset, preset
    from uncomp_cli.config import Limits, SamplingConfig
    from uncomp_cli.documents.collection import collect
    from uncomp_cli.errors import DoesNotFitError, UncompError, UsageError
    from uncomp_cli.steps import Progress

__version__ = "0.1.0"

_HOMES = {
    "asking.assistant": ("Assistant", "ReadText", "load"),
    "asking.events": ("Began", "Done", "Noted", "Piece", "Planned", "Refused", "Stopped", "Thought", "Warned"),
    "steps": ("Progress",),
    "budget.amount": ("Budget",),
    "budget.presets": ("Preset", "preset"),
    "config": ("Limits", "SamplingConfig"),
    "documents.collection": ("collect",),
    "errors": ("DoesNotFitError", "UncompError", "UsageError"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = [
    "Assistant",
    "Began",
    "Budget",
    "DoesNotFitError",
    "Done",
    "Limits",
    "Noted",
    "Piece",
    "Planned",
    "Preset",
    "Progress",
    "ReadText",
    "Refused",
    "SamplingConfig",
    "Stopped",
    "Thought",
    "UncompError",
    "UsageError",
    "Warned",
    "__version__",
    "collect",
    "load",
    "preset",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
