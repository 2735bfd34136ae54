"""Budgets as people write them, and what they come to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.budgets import make_spec
from uncomp_cli.budget.amount import Budget, resolve_entries
from uncomp_cli.budget.baselines import UniformPolicy
from uncomp_cli.budget.plan import Wanted
from uncomp_cli.config import CacheConfig
from uncomp_cli.errors import UncompError, UsageError


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("10%", "fraction", 0.1), (" 2.5 % ", "fraction", 0.025), ("100%", "fraction", 1.0),
        ("512", "tokens", 512), ("512.0", "tokens", 512),
        ("256MiB", "bytes", 256 * 2**20), ("1.5gib", "bytes", 1.5 * 2**30), ("3 GB", "bytes", 3e9),
        ("700kb", "bytes", 700_000), ("9B", "bytes", 9), ("64KiB", "bytes", 65536), ("2MB", "bytes", 2e6),
        ("full", "full", 1.0), ("Auto", "auto", 1.0),
    ],
)  # fmt: skip
def test_budgets(text: str, kind: str, value: float) -> None:
    budget = Budget.parse(text)
    assert (budget.kind, budget.amount) == (kind, pytest.approx(value))
    assert str(budget).lower() == text.strip().lower()
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not a budget"), ("lots", "is not a budget"), ("-5", "is not a budget"), ("1e3", "is not a budget"),
        ("1,000", "is not a budget"), (".5", "is not a budget"), ("10%%", "is not a budget"), ("nan", "not a budget"),
        ("10% of it", "is not a budget"), ("٣%", "is not a budget"), ("9" * 400, "is not a budget"),
        ("9" * 400 + "GiB", "is not a budget"),
        ("0", "keeps nothing"), ("0%", "keeps nothing"), ("0.0MiB", "keeps nothing"), ("0.4B", "keeps nothing"),
        ("101%", "more than the full cache"), ("1.5", "neither whole tokens nor per cent"),
        ("5 parsecs", "unknown unit 'parsecs'"), ("5M", "unknown unit 'M'"),
    ],
)  # fmt: skip
def test_no_budgets(text: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        Budget.parse(text)
    assert says in caught.value.message
    assert text in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code == 2


@given(st.text(alphabet="0123456789.% kKmMgGiIbBauto-e٣", max_size=12))
def test_any_text_parses_or_is_refused(text: str) -> None:
    try:
        budget = Budget.parse(text)
    except UncompError:
        return
    assert budget.amount > 0
    assert Budget.parse(str(budget)) == budget


@pytest.mark.parametrize(
    ("budget", "factor", "product"),
    [("10%", 2, "20%"), ("12.5%", 2, "25%"), ("50%", 2, "full"), ("49.99 %", 2, "99.98 %"), ("512", 2, "1024"),
     ("5", 0.5, "2"), ("256MiB", 2, "512MiB"), ("0.3 GiB", 2, "0.6 GiB"), ("full", 2, None), ("auto", 0.5, None)],
)  # fmt: skip
def test_a_budget_times_a_factor(budget: str, factor: float, product: str | None) -> None:
    more = Budget.parse(budget).times(factor)
    assert more == (None if product is None else Budget.parse(product))


@pytest.mark.parametrize(("budget", "left"), [("0.01%", "0%"), ("1", "0"), ("9B", "0B")])
def test_nothing_is_left_of_a_budget(budget: str, left: str) -> None:
    with pytest.raises(UsageError, match=f"budget '{left}' keeps nothing"):
        Budget.parse(budget).times(0.0001)


def test_a_budget_is_given_as_text_or_as_a_value() -> None:
    assert Budget.of("10%") == Budget.of(Budget.parse("10%")) == Budget("fraction", 0.1, "10%")


SPEC = make_spec((None, None, 30), kv_heads=2)
FULL, WINDOW = 2 * (2 * 1000 + 30), 2 * 30


@pytest.mark.parametrize(
    ("text", "entries"),
    [
        ("full", FULL), ("100%", FULL), ("10%", WINDOW + 400), ("29%", WINDOW + 1160), ("0.01%", WINDOW),
        ("100", WINDOW + 400), ("1", WINDOW + 4), ("5000", FULL),
        ("1GiB", FULL), ("1B", 0),
    ],
)  # fmt: skip
def test_entries(text: str, entries: int) -> None:
    assert resolve_entries(Budget.parse(text), SPEC, seq_len=1000, free_bytes=0) == entries


@pytest.mark.parametrize("text", ["0.1%", "1%", "30%", "1", "64"])
@pytest.mark.parametrize("seq_len", [20, 600, 1500, 40_000])
def test_a_share_is_of_what_can_be_dropped(text: str, seq_len: int) -> None:
    """Windows come on top: whatever the length, there is room for them (of Gemma 3 270M 15 of 18 layers slide)."""
    spec = make_spec(((512,) * 5 + (None,)) * 3, kv_heads=1)
    entries = resolve_entries(Budget.parse(text), spec, seq_len=seq_len, free_bytes=0)
    plan = UniformPolicy().plan(Wanted(spec, seq_len=seq_len, entries=entries, protected=0))
    assert plan.entries == entries
    assert [plan.kept[layer][0] for layer in (0, 17)] == [min(512, seq_len), (entries - 15 * min(512, seq_len)) // 3]


@pytest.mark.parametrize("percent", range(1, 101))
def test_a_percentage_loses_no_entry_to_rounding(percent: int) -> None:
    spec = make_spec((None,), kv_heads=1)
    assert resolve_entries(Budget.parse(f"{percent}%"), spec, seq_len=100, free_bytes=0) == percent


def test_bytes_are_those_of_entries_and_of_their_slack() -> None:
    spec, cache = make_spec((None,), trained_length=1024), CacheConfig()
    auto, named = (resolve_entries(Budget.parse(b), spec, seq_len=1024, free_bytes=30_000) for b in ("auto", "30KB"))
    slack, entry = spec.num_kv_heads * cache.min_slack, spec.kv_bytes_per_entry + cache.position_bytes
    assert (auto + slack) * entry <= 30_000 < (auto + 1 + slack) * entry
    assert auto == named
