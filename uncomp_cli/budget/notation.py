"""Policy texts, `NAME[:key=value[,key=value...]]`: a policy, or a thinning, is a frozen dataclass with these fields.

A field's type says what its value may be: bool (true, false), int, float, one of the words of a Literal, or any str. A
policy's `text` is the shortest that makes the same policy: settings left as they are do not appear in it.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from uncomp_cli.config import ScorerConfig
from uncomp_cli.errors import UsageError, did_you_mean, require
from uncomp_cli.plugins import plugin, plugin_names

_WHOLE = re.compile(r"[+-]?[0-9]{1,18}", re.ASCII)
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?", re.ASCII | re.IGNORECASE)
_TRUTH = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class PolicyText:
    """Base of all policies and thinnings: `text`, also `str()`, makes an equal one.

    `published` is how the policy's paper, or its released code, ranks tokens, where that is not its scorer's own.
    """

    name: ClassVar[str]
    published: ClassVar[ScorerConfig | None] = None

    @property
    def text(self) -> str:
        """Name and the settings that differ from their defaults."""
        changed = [(f.name, getattr(self, f.name)) for f in fields(self) if getattr(self, f.name) != f.default]
        settings = ",".join(f"{key}={_written(value)}" for key, value in changed)
        return f"{self.name}:{settings}" if settings else self.name

    def __str__(self) -> str:
        return self.text


def make_named(text: str, kinds: Mapping[str, type[Any]], *, what: str, group: str | None = None) -> Any:
    """The one of `kinds` that `text` names, with its settings; raises UsageError with the nearest names.

    Installed packages may add to `kinds` in the `group` of that name (plugins.py).
    """
    name, colon, settings = text.strip().partition(":")
    kind = kinds.get(name)
    if kind is None and group is not None:
        kind = plugin(group, name, built_in=kinds)
    if kind is None:
        added = [] if group is None else plugin_names(group, built_in=kinds)
        raise UsageError(f"unknown {what} '{name}'", hint=_nearest(name, [*kinds, *added]))
    return kind(**read_settings(kind, settings, text=text, what=what)) if colon else kind()


def read_settings(kind: type[Any], settings: str, *, text: str, what: str = "policy") -> dict[str, Any]:
    """The fields of dataclass `kind` that `settings` (`key=value,...`) names; messages call the whole `what` `text`.

    Raises UsageError for an unknown key, with the nearest; for one named twice; and for a value of another type.
    """
    hints = get_type_hints(kind)
    types = {f.name: hints[f.name] for f in fields(kind)}
    read: dict[str, Any] = {}
    for part in settings.split(","):
        key, _, value = (piece.strip() for piece in part.partition("="))
        hint = "write NAME:key=value,key=value"
        require(bool(key and value), f"{what} '{text}': '{part}' is not key=value", hint=hint)
        if key not in types:
            none = f"{what} {kind.name} takes no settings: write {kind.name}"
            raise UsageError(f"{what} '{text}' has the unknown setting '{key}'", hint=_nearest(key, types) or none)
        require(key not in read, f"{what} '{text}' sets {key} twice", hint=f"write {key}= once")
        read[key] = _read(value, types[key], where=f"{what} '{text}': {key} is '{value}'")
    return read


def _read(value: str, kind: Any, *, where: str) -> object:
    kind = next((inner for inner in get_args(kind) if NoneType in get_args(kind) and inner is not NoneType), kind)
    if get_origin(kind) is Literal:
        require(value in get_args(kind), where, hint=_nearest(value, get_args(kind)))
        return value
    if kind is bool:
        require(value.lower() in _TRUTH, where, hint="use true or false")
        return _TRUTH[value.lower()]
    if kind is int:
        require(_WHOLE.fullmatch(value) is not None, where, hint="use a whole number")
        return int(value)
    if kind is float:
        require(_NUMBER.fullmatch(value) is not None, where, hint="use a number")
        return float(value)
    return value


def _nearest(word: str, known: Iterable[str]) -> str:
    """A hint: the nearest of the known words, or all of them, or nothing when there are none."""
    words = list(known)
    return did_you_mean(word, words, f"choose one of: {', '.join(words)}" if words else "")


def _written(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
