"""What a shell completes: names of models, presets, policies and saved documents, found out when they are asked for."""

from collections.abc import Callable, Iterable

from uncomp_cli.budget.policies import POLICIES
from uncomp_cli.ui.console import strip_controls


def completing(names: Callable[[], Iterable[str]]) -> Callable[[str], list[str]]:
    """What completes one of `names`, which are found out when it is asked for.

    A name that a terminal would obey is not offered: a shell writes what it is given, and cleaned it were another name.
    """

    def complete(incomplete: str) -> list[str]:
        found = (name for name in names() if name == strip_controls(name, single_line=True))
        return [name for name in found if name.startswith(incomplete)]

    return complete


def _models() -> Iterable[str]:
    from uncomp_cli.models.catalog import known_names
    from uncomp_cli.models.known import known_models

    return dict.fromkeys([*known_names(), *known_models()])


def rope_kinds() -> Iterable[str]:
    """What --rope takes."""
    from uncomp_cli.models.extension import ROPE_KINDS

    return ["auto", "reread", "repack", "plain", *(f"{kind}:2" for kind in ROPE_KINDS)]


def saved_documents() -> list[str]:
    """The names of saved documents."""
    from uncomp_cli.asking.request import shelf_of

    return [entry.name for entry in shelf_of().entries()]


def _presets() -> list[str]:
    from uncomp_cli.budget.presets import list_presets

    return [preset.name for preset in list_presets()]


def _thinnings() -> Iterable[str]:
    from uncomp_cli.budget.thinning import THINNINGS

    return THINNINGS


model_names, cache_names = completing(_models), completing(saved_documents)
preset_names, thinning_names = completing(_presets), completing(_thinnings)
policy_names = completing(lambda: POLICIES)
