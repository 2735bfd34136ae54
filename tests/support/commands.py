"""Command lines in processes of their own, on pipes or pseudo-terminals, that start at once.

They are forked from a server that has imported torch already, so that a test does not wait seconds for that; a test of
test_ask_streams.py holds one against a process that was started from nothing.
"""

import fcntl
import io
import json
import multiprocessing
import os
import pty
import select
import signal
import sys
import termios
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from multiprocessing import forkserver
from multiprocessing.reduction import DupFd
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

from uncomp_cli.cache.shelf import Shelf
from uncomp_cli.cli.app import main, run

ENDLESS = ("--temperature", "0.01")
"""An answer of the tiny model that is not greedy goes on although it repeats itself."""
RENAMED = tuple(f"--{old} is called " for old in ("force", "save-cache", "reuse", "explain-budget"))
PATIENCE_S = 60.0
PRELOADED = [
    "uncomp_cli.engine.engine", "uncomp_cli.asking.queue", "uncomp_cli.evals.judges.evaluation",
    "uncomp_cli.evals.tasks.maker", "transformers.models.auto.tokenization_auto", "pydantic.type_adapter",
    "sentencepiece", "matplotlib.figure", "uncomp_cli.cli.chat.loop", "prompt_toolkit", "pydantic.types",
]  # fmt: skip
"""What the commands import when they run: half a second of every process that would begin without it."""
Kind = Literal["pipe", "tty", "null", "full"]
get_checkpoint_conversion_mapping("llama")  # a thousand patterns are compiled here, not in each forked process


@dataclass
class Running:
    """A command line that runs: what it has written so far, and what can be done to it."""

    process: Any
    readers: dict[str, int]
    written: dict[str, bytes] = field(default_factory=lambda: {"stdout": b"", "stderr": b""})

    def wait_for(self, stream: str, text: str) -> None:
        """Return when `text` has come on `stream`."""
        self._pump(lambda: text.encode() in self.written[stream], f"{text!r} on {stream}")

    def wait_for_bytes(self, stream: str) -> None:
        """Return when anything has come on `stream`."""
        self._pump(lambda: self.written[stream] != b"", f"anything on {stream}")

    def interrupt(self) -> None:
        """Ctrl-C, as far as the process can tell."""
        os.kill(self.process.pid, signal.SIGINT)

    def finish(self) -> tuple[int, str, str]:
        """Exit code, standard output, standard error."""
        self._pump(lambda: False, "the end")
        self.process.join(PATIENCE_S)
        return self.process.exitcode, self.written["stdout"].decode(), self.written["stderr"].decode()

    def _pump(self, seen: Any, what: str) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while self.readers and not seen():
            if time.monotonic() > deadline:
                self.process.kill()
                raise AssertionError(f"waited in vain for {what}; so far: {self.written}")
            ready = select.select(list(self.readers.values()), [], [], 1)[0]
            for stream, reader in [item for item in self.readers.items() if item[1] in ready]:
                data = _read(reader)
                self.written[stream] += data.replace(b"\r\n", b"\n")
                if not data:
                    os.close(self.readers.pop(stream))
        assert seen() or what == "the end", f"it ended without {what}: {self.written}"


def _read(reader: int) -> bytes:
    try:
        return os.read(reader, 65536)
    except OSError:  # a pseudo-terminal says so when the other side is gone
        return b""


@dataclass
class Descriptor:
    """A file descriptor that a forked process inherits."""

    number: int

    def __getstate__(self) -> Any:
        return DupFd(self.number)

    def __setstate__(self, state: Any) -> None:
        self.number = state.detach()


def _run_main(streams: list[Descriptor], args: list[str], environment: Mapping[str, str]) -> None:
    os.setsid()
    for number, stream in enumerate(streams):
        os.dup2(stream.number, number)
        os.close(stream.number)
    if os.isatty(0):
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdin, sys.stdout = _text_stream(0, "r"), _text_stream(1, "w")
    sys.stderr = _text_stream(2, "w", line_buffering=True)
    torch.set_num_threads(1)
    sys.argv = ["uncomp", *args]
    main()


def _text_stream(number: int, mode: str, *, line_buffering: bool = False) -> io.TextIOWrapper:
    raw = io.FileIO(number, mode, closefd=False)
    buffer = io.BufferedReader(raw) if mode == "r" else io.BufferedWriter(raw)
    return io.TextIOWrapper(buffer, encoding="utf-8", line_buffering=line_buffering)


def environment(**changes: str) -> dict[str, str]:
    """The environment of a started process: ours, with a plain capable terminal and no settings of the user's."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("UNCOMP_") and key != "NO_COLOR"}
    if "UNCOMP_CACHE_DIR" in os.environ:
        kept["UNCOMP_CACHE_DIR"] = os.environ["UNCOMP_CACHE_DIR"]
    defaults = {"TERM": "xterm-256color", "COLUMNS": "200", "OMP_NUM_THREADS": "1", "UNCOMP_CONFIG": os.devnull}
    return {**kept, **defaults, **changes}


@cache
def fork_server() -> Any:
    """The context that forks from a process in which everything has been imported, wherever we are now."""
    tests = Path(__file__).parent.parent
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["support.commands", *PRELOADED])
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PYTHONPATH", os.pathsep.join([str(tests), str(tests.parent)]))
        forkserver.ensure_running()
    return context


def start_on(descriptors: list[int], args: list[str], **changes: str) -> Any:
    """Start the command line on three descriptors of ours."""
    context = fork_server()
    streams = [Descriptor(number) for number in descriptors]
    process = context.Process(target=_run_main, args=(streams, args, environment(**changes)), daemon=True)
    process.start()
    return process


def start(
    *args: str, stdin: bytes | None = b"", stdout: Kind = "pipe", stderr: Kind = "pipe", **changes: str
) -> Running:
    """Start the command line; `stdin` None is a terminal on which nothing is typed."""
    out, err = _ends(stdout), _ends(stderr)
    typed, read = pty.openpty() if stdin is None else os.pipe()[::-1]
    process = start_on([read, out[1], err[1]], list(args), **changes)
    for descriptor in (read, out[1], err[1]):
        os.close(descriptor)
    if stdin is not None:
        os.write(typed, stdin)  # what the tests pipe in is shorter than a pipe's buffer
        os.close(typed)
    return Running(process, {"stdout": out[0], "stderr": err[0]})


def run_here(*args: str, stdin: bytes = b"", **changes: str) -> tuple[int, str, str]:
    """Exit code and both streams of a command line that needs no process of its own, on pipes as far as it can tell."""
    read, out, err = (io.TextIOWrapper(io.BytesIO(given), "utf-8") for given in (stdin, b"", b""))
    wanted = environment(**changes)
    with pytest.MonkeyPatch.context() as patched, warnings.catch_warnings():
        for name in os.environ.keys() - wanted.keys():
            patched.delenv(name)
        for name, value in wanted.items():
            patched.setenv(name, value)
        for name, stream in (("stdin", read), ("stdout", out), ("stderr", err)):
            patched.setattr(sys, name, stream)
        patched.setattr(sys, "argv", ["uncomp", *args])
        warnings.simplefilter("ignore")  # as main does
        code = run(args)
    for stream in (out, err):
        stream.seek(0)
    return code, out.read(), err.read()


def _ends(kind: Kind) -> tuple[int, int]:
    if kind in ("null", "full"):
        reader, writer = os.pipe()
        os.close(writer)
        return reader, os.open(f"/dev/{kind}", os.O_WRONLY)
    return pty.openpty() if kind == "tty" else os.pipe()


Ask = Callable[..., tuple[int, str, str]]
"""Runs `uncomp ask`: exit code, standard output, standard error."""


def records(stdout: str) -> list[dict[str, Any]]:
    """What --json wrote, an object a line."""
    return [json.loads(line) for line in stdout.splitlines()]


@dataclass(frozen=True)
class Asker:
    """Runs `uncomp ask` on a model, with these options and a cache directory of its own."""

    model: Path
    folder: Path
    options: tuple[str, ...]

    @property
    def shelf(self) -> Shelf:
        return Shelf(self.folder / "documents")

    def __call__(self, *args: str) -> tuple[int, str, str]:
        return run_here("ask", "-m", str(self.model), *self.options, *args, UNCOMP_CACHE_DIR=str(self.folder))

    def records(self, *args: str) -> list[dict[str, Any]]:
        code, out, said = self(*args, "--json")
        assert code == 0, said
        return records(out)


def last_object(stdout: str) -> dict[str, Any]:
    """The JSON object on the last line."""
    record: dict[str, Any] = json.loads(stdout.splitlines()[-1])
    return record


def two_lines(stderr: str) -> tuple[str, str]:
    """The message and the hint of a refusal, which must be all that there is, progress and the preset taken aside."""
    told = ("loading ", "measuring", "preparing", "weights and one sample need ")
    aside = (*told, "preset balanced was measured on ", *RENAMED)
    lines = [line for line in stderr.splitlines() if not line.startswith(aside)]
    assert [line.partition(":")[0] for line in lines] == ["error", "hint"], stderr
    return lines[0].removeprefix("error: "), lines[1].removeprefix("hint: ")
