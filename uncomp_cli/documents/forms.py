"""Forms of a page: what their fields say. A field that nobody filled in says what it asks for, in brackets.

What was not chosen of a list is a loss; what hidden fields and passwords hold is nobody's to read.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial

from uncomp_cli.documents.attributes import Attributes
from uncomp_cli.documents.markdown import Markdown
from uncomp_cli.documents.text import Words
from uncomp_cli.documents.walk import End

_UNCHOSEN = ("choice that was not chosen", "choices that were not chosen")
_WITHOUT_VALUE = frozenset(("hidden", "password", "file"))


class Fields:
    """The fields of forms, as their elements begin."""

    def __init__(self, out: Markdown, lost: Counter[Words]) -> None:
        self._out, self._lost = out, lost
        self._options: list[tuple[bool, str]] | None = None  # of the open select: which are chosen, and all texts

    def begin(self, tag: str, attributes: Attributes) -> End:
        """A field begins."""
        return FIELDS[tag](self, attributes)

    def _input(self, attributes: Attributes) -> None:
        kind = attributes.get("type", "text").strip().lower()
        if kind in ("checkbox", "radio"):
            self._out.say("[x]" if "checked" in attributes else "[ ]")
        elif kind not in _WITHOUT_VALUE:
            self._out.say(attributes.get("value", "") or _asked(attributes))

    def _area(self, attributes: Attributes) -> End:
        self._out.block()
        return partial(self._end_area, self._out.here, _asked(attributes))

    def _end_area(self, begin: int, asked: str) -> None:
        if self._out.here == begin:
            self._out.say(asked)
        self._out.block()

    def _gauge(self, attributes: Attributes) -> End:
        """A bar that shows a share; old browsers show the text in it."""
        value, most = attributes.get("value", "").strip(), attributes.get("max", "1").strip()
        self._out.space()
        return partial(self._end_gauge, self._out.here, f"{value} of {most}" if value else "")

    def _end_gauge(self, begin: int, share: str) -> None:
        if self._out.here == begin:
            self._out.say(share)
        self._out.space()

    def _select(self, _: Attributes) -> End:
        self._out.space()
        if self._options is not None:  # the one that is open has its options, as in a browser
            return self._out.space
        self._options = []
        return self._end_select

    def _end_select(self) -> None:
        options, self._options = self._options or [], None
        chosen = [text for is_chosen, text in options if is_chosen] or [text for _, text in options[:1]]
        self._lost[_UNCHOSEN] += len(options) - len(chosen)
        self._out.say(", ".join(chosen))

    def _option(self, attributes: Attributes) -> End:
        if self._options is None:
            self._out.block()
            return self._out.block
        return partial(self._end_option, self._out.here, "selected" in attributes, attributes.get("label", ""))

    def _end_option(self, begin: int, chosen: bool, label: str) -> None:
        text = self._out.taken(begin).strip() or label
        if self._options is not None and text:
            self._options.append((chosen, text))


def _asked(attributes: Attributes) -> str:
    """What stands in an empty field."""
    words = " ".join(attributes.get("placeholder", "").split())
    return f"[empty: {words}]" if words else ""


FIELDS: dict[str, Callable[[Fields, Attributes], End]] = {
    "input": Fields._input,
    "textarea": Fields._area,
    **dict.fromkeys(("progress", "meter"), Fields._gauge),
    "select": Fields._select,
    "option": Fields._option,
}
"""What begins a field, by the names of elements."""
