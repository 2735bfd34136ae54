"""What installed packages add: policies, scorers and tasks, without a fork.

    [project.entry-points."uncomp.policies"]        also: uncomp.scorers, uncomp.tasks
    steep = "my_package:SteepPolicy"                a class that is called `steep` itself

Packages are looked at only for a name that is not built in, so that nothing else waits for them. An entry that cannot
be loaded, is not what its group needs, or takes the name of another is an error that names the package and the entry.
"""

from collections.abc import Collection
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from uncomp_cli.errors import UncompError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint


_NEEDED = {
    "policies": ("name", "fixed_scorer", "published", "text", "measures", "scope", "weights", "plan"),
    "scorers": ("name", "query_aware", "needs_queries", "repeats", "shared", "published", "score"),
    "tasks": ("name", "subtasks", "regimes", "judge", "sample"),
}


def plugin(group: str, name: str, *, built_in: Collection[str]) -> Any | None:
    """The class that an installed package calls `name` in `uncomp.GROUP`, or None when there is none.

    Raises UncompError for an entry of the group that has the name of another or of one `built_in`, and for one that is
    broken.
    """
    found = _entries(group, built_in)
    return _load(group, found[name]) if name in found else None


def plugin_names(group: str, *, built_in: Collection[str]) -> list[str]:
    """The names that installed packages add to a group."""
    return sorted(_entries(group, built_in))


def _entries(group: str, built_in: Collection[str]) -> "dict[str, EntryPoint]":
    from importlib.metadata import entry_points  # --help must not wait for it

    entries: dict[str, EntryPoint] = {}
    for entry in entry_points(group=f"uncomp.{group}"):
        if entry.name in built_in:
            raise _broken(group, entry, f"takes the name of a built-in: {', '.join(built_in)}")
        if entry.name in entries:
            raise _broken(group, entry, f"is also one of package {_package(entries[entry.name])}")
        entries[entry.name] = entry
    return entries


@lru_cache(maxsize=64)
def _load(group: str, entry: "EntryPoint") -> Any:
    try:
        kind = entry.load()
    except Exception as error:  # another package's code: it may fail in any way
        raise _broken(group, entry, f"cannot be loaded: {type(error).__name__}: {error}") from error
    lacking = [each for each in _NEEDED[group] if not hasattr(kind, each)]
    if lacking:
        raise _broken(group, entry, f"is not what the group needs: {entry.value} has no {', '.join(lacking)}")
    if kind.name != entry.name:
        raise _broken(group, entry, f"is called {kind.name!r} itself")
    return kind


def _broken(group: str, entry: "EntryPoint", reason: str) -> UncompError:
    package = _package(entry)
    message = f"package {package}: entry {entry.name!r} of uncomp.{group} {reason}"
    return UncompError(message, hint=f"update or uninstall {package}")


def _package(entry: "EntryPoint") -> str:
    return "of no name" if entry.dist is None else f"{entry.dist.name} {entry.dist.version}"
