"""What a policy is asked for, and its plan: how many tokens every layer and KV head keeps, exactly what was allowed.

`apportion` is the one place where real-valued shares become integers: weights decide, floors and caps bind, what a
capped cell cannot use goes to the others by their weights, and the largest remainders get the last entries.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from uncomp_cli.budget.values import Uncertainty
from uncomp_cli.errors import DoesNotFitError
from uncomp_cli.spec import ModelSpec

ALWAYS_KEPT = "(template, system prompt, question, what is pinned)"


@dataclass(frozen=True, slots=True)
class Wanted:
    """A budget to spread over a prompt of `seq_len` tokens: `entries` KV entries, `protected` tokens in every head.

    What is kept of the context is held in `kv_bits` bits; 16 stands for the model's own dtype. A head of layer l can
    hold no more than `caps[l]` tokens (with thinned hidden states: what enters the layer), or the protected ones if
    those are more. `uncertainty` is what was measured: None before anything was.
    """

    spec: ModelSpec
    seq_len: int
    entries: int
    protected: int
    kv_bits: int = 16
    caps: Sequence[int] | None = None
    uncertainty: Uncertainty | None = None

    @property
    def floor(self) -> int:
        """Tokens that every head keeps: the protected ones, as far as there are so many."""
        return min(self.protected, self.seq_len)

    @property
    def least_entries(self) -> int:
        """KV entries that are always kept: the floor in every head, windows where layers slide."""
        most = self.most_a_head(least=self.floor)
        windows = zip(self.spec.sliding_windows, most, strict=True)
        return self.spec.num_kv_heads * sum(self.floor if window is None else count for window, count in windows)

    def capped(self, caps: Sequence[int]) -> "Wanted":
        """The same for heads that can hold no more than `caps` [L] either."""
        lower = caps if self.caps is None else [min(pair) for pair in zip(self.caps, caps, strict=True)]
        return replace(self, caps=lower)

    def most_a_head(self, *, least: int = 0) -> list[int]:
        """The most tokens a head of each layer can hold [L]: prompt, window and cap, which is `least` at least."""
        seq_len, caps = self.seq_len, self.caps
        windows = (seq_len if window is None else min(seq_len, window) for window in self.spec.sliding_windows)
        if caps is None:
            return list(windows)
        return [min(window, max(cap, least)) for window, cap in zip(windows, caps, strict=True)]


@dataclass(frozen=True, slots=True)
class BudgetPlan:
    """Kept tokens per layer and KV head for a prompt of `seq_len` tokens.

    `kept[l][g]` includes the protected tokens; a sliding layer keeps its whole window. With a `head_floor` below 1 only
    the layer's sum is final: its heads share the rest by their scores (cache/eviction.py). What is kept of the
    context is held in `kv_bits` bits; 16 stands for the model's own dtype.
    """

    seq_len: int
    kept: tuple[tuple[int, ...], ...]
    head_floor: float = 1.0
    kv_bits: int = 16

    @property
    def entries(self) -> int:
        """KV entries over all layers and heads."""
        return sum(sum(layer) for layer in self.kept)

    def per_head(self, spec: ModelSpec) -> float:
        """Tokens that a head of a layer without a window keeps in the mean; 0 where there is none."""
        return sum(sum(self.kept[layer]) for layer in spec.full_layers) / max(
            1, len(spec.full_layers) * spec.num_kv_heads
        )

    @property
    def keeps_everything(self) -> bool:
        """True when no token is dropped anywhere."""
        return self.keeps_all_in(range(len(self.kept)))

    def keeps_all_in(self, layers: Iterable[int]) -> bool:
        """True when no token is dropped in these: sliding layers keep their window, whatever the budget."""
        return all(count >= self.seq_len for layer in layers for count in self.kept[layer])

    @classmethod
    def everything(cls, wanted: Wanted) -> "BudgetPlan":
        """Whatever the budget, all that there is: the prompt, in sliding layers their window, no more than the caps."""
        kept = tuple((count,) * wanted.spec.num_kv_heads for count in wanted.most_a_head())
        return cls(wanted.seq_len, kept, kv_bits=wanted.kv_bits)

    @classmethod
    def of_shares(cls, wanted: Wanted, weights: Sequence[Sequence[float]], *, even_share: float = 0.0) -> "BudgetPlan":
        """Spread the entries by `weights` [L][G] over the full-attention layers; sliding layers keep their window.

        Every head keeps at least the protected tokens, and of what is left after that `even_share` is spread evenly.
        What a head cannot hold goes to the others. Raises DoesNotFitError when the protected tokens alone are over the
        budget.
        """
        spec, floor = wanted.spec, wanted.floor
        most = wanted.most_a_head(least=floor)
        sliding = [window is not None for window in spec.sliding_windows]
        fixed = spec.num_kv_heads * sum(count for count, slides in zip(most, sliding, strict=True) if slides)
        cells = [weight for layer in spec.full_layers for weight in weights[layer]]
        if wanted.entries < wanted.least_entries:
            least = math.ceil(wanted.least_entries * spec.kv_bytes_per_entry / 2**10)
            beside = f" beside the windows of {sum(sliding)} layers" if fixed else ""
            raise DoesNotFitError(
                f"the budget keeps {max(0, wanted.entries - fixed) // max(1, len(cells)):,} tokens per head{beside}, "
                f"but {floor:,} are always kept {ALWAYS_KEPT}",
                hint=f"use a larger --budget or --kv-mem ({least}KiB hold what is always kept), or a shorter question",
            )
        room = [most[layer] for layer in spec.full_layers for _ in weights[layer]]
        shares = iter(apportion(wanted.entries - fixed, cells, floor=floor, cap=room, even_share=even_share))
        kept = tuple(
            tuple(count if slides else next(shares) for _ in range(spec.num_kv_heads))
            for count, slides in zip(most, sliding, strict=True)
        )
        return cls(wanted.seq_len, kept, kv_bits=wanted.kv_bits)


def apportion(
    total: int, weights: Sequence[float], *, floor: int, cap: int | Sequence[int], even_share: float = 0.0
) -> list[int]:
    """Split `total` by `weights` into integers in [floor, cap] that sum exactly to min(total, sum of the caps).

    `cap` is one for all cells or each cell's own. Of what the floors leave, `even_share` is spread evenly, as far as
    cells have room, before the weights decide. Raises ValueError when the floors alone exceed `total`, a cap is below
    the floor, or a weight is negative.
    """
    caps = [cap] * len(weights) if isinstance(cap, int) else list(cap)
    rooms = [most - floor for most in caps]
    if any(weight < 0 for weight in weights) or min(rooms, default=0) < 0 or floor * len(weights) > total:
        raise ValueError(f"cannot split {total} over {len(weights)} cells with floor {floor}")
    above = min(total, sum(caps)) - floor * len(weights)
    level = even_share * above / max(1, len(weights))
    even = [min(level, room) for room in rooms]
    left = [room - given for room, given in zip(rooms, even, strict=True)]
    filled = _water_fill(above - sum(even), weights, rooms=left)
    return [floor + count for count in _rounded([a + b for a, b in zip(even, filled, strict=True)], above, rooms)]


def _rounded(shares: Sequence[float], total: int, rooms: Sequence[int]) -> list[int]:
    """Integers up to `rooms` that sum to `total`: the largest remainders are rounded up."""
    whole = [int(share) for share in shares]
    missing = total - sum(whole)
    by_remainder = sorted(range(len(shares)), key=lambda i: (whole[i] - shares[i], i))
    for i in [i for i in by_remainder if whole[i] < rooms[i]][: max(0, missing)]:
        whole[i] += 1
    return whole


def _water_fill(amount: float, weights: Sequence[float], *, rooms: Sequence[float]) -> list[float]:
    """Real-valued shares in [0, room]; what full cells leave over is split among the rest by their weights."""
    shares = [0.0] * len(weights)
    open_cells = list(range(len(weights)))
    left = amount
    while open_cells and left > 1e-9:
        mass = sum(weights[i] for i in open_cells)
        parts = {i: left * (weights[i] / mass if mass > 0 else 1 / len(open_cells)) for i in open_cells}
        full = [i for i in open_cells if shares[i] + parts[i] >= rooms[i]]
        for i in full or open_cells:
            taken = min(parts[i], rooms[i] - shares[i])
            shares[i] += taken
            left -= taken
        if not full:
            break
        open_cells = [i for i in open_cells if i not in set(full)]
    return shares
