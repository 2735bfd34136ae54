"""The header of a GGUF file, walked before anything is allocated by what it says.

A header is counts, lengths and offsets. A reader that believes them reads past the end for as long as they say, so each
is held against the bytes that are left: a count by the least that so many need, a tensor by the bytes of the file.

    magic, version, tensors, pairs | key, type, value for each pair | name, dimensions, type, offset for each tensor

(ggml's docs/gguf.md.) What values mean is not looked at, but that text is text, and that every layer has a tensor.
"""

import mmap
import struct
from pathlib import Path

from uncomp_cli.errors import ModelError

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value, by the number of its type."""
_STRING, _ARRAY = 8, 9
_LEAST_TENSOR_BYTES = 8 + 4 + 4 + 8
_LEAST_PAIR_BYTES = 8 + 4 + 1
_MOST_DIMENSIONS, _MOST_NESTED = 4, 4
_LONGEST_PIECE = 4096
"""Bytes of a piece of a vocabulary: what is longer makes no sense and takes for ever to cut."""
_VOCABULARY = (b"tokenizer.ggml.tokens", b"tokenizer.ggml.merges")


class _Walk:
    """Where in a header we are; every step looks first whether the file goes on so far."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.at, self.order, self.tensors = data, 0, "<", 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def skip(self, count: int) -> int:
        """Go on by as many bytes; returns where they begin."""
        if count > self.left:
            raise ValueError(f"it goes on for {count:,} bytes where {self.left:,} are left")
        first = self.at
        self.at += count
        return first

    def number(self, form: str = "Q") -> int:
        size = struct.calcsize(form)
        (found,) = struct.unpack_from(self.order + form, self.data, self.skip(size))
        return int(found)

    def count(self, least_bytes: int, what: str) -> int:
        """How many there are of something that takes `least_bytes` each."""
        found = self.number()
        if found * least_bytes > self.left:
            raise ValueError(f"it counts {found:,} {what} where {self.left:,} bytes are left")
        return found

    def text(self, *, most: int | None = None) -> bytes:
        """A string of UTF-8."""
        length = self.number()
        if most is not None and length > most:
            raise ValueError(f"a piece of its vocabulary has {length:,} bytes")
        first = self.skip(length)
        found = self.data[first : self.at]
        found.decode()
        return found


def check_preamble(path: Path) -> None:
    """Raise ModelError for a file that is no GGUF, or whose header promises more than the file has."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _check(_Walk(data))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}", hint="check the path") from error
    except ValueError as error:  # of text that is not UTF-8, and of an empty file, as well
        hint = "the file is damaged or cut short: fetch it again"
        raise ModelError(f"{path} is not a readable GGUF file: {error}", hint=hint) from error


def _check(walk: _Walk) -> None:
    if walk.data[: walk.skip(4) + 4] != b"GGUF":
        raise ValueError("it does not begin as one")
    version = walk.number("I")
    if not version & 0xFFFF:  # written by a machine of the other byte order
        walk.order = ">"
        version = struct.unpack(">I", struct.pack("<I", version))[0]
    if version not in (2, 3):
        raise ValueError(f"it is of version {version}")
    walk.tensors = walk.count(_LEAST_TENSOR_BYTES, "tensors")
    for _ in range(walk.count(_LEAST_PAIR_BYTES, "pairs")):
        _check_pair(walk)
    for _ in range(walk.tensors):
        _check_tensor(walk)


def _check_pair(walk: _Walk) -> None:
    key, kind = walk.text(), walk.number("I")
    if key.endswith(b".block_count") and kind in _SIZES:
        layers = int.from_bytes(walk.data[walk.at : walk.at + _SIZES[kind]], "little" if walk.order == "<" else "big")
        if layers > walk.tensors:
            raise ValueError(f"it has {layers:,} layers and {walk.tensors:,} tensors")
    _check_value(walk, kind, longest=_LONGEST_PIECE if key in _VOCABULARY else None)


def _check_value(walk: _Walk, kind: int, *, longest: int | None = None, nested: int = 0) -> None:
    if kind == _STRING:
        walk.text(most=longest)
    elif kind == _ARRAY:
        if nested == _MOST_NESTED:
            raise ValueError("its lists lie too deep in each other")
        inner = walk.number("I")
        count = walk.count(_SIZES.get(inner, 8), "values")
        if inner in _SIZES:
            walk.skip(count * _SIZES[inner])
            return
        for _ in range(count):
            _check_value(walk, inner, longest=longest, nested=nested + 1)
    elif kind in _SIZES:
        walk.skip(_SIZES[kind])
    else:
        raise ValueError(f"it has a value of type {kind}")


def _check_tensor(walk: _Walk) -> None:
    walk.text()
    dimensions = walk.number("I")
    if dimensions > _MOST_DIMENSIONS:
        raise ValueError(f"a tensor has {dimensions:,} dimensions")
    elements = 1
    for _ in range(dimensions):
        elements *= walk.number()
    walk.number("I")
    offset = walk.number()
    # The narrowest tensors have 256 elements in 50 bytes: none has fewer bytes than an eighth of its elements.
    if offset + elements // 8 > len(walk.data):
        raise ValueError(f"a tensor of {elements:,} elements from byte {offset:,} on lies outside")
