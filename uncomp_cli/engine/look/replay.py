"""Replay: where in its context an answer looked, replayed after it was written.

    trusted   mass[s] = mean over answer tokens i, and heads h weighed by trust, of a_ih[s]       a = softmax(q K^T)
    else      mass[s] = mean over answer tokens i of max over heads h of a_ih[s]

The answer's tokens go through the model once more, all in one pass behind the same keys and values; the cache is not
changed and decoding costs nothing. A query at the token before says what is chosen next, so that the replay begins at
the prompt's last token. The first tokens of a context take what attention has no use for (sinks, arXiv 2309.17453):
they are left out. Few heads find what is copied (retrieval heads, arXiv 2404.15574); they are those whose evictions
cost most, which is what a policy's trust says. Without it the mean over all heads is mostly about the nearest text,
so that of every token the head counts that looks at it most.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from uncomp_cli.cache.layer import Head
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.cache.softmax import Form
from uncomp_cli.cache.states import States
from uncomp_cli.engine.forward.attention import AttentionState
from uncomp_cli.engine.forward.decoder import Decoder
from uncomp_cli.engine.forward.mixers import Step
from uncomp_cli.models.ranks import ALONE, Ranks
from uncomp_cli.spec import ModelSpec

_BLOCK = 128
"""Queries whose weights are held at a time."""


class Replay(AttentionState):
    """The engine's state of a replay: attends as decoding did, and sums where to; the cache stays as it is.

    `behind` [L][G] are entries that lie before the replayed tokens too, `heads` [L][G] how far each is trusted. Layers
    with a state of their own go on from `states`. Of heads that are dealt out to `ranks` each sees its own, and `mass`
    is that of all.
    """

    def __init__(
        self,
        cache: RaggedKVCache,
        spec: ModelSpec,
        first: int,
        *,
        heads: Sequence[Sequence[float]] | None = None,
        behind: Sequence[Sequence[Head]] | None = None,
        states: States | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self._ranks = ranks
        self._cache, self._first, self._behind, self._heads = cache, first, behind, heads
        self._states = (states or States()).copy()
        self._counted = set(spec.full_layers)
        self._mass = torch.zeros(first)
        self._weight, self._device = 0.0, torch.device("cpu")
        self._highest = torch.zeros(0, first)

    def mass(self, *, sinks: int) -> Tensor:
        """Attention [first] on each token before the replayed ones, on the CPU; the first `sinks` have none."""
        if self._heads is None:
            highest = self._everywhere(self._ranks.highest, self._highest)
            mass = highest.mean(0) if len(highest) else torch.zeros(self._first)
        else:
            weighed = self._everywhere(self._ranks.total, torch.cat([self._mass, torch.tensor([self._weight])]))
            mass = weighed[:-1] / weighed[-1] if weighed[-1] else weighed[:-1].clone()
        mass[:sinks] = 0
        return mass

    def _everywhere(self, reduce: Callable[[Tensor], Tensor], own: Tensor) -> Tensor:
        """What all ranks found, where their tensors can meet."""
        return reduce(own.to(self._device)).cpu()

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        """Attention [1, H, N, D] of the replayed tokens over what was kept and, causally, themselves."""
        groups, self._device = key.shape[1], key.device
        grouped = query[0].view(groups, -1, *query.shape[2:]) * form.scaling
        outputs = [
            self._attend_head(layer, group, grouped[group], key[0, group], value[0, group], form)
            for group in range(groups)
        ]
        return torch.cat(outputs)[None]

    def recur(self, layer: int, hidden: Tensor, step: Step) -> Tensor:
        """The replayed tokens behind the prompt's last but one."""
        return step(hidden, self._states)

    def _attend_head(self, layer: int, group: int, query: Tensor, key: Tensor, value: Tensor, form: Form) -> Tensor:
        """Output [R, N, D] of the R queries of one KV head."""
        keys, values, positions = self._before(layer, group)
        at = torch.arange(self._first, self._first + key.shape[0], device=key.device)
        keys, values, places = torch.cat([keys, key]), torch.cat([values, value]), torch.cat([positions.to(at), at])
        outputs, per = [], len(query)
        own = form.of(slice(group * per, (group + 1) * per))
        for begin in range(0, len(at), _BLOCK):
            here, block = at[begin : begin + _BLOCK], query[:, begin : begin + _BLOCK]
            unseen = places > here[:, None]
            unseen = unseen if form.window is None else unseen | (places <= here[:, None] - form.window)
            weights = own.weights(block @ keys.T, unseen)
            outputs.append(weights.to(values.dtype) @ values)
            if layer in self._counted:
                self._count(weights[..., : len(positions)], positions.cpu().long(), begin, (layer, group))
        return torch.cat(outputs, dim=1)

    def _count(self, weights: Tensor, positions: Tensor, begin: int, head: tuple[int, int]) -> None:
        """Take in the attention [R, N, S] of answer tokens from `begin` on on entries at `positions` [S]."""
        if self._heads is not None:
            trust = self._heads[head[0]][self._ranks.first(self._cache.num_kv_heads) + head[1]]
            self._weight += trust * weights.shape[0] * weights.shape[1]
            self._mass.index_add_(0, positions, trust * weights.sum(dim=(0, 1)).cpu())
            return
        end = begin + weights.shape[1]
        if end > len(self._highest):
            self._highest = pad(self._highest, (0, 0, 0, end - len(self._highest)))
        rows = self._highest[begin:end]
        rows[:, positions] = torch.maximum(rows[:, positions], weights.amax(dim=0).cpu())

    def _before(self, layer: int, group: int) -> Head:
        """Keys [S, D], values [S, D] and positions [S] of what one head holds before the replayed tokens."""
        behind = None if self._behind is None else self._behind[layer][group]
        # What an earlier question left behind the context is not this one's.
        limit = self._first if behind is None or not len(behind[2]) else int(behind[2][0])
        keys, values, positions = _before(self._cache.layer(layer).head(group), limit)
        if behind is None:
            return keys, values, positions
        late = _before(behind, self._first)
        return torch.cat([keys, late[0]]), torch.cat([values, late[1]]), torch.cat([positions, late[2]])


def _before(head: Head, position: int) -> Head:
    """The entries of a head before `position`; they are in order, so that these are views."""
    end = int(torch.searchsorted(head[2], position))
    return head[0][:end], head[1][:end], head[2][:end]


def attended_by(
    decoder: Decoder,
    cache: RaggedKVCache,
    ids: Sequence[int],
    first: int,
    *,
    heads: Sequence[Sequence[float]] | None = None,
    sinks: int = 4,
    behind: Sequence[Sequence[Head]] | None = None,
    states: States | None = None,
) -> Tensor:
    """Attention [first] of an answer on the tokens before position `first`; with trust it sums to at most 1.

    `ids` are the prompt's last token, which stands at `first`, and the answer's tokens but the last. Of the cache's
    one row what stands before `first` is used, so an answer may still lie behind it; `behind` [L][G] are entries
    that wait beside it (a question of several), and `states` those behind the prompt (None: the cache's), which
    remember what was before its last token. `heads` [L][G] is Allocation.trust(), None where nothing is known.
    """
    opening = (states or cache.states).before
    state = Replay(cache, decoder.spec, first, heads=heads, behind=behind, states=opening, ranks=decoder.ranks)
    positions = torch.arange(first, first + len(ids))[None]
    decoder.forward(torch.tensor([list(ids)]), positions, state, 1)
    return state.mass(sinks=sinks)
