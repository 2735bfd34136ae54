"""Files as damage and malice leave them: bytes flipped and cut, JSON with other keys, types, sizes, depths and numbers.

Everything is drawn from a `random.Random`, so that an input is known by its seed. JSON is written by hand, since no
writer makes what a reader must survive: numbers of a thousand digits, 1e999, NaN, keys that stand there twice.
"""

import json
from collections.abc import Callable
from random import Random
from typing import Any


class Raw(str):
    """Text that stands in JSON as it is."""


_HUGE = "9" * 400
RAW = ("NaN", "-Infinity", "1e999", "-1e308", "1e-320", _HUGE, f"-{_HUGE}", f"{_HUGE}.5", "1e308", "-0.0", "tru", "'x'")
_NUMBERS = (0, -1, 1, 2, 3, 2**31, 2**32, 2**53, 2**63 - 1, 2**63, 2**64, -(2**63) - 1, 10**17, 0.5, 1e300, 1e17)
_TEXTS = (
    "", " ", "x", "0", "\0", "\n", "\x1b]52;c;eHh4\x07", "\ud800", "../../etc/passwd", "/dev/zero", "é" * 300, "%s",
    "x" * 100_000, "full", "10%", "-5%", "1e400%", "99999999999999999999999%", "auto", "[red]", "NaN", "null", "{}",
)  # fmt: skip
_DEPTHS = (40, 300, 990, 100_000)


def damage_bytes(data: bytes, chance: Random) -> bytes:
    """The bytes with one to four changes, anywhere."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        changed = _damaged(changed, chance)
    return bytes(changed)


def _damaged(data: bytearray, chance: Random) -> bytearray:
    at = chance.randrange(len(data) + 1)
    until = min(len(data), at + chance.choice((1, 2, 8, 100, 5000)))
    kind = chance.randrange(7)
    if kind == 0 and at < len(data):
        data[at] ^= 1 << chance.randrange(8)
    elif kind == 1:
        del data[at:until]
    elif kind == 2:
        data[at:at] = chance.choice((b"\0", b"\xff" * 8, b'"', b"{", b"]", b"\xed\xa0\x80", b"\n", chance.randbytes(9)))
    elif kind == 3:
        data[at:at] = data[at:until]
    elif kind == 4:
        data[at:until] = bytes([chance.choice((0, 255, 32, 127))]) * (until - at)
    elif kind == 5:
        del data[at:]
    else:
        data[at:until] = chance.randbytes(until - at)
    return data


def damage_json(data: Any, chance: Random) -> Any:
    """Plain data with one to three changes; it may hold `Raw` text, so write it with `dump`."""
    changed = json.loads(json.dumps(data))
    for _ in range(chance.randint(1, 3)):
        changed = _changed(changed, chance)
    return changed


def dump(data: Any) -> str:
    """JSON of plain data and of `Raw` text."""
    if isinstance(data, Raw):
        return str(data)
    if isinstance(data, dict):
        return (
            "{"
            + ",".join(
                f"{key if isinstance(key, Raw) else json.dumps(key)}:{dump(value)}" for key, value in data.items()
            )
            + "}"
        )
    if isinstance(data, list):
        return "[" + ",".join(map(dump, data)) + "]"
    return json.dumps(data)


def _changed(data: Any, chance: Random) -> Any:
    """The data with one change in one of its places; its top too is one, though seldom."""
    places = list(_places(data))
    if not places or chance.random() < 0.02:
        return _other(data, chance)
    holder, key = chance.choice(places)
    change: Callable[[Any, Any, Random], None] = chance.choice(_CHANGES)
    change(holder, key, chance)
    return data


def _places(data: Any) -> Any:
    """Every (object or list, key) in the data, to a hundred a list: a tensor's numbers are not all of it."""
    if isinstance(data, dict):
        for key, value in list(data.items()):
            yield data, key
            yield from _places(value)
    elif isinstance(data, list):
        for key, value in enumerate(data[:100]):
            yield data, key
            yield from _places(value)


def _replace(holder: Any, key: Any, chance: Random) -> None:
    holder[key] = _other(holder[key], chance)


def _nudge(holder: Any, key: Any, chance: Random) -> None:
    """A value that is nearly right: a number a little off, a text with another letter, a list of another length."""
    value = holder[key]
    if isinstance(value, bool) or value is None:
        holder[key] = chance.choice((True, False, None, 0, 1))
    elif isinstance(value, (int, float)):
        holder[key] = chance.choice((value + 1, value - 1, -value, value * 1000, value / 3, float(value), str(value)))
    elif isinstance(value, str):
        at = chance.randrange(len(value) + 1)
        holder[key] = (
            value[:at] + chance.choice(("", "x", "0", ",", ":", "=", "/", "\n")) + value[at + chance.randrange(2) :]
        )
    elif isinstance(value, list):
        holder[key] = chance.choice((value[1:], value[:-1], value + value[:1], value[::-1], [value], value * 40))
    elif value:
        inner = chance.choice(list(value))
        value[chance.choice((inner.upper(), f"{inner}s", inner[1:]))] = value.pop(inner)


def _drop(holder: Any, key: Any, chance: Random) -> None:
    del holder[key]


def _add(holder: Any, key: Any, chance: Random) -> None:
    """A key that is not known, or one twice; in a list, an item more."""
    if isinstance(holder, dict):
        new = chance.choice((f"{key}x", "", "zz", Raw(json.dumps(key))))
        holder[new] = chance.choice((holder[key], None, 1))
    else:
        holder.insert(key, _other(holder[key], chance))


def _swap(holder: Any, key: Any, chance: Random) -> None:
    other = chance.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    holder[key], holder[other] = holder[other], holder[key]


_CHANGES = (_replace, _replace, _nudge, _nudge, _drop, _add, _swap)


def _other(value: Any, chance: Random) -> Any:
    """Something else: of another type, of an extreme size, or nested deeper than anybody reads."""
    depth = chance.choice(_DEPTHS)
    return chance.choice(
        (
            None, True, [], {}, [[]], {"": {}}, [value], {"x": value},
            Raw(chance.choice(RAW)), chance.choice(_NUMBERS), chance.choice(_NUMBERS), chance.choice(_TEXTS),
            chance.choice(_TEXTS), Raw("[" * depth + "]" * depth), Raw('{"a":' * depth + "1" + "}" * depth),
            [0] * chance.choice((1, 50, 20_000)),
        )
    )  # fmt: skip
