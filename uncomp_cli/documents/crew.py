"""Children that read files: a parser may hang, crash or fill all memory, and then it is its own process that ends.

    with Crew() as crew: text = crew.read(data, chosen, wishes)            or crew.submit(…) for several at once

A file's bytes go to a child (child.py) through its pipe, and lines of JSON come back: `{"done": [3, 150]}` while it
gets on, at last its text or what is wrong. It is held to a time since it last got on, and to memory; each grows with
the file. Who meets a limit ends as DoesNotFitError with the number; all else that breaks a reader is a DocumentError.
Children stay for the next file, one a core at most, until one has grown.
"""

import json
import os
import signal
import sys
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Self, TypeVar

from uncomp_cli import schema
from uncomp_cli.child import Child, address_bytes, allow, bound_memory, confine, usable_cores
from uncomp_cli.documents.formats import Format, reader_of
from uncomp_cli.documents.text import Limits, Loss, Place, Text, Wishes
from uncomp_cli.errors import DocumentError, DoesNotFitError, LockedError, UncompError

T = TypeVar("T")
_STEP, _PROBLEM = b'{"done": ', b'{"problem": '
SECONDS = 4.0
SECONDS_A_MIB = 2.0
MEMORY_BYTES = 300 * 10**6
MEMORY_TIMES_FILE = 8
_LIBRARIES_BYTES = 64 * 2**20  # address space of the packages that a reader imports
_GROWN_BYTES = _LIBRARIES_BYTES + 64 * 2**20
_AGAIN = "open it in a viewer and save it again, as PDF or text"
_KINDS: dict[str, type[UncompError]] = {kind.__name__: kind for kind in (DocumentError, DoesNotFitError, LockedError)}


@dataclass(frozen=True, slots=True)
class Record:
    """A text as JSON: what a child answers, and what is kept. `lines` and `names` are those of its places."""

    text: str
    lines: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    losses: tuple[Loss, ...] = ()
    encoding: str | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, text: Text) -> Self:
        lines, names = tuple(each.line for each in text.places), tuple(each.name for each in text.places)
        return cls(text.text, lines, names, text.losses, text.encoding, text.notes)

    def whole(self) -> Text:
        """The text; halves of characters, of which broken fonts have some, are joined or marked."""
        places = tuple(Place(line, name) for line, name in zip(self.lines, self.names, strict=True))
        text = self.text
        try:
            text.encode()
        except UnicodeEncodeError:
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        return Text(text, places, self.losses, self.encoding, self.notes)


def line_of(text: Text) -> bytes:
    """A text as a line of JSON."""
    return json.dumps(asdict(Record.of(text))).encode() + b"\n"


def text_of(line: bytes) -> Text:
    """The text of such a line. Raises DocumentError for any other."""
    with schema.inside("its reader answers what is none", hint=_AGAIN, kind=DocumentError):
        return schema.read(Record, schema.parse_object(line)).whole()


class Crew:
    """Some children, started when they are needed; leaving the block ends all of them at once."""

    def __init__(self, *, seconds: float = SECONDS) -> None:
        self.size = usable_cores()
        self._seconds = seconds
        self._threads = ThreadPoolExecutor(self.size)
        self._children: list[Child] = []
        self._idle: list[Child] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children:
            child.kill()
        self._threads.shutdown(cancel_futures=True)
        for child in self._children:
            child.stop()

    def submit(self, work: Callable[[], T]) -> "Future[T]":
        """What `work`, which calls `read`, will return: it is done in a thread, and progress is told from there."""
        return self._threads.submit(work)

    def read(self, data: bytes, chosen: Format, wishes: Wishes) -> Text:
        """A file's text. Raises DocumentError, or DoesNotFitError with the limit that it met."""
        child = self._take()
        try:
            return _read(child, data, _job(data, chosen, wishes, self._seconds), wishes.progress)
        except (DocumentError, DoesNotFitError):
            raise
        except BaseException:  # in the middle of an answer
            child.stop()
            raise
        finally:
            self._idle.append(child)

    def _take(self) -> Child:
        with suppress(IndexError):
            return self._idle.pop()
        child = Child(__name__)
        self._children.append(child)
        return child


def _job(data: bytes, chosen: Format, wishes: Wishes, seconds: float) -> dict[str, Any]:
    """What a child is told of a file."""
    return {
        "module": chosen.module,
        "bytes": len(data),
        "seconds": seconds + chosen.weight * SECONDS_A_MIB * len(data) / 2**20,
        "memory_bytes": len(data) + max(MEMORY_BYTES, chosen.weight * MEMORY_TIMES_FILE * len(data)),
        "password": wishes.password,
        "encoding": wishes.encoding,
        "limits": asdict(wishes.limits),
    }


def _read(child: Child, data: bytes, job: dict[str, Any], progress: Callable[[int, int], None]) -> Text:
    """The text, from a fresh child where this one had left because it was full."""
    for _ in range(2):
        found = _heard(child, data, job, progress)
        if found is not None:
            return found
        code = child.stop(wait_s=1)
        if code != 0:
            break
    raise _ended(code, job)


def _heard(child: Child, data: bytes, job: dict[str, Any], progress: Callable[[int, int], None]) -> Text | None:
    """What a child answers; None where it ends instead."""
    child.send(json.dumps(job).encode() + b"\n", data)
    while line := child.hear():
        if line.startswith(_STEP):
            done, count = json.loads(line)["done"]
            progress(done, count)
        elif line.startswith(_PROBLEM):
            problem, hint, kind = json.loads(line)["problem"]
            raise _KINDS[kind](problem, hint=hint)
        else:
            return text_of(line)
    return None


def _ended(code: int | None, job: dict[str, Any]) -> UncompError:
    """Why a child has ended in the middle of a file."""
    if code == -signal.SIGALRM:
        return DoesNotFitError(f"it takes more than {job['seconds']:.0f} seconds to read", hint=_AGAIN)
    return DocumentError(f"it ends the program that reads it ({_named(code)}), so it is damaged", hint=_AGAIN)


def _named(code: int | None) -> str:
    try:
        return signal.Signals(-(code or 0)).name
    except ValueError:
        return f"code {code}"


def serve() -> None:
    """Be the child: a line and a file in, lines out, until there are no more or it has grown."""
    confine()
    answers = os.fdopen(os.dup(1), "w")  # what packages print goes nowhere
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    say = partial(print, file=answers, flush=True)
    begun_bytes = address_bytes()
    for line in sys.stdin.buffer:
        job = json.loads(line)
        data = sys.stdin.buffer.read(job["bytes"])
        if begun_bytes:
            bound_memory(begun_bytes + _LIBRARIES_BYTES + job["memory_bytes"])
        allow(job["seconds"])
        reply = _reply(job, data, lambda step: say(json.dumps(step)))
        allow(0)
        say(json.dumps(reply))
        if address_bytes() > begun_bytes + _GROWN_BYTES:
            return


def _reply(job: dict[str, Any], data: bytes, say: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    def progress(done: int, count: int) -> None:
        allow(job["seconds"])
        say({"done": (done, count)})

    wishes = Wishes(job["password"], job["encoding"], Limits(**job["limits"]), progress)
    try:
        return asdict(Record.of(reader_of(job["module"])(data, wishes)))
    except (DocumentError, DoesNotFitError) as error:
        return _problem(error)
    except MemoryError:
        most = f"{job['memory_bytes'] / 2**20:,.0f} MiB"
        return _problem(DoesNotFitError(f"it takes more than {most} of memory to read", hint=_AGAIN))
    except Exception as error:  # parsers fail in ways that nobody foresaw
        words = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return _problem(DocumentError(f"its reader fails ({words}), so it is damaged", hint=_AGAIN))


def _problem(error: UncompError) -> dict[str, Any]:
    return {"problem": (error.message, error.hint, type(error).__name__)}
