"""Downloads run in a child process: it can be stopped at once, and prints nothing on our terminal.

A thread could not be: one that is left inside a library when the interpreter ends takes the process down with it.
Progress is the size of what has arrived so far.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["last_error", "running", "watch"]

TICK_S = 0.2
STOP_S = 5.0


@contextmanager
def running(command: list[str], scratch: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A child process with its temporary files in `scratch`, stopped at the end if it still runs."""
    environment = {**os.environ, "TMPDIR": str(scratch), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=output, env=environment
        )
        try:
            yield process
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a child process, first politely."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def watch(process: subprocess.Popen[bytes], directory: Path) -> Iterator[int]:
    """Bytes below `directory`, again and again until the process ends."""
    while process.poll() is None:
        try:
            process.wait(TICK_S)
        except subprocess.TimeoutExpired:
            yield arrived_bytes(directory)


def arrived_bytes(directory: Path) -> int:
    """Bytes of all files below `directory`; files may vanish meanwhile."""
    total = 0
    for root, _, names in os.walk(directory):
        for name in names:
            try:
                total += (Path(root) / name).stat().st_size
            except OSError:
                continue
    return total


def last_error(log: Path) -> str:
    """The last line that tells of an error, else the last line, of what a child wrote."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR:").strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["no message"])[-1]
