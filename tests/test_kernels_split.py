"""The decode kernel of a GPU against the calls of SDPA that it takes the place of, and that it is taken and given up.

On a CPU Triton interprets it, which multiplies bfloat16 as whole numbers: of its types float32 and float16 are tried
there, all are compiled.
"""

import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

from uncomp_cli.cache.layer import LayerCache
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.cache.softmax import Form
from uncomp_cli.engine.forward import attention
from uncomp_cli.engine.forward.attention import attend_cached, attend_split
from uncomp_cli.kernels import launch
from uncomp_cli.kernels.launch import HINT, SplitDecode

pytest.importorskip("triton", reason=f"Triton is missing: {HINT}")
LENGTHS = [5, 0, 130, 300]


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> tuple[SplitDecode, torch.device]:
    """Compiled where there is a GPU; interpreted elsewhere (support). `attend_cached` is torch's."""
    monkeypatch.setattr(attention, "find_split", lambda device: None)
    return SplitDecode(), torch.device("cuda" if torch.cuda.is_available() else "cpu")


def ragged(lengths: list[int], *, rows: int, bits: int, dim: int, dtype: torch.dtype, device: str) -> RaggedKVCache:
    """A layer of random heads of these lengths, and the room for two tokens behind them."""
    torch.manual_seed(len(lengths) + dim)
    heads = [(torch.randn(2, n, dim).to(device, dtype), torch.arange(n, device=device)) for n in lengths]
    cache = RaggedKVCache(num_layers=1, num_rows=rows, num_kv_heads=len(lengths) // rows, kv_bits=bits)
    cache.store(0, [(both[0], both[1], at.to(torch.int32)) for both, at in heads], reserve=2)
    return cache


def add_token(cache: RaggedKVCache) -> None:
    like = cache.layer(0).keys
    new = torch.randn(2, cache.num_rows, cache.num_kv_heads, 1, like.shape[1]).to(like)
    cache.append(0, new[0], new[1], torch.full((cache.num_rows, 1), 999, device=like.device))


def queries(layer: LayerCache, rows: int, per_head: int) -> Tensor:
    shape = rows, len(layer.lengths) // rows * per_head, 1, layer.keys.shape[1]
    return torch.randn(shape).to(layer.keys)


CASES = {
    "16 bits": {},
    "one query a head": {"per_head": 1},
    "several groups' queries": {"per_head": 8, "dim": 128},
    "8 bits": {"bits": 8},
    "4 bits": {"bits": 4},
    "channels of two scales": {"bits": 4, "dim": 96},
    "channels of no power of two": {"bits": 8, "dim": 6},
    "rows": {"rows": 2},
    "rows of 4 bits": {"rows": 2, "bits": 4},
    "a window": {"window": 70},
    "a window within the bits": {"window": 90, "bits": 4, "rows": 2},
    "a window of one token": {"window": 1},
    "softcap": {"softcap": 5.0},
    "sinks": {"sinks": True, "rows": 2},
    "one length": {"lengths": [64] * 4},
    "nothing before": {"lengths": [0] * 4},
    "half": {"dtype": torch.float16},
    "half of 8 bits": {"dtype": torch.float16, "bits": 8},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_kernel_is_attention(kernel: tuple[SplitDecode, torch.device], case: dict[str, Any]) -> None:
    """At two tokens one after the other, the second where the first has left everything."""
    run, device = kernel
    bits, rows, dtype, per_head = (
        case.get(name, default)
        for name, default in (("bits", 16), ("rows", 1), ("dtype", torch.float32), ("per_head", 3))
    )
    cache = ragged(
        case.get("lengths", LENGTHS), rows=rows, bits=bits, dim=case.get("dim", 64), dtype=dtype, device=device.type
    )
    layer = cache.layer(0)
    sinks = torch.randn(len(layer.lengths) // rows * per_head, device=device) if "sinks" in case else None
    form = Form(0.1, case.get("window"), case.get("softcap"), sinks=sinks)
    for _ in range(2):
        add_token(cache)
        query = queries(layer, rows, per_head)
        found = attend_split(run, query, layer, form)
        assert run.broken is None
        assert found is not None
        close = {"atol": 2e-5, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 4e-3, "rtol": 1e-2}
        torch.testing.assert_close(found, attend_cached(query, layer, form), **close)


@pytest.mark.parametrize(
    ("lengths", "programs", "parts"),
    [([1200, 3], launch._PROGRAMS, (64, 19)), (LENGTHS, 2, (256, 2))],
    ids=["more than are merged together", "few programs"],
)
def test_parts_of_a_head_are_merged(
    kernel: tuple[SplitDecode, torch.device], lengths: list[int], programs: int, parts: tuple[int, int]
) -> None:
    """Where one entry outweighs all others."""
    cache = ragged(lengths, rows=1, bits=16, dim=16, dtype=torch.float32, device=kernel[1].type)
    layer, run = cache.layer(0), SplitDecode(programs)
    layer.keys[100] *= 30
    strands = layer.strands()
    assert strands is not None
    assert run.parts(strands, None) == parts
    query = queries(layer, 1, 2)
    torch.testing.assert_close(attend_split(run, query, layer, Form(0.5)), attend_cached(query, layer, Form(0.5)))


def test_heads_that_change_are_found_anew(kernel: tuple[SplitDecode, torch.device]) -> None:
    """Fewer entries, in place and laid out anew; rows in buckets; rows of other bits, which torch attends."""
    run, device = kernel
    cache = ragged(LENGTHS, rows=2, bits=8, dim=16, dtype=torch.float32, device=device.type)
    add_token(cache)
    for change in (
        lambda: cache.layer(0).compact([torch.arange(0, n + 1, 2, device=device) for n in LENGTHS]),
        lambda: cache.settle(reserve=2),
        lambda: cache.forget_from(90),
    ):
        query = queries(cache.layer(0), 2, 2)
        attend_split(run, query, cache.layer(0), Form(0.5))  # what is remembered now must not be what is read next
        change()
        add_token(cache)
        found = attend_split(run, query, cache.layer(0), Form(0.5))
        torch.testing.assert_close(found, attend_cached(query, cache.layer(0), Form(0.5)))
    alike = ragged([300, 290, 130, 0], rows=2, bits=16, dim=16, dtype=torch.float32, device=device.type)
    stacked = RaggedKVCache.stack([alike, alike], reserve=1)
    assert any(stacked.layer(0).pads)
    add_token(stacked)
    query = queries(stacked.layer(0), 4, 2)
    found = attend_split(run, query, stacked.layer(0), Form(0.5, 40))
    torch.testing.assert_close(found, attend_cached(query, stacked.layer(0), Form(0.5, 40)))
    other = ragged(LENGTHS, rows=2, bits=4, dim=16, dtype=torch.float32, device=device.type)
    assert RaggedKVCache.stack([cache, other], reserve=0).layer(0).strands() is None


def test_a_gpu_takes_the_kernel_and_gives_it_up_when_it_fails(
    kernel: tuple[SplitDecode, torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    device, made = torch.device("cuda"), SplitDecode()
    monkeypatch.setattr(launch, "load", lambda: made)
    assert launch.find(torch.device("cpu")) is None
    run = launch.find(device)
    assert run is not None
    cache = ragged(LENGTHS, rows=1, bits=16, dim=16, dtype=torch.float32, device=kernel[1].type)
    query = queries(cache.layer(0), 1, 2)
    with monkeypatch.context() as patched:
        patched.setattr(attention, "find_split", lambda _: launch.find(device))
        patched.setattr(torch.nn.functional, "scaled_dot_product_attention", None)
        taken = attend_cached(query, cache.layer(0), Form(0.5))
    torch.testing.assert_close(taken, attend_cached(query, cache.layer(0), Form(0.5)))

    def fails(*given: object, **named: object) -> None:
        raise RuntimeError("no registers\nare left")

    monkeypatch.setattr(attention, "find_split", lambda _: launch.find(device))
    monkeypatch.setattr(run, "_kernels", type("Broken", (), {"attend_part": {(4, 5): fails}}))
    torch.testing.assert_close(attend_cached(query, cache.layer(0), Form(0.5)), taken)
    assert launch.find(device) is None
    assert run.broken == "the decode kernel does not run (RuntimeError: no registers)"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert launch.state() == f"{run.broken}: torch's operations decode"
    monkeypatch.setattr(launch, "load", lambda: f"Triton is missing ({HINT})")
    assert launch.find(device) is None
    assert launch.state() == f"Triton is missing ({HINT}): torch's operations decode"


COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from uncomp_cli.kernels import splits

def compiled(kernel, types, known):
    names = kernel.arg_names
    signature = {name: "constexpr" if name in known else types.get(name, "i32") for name in names}
    values = {(names.index(name),): value for name, value in known.items()}
    return triton.compile(ASTSource(kernel, signature, values), target=GPUTarget("cuda", 90, 32)).asm["ptx"]

types = {name: "*" + sys.argv[1] for name in ("query", "turned", "keys", "values", "sinks", "output")}
types |= {name: "*i64" for name in ("starts", "ends", "fewer")} | {name: "*fp32" for name in ("outs", "sums")}
types |= {name: "fp32" for name in ("scaling", "softcap")}
bits = dict(KEY_BITS=int(sys.argv[2]), VALUE_BITS=int(sys.argv[3]), GROUP=64)
part = dict(R=4, D=128, R_PAD=16, D_PAD=128, BLOCK=64, CAPPED=True, **bits)
print("mma" in compiled(splits.attend_part, types, part))
print("ex2" in compiled(splits.merge_parts, types, dict(R=4, D=128, D_PAD=128, BLOCK=16, SINKS=True)))
"""


@pytest.mark.parametrize(
    "bits", [pytest.param((0, 0), marks=pytest.mark.slow), pytest.param((8, 8), marks=pytest.mark.slow), (5, 4)]
)
def test_it_compiles_for_a_gpu_that_is_not_here(bits: tuple[int, int], tmp_path: Any) -> None:
    """In bfloat16, for an H100's kind; its products are the tensor cores'."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILE, "bf16", *map(str, bits)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "True"], done.stderr[-1000:]
