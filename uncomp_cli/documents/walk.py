"""What hears of a text's elements as a parser meets them: which are open, and which are left out with all in them.

What an element opened is closed by what its start returned: an action, or None. What is left out for a reason and has
words is a loss.
"""

from collections import Counter
from collections.abc import Callable

from uncomp_cli.documents.text import Words

End = Callable[[], object] | None


class Walk:
    """A parser's target, but for `start` and the text; `lost` counts what was left out."""

    def __init__(self, lost: Counter[Words]) -> None:
        self.lost = lost
        self._open: list[tuple[str, End]] = []  # the elements that are open, with what ends them
        self._skip = 0  # how many elements deep we are in what is left out
        self._skip_reason: Words | None = None
        self._skipped_words = 0

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

    def _skip_all(self, reason: Words | None) -> None:
        self._skip, self._skipped_words, self._skip_reason = 1, 0, reason
