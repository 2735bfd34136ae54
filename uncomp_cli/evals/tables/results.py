"""The results file: JSON lines that survive a killed run. A header with the settings, then one Outcome a line.

Lines are only ever appended, a batch in one write, and are on the disk before `append` returns. What a kill can leave
behind is a torn last line: it is cut off when the file is opened again, and its samples are run again. Results of other
settings, a file that is something else, and a file that another process writes are refused and stay as they are.

    {"schema_version": 1, "kind": "uncomp eval", "settings": {...}}
    {"subtask": "needle/uuid", "index": 0, "regime": "aware", "setting": "uniform/window 20%", ...}
"""

import json
import os
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, Self

from uncomp_cli.errors import UncompError, UsageError
from uncomp_cli.evals.line_file import (
    IN_USE,
    LONGEST_HEADER,
    OTHER_FILE,
    LineFile,
    first_line,
    lock,
    writing,
)
from uncomp_cli.evals.tables.outcome import Outcome
from uncomp_cli.files import append, cut, journal_lines, parsed, read_from, sync_folder, to_line
from uncomp_cli.files import set_aside as rename_aside

__all__ = ["SCHEMA_VERSION", "Key", "ResultsFile", "read_results", "set_aside"]

SCHEMA_VERSION = 1
_KIND = "uncomp eval"
# What every header of ours begins with; a file that ends before it does was killed while it was made.
_MAGIC = f'{{"schema_version": {SCHEMA_VERSION}, "kind": "{_KIND}", '.encode()
_HINT = f"{OTHER_FILE}, or --fresh, which keeps the old file beside the new one"

Key = tuple[str, int, int, str, str]
"""`Outcome.key`: subtask, tokens, index, regime, setting."""

_REQUIRED: dict[str, type | tuple[type, ...]] = {
    "subtask": str,
    "index": int,
    "regime": str,
    "setting": str,
    "contestant": str,
    "budget": str,
    "tokens": int,
    "depth": (int, float, type(None)),
    "kept_fraction": (int, float),
    "kv_bytes": int,
    "metrics": dict,
}


class ResultsFile(LineFile):
    """A results file open for appending, by this process alone. Close it, or use it in a `with`."""

    def __init__(self, path: Path, descriptor: int, outcomes: list[Outcome]) -> None:
        super().__init__(path, descriptor)
        self.outcomes = outcomes
        self.done: set[Key] = {outcome.key for outcome in outcomes}

    @classmethod
    def open(cls, path: Path, settings: Mapping[str, object]) -> Self:
        """Create the file, or resume it when it has the same settings; a torn last line is cut off.

        Raises UsageError for other settings or a file of another kind, UncompError for a broken line, a file in use or
        one that cannot be written.
        """
        header = _header_line(settings)
        with writing(path):
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
        try:
            with writing(path):
                return cls(path, descriptor, _resume(path, descriptor, header))
        except BaseException:
            os.close(descriptor)
            raise

    def append(self, outcomes: Sequence[Outcome]) -> None:
        """Write the lines of `outcomes` at once and wait for the disk; when it is full, none of them stays.

        Raises UncompError when they cannot be written, ValueError when one is there already.
        """
        keys = [outcome.key for outcome in outcomes]
        if len(set(keys)) < len(keys) or not self.done.isdisjoint(keys):
            raise ValueError("an outcome may be written once only")
        lines = b"".join(map(_outcome_line, outcomes))
        with writing(self.path):
            append(self._descriptor, lines)
        self.outcomes.extend(outcomes)
        self.done.update(keys)


def read_results(path: Path) -> tuple[dict[str, Any], list[Outcome]]:
    """Settings and outcomes, without a change to the file; a torn last line is left out.

    Raises UsageError for a file that is missing or of another kind, UncompError for a broken line.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        message = f"{path} cannot be read: {error.strerror or error}"
        raise UsageError(message, hint="name a results file of uncomp eval") from error
    header, _, rest = data.partition(b"\n")
    settings = _settings(path, header)
    return settings, _outcomes(path, rest)[0]


def set_aside(path: Path) -> Path | None:
    """Rename the results file `path` to NAME.1.jsonl, or the next free number; None when there is none.

    Raises UsageError for a file of another kind, UncompError for a file that another process writes.
    """
    if not path.exists():
        return None
    with writing(path):
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0))
        try:
            lock(path, descriptor, program=_KIND)
            start = first_line(path, descriptor)
            if not _is_unborn(start):
                _header(path, start)
        finally:
            os.close(descriptor)
        return rename_aside(path, before_suffix=True)[0]


def _resume(path: Path, descriptor: int, header: bytes) -> list[Outcome]:
    """The outcomes already there, with the file made whole: header first, no torn line last."""
    lock(path, descriptor, program=_KIND)
    if not os.path.samestat(os.fstat(descriptor), path.stat()):
        raise UncompError(f"{path} was replaced by another uncomp eval", hint=IN_USE)
    start = first_line(path, descriptor)
    if _is_unborn(start):
        os.ftruncate(descriptor, 0)
        append(descriptor, header)
        sync_folder(path.parent)
        return []
    _require_same(path, _settings(path, start), json.loads(header)["settings"])
    outcomes, whole = _outcomes(path, read_from(descriptor, len(start)))
    cut(descriptor, len(start) + whole)
    return outcomes


def _is_unborn(start: bytes) -> bool:
    """Whether the file ends within its header: a run was killed before it had any result."""
    return not start.endswith(b"\n") and len(start) < LONGEST_HEADER and start[: len(_MAGIC)] == _MAGIC[: len(start)]


def _header(path: Path, line: bytes) -> dict[str, Any]:
    record = parsed(line)
    if not isinstance(record, dict) or record.get("kind") != _KIND or not isinstance(record.get("settings"), dict):
        raise UsageError(f"{path} is not a results file of uncomp eval", hint=OTHER_FILE)
    return record


def _settings(path: Path, line: bytes) -> dict[str, Any]:
    header = _header(path, line)
    if header.get("schema_version") != SCHEMA_VERSION:
        found = header.get("schema_version")
        raise UsageError(f"{path} has schema version {found}; this uncomp reads {SCHEMA_VERSION}", hint=_HINT)
    settings: dict[str, Any] = header["settings"]
    return settings


def _require_same(path: Path, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    keys = [key for key in {**theirs, **ours} if key not in theirs or key not in ours or theirs[key] != ours[key]]
    if keys:
        differences = "; ".join(f"{key} {_shown(theirs, key)} there, {_shown(ours, key)} now" for key in keys)
        raise UsageError(f"{path} holds results of other settings: {differences}", hint=_HINT)


def _shown(settings: dict[str, Any], key: str) -> str:
    return json.dumps(settings[key], ensure_ascii=False) if key in settings else "not set"


def _outcomes(path: Path, data: bytes) -> tuple[list[Outcome], int]:
    """The outcomes of the whole lines in `data`, and how many bytes those lines are."""
    records, whole = journal_lines(data)
    outcomes = [_outcome(path, number, record) for number, record in enumerate(records, start=2)]
    seen: dict[Key, int] = {}
    for number, outcome in enumerate(outcomes, start=2):
        if outcome.key in seen:
            raise UncompError(f"{path}: line {number} repeats line {seen[outcome.key]}", hint=_HINT)
        seen[outcome.key] = number
    return outcomes, whole


def _outcome(path: Path, number: int, record: Any) -> Outcome:
    good = isinstance(record, dict) and all(isinstance(record.get(key), kind) for key, kind in _REQUIRED.items())
    if good and all(isinstance(value, (int, float)) for value in record["metrics"].values()):
        try:
            return Outcome(**record)
        except TypeError:  # a field of a newer version
            pass
    raise UncompError(f"{path}: line {number} is not a result", hint=f"take the line out, or {_HINT}")


def _header_line(settings: Mapping[str, object]) -> bytes:
    return to_line({"schema_version": SCHEMA_VERSION, "kind": _KIND, "settings": dict(settings)})


def _outcome_line(outcome: Outcome) -> bytes:
    try:
        return to_line(outcome.to_dict())
    except ValueError as error:
        scores = [f"{metric} {value}" for metric, value in outcome.metrics.items() if not isfinite(value)]
        where = f"{outcome.setting} on {outcome.subtask} {outcome.index}"
        message = f"{where} has a score that is no number: {', '.join(scores) or 'coverage'}"
        raise UncompError(message, hint="the model's numbers overflowed: try --dtype float32") from error
