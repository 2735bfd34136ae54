"""The bytes of files and the texts that they become: each read once, several at once, with how far that is.

A file is as large as `Limits` allow, whatever it claims: devices are refused, a pipe that does not end is left at the
limit, and one that nobody writes into is said to be waited for. What is hashed and what is read are the same bytes,
though the file change meanwhile. Texts that need no parser are decoded here; the others go to children (crew.py) and
come back in order.
"""

import hashlib
import os
import select
import shlex
import stat
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import BinaryIO

from uncomp_cli.documents.cabinet import readers_version
from uncomp_cli.documents.crew import Crew, line_of, text_of
from uncomp_cli.documents.formats import Format, format_of, notes_of, read_format, with_words
from uncomp_cli.documents.text import Text, Wishes
from uncomp_cli.errors import DocumentError, DoesNotFitError
from uncomp_cli.numerals import format_count
from uncomp_cli.steps import Progress, Working

TELL_S = 0.1
WAIT_S = 1.0  # for what a pipe brings, before that is said
KEPT_S = 0.1  # what took a child longer is kept
_AHEAD = 4  # files a core that are read before the first of them is there
Taking = Generator[Working, None, bytes]
"""Bytes that may have to be waited for."""
Refusal = DocumentError | DoesNotFitError


@dataclass(frozen=True, slots=True)
class Source:
    """Something to read: what it is called, where its bytes are, its suffix; one that is `needed` must be readable."""

    name: str
    take: Callable[[int], Taking]
    suffix: str = ""
    needed: bool = False


@dataclass(frozen=True, slots=True)
class Taken:
    """A source's text, and the hash of its bytes."""

    text: Text
    sha256: str


def take_file(path: Path, most_bytes: int) -> Taking:
    """What is in a file or a pipe, which is `most_bytes` at most. Raises OSError, or DocumentError for a device."""
    with os.fdopen(_opened_at_once(path), "rb") as stream:
        mode = os.fstat(stream.fileno()).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            raise DocumentError("it is a device, socket or directory, not a file", hint="name a file")
        return (yield from take_stream(stream, most_bytes, str(path)))


def take_stream(stream: BinaryIO, most_bytes: int, name: str) -> Taking:
    """The rest of a stream, which is called `name`. Raises DoesNotFitError where that is more than `most_bytes`."""
    yield from _awaited(stream, name)
    data = stream.read(most_bytes + 1)
    if len(data) > most_bytes:
        message = f"it has more than {most_bytes / 2**20:,.0f} MiB, and no more are read"
        raise DoesNotFitError(message, hint="give the part that matters: head -c 100M FILE > part.txt")
    return data


def _opened_at_once(path: Path) -> int:
    """A pipe too that nobody writes into yet."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(descriptor, True)
    return descriptor


def _awaited(stream: BinaryIO, name: str) -> Iterator[Working]:
    """Wait until a pipe brings something, or ends."""
    with suppress(OSError, ValueError):  # it is in memory
        if stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode):
            poll = select.poll()
            poll.register(stream, select.POLLIN)
            if not poll.poll(1000 * WAIT_S):
                yield Working(f"waiting for {name}")
                poll.poll()
                yield Working(None)


def take_all(sources: Sequence[Source], wishes: Wishes) -> Generator[Progress | Working, None, list[Taken | Refusal]]:
    """The text of every source, or why there is none, in order; none after one that is needed and cannot be read."""
    watch = _Watch(sources)
    taken: list[Taken | Refusal] = []
    waiting: deque[_Begun] = deque()
    with ExitStack() as stack:
        crew = cache(lambda: stack.enter_context(Crew()))
        for number, source in enumerate(sources):
            waiting.append((yield from _begin(source, replace(wishes, progress=watch.hears(number)), crew)))
            while waiting and (waiting[0].text.done() or len(waiting) > _AHEAD * crew().size):
                taken.append((yield from _ended(waiting, watch)))
                if sources[len(taken) - 1].needed and not isinstance(taken[-1], Taken):
                    return taken
            yield from watch.told()
        while waiting:
            taken.append((yield from _ended(waiting, watch)))
    return taken


@dataclass(frozen=True, slots=True)
class _Begun:
    """A text that will be there some time, the hash of its bytes, and what is to be said of them."""

    text: "Future[Text]"
    sha256: str = ""
    notes: tuple[str, ...] = ()


def _begin(source: Source, wishes: Wishes, crew: Callable[[], Crew]) -> Generator[Working, None, _Begun]:
    """Take a source's bytes; its text too, where no child is needed."""
    text: Future[Text] = Future()
    digest, notes = "", tuple[str, ...]()
    try:
        data = yield from source.take(wishes.limits.file_bytes)
        digest = hashlib.sha256(data).hexdigest()
        chosen = format_of(data, source.suffix)
        notes = notes_of(data, source.suffix, chosen)
        if chosen.is_apart(data):
            kept = wishes.cabinet and wishes.cabinet.find(*_made_of(digest, chosen, wishes))
            if not kept:
                reads = crew().submit(partial(_read_apart, crew(), data, digest, chosen, wishes))
                return _Begun(reads, digest, notes)
            text.set_result(text_of(kept))
        else:
            text.set_result(read_format(chosen, data, wishes))
    except (DocumentError, DoesNotFitError) as error:
        text.set_exception(error)
    except OSError as error:
        text.set_exception(DocumentError(error.strerror or str(error), hint=f"ls -l {shlex.quote(source.name)}"))
    return _Begun(text, digest, notes)


def _made_of(digest: str, chosen: Format, wishes: Wishes) -> tuple[str, ...]:
    return "text", digest, chosen.module, wishes.encoding, repr(wishes.limits), readers_version()


def _read_apart(crew: Crew, data: bytes, digest: str, chosen: Format, wishes: Wishes) -> Text:
    """The text that a child reads; kept where that took long."""
    begun_s = time.monotonic()
    text = crew.read(data, chosen, wishes)
    if wishes.keeps is not None and time.monotonic() - begun_s > KEPT_S:
        wishes.keeps.keep(line_of(text), *_made_of(digest, chosen, wishes))
    return text


def _ended(waiting: "deque[_Begun]", watch: "_Watch") -> Generator[Progress, None, Taken | Refusal]:
    """The first that waits, when it is there."""
    begun = waiting.popleft()
    while not begun.text.done():
        wait([begun.text], TELL_S)
        yield from watch.told()
    watch.ended()
    try:
        text = with_words(begun.text.result())
        return Taken(replace(text, notes=begun.notes + text.notes), begun.sha256)
    except (DocumentError, DoesNotFitError) as error:
        return error


class _Watch:
    """How far all sources are: files by their number, a single one by its pages."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._count = len(sources)
        self._label = f"reading {sources[0].name if self._count == 1 else f'{format_count(self._count)} files'}"
        self._begun_s = self._told_s = time.monotonic()
        self._number_ended = 0
        self._pages: dict[int, tuple[int, int]] = {}

    def hears(self, number: int) -> Callable[[int, int], None]:
        """What a reader tells its pages to; it may be in another thread."""
        return lambda done, count: self._pages.update({number: (done, count)})

    def ended(self) -> None:
        """A source has ended."""
        self._number_ended += 1

    def told(self) -> Iterator[Progress]:
        """How far it is, not too often."""
        now_s = time.monotonic()
        if now_s - self._told_s >= TELL_S:
            self._told_s = now_s
            yield self._progress(now_s - self._begun_s)

    def _progress(self, elapsed_s: float) -> Progress:
        if self._count > 1:
            rate = f"{self._number_ended / elapsed_s:,.0f} files/s"
            return Progress(self._label, self._number_ended / self._count, rate, elapsed_s)
        done, count = self._pages.get(0, (0, 0))
        return Progress(
            self._label,
            done / count if count else None,
            f"{done / elapsed_s:,.0f} pages/s" if done else None,
            elapsed_s,
        )
