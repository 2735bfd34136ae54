r"""Macros that a LaTeX source defines, put in where they are used, with their arguments: a number may stand in one.

\newcommand{\name}[2][default]{… #1 … #2}, \def\name#1{…}, \NewDocumentCommand{\name}{m O{x}}{…}. A macro that is
its own text, or that takes no end, is left as it is; what is put in grows a source a few times at most.
"""

import re
from dataclasses import dataclass

_DEFINITION = re.compile(
    r"\\(?:(?:re|provide)?newcommand|(?:New|Renew|Provide)DocumentCommand|DeclareMathOperator|(?:[egx]?def)(?=\s*\\))"
    r"\*?\s*(?:\{\s*)?\\([A-Za-z]+)\s*\}?[ \t]*"
)
_COUNT = re.compile(r"\[\s*([0-9])\s*\][ \t\n]*")
_PARAMETERS = re.compile(r"((?:#[0-9])*)[ \t]*(?=\{)")
_SPECIFIED = re.compile(r"([mo]|O)\s*")
_BRACE = re.compile(r"\\.|[{}\[\]]", re.DOTALL)
_BLANK = re.compile(r"[ \t]*\n?[ \t]*")
_NAME = re.compile(r"\\([A-Za-z]+)")
_ARGUMENT = re.compile(r"#([1-9])")
_LONGEST = 1500  # letters of a text or an argument
_DEEPEST = 32  # braces in an argument
_MOST_PASSES, _MOST_TIMES = 4, 4


@dataclass(frozen=True, slots=True)
class Macro:
    """Its text, and for each argument what stands there where none is given; None where one must be."""

    text: str
    defaults: tuple[str | None, ...] = ()


def defined(source: str) -> tuple[dict[str, Macro], str]:
    """The macros of a source, and the source without their definitions."""
    macros: dict[str, Macro] = {}
    parts: list[str] = []
    at = 0
    for found in _DEFINITION.finditer(source):
        made = _macro(source, found) if found.start() >= at else None
        if made is None:
            continue
        macro, end = made
        if found[1] not in _NAME.findall(macro.text):
            macros[found[1]] = macro
        parts.append(source[at : found.start()])
        at = end
    return macros, "".join([*parts, source[at:]])


def _macro(source: str, found: re.Match[str]) -> tuple[Macro, int] | None:
    """What is defined there, and where that ends."""
    reads = _specified if "DocumentCommand" in found[0] else _counted
    defaults, at = reads(source, found.end())
    taken = taken_group(source, at, "{}")
    return None if taken is None else (Macro(taken[0], defaults), taken[1])


def _counted(source: str, at: int) -> tuple[tuple[str | None, ...], int]:
    r"""`[2][default]` of \newcommand, `#1#2` of \def."""
    count = _COUNT.match(source, at)
    if count is None:
        parameters = _PARAMETERS.match(source, at)
        return (None,) * (len(parameters[1]) // 2 if parameters else 0), parameters.end() if parameters else at
    first = taken_group(source, count.end(), "[]")
    others = (None,) * max(int(count[1]) - 1, 0)
    return ((None, *others), count.end()) if first is None else ((first[0], *others), first[1])


def _specified(source: str, at: int) -> tuple[tuple[str | None, ...], int]:
    r"""`{m O{x}}` of \NewDocumentCommand."""
    taken = taken_group(source, at, "{}")
    if taken is None:
        return (), at
    defaults: list[str | None] = []
    inner, place = taken[0].strip(), 0
    while (kind := _SPECIFIED.match(inner, place)) is not None:
        default = taken_group(inner, kind.end(), "{}") if kind[1] == "O" else None
        defaults.append(None if kind[1] == "m" else "" if default is None else default[0])
        place = kind.end() if default is None else default[1]
    return tuple(defaults), taken[1]


def taken_group(source: str, at: int, pair: str) -> tuple[str, int] | None:
    """What stands between two braces from `at` on, and where it ends; None where there is no such thing."""
    at = _BLANK.match(source, at).end()  # type: ignore[union-attr]  # no blanks match too
    if not source.startswith(pair[0], at):
        return None
    depth = 0
    for found in _BRACE.finditer(source, at, at + _LONGEST):
        depth += (found[0] == pair[0]) - (found[0] == pair[1])
        if depth == 0 and found[0] == pair[1]:
            return source[at + 1 : found.start()], found.end()
        if depth > _DEEPEST:
            break
    return None


def expanded(body: str, macros: dict[str, Macro]) -> str:
    """The body with macros put in, and those in them, a few deep."""
    if not macros:
        return body
    most = _MOST_TIMES * len(body) + 10_000
    for _ in range(_MOST_PASSES):
        more = _once(body, macros, most)
        if more == body or len(more) > most:
            break
        body = more
    return body


def _once(body: str, macros: dict[str, Macro], most: int) -> str:
    parts: list[str] = []
    at = size = 0
    for found in _NAME.finditer(body):
        if found.start() < at or found[1] not in macros:
            continue
        text, end = _put(body, found, macros[found[1]])
        parts += (body[at : found.start()], text)
        size += len(text)
        at = end
        if size >= most:
            return body
    return "".join([*parts, body[at:]])


def _put(body: str, found: re.Match[str], macro: Macro) -> tuple[str, int]:
    """A macro's text with the arguments behind its name, and where these end; itself where one is missing."""
    given: list[str] = []
    at = found.end()
    for default in macro.defaults:
        taken = taken_group(body, at, "{}" if default is None else "[]")
        if taken is None and default is None:
            return found[0], found.end()
        given.append(taken[0] if taken else str(default))
        at = taken[1] if taken else at
    if not macro.defaults:
        at += 2 if body.startswith("{}", at) else 0

    def put(number: re.Match[str]) -> str:
        return given[int(number[1]) - 1] if int(number[1]) <= len(given) else ""

    return _ARGUMENT.sub(put, macro.text), at
