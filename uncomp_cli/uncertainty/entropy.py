"""Truncated matrix entropy: how many directions a head's states really use (UNComp, arXiv 2410.03090).

Of states X [S, D] the token mean is subtracted and every row scaled to unit length; C = X^T X / trace(X^T X) has the
eigenvalues l_1 >= ... >= l_D, which sum to 1, and H_R = -sum_{i <= R} l_i ln l_i / ln D. One direction gives 0; at
full rank H is 1 when all directions are used alike. Truncated and not renormalised, the paper's form, H_R is not
monotone in flatness: it also asks how much of the spectrum lies above the rank.

Long prompts come in chunks, and take two sweeps: the sum of `token_sum` over the chunks, divided by S, is the mean; the
sum of `gram` over the chunks then goes to `gram_spectrum`. One sweep cannot do: the length that divides a row is that
of the row minus the mean, so the sum over the rows of (x - m)(x - m)^T / |x - m|^2 does not come apart into sums that
know no m. A mean known beforehand, of an earlier part or another text, saves the first sweep, and is an approximation.

Attention entropy: how widely a head looks (attention uncertainty, arXiv 2406.13282).

H = -sum_s p_s ln p_s over the attention row of a generated or observed token. It grows with the length of the row, so
that lengths compare only after division by ln n. A flag for risk, not a probability of error (error_rates.py).

Of scores z before the softmax, with log p = z - ln sum exp z, the same in fewer passes: H = -sum_s e^(log p_s) log p_s.
"""

import math

import torch
from torch import Tensor

from uncomp_cli.errors import ModelError, UsageError
from uncomp_cli.uncertainty.mass import check_attention

# What is centred and scaled at a time: bounds the copy, and keeps it within reach of a processor's caches.
_BLOCK_TOKENS = 1024
# A row within so many roundings of the mean is the mean: what subtraction leaves of it has no direction.
_ROUNDINGS = 8.0


def spectrum(states: Tensor) -> Tensor:
    """Eigenvalues of C for states [..., S, D]: float64 [..., D], descending, none negative, with the sum 1.

    Work is in float32 (float64 for float64 states) up to C. Rows that equal the mean are left out; when all do, or
    there are none, the spectrum is zero. Raises ModelError for states that are not finite.
    """
    return gram_spectrum(gram(states, token_sum(states) / states.shape[-2]))


def token_sum(chunk: Tensor) -> Tensor:
    """Sum over the tokens of states [..., S, D]: float64 [..., D]; sums of chunks add up."""
    return chunk.sum(dim=-2, dtype=_working_dtype(chunk)).double()


def gram(chunk: Tensor, mean: Tensor) -> Tensor:
    """X^T X of the states [..., S, D] minus `mean` [..., D], rows at unit length: float64 [..., D, D].

    `mean` is that of all the tokens, not of the chunk; grams of chunks with the same mean add up. The trace is the
    number of rows that differ from the mean. Raises ModelError for states that are not finite.
    """
    dtype = _working_dtype(chunk)
    centre = mean.to(dtype).unsqueeze(-2)
    nothing = torch.linalg.vector_norm(centre, dim=-1, keepdim=True) * (_ROUNDINGS * torch.finfo(dtype).eps)
    total = chunk.new_zeros((*chunk.shape[:-2], chunk.shape[-1], chunk.shape[-1]), dtype=torch.float64)
    for start in range(0, chunk.shape[-2], _BLOCK_TOKENS):
        block = chunk[..., start : start + _BLOCK_TOKENS, :].to(dtype)
        unit = _unit_rows(block - centre, nothing)
        total += unit.mT @ unit
    return total


def gram_spectrum(total: Tensor) -> Tensor:
    """Eigenvalues [..., D] of a gram [..., D, D] divided by its trace, descending; zero for a zero gram."""
    trace = total.diagonal(dim1=-2, dim2=-1).sum(dim=-1, keepdim=True)
    ascending: Tensor = torch.linalg.eigvalsh(total.double() / trace.clamp_min(1.0).unsqueeze(-1))
    return ascending.flip(-1).clamp_min(0.0)


def truncated_entropy(spectrum: Tensor, *, rank: int | Tensor, renormalise: bool = False) -> Tensor:
    """H_R [...] of a spectrum [..., D]; `rank` is one number, or one per head [...], as `knee_rank` gives.

    The paper's form divides by ln D. With `renormalise` the R eigenvalues are divided by their sum, and the entropy by
    ln R, so that R equal ones score 1 at every R; a rank of 1 then scores 0. Raises UsageError for a rank outside 1..D.
    """
    size = spectrum.shape[-1]
    ranks = torch.as_tensor(rank, device=spectrum.device)
    _check_ranks(ranks, size)
    kept = torch.where(torch.arange(size, device=spectrum.device) < ranks.unsqueeze(-1), spectrum, 0.0)
    divisor = kept.new_tensor(max(size, 2)).log()
    if renormalise:
        kept = kept / kept.sum(dim=-1, keepdim=True).clamp_min(torch.finfo(kept.dtype).tiny)
        # A single eigenvalue has the entropy 0, whatever divides it, but not over ln 1 = 0.
        divisor = ranks.clamp_min(2).to(kept.dtype).log()
    entropy: Tensor = torch.special.entr(kept).sum(dim=-1)
    return entropy / divisor


def knee_rank(spectrum: Tensor) -> Tensor:
    """Number of eigenvalues [...] (int64, 1..D) before the knee of a spectrum [..., D].

    The paper asks for an elbow and does not say which. Ours: on the linear, descending spectrum the eigenvalue furthest
    below the chord from the first to the last is the first of the flat tail (Kneedle, Satopaa et al. 2011), and those
    before it count, as in a scree test. Not the logarithm: there the numerically zero end would be the knee. A
    spectrum that never falls below its chord, such as a flat one, has no knee and counts whole.
    """
    size = spectrum.shape[-1]
    first, last = spectrum[..., :1], spectrum[..., -1:]
    chord = first + (last - first) * torch.linspace(0.0, 1.0, size, dtype=spectrum.dtype, device=spectrum.device)
    depth, knee = (chord - spectrum).max(dim=-1)
    return torch.where(depth > 1e-9 * first.squeeze(-1), knee, size)


def _working_dtype(states: Tensor) -> torch.dtype:
    return torch.float64 if states.dtype == torch.float64 else torch.float32


def _unit_rows(centred: Tensor, nothing: Tensor) -> Tensor:
    """Rows of `centred` at unit length, in place; those no longer than `nothing` become zero."""
    length = torch.linalg.vector_norm(centred, dim=-1, keepdim=True)
    if not length.isfinite().all():
        raise ModelError(
            f"layer states are not finite, or above {math.sqrt(torch.finfo(centred.dtype).max):.0e}",
            hint="use --dtype float32; if it says so again, the weights are damaged: fetch the model anew",
        )
    return centred.mul_(torch.where(length > nothing, length.reciprocal(), 0.0))


def _check_ranks(ranks: Tensor, size: int) -> None:
    smallest, largest = (int(value) for value in ranks.aminmax())
    if smallest < 1 or largest > size:
        wrong = smallest if smallest < 1 else largest
        raise UsageError(
            f"truncation rank {wrong} is outside 1 to {size}, the width of the states",
            hint=f"use a rank of at most {size}, or a share of the width such as 1/4",
        )


def attention_entropy(rows: Tensor) -> Tensor:
    """Entropy [...] of the attention rows [..., S], each made to sum to 1, divided by ln S: 0 to 1.

    S counts whether or not a row can see all of it: cut rows to what they see. A row without weight, or with one token,
    has entropy 0. float32, or float64 for float64 rows; raises ModelError when not finite.
    """
    check_attention(rows)
    weights = rows.to(torch.promote_types(rows.dtype, torch.float32))
    total = weights.sum(dim=-1, keepdim=True)
    shares = weights / total.clamp_min(torch.finfo(weights.dtype).tiny)
    entropy: Tensor = torch.special.entr(shares).sum(dim=-1)
    return entropy / math.log(max(rows.shape[-1], 2))
