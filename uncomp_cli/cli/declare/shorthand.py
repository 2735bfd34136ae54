"""What one value of an option says of several things: what stands behind a policy, and tokens with a k behind them.

--policy uncertain/agreement/8bit/thin=none      a policy, a scorer, bits and thinning
"""

import re
from dataclasses import fields
from typing import Any

from uncomp_cli.errors import UsageError
from uncomp_cli.numerals import parse_count

_FLAGS = {"scorer": "scorer", "kv_bits": "kv-bits", "thinning": "thin"}


def fields_of(group: Any) -> dict[str, Any]:
    """The values of a group of options by their names."""
    return {item.name: getattr(group, item.name) for item in fields(group)}


def spelled_out(text: str | None, given: dict[str, Any]) -> dict[str, Any]:
    """The fields `given` of a preset's options with the parts of the policy `text` in their places.

    Raises UsageError for a part that is none, and where an option chooses the same thing.
    """
    policy, *parts = [None] if text is None else text.split("/")
    found = {**given, "policy": policy}
    for part in parts:
        name, value = _part(str(part))
        if found.get(name) is not None:
            message = f"--policy {text} and --{_FLAGS[name]} {found[name]} both choose one thing"
            raise UsageError(message, hint="leave one of the two out")
        found[name] = value
    return found


def _part(text: str) -> tuple[str, str | int]:
    """What stands behind a policy: `8bit`, `thin=…`, or a scorer."""
    bits = re.fullmatch(r"(16|8|4)bit", text)
    if bits:
        return "kv_bits", int(bits[1])
    name, is_set, value = text.partition("=")
    if is_set and name != "thin":
        raise UsageError(f"'{text}' is nothing that follows a policy", hint="write uncertain/agreement/8bit/thin=none")
    return ("thinning", value) if is_set else ("scorer", text)


def tokens_of(text: str) -> int:
    """The tokens that --chunk names. Raises UsageError for what is no number of them."""
    tokens = parse_count(text)
    if tokens is None:
        raise UsageError(f"chunk '{text}' is not a number of tokens", hint="use --chunk 2048, or --chunk auto")
    return tokens
