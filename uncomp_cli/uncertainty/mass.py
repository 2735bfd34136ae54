"""Minimum budgets: how few tokens would do for a head's attention (ZigZagKV, arXiv 2412.09036).

LMBA: the fewest tokens whose attention mass reaches a share P of the row's. LMBO: the fewest, taken in order of
attention weight, with which the attention output stays near the full one. With kept tokens S of mass m_S, the full
output o, the kept tokens' output o_S (their weights made to sum to 1) and that of the evicted ones, o_E,
|o - o_S| = (1 - m_S) |o_E - o_S|: mass is lost harmlessly where the evicted values point where the kept ones do.

Rows are attention weights after the softmax, not pooled and not padded with a constant (a row padded with more than it
holds measures the padding). They need not sum to 1. Of several rows, average the budgets: the budget of the mean row
is another, larger figure, as rows that look at different places add up to a row that looks everywhere.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from uncomp_cli.errors import ModelError

# Most rows reach their mass within few tokens, and the best 512 cost a fifth of a full sort at 8,000 tokens.
_FIRST_WIDTH = 512
_WIDENING = 4
# Bounds the working memory of an output budget: rows x tokens x head_dim floats.
_BLOCK_ROWS = 8
_BLOCK_TOKENS = 512
# Sums of the same numbers in another order differ by less.
_SLACK = 1e-12


def minimum_budget(rows: Tensor, *, mass: float = 0.9) -> Tensor:
    """LMBA of each of the rows [..., S]: float32 [...], the fewest tokens that hold `mass` (above 0, at most 1) of it.

    A row without weight needs 0 tokens. Raises ModelError for rows that are not finite.
    """
    check_attention(rows)
    weights = rows.reshape(-1, rows.shape[-1])
    target = weights.sum(dim=-1, dtype=torch.float64) * (mass * (1 - _SLACK))
    budget = torch.zeros_like(target, dtype=torch.float32)
    pending = target.nonzero().squeeze(-1)
    for width in _widths(weights.shape[-1]):
        if not len(pending):
            break
        held = weights[pending].topk(width, dim=-1).values.cumsum(dim=-1, dtype=torch.float64)
        short = (held < target[pending, None]).sum(dim=-1)
        budget[pending] = short.float() + 1
        pending = pending[short == width]
    return budget.view(rows.shape[:-1])


def minimum_output_budget(rows: Tensor, values: Tensor, *, tolerance: float = 0.1) -> Tensor:
    """LMBO of each of the rows [..., W, S] over values [..., S, D]: float32 [..., W].

    Tokens of equal weight are taken in their order. The error of an output is |o - o_S| / |o|. It does not fall
    steadily with the count: a few tokens can hit o by accident and the next one miss it. So the budget is the count
    from which on *every* larger one stays within `tolerance`: whoever is given that many or more is safe. A row without
    weight needs 0 tokens, any other at least 1. Rows of all query heads that share a KV head stand together in W.

    Exact, in memory that does not grow with W. Every row is sorted: meant for calibration more than for each prompt.
    |o - o_S| <= (T + (1 - m_S) |o|) / m_S, T being the evicted weight times value norm, falls steadily and takes no
    vectors: only counts below the first where it is within the tolerance are looked at one by one. Raises ModelError
    for what is not finite.
    """
    if values.shape[:-2] != rows.shape[:-2] or values.shape[-2] != rows.shape[-1]:
        raise ValueError(f"values {tuple(values.shape)} do not belong to rows {tuple(rows.shape)}")
    check_attention(rows)
    dtype = torch.promote_types(rows.dtype, torch.float32)
    heads_rows = rows.to(dtype).reshape(-1, *rows.shape[-2:])
    heads_values = values.to(dtype).reshape(-1, *values.shape[-2:])
    budgets = [
        _settled_counts(some, head_values, tolerance)
        for head_rows, head_values in zip(heads_rows, heads_values, strict=True)
        for some in head_rows.split(_BLOCK_ROWS)
    ]
    return torch.cat(budgets).view(rows.shape[:-1])


def check_attention(rows: Tensor) -> None:
    """Raise ModelError for attention weights [..., S] that are not finite, ValueError for negative ones."""
    if not rows.sum(dim=-1, dtype=torch.float64).isfinite().all():
        raise ModelError("attention weights are not finite", hint="use --dtype float32")
    if (rows < 0).any():
        raise ValueError("attention weights are below 0: measure them after the softmax")


def _widths(seq_len: int) -> Iterator[int]:
    width = _FIRST_WIDTH
    while width < seq_len:
        yield width
        width *= _WIDENING
    yield seq_len


def _settled_counts(weights: Tensor, values: Tensor, tolerance: float) -> Tensor:
    """LMBO [W] of weights [W, S] over values [S, D]."""
    total = weights.sum(dim=-1, keepdim=True)
    shares = weights / total.clamp_min(torch.finfo(weights.dtype).tiny)
    output = shares @ values
    if not output.isfinite().all():
        raise ModelError("the values of a layer are not finite", hint="use --dtype float32")
    shares, order = shares.sort(dim=-1, descending=True, stable=True)
    norms = torch.linalg.vector_norm(values, dim=-1)[order]
    size: Tensor = torch.linalg.vector_norm(output, dim=-1, keepdim=True)
    horizon = _horizon(shares, norms, size=size, reach=tolerance * size)
    last_miss = _last_miss(shares, values, order=order, output=output, horizon=horizon, reach=tolerance * size)
    return torch.where(total.squeeze(-1) > 0, last_miss + 1, 0).float()


def _horizon(shares: Tensor, norms: Tensor, *, size: Tensor, reach: Tensor) -> Tensor:
    """The first count [W] whose bound, and so that of every larger one, is within `reach`.

    Shares [W, S] fall; norms [W, S] are those of their values, size [W, 1] that of the full output; reach [W, 1].
    """
    evicted = _after(shares)
    # The same as (T + (1 - m) |o|) / m <= reach, without a division.
    beyond = _after(shares * norms) + evicted * size > reach * (1 - evicted)
    return beyond.sum(dim=-1) + 1


def _after(terms: Tensor) -> Tensor:
    """Sum of the terms [W, S] after each; summed from the end, so that no rounding is left after the last."""
    return torch.nn.functional.pad(terms.flip(-1).cumsum(dim=-1).flip(-1)[..., 1:], (0, 1))


def _last_miss(
    shares: Tensor, values: Tensor, *, order: Tensor, output: Tensor, horizon: Tensor, reach: Tensor
) -> Tensor:
    """The largest count [W] below the horizon whose output is not within `reach` [W, 1], or 0."""
    last = torch.zeros_like(horizon)
    sums, masses = torch.zeros_like(output)[:, None], torch.zeros_like(output)[:, None, :1]
    for start in range(0, int(horizon.max()) - 1, _BLOCK_TOKENS):
        weights = shares[:, start : start + _BLOCK_TOKENS, None]
        sums = sums[:, -1:] + (weights * values[order[:, start : start + _BLOCK_TOKENS]]).cumsum(dim=1)
        masses = masses[:, -1:] + weights.cumsum(dim=1)
        count = torch.arange(start + 1, start + 1 + weights.shape[1], device=weights.device)
        error = torch.linalg.vector_norm(sums - masses * output[:, None], dim=-1)
        missed = (error > reach * masses.squeeze(-1)) & (count < horizon[:, None])
        last = torch.maximum(last, torch.where(missed, count, 0).amax(dim=-1))
    return last
