"""What an OpenDocument's styles say of its elements: raised, struck out, hidden.

A style says what its parent says and more. Hidden text is left out, and said if it has words (OpenDocument 1.3, part 3,
19.816 and 20.421).
"""

from collections import Counter
from functools import partial
from typing import ClassVar

from uncomp_cli.documents.text import DELETED, FILM, HIDDEN, OBJECT, PICTURE, Words
from uncomp_cli.documents.walk import Attributes, End, Walk

_PROPERTIES = ("text-position", "display", "visibility", "text-line-through-style")
_PARENT, _LONGEST_CHAIN = "parent-style-name", 32
_UNSEEN = ("forms", "settings", "scripts", "meta", "table-source", "tracked-changes")
_LOST: dict[str, Words] = {
    "image": PICTURE,
    "object": OBJECT,
    "object-ole": OBJECT,
    "plugin": FILM,
    "deletion": DELETED,
    "shapes": ("drawing", "drawings"),
    "control": ("form field", "form fields"),
}


class Styled(Walk):
    """Hears what texts and sheets have in common: styles, and pieces of a line with a look of their own."""

    def __init__(self) -> None:
        super().__init__(Counter())
        self.styles: dict[str, dict[str, str]] = {}
        self._style: dict[str, str] = {}

    def start(self, tag: str, attributes: Attributes) -> None:
        """An element begins; what is lost with it is counted wherever it is."""
        if tag in _LOST:
            self.lost[_LOST[tag]] += 1
        super().start(tag, attributes)

    def span(self, attributes: Attributes) -> End:
        """A piece of a line with a look of its own."""
        if self.hide(attributes):
            return None
        around = self._look
        moved, is_struck = self.look(attributes)
        self._look = moved or around[0], is_struck or around[1]
        return partial(setattr, self, "_look", around)

    def space(self, _: Attributes) -> None:
        """A space, or a tabulator."""
        self.write(" ")

    def new_style(self, attributes: Attributes) -> None:
        """A style; its parent may come later."""
        self._style = {name: attributes[name] for name in ("list-style-name", _PARENT) if name in attributes}
        self.styles[attributes.get("name", "")] = self._style

    def properties(self, attributes: Attributes) -> None:
        """What a style says, as far as it matters to the text."""
        self._style |= {name: attributes[name] for name in _PROPERTIES if name in attributes}

    def style(self, attributes: Attributes, name: str) -> str:
        """What an element's style says, or else those that it is based on, which may be in a ring."""
        style = self.styles.get(attributes.get("style-name", ""), {})
        for _ in range(_LONGEST_CHAIN):
            if name in style or _PARENT not in style:
                break
            style = self.styles.get(style[_PARENT], {})
        return style.get(name, "")

    def look(self, attributes: Attributes) -> tuple[str, bool]:
        """Whether text stands `high`, `low` or in the line (""), and whether it is struck out."""
        position = self.style(attributes, "text-position").split(" ")[0]
        moved = "" if position in ("", "0%") else "low" if position.startswith(("sub", "-")) else "high"
        return moved, self.style(attributes, "text-line-through-style") not in ("", "none")

    def hide(self, attributes: Attributes) -> bool:
        """Leave an element of text out that is not shown, by itself or by its style; whether it was."""
        said = attributes.get("display") == "none" or attributes.get("is-hidden") == "true"
        hidden = said or self.style(attributes, "display") == "none"
        if hidden:
            self.leave_out(HIDDEN)
        return hidden

    elements: ClassVar = {
        **dict.fromkeys(_UNSEEN, Walk.silence),
        "style": new_style,
        "text-properties": properties,
        "span": span,
        **dict.fromkeys(("s", "tab"), space),
        "line-break": Walk.break_line,
    }
