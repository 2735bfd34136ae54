"""The C library, by ctypes: its structures, which instructions of this CPU it uses, and why it is not there.

It is built when the package is installed (compiler.py) and lies beside this file. Where it could not be built, is of
another version or another machine's, everything runs by torch's operations as before: `find` then returns None, and
`state` says why. What the structures' fields mean stands in step.h; bounds are checked by those who fill them.
"""

import ctypes
from ctypes import POINTER, Structure, c_double, c_int64, c_void_p
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path
from struct import Struct

from uncomp_cli.errors import ModelError

FILE = Path(__file__).parent / "libuncomp.so"
HINT = "python -m uncomp_cli.kernels.compiler"
LEVELS = ("plain", "avx2", "avx512")
BESIDE = 2
"""Numbers behind a head's output in what ATTEND leaves to MERGE."""
_VERSION = 5
_ELF = Struct("<40xQ10xHH2x")
"""Of a header of 64 bits: where the table of sections begins, how long an entry is, how many there are."""
_MOST_HEAPS = -8
"""M_ARENA_MAX of malloc.h."""


class Kind(IntEnum):
    """How numbers are stored; the names from Q8_0 on are GGUF's (blocks.h)."""

    FLOAT32 = 0
    FLOAT16 = 1
    BFLOAT16 = 2
    Q8_0 = 3
    Q4_0 = 4
    Q4_1 = 5
    Q5_0 = 6
    Q5_1 = 7
    Q4_K = 8
    Q5_K = 9
    Q6_K = 10


@dataclass(frozen=True, slots=True)
class Block:
    """Columns and bytes of a block of a GGUF, and the bytes of sixteen, as one tile."""

    cols: int
    block_bytes: int
    tile_bytes: int


BLOCKS = {
    Kind.Q8_0: Block(32, 34, 544),
    Kind.Q4_0: Block(32, 18, 288),
    Kind.Q4_1: Block(32, 20, 320),
    Kind.Q5_0: Block(32, 22, 352),
    Kind.Q5_1: Block(32, 24, 384),
    Kind.Q4_K: Block(256, 144, 2368),
    Kind.Q5_K: Block(256, 176, 2880),
    Kind.Q6_K: Block(256, 210, 3360),
}
TILE_ROWS = 16
MOST_ROWS = 8
"""Rows of one product."""
STEP_ROWS = 16
"""Rows of one step."""


def kind_of(dtype: object) -> Kind | None:
    """How a torch type is stored; None for one that the library does not read."""
    return Kind.__members__.get(str(dtype).removeprefix("torch.").upper())


class Code(IntEnum):
    """What an operation does."""

    EMBED = 0
    NORM = 1
    ADD = 2
    PRODUCT = 3
    GATED = 4
    ATTEND = 5
    MERGE = 6


class Space(IntEnum):
    """Whose memory a place is in: all threads', each thread's own, or the caller's output."""

    SHARED = 0
    OWN = 1
    OUTPUT = 2


class Gate(IntEnum):
    """What a gate is passed through."""

    SILU = 0
    GELU = 1


class Place(Structure):
    """Where numbers are, in floats from the beginning of a space."""

    _fields_ = (("space", c_int64), ("at", c_int64))


class Operation(Structure):
    """One operation of a program."""

    _fields_ = (
        *((name, c_int64) for name in ("code", "wait", "narrow")),
        *((name, Place) for name in ("source", "target")),
        *((name, c_int64) for name in ("rows", "cols", "kind", "gate")),
        *((name, c_void_p) for name in ("weight", "second", "bias", "second_bias")),
        *((name, c_double) for name in ("scale", "eps")),
        *((name, Place) for name in ("scratch", "kept")),
        *((name, c_int64) for name in ("layer", "heads", "groups", "width")),
        *((name, c_int64) for name in ("turned", "turns", "window", "norm_width")),
        *((name, c_void_p) for name in ("query_norm", "key_norm")),
    )


class Fewer(Structure):
    """A head's entries in 8 or 4 bits."""

    _fields_ = (
        *((name, c_void_p) for name in ("key_codes", "value_codes")),
        *((name, c_void_p) for name in ("key_scales", "key_zeros", "value_scales", "value_zeros")),
        *((name, c_int64) for name in ("count", "key_bits", "value_bits", "groups", "group")),
    )


class Held(Structure):
    """One layer of a cache, of any number of strands; `ends` is advanced by a step."""

    _fields_ = (
        *((name, c_void_p) for name in ("keys", "values", "positions", "starts", "ends", "fewer")),
        ("kind", c_int64),
    )


class Program(Structure):
    """Operations and the memory they work in."""

    _fields_ = (
        ("operations", POINTER(Operation)),
        *((name, c_int64) for name in ("count", "layers", "groups")),
        *((name, c_void_p) for name in ("shared", "own", "blocks")),
        *((name, c_int64) for name in ("shared_floats", "own_floats", "rows", "block_floats")),
    )


class Step(Structure):
    """What one run of a program is given."""

    _fields_ = (
        *((name, c_int64) for name in ("rows", "strands", "first_logits")),
        *((name, c_void_p) for name in ("tokens", "positions", "firsts", "turns")),
        ("turns_floats", c_int64),
        *((name, c_void_p) for name in ("output", "cache", "before")),
    )


class Product(Structure):
    """A matrix [rows, cols] times `count` rows of input."""

    _fields_ = (
        *((name, c_int64) for name in ("kind", "rows", "cols", "count")),
        *((name, c_void_p) for name in ("weight", "input", "output", "scratch")),
        ("scratch_floats", c_int64),
    )


class Change(Structure):
    """A file's blocks that become tiles, or tiles that become numbers: all rows, or those that are picked."""

    _fields_ = (
        *((name, c_int64) for name in ("kind", "rows", "cols")),
        *((name, c_void_p) for name in ("source", "target", "picked")),
    )


class Outlook(Structure):
    """Many tokens that look back over entries and themselves (outlook.py)."""

    _fields_ = (
        *((name, c_int64) for name in ("heads", "groups", "width", "tokens", "past", "window")),
        *((name, c_void_p) for name in ("queries", "keys", "values", "past_keys", "past_values", "output")),
        *((name, c_int64) for name in ("query_head", "query_token", "own_head", "own_token")),
        *((name, c_int64) for name in ("past_head", "past_token", "output_head", "output_token")),
        ("scale", c_double),
        *((name, c_void_p) for name in ("sinks", "packed_keys", "packed_values", "scratch")),
        *((name, c_int64) for name in ("scratch_floats", "taken")),
    )


_DECLARED = (Operation, Fewer, Held, Program, Step, Product, Change, Outlook)
_GIVEN = {"step": (Program, Step), "product": (Product,), "pack": (Change,), "unpack": (Change,), "attend": (Outlook,)}


@dataclass(frozen=True, slots=True)
class Library:
    """The library, opened, and the instructions that it is to use."""

    handle: ctypes.CDLL
    level: str
    has_brain: bool = False
    """Whether `attend` may be narrow: this CPU multiplies bfloat16."""

    def __deepcopy__(self, memo: object) -> "Library":
        """There is one in a process: a copied model has the same."""
        return self

    def step(self, program: Program, step: Step, threads: int) -> None:
        """Run a program."""
        self.handle.uncomp_step(LEVELS.index(self.level), ctypes.byref(program), ctypes.byref(step), threads)

    def product(self, product: Product, threads: int) -> None:
        """Multiply few rows."""
        self.handle.uncomp_product(LEVELS.index(self.level), ctypes.byref(product), threads)

    def pack(self, change: Change, threads: int) -> None:
        """Blocks become tiles."""
        self.handle.uncomp_pack(LEVELS.index(self.level), ctypes.byref(change), threads)

    def unpack(self, change: Change, threads: int) -> None:
        """Tiles become numbers."""
        self.handle.uncomp_unpack(LEVELS.index(self.level), ctypes.byref(change), threads)

    def attend(self, outlook: Outlook, threads: int, *, narrow: bool) -> None:
        """Attention of many tokens."""
        level = len(LEVELS) if narrow and self.has_brain else LEVELS.index(self.level)
        self.handle.uncomp_attend(level, ctypes.byref(outlook), threads)


@cache
def find() -> Library | None:
    """The library with the best instructions of this CPU, or None."""
    try:
        return open_library(FILE)
    except ModelError:
        return None


def state() -> str:
    """What there is, in one line."""
    try:
        return f"one call a token, {open_library(FILE).level}"
    except ModelError as error:
        return f"{error.message}, so tokens are written by torch's operations, some times slower: {error.hint}"


def give_back() -> None:
    """Return freed memory to the system, which glibc keeps for later."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def share_heap() -> None:
    """Let threads that begin later take memory from the one heap; glibc has others for them, of 64 MiB with gaps."""
    tune = getattr(ctypes.CDLL(None), "mallopt", None)
    if tune is not None:
        tune(_MOST_HEAPS, 1)


def _is_cut(path: Path) -> bool:
    """Whether an ELF file ends before its table of sections, which is its last part."""
    with path.open("rb") as file:
        head = file.read(_ELF.size)
    if len(head) < _ELF.size or not head.startswith(b"\x7fELF\x02\x01"):
        return False  # another system's: its loader looks for itself
    at, each, count = _ELF.unpack(head)
    return bool(at + each * count > path.stat().st_size)


def open_library(path: Path, level: str | None = None) -> Library:
    """Open the library in `path`. Raises ModelError where it is missing, damaged, another version's or cannot run."""
    try:
        if _is_cut(path):
            raise OSError("file cut short")  # its pages that are not there would end the process when they are read
        handle = ctypes.CDLL(str(path))
        for name in ("version", "level", "brain", "size"):
            getattr(handle, f"uncomp_{name}").restype = c_int64
        handle.uncomp_size.argtypes = (c_int64,)
        sizes = [handle.uncomp_size(index) for index in range(len(_DECLARED))]
        version, best, brain = handle.uncomp_version(), int(handle.uncomp_level()), bool(handle.uncomp_brain())
    except (OSError, AttributeError) as error:
        reason = "was not built" if not path.exists() else f"cannot be opened ({error})"
        raise ModelError(f"the native library {reason}", hint=HINT) from error
    if version != _VERSION or sizes != [ctypes.sizeof(declared) for declared in _DECLARED]:
        raise ModelError("the native library is of another version", hint=HINT)
    if level is not None and LEVELS.index(level) > best:
        raise ModelError(f"this CPU has no {level}", hint=f"use {LEVELS[best]}")
    for name, given in _GIVEN.items():
        function = getattr(handle, f"uncomp_{name}")
        function.restype = None
        function.argtypes = (c_int64, *map(POINTER, given), c_int64)
    return Library(handle, level or LEVELS[best], brain and level in (None, LEVELS[-1]))
