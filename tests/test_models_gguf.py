"""GGUF files: a tiny model converts exactly; damage, unknown kinds and odd RoPE are refused."""

import os
import shutil
import struct
from dataclasses import replace
from itertools import product
from random import Random
from types import SimpleNamespace
from typing import Any
from unittest import mock

import gguf
import numpy as np
import pytest
import torch
from torch import nn

from support.gguf_files import (
    HEAD_DIM,
    KV_HEADS,
    LAYERS,
    TOKENS,
    tiny_llama,
    write_gguf,
)
from support.pace import swift
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.engine.forward import products
from uncomp_cli.engine.forward.attention import AppendState
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.forward.products import use_product
from uncomp_cli.errors import ModelError
from uncomp_cli.kernels.library import find
from uncomp_cli.models import conversion, preamble, sources
from uncomp_cli.models.catalog import ensure_local, list_models, local_path, remove_model, show_model
from uncomp_cli.models.checkpoint import load_tokenizer
from uncomp_cli.models.footprint import footprint
from uncomp_cli.models.gguf import llama3_divisors, prepare_gguf
from uncomp_cli.models.loading import load_model
from uncomp_cli.models.preamble import read_headers, read_preambles


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNCOMP_CACHE_DIR", str(tmp_path / "cache"))


@pytest.fixture
def stock():
    """A random Llama, the oracle."""
    return tiny_llama()


IDS, READ = torch.arange(40)[None], 34
WIDE = {"hidden_size": 256, "intermediate_size": 512}
FAMILIES = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {}),
    "gemma3": ("Gemma3Text", {"head_dim": 64, "sliding_window": 8, "query_pre_attn_scalar": 64}),
}


def pulled(path, **settings):
    """The model of a file, loaded."""
    list(ensure_local(str(path)))
    return load_model(str(path), device="cpu", **settings)


def logits(model):
    with torch.no_grad():
        return model(IDS).logits


def mixed(kind):
    """Q4_K_M and its like: other kinds for some matrices."""
    return lambda name: kind if "attn_v" not in name and "token_embd" not in name else "Q6_K"


@pytest.mark.parametrize(
    ("kind", "file_type", "stored", "tolerance"), [("F32", 0, "float32", 1e-5), ("F16", 1, "float16", 2e-3)]
)
def test_a_file_computes_what_its_original_computes(tmp_path, stock, kind, file_type, stored, tolerance):
    path = write_gguf(tmp_path / "tiny.gguf", stock, kind=lambda name: kind, file_type=file_type)
    loaded = pulled(path)
    config = loaded.model.config
    assert loaded.info.dtype == stored
    assert config.rope_parameters["rope_theta"] == 50000.0
    assert (config.max_position_embeddings, config.tie_word_embeddings) == (512, True)
    assert config.rms_norm_eps == pytest.approx(1e-5, rel=1e-6)
    assert getattr(config, "quantization_config", None) is None
    torch.testing.assert_close(logits(loaded.model), logits(stock), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("architecture", "kind"),
    [
        *(("llama", kind) for kind in ("F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")),
        *(("qwen2", "Q4_K"), ("gemma3", "Q5_1")),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in product(("qwen2", "gemma3"), ("Q4_0", "Q5_1", "Q4_K"))
        ),
    ],
)
def test_every_kind_of_blocks_computes_what_its_numbers_compute(tmp_path, architecture, kind):
    """Read in one pass, and written, with activations of 16 bits; with tied and untied logits, and biases."""
    family, more = FAMILIES[architecture]
    model = tiny_llama(family, **WIDE, tie_word_embeddings=kind != "Q5_1", **more)
    path = write_gguf(tmp_path / "tiny.gguf", model, architecture=architecture, kind=mixed(kind))
    kept, wide = pulled(path), load_model(str(path), device="cpu", widened=True)
    told = footprint(local_path(str(path)), dtype="auto", device=kept.device, quantize="none").weights_bytes
    assert kept.weights_bytes == pytest.approx(told, abs=1024)  # frequencies of positions
    assert kept.weights_bytes < path.stat().st_size * 1.2
    torch.testing.assert_close(logits(kept.model), logits(wide.model), atol=1e-4, rtol=0)
    expected = logits(wide.model)
    decoder = Decoder(kept.model, kept.spec)
    assert decoder._program is not None
    found, expected = read_and_written(decoder), expected[0]
    torch.testing.assert_close(found[:READ], expected[:READ], atol=1e-4, rtol=0)
    torch.testing.assert_close(found[READ:], expected[READ:], atol=1e-3 * float(expected.std()), rtol=0)


def read_and_written(decoder):
    """Logits of all ids: of READ in one pass, then token by token."""
    spec = decoder.spec
    cache = RaggedKVCache(num_layers=spec.num_layers, num_rows=1, num_kv_heads=spec.num_kv_heads)
    at = torch.arange(IDS.shape[1])[None]
    rows = [(0, READ), *((index, index + 1) for index in range(READ, IDS.shape[1]))]
    found = []
    for first, last in rows:
        state = AppendState(cache, at[:, first:last])
        found.append(decoder.forward(IDS[:, first:last], at[:, first:last], state, last - first)[0])
    return torch.cat(found)


def test_a_file_is_converted_once_and_known_by_content(tmp_path, stock):
    path = write_gguf(tmp_path / "tiny.gguf", stock)
    assert local_path(str(path)) is None
    assert list(ensure_local(str(path)))
    assert list(ensure_local(str(path))) == []
    copy = tmp_path / "renamed.gguf"
    copy.write_bytes(path.read_bytes())
    assert local_path(str(copy)) == local_path(str(path))
    (info,) = list_models()
    assert (info.layers, info.kv_heads, info.head_dim, info.trained_length) == (LAYERS, KV_HEADS, HEAD_DIM, 512)
    assert info.kv_bytes_per_token == LAYERS * KV_HEADS * HEAD_DIM * 2 * 4
    assert show_model(info.name) == info
    loaded = load_model(info.name, device="cpu")
    assert loaded.spec.sliding_windows == (None, None)
    assert loaded.tokenizer("he")["input_ids"]
    folder = local_path(info.name)
    modes = {file.name: file.stat().st_mode & 0o777 for file in folder.iterdir()}
    assert set(modes.values()) == {folder.stat().st_mode & 0o666}, modes  # a cache may be of several users
    remove_model(info.name)
    assert list_models() == []


@pytest.mark.parametrize("change", ["touched", "copied", "renamed"])
def test_a_file_that_was_moved_about_is_hashed_once(tmp_path, stock, monkeypatch, change):
    path = write_gguf(tmp_path / "tiny.gguf", stock)
    list(ensure_local(str(path)))
    model = local_path(str(path))
    other = path if change == "touched" else tmp_path / "other.gguf"
    if change == "touched":
        os.utime(path, ns=(1, 1))
    elif change == "copied":
        shutil.copy(path, other)
    else:
        path.rename(other)
        os.utime(other, ns=(1, 1))
    hashed = []
    hash_file = conversion.file_sha256

    def counted(file):
        hashed.append(file)
        return hash_file(file)

    monkeypatch.setattr(conversion, "file_sha256", counted)
    monkeypatch.setattr(sources, "file_sha256", counted, raising=False)
    for _ in range(3):
        assert local_path(str(other)) == model
        assert list(ensure_local(str(other))) == []
    assert hashed == [other]


def test_nothing_is_written_but_what_says_how_to_read_the_file(tmp_path, stock):
    path = write_gguf(tmp_path / "tiny.gguf", stock)
    info = pulled(path).info
    assert not [file for file in info.path.iterdir() if file.suffix in (".safetensors", ".gguf")]
    assert info.outside == (str(path),)
    assert path.stat().st_size < info.size_bytes < path.stat().st_size + 100_000
    assert remove_model(info.name) == [str(path)]
    assert path.exists()


def test_a_file_that_was_moved_is_named_and_found_where_it_is(tmp_path, stock):
    path = write_gguf(tmp_path / "tiny.gguf", stock)
    name, moved = pulled(path).info.path.name, tmp_path / "moved.gguf"
    path.rename(moved)
    with pytest.raises(ModelError, match="are not where they were") as caught:
        load_model(name, device="cpu")
    assert "--model FILE.gguf" in caught.value.hint
    assert pulled(moved).info.name == str(moved)
    assert load_model(name, device="cpu").info.outside == (str(moved),)


def test_a_file_that_was_changed_is_refused_by_the_old_name(tmp_path, stock):
    path = write_gguf(tmp_path / "tiny.gguf", stock)
    name = pulled(path).info.path.name
    with path.open("r+b") as file:
        file.seek(-4, os.SEEK_END)
        file.write(b"abcd")
    os.utime(path, ns=(1, 1))
    with pytest.raises(ModelError, match="another file than the one") as caught:
        load_model(name, device="cpu")
    assert f"uncomp model remove {name}" in caught.value.hint


def split(path, model, count):
    """The file as llama.cpp parts it: tensors in `count` files, what is said in the first."""
    whole = gguf.GGUFReader(str(write_gguf(path, model)))
    parts = [path.with_name(f"{path.stem}-{index + 1:05}-of-{count:05}.gguf") for index in range(count)]
    for index, part in enumerate(parts):
        writer = gguf.GGUFWriter(str(part), "llama")
        for field in whole.fields.values() if index == 0 else ():
            if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                inner = field.types[-1] if len(field.types) > 1 else None
                writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
        writer.add_uint16("split.count", count)
        for tensor in whole.tensors[index::count]:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return parts


def test_a_model_of_several_files_is_one(tmp_path, stock):
    parts = split(tmp_path / "tiny.gguf", stock, 3)
    loaded = pulled(parts[1])
    assert loaded.info.outside == tuple(map(str, parts))
    torch.testing.assert_close(logits(loaded.model), logits(stock), atol=1e-5, rtol=1e-5)
    parts[2].rename(tmp_path / "lost.gguf")
    with pytest.raises(ModelError, match=r"tiny-00003-of-00003\.gguf is missing"):
        pulled(parts[0])
    parts[0].rename(tmp_path / "alone.gguf")
    with pytest.raises(ModelError, match="one of 3 files"):
        pulled(tmp_path / "alone.gguf")


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "IQ4_NL", "IQ4_XS", "TQ2_0", "MXFP4"])
def test_kinds_that_the_library_does_not_read_are_held_as_the_nearest(tmp_path, kind):
    model = tiny_llama(**WIDE)
    path = write_gguf(tmp_path / "tiny.gguf", model, kind=lambda name: kind if "ffn" in name else "Q8_0")
    loaded = pulled(path)
    kept = loaded.model
    (note,) = loaded.notes
    assert f"blocks of kind {kind} are held as Q8_0" in note
    named = {tensor.name: tensor for tensor in gguf.GGUFReader(str(path)).tensors}["blk.0.ffn_up.weight"]
    wide = torch.from_numpy(gguf.dequantize(named.data, named.tensor_type))
    up = kept.model.layers[0].mlp.up_proj
    largest = wide.view(len(wide), -1, 32).abs().amax(-1, keepdim=True).expand(-1, -1, 32).reshape(wide.shape)
    assert ((up.matrix.numbers(up.library) - wide).abs() <= largest / 250 + 127 * 2**-25).all()  # a scale is a float16


def test_gradients_pass_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(products, "PART_NUMBERS", 256 * 64)  # few rows of a matrix at a time
    path = write_gguf(tmp_path / "tiny.gguf", tiny_llama(**WIDE), kind=mixed("Q4_0"))
    kept, wide = pulled(path), load_model(str(path), device="cpu", widened=True)
    use_product(kept.model, library=find())
    found = []
    for model in (kept.model, wide.model):
        states = torch.linspace(-1, 1, 2 * 256).view(2, 256).requires_grad_()
        model.model.layers[1].mlp(states).square().sum().backward()
        found.append(states.grad)
    torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


def test_without_the_library_blocks_lie_in_the_file(tmp_path, monkeypatch):
    path = write_gguf(tmp_path / "tiny.gguf", tiny_llama(**WIDE), kind=mixed("Q4_0"))
    expected = logits(pulled(path).model)
    monkeypatch.setattr("uncomp_cli.models.weights.mapping.find", lambda: None)
    monkeypatch.setattr("uncomp_cli.models.loading.find", lambda: None)
    wide = load_model(str(path), device="cpu").model
    assert type(wide.lm_head) is nn.Linear
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    kept = load_model(str(path), device="cpu")
    assert kept.weights_bytes < path.stat().st_size
    assert not kept.model.lm_head.matrix.tiled
    for model in (wide, kept.model):
        torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)


def test_a_note_of_a_newer_uncomp_is_not_believed(tmp_path, stock):
    path = write_gguf(tmp_path / "tiny.gguf", stock)
    list(ensure_local(str(path)))
    folder = local_path(str(path))
    note = conversion.read_manifest(folder)
    assert note.version == conversion.NOTE_VERSION
    conversion.write_manifest(folder, replace(note, version=conversion.NOTE_VERSION + 1))
    assert local_path(str(path)) is None
    assert list(ensure_local(str(path)))
    assert conversion.read_manifest(local_path(str(path))) == note


def test_a_hidden_file_is_converted_once_too(tmp_path, stock):
    path = write_gguf(tmp_path / ".tiny.gguf", stock)
    assert list(ensure_local(str(path)))
    assert list(ensure_local(str(path))) == []


@pytest.mark.parametrize("size", [0, 3, 100, 5000, -100])
def test_a_truncated_file_is_refused_and_leaves_nothing(tmp_path, stock, size):
    whole = write_gguf(tmp_path / "tiny.gguf", stock).read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[:size])
    with pytest.raises(ModelError, match=r"cut\.gguf"):
        list(ensure_local(str(path)))
    assert not [entry for entry in (tmp_path / "cache").rglob("*") if entry.is_file()]


def test_other_content_is_refused(tmp_path):
    path = tmp_path / "text.gguf"
    path.write_text("this is no model\n" * 100)
    with pytest.raises(ModelError, match="not a readable GGUF"):
        list(ensure_local(str(path)))


HUGE = (1 << 60).to_bytes(8, "little")


def replaced(whole, where, value, *, behind=0):
    """The bytes with `value` at so many bytes behind the end of `where`."""
    at = whole.index(where) + len(where) + behind
    return whole[:at] + value + whole[at + len(value) :]


DAMAGES = {
    "tensors": lambda whole: whole[:8] + HUGE + whole[16:],
    "pairs": lambda whole: whole[:16] + HUGE + whole[24:],
    "a string": lambda whole: replaced(whole, b"tokenizer.ggml.pre", HUGE, behind=4),
    "a list of strings": lambda whole: replaced(whole, b"tokenizer.ggml.tokens", HUGE, behind=8),
    "a list of numbers": lambda whole: replaced(whole, b"tokenizer.ggml.token_type", HUGE, behind=8),
    "a list of lists": lambda whole: replaced(whole, b"tokenizer.ggml.token_type", b"\x09", behind=4),
    "dimensions": lambda whole: replaced(whole, b"token_embd.weight", b"\xff\xff\xff"),
    "a dimension": lambda whole: replaced(whole, b"token_embd.weight", HUGE, behind=4),
    "an offset": lambda whole: replaced(whole, b"token_embd.weight", HUGE, behind=24),
    "layers": lambda whole: replaced(whole, b"llama.block_count", b"\xff\xff\xff\x7f", behind=4),
    "width": lambda whole: replaced(whole, b"llama.embedding_length", b"\x00\x00\xff\x7f", behind=4),
    "inner width": lambda whole: replaced(whole, b"llama.feed_forward_length", b"\x00\x00\xff\x7f", behind=4),
    "a key that is no text": lambda whole: whole.replace(b"general.file_type", b"general.file\xff\xfeype"),
    "a value that is no text": lambda whole: whole.replace(b"smollm", b"smo\xff\xfem"),
    "a piece that is no text": lambda whole: whole.replace(b"<|end|>", b"<|\xff\xfe\xfd|>"),
    "a name that is no text": lambda whole: whole.replace(b"blk.1.attn_q", b"blk.\xff.attn_q"),
}


VALUES: dict[str, Any] = {
    "uint8": 200, "int8": -3, "uint16": 40_000, "int16": -5, "uint32": 2**31, "int32": -7, "uint64": 2**40,
    "int64": -(2**40), "float32": 0.5, "float64": 0.1, "bool": True, "string": "é", "array": [1, 2, 3],
}  # fmt: skip


def test_a_header_says_what_the_reader_of_gguf_finds(tmp_path, stock):
    """Values of every type; the outline that a configuration is made of has them all, of an empty vocabulary."""

    def edit(writer):
        for name, value in VALUES.items():
            getattr(writer, f"add_{name}")(f"own.{name}", value)

    path, names = write_gguf(tmp_path / "tiny.gguf", stock, edit=edit), set(VALUES)
    header, read = read_headers([path]), gguf.GGUFReader(str(path))
    found = {key: field.contents() for key, field in read.fields.items() if not key.startswith("GGUF.")}
    assert {key: found[f"own.{key}"] for key in names} == VALUES
    assert header.values == found
    (tmp_path / "outline.gguf").write_bytes(header.outline)
    outline = gguf.GGUFReader(str(tmp_path / "outline.gguf"))
    assert set(outline.fields) == set(read.fields)
    emptied = {key for key in found if outline.fields[key].contents() != found[key]}
    assert emptied == {f"tokenizer.ggml.{key}" for key in ("tokens", "token_type")}
    assert [tensor.name for tensor in outline.tensors] == [tensor.name for tensor in read.tensors]


def test_what_is_written_of_a_vocabulary_is_short_and_the_same(tmp_path, stock):
    list(prepare_gguf([write_gguf(tmp_path / "tiny.gguf", stock)], tmp_path))
    ours = load_tokenizer(tmp_path)
    assert "\n" not in (tmp_path / "tokenizer.json").read_text()
    ours.save_pretrained(tmp_path / "again")
    again = load_tokenizer(tmp_path / "again")
    assert again.backend_tokenizer.to_str() == ours.backend_tokenizer.to_str()
    assert again.all_special_ids == ours.all_special_ids == [len(TOKENS) - 1]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_header_that_promises_too_much_is_one_model_error(tmp_path, stock, damage):
    whole = write_gguf(tmp_path / "tiny.gguf", stock).read_bytes()
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(DAMAGES[damage](whole))
    (tmp_path / "out").mkdir()
    with swift(1):
        with pytest.raises(ModelError) as caught:
            list(prepare_gguf([broken], tmp_path / "out"))
        assert caught.value.hint


def test_a_header_is_not_made_objects_of_however_long_it_is(tmp_path):
    path, count = tmp_path / "long.gguf", 100_000_000
    with path.open("wb") as file:
        file.write(struct.pack("<4sIQQQ4sIIQ", b"GGUF", 3, 0, 1, 4, b"long", 9, 0, count))
        file.truncate(count + 1000)
    with swift(1), pytest.raises(ModelError, match="longer than 67,108,864 bytes"):
        read_headers([path])


def test_a_file_that_changed_is_walked_again(tmp_path, stock):
    path = write_gguf(tmp_path / "tiny.gguf", stock)
    before = read_preambles([path])
    with mock.patch.object(preamble, "read_header") as walked:
        assert read_preambles([path]) == before
    walked.assert_not_called()
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ModelError):
        read_preambles([path])


def test_a_kind_that_nobody_knows_yet_is_no_damage(tmp_path, stock):
    whole = bytearray(write_gguf(tmp_path / "tiny.gguf", stock).read_bytes())
    name = b"blk.0.ffn_up.weight"
    at = whole.index(name) + len(name) + 4 + 2 * 8  # behind how many dimensions there are, and those
    whole[at : at + 4] = (999).to_bytes(4, "little")
    (tmp_path / "new.gguf").write_bytes(whole)
    with pytest.raises(ModelError, match=r"ffn_up\.weight is of kind 999, which is not known here") as caught:
        read_headers([tmp_path / "new.gguf"])
    assert "Q4_K_M" in str(caught.value.hint)


def test_a_piece_that_is_too_long_to_be_one_is_refused(tmp_path, stock):
    def edit(writer):
        writer.kv_data[0].pop("tokenizer.ggml.tokens")
        writer.add_token_list([*TOKENS[:-1], "x" * 100_000])

    with pytest.raises(ModelError, match="100,000 bytes"):
        list(prepare_gguf([write_gguf(tmp_path / "long.gguf", stock, edit=edit)], tmp_path))


def test_a_mutated_file_converts_or_is_one_model_error(tmp_path, stock):
    """Seeded mutations of a header's bytes; the pieces are written anew for each, so that nothing is left over."""
    whole = write_gguf(tmp_path / "tiny.gguf", stock).read_bytes()
    header, outcomes = whole.index(b"output_norm.weight") + 60, set()
    for seed in range(40):
        random, mutated = Random(seed), bytearray(whole)
        for _ in range(random.randint(1, 4)):
            at = random.randrange(header)
            mutated[at : at + random.choice([1, 4, 8])] = random.randbytes(random.choice([0, 1, 4, 8]))
        (tmp_path / "mutated.gguf").write_bytes(mutated)
        try:
            list(prepare_gguf([tmp_path / "mutated.gguf"], tmp_path / "out"))
            outcomes.add("converted")
        except ModelError:
            outcomes.add("refused")
    assert "refused" in outcomes


@pytest.mark.parametrize(
    ("name", "reason"),
    [("rwkv6", ""), ("qwen35moe", ""), ("gemma4", ": that its files"), ("gpt-oss", ": that its files")],
)
def test_an_unknown_architecture_is_refused_by_name(tmp_path, stock, name, reason):
    path = write_gguf(tmp_path / "tiny.gguf", stock, architecture=name)
    with pytest.raises(ModelError, match=f"'{name}' is not supported{reason}") as caught:
        list(ensure_local(str(path)))
    assert caught.value.hint


def test_an_unknown_tokenizer_is_refused_unless_another_is_named(tmp_path, stock):
    path = write_gguf(tmp_path / "tiny.gguf", stock, pre="chatglm-9")
    with pytest.raises(ModelError, match="chatglm-9"):
        list(ensure_local(str(path)))
    other = write_gguf(tmp_path / "other.gguf", stock)
    list(ensure_local(str(other)))
    list(ensure_local(str(path), tokenizer_dir=local_path(str(other))))
    with pytest.raises(ModelError, match="tokenizer"):
        load_model(str(path), device="cpu")
    assert load_model(str(path), device="cpu", tokenizer_dir=local_path(str(other))).tokenizer("he")["input_ids"]


def test_rope_scaling_comes_through(tmp_path, stock):
    def yarn(writer):
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(128)

    def llama3(writer):
        divisors = np.array(llama3_divisors(HEAD_DIM // 2, 50000.0, 8.0), dtype=np.float32)
        writer.add_tensor("rope_freqs.weight", divisors)

    def odd(writer):
        writer.add_tensor("rope_freqs.weight", np.array([9.0, 1.0, 3.0, 2.0], dtype=np.float32))

    found = {}
    for edit in (yarn, llama3):
        path = write_gguf(tmp_path / f"{edit.__name__}.gguf", stock, edit=edit)
        list(ensure_local(str(path)))
        found[edit.__name__] = load_model(str(path), device="cpu").model.config.rope_parameters
    assert (found["yarn"]["rope_type"], found["yarn"]["factor"]) == ("yarn", 4.0)
    assert found["yarn"]["original_max_position_embeddings"] == 128
    assert (found["llama3"]["rope_type"], found["llama3"]["factor"]) == ("llama3", 8.0)
    assert found["llama3"]["rope_theta"] == 50000.0
    with pytest.raises(ModelError, match="rope_freqs"):
        list(ensure_local(str(write_gguf(tmp_path / "odd.gguf", stock, edit=odd))))
