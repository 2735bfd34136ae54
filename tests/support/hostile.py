"""A reader that does what the file says, as hostile files make readers do; it runs in a child of documents/crew.py."""

import os
import signal
import tempfile
import time
from collections.abc import Callable

from uncomp_cli.documents.text import Loss, Place, Text, Wishes

_LEFT: list[bytearray] = []


def read(data: bytes, wishes: Wishes) -> Text:
    """What the first word of the file is here, or its text."""
    return _DEEDS.get(data, lambda wishes: Text(data.decode()))(wishes)


def _hang(_: Wishes) -> Text:
    while True:
        time.sleep(0.01)


def _fail(_: Wishes) -> Text:
    raise TypeError("no\nsuch thing")


def _chatter(_: Wishes) -> Text:
    print("to standard output", flush=True)
    return Text("said nothing")


def _leave(_: Wishes) -> Text:
    os._exit(7)


def _crash(_: Wishes) -> Text:
    os.kill(os.getpid(), signal.SIGSEGV)
    return Text("")


def _grow(_: Wishes) -> Text:
    _LEFT.append(bytearray(200 * 2**20))
    return Text("grown")


def _write(_: Wishes) -> Text:
    with tempfile.TemporaryFile(buffering=0) as file:
        return Text(str(file.write(b"x" * 100)))


def _slow(wishes: Wishes) -> Text:
    for page in range(8):
        time.sleep(0.3)
        wishes.progress(page + 1, 8)
    return Text("slow pages")


_DEEDS: dict[bytes, Callable[[Wishes], Text]] = {
    b"hang": _hang,
    b"fill": lambda _: Text("x" * 10**10),
    b"crash": _crash,
    b"leave": _leave,
    b"fail": _fail,
    b"grow": _grow,
    b"be full": lambda _: os._exit(0),
    b"write": _write,
    b"chatter": _chatter,
    b"slow pages": _slow,
    b"wishes": lambda wishes: Text(f"{wishes.password} {wishes.encoding} {wishes.limits.pages}"),
    b"halves": lambda _: Text("\ud83d\ude00 \ud83d."),
    b"whole": lambda _: Text("a\nb", (Place(1, "p1"), Place(2, "p2")), (Loss("pictures", 2, "p1"),), "koi8-r"),
}
