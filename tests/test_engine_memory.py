"""Memory: the estimate against what a prefill really takes."""

import gc
import json
import mmap
import runpy
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from support.families import SHAPE, full_plan, make_prompt, planned_for, tiny
from support.memory import peak_of
from support.native import OF_GLIBC
from uncomp_cli.budget.baselines import UniformPolicy
from uncomp_cli.budget.plan import Wanted
from uncomp_cli.config import ScorerConfig
from uncomp_cli.engine.read.reader import Reader
from uncomp_cli.engine.spend import memory
from uncomp_cli.engine.spend.memory import estimate, free_bytes, peak_bytes, reset_peak, resident_bytes

CPU = torch.device("cpu")
MIB = 2**20


@pytest.mark.parametrize(
    ("family", "kept", "bits", "off"),
    [
        *((family, kept, 16, 0.02) for family in ("llama", "qwen3") for kept in (1.0, 0.1)),
        ("llama", 1.0, 8, 0.05),
        ("llama", 1.0, 4, 0.05),
    ],
)
def test_the_peak_is_estimated(
    family: str, kept: float, bits: int, off: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3}.items():
        monkeypatch.setitem(SHAPE, key, value)
    _, decoder, spec = tiny(family)
    prompt = make_prompt(1500, [20], protected=4)
    entries = int(spec.full_entries(prompt.seq_len) * kept)
    plan = UniformPolicy().plan(Wanted(spec, seq_len=prompt.seq_len, entries=entries, protected=prompt.always_kept))
    plan, config = replace(plan, kv_bits=bits), ScorerConfig(window=8)

    def work() -> Any:
        reader = Reader(decoder, planned_for(decoder, prompt, plan, config))
        return reader.cache, reader.read_chunk(*reader.chunks)

    window = config.window if kept < 1 else 0
    assert peak_of(work) == pytest.approx(estimate(spec, plan, prompt=prompt, window=window).peak_bytes, rel=off)


def test_free_memory() -> None:
    assert free_bytes(CPU) > 10 * MIB


def test_the_control_groups_limit_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_CGROUP", tmp_path)
    unlimited = free_bytes(CPU)
    for limit, free in (("3000000", 2_000_000), ("500000", 0)):
        (tmp_path / "memory.max").write_text(limit + "\n")
        (tmp_path / "memory.current").write_text("1000000\n")
        assert free_bytes(CPU) == free
    # Cached files count as used, and are given back when memory is asked for.
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 300000\nactive_file 100000\n")
    assert free_bytes(CPU) == 0
    (tmp_path / "memory.max").write_text("900000\n")
    assert free_bytes(CPU) == 300_000
    (tmp_path / "memory.max").write_text("max\n")
    assert free_bytes(CPU) > unlimited / 2
    # Groups of version 1, whose "no limit" is a number.
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory/memory.usage_in_bytes").write_text("1000000\n")
    (tmp_path / "memory/memory.stat").write_text(
        "inactive_file 1\ntotal_inactive_file 300000\ntotal_active_file 100000\n"
    )
    for limit, at_least, at_most in (("3000000", 2_400_000, 2_400_000), (str(2**63 - 4096), unlimited // 2, 2**62)):
        (tmp_path / "memory/memory.limit_in_bytes").write_text(limit + "\n")
        assert at_least <= free_bytes(CPU) <= at_most


def test_the_high_water_mark() -> None:
    gc.collect()
    reset_peak(CPU)
    before = peak_bytes(CPU)
    block = mmap.mmap(-1, 256 * MIB)  # not from the heap, which may have as much that it keeps
    np.frombuffer(block, dtype=np.uint8)[:] = 1
    held = resident_bytes(CPU)
    block.close()
    assert peak_bytes(CPU) >= before + 32 * MIB
    assert peak_bytes(CPU) >= held - MIB
    assert resident_bytes(CPU) < held


def test_a_peak_without_proc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mark = peak_bytes(CPU)
    monkeypatch.setattr(memory, "_STATUS", tmp_path / "none")
    assert peak_bytes(CPU) >= mark - MIB  # the process's, in bytes
    assert peak_bytes(CPU) < 1000 * mark


def test_wider_models_need_more() -> None:
    _, _, spec = tiny("llama")
    plan = full_plan(spec, make_prompt(500, [5]))
    base = estimate(spec, plan)
    assert base.peak_bytes == base.kv_kept_bytes + base.activation_bytes
    assert estimate(replace(spec, intermediate_size=480), plan).activation_bytes > 4 * base.activation_bytes
    assert estimate(replace(spec, num_heads=80), plan).activation_bytes > 3 * base.activation_bytes
    assert estimate(replace(spec, dtype_bytes=2), plan).activation_bytes == base.activation_bytes // 2


_HEAPS = """
import ctypes, os, tempfile, threading
from uncomp_cli.kernels.library import share_heap

share_heap()
libc = ctypes.CDLL(None)
libc.fdopen.restype, libc.malloc.restype = ctypes.c_void_p, ctypes.c_void_p
thread = threading.Thread(target=lambda: libc.malloc(ctypes.c_size_t(2**16)))
thread.start(); thread.join()
with tempfile.TemporaryFile() as file:
    stream = ctypes.c_void_p(libc.fdopen(os.dup(file.fileno()), b"w"))
    libc.malloc_info(0, stream); libc.fclose(stream)
    file.seek(0)
    print(file.read().count(b"<heap nr"))
"""


@OF_GLIBC
def test_threads_take_memory_from_one_heap() -> None:
    done = subprocess.run([sys.executable, "-c", _HEAPS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]


@pytest.mark.slow
def test_half_a_billion_weights_take_their_file_and_little_more(tmp_path: Path) -> None:
    """Of `uncomp ask` with a document of 1,500 tokens, whose every byte is one: the file and 600 MB."""
    shapes = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "large_gguf.py"))
    model, document = tmp_path / "half.gguf", tmp_path / "text.txt"
    shapes["make"](model, shapes["SHAPES"]["0.5b"], shapes["gguf"].GGMLQuantizationType.Q4_0)
    document.write_text("Seven boats came north. " * 62)
    command = [sys.executable, "-m", "uncomp_cli", "ask", "Who came?", "-m", str(model), "-f", str(document)]
    subprocess.run([*command, "--dry-run"], capture_output=True, check=True)  # the vocabulary is read for good
    done = subprocess.run([*command, "--json", "--max-new-tokens", "4"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1])["memory"]["peak_bytes"] < model.stat().st_size + 600e6
