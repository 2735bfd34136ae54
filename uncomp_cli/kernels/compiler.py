"""Build the C library: when the package is installed (hatch_build.py), or with `python -m uncomp_cli.kernels.compiler`.

The machine's own compiler does it where there is one (`cc`), else the one in the package `ziglang`. On x86-64 step.c is
compiled three times, for three sets of instructions, and attend.c four times; elsewhere once. Only the standard library
is used here: this file runs where the package is not installed yet.
"""

import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path

SOURCES = Path(__file__).parent
LIBRARY = "libuncomp.so"
_FLAGS = (
    "-O3",
    "-std=c11",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-math-errno",
    "-ffp-contract=off",
    "-fno-sanitize=undefined",
)
_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_LEVELS = {
    "plain": ("-O1",),  # for old CPUs only, and five times as soon compiled as with -O3
    "avx2": _AVX2,
    "avx512": (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"),
}
_ATTENTION_LEVELS = {**_LEVELS, "brain": (*_LEVELS["avx512"], "-mavx512bf16")}
_TIMEOUT_S = 300


class CompilerError(Exception):
    """The library cannot be built here."""


def compile_library(folder: Path) -> Path:
    """Build the library into `folder`. Raises CompilerError with the reason where no compiler does."""
    if sys.platform == "win32":
        raise CompilerError("the native library is not built on Windows")
    reasons = []
    for compiler in compilers():
        try:
            return _compile(compiler, folder)
        except (OSError, subprocess.SubprocessError) as error:
            reasons.append(f"{compiler[0]}: {_last_line(error)}")
    raise CompilerError("; ".join(reasons) or "there is no C compiler, and no package ziglang")


def compilers() -> Iterator[list[str]]:
    """The commands that may compile, the best first."""
    if shutil.which("cc"):
        yield ["cc"]
    if find_spec("ziglang") is not None:
        # Given a target, zig compiles for any CPU of its kind, and for systems as old as manylinux2014.
        machine = platform.machine()
        old = ["-target", f"{machine}-linux-gnu.2.17"] if platform.libc_ver()[0] == "glibc" else ["-mcpu=baseline"]
        yield [sys.executable, "-m", "ziglang", "cc", *old]


def _compile(compiler: Sequence[str], folder: Path) -> Path:
    with tempfile.TemporaryDirectory() as scratch:
        parts = list(_parts(platform.machine() in ("x86_64", "AMD64")))
        objects = [Path(scratch) / f"{name}.o" for name in (*("-".join(part[:2]) for part in parts), "pool")]
        for (source, level, flags), made in zip(parts, objects, strict=False):
            _run(compiler, *_FLAGS, *flags, f"-DLEVEL={level}", "-c", SOURCES / f"{source}.c", "-o", made)
        _run(compiler, *_FLAGS, "-pthread", "-D_GNU_SOURCE", "-c", SOURCES / "pool.c", "-o", objects[-1])
        bound = ("-Wl,-Bsymbolic",) if sys.platform == "linux" else ()
        linked = Path(scratch) / LIBRARY
        _run(compiler, "-shared", *bound, "-pthread", "-o", linked, *objects)
        target = folder / LIBRARY
        target.unlink(missing_ok=True)  # who has it open keeps the old file
        shutil.copyfile(linked, target)
    return target


def _parts(levelled: bool) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """What is compiled for each set of instructions: a source, the set's name and the flags."""
    for source, levels in (("step", _LEVELS), ("attend", _ATTENTION_LEVELS)):
        for level, flags in levels.items() if levelled else (("plain", ()),):
            yield source, level, flags


def _run(compiler: Sequence[str], *arguments: str | Path) -> None:
    subprocess.run([*compiler, *map(str, arguments)], check=True, capture_output=True, text=True, timeout=_TIMEOUT_S)


def _last_line(error: Exception) -> str:
    lines = str(getattr(error, "stderr", "") or error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


if __name__ == "__main__":
    try:
        compile_library(SOURCES)
    except CompilerError as error:
        raise SystemExit(f"error: the native library was not built: {error}") from error
