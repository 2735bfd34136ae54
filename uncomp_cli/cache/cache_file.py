"""A cache on disk: what it holds, without its slack, in one safetensors file that is there as a whole or not at all.

    index [L, heads, 4]       of each head: entries not quantised, quantised ones, bits, channels that share a scale
    layers.l.keys, .values [E, D] · .positions [E]                what is not quantised, head after head
    layers.l.quantized.key_codes [Q, …] … .positions [Q]          what is quantised before that
    states.conv.m.i, states.recurrent.m.i [B, …]                  of the model's layers m that have a state of their own

and whatever tensors the saver adds. It is written head by head from where the numbers lie, so that saving allocates
nothing of the cache's size, to a temporary file that is renamed when it is on the disk. Numbers are stored bit by bit:
a loaded cache gives the logits of the saved one. header.py has the rest of the format.
"""

import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
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
    DamagedCacheError,
    Manifest,
    Record,
    find_damage,
    read_manifest,
)
from uncomp_cli.cache.layer import Head, LayerCache, lay_out
from uncomp_cli.cache.quantized import TENSORS, QuantizedHead
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.cache.states import Place, States
from uncomp_cli.config import KEY_BITS, CacheConfig, code_bytes
from uncomp_cli.files import replace_file

_EXTRA, _STATES = "extra.", "states."
_HINT = "remove it and save it again"
_DTYPES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip

_Layer = tuple[list[Head], list[QuantizedHead | None]]


class StoredCache(NamedTuple):
    """What was saved: the cache, the saver's tensors, and its record."""

    cache: RaggedKVCache
    tensors: dict[str, Tensor]
    record: Record


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
    record: Record,
    renaming: AbstractContextManager[object] | None = None,
) -> Manifest:
    """Write `cache`, with `tensors` (of one dimension at least) and its `record`, to the file `path`.

    A file that was there is replaced, inside the context `renaming`, once the new one is on the disk; nobody but its
    owner may read it, as it tells of the document. Raises OSError, and leaves all as it was.
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
        record=record,
    )
    fresh = path.with_name(f"{TEMPORARY_PREFIX}{secrets.token_hex(8)}")
    sha256 = replace_file(
        path, lambda file: _write(file, parts, manifest), owner_only=True, fresh=fresh, renaming=renaming
    )
    return replace(manifest, sha256=sha256)


def load_cache(
    path: Path,
    *,
    device: torch.device | str = "cpu",
    reserve: int = 0,
    config: CacheConfig | None = None,
    verify: bool = True,
) -> StoredCache:
    """The cache that was saved in `path`, on `device`, with room for `reserve` more entries a head and its slack.

    Without `verify` the hash is not checked: for a file of which `find_damage` has just found none. Raises UncompError
    for a file that is damaged or no cache, UsageError for one of a newer version.
    """
    damage = find_damage(path) if verify else None
    if damage is not None:
        raise DamagedCacheError(f"cache {path} is damaged: {damage}", hint=_HINT)
    manifest, config = read_manifest(path), config or CacheConfig()
    with _reading(path) as file:
        # What is read is the file itself, mapped: everything of it is copied.
        names = [name for name in list(file.keys()) if name.startswith(_EXTRA)]
        extra = {name.removeprefix(_EXTRA): file.get_tensor(name).to(device, copy=True) for name in names}
        layers = [lay_out(*layer, reserve=reserve, config=config) for layer in _layers(manifest, file, device)]
        states = _states(file, device)
    cache = RaggedKVCache(
        num_layers=manifest.num_layers,
        num_rows=manifest.num_rows,
        num_kv_heads=manifest.num_kv_heads,
        config=config,
        kv_bits=manifest.kv_bits,
    )
    cache.layers[:], cache.states = layers, states
    return StoredCache(cache, extra, manifest.record)


def find_fault(path: Path) -> str | None:
    """What is wrong with a saved cache: a byte that is not as it was written, or tensors that do not fit together."""
    damage = find_damage(path)
    if damage is not None:
        return damage
    manifest = read_manifest(path)
    try:
        with _reading(path) as file:
            for _ in _layers(manifest, file, "cpu"):
                pass
            _states(file, "cpu")
    except DamagedCacheError as error:
        return error.message
    return None


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """The tensors of a file. Raises DamagedCacheError for what is none that safetensors can read."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise DamagedCacheError(f"cache {path} cannot be read: {error}", hint=_HINT) from error


def _all_parts(cache: RaggedKVCache, tensors: Mapping[str, Tensor]) -> list[_Part]:
    """All tensors of the file, those of the widest numbers first, so that every one is aligned."""
    parts = [*_parts(cache), *(_Part(f"{_EXTRA}{name}", [tensor]) for name, tensor in tensors.items())]
    return sorted(parts, key=lambda part: -part.pieces[0].element_size())


def _parts(cache: RaggedKVCache) -> Iterator[_Part]:
    """The tensors of a cache, none of them copied."""
    layers = [cache.layer(index) for index in range(len(cache.layers))]
    yield _Part("index", [torch.tensor([_index(layer) for layer in layers], dtype=torch.int32)])
    for name, state in cache.states.named().items():
        yield _Part(f"{_STATES}{name}", [state])
    for number, layer in enumerate(layers):
        tails = zip(*(layer.tail(i) for i in range(len(layer.lengths))), strict=True)
        for name, pieces in zip(("keys", "values", "positions"), tails, strict=True):
            yield _Part(f"layers.{number}.{name}", pieces)
        before = [head for head in layer.quantized if head is not None and len(head)]
        if before:
            for name in TENSORS:
                yield _Part(f"layers.{number}.quantized.{name}", [getattr(head, name) for head in before])


def _index(layer: LayerCache) -> list[tuple[int, int, int, int]]:
    heads = zip(layer.lengths, layer.quantized, strict=True)
    return [
        (length, len(before), before.bits, before.group) if before else (length, 0, 0, 0) for length, before in heads
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


def _layers(manifest: Manifest, file: Any, device: torch.device | str) -> Iterator[_Layer]:
    """The heads of each layer, once they fit together. Raises DamagedCacheError when they do not."""
    number_type = getattr(torch, manifest.dtype)
    index = _take(file, "index", (manifest.num_layers, manifest.num_rows * manifest.num_kv_heads, 4), torch.int32)
    _check(bool((index >= 0).all()), "a head has a length below 0")
    for number, heads in enumerate(index.tolist()):
        at, lengths = f"layers.{number}", [head[0] for head in heads]
        keys = _take(file, f"{at}.keys", (sum(lengths), None), number_type)
        values = _take(file, f"{at}.values", tuple(keys.shape), number_type)
        positions = _take(file, f"{at}.positions", (sum(lengths),), torch.int32)
        quantized = _quantized(heads, file, at=f"{at}.quantized", head_dim=keys.shape[1], device=device)
        split = (tensor.to(device).split_with_sizes(lengths) for tensor in (keys, values, positions))
        tails = list(zip(*split, strict=True))
        for before, (_, _, tail) in zip(quantized, tails, strict=True):
            held = tail if before is None else torch.cat([before.positions, tail])
            rising = bool((held[1:] > held[:-1]).all()) and bool((held[:1] >= 0).all())
            _check(rising, f"the positions of a head of layer {number} do not rise")
        yield tails, quantized


def _states(file: Any, device: torch.device | str) -> States:
    """The states of layers that have one. Raises DamagedCacheError for what is none."""
    found = {}
    for name in (name for name in list(file.keys()) if name.startswith(_STATES)):
        place, tensor = Place.parse(name.removeprefix(_STATES)), file.get_tensor(name)
        if place is None or not tensor.is_floating_point():
            raise DamagedCacheError(f"it is no cache: {name} is no state of a layer", hint=_HINT)
        _check(bool(tensor.isfinite().all()), f"{name} has values that are no numbers")
        found[place] = tensor.to(device, copy=True)
    return States(found)


def _quantized(
    heads: Sequence[Sequence[int]], file: Any, *, at: str, head_dim: int, device: torch.device | str
) -> list[QuantizedHead | None]:
    """The quantised entries of a layer's heads, each tensor of each head in a storage of its own."""
    by_entry = [head[1] for head in heads]
    if not any(by_entry):
        return [None] * len(heads)
    used = {head[2:] for head in map(tuple, heads) if head[1]}
    _check(len(used) == 1, f"{at} has heads of several kinds")
    bits, group = used.pop()
    _check(bits in (8, 4) and group >= 1, f"{at} has {bits} bits, {group} channels a scale")
    scales = -(-head_dim // group)
    codes = {"key_codes": code_bytes(head_dim, KEY_BITS[bits]), "value_codes": code_bytes(head_dim, bits)}
    tensors = {}
    for name in TENSORS:
        kind, columns = (torch.uint8, codes[name]) if name in codes else (torch.float16, scales)
        shape, kind = ((sum(by_entry), columns), kind) if name != "positions" else ((sum(by_entry),), torch.int32)
        tensors[name] = _take(file, f"{at}.{name}", shape, kind).to(device).split_with_sizes(by_entry)
    return [
        QuantizedHead(
            **{name: split[i].clone() for name, split in tensors.items()}, head_dim=head_dim, group=group, bits=bits
        )
        if count
        else None
        for i, count in enumerate(by_entry)
    ]


def _take(file: Any, name: str, shape: Sequence[int | None], dtype: torch.dtype) -> Tensor:
    """A tensor of the file that has this shape (None: any size) and numbers of this type, all of them finite."""
    part = file.get_slice(name)
    found, kind = part.get_shape(), part.get_dtype()
    fits = len(found) == len(shape) and all(want in (None, size) for want, size in zip(shape, found, strict=True))
    _check(fits and kind == _DTYPES[dtype], f"{name} is {kind} {found}, not {_DTYPES[dtype]} {list(shape)}")
    tensor: Tensor = file.get_tensor(name)
    _check(not tensor.is_floating_point() or bool(tensor.isfinite().all()), f"{name} has values that are no numbers")
    return tensor


def _check(condition: bool, fault: str) -> None:
    if not condition:
        raise DamagedCacheError(f"it is no cache: {fault}", hint=_HINT)
