"""The decode kernel of a GPU, in Triton: one token's queries over heads of any length, each cut into parts.

    part p of a head:  m = max_j s_j,  w = Σ_j 2^(s_j - m),  o = Σ_j 2^(s_j - m) v_j / w,  lse = m + log2 w
    head:              out = Σ_p 2^(lse_p - lse) o_p,  lse = log2 Σ_p 2^(lse_p), a learnt sink among them    (split-K)

s_j = q·k_j scaling log2 e. A head's entries are those in 8 or 4 bits, whose numbers are made here (x̂ = zero + scale ·
code, cache/quantized.py), and behind them its tail. Triton is imported here and nowhere else: launch.py says when.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
FEW = tl.constexpr(7)
"""Numbers a head in `fewer`: how many entries, and where their codes, scales and zeros are (launch.py)."""


@triton.jit
def _numbers(codes, scales, zeros, entry, seen, channel, D: tl.constexpr, BITS: tl.constexpr, GROUP: tl.constexpr):
    """float32 [entries, channels] of codes whose first plane has 8 or 4 bits a channel, and the second the fifth."""
    first: tl.constexpr = 8 if BITS == 8 else 4
    size: tl.constexpr = (D * first + 7) // 8
    rest: tl.constexpr = (D + 7) // 8 if BITS == 5 else 0
    there = seen[:, None] & (channel < D)[None, :]
    at = codes + entry[:, None] * (size + rest)
    code = tl.load(at + (channel % size)[None, :], mask=there, other=0).to(tl.int32)
    code = (code >> (channel // size * first)[None, :]) & ((1 << first) - 1)
    if BITS == 5:
        high = tl.load(at + (size + channel % rest)[None, :], mask=there, other=0).to(tl.int32)
        code |= ((high >> (channel // rest)[None, :]) & 1) << 4
    place = entry[:, None] * ((D + GROUP - 1) // GROUP) + (channel // GROUP)[None, :]
    scale = tl.load(scales + place, mask=there, other=0.0).to(tl.float32)
    return tl.load(zeros + place, mask=there, other=0.0).to(tl.float32) + scale * code.to(tl.float32)


@triton.jit
def _meet(q, k, v, seen, best, weight, out, scaling, softcap, CAPPED: tl.constexpr):
    """What queries [R, D] have of keys and values [S, D] beside what they had: the running softmax."""
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * scaling
    if CAPPED:
        scores = softcap * (2 * tl.sigmoid(2 * scores / softcap) - 1)  # tanh
    scores = tl.where(seen[None, :], scores * LOG2E, float("-inf"))
    newest = tl.maximum(best, tl.max(scores, 1))
    shrink = tl.exp2(best - newest)
    shares = tl.exp2(scores - newest[:, None])
    out = out * shrink[:, None] + tl.dot(shares.to(v.dtype), v, input_precision="ieee")
    return newest, weight * shrink + tl.sum(shares, 1), out


@triton.jit(do_not_specialize=["window", "split", "splits"])
def attend_part(
    query,  # [heads, R, D]
    turned,  # [heads, R, D]: H q, which meets the keys in 8 or 4 bits
    keys,  # [entries, D]
    values,
    starts,  # int64 [heads]: the tail of head h is entries starts[h] … ends[h]
    ends,
    fewer,  # int64 [heads, FEW]
    outs,  # float32 [heads, splits, R, D]
    sums,  # float32 [heads, splits, R]
    scaling,
    softcap,
    window,
    split,
    splits,
    R: tl.constexpr,
    D: tl.constexpr,
    R_PAD: tl.constexpr,
    D_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
    KEY_BITS: tl.constexpr,
    VALUE_BITS: tl.constexpr,
    GROUP: tl.constexpr,
    CAPPED: tl.constexpr,
):
    """One part of one head; of a window's entries alone, where they are fewer."""
    head, part = tl.program_id(0).to(tl.int64), tl.program_id(1)
    row, channel, step = tl.arange(0, R_PAD), tl.arange(0, D_PAD), tl.arange(0, BLOCK)
    here = (row < R)[:, None] & (channel < D)[None, :]
    at = head * R * D + row[:, None] * D + channel[None, :]
    q = tl.load(query + at, mask=here, other=0.0)
    start = tl.load(starts + head)
    cut = tl.load(fewer + head * FEW).to(tl.int32) if KEY_BITS else 0
    total = cut + (tl.load(ends + head) - start).to(tl.int32)
    first = tl.maximum(total - window, 0) + part * split
    last = tl.minimum(first + split, total)
    best, weight = tl.full([R_PAD], float("-inf"), tl.float32), tl.zeros([R_PAD], tl.float32)
    out = tl.zeros([R_PAD, D_PAD], tl.float32)
    if KEY_BITS:
        h = tl.load(turned + at, mask=here, other=0.0)
        fields = fewer + head * FEW
        key_codes = tl.load(fields + 1).to(tl.pointer_type(tl.uint8))
        value_codes = tl.load(fields + 2).to(tl.pointer_type(tl.uint8))
        key_scales = tl.load(fields + 3).to(tl.pointer_type(tl.float16))
        key_zeros = tl.load(fields + 4).to(tl.pointer_type(tl.float16))
        value_scales = tl.load(fields + 5).to(tl.pointer_type(tl.float16))
        value_zeros = tl.load(fields + 6).to(tl.pointer_type(tl.float16))
        for begin in range(first, tl.minimum(last, cut), BLOCK):
            entry = (begin + step).to(tl.int64)
            seen = entry < tl.minimum(last, cut)
            k = _numbers(key_codes, key_scales, key_zeros, entry, seen, channel, D, KEY_BITS, GROUP).to(q.dtype)
            v = _numbers(value_codes, value_scales, value_zeros, entry, seen, channel, D, VALUE_BITS, GROUP)
            best, weight, out = _meet(h, k, v.to(q.dtype), seen, best, weight, out, scaling, softcap, CAPPED)
    for begin in range(tl.maximum(first, cut), last, BLOCK):
        entry = begin + step
        seen = entry < last
        tail = (start + entry - cut)[:, None] * D + channel[None, :]
        there = seen[:, None] & (channel < D)[None, :]
        k = tl.load(keys + tail, mask=there, other=0.0)
        v = tl.load(values + tail, mask=there, other=0.0)
        best, weight, out = _meet(q, k, v, seen, best, weight, out, scaling, softcap, CAPPED)
    some = weight > 0
    weight = tl.where(some, weight, 1.0)
    of = (head * splits + part) * R + row
    tl.store(outs + of[:, None] * D + channel[None, :], out / weight[:, None], mask=here)
    tl.store(sums + of, tl.where(some, best + tl.log2(weight), float("-inf")), mask=row < R)


@triton.jit(do_not_specialize=["splits", "heads"])
def merge_parts(
    outs,
    sums,
    sinks,  # [heads of the model]
    output,  # [heads, R, D]
    splits,
    heads,
    R: tl.constexpr,
    D: tl.constexpr,
    D_PAD: tl.constexpr,
    BLOCK: tl.constexpr,
    SINKS: tl.constexpr,
):
    """One query: its parts' outputs, each by its share of the whole weight; zeros where nothing is seen."""
    number = tl.program_id(0).to(tl.int64)
    head, row = number // R, number % R
    channel, step = tl.arange(0, D_PAD), tl.arange(0, BLOCK)
    best, weight, out = -1e30, 0.0, tl.zeros([D_PAD], tl.float32)
    if SINKS:
        best, weight = tl.load(sinks + number % heads).to(tl.float32) * LOG2E, 1.0
    for begin in range(0, splits, BLOCK):
        part = begin + step
        of = (head * splits + part) * R + row
        lse = tl.load(sums + of, mask=part < splits, other=float("-inf"))
        newest = tl.maximum(best, tl.max(lse, 0))
        shares = tl.exp2(lse - newest)
        shrink = tl.exp2(best - newest)
        there = (part < splits)[:, None] & (channel < D)[None, :]
        parts = tl.load(outs + of[:, None] * D + channel[None, :], mask=there, other=0.0)
        out = out * shrink + tl.sum(shares[:, None] * parts, 0)
        weight = weight * shrink + tl.sum(shares, 0)
        best = newest
    out = out / tl.where(weight > 0, weight, 1.0)
    tl.store(output + number * D + channel, out.to(output.dtype.element_ty), mask=channel < D)
