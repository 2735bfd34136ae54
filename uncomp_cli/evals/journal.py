"""A journal: results that survive a killed run, as lines of JSON. A header with the settings, then one record a line.

    {"schema_version": 1, "kind": "uncomp eval", "settings": {...}}
    {"subtask": "needle/uuid", "index": 0, "regime": "aware", "setting": "uniform/window 20%", ...}

Lines are only ever added, several records in one write, and are on the disk before `append` returns. What a kill can
leave is a torn last line, or a file that ends within its header: both are cut off when the file is opened again, and
their records are made again. A file that is something else, one of other settings, one with a line that is no record
and one that another process writes are refused and stay as they are.
"""

import json
import os
import shlex
import stat
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from uncomp_cli import files
from uncomp_cli.errors import UncompError, UsageError
from uncomp_cli.schema import inside, object_of, shown, value_of

SCHEMA_VERSION = 1
_LONGEST_HEADER = 1 << 20
_OTHER_FILE = "give another file with --out"
_IN_USE = "wait until that one has ended, or give this run another file with --out"
_BINARY = getattr(os, "O_BINARY", 0)

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Kind(Generic[R]):
    """What the journals of one `program` hold, and how a record becomes plain data and comes back.

    `make` raises UsageError for what is no record. `key` is what a journal has one record of, `place` names a record to
    a person. `fresh` says that the program can begin anew with --fresh.
    """

    program: str
    make: Callable[[dict[str, Any]], R]
    key: Callable[[R], Hashable]
    place: Callable[[R], str]
    plain: Callable[[Any], dict[str, Any]] = asdict
    fresh: bool = True

    @property
    def hint(self) -> str:
        """What helps against a file that this run cannot go on with."""
        return f"{_OTHER_FILE}, or --fresh, which keeps the old file beside the new one" if self.fresh else _OTHER_FILE

    @property
    def magic(self) -> bytes:
        """What every header begins with; a file that ends before it does was killed while it was made."""
        return f'{{"schema_version": {SCHEMA_VERSION}, "kind": "{self.program}", '.encode()


class Journal(Generic[R]):
    """A results file open for appending, by this process alone. Close it, or use it in a `with`."""

    def __init__(self, path: Path, kind: Kind[R], descriptor: int, records: list[R]) -> None:
        self.path = path
        self.kind = kind
        self.records = records
        self.done = {kind.key(record): record for record in records}
        self._descriptor = descriptor

    @classmethod
    def open(cls, path: Path, kind: Kind[R], settings: Mapping[str, object]) -> Self:
        """Create the file, or resume it when it has the same settings; a torn last line is cut off.

        Raises UsageError for other settings or a file of another kind, UncompError for a broken line, a file in use or
        one that cannot be written.
        """
        with writing(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | _BINARY, 0o666)
        try:
            with writing(path):
                return cls(path, kind, descriptor, _resume(path, kind, descriptor, settings))
        except BaseException:
            os.close(descriptor)
            raise

    def append(self, records: Sequence[R]) -> None:
        """Write `records` at once and wait for the disk; when it is full, none of them stays.

        Raises UncompError when they cannot be written, ValueError when one is there already.
        """
        keys = [self.kind.key(record) for record in records]
        if len(set(keys)) < len(keys) or not self.done.keys().isdisjoint(keys):
            raise ValueError("a record may be written once only")
        lines = b"".join(_line(self.kind, record) for record in records)
        with writing(self.path):
            files.append(self._descriptor, lines)
        self.records.extend(records)
        self.done.update(zip(keys, records, strict=True))

    def close(self) -> None:
        """Let go of the file, so that others may write it; twice does no harm."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_journal(path: Path, kind: Kind[R]) -> tuple[dict[str, Any], list[R]]:
    """Settings and records, without a change to the file; a torn last line is left out.

    Raises UsageError for a file that is missing or of another kind, UncompError for a broken line.
    """
    try:
        if path.exists() and not path.is_file():
            raise UsageError(f"{path} is not a regular file", hint=_OTHER_FILE)
        header, _, rest = path.read_bytes().partition(b"\n")
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror or error}"
        raise UsageError(message, hint=f"name a results file of {kind.program}") from error
    return _settings(path, kind, header), _records(path, kind, rest)[0]


def set_aside(path: Path, kind: Kind[R], *, whatever: bool = False) -> Path | None:
    """Rename the journal `path` to NAME.1.jsonl, or the next free number; None when there is none.

    Raises UsageError for a file of another kind, unless it may be `whatever` lies in a place of ours, and UncompError
    for a file that another process writes.
    """
    if not path.exists():
        return None
    with writing(path):
        descriptor = os.open(path, os.O_RDONLY | _BINARY | getattr(os, "O_NONBLOCK", 0))
        try:
            lock(path, kind.program, descriptor)
            start = _first_line(path, descriptor)
            if not (whatever or _is_unborn(kind, start)):
                _header(path, kind, start)
        finally:
            os.close(descriptor)
        return files.set_aside(path, before_suffix=True)[0]


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Errors of the system while `path` is opened or written, as UncompError."""
    try:
        yield
    except OSError as error:
        stays = f"{_OTHER_FILE}; what was written stays, and the run can be continued"
        hint = stays if path.parent.is_dir() else f"make its directory first: mkdir -p {shlex.quote(str(path.parent))}"
        raise UncompError(f"{path} cannot be written: {error.strerror or error}", hint=hint) from error


def _resume(path: Path, kind: Kind[R], descriptor: int, settings: Mapping[str, object]) -> list[R]:
    """The records already there, with the file made whole: header first, no torn line last."""
    header = files.to_line({"schema_version": SCHEMA_VERSION, "kind": kind.program, "settings": dict(settings)})
    lock(path, kind.program, descriptor)
    if not os.path.samestat(os.fstat(descriptor), path.stat()):
        raise UncompError(f"{path} was replaced by another {kind.program}", hint=_IN_USE)
    start = _first_line(path, descriptor)
    if _is_unborn(kind, start):
        files.cut(descriptor, 0)
        files.append(descriptor, header)
        files.sync_folder(path.parent)
        return []
    _require_same(path, kind, _settings(path, kind, start), json.loads(header)["settings"])
    records, whole = _records(path, kind, files.read_from(descriptor, len(start)))
    files.cut(descriptor, len(start) + whole)
    return records


def lock(path: Path, program: str, descriptor: int) -> None:
    """Take the file for this process until it is closed; file systems and systems without locks go without."""
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UncompError(f"{path} is being written by another {program}", hint=_IN_USE) from error
    except OSError:
        return


def _first_line(path: Path, descriptor: int) -> bytes:
    """The first line, its end included where it has one. Raises UsageError for what is not a regular file."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise UsageError(f"{path} is not a regular file", hint=_OTHER_FILE)
    with os.fdopen(os.dup(descriptor), "rb") as stream:
        stream.seek(0)
        return stream.readline(_LONGEST_HEADER)


def _is_unborn(kind: Kind[R], start: bytes) -> bool:
    """Whether the file ends within its header: a run was killed before it had any result."""
    magic = kind.magic
    return not start.endswith(b"\n") and len(start) < _LONGEST_HEADER and start[: len(magic)] == magic[: len(start)]


def _header(path: Path, kind: Kind[R], line: bytes) -> dict[str, Any]:
    header = files.parsed(line)
    if isinstance(header, dict) and header.get("kind") == kind.program:
        with inside(str(path), hint=kind.hint):
            value_of(dict[str, Any], header.get("settings"), "settings")
        return header
    raise UsageError(f"{path} is not a results file of {kind.program}", hint=_OTHER_FILE)


def _settings(path: Path, kind: Kind[R], line: bytes) -> dict[str, Any]:
    header = _header(path, kind, line)
    if header.get("schema_version") != SCHEMA_VERSION:
        found = header.get("schema_version")
        message = f"{path} has schema version {shown(found)}; this uncomp reads {SCHEMA_VERSION}"
        raise UsageError(message, hint=kind.hint)
    settings: dict[str, Any] = header["settings"]
    return settings


def _require_same(path: Path, kind: Kind[R], theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    theirs, ours = _flat(theirs), _flat(ours)
    keys = [key for key in {**theirs, **ours} if key not in theirs or key not in ours or theirs[key] != ours[key]]
    if keys:
        differences = "; ".join(f"{key} {_shown(theirs, key)} there, {_shown(ours, key)} now" for key in keys)
        raise UsageError(f"{path} holds results of other settings: {differences}", hint=kind.hint)


def _flat(settings: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Settings of settings by their dotted names, so that only what differs is told."""
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return flat


def _shown(settings: dict[str, Any], key: str) -> str:
    return json.dumps(settings[key], ensure_ascii=False) if key in settings else "not set"


def _records(path: Path, kind: Kind[R], data: bytes) -> tuple[list[R], int]:
    """The records of the whole lines in `data`, and how many bytes those lines are."""
    lines, whole = files.journal_lines(data)
    records: list[R] = []
    seen: dict[Hashable, int] = {}
    for number, line in enumerate(lines, start=2):
        record = _record(path, kind, number, line)
        if (key := kind.key(record)) in seen:
            raise UncompError(f"{path}: line {number} repeats line {seen[key]}", hint=kind.hint)
        seen[key] = number
        records.append(record)
    return records, whole


def _record(path: Path, kind: Kind[R], number: int, line: Any) -> R:
    what = f"{path}: line {number} is not a result"
    with inside(what, hint=f"take the line out, or {kind.hint}", kind=UncompError):
        return kind.make(object_of(line))


def _line(kind: Kind[R], record: R) -> bytes:
    plain = kind.plain(record)
    try:
        return files.to_line(plain)
    except ValueError as error:
        scores = ", ".join(f"{name} {value}" for name, value in _no_numbers(plain, ""))
        message = f"{kind.place(record)} has a score that is no number: {scores}"
        raise UncompError(message, hint="the model's numbers overflowed: try --dtype float32") from error


def _no_numbers(value: Any, name: str) -> Iterator[tuple[str, float]]:
    """Every number in plain data that is none, with the key that it stands under."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _no_numbers(inner, str(key))
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _no_numbers(inner, name)
    elif isinstance(value, float) and not isfinite(value):
        yield name, value
