"""Specs, requests and measured values to plan with."""

from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st

from uncomp_cli.budget.plan import BudgetPlan, Wanted
from uncomp_cli.budget.policies import make_policy
from uncomp_cli.budget.values import Uncertainty
from uncomp_cli.errors import DoesNotFitError
from uncomp_cli.spec import ModelSpec


def make_spec(
    windows: tuple[int | None, ...], *, kv_heads: int = 2, head_dim: int = 4, trained_length: int = 4096
) -> ModelSpec:
    return ModelSpec(
        model_type="llama",
        num_layers=len(windows),
        num_heads=2 * kv_heads,
        num_kv_heads=kv_heads,
        head_dim=head_dim,
        hidden_size=16,
        intermediate_size=32,
        vocab_size=50,
        trained_length=trained_length,
        dtype_bytes=4,
        sliding_windows=windows,
    )


@st.composite
def requests(draw: st.DrawFn) -> tuple[ModelSpec, int, int]:
    """(spec, seq_len, protected)."""
    windows = draw(st.lists(st.one_of(st.none(), st.integers(1, 60)), min_size=1, max_size=5))
    seq_len = draw(st.integers(1, 120))
    return make_spec(tuple(windows), kv_heads=draw(st.integers(1, 3))), seq_len, draw(st.integers(0, seq_len))


def planned(plan: Callable[[Wanted], BudgetPlan], wanted: Wanted, *, refuses: bool = True) -> BudgetPlan | None:
    """The plan of a budget that holds what is always kept; None for a smaller one, which must be refused."""
    if refuses and wanted.entries < least_entries(wanted):
        with pytest.raises(DoesNotFitError):
            plan(wanted)
        return None
    return plan(wanted)


def least_entries(wanted: Wanted) -> int:
    """The protected tokens in full layers; what sliding layers can hold of their windows."""
    caps = wanted.caps or [wanted.seq_len] * wanted.spec.num_layers
    slots = zip(wanted.spec.sliding_windows, caps, strict=True)
    layers = [
        wanted.protected if window is None else min(window, wanted.seq_len, max(cap, wanted.protected))
        for window, cap in slots
    ]
    return wanted.spec.num_kv_heads * sum(layers)


# Per-layer entropy sums on wikitext2, as released with UNComp (stage_division.py).
SUMS_32 = [
    71.09449688487334, 70.85130519012856, 67.40613406287716, 69.04946102517368, 69.22327756162719, 69.51528308727653,
    71.96004949780146, 73.14870527360563, 72.39993716987092, 73.33161718592027, 73.3456552653242, 73.32481194641586,
    73.68638390929002, 73.93574881680618, 74.61757474828251, 73.30678839776678, 73.6027615610652, 73.91468930567065,
    73.90614702585596, 74.62802834396467, 74.46465621554732, 74.76733693669686, 74.94375721541391, 75.72328136974946,
    74.83840156524144, 76.99661199571894, 75.59826604347896, 76.24339032859046, 76.6184171897687, 75.7592322159148,
    75.27747141727312, 73.44524688370723,
]  # fmt: skip
A_POLICY = settings(max_examples=settings().max_examples // 3)
"""For each of some twenty policies, which share most of what they do."""
MEASURED = [
    "uncomp", "uncomp:groups=2,low=0,high=2", "uncomp:reverse=true,state=k", "uncomp:paper=true",
    "uncomp:stages=true", "uncomp:paper=true,stages=true,reverse=true",
    "zigzag", "zigzag:floor=0", "zigzag:floor=1,by=lmbo", "zigzag:by=lmba-free,reverse=true",
    "uncertain", "uncertain:by=loss,floor=0", "uncertain:by=loss,reverse=true,floor=0", "uncertain:by=loss,power=0.5",
    "uncertain:by=entropy", "uncertain:by=entropy,reverse=true", "uncertain:by=entropy,state=hidden,power=1",
    "uncertain:by=lmba-free", "uncertain:by=lmba-free,reverse=true", "uncertain:by=lmbo",
]  # fmt: skip


@st.composite
def measured(draw: st.DrawFn, spec: ModelSpec, text: str) -> Uncertainty:
    """Values of any of the policy's measures, of any allowed width."""
    key = draw(st.sampled_from(make_policy(text).measures))
    width = draw(st.sampled_from([1, spec.num_kv_heads, spec.num_heads]))
    most = {"entropy": 1.0, "loss": 1e300}.get(key.partition("/")[0], 1e6)
    values = st.one_of(st.sampled_from([0.0, 0.5, 1.0]), st.floats(0, 1), st.floats(0, most))
    row = st.lists(values, min_size=width, max_size=width).map(tuple)
    return Uncertainty(key, tuple(draw(row) for _ in range(spec.num_layers)))
