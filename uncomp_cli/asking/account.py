"""Where the budget went: `uncomp ask --why`, as lines for people and as a record for programs.

Tokens are those of the final plan, bytes those that the cache has allocated, slack and positions included. Head groups
compare each head with the mean of all heads that the budget decides about; layers with a sliding window are not among
them, they keep their window whatever the budget.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from uncomp_cli.numerals import format_bytes, format_count, format_decimal

if TYPE_CHECKING:
    from uncomp_cli.budget.plan import BudgetPlan
    from uncomp_cli.budget.values import Uncertainty
    from uncomp_cli.spec import ModelSpec


TOP_HEADS = 5
_COLUMNS, _BAR = 80, 16
_EIGHTHS = " ▏▎▍▌▋▊▉"
_ABOVE, _BELOW = 2.0, 0.5
_GROUPS = ("over 2x the mean", "0.5x to 2x the mean", "under 0.5x the mean")
_SOURCES = {"live": "measured on this prompt", "profile": "from the preset's profile"}


@dataclass(frozen=True, slots=True)
class Spent:
    """What was planned, what the cache holds in each layer, and what was measured, if anything."""

    plan: "BudgetPlan"
    spec: "ModelSpec"
    layer_bytes: Sequence[int]
    uncertainty: "Uncertainty | None" = None

    @property
    def decided(self) -> list[tuple[int, int, int]]:
        """(layer, KV head, kept tokens) of every head that the budget decides about."""
        layers = self.spec.full_layers
        return [(layer, head, kept) for layer in layers for head, kept in enumerate(self.plan.kept[layer])]

    @property
    def heads_are_final(self) -> bool:
        """False where the heads of a layer share its tokens by their scores, which no plan knows."""
        return self.plan.head_floor >= 1


def budget_record(spent: Spent) -> dict[str, Any]:
    """The JSON object `budget`; its groups and top heads are empty when heads share their layer's tokens by scores."""
    plan = spent.plan
    return {
        "entries": plan.entries,
        "full_entries": spent.spec.full_entries(plan.seq_len),
        "bytes": sum(spent.layer_bytes),
        "layers": [
            {"layer": layer, "kept": list(kept), "bytes": spent.layer_bytes[layer]}
            for layer, kept in enumerate(plan.kept)
        ],
        "groups": _groups(spent.decided) if spent.heads_are_final else [],
        "top_heads": _top_heads(spent) if spent.heads_are_final else [],
        "measure": None if spent.uncertainty is None else spent.uncertainty.key,
        "source": None if spent.uncertainty is None else spent.uncertainty.source,
    }


def budget_lines(spent: Spent) -> Iterator[str]:
    """The same as text, at most 80 columns wide: totals, a bar a layer, head groups, the heads that keep most."""
    record, spec = budget_record(spent), spent.spec
    share = 100 * record["entries"] / record["full_entries"]
    yield (
        f"{spec.num_layers} layers x {spec.num_kv_heads} heads keep {format_count(record['entries'])} of "
        f"{format_count(record['full_entries'])} entries ({format_decimal(share)} %) in {format_bytes(record['bytes'])}"
    )
    yield _measured_line(record)
    yield from _layer_lines(spent, record)
    if not spent.heads_are_final:
        yield "the heads of a layer share its tokens by their scores"
        return
    decided = spent.decided
    mean = sum(kept for _, _, kept in decided) / max(1, len(decided))
    yield f"head groups, mean {format_decimal(mean)} tokens"
    yield from map(_group_line, record["groups"])
    yield "heads that keep most"
    yield from map(_head_line, record["top_heads"])


def _groups(decided: Sequence[tuple[int, int, int]]) -> list[dict[str, Any]]:
    """How many heads keep far more than the mean, about it and far less, and their share of the tokens."""
    total = sum(kept for _, _, kept in decided)
    mean = total / max(1, len(decided))
    found: list[list[int]] = [[], [], []]
    for _, _, kept in decided:
        found[0 if kept > _ABOVE * mean else 2 if kept < _BELOW * mean else 1].append(kept)
    return [
        {"group": name, "heads": len(kept), "entries": sum(kept), "share": sum(kept) / max(1, total)}
        for name, kept in zip(_GROUPS, found, strict=True)
    ]


def _top_heads(spent: Spent) -> list[dict[str, Any]]:
    """The heads that keep most; `uncertainty` is what was measured of them, None when nothing was."""
    measured = None if spent.uncertainty is None else spent.uncertainty.per_kv_head(spent.spec.num_kv_heads)
    most = sorted(spent.decided, key=lambda cell: -cell[2])[:TOP_HEADS]
    return [
        {"layer": layer, "head": head, "kept": kept, "uncertainty": None if measured is None else measured[layer][head]}
        for layer, head, kept in most
    ]


def _measured_line(record: dict[str, Any]) -> str:
    if record["measure"] is None:
        return "nothing was measured: the policy alone decides"
    return f"by {record['measure']}, {_SOURCES.get(record['source'], record['source'])}"


def _layer_lines(spent: Spent, record: dict[str, Any]) -> Iterator[str]:
    """`    3   1,204  312 KiB █████▌   400 402 402`; heads that do not fit are told by their range."""
    tokens = [format_count(sum(layer["kept"])) for layer in record["layers"]]
    sizes = [format_bytes(layer["bytes"]) for layer in record["layers"]]
    wide, large = max(6, *map(len, tokens)), max(5, *map(len, sizes))
    head = f"layer {'tokens':>{wide}} {'bytes':>{large}} {'':{_BAR}}"
    room = _COLUMNS - len(head) - 1
    shown = [_head_counts(spent, layer["layer"]) for layer in record["layers"]]
    if max(map(len, shown)) > room:
        shown = [_head_range(spent, layer["layer"]) for layer in record["layers"]]
    yield f"{head} per KV head"
    most = max(layer["bytes"] for layer in record["layers"])
    for layer, count, size, heads in zip(record["layers"], tokens, sizes, shown, strict=True):
        bar = _bar(layer["bytes"], most)
        yield f"{layer['layer']:>5} {count:>{wide}} {size:>{large}} {bar:{_BAR}} {heads}".rstrip()


def _head_counts(spent: Spent, layer: int) -> str:
    """Every head's tokens; nothing when its layer's sum is all that the plan knows."""
    if layer not in spent.spec.full_layers:
        return f"{format_count(spent.plan.kept[layer][0])} each: its window"
    if not spent.heads_are_final:
        return ""
    width = max(len(format_count(kept)) for counts in spent.plan.kept for kept in counts)
    return " ".join(f"{format_count(kept):>{width}}" for kept in spent.plan.kept[layer])


def _head_range(spent: Spent, layer: int) -> str:
    if layer not in spent.spec.full_layers:
        return _head_counts(spent, layer)
    kept = spent.plan.kept[layer]
    least, middle, most = (format_count(round(count)) for count in (min(kept), median(kept), max(kept)))
    return f"{least} to {most}, median {middle}"


def _group_line(group: dict[str, Any]) -> str:
    bar = _bar(group["share"], 1.0)
    heads = format_count(group["heads"], "head")
    return f"{group['group']:<19} {bar:{_BAR}} {heads:>11}, {format_decimal(100 * group['share'])} % of the tokens"


def _head_line(head: dict[str, Any]) -> str:
    place, count = f"layer {head['layer']}, KV head {head['head']}", format_count(head["kept"])
    measured = "" if head["uncertainty"] is None else f", measured {head['uncertainty']:.3g}"
    return f"{place:<22} {count:>7} tokens{measured}"


def _bar(value: float, most: float) -> str:
    """A bar in eighths of a column; what is above nothing is seen."""
    eighths = round(8 * _BAR * value / most) if most > 0 else 0
    eighths = max(eighths, 1 if value > 0 else 0)
    return ("█" * (eighths // 8) + _EIGHTHS[eighths % 8]).rstrip()
