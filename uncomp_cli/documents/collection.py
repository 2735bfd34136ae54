"""Paths to documents: what they stand for (selection.py) as texts, in the order given, each file once.

A file that the user names and that cannot be read is an error, or where others shall go on one of
`DocumentSet.failures`. One met in a directory or by a glob is left out and listed in `DocumentSet.skipped` with the
reason. What a file has that its text has not is in `Document.losses`. Formats are in formats.py.
"""

import array
import os
import stat
from collections import Counter
from collections.abc import Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, TextIO

from uncomp_cli.documents.intake import Refusal, Source, Taken, take_all, take_file, take_stream
from uncomp_cli.documents.selection import Candidate, Selection, nothing_readable, select, shown
from uncomp_cli.documents.text import NO_WISHES, Loss, Place, Wishes
from uncomp_cli.errors import DocumentError, UncompError, UsageError
from uncomp_cli.steps import Progress, Working, finished

_LISTED = 3
_USUAL = ("suffix ", "a broken link", "a link ", "left out by ", "hidden")  # what is missed less comes later
_ROUND = str.maketrans("[]", "()")
_STDIN = "-"
_STDIN_CANDIDATE = Candidate(Path(_STDIN))


@dataclass(frozen=True, slots=True)
class Document:
    """A document's text; `path` as shown to the user ("-" is stdin), `sha256` of the raw bytes, `\\n` line ends.

    `encoding` is None where the format, not the bytes, decides (PDF, Word), and where it is not known any more;
    `places` name pages and the like, `notes` say what is no loss and must be known. In a conversation its name stands
    in front of it, unless it is `bare`.
    """

    path: str
    text: str
    sha256: str
    encoding: str | None = None
    places: tuple[Place, ...] = ()
    losses: tuple[Loss, ...] = ()
    notes: tuple[str, ...] = ()
    bare: bool = False

    @property
    def heading(self) -> str:
        """Its name as the model reads it in front of it: one line, in which no name can begin another heading."""
        shown = "".join(character if character.isprintable() else " " for character in self.path)
        return f"[{shown.translate(_ROUND)}]\n"


@dataclass(frozen=True, slots=True)
class Remark:
    """What must not go unsaid of documents, in a line, and the lines behind it that say all."""

    text: str
    more: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DocumentSet:
    """What was read, and what was not: (path, reason) of files that were left out, (path, error) of named ones."""

    documents: tuple[Document, ...]
    skipped: tuple[tuple[str, str], ...] = ()
    failures: tuple[tuple[str, UncompError], ...] = ()

    @property
    def remarks(self) -> list[Remark]:
        """What was left out: files in one line, when they are many by reasons, and of every document its losses."""
        lost = [each for each in self.documents if each.losses]
        found = [Remark(f"skipped {path}: {reason}") for path, reason in self.skipped]
        lines = [*_together(found, self.skipped), *_lost_in_all(lost, [_lost(each) for each in lost])]
        return lines + _noted([(each.path, note) for each in self.documents for note in each.notes])

    @property
    def warnings(self) -> list[str]:
        """The same for a record, with all that was lost of every document."""
        lost = (f"{each.path}: left out {loss}" for each in self.documents for loss in each.losses)
        noted = (f"{each.path}: {note}" for each in self.documents for note in each.notes)
        return [*(remark.text for remark in DocumentSet((), self.skipped).remarks), *lost, *noted]


def _together(found: list[Remark], skipped: Sequence[tuple[str, str]]) -> list[Remark]:
    """`skipped 2,004 files and folders: bad.pdf: it is no PDF; 1,990 × suffix '.png' is …; 12 × hidden; …`."""
    if len(found) <= _LISTED:
        return found
    counts, paths = Counter(reason for _, reason in skipped), {reason: path for path, reason in skipped}
    reasons = sorted(counts.items(), key=lambda item: (_how_usual(item[0]), -item[1]))
    listed = [
        f"{count:,} × {reason}" if count > 1 else f"{paths[reason]}: {reason}" for reason, count in reasons[:_LISTED]
    ]
    others = sum(count for _, count in reasons[_LISTED:])
    listed += [f"{others:,} for other reasons"] if others else []
    text = f"skipped {len(found):,} files and folders: {'; '.join(listed)}; -v lists them"
    return [Remark(text, tuple(each.text for each in found))]


def _how_usual(reason: str) -> int:
    """What failed comes first, then what may have been wanted."""
    return next((at for at, begin in enumerate(_USUAL, start=1) if reason.startswith(begin)), 0)


def _lost(document: Document) -> Remark:
    """`report.pdf: left out 2 pages without text (pages 2, 4), 3 pictures`."""
    losses = document.losses
    listed = ", ".join(map(str, losses[:_LISTED])) + (
        f" and {len(losses) - _LISTED:,} more" if losses[_LISTED:] else ""
    )
    return Remark(f"{document.path}: left out {listed}", tuple(map(str, losses)) if losses[_LISTED:] else ())


def _lost_in_all(lost: Sequence[Document], found: list[Remark]) -> list[Remark]:
    """Where many documents lost something, what they lost together."""
    if len(found) <= 2 * _LISTED:
        return found
    counts: Counter[str] = Counter()
    for loss in (loss for each in lost for loss in each.losses):
        counts[loss.many or loss.what] += loss.count
    listed = ", ".join(f"{count:,} {what}" for what, count in counts.most_common(_LISTED))
    more = f" and {len(counts) - _LISTED} more kinds" if len(counts) > _LISTED else ""
    text = f"{len(lost):,} documents: left out {listed}{more}; -v lists them"
    return [Remark(text, tuple(line for each in found for line in (each.text, *each.more)))]


def _noted(notes: Sequence[tuple[str, str]]) -> list[Remark]:
    """`old.txt: its encoding is …`, and where many documents have notes, those together that are the same."""
    found = [f"{path}: {note}" for path, note in notes]
    if len(found) <= 2 * _LISTED:
        return [Remark(text) for text in found]
    counts = Counter(note for _, note in notes)
    return [Remark(f"{count:,} documents: {note}; -v lists them", tuple(found)) for note, count in counts.items()]


def collect(*paths: str, include: Sequence[str] = ()) -> DocumentSet:
    """Files, directories and globs as texts: `read_documents` for who has no standard input to read."""
    return read_documents(paths, include=include)


def read_documents(
    paths: Sequence[str],
    *,
    include: Sequence[str] = (),
    stdin: BinaryIO | None = None,
    patient: bool = False,
    wishes: Wishes = NO_WISHES,
) -> DocumentSet:
    """What `reading` reads, for who does not ask how far it is."""
    return finished(reading(paths, include=include, stdin=stdin, patient=patient, wishes=wishes))


def reading(
    paths: Sequence[str],
    *,
    include: Sequence[str],
    stdin: BinaryIO | None = None,
    patient: bool = False,
    wishes: Wishes,
) -> Generator[Progress | Working, None, DocumentSet]:
    """Read files, directories, globs and `-` (`stdin`); `include` globs choose inside directories.

    UsageError: a path that is not there, or under which nothing can be read. DocumentError or DoesNotFitError: a named
    file that cannot be read, is binary, damaged, encrypted, empty or too large. `patient`: these are `failures`.
    """
    found = _Reading(stdin, patient=patient)
    selections = [*found.selected(paths, include)]  # a slip in the last path does not wait for the first file
    yield from found.take(selections, wishes)
    for selection in selections:
        found.add(selection)
    return DocumentSet(tuple(found.documents.values()), tuple(found.skipped.values()), tuple(found.failures))


def sent(files: Sequence[tuple[str, bytes]], wishes: Wishes) -> Generator[Progress | Working, None, DocumentSet]:
    """Documents that came as names and bytes. Raises DocumentError or DoesNotFitError for one that cannot be read."""
    sources = [
        Source(name, partial(take_stream, BytesIO(data), name=name), Path(name).suffix.lower(), needed=True)
        for name, data in files
    ]
    documents = []
    for source, found in zip(sources, (yield from _taking(sources, wishes)), strict=False):
        if not isinstance(found, Document):
            raise type(found)(f"cannot read {shown(source.name)!r}: {found.message}", hint=found.hint) from found
        documents.append(found)
    return DocumentSet(tuple(documents))


def documents_of(sources: Sequence[Source], wishes: Wishes = NO_WISHES) -> list[Document | Refusal]:
    """The document of every source, or why there is none; nothing behind one that is needed and cannot be read."""
    return finished(_taking(sources, wishes))


def _taking(sources: Sequence[Source], wishes: Wishes) -> Generator[Progress | Working, None, list[Document | Refusal]]:
    taken = yield from take_all(sources, wishes)
    return [
        _document(shown(source.name), found) if isinstance(found, Taken) else found
        for source, found in zip(sources, taken, strict=False)
    ]


class _Reading:
    """Collects documents by resolved path, so that each is read once and a file that is read counts as not skipped."""

    def __init__(self, stdin: BinaryIO | None, *, patient: bool) -> None:
        self.documents: dict[Hashable, Document] = {}
        self.skipped: dict[Hashable, tuple[str, str]] = {}
        self.failures: list[tuple[str, UncompError]] = []
        self._stdin, self._patient = stdin, patient
        self._taken: dict[Hashable, Taken | Refusal] = {}

    def selected(self, paths: Sequence[str], include: Sequence[str]) -> Iterator[Selection]:
        """What each of the paths stands for."""
        for path in paths:
            try:
                yield self._stdin_selected() if path == _STDIN else select(path, include=include)
            except UncompError as error:
                self._fail(shown(path), error)

    def _stdin_selected(self) -> Selection:
        if self._stdin is None:
            raise UsageError(
                "'-' names standard input, which is not there", hint="pipe a document in: cat FILE | uncomp"
            )
        return Selection(_STDIN, True, (_STDIN_CANDIDATE,))

    def take(self, selections: Sequence[Selection], wishes: Wishes) -> Generator[Progress | Working, None, None]:
        """Read what may be opened of all of them; nothing behind a named file that cannot be read, unless patient."""
        sources: dict[Hashable, Source] = {}
        for selection in selections:
            for candidate in (each for each in selection.candidates if not each.refusal):
                sources.setdefault(_identity(candidate), self._source(selection, candidate))
        taken = yield from take_all([*sources.values()], wishes)
        self._taken = dict(zip(sources, taken, strict=False))

    def _source(self, selection: Selection, candidate: Candidate) -> Source:
        needed, name, path = selection.named and not self._patient, _name(selection, candidate), candidate.path
        if candidate is _STDIN_CANDIDATE and self._stdin is not None:
            return Source("standard input", partial(take_stream, self._stdin, name="standard input"), "", needed)
        return Source(name, partial(take_file, path), path.suffix.lower(), needed)

    def add(self, selection: Selection) -> None:
        """Keep what was read of what a path stands for."""
        try:
            self._add(selection)
        except UncompError as error:
            self._fail(shown(selection.argument), error)

    def _fail(self, path: str, error: UncompError) -> None:
        if not self._patient:
            raise error
        self.failures.append((path, error))

    def _add(self, selection: Selection) -> None:
        refusals: list[tuple[str, UncompError]] = []
        for candidate in selection.candidates:
            key, name = _identity(candidate), _name(selection, candidate)
            if key in self.documents:
                continue
            found = DocumentError(candidate.refusal) if candidate.refusal else self._taken[key]
            if isinstance(found, Taken):
                self.documents[key] = _document(name, found)
                self.skipped.pop(key, None)
            elif selection.named:
                what = "standard input" if candidate is _STDIN_CANDIDATE else repr(name)
                raise type(found)(f"cannot read {what}: {found.message}", hint=found.hint) from found
            else:
                refusals.append((name, found))
                self.skipped[key] = (name, found.message)
        if len(refusals) == len(selection.candidates):
            raise nothing_readable(selection.argument, refusals)


def _name(selection: Selection, candidate: Candidate) -> str:
    return shown(selection.argument if selection.named else candidate.path)


def _document(name: str, taken: Taken) -> Document:
    text = taken.text
    return Document(name, text.text, taken.sha256, text.encoding, text.places, text.losses, text.notes)


def _identity(candidate: Candidate) -> Hashable:
    if candidate is _STDIN_CANDIDATE:
        return _STDIN
    try:
        return candidate.path.resolve()
    except (OSError, RuntimeError):  # a loop of links
        return candidate.path.absolute()


def has_data(stdin: TextIO | None) -> bool:
    """Whether something waits on standard input: in a pipe, or in a file behind what was read of it."""
    try:
        descriptor = -1 if stdin is None else stdin.fileno()
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            return status.st_size > os.lseek(descriptor, 0, os.SEEK_CUR)
        return stat.S_ISFIFO(status.st_mode) and _waiting_bytes(descriptor) > 0
    except (OSError, ValueError):  # closed, or replaced by something that is no file
        return False


def _waiting_bytes(descriptor: int) -> int:
    try:
        import fcntl
        import termios
    except ImportError:  # not on this system
        return 0
    size = array.array("i", [0])
    fcntl.ioctl(descriptor, termios.FIONREAD, size)
    return size[0]
