"""A model's decode step as a program for the C library: one call a token where its modules make thousands.

A program is made once from a loaded model's modules, with their weights as they are stored; a step then does what the
stock forward does for a few rows: tokens that follow each other, one of each of several answers, or both. The weights
are read once for all. Of a row:

    x = embedding;  for each layer: x += attention(norm(x));  x += mlp(norm(x));  logits = W norm(x)

with each head's queries over that head's own entries, where they lie in the cache. Cosines and sines are the model's
own. How the layers of a family differ is read off its modules; one that is none of the known ones (quantized weights,
another activation, experts, softcapping) leaves the model without a program, and to torch. Every bound is checked here:
the library checks none. What modules do not show, the order of RoPE's pairs for one, is found by a census, which holds
the program of every family against the stock model: those it proves have one (models/families.py).
"""

import ctypes
from collections.abc import Collection
from inspect import signature
from threading import Lock
from typing import Any

import torch
from torch import Tensor, nn

from uncomp_cli.cache.softmax import Form
from uncomp_cli.engine.forward.attention import Opened, StepState
from uncomp_cli.engine.forward.products import RowLinear, SlicedRows
from uncomp_cli.kernels.library import (
    BESIDE,
    BLOCKS,
    STEP_ROWS,
    TILE_ROWS,
    Code,
    Gate,
    Held,
    Kind,
    Library,
    Operation,
    Place,
    Program,
    Space,
    Step,
)
from uncomp_cli.kernels.matrix import Matrix, narrowed_floats
from uncomp_cli.models.families import load_families
from uncomp_cli.models.weights.modules import BlockEmbedding
from uncomp_cli.spec import ModelSpec

_GATES = {"silu": Gate.SILU, "gelu_pytorch_tanh": Gate.GELU}
_BLOCK, _MANY = 64, 4
"""Entries that a thread attends at once, and queries that look at them together (step.c)."""
_ALIGNED = 16
"""Floats in a cache line."""


_LAYOUTS = (
    ("input_layernorm", None, "post_attention_layernorm", None),
    (None, "post_attention_layernorm", None, "post_feedforward_layernorm"),
    ("input_layernorm", None, "pre_feedforward_layernorm", None),
    ("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm"),
    ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"),
)
"""The norms of a layer: before and after its attention, before and after its MLP."""
_MODEL = ("embed_tokens", "layers", "norm", "rotary_emb")
_ATTENTION = ("q_proj", "k_proj", "v_proj", "qkv_proj", "o_proj", "q_norm", "k_norm")
_MLP = ("gate_proj", "up_proj", "gate_up_proj", "down_proj", "act_fn", "activation_fn")
"""The parts of these that a program knows of."""


class _UnknownError(Exception):
    """The model has something that a program does not say."""


def _addresses(layers: list[Held]) -> Any:
    return (ctypes.c_void_p * len(layers))(*map(ctypes.addressof, layers))


def make_program(
    model: nn.Module, spec: ModelSpec, library: Library | None, *, threads: int | None = None
) -> "StepProgram | None":
    """The program of a transformers model's step; None without the library, for a model that it cannot say, on a GPU.

    It runs on as many `threads` as torch does now.
    """
    if library is None or spec.model_type not in load_families().stepped:
        return None
    if any(weight.device.type != "cpu" for weight in model.parameters()):
        return None
    try:
        return StepProgram(model, spec, library, threads or torch.get_num_threads())
    except (_UnknownError, AttributeError):
        return None


class StepProgram:
    """Runs a few tokens behind a cache; one thread at a time."""

    def __init__(self, model: nn.Module, spec: ModelSpec, library: Library, threads: int) -> None:
        whole: Any = model
        self._spec, self._library, self._inner = spec, library, whole.model
        self.threads = threads
        _check_parts(self._inner, _MODEL)
        by_kind = "layer_type" in signature(self._inner.rotary_emb.forward).parameters
        self._kind_of = list(whole.config.layer_types) if by_kind else [None] * spec.num_layers
        self._kinds = sorted(set(self._kind_of), key=str)
        self._like = torch.zeros(1)
        self._vocab = whole.lm_head.out_features
        self._tokens = whole.model.embed_tokens.num_embeddings
        attending = zip((layer.self_attn for layer in self._inner.layers), spec.sliding_windows, strict=True)
        self._forms = [Form(float(each.scaling), window) for each, window in attending]
        self._lock = Lock()
        written = _Writing(self, whole)
        self._held = written.tensors
        self._operations = (Operation * len(written.operations))(*written.operations)
        self._shared, self._own = torch.zeros(STEP_ROWS, written.shared), torch.zeros(threads, STEP_ROWS, written.own)
        turned = STEP_ROWS * spec.num_heads // spec.num_kv_heads * spec.head_dim
        self._blocks = torch.zeros(threads, _BLOCK * (_MANY + 2 * spec.head_dim) + turned)
        self._queries = self._shared[:, written.kept.at :][:, : spec.num_layers * spec.num_heads * spec.head_dim]
        self._program = Program(
            self._operations,
            len(self._operations),
            spec.num_layers,
            spec.num_kv_heads,
            self._shared.data_ptr(),
            self._own.data_ptr(),
            self._blocks.data_ptr(),
            written.shared,
            written.own,
            STEP_ROWS,
            self._blocks.shape[1],
        )

    def turns(self, positions: Tensor) -> Tensor:
        """Cosines and sines [rows, sets, 2, R] of positions [rows], by the model's own rotary embedding."""
        rotary, found, at = self._inner.rotary_emb, [], positions[None]
        for kind in self._kinds:
            pair = rotary(self._like, at) if kind is None else rotary(self._like, at, kind)
            found.append(torch.stack([each[0] for each in pair], dim=1))
        return torch.stack(found, dim=1)

    def turns_of(self, index: int, attention: Any) -> int:
        """Which set turns a layer; -1: none."""
        return self._kinds.index(self._kind_of[index]) if getattr(attention, "use_rope", True) else -1

    def run(self, ids: Tensor, state: StepState, last: int = 1) -> Tensor | None:
        """Logits [B, last, vocab] of tokens [B, N], put behind what `state` holds; None where that cannot be.

        Of one row the `last` ones' alone are computed.
        """
        rows, new = ids.shape
        inside = ids.numel() <= STEP_ROWS and int(ids.min()) >= 0 and int(ids.max()) < self._tokens
        held = state.opened() if inside and state.positions.shape == ids.shape else None
        if held is None:
            return None
        first = new - last if rows == 1 else 0
        logits = torch.empty(ids.numel() - first, self._vocab)
        with self._lock:
            self._step(ids.contiguous(), state.positions.to(torch.int64), held, first, logits)
            queries = self._queries[: rows * new].clone()
        shape = rows, new, self._spec.num_layers, self._spec.num_heads, self._spec.head_dim
        state.stepped(queries.view(shape).permute(2, 0, 3, 1, 4), self._forms)
        return logits.view(rows, -1, self._vocab)[:, -last:]

    def _step(self, ids: Tensor, positions: Tensor, held: Opened, first: int, logits: Tensor) -> None:
        rows, new = ids.shape
        flat, firsts = positions.reshape(-1).contiguous(), torch.arange(rows + 1) * new
        turns = self.turns(flat)
        cache, before = _addresses(held.cache), _addresses(held.before or [])
        given = [tensor.data_ptr() for tensor in (ids, flat, firsts, turns)]
        step = Step(rows * new, rows, first, *given, turns[0].numel(), logits.data_ptr())
        step.cache, step.before = ctypes.addressof(cache), ctypes.addressof(before) if held.before else None
        self._library.step(self._program, step, self.threads)


class _Writing:
    """Writes the operations; places are laid out behind each other, in floats."""

    def __init__(self, program: StepProgram, model: Any) -> None:
        spec = self.spec = program._spec
        self.program, self.config = program, model.config
        self.operations: list[Operation] = []
        self.tensors: list[Tensor] = []
        self.shared = self.own = 0
        heads, groups, width = spec.num_heads, spec.num_kv_heads, spec.head_dim
        self.turned = program.turns(torch.zeros(1, dtype=torch.int64)).shape[-1]
        self.x = self._place(Space.OWN, spec.hidden_size)
        self.y = self._place(Space.OWN, max(spec.hidden_size, heads * width))
        narrowed = narrowed_floats(Kind.Q8_0, max(spec.hidden_size, heads * width, spec.intermediate_size))
        self.scratch = self._place(Space.OWN, max(narrowed, (heads + groups) * width))
        self.qkv = self._place(Space.SHARED, (heads + 2 * groups) * width)
        self.found = self._place(Space.SHARED, program.threads * heads * (width + BESIDE))
        self.out = self._place(Space.SHARED, spec.hidden_size)
        self.hidden = self._place(Space.SHARED, spec.intermediate_size)
        self.kept = self._place(Space.SHARED, spec.num_layers * heads * width)
        self._model(model)

    def _place(self, space: Space, floats: int) -> Place:
        name = "own" if space is Space.OWN else "shared"
        at = getattr(self, name)
        setattr(self, name, at + -(-floats // _ALIGNED) * _ALIGNED)
        return Place(space, at)

    def _model(self, model: Any) -> None:
        inner, hidden = model.model, self.spec.hidden_size
        if len(inner.layers) != self.spec.num_layers or any(map(self._softcap, ("attn", "final"))):
            raise _UnknownError
        embedding = inner.embed_tokens
        scale = float(getattr(embedding, "scalar_embed_scale", 1.0) * getattr(inner, "embedding_multiplier", 1.0))
        weight = self._matrix(embedding, embedding.num_embeddings, hidden)
        self._add(Code.EMBED, target=self.x, scale=scale, **weight)
        for index, layer in enumerate(inner.layers):
            self._layer(index, layer)
        self._norm(inner.norm, self.x, self.y, hidden)
        output, scale = Place(Space.OUTPUT, 0), 1.0 / getattr(self.config, "logits_scaling", 1.0)
        self._product(model.lm_head, self.y, output, (self.program._vocab, hidden), wait=True, scale=scale)

    def _softcap(self, name: str) -> bool:
        return getattr(self.config, f"{name}_logit_softcapping", None) is not None

    def _layer(self, index: int, layer: Any) -> None:
        hidden, more = self.spec.hidden_size, getattr(layer, "residual_multiplier", 1.0)
        before_attention, after_attention, before_mlp, after_mlp = _layout_of(layer)
        source = self._normed(layer, before_attention)
        self._attention(index, layer.self_attn, source)
        self._product(layer.self_attn.o_proj, self.y, self.out, (hidden, self.spec.num_heads * self.spec.head_dim))
        self._residual(layer, after_attention, more)
        self._mlp(layer.mlp, self._normed(layer, before_mlp))
        self._residual(layer, after_mlp, more)

    def _normed(self, layer: Any, name: str | None) -> Place:
        """Where what a half of a layer reads lies: the hidden state, or its norm."""
        if name is None:
            return self.x
        self._norm(getattr(layer, name), self.x, self.y, self.spec.hidden_size)
        return self.y

    def _residual(self, layer: Any, name: str | None, scale: float) -> None:
        """Add what a half of a layer gave, or its norm."""
        source = self.out
        if name is not None:
            source = self.y
            self._norm(getattr(layer, name), self.out, source, self.spec.hidden_size)
        self._add(Code.ADD, source=source, target=self.x, cols=self.spec.hidden_size, scale=float(scale))

    def _attention(self, index: int, attention: Any, source: Place) -> None:
        spec, hidden = self.spec, self.spec.hidden_size
        _check_parts(attention, _ATTENTION)
        if not getattr(attention, "is_causal", True) or attention.head_dim != spec.head_dim:
            raise _UnknownError
        queries, keys = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
        if hasattr(attention, "qkv_proj"):
            self._product(attention.qkv_proj, source, self.qkv, (queries + 2 * keys, hidden))
        else:
            at = self.qkv.at
            parts = (attention.q_proj, queries, at), (attention.k_proj, keys, at + queries)
            for linear, rows, where in (*parts, (attention.v_proj, keys, at + queries + keys)):
                ends = where > at + queries
                self._product(linear, source, Place(Space.SHARED, where), (rows, hidden), wait=ends, follows=where > at)
        self._add(
            Code.ATTEND,
            wait=True,
            source=self.qkv,
            target=self.found,
            scratch=self.scratch,
            kept=Place(Space.SHARED, self.kept.at + index * queries),
            layer=index,
            scale=float(attention.scaling),
            turned=self.turned,
            turns=self.program.turns_of(index, attention),
            window=spec.sliding_windows[index] or 0,
            **self._heads(),
            **self._head_norms(attention, queries, keys),
        )
        self._add(Code.MERGE, source=self.found, target=self.y, **self._heads())

    def _heads(self) -> dict[str, int]:
        return {"heads": self.spec.num_heads, "groups": self.spec.num_kv_heads, "width": self.spec.head_dim}

    def _head_norms(self, attention: Any, queries: int, keys: int) -> dict[str, Any]:
        """The norms of queries and keys: of each head, or of all heads together."""
        if not hasattr(attention, "q_norm"):
            return {}
        wide = len(attention.q_norm.weight)
        if (wide, len(attention.k_norm.weight)) not in ((self.spec.head_dim,) * 2, (queries, keys)):
            raise _UnknownError
        return {
            "query_norm": self._norm_weight(attention.q_norm, wide),
            "key_norm": self._norm_weight(attention.k_norm, len(attention.k_norm.weight)),
            "norm_width": wide if wide == self.spec.head_dim else 0,
            "eps": _eps(attention.q_norm),
        }

    def _mlp(self, mlp: Any, source: Place) -> None:
        mlp = mlp.inner if isinstance(mlp, SlicedRows) else mlp
        _check_parts(mlp, _MLP)
        wide, hidden = self.spec.intermediate_size, self.spec.hidden_size
        act = getattr(self.config, "hidden_activation", None) or self.config.hidden_act
        if act not in _GATES:
            raise _UnknownError
        if hasattr(mlp, "gate_up_proj"):
            both = self._matrix(mlp.gate_up_proj, 2 * wide, hidden)
            if both["bias"]:
                raise _UnknownError
            whole = self._held(mlp.gate_up_proj)
            if wide % TILE_ROWS and whole.kind in BLOCKS:
                raise _UnknownError
            gate = {**both, "rows": wide, "second": whole.part(wide, 2 * wide).data.data_ptr()}
        else:
            gate, up = (self._matrix(linear, wide, hidden) for linear in (mlp.gate_proj, mlp.up_proj))
            if gate["kind"] != up["kind"]:
                raise _UnknownError
            gate |= {"second": up["weight"], "second_bias": up["bias"]}
        self._add(Code.GATED, wait=True, narrow=True, source=source, target=self.hidden, gate=_GATES[act], **gate)
        self._product(mlp.down_proj, self.hidden, self.out, (hidden, wide))

    def _product(
        self,
        linear: nn.Module,
        source: Place,
        target: Place,
        shape: tuple[int, int],
        *,
        wait: bool = True,
        follows: bool = False,
        scale: float = 1.0,
    ) -> None:
        """One that `follows` another of the same source finds it made whole, if that one's weights want the same."""
        matrix, before = self._matrix(linear, *shape), self.operations[-1]
        again = follows and (before.kind == Kind.Q8_0) == (matrix["kind"] == Kind.Q8_0) and before.kind in BLOCKS
        self._add(Code.PRODUCT, wait=wait, narrow=not again, source=source, target=target, scale=scale, **matrix)

    def _norm(self, norm: Any, source: Place, target: Place, cols: int) -> None:
        weight = self._norm_weight(norm, cols)
        self._add(Code.NORM, source=source, target=target, cols=cols, weight=weight, eps=_eps(norm))

    def _norm_weight(self, norm: Any, cols: int) -> int:
        if tuple(norm.weight.shape) != (cols,):
            raise _UnknownError
        return self._address(_weight_of(norm))

    def _matrix(self, module: nn.Module, rows: int, cols: int) -> dict[str, Any]:
        """The fields of a weight matrix [rows, cols] and its bias."""
        matrix, bias = self._held(module), getattr(module, "bias", None)
        if (matrix.rows, matrix.cols) != (rows, cols):
            raise _UnknownError
        added = None if bias is None else self._address(bias.float())
        weight = self._address(matrix.data)
        return {
            "weight": weight,
            "bias": added,
            "kind": matrix.kind,
            "rows": rows,
            "cols": cols,
            "scratch": self.scratch,
        }

    def _held(self, module: Any) -> Matrix:
        """A module's weights as the library reads them."""
        if isinstance(module, RowLinear | BlockEmbedding):
            matrix: Matrix = module.matrix
            if not matrix.tiled:
                raise _UnknownError
            return matrix
        if type(module) is not nn.Linear and not isinstance(module, nn.Embedding):
            raise _UnknownError
        try:
            return Matrix.of(module.weight)
        except ValueError as error:
            raise _UnknownError from error

    def _address(self, tensor: Tensor) -> int:
        self.tensors.append(tensor.detach().contiguous())
        return self.tensors[-1].data_ptr()

    def _add(self, code: Code, **fields: Any) -> None:
        self.operations.append(Operation(code=code, **fields))


def _children(module: nn.Module) -> set[str]:
    return {name for name, child in module.named_children() if not isinstance(child, nn.Dropout)}


def _check_parts(module: nn.Module, known: Collection[str]) -> None:
    """Raise _UnknownError for a module with numbers of its own, or with a part that a program does not know of."""
    numbers = *module.parameters(recurse=False), *module.buffers(recurse=False)
    if numbers or not _children(module) <= set(known):
        raise _UnknownError


def _layout_of(layer: nn.Module) -> tuple[str | None, ...]:
    """The layout whose norms are all that a layer has beside its attention and its MLP."""
    norms = _children(layer) - {"self_attn", "mlp"}
    _check_parts(layer, norms | {"self_attn", "mlp"})
    layout = next((each for each in _LAYOUTS if {name for name in each if name} == norms), None)
    if layout is None:
        raise _UnknownError
    return layout


def _weight_of(norm: Any) -> Tensor:
    """By what w in w x / sqrt(mean(x²) + eps) a norm says all that it does: its weight, or that and 1."""
    weight, eps = norm.weight.detach().float(), _eps(norm)
    tried = torch.linspace(-1, 2, len(weight), device=weight.device)[None]
    scaled, found = tried / (tried.pow(2).mean() + eps).sqrt(), norm(tried)[0]
    known: tuple[Tensor, ...] = (weight, weight + 1)
    said = next((each for each in known if torch.allclose(found, each * scaled[0], rtol=1e-3, atol=1e-5)), None)
    if said is None:
        raise _UnknownError
    return said


def _eps(norm: Any) -> float:
    return float(norm.variance_epsilon if hasattr(norm, "variance_epsilon") else norm.eps)
