"""Fields of a Word document (ECMA-376 part 1, 17.16): their results, and what was ticked and chosen in forms.

A field is what Word works out, such as a number of a page or a sum, and its result stands behind it. One that was never
worked out has none, which is a loss, unless it shows nothing anyhow.
"""

import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping

from uncomp_cli.documents.outline import integer, is_true
from uncomp_cli.documents.text import Words
from uncomp_cli.documents.walk import End, Walk

_Attributes = Mapping[str, str]

_NO_RESULT = ("field without a result", "fields without a result")
_SHOWS_NOTHING = re.compile(r"\s*(?:(?:PAGE|NUMPAGES|SECTION|TC|XE|TA|RD|SET|ASK|PRIVATE|FORM\w+)\b|$)")


class Fields(Walk, ABC):
    """Hears of a part's fields."""

    def __init__(self, lost: Counter[Words]) -> None:
        super().__init__(lost)
        self._in_code = False
        self._fields: list[list[str]] = []  # of each that is open: what it is, and its result if it has one
        self._entries: list[str] = []
        self._chosen = 0

    @abstractmethod
    def _write(self, text: str) -> None:
        """Write text into the part."""

    def _field(self, attributes: _Attributes) -> End:
        """A field begins, comes to its result, or ends."""
        kind = attributes.get("fldCharType", "")
        if kind == "begin":
            self._fields.append([""])
        elif kind == "separate" and self._fields:
            self._fields[-1].append("")
        elif kind == "end" and self._fields:
            code, *result = self._fields.pop()
            self.lost[_NO_RESULT] += not result and not _SHOWS_NOTHING.match(code)
        return None

    def _instruct(self, text: str) -> None:
        if self._fields:
            self._fields[-1][0] += text

    def _instruction(self, _: _Attributes) -> End:
        self._in_code = True
        return self._end_instruction

    def _end_instruction(self) -> None:
        self._in_code = False

    # --- forms

    def _check_box(self, _: _Attributes) -> End:
        self._chosen = 0
        return self._end_check_box

    def _end_check_box(self) -> None:
        self._write("[x] " if self._chosen else "[ ] ")

    def _checked(self, attributes: _Attributes) -> End:
        if self._open and self._open[-1][0] == "checkBox":
            self._chosen = int(is_true(attributes))
        return None

    def _choices_of_form(self, _: _Attributes) -> End:
        self._entries, self._chosen = [], 0
        return self._end_choices_of_form

    def _end_choices_of_form(self) -> None:
        self._write(self._entries[self._chosen] if 0 <= self._chosen < len(self._entries) else "")

    def _entry(self, attributes: _Attributes) -> End:
        self._entries.append(attributes.get("val", ""))
        return None

    def _result(self, attributes: _Attributes) -> End:
        self._chosen = integer(attributes.get("val", ""), 0)
        return None
