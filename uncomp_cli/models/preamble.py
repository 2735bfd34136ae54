"""The header of a GGUF file, walked before anything is allocated by what it says.

A header is counts, lengths and offsets. A reader that believes them reads past the end for as long as they say, so each
is held against the bytes that are left: a count by the least that so many need, a tensor by the bytes of the file.

    magic, version, tensors, pairs | key, type, value for each pair | name, dimensions, type, offset for each tensor

(ggml's docs/gguf.md.) What values mean is not looked at, but that text is text, and that every layer has a tensor. What
is left of the walk is where each tensor lies; a model may be of several files, `-00001-of-00003.gguf`.
"""

import mmap
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
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
_DAMAGED = "the file is damaged or cut short: fetch it again"
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.gguf)", re.IGNORECASE)
_ALIGNED = 32
"""Bytes, where a file does not say itself at which tensors begin."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a file: its name, its kind as ggml names it, its shape as torch has it, and where its bytes are."""

    name: str
    kind: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Preamble:
    """What a header says: the architecture's name, the tensors, how many layers and files there are."""

    architecture: str
    entries: tuple[Entry, ...]
    layers: int = 0
    parts: int = 1


class _Walk:
    """Where in a header we are; every step looks first whether the file goes on so far."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.at, self.tensors = data, 0, 0
        self.path, self.architecture, self.aligned, self.layers, self.parts = path, "missing", _ALIGNED, 0, 1

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
        (found,) = struct.unpack_from("<" + form, self.data, self.skip(size))
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


def parts_of(path: Path) -> list[Path]:
    """All files of the model that `path` is of, the first one first. Raises ModelError when one of them is missing."""
    found = _PART.fullmatch(path.name)
    if found is None:
        return [path]
    stem, _, count, suffix = found.groups()
    parts = [path.with_name(f"{stem}-{index + 1:05}-of-{count}{suffix}") for index in range(int(count))]
    missing = next((part for part in parts if not part.is_file()), None)
    if missing is not None:
        message = f"{path} is one of {len(parts):,} files, and {missing.name} is missing"
        raise ModelError(message, hint="fetch it into the same directory")
    return parts


def read_preambles(paths: Sequence[Path]) -> Preamble:
    """What the headers of all files of a model say together."""
    found = [read_preamble(path) for path in paths]
    first, entries = found[0], tuple(entry for each in found for entry in each.entries)
    if first.parts > len(paths):
        message = f"{paths[0]} is one of {first.parts:,} files, which is found by their names alone"
        raise ModelError(message, hint=f"name them {paths[0].stem}-00001-of-{first.parts:05}.gguf and so on")
    if first.layers > len(entries):
        message = f"{paths[0]} is not a readable GGUF file: it has {first.layers:,} layers and {len(entries):,} tensors"
        raise ModelError(message, hint=_DAMAGED)
    return replace(first, entries=entries)


def read_preamble(path: Path) -> Preamble:
    """What a header says. Raises ModelError for a file that is no GGUF, or whose header promises more than it has."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(_Walk(data, path))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}", hint="check the path") from error
    except ValueError as error:  # of text that is not UTF-8, and of an empty file, as well
        raise ModelError(f"{path} is not a readable GGUF file: {error}", hint=_DAMAGED) from error


def _read(walk: _Walk) -> Preamble:
    if walk.data[: walk.skip(4) + 4] != b"GGUF":
        raise ValueError("it does not begin as one")
    version = walk.number("I")
    if not version & 0xFFFF:
        raise ValueError("it was written for machines of the other byte order")
    if version not in (2, 3):
        raise ValueError(f"it is of version {version}")
    walk.tensors = walk.count(_LEAST_TENSOR_BYTES, "tensors")
    for _ in range(walk.count(_LEAST_PAIR_BYTES, "pairs")):
        _check_pair(walk)
    described = [_tensor(walk) for _ in range(walk.tensors)]
    begin = -(-walk.at // walk.aligned) * walk.aligned
    entries = tuple(_entry(walk, begin, *each) for each in described)
    return Preamble(walk.architecture, entries, walk.layers, walk.parts)


def _check_pair(walk: _Walk) -> None:
    key, kind = walk.text(), walk.number("I")
    if key == b"general.architecture" and kind == _STRING:
        at, walk.architecture = walk.at, walk.text().decode()
        walk.at = at
    elif kind in _SIZES:
        _note(walk, key, walk.data[walk.at : walk.at + _SIZES[kind]])
    _check_value(walk, kind, longest=_LONGEST_PIECE if key in _VOCABULARY else None)


def _note(walk: _Walk, key: bytes, value: bytes) -> None:
    """Remember of a number what the walk itself needs."""
    number = int.from_bytes(value, "little")
    if key.endswith(b".block_count"):
        walk.layers = number
    elif key == b"split.count":
        walk.parts = number
    elif key == b"general.alignment":
        if not number:
            raise ValueError("its tensors are aligned at 0 bytes")
        walk.aligned = number


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


def _tensor(walk: _Walk) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, number of the kind and offset of a tensor."""
    name = walk.text().decode()
    dimensions = walk.number("I")
    if dimensions > _MOST_DIMENSIONS:
        raise ValueError(f"a tensor has {dimensions:,} dimensions")
    shape = tuple(walk.number() for _ in range(dimensions))[::-1]
    return name, shape, walk.number("I"), walk.number()


def _entry(walk: _Walk, begin: int, name: str, shape: tuple[int, ...], kind: int, offset: int) -> Entry:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    known = next((each for each in GGMLQuantizationType if each.value == kind), None)
    if known is None:
        raise ValueError(f"{name} is of an unknown type, {kind}")
    cols, (block_cols, block_bytes) = shape[-1] if shape else 1, GGML_QUANT_SIZES[known]
    if cols % block_cols:
        raise ValueError(f"{name} has rows of {cols:,}, which are no blocks of {block_cols}")
    size = prod(shape) // block_cols * block_bytes
    if begin + offset + size > len(walk.data):
        raise ValueError(f"{name}, {size:,} bytes from byte {begin + offset:,} on, lies outside")
    return Entry(name, known.name, shape, walk.path, begin + offset, size)
