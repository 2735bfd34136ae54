"""Attention, as the engine computes it: packed grouped-query attention and one function for transformers to call.

    q [H, N, D] is viewed as [G, H/G, N, D] against k, v [G, S, D]: no key is repeated, no mask is built for a prompt.

`register` puts `uncomp` into transformers' AttentionInterface; the state that `attending` names decides what each layer
of the stock forward does with its queries, keys and values. No keyword carries it, because some models drop keywords on
the way to their attention. Many tokens of float32 on a CPU are the C library's (kernels/outlook.py), narrow where the
products are. `AppendState` puts tokens behind a ragged cache: one new token a row reads each layer in a
few calls (cache/packs.py); several are one call for neighbouring heads of one length. In it each KV head's H/G queries
meet that head's own keys.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers import AttentionInterface

from uncomp_cli.cache.layer import LayerCache
from uncomp_cli.cache.packs import Packs
from uncomp_cli.cache.quantized import spread
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.cache.softmax import Form
from uncomp_cli.cache.states import States
from uncomp_cli.engine.forward.mixers import Step, go_on
from uncomp_cli.errors import ModelError
from uncomp_cli.kernels.launch import SplitDecode
from uncomp_cli.kernels.launch import find as find_split
from uncomp_cli.kernels.library import LEVELS, Held, Library, find
from uncomp_cli.kernels.outlook import Pair, attend_many
from uncomp_cli.spec import ModelSpec

ATTENTION_NAME = "uncomp"
_BLOCK, _SCORES = 1024, 1 << 24
"""Queries of one masked call, and scores that are spelt out at once."""
_MANY_TOKENS = 32
"""From here on the library's attention is worth its packing."""

# Keywords that decoder layers pass to attention and that change nothing in it.
_HARMLESS = frozenset(
    {"cache_position", "dropout", "is_causal", "output_attentions", "output_hidden_states", "output_router_logits"}
    | {"position_bias", "position_ids", "return_dict", "use_cache"}
)

OnQuery = Callable[[int, Tensor, Form], None]
"""Is told (layer, queries [B, H, N, D], form) when a layer has been attended."""


class AttentionState(Protocol):
    """What a forward pass does in each layer that attends, and in each that has a state of its own."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        """Attention output [B, H, N, D] for query [B, H, N, D], key and value [B, G, N, D], after RoPE."""
        ...

    def recur(self, layer: int, hidden: Tensor, step: Step) -> Tensor:
        """What a layer with a state makes of tokens [B, N, hidden_size]: of a whole text, unless another is said."""
        return step(hidden, States())


@dataclass(frozen=True, slots=True)
class Opened:
    """What a step in one call reads and adds to: every layer of the rows' strands, and what lies before all of them.

    `kept` is what the addresses in it point to.
    """

    cache: list[Held]
    before: list[Held] | None = None
    kept: object = None


@runtime_checkable
class StepState(AttentionState, Protocol):
    """A state that a step in one call can do without asking it layer by layer; tokens come at `positions` [B, N]."""

    positions: Tensor

    def opened(self) -> Opened | None:
        """Where everything lies, with room for the tokens; None where it cannot be read so."""
        ...

    def stepped(self, queries: Tensor, forms: Sequence[Form]) -> None:
        """The tokens are there now; queries [L, B, H, N, D] of all layers."""
        ...


_ENGINE: ContextVar[tuple[AttentionState, ModelSpec, bool]] = ContextVar("engine")


@contextmanager
def attending(state: AttentionState, spec: ModelSpec, *, narrow: bool) -> Iterator[None]:
    """Let `state` attend in every forward pass inside the block, in this thread, of a model of this shape."""
    token = _ENGINE.set((state, spec, narrow))
    try:
        yield
    finally:
        _ENGINE.reset(token)


def _attention_function(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **keywords: object,
) -> tuple[Tensor, None]:
    """transformers' attention signature: hands the layer to the engine's state; returns [B, N, H, D].

    A window that the model has in its mask alone, which is not read, is known from its shape.
    """
    check_keywords(keywords)
    check_causal(module)
    state, spec, narrow = _ENGINE.get()
    number: Any = module.layer_idx  # an int, which nn.Module cannot say
    layer = spec.places.index(number)
    form = Form(scaling, sliding_window or spec.sliding_windows[layer], softcap, narrow, s_aux)
    width = value.shape[-1]
    if width < spec.head_dim and key.shape[-1] == width:  # of layers with narrower heads than others: zeros say nothing
        query, key, value = (pad(each, (0, spec.head_dim - width)) for each in (query, key, value))
    return state.attend(layer, query, key, value, form)[..., :width].transpose(1, 2), None


def recur(layer: int, hidden: Tensor, step: Step) -> Tensor:
    """A layer with a state of its own: hands it to the engine's state."""
    return _ENGINE.get()[0].recur(layer, hidden, step)


def check_causal(attention: object) -> None:
    """Raise ModelError when a model's attention module looks ahead, as an encoder's does."""
    if not getattr(attention, "is_causal", True):
        raise ModelError(
            "this model's attention looks in both directions, which is not supported",
            hint="use a model that generates text, for example --model smollm2-135m",
        )


def check_keywords(keywords: dict[str, object]) -> None:
    """Raise ModelError when attention is given a keyword whose meaning the engine does not honour."""
    for name, value in keywords.items():
        if value is not None and name not in _HARMLESS:
            raise ModelError(
                f"this model's attention needs '{name}', which is not supported",
                hint="use a model without it, for example --model smollm2-135m",
            )


def register() -> None:
    """Make `attn_implementation="uncomp"` known to transformers; repeating it changes nothing."""
    AttentionInterface.register(ATTENTION_NAME, _attention_function)


class AppendState(AttentionState):
    """The engine's state while N tokens a row are added behind the cache at logical positions [B, N].

    `on_query(layer, query, form)` is told each layer's queries [B, H, N, D] when it has been attended. Of the
    tokens of a `prompt` what is before the last one is remembered, where there are states.
    """

    def __init__(
        self,
        cache: RaggedKVCache,
        positions: Tensor,
        *,
        prompt: bool = False,
        on_layer: Callable[[int], None] | None = None,
        on_query: OnQuery | None = None,
    ) -> None:
        self.cache = cache
        self.positions = positions
        self.on_layer = on_layer
        self.on_query = on_query
        self._prompt = prompt
        self._spread = cache.spread(positions)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        """Attention [B, H, N, D] of the new tokens over everything kept, their own keys included."""
        self.cache.append(layer, key, value, self._spread)
        output = attend_cached(query, self.cache.layer(layer), form)
        self.tell(layer, query, form)
        return output

    def tell(self, layer: int, query: Tensor, form: Form) -> None:
        """A layer has attended its queries [B, H, N, D]."""
        if self.on_query is not None:
            self.on_query(layer, query, form)
        if self.on_layer is not None:
            self.on_layer(layer)

    def opened(self) -> Opened | None:
        """Every row is a strand of the cache."""
        cache = self.cache.opened(self.positions.shape[-1])
        return None if cache is None else Opened(cache)

    def recur(self, layer: int, hidden: Tensor, step: Step) -> Tensor:
        """The new tokens behind all that the cache has seen."""
        states = self.cache.states
        return go_on(states, layer, hidden, step) if self._prompt else step(hidden, states)

    def stepped(self, queries: Tensor, forms: Sequence[Form]) -> None:
        """Tell it as if layer by layer."""
        for layer in range(len(forms)):
            self.cache.layer(layer).advance(queries.shape[3])
        if self.on_query is not None or self.on_layer is not None:
            typed = queries.to(self.cache.layer(0).keys.dtype)
            for layer, (query, form) in enumerate(zip(typed.unbind(0), forms, strict=True)):
                self.tell(layer, query, form)


def in_turn(*observers: OnQuery | None) -> OnQuery | None:
    """What tells all of `observers` that are there, in their order; None when there is none."""
    told = [observer for observer in observers if observer is not None]

    def tell(layer: int, query: Tensor, form: Form) -> None:
        for observer in told:
            observer(layer, query, form)

    return tell if told else None


def attend_cached(query: Tensor, layer: LayerCache, form: Form) -> Tensor:
    """Attention of query [B, H, N, D], whose tokens end every head of `layer`.

    Of one token a row each pack is one call: the heads of its rectangle are the heads of SDPA, their queries its rows.
    """
    total, new, window = len(layer.lengths), query.shape[2], form.window
    kernel = find_split(query.device) if new == 1 else None
    if kernel is not None and (output := attend_split(kernel, query, layer, form)) is not None:
        return output
    packs = None
    if new == 1 and form.is_plain:
        packs = layer.packs(query.shape[0] * query.shape[1] // total, windowed=window is not None)
    if packs is None:
        return _attend_runs(query, layer, form)
    grouped = _in_order(query, packs, total)
    outputs, first = [], 0
    for pack in packs.packs:
        seen = slice(0 if window is None else max(0, pack.end - window), pack.end)
        keys, values = pack.keys[None, :, seen], pack.values[None, :, seen]
        mask = None if pack.mask is None else pack.mask[None, :, :, seen]
        queries = grouped[first : first + pack.heads]
        packed = queries.reshape(1, keys.shape[1], -1, queries.shape[-1])
        output = scaled_dot_product_attention(packed, keys, values, attn_mask=mask, scale=form.scaling)
        outputs.append(output.view(queries.shape))
        first += pack.heads
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return (output if packs.inverse is None else output.index_select(0, packs.inverse)).view(query.shape)


def attend_split(kernel: SplitDecode, query: Tensor, layer: LayerCache, form: Form) -> Tensor | None:
    """`attend_cached` of one token by a GPU's kernel; None where it cannot."""
    strands = layer.strands()
    if strands is None:
        return None
    grouped = query.reshape(len(layer.lengths), -1, query.shape[-1])
    turned = None if strands.fewer is None else spread(grouped.flatten(0, 1)).view(grouped.shape)
    scaling, window, softcap, sinks = form.scaling, form.window, form.softcap, form.sinks
    output = kernel.attend(grouped, turned, strands, scaling=scaling, window=window, softcap=softcap, sinks=sinks)
    return None if output is None else output.view(query.shape)


def _in_order(query: Tensor, packs: Packs, total: int) -> Tensor:
    """One token's queries [B, H, 1, D] as [heads, Q, D], in the order of the packs."""
    grouped = query.reshape(total, -1, query.shape[-1])
    return grouped if packs.order is None else grouped.index_select(0, packs.order)


def _attend_runs(query: Tensor, layer: LayerCache, form: Form) -> Tensor:
    """`attend_cached` in one call for neighbouring heads of one length."""
    rows, heads, new, head_dim = query.shape
    grouped = query.reshape(len(layer.lengths), -1, new, head_dim)
    outputs, per_head = [], grouped.shape[1]
    for run in equal_runs(map(layer.shape, range(len(layer.lengths)))):
        keys, values = layer.rectangle(run.start, run.stop - run.start)
        packed = grouped[run].flatten(0, 1)
        outputs.append(attend_after(packed, keys, values, form.of(slice(run.start * per_head, run.stop * per_head))))
    output = outputs[0] if len(outputs) == 1 else torch.cat(outputs)
    return output.view(rows, heads, new, -1)


def equal_runs(shapes: Iterable[object]) -> Iterator[slice]:
    """Neighbouring heads of one shape, which one rectangle holds: each run is one attention call."""
    first = 0
    for _, run in groupby(shapes):
        last = first + sum(1 for _ in run)
        yield slice(first, last)
        first = last


def _pack(query: Tensor, key: Tensor) -> Tensor:
    """[H, N, D] → [G, H/G, N, D]."""
    return query.reshape(key.shape[0], -1, *query.shape[1:])


def attend_causal(query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
    """Causal attention of a prompt from its first token: query [H, N, D], key and value [G, N, D] → [H, N, D].

    With a sliding window, query i sees keys (i − window, i].
    """
    library, length = _library_for(query, form), query.shape[1]
    if library is not None:
        return _attend_many(library, query, None, (key, value), form)
    if not form.is_plain or (form.window is not None and form.window < length):
        return attend_after(query, key, value, form)
    batched = query[None], key[None], value[None]
    # The output lies in memory as [N, H, D], which is how the model wants it: no copy on the way back.
    return scaled_dot_product_attention(*batched, scale=form.scaling, is_causal=True, enable_gqa=True)[0]


def attend_continued(query: Tensor, past: tuple[Tensor, Tensor], key: Tensor, value: Tensor, form: Form) -> Tensor:
    """Attention of N tokens over P earlier ones and, causally, themselves: query [H, N, D] → [H, N, D].

    `past` are keys and values [G, P, D], key and value [G, N, D] the tokens' own. Two fused calls, neither with a
    mask, are merged by their log-sum-exp: out = sum_i out_i exp(lse_i - lse).
    """
    if past[0].shape[1] == 0:  # the fused kernel divides by the number of keys
        return attend_causal(query, key, value, form)
    library = _library_for(query, form)
    if library is not None:
        return _attend_many(library, query, past, (key, value), form)
    if not form.is_plain or form.window is not None:
        return attend_after(query, torch.cat([past[0], key], dim=1), torch.cat([past[1], value], dim=1), form)
    return attend_told(query, past, key, value, form)[0]


def attend_told(
    query: Tensor, past: tuple[Tensor, Tensor], key: Tensor, value: Tensor, form: Form
) -> tuple[Tensor, Tensor]:
    """`attend_continued` where softmax is plain, and the log-sum-exp [H, N] of each row's scores, in float32."""
    heads = key.shape[0]
    packed = _pack(query, key)
    seen, seen_lse = _fused(packed, *_shared(query, *past), causal=False, scaling=form.scaling)
    own, own_lse = _fused(packed, *_shared(query, key, value), causal=True, scaling=form.scaling)
    total = torch.logaddexp(seen_lse, own_lse)
    weights = ((lse - total).exp()[..., None].to(seen.dtype) for lse in (seen_lse, own_lse))
    merged = sum(out * weight for out, weight in zip((seen, own), weights, strict=True))
    output = torch.as_tensor(merged).reshape(heads * packed.shape[1], *query.shape[1:])
    return output, total.float().reshape(output.shape[:2])


def _library_for(query: Tensor, form: Form) -> Library | None:
    """The library, where it attends queries [H, N, D] faster than torch."""
    library = find()
    fast = library is not None and library.level == LEVELS[-1]
    plain = query.dtype == torch.float32 and query.device.type == "cpu" and form.softcap is None
    return library if fast and plain and query.shape[1] >= _MANY_TOKENS and not torch.is_grad_enabled() else None


def _attend_many(library: Library, query: Tensor, past: Pair | None, own: Pair, form: Form) -> Tensor:
    """`attend_continued` by the library."""
    scaling, window, narrow, sinks = form.scaling, form.window, form.narrow, form.sinks
    return attend_many(library, query, past, own, scaling=scaling, window=window, narrow=narrow, sinks=sinks)


def _fused(query: Tensor, key: Tensor, value: Tensor, *, causal: bool, scaling: float) -> tuple[Tensor, Tensor]:
    """Attention [B, H, N, D] and its log-sum-exp [B, H, N], by the kernels behind SDPA, which does not tell it."""
    ops = torch.ops.aten
    if query.device.type == "cpu":
        found = ops._scaled_dot_product_flash_attention_for_cpu(query, key, value, 0.0, causal, scale=scaling)
    elif query.dtype in (torch.float16, torch.bfloat16):
        found = ops._scaled_dot_product_flash_attention(query, key, value, 0.0, causal, False, scale=scaling)
    else:
        found = ops._scaled_dot_product_efficient_attention(query, key, value, None, True, 0.0, causal, scale=scaling)
    return found[0], found[1][..., : query.shape[2]]


def attend_after(query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
    """Attention of the last N tokens of S: query [H, N, D], key and value [G, S, D] → [H, N, D].

    The queries are the last N of the S keys' tokens: earlier keys are all seen, their own causally. Many queries are
    taken in blocks, so that the mask stays linear in S.
    """
    new, total, window = query.shape[1], key.shape[1], form.window
    if new == total and (window is None or window >= total) and form.is_plain:
        return attend_causal(query, key, value, form)
    library, before = _library_for(query, form), total - new
    if library is not None:
        past, own = ((key[:, at], value[:, at]) for at in (slice(0, before), slice(before, None)))
        return _attend_many(library, query, past, own, form)
    blocks, step = [], _BLOCK if form.is_plain else max(1, min(_BLOCK, _SCORES // (len(query) * total)))
    for start in range(0, new, step):
        end = min(start + step, new)
        last = total - new + end
        first = 0 if window is None else max(0, last - (end - start) - window + 1)
        seen = key[:, first:last], value[:, first:last]
        blocks.append(_attend_block(query[:, start:end], *seen, form))
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=1)


def _attend_block(query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
    """`attend_after` for few queries: one masked call."""
    new, total, window = query.shape[1], key.shape[1], form.window
    if new == 1 and form.is_plain:  # the group's queries as rows of one call: each key is read once
        packed = query.reshape(1, key.shape[0], -1, query.shape[-1])
        return scaled_dot_product_attention(packed, key[None], value[None], scale=form.scaling).view(
            query.shape[0], 1, -1
        )
    column = torch.arange(total, device=query.device)
    row = torch.arange(total - new, total, device=query.device)[:, None]
    mask = column <= row
    if window is not None:
        mask &= column > row - window
    packed, keys, values = _pack(query, key), *_shared(query, key, value)
    if form.is_plain:
        output = scaled_dot_product_attention(packed, keys, values, attn_mask=mask, scale=form.scaling)
    else:
        scores = packed @ keys.transpose(-1, -2) * form.scaling
        output = form.weights(scores, ~mask).to(values.dtype) @ values
    return output.reshape(query.shape[0], new, -1)


def _shared(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [G, S, D] seen by all H/G queries of their group, without a copy: [G, H/G, S, D]."""
    groups, per_group = key.shape[0], query.shape[0] // key.shape[0]
    return (
        key[:, None].expand(groups, per_group, *key.shape[1:]),
        value[:, None].expand(groups, per_group, *value.shape[1:]),
    )
