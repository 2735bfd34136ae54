"""JSON that anybody may have edited, as dataclasses: what is missing, unknown, of another kind or no number is named.

    read(Kind, data)      the fields of Kind by their annotations: int, float, str, bool, Literal, X | None, another
                          dataclass, tuple[X, ...], tuple[X, Y], list[X], dict[str, X], and Any, which is JSON data
    Annotated[X, check]   check(value, place) raises for what an X may not be, as Least(0) does
    metadata              "read": a field's own reader of (data, place); "in_file": False for what no file may have

A place is written as in `entries[2].ids[0]`. Numbers are finite, and whole ones fit into 64 bits, so that each can be a
float's and a tensor's; data of no annotation is nested some levels deep at most. All functions raise UsageError.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from uncomp_cli.errors import UncompError, UsageError, did_you_mean

T = TypeVar("T")

MOST_BYTES = 4 * 2**20
"""Of a file, unless its reader says otherwise: JSON takes some ten times its size in memory."""

_WORDS = {
    dict: "an object",
    list: "a list",
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
}
_HASH = re.compile("[0-9a-f]{64}")
_SHOWN = 40
_DEEPEST = 32
_INTEGERS = range(-(2**63), 2**64)
_LARGEST = 1e100
"""Of numbers that are measured, sums and squares are numbers too."""


@dataclass(frozen=True, slots=True)
class Least:
    """The check that a number is at least this."""

    least: int

    def __call__(self, value: float, place: str) -> None:
        """Raise UsageError for a smaller one."""
        if value < self.least:
            raise UsageError(f"{place} is {value}", hint=f"it must be {self.least} or more")


@dataclass(frozen=True, slots=True)
class Among:
    """The check that a value is one of these."""

    words: tuple[Any, ...]

    def __call__(self, value: Any, place: str) -> None:
        """Raise UsageError for any other."""
        if value not in self.words:
            raise UsageError(f"{place} is {shown(value)}", hint=f"it must be {' or '.join(map(str, self.words))}")


def _check_hash(value: str, place: str) -> None:
    if not _HASH.fullmatch(value):
        raise UsageError(f"{place} is {shown(value)}", hint="it must be a hash of 64 letters")


Count = Annotated[int, Least(0)]
Some = Annotated[int, Least(1)]
Hash = Annotated[str, _check_hash]
"""A sha256, in hexadecimal."""


@contextmanager
def inside(what: str, *, hint: str | None = None, kind: type[UncompError] | None = None) -> Iterator[None]:
    """Say of every error what it is about; `hint` and `kind` stand in the place of its own."""
    try:
        yield
    except UncompError as error:
        message = f"{what}: {error.message}" if what else error.message
        raise (kind or type(error))(message, hint=hint or error.hint) from error


def load_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    return parse_object(load_bytes(path))


def load_bytes(path: Path, *, most_bytes: int = MOST_BYTES) -> bytes:
    """What a regular file holds, which is `most_bytes` at most: a pipe may be waited for in vain."""
    try:
        if path.exists() and not path.is_file():
            raise UsageError("it is not a regular file", hint="name another file")
        with path.open("rb") as file:
            source = file.read(most_bytes + 1)
    except (OSError, ValueError) as error:  # a name with a zero in it
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"it cannot be read: {reason}", hint="check its name and its permissions") from error
    if len(source) > most_bytes:
        raise UsageError(f"it has more than {most_bytes:,} bytes", hint="name another file, or make it again")
    return source


def parse_object(source: str | bytes) -> dict[str, Any]:
    """The JSON object in `source`; a key that stands there twice is wrong, as is a number that is none."""
    try:
        data = json.loads(source, object_pairs_hook=_unique, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:  # of JSON and of UTF-8
        raise UsageError(f"it is not JSON: {error}", hint="mend the place, or move the file away") from error
    return object_of(data)


def take_version(data: dict[str, Any], known: int, *, again: str) -> None:
    """Take the schema version out of an object: nothing of another version is looked at. `again` mends an older one."""
    version = data.pop("schema_version", None)
    if type(version) is not int or version != known:
        newer = type(version) is int and version > known
        message = f"it has schema version {shown(version)}, this uncomp reads {known}"
        raise UsageError(message, hint="update uncomp" if newer else again)


def read(kind: type[T], data: Any, place: str = "", *, more: str = "") -> T:
    """The dataclass `kind` from an object that has no keys but its fields; what has a default may be missing."""
    anything: type = kind
    readers, found = _readers(anything), _expect(data, place or "it", dict, more=more)
    unknown = next((key for key in found if key not in readers), None)
    if unknown is not None:
        hint = did_you_mean(unknown, readers, f"known keys: {', '.join(readers)}")
        raise UsageError(f"{_at(place, shortened(unknown))} is an unknown key", hint=hint)
    missing = next((key for key in _required(kind) if key not in found), None)
    if missing is not None:
        raise UsageError(f"{_at(place, missing)} is missing", hint=f"known keys: {', '.join(readers)}")
    values = {key: readers[key](value, _at(place, key)) for key, value in found.items()}
    with inside(place):
        return kind(**values)


def object_of(data: Any) -> dict[str, Any]:
    """An object of anything."""
    found: dict[str, Any] = _expect(data, "it", dict)
    return found


def text(data: Any, place: str) -> str:
    """A string."""
    found: str = _expect(data, place, str)
    return found


def value_of(kind: Any, data: Any, place: str, *, more: str = "") -> Any:
    """`data` as what the annotation `kind` says; `more` follows in a hint what it must be."""
    if kind is Any:
        return _plain(data, place)
    if kind in (int, float):
        return _number(kind, data, place, more)
    if kind in (str, bool):
        return _expect(data, place, kind, more=more)
    if is_dataclass(kind) and isinstance(kind, type):
        return read(kind, data, place, more=more)
    return _FORMS[get_origin(kind)](get_args(kind), data, place, more)


def shown(data: Any) -> str:
    """A value as JSON, the beginning of a long one."""
    try:
        return shortened(json.dumps(data, ensure_ascii=False, default=repr))
    except RecursionError:
        return f"{'[' * _SHOWN}…"


def shortened(words: str, most: int = _SHOWN) -> str:
    """The beginning of a long text."""
    return words if len(words) <= most else f"{words[:most]}…"


@lru_cache(maxsize=64)
def _readers(kind: type) -> Mapping[str, Callable[[Any, str], Any]]:
    """What reads each field that a file may have."""
    hints = get_type_hints(kind, include_extras=True)

    def reader(name: str) -> Callable[[Any, str], Any]:
        return lambda data, place: value_of(hints[name], data, place)

    known = [item for item in fields(kind) if item.metadata.get("in_file", True)]
    return {item.name: item.metadata.get("read") or reader(item.name) for item in known}


def _required(kind: type) -> Iterable[str]:
    return (item.name for item in fields(kind) if item.default is MISSING and item.default_factory is MISSING)


def _number(kind: type, data: Any, place: str, more: str) -> int | float:
    """A finite number: a whole one where `kind` is int."""
    found: int | float = _expect(data, place, int if kind is int or type(data) is int else float, more=more)
    if type(found) is int and found not in _INTEGERS:
        raise UsageError(f"{place} is a number of {len(str(abs(found)))} digits", hint="use a number of 18 at most")
    if not abs(found) <= _LARGEST:
        raise UsageError(f"{place} is {found}", hint=f"it must be a number of {_LARGEST:g} at most")
    return found


def _annotated(inner: tuple[Any, ...], data: Any, place: str, more: str) -> Any:
    value = value_of(inner[0], data, place, more=more)
    for check in inner[1:]:
        check(value, place)
    return value


def _optional(inner: tuple[Any, ...], data: Any, place: str, more: str) -> Any:
    (kind,) = (each for each in inner if each is not NoneType)
    return None if data is None else value_of(kind, data, place, more=f"{more} or null")


def _literal(inner: tuple[Any, ...], data: Any, place: str, more: str) -> Any:
    Among(inner)(data, place)  # booleans and floats that equal a number are among no words that we have
    return data


def _tuple(inner: tuple[Any, ...], data: Any, place: str, more: str) -> tuple[Any, ...]:
    if inner[-1] is Ellipsis:
        return tuple(_list(inner[:1], data, place, more))
    items = _expect(data, place, list, more=more)
    if len(items) != len(inner):
        raise UsageError(f"{place} is {shown(items)}", hint=f"it must be a list of {len(inner)}{more}")
    return tuple(value_of(kind, item, f"{place}[{i}]") for i, (kind, item) in enumerate(zip(inner, items, strict=True)))


def _list(inner: tuple[Any, ...], data: Any, place: str, more: str) -> list[Any]:
    items = _expect(data, place, list, more=more)
    return [value_of(inner[0], item, f"{place}[{index}]") for index, item in enumerate(items)]


def _dict(inner: tuple[Any, ...], data: Any, place: str, more: str) -> dict[str, Any]:
    found = _expect(data, place, dict, more=more)
    return {key: value_of(inner[1], value, _at(place, shortened(key))) for key, value in found.items()}


_FORMS: dict[Any, Callable[[tuple[Any, ...], Any, str, str], Any]] = {
    Annotated: _annotated,
    UnionType: _optional,
    Union: _optional,
    Literal: _literal,
    tuple: _tuple,
    list: _list,
    dict: _dict,
}


def _plain(data: Any, place: str, deep: int = 0) -> Any:
    """JSON data, with numbers as everywhere."""
    if deep > _DEEPEST:
        raise UsageError(f"{place} is nested more than {_DEEPEST} levels deep", hint="no object of uncomp is")
    if type(data) in (int, float):
        return _number(type(data), data, place, "")
    if isinstance(data, dict):
        for key, value in data.items():
            _plain(value, place if deep else _at(place, shortened(key)), deep + 1)
    elif isinstance(data, (list, tuple)):
        for value in data:
            _plain(value, place, deep + 1)
    return data


def _expect(data: Any, place: str, kind: type, *, more: str = "") -> Any:
    if type(data) is not kind and not (kind is list and type(data) is tuple):
        raise UsageError(f"{place} is {shown(data)}", hint=f"it must be {_WORDS[kind]}{more}")
    return data


def _at(place: str, key: str) -> str:
    return f"{place}.{key}" if place else key


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise ValueError(f"the key '{shortened(twice)}' stands there twice")
    return found


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
