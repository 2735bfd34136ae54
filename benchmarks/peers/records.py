"""Samples and results as lines of JSON. Standard library only: every peer's own environment reads and writes them.

A file is a header line `{"schema_version", "kind", "settings"}` and one object a line. A results file is only ever
appended to, a line at a time, so that a killed run continues where it stopped; a line that was cut off is dropped.
"""

import argparse
import gzip
import hashlib
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

SCHEMA_VERSION = 1
SAMPLES = "peer samples"
RESULTS = "peer results"
KEY = ("subtask", "tokens", "index", "query", "regime", "setting")
"""What makes a line of results unique."""

Line = dict[str, Any]


def say(text: str) -> None:
    """Progress, on stderr."""
    print(text, file=sys.stderr, flush=True)


def arguments_of(summary: str, *, model: str) -> argparse.ArgumentParser:
    """What every runner is told; `model` is what it runs."""
    parser = argparse.ArgumentParser(description=summary)
    parser.add_argument("--model", type=Path, required=True, help=model)
    parser.add_argument("--samples", type=Path, required=True, help="what export.py wrote")
    parser.add_argument("--out", type=Path, required=True, help="results, continued when they are there")
    parser.add_argument("--limit", type=int, help="the first so many samples")
    return parser


def add_threads(parser: argparse.ArgumentParser) -> None:
    """`--threads`, of a runner that is told them."""
    threads = int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    parser.add_argument("--threads", type=int, default=threads, help="default: OMP_NUM_THREADS, or all cores")


def read_lines(path: Path) -> tuple[Line, list[Line]]:
    """The header and the lines that follow, of a `.gz` too; a last line without its end is left out."""
    data = path.read_bytes()
    text = (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    header, *lines = [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
    return header, lines


def packed_or_not(path: Path) -> tuple[Path, Path]:
    """A file, and the same with gzip."""
    return path, path.with_name(f"{path.name}.gz")


def write_lines(path: Path, *, kind: str, settings: Line, lines: Iterable[Line]) -> int:
    """Write a whole file; the number of lines after its header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = -1
    with path.open("w", encoding="utf-8") as file:
        for line in ({"schema_version": SCHEMA_VERSION, "kind": kind, "settings": settings}, *lines):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            written += 1
    return written


def read_samples(path: Path) -> tuple[Line, list[Line]]:
    """How the samples were made (`made_with`, `command`), and they; ends the program for a file of another kind."""
    header, samples = read_lines(path)
    if header.get("kind") != SAMPLES:
        sys.exit(f"{path}: a file of {header.get('kind')!r}, not of {SAMPLES!r}; make one with export.py")
    return header["settings"], samples


def digest(sample: Line) -> str:
    """Sixteen hexadecimal digits that stand for a sample's token ids: the same ids were run, or they were not."""
    ids = [sample["context_ids"], sample["question_ids"], sample["answer_ids"]]
    return hashlib.sha256(json.dumps(ids).encode()).hexdigest()[:16]


def found_share(text: str, sample: Line) -> float:
    """`match` as uncomp judges it: the share of the accepted strings in `text`, or with need "any" whether one is."""
    found = [accepted.lower() in text.lower() for accepted in sample["accepted"]]
    return float(any(found)) if sample["need"] == "any" else sum(found) / max(1, len(found))


class Writing:
    """What greedy decoding writes for one sample, a token at a time; it is `done` where all that is accepted is found.

    `text` is what it says. An answer that is `exact` needs not be written: greedy decoding begins with the right one.
    """

    def __init__(self, sample: Line, decode: Callable[[list[int]], str], *, exact: bool) -> None:
        self.done = exact and found_share(sample["answer"], sample) == 1
        self.text: str = sample["answer"] if self.done else ""
        self._sample, self._decode, self._ids = sample, decode, list[int]()

    def push(self, token: int, stop_ids: Collection[int]) -> None:
        """Write a token on, or end with one of `stop_ids`; nothing when it is done."""
        if not self.done and token not in stop_ids:
            self._ids.append(token)
            self.text = self._decode(self._ids)
            self.done = self.share == 1 or len(self._ids) == self._sample["max_new_tokens"]
        else:
            self.done = True

    @property
    def share(self) -> float:
        """`match` of the text."""
        return found_share(self.text, self._sample)


def key_of(line: Line) -> tuple[Any, ...]:
    """The fields in KEY."""
    return tuple(line[name] for name in KEY)


def outcome(sample: Line, *, regime: str, setting: str, contestant: str, budget: str, **measured: Any) -> Line:
    """One line of results: the sample's names, the setting's, and what was measured."""
    names = {name: sample[name] for name in ("subtask", "index", "query", "tokens")}
    return {
        **names,
        "regime": regime,
        "setting": setting,
        "contestant": contestant,
        "budget": budget,
        "ids_sha256": digest(sample),
        **measured,
    }


class Results:
    """A results file that is appended to. A file from other settings is refused, naming both."""

    def __init__(self, path: Path, *, peer: str, settings: Line, run: Line) -> None:
        """`settings` must be equal to continue a file (`peer`, samples, model); `run` is for the report alone."""
        self.path = path
        wanted = {"peer": peer, **settings}
        self._where = {"cpu": run["cpu"]} if "cpu" in run else {}
        if path.exists() and path.stat().st_size:
            self.done = {key_of(line) for line in self._continued(wanted)}
        else:
            write_lines(path, kind=RESULTS, settings={**wanted, "run": run}, lines=[])
            self.done = set()

    def _continued(self, wanted: Line) -> list[Line]:
        text = self.path.read_bytes()
        os.truncate(self.path, text.rfind(b"\n") + 1)
        header, lines = read_lines(self.path)
        found = {name: value for name, value in header["settings"].items() if name != "run"}
        if header["kind"] != RESULTS or found != wanted:
            sys.exit(f"{self.path} has results of {found}, not of {wanted}; give another --out")
        return lines

    def missing(self, wanted: Iterable[Line]) -> Iterator[Line]:
        """Those of `wanted`, which have the fields in KEY, that are not in the file."""
        return (line for line in wanted if key_of(line) not in self.done)

    def append(self, line: Line) -> None:
        """Write one line through to the file, with the processor: a file may be continued on another machine."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**line, **self._where}, ensure_ascii=False) + "\n")
        self.done.add(key_of(line))


def command_line(*, folder: str = "benchmarks/peers") -> str:
    """This program's own command; it lies in `folder`. Other folders are left out: they are this machine's alone."""
    words = [Path(word).name if word.startswith(("/", "~", "..")) else word for word in sys.argv[1:]]
    return shlex.join(["python", f"{folder}/{Path(sys.argv[0]).name}", *words])


def about_run(versions: Mapping[str, str], made: Line, **more: Any) -> Line:
    """Where and how a run was made, for the report; `made` is how its samples were."""
    return {
        "command": command_line(),
        "samples_command": made["command"],
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "not set"),
        "versions": {"python": platform.python_version(), **versions},
        **more,
    }


def cpu_name() -> str:
    """The processor, as the system names it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
