"""JSON lines (.jsonl, .ndjson) and lists of objects (.json): an object a line, its names before its values.

Numbers are the file's own digits: 1.10 stays 1.10, and 1e400 what it is. What lies in an object is named by its path
(`user.name`). Any other JSON is text as it is. A line that is no JSON stays, and is said.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from uncomp_cli.documents import encoding
from uncomp_cli.documents.text import Text, Wishes, counted, joined

_NO_JSON = ("line that is no JSON, kept as it is", "lines that are no JSON, kept as they are")
_WORDS = {True: "true", False: "false", None: "null"}


class _Digits(str):
    """A number as the file has it."""


class _Object(tuple[tuple[str, Any], ...]):
    """An object with all its names, those that it has twice too."""


_DECODER = json.JSONDecoder(object_pairs_hook=_Object, parse_float=_Digits, parse_int=_Digits, parse_constant=_Digits)


def read(data: bytes, wishes: Wishes) -> Text:
    """The objects of a file, or its text as it is."""
    plain = encoding.read(data, wishes)
    lines = plain.text.split("\n")
    whole = _decoded(plain.text.strip())
    if isinstance(whole, list) and whole and all(isinstance(item, _Object) for item in whole):
        parts = [(f"i{number}", _line(item)) for number, item in enumerate(whole, start=1)]
        text, places = joined(parts, between="\n")
        return replace(plain, text=text, places=places)
    if whole is not None and len([line for line in lines if line.strip()]) > 1:
        return plain
    read_lines = [_decoded(line.strip()) if line.strip() else None for line in lines]
    if not any(isinstance(item, _Object) for item in read_lines):
        return plain
    shown = [_line(item) if isinstance(item, _Object) else line for item, line in zip(read_lines, lines, strict=True)]
    broken = sum(item is None and bool(line.strip()) for item, line in zip(read_lines, lines, strict=True))
    losses = counted({_NO_JSON: broken})
    return replace(plain, text="\n".join(shown), losses=(*plain.losses, *losses))


def _decoded(text: str) -> Any:
    """What JSON says; None for what is none."""
    try:
        return _DECODER.decode(text) if text[:1] in "{[" else None
    except (ValueError, RecursionError):
        return None


def _line(item: "_Object") -> str:
    return ", ".join(f"{path}: {value}" for path, value in _flat(item))


def _flat(item: "_Object") -> Iterator[tuple[str, str]]:
    """The paths and values of an object, in its order."""
    waiting: list[tuple[str, Any]] = list(reversed(item))
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, _Object) and value:
            waiting += [(f"{path}.{name}", inner) for name, inner in reversed(value)]
        elif isinstance(value, list) and any(isinstance(inner, (list, _Object)) for inner in value):
            waiting += [(f"{path}.{at}", inner) for at, inner in reversed(list(enumerate(value, start=1)))]
        else:
            yield path, _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(map(_shown, value))
    if isinstance(value, str):
        return " ".join(value.split("\n"))
    return "none" if isinstance(value, _Object) else _WORDS[value]
