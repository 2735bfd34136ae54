"""What was said in a chat: entries, the documents that wait for a question, and pins. Plain data, no model.

    entries    user, assistant, user, assistant, …     every user entry begins an exchange
    pending    documents that were added: they become the first parts of the next question

A question with documents is kept in parts, documents first, so that a document has the same tokens whatever is asked
behind it. Characters count through the texts of all messages, one behind the other, system prompt first, as the
engine's do.
"""

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import starmap
from typing import TYPE_CHECKING

from uncomp_cli.asking.material import resolve
from uncomp_cli.asking.request import parse_pin
from uncomp_cli.documents.collection import Document
from uncomp_cli.documents.places import Source, lines_at
from uncomp_cli.documents.text import Loss, Place
from uncomp_cli.errors import UsageError
from uncomp_cli.numerals import format_count
from uncomp_cli.sessions.transcript import Attachment, Entry, Pin

if TYPE_CHECKING:
    from uncomp_cli.engine.tokens.messages import Message


GAP = "\n\n"


@dataclass(frozen=True, slots=True)
class Page:
    """A document in an entry, blank lines in front included: where it begins there, and the entry among all texts."""

    path: str
    sha256: str
    text: str
    entry: int
    first_char: int
    base: int
    places: tuple[Place, ...] = ()
    losses: tuple[Loss, ...] = ()

    @property
    def lines(self) -> list[str]:
        """Without line ends."""
        return self.text.split("\n")

    def pin(self, where: str) -> Pin:
        """A pin of lines or of a place. Raises UsageError for what is not there."""
        count = len(self.lines)
        first_line, last_line = lines_at(where, path=self.path, count=count, places=self.places, write="/pin ")
        begin = self.first_char + sum(len(line) + 1 for line in self.lines[: first_line - 1])
        text = "\n".join(self.lines[first_line - 1 : last_line])
        return Pin(self.entry, begin, begin + len(text), f"{self.path}:{where}")


@dataclass(slots=True)
class Dialogue:
    """The conversation so far. A `system` of None is the model's own."""

    system: str | None = None
    entries: list[Entry] = field(default_factory=list)
    pending: list[Document] = field(default_factory=list)
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

    def add(self, documents: Sequence[Document]) -> None:
        """Let documents wait for the next question; blank lines in front stay, so that lines are those of the file."""
        self.pending += [replace(each, text=each.text.rstrip(), encoding=None) for each in documents]

    def question(self, text: str) -> Entry:
        """`text` as the next question, with the documents that wait for it."""
        return _question(self.pending, text)

    def waiting(self) -> Entry | None:
        """The documents that wait for a question, each behind its name, as the beginning of it."""
        return _beginning(self.pending) if self.pending else None

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

    def pages(self) -> list[Page]:
        """The documents of the conversation, in its order, those that wait for a question last."""
        return [
            Page(each.path, each.sha256, each.text, number, part.first_char, base, each.places, each.losses)
            for number, (base, entry) in enumerate(self.placed(self.waiting()))
            for part, each in zip(entry.attachments, documents_in(entry), strict=True)
        ]

    def sources(self) -> list[Source]:
        """Where evidence may lie: the documents, and what the user wrote before the latest question."""
        found = [_source(page.path, page.text, page.base + page.first_char, page.places) for page in self.pages()]
        asked = [(base, entry) for base, entry in self.placed() if entry.role == "user"]
        for number, (base, entry) in enumerate(asked[:-1], start=1):
            words = entry.spoken
            found.append(_source(f"[turn {number}]", words, base + len(entry.text) - len(words)))
        return [source for source in found if source.text.strip()]

    def pinned(self, newest: Entry | None = None) -> tuple[tuple[int, int], ...]:
        """The characters among those of all messages that are never evicted."""
        bases = [base for base, _ in self.placed(newest)]
        kept = (pin for pin in self.pins if pin.entry < len(bases))
        return tuple((bases[pin.entry] + pin.first_char, bases[pin.entry] + pin.last_char) for pin in kept)

    def pin_of(self, text: str) -> Pin:
        """The pin that `FILE:10-40`, `FILE:10` or `FILE:p3` names. Raises UsageError for what is not there."""
        found = self.pages()
        (wanted,) = resolve([parse_pin(text)], list(dict.fromkeys(page.path for page in found)))
        return _page(wanted.path, found).pin(wanted.where)

    def drop_pending(self) -> list[Document]:
        """Take out the documents that wait, and the pins in them; returns them."""
        gone, self.pending = self.pending, []
        self.pins = [pin for pin in self.pins if pin.entry < len(self.entries)]
        return gone

    def drop_last(self, count: int) -> list[list[Entry]]:
        """Take back the last `count` exchanges; their documents wait for a question again, and pins stay in them.

        Returns the exchanges. Raises UsageError when there are not so many.
        """
        gone, pins = self._checked(count)[-count:], self.pins
        self._keep(range(len(self.entries) - sum(map(len, gone))))
        self.pending = [each for exchange in gone for entry in exchange for each in documents_in(entry)] + self.pending
        left = len(self.entries)
        moved = [self.pin_of(pin.label) for pin in pins if pin.entry >= left]
        self.pins = [*(pin for pin in pins if pin.entry < left), *moved]
        return gone

    def drop_first(self, count: int) -> list[list[Entry]]:
        """Forget the oldest `count` exchanges; their documents, and the pins in them, stay with the next question.

        Returns the exchanges. Raises UsageError when there are not so many.
        """
        gone, pins = self._checked(count)[:count], self.pins
        first = sum(map(len, gone))
        documents = [each for exchange in gone for entry in exchange for each in documents_in(entry)]
        self._keep(range(first, len(self.entries)))
        if documents and self.entries:
            self.entries[0] = _question([*documents, *documents_in(self.entries[0])], self.entries[0].spoken)
        else:
            self.pending = [*documents, *self.pending]
        if documents:
            self._pin_anew(pins)
        return gone

    def drop_document(self, name: str) -> None:
        """Forget a document wherever it stands, and the pins in it. Raises UsageError when there is none."""
        path, pins = _page(name, self.pages()).path, self.pins
        self.pending = [each for each in self.pending if each.path != path]
        for number, entry in enumerate(self.entries):
            found = documents_in(entry)
            left = [each for each in found if each.path != path]
            if len(left) < len(found):
                self.entries[number] = _question(left, entry.spoken)
        self._pin_anew([pin for pin in pins if not pin.label.startswith(f"{path}:")])

    def _pin_anew(self, pins: Sequence[Pin]) -> None:
        """The same lines where they stand now; what is not there any more is not pinned."""
        begins = tuple(f"{page.path}:" for page in self.pages())
        self.pins = [self.pin_of(pin.label) for pin in pins if pin.label.startswith(begins)]

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
    return format_count(count, "exchange")


def _beginning(documents: Sequence[Document]) -> Entry:
    """Documents, each behind its name, as the beginning of a question."""
    text, attachments = "", []
    for document in documents:
        text += (GAP if text else "") + ("" if document.bare else document.heading)
        attachments.append(
            Attachment(
                document.path,
                document.sha256,
                len(text),
                len(text) + len(document.text),
                tuple((place.line, place.name) for place in document.places),
                tuple((loss.what, loss.count, loss.where) for loss in document.losses),
            )
        )
        text += document.text
    return Entry("user", text, attachments=tuple(attachments))


def documents_behind(documents: Sequence[Document], text: str) -> list[Document]:
    """The documents as they wait for a question, where `text`, which was read, is theirs; none where it is another."""
    found = [replace(each, text=each.text.rstrip(), bare=len(documents) == 1) for each in documents]
    return found if found and _beginning(found).text == text else []


def _question(documents: Sequence[Document], text: str) -> Entry:
    """A question behind its documents, if any."""
    if not documents:
        return Entry("user", text)
    beginning = _beginning(documents)
    parts = (beginning.text, GAP, text)
    return Entry("user", "".join(parts), parts=parts, attachments=beginning.attachments)


def documents_in(entry: Entry) -> list[Document]:
    """The documents of a question."""
    return [
        Document(
            each.path,
            entry.text[each.first_char : each.last_char],
            each.sha256,
            places=tuple(starmap(Place, each.places)),
            losses=tuple(starmap(Loss, each.losses)),
            bare=not each.first_char,
        )
        for each in entry.attachments
    ]


def _source(path: str, text: str, first_char: int, places: tuple[Place, ...] = ()) -> Source:
    """Of `text`, which begins at `first_char` among all messages."""
    return Source(path, text, first_char + len(text) - len(text.lstrip()), places)


def _page(name: str, known: list[Page]) -> Page:
    """The document of this path."""
    same = [page for page in known if page.path == name]
    if same:
        return same[-1]
    paths = [page.path for page in known]
    near = difflib.get_close_matches(name, paths, n=1)
    if near:
        hint = f"did you mean {near[0]}?"
    else:
        hint = f"there {'are' if len(paths) > 1 else 'is'} {', '.join(paths)}" if paths else "/file FILE adds one"
    raise UsageError(f"no document '{name}' is in the conversation", hint=hint)
