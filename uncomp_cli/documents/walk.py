"""What hears of a text's elements as a parser meets them: which are open, where their text goes, what is left out.

An element's start returns what ends it, an action or None. Where text goes is a stack: the document, and in it notes
and boxes, which have texts of their own. What is left out for a reason and has words is a loss.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

from uncomp_cli.documents.equation import Equation
from uncomp_cli.documents.markdown import Markdown
from uncomp_cli.documents.superscripts import clean
from uncomp_cli.documents.text import Words

Attributes = Mapping[str, str]
End = Callable[[], object] | None
Starts = Mapping[str, Callable[[Any, Attributes], End]]
_PLAIN = ("", False)


class Walk:
    """A parser's target; `lost` counts what was left out. Text counts while `_in_text`, which elements raise."""

    elements: ClassVar[Starts]
    """What is done where an element of a name begins."""
    in_formulas: ClassVar[Starts] = {}
    """The same in a formula, which hears of its elements by itself."""

    def __init__(self, lost: Counter[Words]) -> None:
        self.lost = lost
        self.out = Markdown()
        self._outer: list[tuple[Markdown, int, tuple[str, bool]]] = []  # the texts around, as they were left
        self._open: list[tuple[str, End]] = []  # the elements that are open, with what ends them
        self._skip = 0  # how many elements deep we are in what is left out
        self._skip_reason: Words | None = None
        self._skipped_words = 0
        self._in_text = 0
        self._look = _PLAIN  # whether text stands `high` or `low`, and whether it is struck out
        self._equation: Equation | None = None

    def start(self, tag: str, attributes: Attributes) -> None:
        """An element begins."""
        if self._skip:
            self._skip += 1
            return
        formula = self._equation
        begin = (self.elements if formula is None else self.in_formulas).get(tag)
        end = begin(self, attributes) if begin is not None else None
        if not self._skip:
            if formula is not None:
                formula.start(tag, attributes)
                end = partial(formula.end, tag)
            self._open.append((tag, end))

    def data(self, text: str) -> None:
        """Text."""
        if self._skip:
            self._skipped_words += not text.isspace()
        elif self._equation is not None:
            self._equation.write(clean(text))
        elif self._in_text:
            self.write(clean(text))

    def end(self, tag: str) -> None:
        """An element ends."""
        if self._skip:
            self._skip -= 1
            if not self._skip and self._skip_reason is not None and self._skipped_words:
                self.lost[self._skip_reason] += 1
        elif self._open:
            _, action = self._open.pop()
            if action is not None:
                action()

    def leave_out(self, reason: Words | None = None, *, above: int = 0) -> None:
        """Skip all that is in the element that begins, or so many elements above it, which is a loss by the reason."""
        count = len(self._open)
        del self._open[max(0, count - above) :]
        self._skip, self._skipped_words, self._skip_reason = 1 + min(above, count), 0, reason

    def silence(self, _: Attributes) -> None:
        """An element that says nothing."""
        self.leave_out()

    def lose(self, _: Attributes, *, what: Words) -> None:
        """An element that is a loss."""
        self.lost[what] += 1

    # --- where text goes

    def write(self, text: str) -> None:
        """Text as it looks here."""
        shift, struck = self._look
        self.out.turn(shift, struck=struck)
        self.out.write(text)

    def hear(self, _: Attributes) -> End:
        """An element whose text counts."""
        self._in_text += 1
        return self._unhear

    def _unhear(self) -> None:
        self._in_text -= 1

    def begin_aside(self) -> None:
        """What comes is a text of its own."""
        self._outer.append((self.out, self._in_text, self._look))
        self.out, self._in_text, self._look = Markdown(), 0, _PLAIN

    def end_aside(self) -> str:
        """That text; the one around it goes on."""
        text = self.out.text()
        self.out, self._in_text, self._look = self._outer.pop()
        return text

    def break_line(self, _: Attributes) -> None:
        """A new line in the paragraph."""
        self.write("")
        self.out.line_break()

    def formula(self, _: Attributes) -> End:
        """A formula begins."""
        self.out.turn()
        self._equation = Equation()
        return self.end_formula

    def end_formula(self) -> None:
        """It ends, if that was not said before."""
        if self._equation is not None:
            text, self._equation = self._equation.text(), None
            self.out.write(text)
