"""The C library as the sources are now, in every set of instructions that this CPU has."""

import ctypes
from pathlib import Path

import pytest

from uncomp_cli.kernels import compiler, library
from uncomp_cli.kernels.library import LEVELS, Library, open_library

OF_GLIBC = pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "malloc_trim"),
    reason="no glibc, whose malloc is told what to hold",
)


def fresh_library() -> Path:
    """The library's file, as its sources are now; skipped where there is none and nothing to build it with."""
    sources = [path for pattern in ("*.c", "*.h") for path in library.FILE.parent.glob(pattern)]
    if not library.FILE.exists() and not any(compiler.compilers()):
        pytest.skip("no native library, no C compiler, no ziglang: tokens are written by torch's operations")
    if not library.FILE.exists() or library.FILE.stat().st_mtime < max(path.stat().st_mtime for path in sources):
        pytest.fail(f"the native library is not built since its sources changed: {library.HINT}")
    return library.FILE


def levels() -> list[Library]:
    """The library by each of its levels that can run here, the best last."""
    path = fresh_library()
    best = LEVELS.index(open_library(path).level)
    return [open_library(path, level) for level in LEVELS[: best + 1]]
