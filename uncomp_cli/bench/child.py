"""A run in a child process that ends when we do: the job in, ticks while it works, the measurement out."""

import os
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

from uncomp_cli.bench.job import Job, Measurement, decode_result
from uncomp_cli.errors import OutOfMemoryError, UncompError

__all__ = ["measure"]

_TICK_S = 0.5
_PACKAGE_PARENT = Path(__file__).resolve().parents[2]
_COMMAND = (sys.executable, "-m", "uncomp_cli.bench.worker")
_MEMORY_HINT = "use fewer --tokens, or --quantize int8"


def measure(job: Job) -> Generator[None, None, Measurement]:
    """Run `job`, yielding about twice a second; a caller that stops early, or Ctrl-C, kills the child.

    Raises the error that the child met, OutOfMemoryError when the system killed it.
    """
    path = os.pathsep.join(filter(None, [str(_PACKAGE_PARENT), os.environ.get("PYTHONPATH")]))
    with subprocess.Popen(
        _COMMAND,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    ) as process:
        try:
            output, log = yield from _talk(process, job.to_json() + "\n")
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()  # after Ctrl-C Popen itself would not wait for the end
    return _result(process.returncode, output, log)


def _talk(process: "subprocess.Popen[str]", line: str) -> Generator[None, None, tuple[str, str]]:
    """Everything that the child wrote, once it has ended."""
    unsent: str | None = line
    while True:
        try:
            return process.communicate(unsent, timeout=_TICK_S)
        except subprocess.TimeoutExpired:
            unsent = None  # it is on its way: communicate() takes it only once
            yield


def _result(returncode: int, output: str, log: str) -> Measurement:
    lines = output.strip().splitlines()
    if returncode == 0 and lines:
        try:
            return decode_result(lines[-1])
        except ValueError as error:
            raise UncompError(f"a run wrote no result ({error})", hint="run it again with --debug") from error
    if returncode == -signal.SIGKILL or "bad_alloc" in log:
        raise OutOfMemoryError("a run was killed, most likely because memory ran out", hint=_MEMORY_HINT)
    last = (log.strip().splitlines() or ["no message"])[-1]
    raise UncompError(f"a run ended with code {returncode}: {last}", hint="run it again with --debug")
