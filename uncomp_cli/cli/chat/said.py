"""What was said in a chat: entries, the documents that wait for a question, and pins. Plain data, no model.

    entries    user, assistant, user, assistant, …     every user entry begins an exchange
    pending    documents that `/file` added: they become the first parts of the next question

A question with documents is kept in parts, documents first, so that a document has the same tokens whatever is asked
behind it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from uncomp_cli.errors import UsageError
from uncomp_cli.sessions.transcript import Attachment, Entry, Pin

if TYPE_CHECKING:
    from uncomp_cli.documents.collection import Document
    from uncomp_cli.engine.tokens.messages import Message

__all__ = ["Dialogue", "Paper", "exchanges", "paper_of", "papers_in", "spoken"]

GAP = "\n\n"


@dataclass(frozen=True, slots=True)
class Paper:
    """A document that is to stand in a message, its name above its text."""

    path: str
    sha256: str
    text: str

    @property
    def head(self) -> str:
        """What stands before the text."""
        return f"[{self.path}]\n"


@dataclass(slots=True)
class Dialogue:
    """The conversation so far. A `system` of None is the model's own."""

    system: str | None = None
    entries: list[Entry] = field(default_factory=list)
    pending: list[Paper] = field(default_factory=list)
    pins: list[Pin] = field(default_factory=list)

    @property
    def exchanges(self) -> list[list[Entry]]:
        """The entries, one list for every question and what was answered."""
        found: list[list[Entry]] = []
        for entry in self.entries:
            if entry.role == "user" or not found:
                found.append([])
            found[-1].append(entry)
        return found

    @property
    def interrupted(self) -> int:
        """Answers that were stopped."""
        return sum(entry.interrupted for entry in self.entries)

    def question(self, text: str) -> Entry:
        """`text` as the next question, with the documents that wait for it."""
        documents = self.waiting()
        if documents is None:
            return Entry("user", text)
        parts = (documents.text, GAP, text)
        return Entry("user", "".join(parts), parts=parts, attachments=documents.attachments)

    def waiting(self) -> Entry | None:
        """The documents that wait for a question, as the beginning of it."""
        if not self.pending:
            return None
        text, attachments = "", []
        for paper in self.pending:
            text += GAP if text else ""
            first = len(text) + len(paper.head)
            text += paper.head + paper.text
            attachments.append(Attachment(paper.path, paper.sha256, first, len(text)))
        return Entry("user", text, attachments=tuple(attachments))

    def messages(self, newest: Entry | None = None) -> "list[Message]":
        """What the model reads: the system prompt, all entries and `newest`."""
        from uncomp_cli.engine.tokens.messages import Message

        system = [] if self.system is None else [Message("system", self.system)]
        said = [Message(entry.role, entry.text, entry.ids, entry.parts) for _, entry in self.placed(newest)]
        return [*system, *said]

    def placed(self, newest: Entry | None = None) -> Iterator[tuple[int, Entry]]:
        """Every entry and `newest`, with the number of characters of all messages before it."""
        base = len(self.system or "")
        for entry in [*self.entries, *([] if newest is None else [newest])]:
            yield base, entry
            base += len(entry.text)

    def pinned(self, newest: Entry | None = None) -> tuple[tuple[int, int], ...]:
        """The characters among those of all messages that are never evicted."""
        bases = [base for base, _ in self.placed(newest)]
        kept = (pin for pin in self.pins if pin.entry < len(bases))
        return tuple((bases[pin.entry] + pin.first_char, bases[pin.entry] + pin.last_char) for pin in kept)

    def drop_pending(self) -> list[Paper]:
        """Take out the documents that wait, and the pins in them; returns them."""
        gone, self.pending = self.pending, []
        self.pins = [pin for pin in self.pins if pin.entry < len(self.entries)]
        return gone

    def drop_last(self, count: int) -> list[list[Entry]]:
        """Take back the last `count` exchanges; returns them. Raises UsageError when there are not so many."""
        exchanges = self._checked(count)
        gone = exchanges[-count:]
        self._keep(range(len(self.entries) - sum(map(len, gone))))
        return gone

    def drop_first(self, count: int) -> list[list[Entry]]:
        """Forget the oldest `count` exchanges; returns them. Raises UsageError when there are not so many."""
        gone = self._checked(count)[:count]
        self._keep(range(sum(map(len, gone)), len(self.entries)))
        return gone

    def _checked(self, count: int) -> list[list[Entry]]:
        found = self.exchanges
        if not 1 <= count <= len(found):
            said = f"the conversation has {exchanges(len(found))}, not {count}"
            raise UsageError(said, hint="/stats tells how many there are")
        return found

    def _keep(self, kept: range) -> None:
        """Drop all other entries and their pins; pins in what waits follow it to its new place."""
        places = {old: new for new, old in enumerate([*kept, len(self.entries)])}
        self.pins = [replace(pin, entry=places[pin.entry]) for pin in self.pins if pin.entry in places]
        self.entries = self.entries[kept.start : kept.stop]


def exchanges(count: int) -> str:
    """`1 exchange`, `1,204 exchanges`."""
    return f"{count:,} exchange{'' if count == 1 else 's'}"


def spoken(entry: Entry) -> str:
    """What the user typed of a question: without the documents in front of it."""
    return entry.parts[-1] if entry.attachments and len(entry.parts) > 1 else entry.text


def paper_of(document: "Document") -> Paper:
    """A document for a message; blank lines in front stay, so that lines are those of the file."""
    return Paper(document.path, document.sha256, document.text.rstrip())


def papers_in(entry: Entry) -> list[Paper]:
    """The documents of a question."""
    return [Paper(each.path, each.sha256, entry.text[each.first_char : each.last_char]) for each in entry.attachments]
