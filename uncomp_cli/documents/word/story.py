"""What is remembered while the parts of a Word document are read: notes and their marks, paragraphs."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from uncomp_cli.documents.enumeration import Numbered
from uncomp_cli.documents.text import Words
from uncomp_cli.documents.walk import End
from uncomp_cli.documents.word.outline import Style

NO_STYLE = Style()


@dataclass(slots=True)
class Story:
    """What the parts of a document share: styles, lists, notes, and what was lost."""

    styles: Mapping[str, Style]
    lists: Mapping[str, Numbered]
    texts: dict[tuple[str, str], str] = field(default_factory=dict)  # of notes, by kind and id
    marks: dict[tuple[str, str], str] = field(default_factory=dict)  # of notes that were met, in order
    counts: Counter[str] = field(default_factory=Counter)  # of marks, by kind
    lost: Counter[Words] = field(default_factory=Counter)

    def mark(self, kind: str, name: str) -> str:
        """The mark of a note at its place in the text."""
        known = self.marks.get((kind, name))
        if known is None:
            self.counts[kind] += 1
            number = self.counts[kind]
            known = {"footnote": f"[^{number}]", "endnote": f"[^e{number}]"}.get(kind, f"[comment {number}]")
            self.marks[kind, name] = known
        return known

    def notes(self) -> list[str]:
        """The notes, in the order of their marks; then those without one."""
        for key in self.texts:
            self.mark(*key)
        written = ((self.texts.get(key, ""), mark) for key, mark in self.marks.items())
        return [mark + (": " if "^" in mark else " ") + text for text, mark in written if text]


@dataclass(slots=True)
class Paragraph:
    """What is known of a paragraph so far."""

    style: Style = NO_STYLE
    number: str = ""
    level: int = -1
    heading: int = 0
    boxes: list[list[str]] = field(default_factory=list)  # texts that float beside it
    end: End = None
    is_item: bool = False
    is_drop: bool = False  # a first letter as large as some lines: a paragraph of its own, for Word
