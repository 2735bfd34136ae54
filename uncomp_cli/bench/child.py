"""A run in a child process that ends when we do: the job in, ticks while it works, the measurement out."""

import os
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from tempfile import TemporaryFile

from uncomp_cli.bench.measurement import Job, Measurement, decode_result
from uncomp_cli.errors import OutOfMemoryError, UncompError

__all__ = ["measure"]

_TICK_S = 0.5
_PACKAGE_PARENT = Path(__file__).resolve().parents[2]
_COMMAND = (sys.executable, "-m", "uncomp_cli.bench.bench_process")
_MEMORY_HINT = "use fewer --tokens, or --quantize int8"


def measure(job: Job) -> Generator[None, None, Measurement]:
    """Run `job`, yielding about twice a second; a caller that stops early, or Ctrl-C, kills the child.

    Raises the error that the child met, OutOfMemoryError when the system killed it.
    """
    path = os.pathsep.join(filter(None, [str(_PACKAGE_PARENT), os.environ.get("PYTHONPATH")]))
    with TemporaryFile("w+") as job_file:  # a pipe would fill up: communicate() sends nothing after its first timeout
        job_file.write(job.to_json() + "\n")
        job_file.seek(0)
        process = subprocess.Popen(
            _COMMAND,
            stdin=job_file,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
    with process:
        try:
            output, log = yield from _wait(process)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()  # after Ctrl-C Popen itself would not wait for the end
    try:
        return _result(process.returncode, output, log)
    except UncompError as error:
        error.add_note(f"In the process of the run:\n{log.strip()}")  # a traceback, which --debug shows
        raise


def _wait(process: "subprocess.Popen[str]") -> Generator[None, None, tuple[str, str]]:
    """Everything that the child wrote, once it has ended."""
    while True:
        try:
            return process.communicate(timeout=_TICK_S)
        except subprocess.TimeoutExpired:
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
