"""What a batch is asked about: names, and where each document is; nothing of a document is read here.

    files, folders, globs      as in `ask`; what lies in a folder and is no document is counted, by the reason
    NAME.jsonl, NAME.parquet   a manifest: a row has `path`, or `text`, the document itself; and `name`
    s3://…, https://…          any of these where fsspec gets at it

Everything streams, so that a million rows take no memory. A broken line is an error that names it, and comes before
anything heavy is begun.
"""

import glob
import json
from collections import Counter
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from io import BytesIO
from pathlib import Path, PurePath
from typing import Any, BinaryIO

from uncomp_cli.documents.intake import Source, Taking, take_file, take_stream
from uncomp_cli.documents.selection import ADDRESS, candidates, nothing_readable, shown
from uncomp_cli.errors import DocumentError, DoesNotFitError, UncompError, UsageError
from uncomp_cli.files import absolute

LINES, TABLE = (".jsonl", ".ndjson"), ".parquet"
EXTRA = "pip install 'uncomp[batch]'"
_OURS = ("fsspec", "pyarrow")
_KEYS = ("name", "path", "text")
_ROW = '{"path": "reports/a.pdf"} or {"name": "a", "text": "…"}'


@dataclass(frozen=True, slots=True)
class Entry:
    """A document: its name, which no other has, and where it is.

    In a manifest its text is `size` bytes of a line from byte `at` on, or row `size` of row group `at`.
    """

    name: str
    source: str
    at: int | None = None
    size: int = 0
    line: int = 0
    manifest: str = ""

    @property
    def place(self) -> str:
        """Where it was named, for a person."""
        return f"line {self.line} of {shown(self.manifest)}" if self.line else shown(self.source)


def entries(
    inputs: Sequence[str], *, include: Sequence[str] = (), skipped: Counter[str], own: Collection[str] = ()
) -> Iterator[Entry]:
    """The documents of all inputs in their order; `skipped` counts the reasons of what is left out.

    `own` are absolute paths that are the run's, and no documents where they lie among them.

    UsageError: nothing is there, nothing in it is a document, or a line of a manifest is none.
    """
    for given in inputs:
        suffix, is_remote = PurePath(given).suffix.lower(), ADDRESS.match(given) is not None
        is_glob = glob.has_magic(given) and not Path(given).is_file()  # as with documents: what exists is none
        if suffix in LINES and not is_glob:
            yield from _lines(given)
        elif suffix == TABLE and not is_glob:
            yield from _table(given)
        else:
            yield from _remote(given) if is_remote else _local(given, include, skipped, own)


def _local(argument: str, include: Sequence[str], skipped: Counter[str], own: Collection[str]) -> Iterator[Entry]:
    refusals, found = list[tuple[str, UncompError]](), 0
    for each in candidates(argument, include=include):
        source = absolute(each.path)
        if source in own:
            continue
        if each.refusal:
            skipped[each.refusal] += 1
            refusals += [] if refusals[3:] else [(shown(each.path), DocumentError(each.refusal))]
        else:
            found += 1
            yield Entry(str(each.path), source)
    if not found:
        raise nothing_readable(argument, refusals)


def _absolute(source: str) -> str:
    return source if ADDRESS.match(source) else absolute(source)


def _remote(address: str) -> Iterator[Entry]:
    with _reaching(address):
        import fsspec

        files, path = fsspec.core.url_to_fs(address)
        found = files.glob(path) if glob.has_magic(path) else files.find(path) if files.isdir(path) else [path]
        names = [files.unstrip_protocol(each) for each in sorted(found)]
    if not names:
        raise UsageError(
            f"no file matches {shown(address)!r}", hint="check the address, and who may list what is there"
        )
    yield from (Entry(name, name) for name in names)


@contextmanager
def _reaching(address: str) -> Iterator[None]:
    """Whatever goes wrong on the way to a place, as a UsageError that names it."""
    try:
        yield
    except UncompError:
        raise
    except ImportError as error:
        missing = error.name or getattr(error.__cause__, "name", None)  # fsspec words it anew
        hint = f"pip install {missing}" if missing and missing not in _OURS else EXTRA
        raise UncompError(f"{shown(address)} needs a package: {error}", hint=hint) from error
    except Exception as error:  # each file system has its own
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise UsageError(
            f"{shown(address)} cannot be read: {reason}", hint="check its name and its permissions"
        ) from error


@contextmanager
def _opened(source: str) -> Iterator[BinaryIO]:
    """A manifest, wherever it is."""
    with ExitStack() as stack:
        with _reaching(source):
            if ADDRESS.match(source):
                import fsspec

                stream = stack.enter_context(fsspec.open(source, "rb"))
            else:
                stream = stack.enter_context(Path(source).open("rb"))
        yield stream


def _lines(manifest: str) -> Iterator[Entry]:
    source, at, found = _absolute(manifest), 0, 0
    with _opened(manifest) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                found += 1
                yield _entry(
                    _parsed(line, f"{shown(manifest)}: line {number}"), manifest, source, number, at, len(line)
                )
            at += len(line)
    if not found:
        raise UsageError(f"{shown(manifest)} has no rows", hint=f"a row is {_ROW}")


def _parsed(line: bytes, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{place} is not JSON: {error}", hint=f"a row is {_ROW}") from error
    if not isinstance(row, dict):
        raise UsageError(f"{place} is no object", hint=f"a row is {_ROW}")
    return row


def _table(manifest: str) -> Iterator[Entry]:
    source, number = _absolute(manifest), 0
    with _opened(manifest) as stream:
        with _reaching(manifest):
            from pyarrow.parquet import ParquetFile

            file = ParquetFile(stream)
        columns = [key for key in ("name", "path") if key in file.schema_arrow.names]
        has_text = "text" in file.schema_arrow.names
        for group in range(file.num_row_groups):
            with _reaching(manifest):
                rows = file.read_row_group(group, columns=columns or ["text"]).to_pylist()
            for at, row in enumerate(rows):
                number += 1
                given = {**row, **({"text": ""} if has_text and row.get("path") is None else {})}
                yield _entry(given, manifest, source, number, group, at)
    if not number:
        raise UsageError(f"{shown(manifest)} has no rows", hint="it needs a column `path`, or `text` and `name`")


def _entry(row: dict[str, Any], manifest: str, source: str, number: int, at: int, size: int) -> Entry:
    place = f"{shown(manifest)}: line {number}"
    name, path, text = (row.get(key) for key in _KEYS)
    for key, value in zip(_KEYS, (name, path, text), strict=True):
        if not (value is None or (isinstance(value, str) and (value or key == "text"))):
            raise UsageError(f"{place}: {key} is {json.dumps(value, default=str)[:40]}", hint=f"a row is {_ROW}")
    if (path is None) == (text is None):
        both = "neither path nor text" if path is None else "both path and text"
        raise UsageError(f"{place} has {both}", hint=f"a row is {_ROW}")
    if path is not None:
        return Entry(name or path, _absolute(path), line=number, manifest=manifest)
    return Entry(name or f"{manifest}:{number}", source, at, size, number, manifest)


def source_of(entry: Entry) -> Source:
    """How a document's bytes are got at, on the machine where it is read."""
    if entry.at is not None:
        return Source(entry.name, partial(_take_row, entry), ".txt")
    suffix = PurePath(entry.source).suffix.lower()
    if ADDRESS.match(entry.source):
        return Source(entry.name, partial(_take_remote, entry.source), suffix)
    return Source(entry.name, partial(take_file, Path(entry.source)), suffix)


def _take_remote(address: str, most_bytes: int) -> Taking:
    try:
        import fsspec

        with fsspec.open(address, "rb") as stream:
            return (yield from take_stream(stream, most_bytes, address))
    except (DocumentError, DoesNotFitError):
        raise
    except Exception as error:  # each file system has its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DocumentError(f"it cannot be fetched: {reason}", hint="check its address, and who may read it") from error


def _take_row(entry: Entry, most_bytes: int) -> Generator[Any, None, bytes]:
    group, source = entry.at or 0, entry.source
    if source.lower().endswith(TABLE):
        text = _texts(source, group)[entry.size]
    else:
        with _opened(source) as stream:
            stream.seek(group)
            text = _parsed(stream.read(entry.size), entry.place)["text"]
    data = (text or "").encode("utf-8", "replace")
    return (yield from take_stream(BytesIO(data), most_bytes, entry.name))


@lru_cache(maxsize=1)
def _texts(source: str, group: int) -> list[str | None]:
    """The texts of one row group, whose rows are read one behind the other."""
    from pyarrow.parquet import ParquetFile

    with _opened(source) as stream:
        found: list[str | None] = ParquetFile(stream).read_row_group(group, columns=["text"])["text"].to_pylist()
        return found
