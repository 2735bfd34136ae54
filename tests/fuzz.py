"""Damaged files by the thousand: every reader must say in two lines what is wrong, soon, and in little memory.

    python tests/fuzz.py --kind preset --inputs 10000 --seed 1       --only 4711 shows that input's traceback

Each input is a valid file of its kind that was changed (support/mutation.py), read by what a user would read it with.
Counted are errors that nobody foresaw, errors without a hint, inputs that take more than 5 s, and those that
take more than 300 MB; a document's parser has a process of its own, which ends where it would take more. To add a kind:
a class with `name`, `prepare`, `mutate` and `use`, one line in KINDS; a format of documents is in support/unsafe.py.
"""

import argparse
import io
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from random import Random
from typing import Any, Protocol
from unittest import mock

import torch
import typer

from support.damaged import Manifests, Presets, Profiles, Results, SavedDocuments, Sessions
from support.gguf_files import GgufHeaders
from support.unsafe import FORMATS, Documents, Questions
from uncomp_cli.engine.spend.memory import peak_bytes, reset_peak, resident_bytes
from uncomp_cli.errors import UncompError

MOST_S = 5.0
MOST_BYTES = 300 * 10**6
_CPU = torch.device("cpu")


class Kind(Protocol):
    """A kind of file."""

    name: str

    def prepare(self, folder: Path) -> None:
        """Make valid files, and what reading them needs."""

    def mutate(self, chance: Random) -> bytes:
        """A damaged file."""

    def use(self, data: bytes) -> None:
        """Read it as commands do; raises UncompError for what is refused."""


KINDS: dict[str, Callable[[], Kind]] = {
    each.name: each
    for each in (Presets, Profiles, Sessions, SavedDocuments, Results, Manifests, GgufHeaders, Questions)
} | {name: partial(Documents, name) for name in FORMATS}


@dataclass
class Tally:
    """What came of the inputs of a kind."""

    kind: str
    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    slow: int = 0
    large: int = 0
    unforeseen: Counter[str] = field(default_factory=Counter)
    first: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def faults(self) -> int:
        """Inputs that were not read as they should be."""
        return self.slow + self.large + self.unforeseen.total()

    def note(self, fault: str, index: int) -> None:
        """Count a fault; the first input that shows it is remembered."""
        self.unforeseen[fault] += 1
        self.first.setdefault(fault, index)

    def row(self) -> str:
        """A line of the table."""
        cells = (self.inputs, self.accepted, self.refused, self.unforeseen.total(), self.slow, self.large)
        return f"{self.kind:<12}" + "".join(f"{cell:>12,}" for cell in cells) + f"{self.seconds:>10.0f} s"


HEAD = f"{'KIND':<12}" + "".join(
    f"{name:>12}" for name in ("INPUTS", "ACCEPTED", "REFUSED", "TRACEBACKS", "OVER 5 S", "OVER 300 MB")
)


class TooSlow(BaseException):
    """Raised by the clock; nobody catches it on the way."""


def fuzz(kind: Kind, *, inputs: Sequence[int], seed: int, debug: bool = False) -> Tally:
    """Read so many damaged files of a kind."""
    tally, begun = Tally(kind.name), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, _as_a_command(Path(folder)):
        kind.prepare(Path(folder))
        for index in inputs:
            data = kind.mutate(Random(f"{kind.name}/{seed}/{index}"))
            _try(kind, data, tally, index, debug=debug)
    tally.seconds = time.perf_counter() - begun
    return tally


def _try(kind: Kind, data: bytes, tally: Tally, index: int, *, debug: bool) -> None:
    tally.inputs += 1
    before = resident_bytes(_CPU)
    reset_peak(_CPU)
    try:
        with _clock(MOST_S):
            kind.use(data)
        tally.accepted += 1
    except TooSlow:
        tally.slow += 1
        tally.first.setdefault("slow", index)
    except UncompError as error:
        tally.refused += 1
        if not error.hint:
            tally.note(f"no second line: {error.message[:60]!r}", index)
    except Exception as error:  # which is what is looked for
        if debug:
            traceback.print_exc()
        tally.note(_described(error), index)
    if peak_bytes(_CPU) - before - len(data) > MOST_BYTES:
        tally.large += 1
        tally.first.setdefault("large", index)


def _described(error: Exception) -> str:
    """The error, and the last line of the package that it came through."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if "uncomp_cli" in frame.filename]
    where = f"{frames[-1].filename.rpartition('uncomp_cli/')[2]}:{frames[-1].lineno}" if frames else "?"
    return f"{type(error).__name__} at {where}: {str(error)[:80]}"


@contextmanager
def _clock(seconds: float) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _as_a_command(folder: Path) -> Iterator[None]:
    """The user's folders below `folder`; what commands print is thrown away, what they raise comes out of them."""

    def out(error: BaseException, **_: Any) -> int:
        raise error

    folders = {name: str(folder / name.lower()) for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME", "UNCOMP_CACHE_DIR")}
    with (
        mock.patch("uncomp_cli.cli.app._report", out),
        mock.patch("typer.main.get_command", cache(typer.main.get_command)),  # the tree of commands is made once
        mock.patch.dict("os.environ", folders),
        mock.patch("sys.stdout", _sink()),
        mock.patch("sys.stderr", _sink()),
    ):
        yield


class _Nowhere(io.RawIOBase):
    """What takes bytes and keeps none."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        return len(data)


def _sink() -> io.TextIOWrapper:
    """A stream as main() of the program sets its own."""
    return io.TextIOWrapper(io.BufferedWriter(_Nowhere()), encoding="utf-8", errors="backslashreplace")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; 1 when an input was not read as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", choices=["all", *KINDS], default="all")
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="the one input of this number, with its traceback")
    wanted = parser.parse_args(arguments)
    inputs = range(wanted.inputs) if wanted.only is None else [wanted.only]
    faults = 0
    print(HEAD)
    for name in KINDS if wanted.kind == "all" else [wanted.kind]:
        tally = fuzz(KINDS[name](), inputs=inputs, seed=wanted.seed, debug=wanted.only is not None)
        print(tally.row(), flush=True)
        for fault, count in tally.unforeseen.most_common():
            print(f"    {count:>6,} x {fault} (first: --only {tally.first[fault]})")
        for fault in ("slow", "large"):
            if fault in tally.first:
                print(f"    {fault}: first --only {tally.first[fault]}")
        faults += tally.faults
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
