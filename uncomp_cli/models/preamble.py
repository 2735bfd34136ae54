"""The header of a GGUF file, walked before anything is allocated by what it says.

A header is counts, lengths and offsets. A reader that believes them reads past the end for as long as they say, so each
is held against the bytes that are left: a count by the least that so many need, a tensor by the bytes of the file.

    magic, version, tensors, pairs | key, type, value for each pair | name, dimensions, type, offset for each tensor

(ggml's docs/gguf.md.) What values mean is not looked at, but that text is text, and that every layer has a tensor. What
is left of the walk is where each tensor lies, and for who prepares a model the values; gguf's own reader, which makes
arrays of each piece of a vocabulary, takes ten times as long and a gigabyte. A model may be of several files,
`-00001-of-00003.gguf`.
"""

import mmap
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from uncomp_cli.errors import ModelError

_FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""How struct calls the type of a number, by the number of the type."""
_STRING, _ARRAY, _KIND_BYTES, _LENGTH = 8, 9, 4, struct.Struct("<Q")
_LEAST_TENSOR_BYTES = 8 + 4 + 4 + 8
_LEAST_PAIR_BYTES = 8 + 4 + 1
_MOST_DIMENSIONS, _MOST_NESTED = 4, 4
_LONGEST_PIECE = 4096
"""Bytes of a piece of a vocabulary: what is longer makes no sense and takes for ever to cut."""
_LONGEST = 2**26
"""Bytes of a header, whose values become objects of up to eight times the size; Gemma 3's, of 262,144 pieces, has 6.5
million."""
_VOCABULARY = ("tokenizer.ggml.tokens", "tokenizer.ggml.merges")
OTHER_KIND = "fetch the model in a kind that is read, such as Q4_K_M or Q8_0"
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

    path: Path
    architecture: str
    entries: tuple[Entry, ...]
    layers: int = 0
    parts: int = 1


@dataclass(frozen=True, slots=True)
class Header:
    """All that a header says; `outline` is a GGUF that says it all of an empty vocabulary and tensors of one number."""

    preamble: Preamble
    values: dict[str, Any]
    outline: bytes


class _Walk:
    """Where in a header we are; every step looks first whether the file goes on so far."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.at, self.path = data, 0, path
        self.values, self.pairs = dict[str, Any](), list[bytes]()

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def skip(self, count: int) -> int:
        """Go on by as many bytes; returns where they begin."""
        if count > self.left:
            raise ValueError(f"it goes on for {count:,} bytes where {self.left:,} are left")
        if self.at + count > _LONGEST:
            raise ValueError(f"what it says before its tensors is longer than {_LONGEST:,} bytes")
        first = self.at
        self.at += count
        return first

    def numbers(self, form: str, count: int) -> tuple[Any, ...]:
        each = f"<{count}{form}"
        return struct.unpack_from(each, self.data, self.skip(struct.calcsize(each)))

    def number(self, form: str = "Q") -> int:
        return int(self.numbers(form, 1)[0])

    def count(self, least_bytes: int, what: str) -> int:
        """How many there are of something that takes `least_bytes` each."""
        found = self.number()
        if found * least_bytes > self.left:
            raise ValueError(f"it counts {found:,} {what} where {self.left:,} bytes are left")
        return found

    def text(self, *, most: int | None = None) -> str:
        """A string of UTF-8."""
        (length,) = _LENGTH.unpack_from(self.data, self.skip(_LENGTH.size))
        if most is not None and length > most:
            raise ValueError(f"a piece of its vocabulary has {length:,} bytes")
        first = self.skip(length)
        return self.data[first : self.at].decode()


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
    """What the headers of all files of a model say of its tensors; a file that is as it was is not walked again."""
    return _joined(paths, [_preamble(path, *_version(path)) for path in paths])


def read_headers(paths: Sequence[Path]) -> Header:
    """What the headers of all files of a model say together; values stand in the first one."""
    heads = [read_header(path) for path in paths]
    return replace(heads[0], preamble=_joined(paths, [head.preamble for head in heads]))


@lru_cache(maxsize=16)
def _preamble(path: Path, size: int, changed_ns: int) -> Preamble:
    return read_header(path).preamble


def _version(path: Path) -> tuple[int, int]:
    """What tells a file from what it was before; of one that is not there, which its reader says better, nothing."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns


def _joined(paths: Sequence[Path], preambles: Sequence[Preamble]) -> Preamble:
    first, entries = preambles[0], tuple(entry for each in preambles for entry in each.entries)
    if first.parts > len(paths):
        message = f"{paths[0]} is one of {first.parts:,} files, which is found by their names alone"
        raise ModelError(message, hint=f"name them {paths[0].stem}-00001-of-{first.parts:05}.gguf and so on")
    if first.layers > len(entries):
        message = f"{paths[0]} is not a readable GGUF file: it has {first.layers:,} layers and {len(entries):,} tensors"
        raise ModelError(message, hint=_DAMAGED)
    return replace(first, entries=entries)


def read_header(path: Path) -> Header:
    """What a header says. Raises ModelError for a file that is no GGUF, or whose header promises more than it has."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _read(_Walk(data, path))
    except OSError as error:
        raise ModelError(f"cannot read {path}: {error.strerror or error}", hint="check the path") from error
    except ValueError as error:  # of text that is not UTF-8, and of an empty file, as well
        raise ModelError(f"{path} is not a readable GGUF file: {error}", hint=_DAMAGED) from error


def _read(walk: _Walk) -> Header:
    if walk.data[: walk.skip(4) + 4] != b"GGUF":
        raise ValueError("it does not begin as one")
    version = walk.number("I")
    if not version & 0xFFFF:
        raise ValueError("it was written for machines of the other byte order")
    if version not in (2, 3):
        raise ValueError(f"it is of version {version}")
    tensors = walk.count(_LEAST_TENSOR_BYTES, "tensors")
    for _ in range(walk.count(_LEAST_PAIR_BYTES, "pairs")):
        _add_pair(walk)
    described = [_tensor(walk) for _ in range(tensors)]
    aligned = _whole(walk, "general.alignment", _ALIGNED)
    if aligned < 1:
        raise ValueError(f"its tensors are aligned at {aligned} bytes")
    begin = -(-walk.at // aligned) * aligned
    entries = tuple(_entry(walk, begin, *each) for each in described)
    architecture = walk.values.get("general.architecture")
    layers = next((_whole(walk, key, 0) for key in walk.values if key.endswith(".block_count")), 0)
    named = architecture if isinstance(architecture, str) else "missing"
    preamble = Preamble(walk.path, named, entries, layers, _whole(walk, "split.count", 1))
    return Header(preamble, walk.values, _outline(walk.pairs, entries, aligned))


def _whole(walk: _Walk, key: str, default: int) -> int:
    value = walk.values.get(key)
    return value if isinstance(value, int) else default


def _outline(pairs: Sequence[bytes], entries: Sequence[Entry], aligned: int) -> bytes:
    """A file of these pairs and of tensors of one number of 32 bits each."""
    names = (entry.name.encode() for entry in entries)
    tensors = b"".join(struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, 1, 0, 0) for name in names)
    head = struct.pack("<4sIQQ", b"GGUF", 3, len(entries), len(pairs)) + b"".join(pairs) + tensors
    return head + bytes(-len(head) % aligned + 4)


def _add_pair(walk: _Walk) -> None:
    begin, key, kind = walk.at, walk.text(), walk.number("I")
    head = walk.at + _KIND_BYTES
    walk.values[key] = _value(walk, kind, longest=_LONGEST_PIECE if key in _VOCABULARY else None)
    emptied = kind == _ARRAY and key.startswith("tokenizer.")
    walk.pairs.append(walk.data[begin:head] + bytes(_LENGTH.size) if emptied else walk.data[begin : walk.at])


def _value(walk: _Walk, kind: int, *, longest: int | None = None, nested: int = 0) -> Any:
    if kind == _STRING:
        return walk.text(most=longest)
    if kind in _FORMS:
        return walk.numbers(_FORMS[kind], 1)[0]
    if kind != _ARRAY:
        raise ValueError(f"it has a value of type {kind}")
    if nested == _MOST_NESTED:
        raise ValueError("its lists lie too deep in each other")
    inner = walk.number("I")
    form = _FORMS.get(inner, "Q")
    count = walk.count(struct.calcsize(f"<{form}"), "values")
    if inner in _FORMS:
        return list(walk.numbers(form, count))
    return [_value(walk, inner, longest=longest, nested=nested + 1) for _ in range(count)]


def _tensor(walk: _Walk) -> tuple[str, tuple[int, ...], int, int]:
    """Name, shape, number of the kind and offset of a tensor."""
    name = walk.text()
    dimensions = walk.number("I")
    if dimensions > _MOST_DIMENSIONS:
        raise ValueError(f"a tensor has {dimensions:,} dimensions")
    shape = tuple(walk.number() for _ in range(dimensions))[::-1]
    return name, shape, walk.number("I"), walk.number()


def _entry(walk: _Walk, begin: int, name: str, shape: tuple[int, ...], kind: int, offset: int) -> Entry:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    known = next((each for each in GGMLQuantizationType if each.value == kind), None)
    if known is None:
        raise ModelError(f"{walk.path}: {name} is of kind {kind}, which is not known here", hint=OTHER_KIND)
    cols, (block_cols, block_bytes) = shape[-1] if shape else 1, GGML_QUANT_SIZES[known]
    if cols % block_cols:
        raise ValueError(f"{name} has rows of {cols:,}, which are no blocks of {block_cols}")
    size = prod(shape) // block_cols * block_bytes
    if begin + offset + size > len(walk.data):
        raise ValueError(f"{name}, {size:,} bytes from byte {begin + offset:,} on, lies outside")
    return Entry(name, known.name, shape, walk.path, begin + offset, size)
