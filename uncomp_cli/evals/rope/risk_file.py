"""The answers of a risk calibration on the disk, one a line, so that a command that was stopped goes on.

The first line says what all share: model, preset, RoPE, text and seed. A file of other settings is not gone on from.
"""

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np

from uncomp_cli.calibrate.risk_fit import RiskAnswer
from uncomp_cli.errors import UsageError
from uncomp_cli.evals.line_file import LineFile, first_line, lock, writing
from uncomp_cli.files import append, cut, journal_lines, read_from, to_line
from uncomp_cli.files import set_aside as rename_aside

__all__ = ["RiskFile", "RiskLine", "set_aside"]

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class RiskLine:
    """The answer to the sample of this digest; `entropy` [T][K] of its tokens in every head is empty for one token."""

    sha256: str
    subtask: str
    tokens: int
    depth: float | None
    wrong: bool
    text: str
    output_entropy: float
    entropy: list[list[float]]

    def answer(self) -> RiskAnswer:
        """What a curve is fitted to."""
        return RiskAnswer(self.tokens, self.wrong, np.array(self.entropy), self.output_entropy)


class RiskFile(LineFile):
    """Lines that were measured, by their samples' digests; `append` writes one more, on the disk at once."""

    def __init__(self, path: Path, descriptor: int, lines: list[RiskLine]) -> None:
        super().__init__(path, descriptor)
        self.done = {line.sha256: line for line in lines}

    @classmethod
    def open(cls, path: Path, settings: Mapping[str, Any]) -> Self:
        """A new file, or one of the same settings to go on with. Raises UsageError for one of others."""
        header = to_line({"schema_version": SCHEMA_VERSION, "measured": "risk", **settings})
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                lock(path, descriptor, program="uncomp calibrate")
                found = first_line(path, descriptor)
                if found and found != header:
                    raise UsageError(f"{path} was measured with other settings", hint="--fresh sets it aside")
                if not found:
                    append(descriptor, header)
                return cls(path, descriptor, _whole_lines(descriptor, len(header)))
            except BaseException:
                os.close(descriptor)
                raise

    def append(self, line: RiskLine) -> None:
        """Write `line`."""
        with writing(self.path):
            append(self._descriptor, to_line(asdict(line)))
        self.done[line.sha256] = line


def _whole_lines(descriptor: int, start: int) -> list[RiskLine]:
    """The lines behind the header; a torn last one is cut off, so that the next begins on a line of its own."""
    records, whole = journal_lines(read_from(descriptor, start))
    cut(descriptor, start + whole)
    keys = {item.name for item in fields(RiskLine)}
    return [RiskLine(**record) for record in records if isinstance(record, dict) and set(record) == keys]


def set_aside(path: Path) -> Path | None:
    """Rename the file to NAME.1.jsonl, or the next free number; None when there is none."""
    if not path.exists():
        return None
    with writing(path):
        return rename_aside(path, before_suffix=True)[0]
