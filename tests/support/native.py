"""The C library as the sources are now, in every set of instructions that this CPU has."""

import ctypes
import mmap
from pathlib import Path

import pytest
import torch

from uncomp_cli.kernels import compiler, library
from uncomp_cli.kernels.library import LEVELS, Library, open_library
from uncomp_cli.kernels.matrix import Matrix

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


def multiply_beside_a_closed_page() -> None:
    """Every kind of numbers, right before a page that ends the process which reads it."""
    page, generator = mmap.PAGESIZE, torch.Generator().manual_seed(0)
    memory = mmap.mmap(-1, 17 * page)
    begin = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(begin + 16 * page), page, 0) == 0
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        for rows, cols in ((1, 1), (3, 40), (17, 33), (30, 64)):
            weight = torch.randn(rows, cols, generator=generator).to(dtype)
            offset = 16 * page - weight.nbytes
            placed = torch.frombuffer(memory, dtype=dtype, count=weight.numel(), offset=offset).view(rows, cols)
            placed.copy_(weight)
            states = torch.randn(2, cols, generator=generator)
            found = Matrix.of(placed).multiply(open_library(library.FILE), states)
            torch.testing.assert_close(found, states @ weight.float().T)
