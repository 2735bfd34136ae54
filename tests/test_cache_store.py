"""A cache on disk: what comes back is what was saved, bit by bit, and anything else is refused."""

import json
import math
import os
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from support.caches import DIM, KV_HEADS, LAYERS, make_cache, make_record, resave
from uncomp_cli.cache.cache_file import find_fault, load_cache, save_cache, stored_bytes
from uncomp_cli.cache.header import METADATA_KEY, DamagedCacheError, find_damage, read_manifest
from uncomp_cli.cache.layer import Head
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.errors import UncompError, UsageError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def heads_of(cache: RaggedKVCache) -> list[Head]:
    return [
        cache.layer(layer).head(i) for layer in range(len(cache.layers)) for i in range(len(cache.layer(layer).lengths))
    ]


def same(one: RaggedKVCache, other: RaggedKVCache) -> bool:
    pairs = zip(heads_of(one), heads_of(other), strict=True)
    return all(a.dtype == b.dtype and torch.equal(a, b) for x, y in pairs for a, b in zip(x, y, strict=True))


def header_of(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    header: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return header


@given(
    dtype=st.sampled_from(list(DTYPES)),
    kv_bits=st.sampled_from([16, 8, 4]),
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=4),
    tail=st.integers(0, 3),
)
def test_what_was_saved_comes_back_and_goes_on(
    tmp_path_factory: pytest.TempPathFactory, dtype: str, kv_bits: int, lengths: list[int], tail: int
) -> None:
    path = tmp_path_factory.mktemp("store") / "x.safetensors"
    cache = make_cache(lengths, kv_bits=kv_bits, dtype=DTYPES[dtype], tail=tail)
    tensors = {"ids": torch.arange(5, dtype=torch.int32), "protected": torch.tensor([True, False, True])}
    record = make_record(preset="zoë", system="\n\u2028")
    manifest = save_cache(path, cache, tensors=tensors, record=record)
    assert path.stat().st_mode & 0o777 == 0o600  # a document is its owner's
    loaded = load_cache(path, reserve=4)
    assert same(loaded.cache, cache)
    assert loaded.record == record
    assert {name: tensor.tolist() for name, tensor in loaded.tensors.items()} == {
        name: tensor.tolist() for name, tensor in tensors.items()
    }
    assert manifest == read_manifest(path)
    assert manifest.tensor_bytes == stored_bytes(cache, tensors)
    assert loaded.cache.kv_bits == kv_bits
    assert [layer.room >= 4 for layer in loaded.cache.layers if layer is not None] == [True] * LAYERS
    new = torch.randn(2, 1, len(lengths), 3, DIM).to(DTYPES[dtype])
    for layer in range(LAYERS):
        for each in (cache, loaded.cache):
            each.append(layer, new[0], new[1], torch.arange(900, 903)[None])
    assert same(loaded.cache, cache)


def test_only_slack_is_left_out_and_the_header_is_small(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    cache = make_cache([500, 700, 300], dim=64)
    save_cache(path, cache, tensors={}, record=make_record())
    entries = sum(len(positions) for _, _, positions in heads_of(cache))
    index = LAYERS * KV_HEADS * 4 * 4
    assert read_manifest(path).tensor_bytes == entries * (2 * 64 * 4 + 4) + index
    assert path.stat().st_size <= 1.02 * read_manifest(path).tensor_bytes


def test_the_file_is_one_that_anybody_can_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    cache = make_cache([3, 4, 0], kv_bits=4)  # 21 bytes of codes a layer
    save_cache(path, cache, tensors={"odd": torch.tensor([True])}, record=make_record())
    tensors = load_file(path)
    header = header_of(path)
    sizes = {"F32": 4, "I32": 4, "F16": 2, "U8": 1, "BOOL": 1}
    described = [each for name, each in header.items() if name != "__metadata__"]
    assert [each["data_offsets"][0] % sizes[each["dtype"]] for each in described] == [0] * len(described)
    assert torch.equal(tensors["layers.1.keys"], torch.cat([cache.layer(1).tail(i)[0] for i in range(KV_HEADS)]))
    assert tensors["extra.odd"].tolist() == [True]


def test_a_loaded_cache_does_not_hang_on_its_file(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    cache = make_cache([9, 9, 9], kv_bits=8)
    save_cache(path, cache, tensors={"ids": torch.arange(4)}, record=make_record())
    loaded = load_cache(path)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert same(loaded.cache, cache)
    assert loaded.tensors["ids"].tolist() == [0, 1, 2, 3]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "x.safetensors"
    save_cache(path, make_cache([4, 6, 5]), tensors={}, record=make_record(key="ab"))
    return path


@pytest.mark.parametrize("share", [0.0, 0.001, 0.2, 0.5, 0.9, 1.0])
def test_a_truncated_file_is_refused(saved: Path, tmp_path: Path, share: float) -> None:
    data = saved.read_bytes()
    path = tmp_path / "x.safetensors"
    path.write_bytes(data[: int(share * (len(data) - 1))])
    assert find_damage(path) is not None
    with pytest.raises(UncompError, match="damaged"):
        load_cache(path)


def test_a_longer_file_is_refused(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(saved.read_bytes() + b"\0")
    assert "bytes" in str(find_damage(path))


def test_every_flipped_bit_is_refused(saved: Path, tmp_path: Path) -> None:
    data, path = saved.read_bytes(), tmp_path / "x.safetensors"
    chosen = random.Random(3).sample(range(8 * len(data)), 400)
    for bit in [0, 7, 63, *chosen]:
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(UncompError):
            load_cache(path)
    path.write_bytes(data)
    assert find_damage(path) is None


@pytest.mark.parametrize("data", [b"", b"{}", b"\xff" * 40, b"\x02\0\0\0\0\0\0\0{}", b"[" * 100_000])
def test_a_file_that_is_no_cache_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(UncompError, match="no saved cache"):
        read_manifest(path)
    assert find_damage(path) is not None


def rewritten(path: Path, manifest: object) -> None:
    """Put another manifest into a file, as somebody with an editor would."""
    data, header = path.read_bytes(), header_of(path)
    end = 8 + int.from_bytes(data[:8], "little")
    header["__metadata__"][METADATA_KEY] = json.dumps(manifest)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


def test_a_newer_version_is_refused_by_number(saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(saved.read_bytes())
    rewritten(path, {"schema_version": 9})
    with pytest.raises(UsageError, match=r"schema version 9, this uncomp reads 2"):
        load_cache(path)
    with pytest.raises(UsageError):
        find_damage(path)


@pytest.mark.parametrize(
    "change",
    [{"kv_bits": "16"}, {"more": 1}, {"record": []}, {"sha256": "ab"}, {"tensor_bytes": -1}, {"num_rows": True}],
)
def test_a_manifest_of_other_keys_and_types_is_refused(saved: Path, tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(saved.read_bytes())
    rewritten(path, {**json.loads(header_of(saved)["__metadata__"][METADATA_KEY]), **change})
    with pytest.raises(UncompError, match="is damaged"):
        read_manifest(path)


def test_a_failed_save_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_cache(path, make_cache([3, 3, 3]), tensors={}, record=make_record(preset="1"))
    torn: Tensor = torch.empty(3, device="meta")  # has no numbers to write
    with pytest.raises(Exception, match="meta"):
        save_cache(path, make_cache([4, 4, 4]), tensors={"torn": torn}, record=make_record(preset="2"))
    assert [each.name for each in tmp_path.iterdir()] == ["x.safetensors"]
    assert load_cache(path).record.preset == "1"


def changed(name: str, at: int, value: float) -> Callable[[dict[str, Tensor]], dict[str, Tensor | None]]:
    """The tensor with one number changed."""

    def change(held: dict[str, Tensor]) -> dict[str, Tensor | None]:
        tensor = held[name].clone()
        tensor.view(-1)[at] = value
        return {name: tensor}

    return change


QUANTIZED = "layers.0.quantized"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (changed("index", 0, -1), "a head has a length below 0"),
        (changed("index", 0, 2**31 - 1), "layers.0.keys is F32"),
        (changed("index", 1, 0), "key_codes is U8"),
        (changed("index", 2, 7), "several kinds"),
        (changed("index", 3, 0), "several kinds"),
        (changed("layers.1.keys", 3, math.nan), "layers.1.keys has values that are no numbers"),
        (changed("layers.1.values", 3, math.inf), "layers.1.values has values that are no numbers"),
        (changed(f"{QUANTIZED}.key_scales", 3, math.nan), "key_scales has values that are no numbers"),
        (changed(f"{QUANTIZED}.positions", 1, 0), "positions of a head of layer 0 do not rise"),
        (changed("layers.1.positions", 0, -5), "positions of a head of layer 1 do not rise"),
        (lambda held: {"index": None}, "index"),
        (lambda held: {"layers.0.values": None}, "layers.0.values"),
        (lambda held: {"index": held["index"][:1]}, "index is I32"),
        (lambda held: {"index": held["index"].float()}, "index is F32"),
        (lambda held: {"layers.0.values": held["layers.0.values"][:, 1:]}, "layers.0.values is F32"),
        (lambda held: {"layers.0.keys": held["layers.0.keys"].half()}, "layers.0.keys is F16"),
        (lambda held: {f"{QUANTIZED}.key_codes": held[f"{QUANTIZED}.key_codes"][:, 1:]}, "key_codes is U8"),
        (lambda held: {f"{QUANTIZED}.value_zeros": None}, "value_zeros"),
    ],
)
def test_tensors_that_do_not_fit_together_are_damage(
    tmp_path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor | None]], told: str
) -> None:
    path = tmp_path / "x.safetensors"
    save_cache(path, make_cache([64, 70, 5], kv_bits=4), tensors={}, record=make_record())
    resave(path)
    assert find_fault(path) is None
    resave(path, tensors=change(load_file(path)))
    assert find_damage(path) is None
    assert re.search(told, str(find_fault(path)))
    with pytest.raises(DamagedCacheError, match=told):
        load_cache(path)


@pytest.mark.parametrize(
    ("record", "told"),
    [
        ({"context_tokens": 0}, "record.context_tokens is 0"),
        ({"context_tokens": 10**30}, "record.context_tokens is a number of 31 digits"),
        ({"kv_full_bytes": 0}, "record.kv_full_bytes is 0"),
        ({"key": "ab"}, 'record.key is "ab"'),
        ({"model": None}, "record.model is null"),
        ({"documents": [{"path": "a"}]}, r"record.documents\[0\].sha256 is missing"),
        ({"documents": {}}, "record.documents is {}"),
        ({"uncertainty": {"key": "loss", "values": [[-1.0]]}}, "record.uncertainty: loss of layer 0, head 0 is -1.0"),
        ({"compression": []}, r"record.compression is \[\]"),
        ({"mood": 1}, "record.mood is an unknown key"),
    ],
)
def test_a_record_of_other_contents_is_damage(tmp_path: Path, record: dict[str, object], told: str) -> None:
    path = tmp_path / "x.safetensors"
    save_cache(path, make_cache([4, 6, 5]), tensors={}, record=make_record())
    with safe_open(path, framework="pt") as file:
        plain = json.loads(file.metadata()[METADATA_KEY])["record"]
    resave(path, manifest={"record": {**plain, **record}})
    with pytest.raises(DamagedCacheError, match=f"the manifest of x.safetensors is damaged: {told}"):
        read_manifest(path)
    assert told.replace("\\", "") in str(find_damage(path))


def test_a_pipe_in_the_folder_is_not_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    os.mkfifo(path)
    with pytest.raises(UncompError, match="is not a regular file"):
        read_manifest(path)
