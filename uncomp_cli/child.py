"""A Python process of ours that can be stopped: what is not trusted runs in it, and the operating system bounds it.

    child = Child("uncomp_cli.models.template")       the module's `serve` reads lines from standard input and answers
    child.send(line); child.hear()                    b"" where it has ended
    confine(memory_bytes=…), allow(seconds)           what it calls itself: more than that ends it, or is a MemoryError

It imports what its module imports, and is in a session of its own, so that Ctrl-C is for us; when we are gone its input
ends, and so does it. One that is confined writes no file; one that has a part of a model (asking/follower.py) is not.
"""

import contextlib
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

_PAGE_BYTES = resource.getpagesize()
_STATM = Path("/proc/self/statm")


class Child:
    """It is started when it is needed, or before, and anew when it was stopped; with `environment` beside ours."""

    def __init__(self, module: str, environment: Mapping[str, str] | None = None) -> None:
        # Not as `-m`, which would look for modules in the current directory first: whose files lie there is not known.
        root = str(Path(__file__).parents[1])
        self._program = f"import sys; sys.path.insert(0, {root!r}); from {module} import serve; serve()"
        self._environment = environment or {}
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        """Start it unless it runs."""
        if self.process is None or self.process.poll() is not None:
            self.stop()
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", self._program],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                # A thread takes address space.
                env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", **self._environment},
            )
        return self.process

    def send(self, *parts: bytes) -> None:
        """Give it something; that it has ended is seen when it is heard."""
        stream = self.start().stdin
        if stream is None:
            raise RuntimeError("a child without pipes")
        with contextlib.suppress(BrokenPipeError):
            for part in parts:
                stream.write(part)
            stream.flush()

    def hear(self) -> bytes:
        """Its next line, whole; b"" where it has ended."""
        stream = None if self.process is None else self.process.stdout
        line = b"" if stream is None else stream.readline()
        return line if line.endswith(b"\n") else b""

    def kill(self) -> None:
        """End it while another thread waits for its line, which is then b""; stop() follows."""
        process = self.process
        if process is not None:
            process.kill()

    def stop(self, *, wait_s: float = 0) -> int | None:
        """End it, or wait that long for its end; returns how it ended, None when there was none."""
        process, self.process = self.process, None
        if process is None:
            return None
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)
        process.kill()
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        return code


def confine(*, memory_bytes: int | None = None) -> None:
    """In the child: no file is written, memory is bounded for good unless it is None, and an alarm ends the process."""
    kinds = [(resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)]
    for kind, most in kinds if memory_bytes is None else [*kinds, (resource.RLIMIT_AS, memory_bytes)]:
        _bound(kind, most, for_good=True)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def allow(seconds: float) -> None:
    """In the child: it may go on for so long from now on, 0 is for ever. What no Python code would end ends it."""
    signal.setitimer(signal.ITIMER_REAL, seconds)


def bound_memory(count_bytes: int) -> None:
    """In the child: until the next call it may have so much address space; more is a MemoryError, or its end."""
    _bound(resource.RLIMIT_AS, count_bytes)


def address_bytes() -> int:
    """Address space that this process has; 0 where the system does not tell."""
    try:
        return int(_STATM.read_text().split()[0]) * _PAGE_BYTES
    except (OSError, ValueError, IndexError):
        return 0


def usable_cores() -> int:
    """So many processes can work at once: the cores that this one may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _bound(kind: int, most: int, *, for_good: bool = False) -> None:
    with contextlib.suppress(ValueError, OSError):  # not every system bounds all of these
        hard = resource.getrlimit(kind)[1]
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (bound, bound if for_good else hard))
