"""What an element of HTML is by its name, and what its attributes say of it: hidden, a decoration, a note."""

import re
from collections.abc import Mapping

from uncomp_cli.documents.text import FILM, OBJECT, SOUND

Attributes = Mapping[str, str]

_BLOCK_TAGS = (
    "address article aside body center div fieldset footer form frameset header hgroup html legend main nav noframes "
    "optgroup search section summary colgroup"
)
_GAPPED_TAGS = "p dl figure figcaption details caption"
_BREAKING_TAGS = "table li pre ul ol h1 h2 h3 h4 h5 h6 hr br img"
_SILENT_TAGS = "script style template rp datalist annotation annotation-xml"
BLOCKS, GAPPED = frozenset(_BLOCK_TAGS.split()), frozenset(_GAPPED_TAGS.split())
BREAK_OUT = frozenset(_BREAKING_TAGS.split()) | BLOCKS | GAPPED
SILENT = frozenset(_SILENT_TAGS.split())
EMBEDDED = {
    "iframe": ("embedded page", "embedded pages"),
    "embed": OBJECT,
    "applet": OBJECT,
    "canvas": ("drawing by a script", "drawings by a script"),
    "video": FILM,
    "audio": SOUND,
    "frame": ("frame with another page", "frames with other pages"),
}
IMPLIED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # what a start ends, and within what
    "li": (("li",), ("ul", "ol", "menu", "dir", "td", "th", "table")),
    **dict.fromkeys(("dt", "dd"), (("dt", "dd"), ("dl", "td", "th", "table"))),
    **dict.fromkeys(("rt", "rp", "rb"), (("rt", "rb"), ("ruby",))),
}

DRAWN = "shadowrootmode"  # of a template that is shown where it stands
_NOT_SHOWN = re.compile(r"(?:^|;)\s*(?:display\s*:\s*none|visibility\s*:\s*hidden)", re.IGNORECASE)
AS_BLOCK = re.compile(r"(?:^|;)\s*display\s*:\s*(?:block|flex|grid|list-item|table)\b", re.IGNORECASE)
NOTE_LINK = re.compile(r"noteref|footnote-?ref")
NOTE = re.compile(r"foot-?note|noteref|endnote|\breference\b|\bcite", re.IGNORECASE)


def is_hidden(tag: str, attributes: Attributes) -> bool:
    """Whether a browser does not show an element."""
    if not attributes and tag != "dialog":
        return False
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
