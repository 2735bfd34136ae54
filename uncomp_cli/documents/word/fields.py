"""Fields of a Word document (ECMA-376 part 1, 17.16): their results, and what was ticked and chosen in forms.

A field is what Word works out, such as a number of a page or a sum, and its result stands behind it. One that was never
worked out has none, which is a loss, unless it shows nothing anyhow.
"""

import re
from collections import Counter
from typing import ClassVar

from uncomp_cli.documents.text import Words
from uncomp_cli.documents.walk import Attributes, End, Walk
from uncomp_cli.documents.word.outline import integer, is_true

_NO_RESULT = ("field without a result", "fields without a result")
_SHOWS_NOTHING = re.compile(r"\s*(?:(?:PAGE|NUMPAGES|SECTION|TC|XE|TA|RD|SET|ASK|PRIVATE|FORM\w+)\b|$)")


class Fields(Walk):
    """Hears of a part's fields."""

    def __init__(self, lost: Counter[Words]) -> None:
        super().__init__(lost)
        self._fields: list[list[str]] = []  # of each that is open: what it is, and its result if it has one
        self._entries: list[str] = []
        self._chosen = 0

    def _field(self, attributes: Attributes) -> None:
        """A field begins, comes to its result, or ends."""
        kind = attributes.get("fldCharType", "")
        if kind == "begin":
            self._fields.append([""])
        elif kind == "separate" and self._fields:
            self._fields[-1].append("")
        elif kind == "end" and self._fields:
            code, *result = self._fields.pop()
            self.lost[_NO_RESULT] += not result and not _SHOWS_NOTHING.match(code)

    def _instruction(self, _: Attributes) -> End:
        self.begin_aside()
        self._in_text = 1
        return self._end_instruction

    def _end_instruction(self) -> None:
        code = self.end_aside()
        if self._fields:
            self._fields[-1][0] += code

    # --- forms

    def _check_box(self, _: Attributes) -> End:
        self._chosen = 0
        return lambda: self.write("[x] " if self._chosen else "[ ] ")

    def _checked(self, attributes: Attributes) -> None:
        if self._open and self._open[-1][0] == "checkBox":
            self._chosen = int(is_true(attributes))

    def _choices_of_form(self, _: Attributes) -> End:
        self._entries, self._chosen = [], 0
        return self._end_choices_of_form

    def _end_choices_of_form(self) -> None:
        self.write(self._entries[self._chosen] if 0 <= self._chosen < len(self._entries) else "")

    def _entry(self, attributes: Attributes) -> None:
        self._entries.append(attributes.get("val", ""))

    def _result(self, attributes: Attributes) -> None:
        self._chosen = integer(attributes.get("val", ""), 0)

    elements: ClassVar = {
        "fldChar": _field,
        "instrText": _instruction,
        "checkBox": _check_box,
        **dict.fromkeys(("default", "checked"), _checked),
        "ddList": _choices_of_form,
        "listEntry": _entry,
        "result": _result,
    }
