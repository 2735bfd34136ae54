"""What a reader of a format gives and takes: a text with the places of its parts and what it lost; wishes and limits.

A reader is a module of one format with one function, `read(data, wishes) -> Text`. A person finds a passage again by
its line; where the lines are ours and not the file's (a page, a sheet's row, a slide), by the `Place` that its line
lies in: `report.pdf:p3`. Nothing is dropped unsaid: what has no text in the result is a `Loss`.

A file may have been made to harm: what it unpacks to, and how many pages it has, is counted before it is held.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Self

from uncomp_cli.documents.cabinet import Cabinet
from uncomp_cli.errors import DoesNotFitError

Words = tuple[str, str]
"""What something is called: one, and several of it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The most that one file may be: as it lies there, all that it unpacks to, and in pages (sheets, slides, nodes)."""

    file_bytes: int = 512 * 2**20
    expanded_bytes: int = 256 * 2**20
    pages: int = 20_000

    def check_expanded(self, count_bytes: int) -> None:
        """Raise DoesNotFitError where a file unpacks to more than is read."""
        if count_bytes > self.expanded_bytes:
            most = f"{self.expanded_bytes / 2**20:,.0f} MiB"
            message = f"it unpacks to {count_bytes / 2**20:,.0f} MiB or more, and at most {most} are read"
            raise DoesNotFitError(message, hint="if you trust it, unpack it and give its parts as text")

    def check_pages(self, count: int, noun: str = "pages") -> None:
        """Raise DoesNotFitError where a file has more pages than are read."""
        if count > self.pages:
            message = f"it has {count:,} {noun}, and at most {self.pages:,} are read"
            raise DoesNotFitError(message, hint="split it, and give the part that matters")


_LABELLED = re.compile(r"(p\d+) \(page ([^()]+)\)")


def _unheard(done: int, count: int) -> None:
    """Progress that nobody asked for."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What the user said of reading; `progress(done, count)` hears of pages, for readers that take long.

    Texts and tokens that are slow to make are kept in the `cabinet`, but for those that a password opened.
    """

    password: str = field(default="", repr=False)
    encoding: str = ""
    limits: Limits = Limits()
    progress: Callable[[int, int], None] = _unheard
    cabinet: Cabinet | None = None

    @property
    def keeps(self) -> Cabinet | None:
        """Where what is made of the documents may be kept: nowhere when a password may have opened them."""
        return None if self.password else self.cabinet


NO_WISHES = Wishes()


@dataclass(frozen=True, slots=True)
class Loss:
    """What of a file is not in its text: `2 pictures`, with `where` if that helps; `what` is plural where count > 1.

    `many` is the plural that one of it has, so that what many files lost is told together.
    """

    what: str
    count: int = 1
    where: str = ""
    many: str = ""

    @classmethod
    def of(cls, words: Words, count: int = 1, where: str = "") -> Self:
        """A loss by its words."""
        return cls(words[count != 1], count, where, words[1])

    def __str__(self) -> str:
        return f"{self.count:,} {self.what}" + (f" ({self.where})" if self.where else "")


def counted(lost: Mapping[Words, int], where: str = "") -> tuple[Loss, ...]:
    """The losses of counts by what was lost."""
    return tuple(Loss.of(words, count, where) for words, count in lost.items() if count)


STRUCK = "~~"
"""What stands before and behind text that is struck out, and stays."""

# What readers of several formats leave out, in the same words.
PICTURE = ("picture without a text", "pictures without a text")
OBJECT = ("embedded object", "embedded objects")
FILM, SOUND = ("film", "films"), ("sound", "sounds")
CHART = ("chart", "charts")
MARGIN = ("header or footer", "headers or footers")
MASTER = ("text that all slides stand on", "texts that all slides stand on")
DELETED = ("deleted passage", "deleted passages")
HIDDEN = ("passage of hidden text", "passages of hidden text")
HIDDEN_ROW, HIDDEN_SHEET = ("hidden row", "hidden rows"), ("hidden sheet", "hidden sheets")
HIDDEN_CELL = ("cell in hidden columns", "cells in hidden columns")
HIDDEN_SLIDE = ("hidden slide", "hidden slides")
UNCALCULATED = ("formula without a stored result", "formulas without a stored result")


@dataclass(frozen=True, slots=True)
class Place:
    """From line `line` (the first is 1) on, up to the next place, the text stands at `name`: p3, Sales!A7, body.

    A page that is numbered otherwise in print has that in its name too: `p3 (page iv)`.
    """

    line: int
    name: str

    @property
    def parts(self) -> tuple[str, str]:
        """What the place is called, and how its page is numbered in print, if otherwise."""
        found = _LABELLED.fullmatch(self.name)
        return (found[1], found[2]) if found else (self.name, "")


def labelled(name: str, label: str) -> str:
    """The name of a page that is numbered otherwise in print."""
    return f"{name} (page {label})"


@dataclass(frozen=True, slots=True)
class Text:
    """A file's text with `\\n` line ends; `encoding` is None where the format and not the bytes decides.

    `notes` complete the sentence "report.txt: …": what must be said of how it was read, and is no loss.
    """

    text: str
    places: tuple[Place, ...] = ()
    losses: tuple[Loss, ...] = ()
    encoding: str | None = None
    notes: tuple[str, ...] = ()


def running(texts: Iterable[str]) -> list[str]:
    """Headers or footers of pages, each once; without those that are a page's number."""
    return [text for text in dict.fromkeys(texts) if text and not text.strip("-– ").isdigit()]


def joined(parts: Iterable[tuple[str, str]], *, between: str = "\n\n") -> tuple[str, tuple[Place, ...]]:
    """One text of (place, text) parts, and the line at which each place begins; a part without text has no place."""
    texts: list[str] = []
    places: list[Place] = []
    line = 1
    for name, text in parts:
        if text.strip():
            places.append(Place(line, name))
            texts.append(text)
            line += text.count("\n") + between.count("\n")
    return between.join(texts), tuple(places)
