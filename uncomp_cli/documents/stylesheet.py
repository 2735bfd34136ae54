"""What styles say of where text stands: raised above the line, or lowered below it, as 10^7 and H_2O are.

A style is that of an element, or of a class in the page's style sheets (CSS 2.1, 10.8.1; Word's pages have a property
of their own). A length or a share counts where it moves text by more than a hair's breadth.
"""

import re

from uncomp_cli.documents.attributes import Attributes

_ALIGNED = re.compile(r"vertical-align\s*:\s*(super|sub)\b", re.IGNORECASE)
_LENGTH = r"([-+]?(?:\d+(?:\.\d+)?|\.\d+))(px|pt|r?em|ex|%)"
_MOVED = re.compile(
    rf"(?:vertical-align|mso-text-raise)\s*:\s*{_LENGTH}|(?<![\w-])(top|bottom)\s*:\s*{_LENGTH}",
    re.IGNORECASE,
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
