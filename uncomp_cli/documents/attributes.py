"""What an element of HTML says of itself in its attributes: hidden, a decoration, raised, a note."""

import re
from collections.abc import Mapping

Attributes = Mapping[str, str]

_NOT_SHOWN = re.compile(r"(?:^|;)\s*(?:display\s*:\s*none|visibility\s*:\s*hidden)", re.IGNORECASE)
AS_BLOCK = re.compile(r"(?:^|;)\s*display\s*:\s*(?:block|flex|grid|list-item|table)\b", re.IGNORECASE)
SHIFTED = re.compile(r"vertical-align\s*:\s*(super|sub)\b", re.IGNORECASE)
NOTE = re.compile(r"foot-?note|noteref|endnote|\breference\b|\bcite", re.IGNORECASE)


def is_hidden(tag: str, attributes: Attributes) -> bool:
    """Whether a browser does not show an element."""
    is_closed = tag == "dialog" and "open" not in attributes
    hidden = attributes.get("hidden")
    return (
        is_closed
        or (hidden is not None and hidden != "until-found")
        or bool(_NOT_SHOWN.search(attributes.get("style", "")))
    )


def is_decoration(attributes: Attributes) -> bool:
    """Whether a picture says nothing: marked so, or a point to count visitors."""
    is_marked = attributes.get("aria-hidden") == "true" or attributes.get("role") in ("presentation", "none")
    return is_marked or "1" in (attributes.get("width"), attributes.get("height"))


def named(attributes: Attributes) -> str:
    """What an element says of its part in the text."""
    return " ".join(attributes.get(name, "") for name in ("class", "id", "role", "epub:type"))


def integer_of(text: str, default: int) -> int:
    """The number that a text begins with."""
    match = re.match(r"\s*(-?\d{1,9})", text)
    return int(match[1]) if match else default
