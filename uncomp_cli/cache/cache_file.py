"""A cache on disk: what it holds, without its slack, in one safetensors file that is there as a whole or not at all.

    index [L, heads, 5]       of each head: entries not quantised, quantised ones, blocks of keys, bits, value group
    layers.l.keys, .values [E, D] · .positions [E]                what is not quantised, head after head
    layers.l.quantized.key_codes [Q, …] … .blocks [K]             what is quantised before that

and whatever tensors the saver adds. It is written head by head from where the numbers lie, so that saving allocates
nothing of the cache's size, to a temporary file that is renamed when it is on the disk. Numbers are stored bit by bit:
a loaded cache gives the logits of the saved one. manifest.py has the rest of the format.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from uncomp_cli.cache.header import (
    METADATA_KEY,
    NO_HASH,
    TEMPORARY_PREFIX,
    Manifest,
    find_damage,
    read_manifest,
)
from uncomp_cli.cache.layer import LayerCache, lay_out
from uncomp_cli.cache.quantized import QuantizedHead
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.errors import UncompError
from uncomp_cli.files import replace_file

_EXTRA = "extra."
_HINT = "remove it and save it again"
_BY_BLOCK = ("key_scales", "key_zeros")
_BY_ENTRY = ("key_codes", "value_codes", "value_scales", "value_zeros", "positions")
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip

_Read = Callable[[str], Tensor]


class StoredCache(NamedTuple):
    """What was saved: the cache, the saver's tensors, and its record."""

    cache: RaggedKVCache
    tensors: dict[str, Tensor]
    record: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Part:
    """A tensor of the file, which is its pieces one after another along their first dimension."""

    name: str
    pieces: Sequence[Tensor]

    @property
    def shape(self) -> list[int]:
        return [sum(len(piece) for piece in self.pieces), *self.pieces[0].shape[1:]]

    @property
    def nbytes(self) -> int:
        return sum(piece.numel() * piece.element_size() for piece in self.pieces)


def stored_bytes(cache: RaggedKVCache, tensors: Mapping[str, Tensor]) -> int:
    """Bytes of the tensors that `save_cache` would write."""
    return sum(part.nbytes for part in _all_parts(cache, tensors))


def save_cache(
    path: Path,
    cache: RaggedKVCache,
    *,
    tensors: Mapping[str, Tensor],
    record: Mapping[str, Any],
    renaming: AbstractContextManager[object] | None = None,
) -> Manifest:
    """Write `cache`, with `tensors` (of one dimension at least) and the JSON data `record`, to the file `path`.

    A file that was there is replaced, inside the context `renaming`, once the new one is on the disk. Raises OSError,
    and leaves all as it was.
    """
    parts = _all_parts(cache, tensors)
    manifest = Manifest(
        sha256=NO_HASH,
        num_layers=len(cache.layers),
        num_rows=cache.num_rows,
        num_kv_heads=cache.num_kv_heads,
        kv_bits=cache.kv_bits,
        dtype=str(cache.layer(0).keys.dtype).removeprefix("torch."),
        tensor_bytes=sum(part.nbytes for part in parts),
        record=dict(record),
    )
    fresh = path.with_name(f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(4)}")
    sha256 = replace_file(path, lambda file: _write(file, parts, manifest), fresh=fresh, renaming=renaming)
    return replace(manifest, sha256=sha256)


def load_cache(path: Path, *, device: torch.device | str = "cpu", reserve: int = 0, verify: bool = True) -> StoredCache:
    """The cache that was saved in `path`, on `device`, with room for `reserve` more entries a head and its slack.

    Without `verify` the hash is not checked: for a file of which `find_damage` has just found none. Raises UncompError
    for a file that is damaged or no cache, UsageError for one of a newer version.
    """
    try:
        damage = find_damage(path) if verify else None
        if damage is not None:
            raise UncompError(f"cache {path} is damaged: {damage}", hint=_HINT)
        manifest = read_manifest(path)
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
            # What is read is the file itself, mapped: everything of it is copied.
            extra = {name: file.get_tensor(name).to(device, copy=True) for name in names if name.startswith(_EXTRA)}
            cache = _rebuilt(manifest, lambda name: file.get_tensor(name).to(device), reserve=reserve)
    except (OSError, SafetensorError) as error:
        raise UncompError(f"cache {path} cannot be read: {error}", hint=_HINT) from error
    return StoredCache(cache, {name.removeprefix(_EXTRA): tensor for name, tensor in extra.items()}, manifest.record)


def _all_parts(cache: RaggedKVCache, tensors: Mapping[str, Tensor]) -> list[_Part]:
    """All tensors of the file, those of the widest numbers first, so that every one is aligned."""
    parts = [*_parts(cache), *(_Part(f"{_EXTRA}{name}", [tensor]) for name, tensor in tensors.items())]
    return sorted(parts, key=lambda part: -part.pieces[0].element_size())


def _parts(cache: RaggedKVCache) -> Iterator[_Part]:
    """The tensors of a cache, none of them copied."""
    layers = [cache.layer(index) for index in range(len(cache.layers))]
    yield _Part("index", [torch.tensor([_index(layer) for layer in layers], dtype=torch.int32)])
    for number, layer in enumerate(layers):
        tails = zip(*(layer.tail(i) for i in range(len(layer.lengths))), strict=True)
        for name, pieces in zip(("keys", "values", "positions"), tails, strict=True):
            yield _Part(f"layers.{number}.{name}", pieces)
        before = [head for head in layer.quantized if head is not None and len(head)]
        if before:
            for name in (*_BY_BLOCK, *_BY_ENTRY):
                yield _Part(f"layers.{number}.quantized.{name}", [getattr(head, name) for head in before])
            blocks = [torch.tensor(head.blocks, dtype=torch.int32) for head in before]
            yield _Part(f"layers.{number}.quantized.blocks", blocks)


def _index(layer: LayerCache) -> list[tuple[int, int, int, int, int]]:
    heads = zip(layer.lengths, layer.quantized, strict=True)
    return [
        (length, len(before), len(before.blocks), before.bits, before.value_group) if before else (length, 0, 0, 0, 0)
        for length, before in heads
    ]


def _write(file: BinaryIO, parts: Sequence[_Part], manifest: Manifest) -> str:
    """Write header and tensors, then the hash into its place in the header; returns the hash."""
    header = _header(parts, manifest)
    digest = hashlib.sha256(header)
    file.write(header)
    for piece in (piece for part in parts for piece in part.pieces if piece.numel()):
        data = piece.contiguous().cpu().view(torch.uint8).numpy().data
        digest.update(data)
        file.write(data)
    file.seek(header.index(NO_HASH.encode()))
    file.write(digest.hexdigest().encode())
    return digest.hexdigest()


def _header(parts: Sequence[_Part], manifest: Manifest) -> bytes:
    """The count of the header's bytes and the header."""
    described: dict[str, Any] = {"__metadata__": {METADATA_KEY: manifest.to_json()}}
    end = 0
    for part in parts:
        begin, end = end, end + part.nbytes
        dtype = _DTYPES[part.pieces[0].dtype]
        described[part.name] = {"dtype": dtype, "shape": part.shape, "data_offsets": [begin, end]}
    text = json.dumps(described).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _rebuilt(manifest: Manifest, read: _Read, *, reserve: int) -> RaggedKVCache:
    cache = RaggedKVCache(
        num_layers=manifest.num_layers,
        num_rows=manifest.num_rows,
        num_kv_heads=manifest.num_kv_heads,
        kv_bits=manifest.kv_bits,
    )
    for number, heads in enumerate(read("index").tolist()):
        at = f"layers.{number}"
        lengths = [head[0] for head in heads]
        split = (read(f"{at}.{name}").split_with_sizes(lengths) for name in ("keys", "values", "positions"))
        tails = list(zip(*split, strict=True))
        quantized = _quantized(heads, read, at=f"{at}.quantized")
        cache.layers[number] = lay_out(tails, quantized, reserve=reserve, config=cache.config)
    return cache


def _quantized(heads: Sequence[Sequence[int]], read: _Read, *, at: str) -> list[QuantizedHead | None]:
    """The quantised entries of a layer's heads, each tensor of each head in a storage of its own."""
    if not any(entries for _, entries, *_ in heads):
        return [None] * len(heads)
    by_block, by_entry = [head[2] for head in heads], [head[1] for head in heads]
    tensors = {name: read(f"{at}.{name}").split_with_sizes(by_block) for name in _BY_BLOCK}
    tensors |= {name: read(f"{at}.{name}").split_with_sizes(by_entry) for name in _BY_ENTRY}
    blocks = read(f"{at}.blocks").split_with_sizes(by_block)
    return [
        QuantizedHead(
            **{name: split[i].clone() for name, split in tensors.items()},
            blocks=tuple(blocks[i].tolist()),
            value_group=group,
            bits=bits,
        )
        if entries
        else None
        for i, (_, entries, _, bits, group) in enumerate(heads)
    ]
