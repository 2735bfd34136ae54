"""Reading JSON that people may have edited: every value that is missing, unknown or of another kind is named.

A place is written as in `entries[2].ids[0]`. All functions raise UsageError.
"""

import difflib
import json
import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, NoReturn, TypeVar

from uncomp_cli.errors import UsageError

T = TypeVar("T")

_WORDS = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}
_SHOWN = 40


def parse_object(source: str | bytes) -> dict[str, Any]:
    """The JSON object in `source`; a key that stands there twice is wrong, as is a number that is none."""
    try:
        data = json.loads(source, object_pairs_hook=_unique, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:  # of JSON and of UTF-8
        raise UsageError(f"it is not JSON: {error}", hint="mend the place, or move the file away") from error
    found: dict[str, Any] = _expect(data, "it", dict)
    return found


def object_of(data: Any, place: str, known: Collection[str], required: Collection[str]) -> Mapping[str, Any]:
    """`data` as an object that has no keys but those `known`, and all that are `required`."""
    found: dict[str, Any] = _expect(data, place or "it", dict)
    for key in found:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
            raise UsageError(f"{_at(place, key)} is an unknown key", hint=hint)
    for key in required:
        if key not in found:
            raise UsageError(f"{_at(place, key)} is missing", hint=f"known keys: {', '.join(known)}")
    return found


def list_of(data: Any, place: str, read: Callable[[Any, str], T]) -> tuple[T, ...]:
    """A list whose items `read` takes, each with its place."""
    return tuple(read(item, f"{place}[{index}]") for index, item in enumerate(_expect(data, place, list)))


def text(data: Any, place: str) -> str:
    """A string."""
    found: str = _expect(data, place, str)
    return found


def text_or_null(data: Any, place: str) -> str | None:
    """A string, or null."""
    return None if data is None else text(data, place)


def whole(data: Any, place: str) -> int:
    """A whole number from 0."""
    found: int = _expect(data, place, int)
    if found < 0:
        raise UsageError(f"{place} is {found}", hint="it must be 0 or more")
    return found


def truth(data: Any, place: str) -> bool:
    """True or false."""
    found: bool = _expect(data, place, bool)
    return found


def scalar(data: Any, place: str, kind: type) -> int | float:
    """A finite number: a whole one where `kind` is int."""
    found: int | float = _expect(data, place, int if kind is int or type(data) is int else float)
    if not math.isfinite(found):
        raise UsageError(f"{place} is {found}", hint="it must be a number")
    return found


def _expect(data: Any, place: str, kind: type) -> Any:
    if type(data) is not kind:
        shown = json.dumps(data, ensure_ascii=False, default=repr)
        shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"
        raise UsageError(f"{place} is {shown}", hint=f"it must be {_WORDS[kind]}")
    return data


def _at(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"the key '{twice}' stands there twice")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
