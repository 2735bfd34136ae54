"""What hears an OpenDocument's elements, by tables of what begins and what ends, and what its styles say of them.

A style says what its parent says and more. Hidden text is left out, and said if it has words (OpenDocument 1.3, part 3,
19.816 and 20.421).
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from uncomp_cli.documents.markdown import Markdown
from uncomp_cli.documents.superscripts import clean
from uncomp_cli.documents.text import DELETED, FILM, HIDDEN, OBJECT, PICTURE, STRUCK, Words

_PROPERTIES = ("text-position", "display", "visibility", "text-line-through-style")
_PARENT, _LONGEST_CHAIN = "parent-style-name", 32
_UNSEEN = frozenset(("forms", "settings", "scripts", "meta", "table-source", "tracked-changes"))
_LOST: dict[str, Words] = {
    "image": PICTURE,
    "object": OBJECT,
    "object-ole": OBJECT,
    "plugin": FILM,
    "deletion": DELETED,
    "shapes": ("drawing", "drawings"),
    "control": ("form field", "form fields"),
}


class Styled:
    """Hears elements by tables of what begins and what ends; what is in an unseen one is skipped.

    Where text goes is a stack: the document, a slide or a cell, and in it notes and comments.
    """

    def __init__(self) -> None:
        self.lost: Counter[Words] = Counter()
        self.skipped = 0
        self._hides = self._hid_words = False
        self.styles: dict[str, dict[str, str]] = {}
        self._style: dict[str, str] = {}
        self._outs = [Markdown()]
        self._spans: list[tuple[str, bool, int]] = []  # how each is moved, whether it is struck out, where it began
        self._texts = 0  # paragraphs and headings that are open

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        """An element begins."""
        if tag in _LOST:
            self.lost[_LOST[tag]] += 1
        if self.skipped or tag in _UNSEEN:
            self.skipped += 1
        elif (begin := self.starts.get(tag)) is not None:
            begin(self, attributes)

    def end(self, tag: str) -> None:
        """It ends."""
        if self.skipped:
            self.skipped -= 1
            self.lost[HIDDEN] += self._hides and self._hid_words and not self.skipped
            self._hides = self._hides and self.skipped > 0
        elif (finish := self.ends.get(tag)) is not None:
            finish(self)

    def data(self, text: str) -> None:
        """Text: only paragraphs and headings have any."""
        if self.skipped:
            self._hid_words = self._hid_words or not text.isspace()
        elif self._texts:
            self._outs[-1].write(clean(text))

    def span(self, attributes: Mapping[str, str]) -> None:
        """A piece of a line with a look of its own."""
        if self.is_hidden(attributes):
            self.hide()
            return
        moved, is_struck = self.look(attributes)
        if is_struck:
            self._outs[-1].write(STRUCK)
        self._spans.append((moved, is_struck, self._outs[-1].here))
        if moved:
            self._outs[-1].open_script()

    def end_span(self) -> None:
        """Its end."""
        moved, is_struck, begin = self._spans.pop()
        if moved:
            self._outs[-1].close_script(low=moved == "low")
        if is_struck and self._outs[-1].here == begin:
            self._outs[-1].taken(begin - 1)
        elif is_struck:
            self._outs[-1].write(STRUCK)

    def space(self, _: Mapping[str, str]) -> None:
        """A space, or a tabulator."""
        self._outs[-1].space()

    def line_break(self, _: Mapping[str, str]) -> None:
        """A new line in a paragraph."""
        self._outs[-1].line_break()

    def new_style(self, attributes: Mapping[str, str]) -> None:
        """A style; its parent may come later."""
        self._style = {name: attributes[name] for name in ("list-style-name", _PARENT) if name in attributes}
        self.styles[attributes.get("name", "")] = self._style

    def properties(self, attributes: Mapping[str, str]) -> None:
        """What a style says, as far as it matters to the text."""
        self._style |= {name: attributes[name] for name in _PROPERTIES if name in attributes}

    def style(self, attributes: Mapping[str, str], name: str) -> str:
        """What an element's style says, or else those that it is based on, which may be in a ring."""
        style = self.styles.get(attributes.get("style-name", ""), {})
        for _ in range(_LONGEST_CHAIN):
            if name in style or _PARENT not in style:
                break
            style = self.styles.get(style[_PARENT], {})
        return style.get(name, "")

    def look(self, attributes: Mapping[str, str]) -> tuple[str, bool]:
        """Whether text stands `high`, `low` or in the line (""), and whether it is struck out."""
        position = self.style(attributes, "text-position").split(" ")[0]
        moved = "" if position in ("", "0%") else "low" if position.startswith(("sub", "-")) else "high"
        return moved, self.style(attributes, "text-line-through-style") not in ("", "none")

    def hide(self) -> None:
        """Leave this element out, which is not shown; it is a loss if it has words."""
        self.skipped, self._hides, self._hid_words = 1, True, False

    def is_hidden(self, attributes: Mapping[str, str]) -> bool:
        """Whether an element of text is not shown, by itself or by its style."""
        said = attributes.get("display") == "none" or attributes.get("is-hidden") == "true"
        return said or self.style(attributes, "display") == "none"

    def skip(self, _: Mapping[str, str]) -> None:
        """Leave this element out, with all that is in it."""
        self.skipped = 1

    starts: ClassVar[Mapping[str, Callable[[Any, Mapping[str, str]], None]]] = {
        "style": new_style,
        "text-properties": properties,
        "span": span,
        **dict.fromkeys(("s", "tab"), space),
        "line-break": line_break,
    }
    ends: ClassVar[Mapping[str, Callable[[Any], None]]] = {"span": end_span}
