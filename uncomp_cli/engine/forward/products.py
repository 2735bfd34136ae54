"""A model's products: linear layers of float32 on the CPU, and MLPs that take their rows in slices.

Linear layers: one row on all cores, many rows in a narrower type. With the C library (kernels/) a weight matrix whose
float32 numbers are all numbers of 16 bits, as it is stored on the disk, is held in 16 bits: few rows are multiplied
by the library, for many the matrix is widened while it is used, one at a time. Nothing is rounded. So it is with the
blocks of a GGUF (models/weights/): they become numbers for many rows, `PART_NUMBERS` at a time.

Decoding multiplies one row by every weight matrix. torch hands that to a BLAS routine that runs on one thread and
reads weights at a third of the memory's bandwidth (measured: 57 ms a token where reading takes 20, 2 cores, float32,
SmolLM2-135M). A batched product over blocks of output features is the same arithmetic on all threads: 33 ms.

Three products, chosen once for a model (`use_product`):

    float32    y = x W'                            weights shared, nothing is copied. On AMD's CPUs oneDNN multiplies
               many rows: torch's MKL takes 1.1 times as long there (measured, EPYC with AVX-512)
    bfloat16   y = float(bf16(x) bf16(W)')         for _MANY_ROWS rows or more; fewer rows are float32's. The weights
               stay float32; a matrix is rounded when it is used: one rounded matrix at a time is all it costs
    int8       y = s * float(bf16(x) Q'),          W ~ s Q, one scale s a output feature, Q in -127..127, which
               bfloat16 holds exactly. Q takes the weights' place: a quarter of their bytes are held and read

`auto` is bfloat16 where this machine multiplies it faster, by a trial that is made once and remembered, and the model
is wide enough to gain; attention of many tokens then is of bfloat16 too (attention.py). On an EPYC with AVX-512 BF16
products are 2.0 times as fast, attention 1.7; a first token at 7,500 tokens takes 0.65 of the time. KL to float32 with
everything kept: 1e-4 nats in the mean.

The sums are float32 in all three. A row's result does not depend on the other rows (unlike LLM.int8()).

MLPs (`slice_mlps`) hold gate, up and their product, 3 · intermediate_size numbers a token, the widest point of a
forward pass. Each row is independent of the others, so rows in slices of `SLICE_ROWS` give the same result from a
buffer of constant size: in slices of 512 a model of 0.5 billion weights takes 86 MiB less than in slices of 2,048, and
up to 2 % more time, since blocks are made numbers for every slice. Norms are left whole: their temporaries are no wider
than the hidden states. The module inside may be of any kind whose rows are independent: plain, fused or quantized
weights, but not LLM.int8(), whose rows interact.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from uncomp_cli.config import Matmul
from uncomp_cli.errors import UsageError
from uncomp_cli.files import write_whole
from uncomp_cli.kernels.library import BLOCKS, MOST_ROWS, TILE_ROWS, Library, give_back
from uncomp_cli.kernels.matrix import Matrix
from uncomp_cli.models.sources import cache_dir
from uncomp_cli.models.weights.modules import BlockLinear
from uncomp_cli.schema import load_object, value_of

SLICE_ROWS = 512

_MAX_BLOCKS = 16
# Up to here the library's product is faster than one of expanded weights.
_FEW_ROWS = 4
# The library multiplies a row by blocks as fast as torch does by float32 numbers once they are made; to make them takes
# as long as some 16 rows.
_FEW_ROWS_OF_BLOCKS = 16
# How much faster bfloat16 has to be, by the best of so many products of a square, 20 ms each.
_LEAST_GAIN, _TRIALS, _TRIAL_WIDTH = 1.15, 3, 1024
# Narrower layers are over before rounding pays.
_LEAST_FEATURES = 256
# So many numbers are made of blocks at a time: 16 MiB.
PART_NUMBERS = 2**22
# Rows that are looked at together: what is made of them stays in a cache.
_PART_ROWS = 64
# From here on every product for many rows is the faster one: in float32 by 1 %, in bfloat16 by 24, of bytes by 19
# (576 → 1,536 features, 2 to 128 rows tried, one core of an EPYC with AVX-512 BF16).
_MANY_ROWS = 16
# torch and oneDNN each keep a product for every number of rows that they have seen, 0.6 MiB apiece and 1,024 of them:
# every turn of a chat brings numbers of its own. One reading needs two numbers, whole and thinned, of five matrices.
_KEPT_PRODUCTS = {"LRU_CACHE_CAPACITY": "16", "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16"}
_MOST = 127
# torch's product of few rows with bytes reads 16 or 32 features at once, past the end of a row that is no multiple.
_STEP = 32


class RowLinear(nn.Module):
    """A linear layer whose product with a single row is split into blocks of output features.

    With `narrow`, `_MANY_ROWS` rows or more are multiplied in bfloat16. With the `library`, few rows are its business,
    and the weights may be of 16 bits, or a GGUF's blocks, which are `held`: then there is no `weight`.
    """

    weight: Tensor

    def __init__(
        self, linear: nn.Linear | BlockLinear, *, narrow: bool = False, library: Library | None = None
    ) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias, self.library, self.narrow = linear.bias, library, narrow
        self.blocks = next(b for b in (_MAX_BLOCKS, 8, 4, 2, 1) if linear.out_features % b == 0)
        self.avoids_mkl = _avoids_mkl()
        self.held = linear.matrix if isinstance(linear, BlockLinear) and linear.matrix.kind in BLOCKS else None
        if isinstance(linear, BlockLinear):
            self.register_buffer("weight" if self.held is None else "data", linear.data, persistent=False)
        else:
            self.weight = linear.weight

    @property
    def matrix(self) -> Matrix:
        """The weights as the library reads them."""
        return Matrix.of(self.weight) if self.held is None else self.held

    def parts(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """The weights as numbers, some rows at a time where they are made so."""
        if self.held is None:
            yield slice(None), self.weight.to(dtype)
            return
        rows = max(TILE_ROWS, PART_NUMBERS // self.in_features // TILE_ROWS * TILE_ROWS)
        for first in range(0, self.out_features, rows):
            last = min(self.out_features, first + rows)
            yield slice(first, last), self.held.part(first, last).numbers(self.library).to(dtype)

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] → [..., out]."""
        if self.library is not None and self._are_few(input):
            return _add(self._few(input, self.library), self.bias)
        if torch.is_grad_enabled() and (self.held is not None or self.weight.dtype != input.dtype):
            return _add(_widened(input, self), self.bias)
        narrow = self.narrow and _are_many(input)
        parts = self.parts(torch.bfloat16 if narrow else input.dtype)
        products = [self._product(input, at, weight) for at, weight in parts]
        return products[0] if len(products) == 1 else torch.cat(products, dim=-1)

    def _product(self, input: Tensor, at: slice, weight: Tensor) -> Tensor:
        """[..., in] → [..., the features `at`], whose weights these are."""
        bias = self.bias if self.bias is None else self.bias[at]
        if weight.dtype != input.dtype:
            return _add(nn.functional.linear(input.to(weight.dtype), weight).to(input.dtype), bias)
        if _are_many(input) and self.avoids_mkl and not torch.is_grad_enabled():
            product: Tensor = torch.ops.mkldnn._linear_pointwise(input, weight, bias, "none", [], "")
            return product
        if self.held is not None or input.numel() != self.in_features or torch.get_num_threads() == 1:
            return nn.functional.linear(input, weight, bias)
        row = input.reshape(1, 1, -1).expand(self.blocks, 1, -1)
        blocks = weight.view(self.blocks, -1, self.in_features).transpose(1, 2)
        return _add(torch.bmm(row, blocks).view(*input.shape[:-1], self.out_features), bias)

    def _are_few(self, input: Tensor) -> bool:
        """Whether the library takes these rows."""
        most = (_FEW_ROWS if self.held is None else _FEW_ROWS_OF_BLOCKS) * self.in_features
        fits = input.shape[-1] == self.in_features and input.dtype == torch.float32 and input.device.type == "cpu"
        return fits and 0 < input.numel() <= most and not torch.is_grad_enabled()

    def _few(self, input: Tensor, library: Library) -> Tensor:
        """[..., in] → [..., out], by the library."""
        rows, matrix = input.reshape(-1, self.in_features), self.matrix
        some = [matrix.multiply(library, rows[at : at + MOST_ROWS]) for at in range(0, len(rows), MOST_ROWS)]
        return torch.cat(some).view(*input.shape[:-1], self.out_features)


def _are_many(input: Tensor) -> bool:
    """Whether rows are so many that a product for many is the faster one."""
    return input.numel() >= _MANY_ROWS * input.shape[-1] and input.dtype == torch.float32


class _Widened(torch.autograd.Function):
    """A product with weights that are widened again on the way back: no wide weight waits for it."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, layer: RowLinear) -> Tensor:
        """[..., in] → [..., out]."""
        ctx.layer = layer
        output = input.new_empty(*input.shape[:-1], layer.out_features)
        for at, weight in layer.parts(input.dtype):
            output[..., at] = nn.functional.linear(input, weight)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """[..., out] → [..., in]; weights have no gradient."""
        given = gradients[0]
        output = given.new_zeros(*given.shape[:-1], ctx.layer.in_features)
        for at, weight in ctx.layer.parts(given.dtype):
            output += given[..., at] @ weight
        return output, None


_widened: Callable[[Tensor, RowLinear], Tensor] = _Widened.apply


class ShortEmbedding(nn.Embedding):
    """An embedding of float32 numbers that are held in 16 bits."""

    def __init__(self, embedding: nn.Embedding) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim
        self.register_buffer("weight", embedding.weight)

    def forward(self, input: Tensor) -> Tensor:
        """[...] → [..., hidden_size]."""
        return nn.functional.embedding(input, self.weight).float()


class ByteLinear(nn.Module):
    """A linear layer whose weights are bytes and a scale for every output feature; for inference alone."""

    weight: Tensor
    scale: Tensor
    ones: Tensor

    def __init__(self, linear: nn.Linear | BlockLinear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        weight = linear.matrix.numbers(linear.library) if isinstance(linear, BlockLinear) else linear.weight.detach()
        scale = (weight.abs().amax(dim=1) / _MOST).clamp(min=torch.finfo(torch.float32).tiny)
        self.register_buffer("weight", (weight / scale[:, None]).round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("ones", torch.ones(self.out_features, dtype=torch.bfloat16))
        self.bias = linear.bias

    def forward(self, input: Tensor) -> Tensor:
        """[..., in] → [..., out], in float32."""
        rows = input.reshape(-1, self.in_features).bfloat16()
        if len(rows) < _MANY_ROWS and self.in_features % _STEP == 0:
            product = torch._weight_int8pack_mm(rows, self.weight, self.ones)
        else:
            product = nn.functional.linear(rows, self.weight.bfloat16())
        return _add(product.float().mul_(self.scale).view(*input.shape[:-1], self.out_features), self.bias)


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in instructions of its own (AVX-512 BF16 or AMX)."""
    found = _capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))


def _capabilities() -> Mapping[str, object]:
    """What torch knows about this CPU; an older torch does not tell."""
    read = getattr(torch.cpu, "get_capabilities", None)
    return {} if read is None else dict(read())


@cache
def _avoids_mkl() -> bool:
    """Whether this is an AMD CPU and torch has oneDNN."""
    return "AMD" in str(_capabilities().get("cpu_name")) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def chosen_matmul(matmul: Matmul, model: nn.Module) -> Matmul:
    """What `auto` is for this model on this machine; others are themselves. A model keeps what it was first given.

    Raises UsageError for one that this model or machine gains nothing from.
    """
    check_matmul(matmul, model)
    if matmul != "auto":
        return matmul
    given = next((_given(module) for module in model.modules() if isinstance(module, RowLinear | ByteLinear)), None)
    if given is not None:
        return given
    layers = (module for module in model.modules() if isinstance(module, nn.Linear | BlockLinear))
    widest = max((layer.in_features for layer in layers if _is_plain(layer)), default=0)
    may = widest >= _LEAST_FEATURES and has_fast_bfloat16()
    return "bfloat16" if may and _narrow_pays(cache_dir() / "products.json") else "float32"


def _narrow_pays(memo: Path) -> bool:
    """Whether bfloat16 is worth it here, as it was found out before, or now."""
    key = f"{_capabilities().get('cpu_name')}, torch {torch.__version__}"
    try:
        known: dict[str, float] = value_of(dict[str, float], load_object(memo), "")
    except UsageError:
        known = {}
    if key not in known:
        known[key] = round(_gain(), 2)
        with suppress(OSError):  # a cache directory that cannot be written is no reason to stop
            memo.parent.mkdir(parents=True, exist_ok=True)
            write_whole(memo, json.dumps(known).encode())
    return known[key] >= _LEAST_GAIN


@torch.no_grad()
def _gain() -> float:
    """How many times as long a product takes in float32 as in bfloat16, rounding included.

    By the time of one thread alone: on a busy machine that of several says what others do.
    """
    linear, rows = nn.Linear(_TRIAL_WIDTH, _TRIAL_WIDTH, bias=False), torch.ones(_TRIAL_WIDTH, _TRIAL_WIDTH)
    wide, narrow = RowLinear(linear), RowLinear(linear, narrow=True)
    best = {layer: float("inf") for layer in (wide, narrow)}
    with one_thread():
        for _ in range(1 + _TRIALS):  # the first makes the kernels
            for layer in best:
                begun = time.thread_time()
                layer(rows)
                best[layer] = min(best[layer], time.thread_time() - begun)
    return best[wide] / best[narrow]


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch work on one: others that it wakes for something small spin where the library's should run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def check_matmul(matmul: str, model: nn.Module) -> None:
    """Raise UsageError when `matmul` is unknown, or this model or machine gains nothing from it."""
    if matmul not in get_args(Matmul):
        raise UsageError(f"matmul {matmul!r} is unknown", hint=f"use one of: {', '.join(get_args(Matmul))}")
    if matmul in ("auto", "float32"):
        return
    if not any(_is_plain(module) or isinstance(module, RowLinear | ByteLinear) for module in model.modules()):
        raise UsageError(
            f"--matmul {matmul} is for float32 weights on a CPU", hint="leave --matmul out, or use --device cpu"
        )
    if not has_fast_bfloat16():
        raise UsageError(f"this CPU has no instructions that make --matmul {matmul} fast", hint="leave --matmul out")


def use_product(model: nn.Module, matmul: Matmul = "float32", library: Library | None = None) -> None:
    """Replace the plain float32 linear layers of a model on the CPU; quantized and other layers stay.

    With the `library` weights that are exactly numbers of 16 bits are held as such. A model keeps the product that it
    was first given. Raises ValueError for another one.
    """
    for variable, number in _KEPT_PRODUCTS.items():  # read at the first product; what the user has set wins
        os.environ.setdefault(variable, number)
    for name, module in list(model.named_modules()):
        if isinstance(module, RowLinear | ByteLinear):
            _check_same(module, matmul)
        elif _is_plain(module):
            model.set_submodule(name, _replacement(module, matmul, library))
    if library is not None:
        _shorten(model)
        give_back()


def _replacement(linear: nn.Linear | BlockLinear, matmul: Matmul, library: Library | None) -> nn.Module:
    if matmul == "int8":
        return ByteLinear(linear)
    return RowLinear(linear, narrow=matmul == "bfloat16", library=library)


def _shorten(model: nn.Module) -> None:
    """Hold float32 weights in 16 bits where that changes none of them, shared ones once; each is let go at once."""
    owners: dict[nn.Parameter, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        for weight in module.parameters(recurse=False):
            owners.setdefault(weight, []).append((name, module))
    while owners:
        weight, found = owners.popitem()
        known = all(type(module) in (RowLinear, nn.Embedding) for _, module in found)
        plain = weight.dim() == 2 and weight.dtype == torch.float32 and weight.device.type == "cpu"
        shorter = _short(weight) if known and plain else None
        for name, module in [] if shorter is None else found:
            del module.weight
            module.register_buffer("weight", shorter)  # no parameter: those say what type the model computes in
            if isinstance(module, nn.Embedding):
                model.set_submodule(name, ShortEmbedding(module))


@torch.no_grad()
def _short(weight: Tensor) -> Tensor | None:
    """The weight in 16 bits; None where a number would change."""
    for dtype in (torch.float16, torch.bfloat16):
        short = torch.empty_like(weight, dtype=dtype)
        starts = range(0, len(weight), _PART_ROWS)
        parts = ((short[at : at + _PART_ROWS], weight[at : at + _PART_ROWS]) for at in starts)
        if all(torch.equal(part.copy_(own).float(), own) for part, own in parts):
            return short
    return None


def _is_plain(module: nn.Module) -> bool:
    if isinstance(module, BlockLinear):
        return True
    plain = type(module) is nn.Linear and module.weight.dtype == torch.float32
    return plain and module.weight.device.type == "cpu" and module.weight.is_contiguous()


def _given(layer: "RowLinear | ByteLinear") -> Matmul:
    return "int8" if isinstance(layer, ByteLinear) else "bfloat16" if layer.narrow else "float32"


def _check_same(layer: "RowLinear | ByteLinear", matmul: Matmul) -> None:
    given = _given(layer)
    if given != matmul:
        raise ValueError(f"the model's layers were made for {given} products, not {matmul}: load it anew")


def _add(product: Tensor, bias: Tensor | None) -> Tensor:
    return product if bias is None else product + bias


class SlicedRows(nn.Module):
    """A module that maps rows to rows [..., hidden_size], applied to at most SLICE_ROWS of them at a time."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, states: Tensor) -> Tensor:
        """[..., hidden_size] → [..., hidden_size]; in one piece where gradients are recorded."""
        rows = states.reshape(-1, states.shape[-1])
        if len(rows) <= SLICE_ROWS or torch.is_grad_enabled():
            whole: Tensor = self.inner(states)
            return whole
        output = torch.empty_like(rows)
        for source, target in zip(torch.split(rows, SLICE_ROWS), torch.split(output, SLICE_ROWS), strict=True):
            target.copy_(self.inner(source))
        return output.view(states.shape)


def slice_mlps(model: nn.Module) -> None:
    """Put SlicedRows round the MLP (`mlp`) of every layer; repeating it changes nothing."""
    for name, module in list(model.named_modules()):
        if name.endswith(".mlp") and not isinstance(module, SlicedRows):
            model.set_submodule(name, SlicedRows(module))
