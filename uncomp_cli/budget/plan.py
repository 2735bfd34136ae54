"""A budget plan: how many tokens every layer and KV head keeps, summing exactly to what was allowed.

`apportion` is the one place where real-valued shares become integers: weights decide, floors and caps bind, what a
capped cell cannot use goes to the others by their weights, and the largest remainders get the last entries.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from uncomp_cli.errors import DoesNotFitError
from uncomp_cli.spec import ModelSpec

__all__ = ["BudgetPlan", "apportion"]


@dataclass(frozen=True, slots=True)
class BudgetPlan:
    """Kept tokens per layer and KV head for a prompt of `seq_len` tokens.

    `kept[l][g]` includes the protected tokens; a sliding layer keeps its whole window. With a `head_floor` below 1 only
    the layer's sum is final: its heads share the rest by their scores (cache/head_shares.py). What is kept of the
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

    @property
    def keeps_everything(self) -> bool:
        """True when no token is dropped anywhere."""
        return all(count >= self.seq_len for layer in self.kept for count in layer)

    def held_in(self, kv_bits: int) -> "BudgetPlan":
        """The same counts with the context in `kv_bits` bits."""
        return replace(self, kv_bits=kv_bits)

    def to_dict(self) -> dict[str, object]:
        """Plain data, for JSON."""
        kept = [list(layer) for layer in self.kept]
        return {"seq_len": self.seq_len, "kept": kept, "head_floor": self.head_floor, "kv_bits": self.kv_bits}

    @classmethod
    def everything(cls, spec: ModelSpec, *, seq_len: int) -> "BudgetPlan":
        """The full cache: the whole prompt, in sliding layers their window."""
        windows = (seq_len if window is None else min(seq_len, window) for window in spec.sliding_windows)
        return cls(seq_len=seq_len, kept=tuple((window,) * spec.num_kv_heads for window in windows))

    @classmethod
    def of_shares(
        cls,
        spec: ModelSpec,
        *,
        seq_len: int,
        entries: int,
        protected: int,
        weights: Sequence[Sequence[float]],
        even_share: float = 0.0,
    ) -> "BudgetPlan":
        """Spend `entries` by `weights` [L][G] over the full-attention layers; sliding layers keep their window.

        Every head keeps at least `protected` tokens, and of what is left after that `even_share` is spread evenly.
        Raises DoesNotFitError when the protected tokens alone are over the budget.
        """
        windows = [min(seq_len, w) if w is not None else None for w in spec.sliding_windows]
        fixed = spec.num_kv_heads * sum(w for w in windows if w is not None)
        cells = [weight for layer in spec.full_layers for weight in weights[layer]]
        floor = min(protected, seq_len)
        needed = fixed + floor * len(cells)
        if entries < needed:
            raise DoesNotFitError(
                f"the budget keeps {entries // (spec.num_layers * spec.num_kv_heads):,} tokens per head, but "
                f"{floor:,} are always kept (template, system prompt, question)",
                hint=f"use --budget {_tokens_per_head(needed, spec)} or more, or a shorter question",
            )
        shares = iter(apportion(entries - fixed, cells, floor=floor, cap=seq_len, even_share=even_share))
        kept = tuple(
            tuple(next(shares) if window is None else window for _ in range(spec.num_kv_heads)) for window in windows
        )
        return cls(seq_len=seq_len, kept=kept)


def _tokens_per_head(entries: int, spec: ModelSpec) -> int:
    return -(-entries // (spec.num_layers * spec.num_kv_heads))


def apportion(total: int, weights: Sequence[float], *, floor: int, cap: int, even_share: float = 0.0) -> list[int]:
    """Split `total` by `weights` into integers in [floor, cap] that sum exactly to min(total, cap * cells).

    Of what the floors leave, `even_share` is spread evenly before the weights decide. Raises ValueError when the floors
    alone exceed `total`, or a weight is negative.
    """
    if any(weight < 0 for weight in weights) or floor * len(weights) > total:
        raise ValueError(f"cannot split {total} over {len(weights)} cells with floor {floor}")
    above = min(total, cap * len(weights)) - floor * len(weights)
    even = even_share * above / max(1, len(weights))
    filled = _water_fill(above - even * len(weights), weights, room=cap - floor - even)
    shares = [even + share for share in filled]
    whole = [int(share) for share in shares]
    missing = above - sum(whole)
    by_remainder = sorted(range(len(shares)), key=lambda i: (whole[i] - shares[i], i))
    for i in (i for i in by_remainder if whole[i] < cap - floor):
        if missing == 0:
            break
        whole[i] += 1
        missing -= 1
    return [floor + count for count in whole]


def _water_fill(amount: float, weights: Sequence[float], *, room: float) -> list[float]:
    """Real-valued shares in [0, room]; what full cells leave over is split among the rest by their weights."""
    shares = [0.0] * len(weights)
    open_cells = list(range(len(weights)))
    left = amount
    while open_cells and left > 1e-9:
        mass = sum(weights[i] for i in open_cells)
        parts = {i: left * (weights[i] / mass if mass > 0 else 1 / len(open_cells)) for i in open_cells}
        full = [i for i in open_cells if shares[i] + parts[i] >= room]
        for i in full or open_cells:
            taken = min(parts[i], room - shares[i])
            shares[i] += taken
            left -= taken
        if not full:
            break
        open_cells = [i for i in open_cells if i not in set(full)]
    return shares
