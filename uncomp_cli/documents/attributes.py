"""What an element of HTML is by its name, and what its attributes and styles say: hidden, a note, raised, lowered.

A style is that of an element, or of a class in the page's style sheets (CSS 2.1, 10.8.1; Word's pages have a property
of their own). A length or a share counts where it moves text by more than a hair's breadth.
"""

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


_ALIGNED = re.compile(r"vertical-align\s*:\s*(super|sub)\b", re.IGNORECASE)
_LENGTH = r"([-+]?(?:\d+(?:\.\d+)?|\.\d+))(px|pt|r?em|ex|%)"
_MOVED = re.compile(
    rf"(?:vertical-align|mso-text-raise)\s*:\s*{_LENGTH}|(?<![\w-])(top|bottom)\s*:\s*{_LENGTH}", re.IGNORECASE
)
_RELATIVE = re.compile(r"position\s*:\s*relative", re.IGNORECASE)
_LEAST = {"px": 2.0, "pt": 1.5, "em": 0.2, "rem": 0.2, "ex": 0.3, "%": 15.0}
_COMMENT = re.compile(r"/\*.*?(?:\*/|\Z)", re.DOTALL)
_CLASS = re.compile(r"(?:[a-z]+[0-9]?)?\.([\w-]{1,100})", re.IGNORECASE)
_NAMED = {"sup": "sup", "super": "sup", "superscript": "sup", "subscript": "sub"}


def shift_of(style: str) -> str:
    """`sup` or `sub` for a style that raises or lowers text, else nothing."""
    if aligned := _ALIGNED.search(style):
        return "sup" if aligned[1].lower() == "super" else "sub"
    moved = _MOVED.search(style)
    if moved is None:
        return ""
    side, unit = (moved[3] or "").lower(), (moved[2] or moved[5]).lower()
    if side and not (_RELATIVE.search(style) and "font-size" in style):
        return ""
    up = float(moved[1] or moved[4]) * (-1 if side == "top" else 1)
    return "" if abs(up) < _LEAST[unit] else "sup" if up > 0 else "sub"


class StyleSheet:
    """The classes of a page that raise or lower text."""

    def __init__(self) -> None:
        self._shifts: dict[str, str] = {}

    def add(self, css: str) -> None:
        """Rules; those that count name a class and nothing around it."""
        for rule in _COMMENT.sub("", css).split("}"):
            before, _, style = rule.rpartition("{")
            shift = shift_of(style)
            for selector in before.rpartition("{")[2].split(",") if shift else ():
                if named := _CLASS.fullmatch(selector.strip()):
                    self._shifts[named[1]] = shift

    def shift(self, attributes: Attributes) -> str:
        """`sup` or `sub` for an element that its own style, its class, or the class's name raises or lowers."""
        if not attributes:
            return ""
        names = attributes.get("class", "").split()
        known = (self._shifts.get(name) or _NAMED.get(name.lower(), "") for name in names)
        return shift_of(attributes.get("style", "")) or next(filter(None, known), "")
