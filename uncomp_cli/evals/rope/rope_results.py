"""The results file of `uncomp rope`: JSON lines that survive a killed run. A header with the settings, then the cells.

    {"schema_version": 1, "kind": "uncomp rope", "settings": {...}}
    {"cell": "text", "arm": "yarn:2", "tokens": 16384, "losses": [[512, 3.1], …], "patterns": {"8192": …}, …}
    {"cell": "needle", "arm": "yarn:2", "tokens": 16384, "depth": 0.5, "index": 0, "nll": 0.2, "match": 1.0, …}

Lines are only ever appended and are on the disk before `append` returns. A torn last line is cut off when the file is
opened again, and its cell is measured again. Files of other settings or of another kind are refused, and stay as they
are.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from uncomp_cli.errors import UncompError, UsageError
from uncomp_cli.evals.line_file import (
    LONGEST_HEADER,
    OTHER_FILE,
    LineFile,
    first_line,
    lock,
    writing,
)
from uncomp_cli.evals.rope.cells import NeedleCell, RopeCell, TextCell
from uncomp_cli.files import append, cut, journal_lines, parsed, read_from, sync_folder, to_line

__all__ = ["SCHEMA_VERSION", "RopeResults", "read_rope_results"]

SCHEMA_VERSION = 1
_KIND = "uncomp rope"
_CELLS: dict[str, type[NeedleCell] | type[TextCell]] = {"needle": NeedleCell, "text": TextCell}


class RopeResults(LineFile):
    """A results file open for appending, by this process alone. Close it, or use it in a `with`."""

    def __init__(self, path: Path, descriptor: int, cells: list[RopeCell]) -> None:
        super().__init__(path, descriptor)
        self.cells = cells
        self.done = {cell.key for cell in cells}

    @classmethod
    def open(cls, path: Path, settings: Mapping[str, object]) -> Self:
        """Create the file, or go on with one of the same settings.

        Raises UsageError for other settings or a file of another kind, UncompError for a broken line, a file in use or
        one that cannot be written.
        """
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
        try:
            with writing(path):
                return cls(path, descriptor, _resume(path, descriptor, settings))
        except BaseException:
            os.close(descriptor)
            raise

    def append(self, cell: RopeCell) -> None:
        """Write one cell and wait for the disk. Raises UncompError when it cannot be written."""
        try:
            line = to_line({"cell": cell.name, **asdict(cell)})
        except ValueError as error:
            message = f"{cell.arm} at {cell.tokens:,} tokens has a score that is no number"
            raise UncompError(message, hint="the model's numbers overflowed: try --dtype float32") from error
        with writing(self.path):
            append(self._descriptor, line)
        self.cells.append(cell)
        self.done.add(cell.key)


def read_rope_results(path: Path) -> tuple[dict[str, Any], list[RopeCell]]:
    """Settings and cells, without a change to the file; a torn last line is left out.

    Raises UsageError for a file that is missing or of another kind, UncompError for a broken line.
    """
    try:
        header, _, rest = path.read_bytes().partition(b"\n")
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror or error}"
        raise UsageError(message, hint="name a results file of uncomp rope") from error
    return _settings(path, header), _cells(path, rest)[0]


def _resume(path: Path, descriptor: int, settings: Mapping[str, object]) -> list[RopeCell]:
    lock(path, descriptor, program=_KIND)
    header = to_line({"schema_version": SCHEMA_VERSION, "kind": _KIND, "settings": dict(settings)})
    start = first_line(path, descriptor)
    if _is_unborn(start, header):
        os.ftruncate(descriptor, 0)
        append(descriptor, header)
        sync_folder(path.parent)
        return []
    _require_same(path, _settings(path, start), parsed(header)["settings"])
    cells, whole = _cells(path, read_from(descriptor, len(start)))
    cut(descriptor, len(start) + whole)
    return cells


def _is_unborn(start: bytes, header: bytes) -> bool:
    """Whether the file ends within a header of ours: a run was killed while it was made."""
    magic = header[: header.index(b'"settings"')]
    return not start.endswith(b"\n") and len(start) < LONGEST_HEADER and start[: len(magic)] == magic[: len(start)]


def _settings(path: Path, line: bytes) -> dict[str, Any]:
    header = parsed(line)
    if not isinstance(header, dict) or header.get("kind") != _KIND or not isinstance(header.get("settings"), dict):
        raise UsageError(f"{path} is not a results file of uncomp rope", hint=OTHER_FILE)
    if header.get("schema_version") != SCHEMA_VERSION:
        found = header.get("schema_version")
        message = f"{path} has schema version {found}; this uncomp reads {SCHEMA_VERSION}"
        raise UsageError(message, hint=OTHER_FILE)
    settings: dict[str, Any] = header["settings"]
    return settings


def _require_same(path: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    keys = [key for key in {**theirs, **ours} if theirs.get(key) != ours.get(key)]
    if keys:
        differences = "; ".join(f"{key} {theirs.get(key)!r} there, {ours.get(key)!r} now" for key in keys)
        raise UsageError(f"{path} holds results of other settings: {differences}", hint=OTHER_FILE)


def _cells(path: Path, data: bytes) -> tuple[list[RopeCell], int]:
    """The cells of the whole lines in `data`, and how many bytes those lines are."""
    records, whole = journal_lines(data)
    return [_cell(path, number, record) for number, record in enumerate(records, start=2)], whole


def _cell(path: Path, number: int, record: Any) -> RopeCell:
    made = _CELLS.get(record.pop("cell", "")) if isinstance(record, dict) else None
    try:
        if made is not None:
            return made(**record)
    except TypeError:  # a field is missing, or is one of a newer version
        pass
    message = f"{path}: line {number} is not a result of uncomp rope"
    raise UncompError(message, hint=f"take the line out, or {OTHER_FILE}")
