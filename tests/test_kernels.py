"""The C library against plain loops, in every set of instructions that this CPU has; how it is built and refused."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import gguf
import pytest
import torch
from gguf import GGMLQuantizationType
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from support.commands import PATIENCE_S, fork_server
from support.native import fresh_library, levels, multiply_beside_a_closed_page
from support.operations import noise
from uncomp_cli.errors import ModelError
from uncomp_cli.kernels import compiler, library
from uncomp_cli.kernels.library import BLOCKS, LEVELS, Kind, open_library
from uncomp_cli.kernels.matrix import Matrix
from uncomp_cli.kernels.outlook import attend_many
from uncomp_cli.kernels.pages import Pages

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
KINDS = tuple(BLOCKS)
SEED = st.integers(0, 99)
THREADS = st.integers(1, 4)


SCALES_AT = {Kind.Q6_K: (208,), **dict.fromkeys((Kind.Q8_0, Kind.Q4_0, Kind.Q5_0), (0,))}


def matrix_in_blocks(kind: Kind, rows: int, blocks: int, seed: int) -> tuple[Tensor, Tensor]:
    """Blocks of random bits [rows, bytes] with scales that are numbers, and gguf's own numbers of them."""
    size, generator = BLOCKS[kind].block_bytes, torch.Generator().manual_seed(seed)
    packed = torch.randint(0, 256, (rows, blocks, size), dtype=torch.uint8, generator=generator)
    for at in SCALES_AT.get(kind, (0, 2)):
        packed[..., at : at + 2] = torch.randn(rows, blocks, 1, generator=generator).half().view(torch.uint8)
    packed = packed.view(rows, -1)
    return packed, torch.from_numpy(gguf.dequantize(packed.numpy(), GGMLQuantizationType[kind.name]))


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    yield
    torch.set_num_threads(before)


@given(st.sampled_from(DTYPES), st.integers(1, 70), st.integers(1, 200), st.integers(1, 8), THREADS, SEED)
def test_a_product_is_the_plain_one(
    dtype: torch.dtype, rows: int, cols: int, count: int, threads: int, seed: int
) -> None:
    weight, states = noise(rows, cols, seed=seed).to(dtype), noise(count, cols, seed=seed + 1)
    for level in levels():
        with torch_threads(threads):
            output = Matrix.of(weight).multiply(level, states)
        bound = 1e-6 * (states.double().abs() @ weight.double().abs().T) + 1e-30
        assert ((output - states.double() @ weight.double().T).abs() <= bound).all()


@given(st.sampled_from(KINDS), st.integers(1, 70), st.integers(1, 4), st.integers(1, 8), THREADS, SEED)
def test_a_product_of_blocks_is_that_of_their_numbers(
    kind: Kind, rows: int, blocks: int, count: int, threads: int, seed: int
) -> None:
    """Activations are off by 1/65534 of the largest of their 32 at most."""
    packed, numbers = matrix_in_blocks(kind, rows, blocks, seed)
    wide = numbers.double()
    states = noise(count, wide.shape[1], seed=seed + 1) * noise(count, 1, seed=seed + 2).exp()
    largest = states.view(count, -1, 32).abs().amax(-1, keepdim=True).expand(-1, -1, 32).reshape(states.shape).double()
    bound = (1 / 65000 + 2e-6) * largest @ wide.abs().T
    for level in levels():
        with torch_threads(threads):
            matrix = Matrix.of_blocks(level, kind, packed)
            assert torch.equal(matrix.numbers(level), numbers)
            output = matrix.multiply(level, states)
        assert ((output - states.double() @ wide.T).abs() <= bound + 1e-30).all()
    assert matrix.data.numel() <= 1.03 * packed.numel() * (-(-rows // 16) * 16 / rows)


@given(st.sampled_from(KINDS), st.integers(1, 70), st.integers(1, 3), st.lists(st.integers(0, 999), max_size=40), SEED)
def test_rows_and_parts_of_blocks_are_those_of_the_whole(
    kind: Kind, rows: int, blocks: int, wanted: list[int], seed: int
) -> None:
    """In tiles, and without the library as the file has them."""
    packed, numbers = matrix_in_blocks(kind, rows, blocks, seed)
    first, picked = seed % rows // 16 * 16, torch.tensor([row % rows for row in wanted], dtype=torch.int64)
    for level in (*levels(), None):
        matrix = Matrix.of_blocks(level, kind, packed)
        assert torch.equal(matrix.picked(level, picked), numbers[picked])
        for last in (rows, first + 1):
            assert torch.equal(matrix.part(first, last).numbers(level), numbers[first:last])
        with pytest.raises(IndexError, match=f"of {rows}"):
            matrix.picked(level, torch.tensor([rows]))


def filled(piece: Tensor, number: int) -> Tensor:
    """Its ends alone: the rest of a large one takes no memory."""
    for end in (piece[:5000], piece[-5000:]):
        end.fill_(number)
    return piece


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=20))
def test_pieces_of_pages_are_apart_and_outlive_their_pages(sizes: list[int]) -> None:
    pages = Pages()
    pieces = [filled(pages.take(size), number) for number, size in enumerate([*sizes, 2**26, *sizes])]
    del pages
    for number, (piece, size) in enumerate(zip(pieces, (*sizes, 2**26, *sizes), strict=True)):
        assert piece.numel() == size
        assert piece.data_ptr() % 64 == 0
        assert piece.untyped_storage().nbytes() == size
        assert all(bool((end == number).all()) for end in (piece[:5000], piece[-5000:]))


def plain_attention(
    query: Tensor, keys: Tensor, values: Tensor, scaling: float, window: int, sinks: Tensor | None
) -> Tensor:
    """The last N of S tokens: query [H, N, D], keys and values [G, S, D]; what a sink takes comes to nothing."""
    keys, values = (each.double().repeat_interleave(len(query) // len(each), 0) for each in (keys, values))
    ahead = torch.arange(keys.shape[1]) - torch.arange(keys.shape[1])[-query.shape[1] :, None]
    scores = (query.double() @ keys.mT * scaling).masked_fill((ahead > 0) | (ahead <= -window), float("-inf"))
    if sinks is None:
        return scores.softmax(-1) @ values
    sunk = sinks.double()[:, None, None].expand(*scores.shape[:2], 1)
    return torch.cat([scores, sunk], -1).softmax(-1)[..., :-1] @ values


@given(
    st.sampled_from([(1, 1), (3, 1), (2, 2), (6, 3)]),
    st.sampled_from([1, 5, 95, 96, 97, 200]),
    st.sampled_from([0, 1, 63, 127, 129, 300]),
    st.sampled_from([1, 8, 33, 48, 64, 80]),
    st.sampled_from([1, 2, 50, 130, 1000]),
    st.booleans(),
    THREADS,
    SEED,
)
def test_many_tokens_attend_as_in_plain_loops(
    heads: tuple[int, int], tokens: int, past: int, width: int, window: int, sunk: bool, threads: int, seed: int
) -> None:
    """Queries and entries lie as a model has them, tokens first; narrow, all is rounded to 8 bits."""
    sizes, scaling = ((tokens, heads[0]), *[(past + tokens, heads[1])] * 2), width**-0.5
    query, keys, values = (noise(*size, width, seed=seed + at).transpose(0, 1) for at, size in enumerate(sizes))
    own, before = (keys[:, past:], values[:, past:]), (keys[:, :past], values[:, :past]) if past else None
    sinks = 4 * noise(heads[0], seed=seed) if sunk else None
    plain = plain_attention(query, keys, values, scaling, window, sinks)
    form = {"scaling": scaling, "window": window, "sinks": sinks}
    for level in levels():
        for narrow in (False, True) if level.has_brain else (False,):
            with torch_threads(threads):
                found = attend_many(level, query, before, own, narrow=narrow, **form)
            assert found.transpose(0, 1).is_contiguous()
            assert (found - plain).abs().max() <= (0.06 if narrow else 4e-6)
    with pytest.raises(ValueError, match="is no query of"):
        attend_many(level, query, before, (keys, values[:, 1:]), scaling=scaling, window=None, narrow=False)


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_zeros_is_zero(kind: Kind) -> None:
    packed, _ = matrix_in_blocks(kind, 16, 2, seed=1)
    for level in levels():
        matrix = Matrix.of_blocks(level, kind, packed)
        assert torch.equal(matrix.multiply(level, torch.zeros(1, matrix.cols)), torch.zeros(1, 16))


def test_what_does_not_fit_is_refused_before_the_library_is_called() -> None:
    level = levels()[-1]
    with pytest.raises(ValueError, match="no blocks of Q4_0"):
        Matrix.of_blocks(level, Kind.Q4_0, torch.zeros(4, 19, dtype=torch.uint8))
    with pytest.raises(ValueError, match="no matrix"):
        Matrix.of(torch.zeros(4, 4, dtype=torch.int64))
    with pytest.raises(ValueError, match="are no 4 x 4 FLOAT32"):
        Matrix(Kind.FLOAT32, 4, 4, torch.zeros(15))
    with pytest.raises(ValueError, match="are no 4 x 4 FLOAT32"):
        Matrix.of(torch.zeros(4, 8)[:, ::2])
    with pytest.raises(ValueError, match="are no 16 x 33 Q8_0"):
        Matrix(Kind.Q8_0, 16, 33, torch.zeros(16 * 34, dtype=torch.uint8))
    for states in (torch.zeros(9, 4), torch.zeros(1, 5), torch.zeros(1, 4).half()):
        with pytest.raises(ValueError, match="are no 1 to 8 rows of 4"):
            Matrix.of(torch.zeros(3, 4)).multiply(level, states)


@pytest.mark.parametrize("dtype", DTYPES[1:])
@pytest.mark.parametrize("cols", [16, 1])
def test_every_number_of_16_bits_is_read_as_it_is(dtype: torch.dtype, cols: int) -> None:
    weight = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    weight = weight[weight.isfinite()].view(-1, cols).contiguous()
    for level in levels():
        for column in range(cols):
            row = torch.zeros(1, cols)
            row[0, column] = 1.0
            assert torch.equal(Matrix.of(weight).multiply(level, row)[0], weight[:, column].float())


def test_threads_of_python_may_call_at_once() -> None:
    level, weight = levels()[-1], torch.randn(300, 64)
    found: dict[int, bool] = {}

    def call(number: int) -> None:
        rows = torch.randn(3, 64, generator=torch.Generator().manual_seed(number))
        expected = rows @ weight.T
        outputs = [Matrix.of(weight).multiply(level, rows) for _ in range(50)]
        found[number] = all(torch.allclose(output, expected, atol=1e-4) for output in outputs)

    threads = [Thread(target=call, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == dict.fromkeys(range(4), True)


FORKED = """
import os, sys
import numpy as np
from uncomp_cli.kernels.library import Product, find
weight, row = np.ones((64, 32), np.float32), np.ones((1, 32), np.float32)
def product():
    output = np.zeros((1, 64), np.float32)
    find().product(Product(0, 64, 32, 1, weight.ctypes.data, row.ctypes.data, output.ctypes.data, None, 0), 3)
    return bool((output == 32).all())
assert product()
child = os.fork()
if not child:
    os._exit(0 if product() and product() else 1)
assert product()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_the_child_of_a_fork_has_threads_of_its_own() -> None:
    fresh_library()
    root = str(Path(__file__).parent.parent)
    subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], check=True, timeout=60, cwd=root)


@pytest.mark.skipif(sys.platform != "linux", reason="a page is closed as Linux does it")
def test_nothing_is_read_behind_a_matrix() -> None:
    fresh_library()
    process = fork_server().Process(target=multiply_beside_a_closed_page, daemon=True)
    process.start()
    process.join(PATIENCE_S)
    assert process.exitcode == 0


def test_a_library_that_was_cut_short_is_refused_and_ends_nothing(tmp_path: Path) -> None:
    """A process that reads a page of a file that is not there is ended by the system."""
    cut, whole = tmp_path / "cut.so", library.FILE.read_bytes()
    for size in (20_000, len(whole) * 3 // 4, len(whole) - 1):
        cut.write_bytes(whole[:size])
        code = f"from pathlib import Path; from uncomp_cli.kernels.library import *; open_library(Path({str(cut)!r}))"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 1, done.stderr
        assert "cut short" in done.stderr


def test_a_damaged_or_missing_library_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    damaged = tmp_path / "damaged.so"
    damaged.write_bytes(b"\x7fELF but not really")
    with pytest.raises(ModelError, match="cannot be opened"):
        open_library(damaged)
    with pytest.raises(ModelError, match="was not built"):
        open_library(tmp_path / "missing.so")
    path = fresh_library()
    monkeypatch.setattr(library, "_VERSION", 0)
    with pytest.raises(ModelError, match="another version"):
        open_library(path)


def test_instructions_that_a_cpu_lacks_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    path = fresh_library()
    monkeypatch.setattr(library, "LEVELS", (*LEVELS, "avx1024"))
    with pytest.raises(ModelError, match="no avx1024"):
        open_library(path, "avx1024")


def test_the_state_says_what_there_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fresh_library()
    assert library.state().startswith("one call a token")
    monkeypatch.setattr(library, "FILE", tmp_path / "missing.so")
    assert library.state().startswith("the native library was not built")
    assert library.HINT in library.state()


def test_without_a_compiler_the_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    monkeypatch.setattr(compiler, "find_spec", lambda name: None)
    with pytest.raises(compiler.CompilerError, match="no C compiler"):
        compiler.compile_library(tmp_path)
    monkeypatch.setattr(compiler, "compilers", lambda: iter([[sys.executable, "-c", "raise SystemExit('broken')"]]))
    with pytest.raises(compiler.CompilerError, match="broken"):
        compiler.compile_library(tmp_path)
    assert not list(tmp_path.iterdir())
