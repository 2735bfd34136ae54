"""The results of a batch: one row a document, a line of JSON each, that outlive whatever ends the run.

    OUT.jsonl                 rows as they come, in the order of their names when all are there
    OUT.jsonl.settings        what they were asked with: a run that goes on must be asked with the same
    OUT.parquet               made of OUT.parquet.jsonl, which stays, when all rows are there

Rows are added by one write and waited for. A half line, which a kill leaves, is cut off when the file is opened again,
and its document is asked again. Names and the places of their rows are in a temporary database of the system's, which
is on the disk when it is large: memory does not grow with the rows.
"""

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, BinaryIO, Self

from uncomp_cli import files
from uncomp_cli.errors import UncompError, UsageError
from uncomp_cli.evals.journal import lock, writing
from uncomp_cli.numerals import format_count
from uncomp_cli.schema import load_object, shown

PARQUET = ".parquet"
SUFFIXES = (".jsonl", PARQUET)
_TABLE_ROWS = 1024
_SHOWN = 3
_TABLES = """
PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;
CREATE TABLE wanted (name BLOB PRIMARY KEY, place BLOB, taken INTEGER) WITHOUT ROWID;
CREATE TABLE rows (name BLOB PRIMARY KEY, at INTEGER, size INTEGER) WITHOUT ROWID;
BEGIN
"""


def places_of(out: Path) -> tuple[Path, Path, Path]:
    """The results, their rows, which are the same but for a table, and the settings of these."""
    rows = Path(f"{out}.jsonl") if out.suffix.lower() == PARQUET else out
    return out, rows, Path(f"{rows}.settings")


class Results:
    """The rows of `out`, open for adding by this process alone; close it, or use it in a `with`.

    Raises UsageError where there are rows already that are not to be gone on with, or of other settings, and
    UncompError for a line that is no row, a file in use or one that cannot be written.
    """

    def __init__(self, out: Path, settings: Mapping[str, Any], *, resume: bool) -> None:
        if out.suffix.lower() not in SUFFIXES:
            raise UsageError(f"--out {out} is neither .jsonl nor .parquet", hint="use --out results.jsonl")
        self.out, self.path, self._settings = places_of(out)
        self._stack = ExitStack()
        self._index = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._stack.callback(self._index.close)
        self._index.executescript(_TABLES)
        try:
            self._open(json.loads(json.dumps(settings)), resume=resume)
        except BaseException:
            self._stack.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._stack.close()

    def _open(self, settings: dict[str, Any], *, resume: bool) -> None:
        with writing(self.path):
            is_new = not self.path.exists()
            has_rows = not is_new and (not self.path.is_file() or self.path.stat().st_size > 0)
            if has_rows:
                self._check(settings, resume=resume)
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
            self._stack.callback(os.close, self._descriptor)
            lock(self.path, "uncomp batch", self._descriptor)
            if is_new:
                self._stack.callback(self._leave_nothing)
            if has_rows:
                self._take_in()
            else:
                files.write_whole(self._settings, json.dumps(settings, indent=1).encode() + b"\n")

    def _leave_nothing(self) -> None:
        """Take the files away again when no row came."""
        if os.fstat(self._descriptor).st_size == 0:
            with suppress(OSError):
                self.path.unlink()
                self._settings.unlink(missing_ok=True)

    def _check(self, settings: dict[str, Any], *, resume: bool) -> None:
        """Raise UsageError unless the rows that there are can be gone on with."""
        beside, another = self._settings, "use another --out"
        if not self.path.is_file():
            raise UsageError(f"{self.path} is not a regular file", hint=another)
        if not resume:
            raise UsageError(f"{self.path} has rows already", hint=f"--resume goes on with them, or {another}")
        if not beside.exists():
            raise UsageError(f"{self.path} is no file of uncomp batch: {beside.name} is not there", hint=another)
        theirs = load_object(beside)
        keys = [key for key in {**theirs, **settings} if theirs.get(key) != settings.get(key)]
        if keys:
            told = "; ".join(f"{key} {shown(theirs.get(key))} there, {shown(settings.get(key))} now" for key in keys)
            raise UsageError(f"{self.path} has rows of other settings: {told}", hint=f"ask with the same, or {another}")

    def _take_in(self) -> None:
        """Find the rows that there are; a half line behind them is cut off."""
        at = 0
        with os.fdopen(os.dup(self._descriptor), "rb") as stream:
            stream.seek(0)
            for number, line in enumerate(stream, start=1):
                if not line.endswith(b"\n"):
                    break
                row = files.parsed(line)
                if not (isinstance(row, dict) and isinstance(row.get("name"), str)):
                    raise UncompError(f"{self.path}: line {number} is no row", hint="take the line out")
                if not self._note(row["name"], at, len(line)):
                    raise UncompError(f"{self.path}: line {number} has a document again", hint="take the line out")
                at += len(line)
        files.cut(self._descriptor, at)

    def _note(self, name: str, at: int, size: int) -> bool:
        found = self._index.execute("INSERT OR IGNORE INTO rows VALUES (?, ?, ?)", (_key(name), at, size))
        return found.rowcount > 0

    def wants(self, name: str, place: str) -> str | None:
        """Note that a document is to have a row; where it was named before, if it was."""
        known = self._index.execute("SELECT place FROM wanted WHERE name = ?", (_key(name),)).fetchone()
        if known is None:
            self._index.execute("INSERT INTO wanted VALUES (?, ?, 0)", (_key(name), place.encode("utf-8", "replace")))
            return None
        return bytes(known[0]).decode()

    def take(self, name: str) -> bool:
        """Whether a document that is to have a row has none; once."""
        query = "UPDATE wanted SET taken = 1 WHERE name = ? AND NOT taken AND name NOT IN (SELECT name FROM rows)"
        return self._index.execute(query, (_key(name),)).rowcount > 0

    @property
    def counts(self) -> tuple[int, int]:
        """Documents that are to have a row, and those of them that have one."""
        (wanted,) = self._index.execute("SELECT count(*) FROM wanted").fetchone()
        (done,) = self._index.execute("SELECT count(*) FROM wanted JOIN rows USING (name)").fetchone()
        return wanted, done

    def add(self, rows: Iterable[tuple[str, bytes]]) -> None:
        """Write rows, each its document's name and its line, at once and on the disk; one that is there stays."""
        with writing(self.path):
            at, fresh = os.fstat(self._descriptor).st_size, list[bytes]()
            for name, line in rows:
                if self._note(name, at, len(line)):
                    fresh.append(line)
                    at += len(line)
            files.append(self._descriptor, b"".join(fresh))

    def check_whole(self) -> None:
        """Raise UncompError where documents have no row."""
        query = "SELECT name FROM wanted WHERE name NOT IN (SELECT name FROM rows)"
        left = [_name(name) for (name,) in self._index.execute(f"{query} LIMIT {_SHOWN}")]
        if left:
            (count,) = self._index.execute(f"SELECT count(*) FROM ({query})").fetchone()
            told = ", ".join(map(repr, left)) + (", …" if count > _SHOWN else "")
            message = f"there is no row of {format_count(count, 'document')}: {told}"
            raise UncompError(message, hint="the same command with --resume asks them")

    def finish(self) -> None:
        """Bring all rows into the order of their names, and write the table where one is wanted."""
        with writing(self.out):
            files.replace_file(self.path, lambda stream: stream.writelines(self._ordered()))
            if self.path != self.out:
                files.replace_file(self.out, self._write_table)

    def _ordered(self) -> Iterator[bytes]:
        for at, size in self._index.execute("SELECT at, size FROM rows ORDER BY name"):
            yield os.pread(self._descriptor, size, at)

    def _write_table(self, stream: BinaryIO) -> None:
        """Name, answers in the order of the questions, what went wrong, and the whole row."""
        import pyarrow
        from pyarrow.parquet import ParquetWriter

        text = pyarrow.string()
        schema = pyarrow.schema(
            {"name": text, "answers": pyarrow.list_(text), "error": text, "hint": text, "row": text}
        )
        with ParquetWriter(stream, schema) as writer:
            waiting = list[dict[str, Any]]()
            for line in self._ordered():
                waiting.append(_columns(line))
                if len(waiting) == _TABLE_ROWS:
                    writer.write_table(pyarrow.Table.from_pylist(waiting, schema))
                    waiting = []
            writer.write_table(pyarrow.Table.from_pylist(waiting, schema))


def _columns(line: bytes) -> dict[str, Any]:
    row = json.loads(line)
    error = row.get("error", {})
    return {
        "name": row["name"].encode("utf-8", "replace").decode(),
        "answers": [each.get("answer") for each in row["answers"]],
        "error": error.get("message"),
        "hint": error.get("hint"),
        "row": line.decode().rstrip("\n"),
    }


def _key(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")


def _name(key: bytes) -> str:
    return bytes(key).decode("utf-8", "surrogatepass")
