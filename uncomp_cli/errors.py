"""Every error that a user can meet, with the exit code it ends in.

    UncompError (1)
    ├── UsageError (2)              a value the user gave is wrong
    ├── DoesNotFitError (3)         refused with numbers: trained length, memory, budget floor
    ├── OutOfMemoryError (4)        memory ran out while working
    ├── ThresholdError (5)          a measured value is below --fail-under
    ├── ModelError (1)              a model cannot be found, fetched, read or run
    └── DocumentError (1)           a document cannot be read
        └── LockedError (1)         or only with a password

`message` says what was wrong and names the value; `hint` is the command or flag that mends it. The library raises;
only the command line prints and exits.
"""

import difflib
import errno
import os
import resource
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# torch says so in a RuntimeError on a CPU, and on a GPU in a class of its own, which is not imported here.
_MEMORY_WORDS = (
    *("can't allocate memory", "cannot allocate memory", "out of memory", "not enough memory"),
    *("bad_alloc", "failed to map segment", "error return without exception set"),  # native code in a small process
)
_FILES_WORDS = os.strerror(errno.EMFILE)
_LEAST_ADDRESS_BYTES = 800 * 2**20
_MEMORY_HINT = "use a smaller --budget, a shorter document or --quantize int8"
_DEBUG_HINT = "run it again with --debug for the traceback, and report it"


class UncompError(Exception):
    """Base of all errors raised on purpose; `exit_code` is the process's."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(UncompError):
    """A flag, variable, setting or argument has a value that cannot be used."""

    exit_code = 2


class DoesNotFitError(UncompError):
    """The request is understood and refused, because something would not fit."""

    exit_code = 3


class OutOfMemoryError(UncompError):
    """The machine ran out of memory."""

    exit_code = 4


class ThresholdError(UncompError):
    """A measured quality is below the threshold that the user set."""

    exit_code = 5


class ModelError(UncompError):
    """A model cannot be found, fetched, read or run."""


class DocumentError(UncompError):
    """A document cannot be read."""


class LockedError(DocumentError):
    """A document cannot be read without a password, or not with the one that was given."""


def require(condition: bool, message: str, *, hint: str) -> None:
    """Raise UsageError unless `condition` holds; to be true of a number it must be false of NaN."""
    if not condition:
        raise UsageError(message, hint=hint)


def did_you_mean(word: str, known: Iterable[str], otherwise: str, *, cutoff: float = 0.6) -> str:
    """A hint for a word that is not known: the nearest of those that are, or what helps `otherwise`."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=cutoff)
    return f"did you mean '{near[0]}'?" if near else otherwise


def is_out_of_memory(error: BaseException) -> bool:
    """Whether `error`, whoever raised it, says that memory ran out."""
    if isinstance(error, (MemoryError, OutOfMemoryError)) or type(error).__name__ == "OutOfMemoryError":
        return True
    native = isinstance(error, (RuntimeError, OSError, ImportError, SystemError))
    return (native or type(error).__name__ == "SafetensorError") and any(w in str(error).lower() for w in _MEMORY_WORDS)


def is_panic(error: BaseException) -> bool:
    """Whether a library in Rust gave up: its exception derives from BaseException, and has no public name."""
    return type(error).__name__ == "PanicException"


def memory_sizes() -> str:
    """What a process may use of its address space, and uses, where that is bounded: in a bracket, to be put behind."""
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most == resource.RLIM_INFINITY:
        return ""
    try:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):  # no such file system here
        return f" (ulimit -v allows {most / 2**20:,.0f} MiB)"
    return f" ({used / 2**20:,.0f} MiB of address space are in use, ulimit -v allows {most / 2**20:,.0f})"


def check_address_space() -> None:
    """Raise OutOfMemoryError where it holds no torch: with too little a library of it ends the process, unasked."""
    most = resource.getrlimit(resource.RLIMIT_AS)[0]
    if most != resource.RLIM_INFINITY and most < _LEAST_ADDRESS_BYTES:
        least = f"{_LEAST_ADDRESS_BYTES / 2**20:,.0f} MiB"
        message = f"torch and transformers alone take {least} of address space{memory_sizes()}"
        raise OutOfMemoryError(message, hint="allow more: ulimit -v unlimited")


def is_foreseen(error: BaseException) -> bool:
    """Whether what is beside it may go well all the same: it was raised on purpose, or memory ran out."""
    return isinstance(error, UncompError) or is_out_of_memory(error)


def lacks_room(error: BaseException) -> bool:
    """Whether it may go well when what is held beside it is gone."""
    return isinstance(error, DoesNotFitError) or is_out_of_memory(error)


@dataclass(frozen=True, slots=True)
class Failure:
    """What an error comes to: the two lines and the code."""

    message: str
    hint: str | None
    exit_code: int


def failure_of(error: BaseException) -> Failure:
    """What is told of any error; of one that nobody foresaw, what it is called."""
    if _FILES_WORDS in f"{error} {error.__cause__}":
        message, _, code = _told(error)
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return Failure(f"{message} (ulimit -n allows {most})", "allow more open files: ulimit -n 1024", code)
    return Failure(*_told(error))


def _told(error: BaseException) -> tuple[str, str | None, int]:
    if isinstance(error, UncompError):
        return error.message, error.hint, error.exit_code
    if is_out_of_memory(error):
        return f"out of memory{memory_sizes()}", _MEMORY_HINT, OutOfMemoryError.exit_code
    if isinstance(error, OSError) and error.strerror:
        place = f"{error.filename}: " if error.filename else ""
        return f"{place}{error.strerror}", "check the path, its permissions and the free space", 1
    detail = f": {error}" if str(error) else ""
    return f"internal error: {type(error).__name__}{detail}", _DEBUG_HINT, 1


def check_encodable(path: Path, what: str) -> None:
    """Raise UsageError for a path that is not UTF-8, which safetensors and tokenizers cannot open."""
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError as error:
        hint = "rename it, or set UNCOMP_CACHE_DIR to a directory with another name if it is the cache's"
        raise UsageError(f"{what} cannot be used: the path {path} is not UTF-8", hint=hint) from error
