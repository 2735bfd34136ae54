"""Scorers that ask the question: how much attention its last tokens pay to each token of the context.

What the heads of all layers agree on may have a part in it: the few heads that find things tell the others.

    agreed(s)  = Σ_lg trust_lg · score_lg(s) / Σ_lg trust_lg        a weighted mean, when it is known whom to trust
               = max_lg score_lg(s)                                 otherwise
    final_lg   = (1 - shared) · score_lg + shared · agreed

Scores must be comparable between heads: attention without the sinks, every row normalised. A sum without trust would
wash the few retrieval heads out; the maximum keeps them. Trust is the square of the weights that a policy gives the
heads (calibrated or measured live), so that the floor of many heads does not outweigh a few.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from uncomp_cli.cache.softmax import Form
from uncomp_cli.cache.view import Asking, LayerView
from uncomp_cli.config import ScorerConfig


def agree(scores: Sequence[Tensor], trust: Sequence[Sequence[float]] | None) -> Tensor:
    """The agreed score [S] of layers of scores [G, S]; `trust` has a number of 0 or more for each of them.

    Where nobody is trusted, the maximum.
    """
    stacked = torch.stack(list(scores))
    weights = None if trust is None else torch.tensor(trust, dtype=stacked.dtype, device=stacked.device)
    if weights is None or not float(weights.sum()) > 0:
        return stacked.amax(dim=(0, 1))
    return torch.einsum("lg,lgs->s", weights / weights.sum(), stacked)


def mix(own: Tensor, agreed: Tensor, *, shared: float) -> Tensor:
    """Scores [G, S] of which the part `shared` is agreed [S]."""
    return (1 - shared) * own + shared * agreed


class WindowScorer(Asking):
    """Attention that the last `window` queries pay to each token (SnapKV, arXiv 2404.14469, eq. 3).

    Rows are softmax-normalised over all keys that they see; with `renormalise` the sinks are then taken out and each
    row is normalised again over the context, so that a row that looks at nothing but the sink still ranks. Mean over
    rows and over the query heads of a KV head; the maximum over several questions. The window never reaches back from a
    short question into the document. Tokens of the question that compete with the context (`asked`) observe it too;
    one is seen by the rows behind it alone, never by its own, and its mean is over those.
    Published settings: those of the released code, raw attention among them.
    """

    name: ClassVar[str] = "window"
    published: ClassVar[ScorerConfig] = ScorerConfig(
        "window", 64, "mean", 5, whole_words=False, renormalise=False, recent=64
    )

    def score(self, view: LayerView) -> Tensor:
        """Scores [G, S]."""
        per_question = [self._mean_of(view, rows) for rows in asked_attention(view, window=self.config.window)]
        return torch.stack(per_question).amax(dim=0)

    def _mean_of(self, view: LayerView, weights: Tensor) -> Tensor:
        first = weights.shape[3] - weights.shape[2]  # position of the window's first row
        context = weights[..., : view.keys.shape[1]]
        if view.asked:
            context = _without_own(context, first)
        if self.config.renormalise:
            context = context.clone()
            context[..., : self.config.sinks] = 0
            context /= context.sum(dim=-1, keepdim=True).clamp_min(1e-12)
        return context.mean(dim=1).sum(dim=1) / _rows_behind(context, first)


def _without_own(weights: Tensor, first: int) -> Tensor:
    """Attention [G, H/G, W, S] of rows at positions `first`… without what each pays to its own token."""
    rows, length = weights.shape[2:]
    own = (
        torch.arange(length, device=weights.device) == torch.arange(first, first + rows, device=weights.device)[:, None]
    )
    return weights.masked_fill(own, 0.0)


def _rows_behind(weights: Tensor, first: int) -> Tensor:
    """How many rows of the window stand behind each token [S], at least 1; all of them behind the document's."""
    rows, length = weights.shape[2:]
    position = torch.arange(length, device=weights.device)
    return (first + rows - 1 - position).clamp(1, rows)


@dataclass(frozen=True, slots=True)
class AgreementScorer:
    """The window score, mixed with what the heads of all layers agree on once all have reported."""

    name: ClassVar[str] = "agreement"
    query_aware: ClassVar[bool] = True
    needs_queries: ClassVar[bool] = True
    repeats: ClassVar[bool] = False
    published: ClassVar[ScorerConfig] = ScorerConfig("agreement")
    config: ScorerConfig

    @property
    def shared(self) -> float:
        """The part that is agreed on."""
        return self.config.shared

    def score(self, view: LayerView) -> Tensor:
        """Scores [G, S] of this layer's heads alone; rows are normalised without the sinks, whatever the setting."""
        return WindowScorer(replace(self.config, renormalise=True)).score(view)


class TovaScorer(Asking):
    """Softmax attention of the last query, averaged over all query heads of the layer (TOVA, arXiv 2401.06104, §4).

    Every KV head has the same scores, so a layer keeps the same tokens in all of them. The maximum over several
    questions; `window` and `sinks` have no say.
    """

    name: ClassVar[str] = "tova"
    published: ClassVar[ScorerConfig] = ScorerConfig("tova", window=1, pooling="none", width=1, whole_words=False)

    def score(self, view: LayerView) -> Tensor:
        """Scores [G, S], one row G times."""
        num_kv_heads, context_len, _ = view.keys.shape
        rows = [
            window_attention(queries, view.keys, keys, view.form, window=1).mean(dim=(0, 1, 2))
            for queries, keys in view.branches
        ]
        return torch.stack([row[:context_len] for row in rows]).amax(dim=0).expand(num_kv_heads, -1)


class ReversedScorer(Asking):
    """The control: minus the window score, so that what the question looks at goes first.

    A word that is kept whole counts by its least attended token.
    """

    name: ClassVar[str] = "reversed"
    published: ClassVar[ScorerConfig] = ScorerConfig("reversed", 64, "mean", 5, whole_words=False, renormalise=False)

    def score(self, view: LayerView) -> Tensor:
        """Scores [G, S], none above 0."""
        return -WindowScorer(self.config).score(view)


def asked_attention(view: LayerView, *, window: int) -> Iterator[Tensor]:
    """Attention [G, H/G, W, S + N] of every question's last rows, of its tokens that compete with the context too."""
    document = view.keys.shape[1] - view.asked
    asked = view.queries[:, view.queries.shape[1] - view.asked :], view.keys[:, document:]
    for queries, keys in view.branches:
        asking, own = (torch.cat(pair, dim=1) for pair in zip(asked, (queries, keys), strict=True))
        yield window_attention(asking, view.keys[:, :document], own, view.form, window=window)


def window_attention(queries: Tensor, keys: Tensor, own_keys: Tensor, form: Form, *, window: int) -> Tensor:
    """Softmax attention [G, H/G, W, S + N] in float32 of the last W = min(window, N) queries of a question.

    queries [H, N, D] see the context keys [G, S, D] and, causally, the question's own keys [G, N, D].
    """
    num_kv_heads, context_len, head_dim = keys.shape
    own_len = own_keys.shape[1]
    rows = min(window, own_len)
    grouped = queries[:, own_len - rows :].reshape(num_kv_heads, -1, head_dim).float()
    logits = torch.cat([grouped @ keys.float().transpose(1, 2), grouped @ own_keys.float().transpose(1, 2)], dim=-1)
    logits = logits.view(num_kv_heads, -1, rows, context_len + own_len) * form.scaling
    column = torch.arange(own_len, device=keys.device)
    future = column[None, :] > column[own_len - rows :, None]
    unseen = functional.pad(future, (context_len, 0))
    return form.weights(logits, unseen)
