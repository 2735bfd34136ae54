"""Does a measure rank heads and layers the same way on another text, at another rank, at another length?

Budgets use the order of the values more than their size, so what is compared is order:

    agreement(a, b) = share of the pairs i < j in which a and b put i and j in the same order; a tie in either is half

It is (1 + Kendall's tau-a) / 2: 1 the same order, 0 the reverse, 0.5 what chance gives. A measure that cannot tell
heads apart has 0.5 with everything, itself included. Heads are compared within their layer, layers by their means.
"""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from math import fsum
from typing import Any

import torch
from torch import Tensor

from uncomp_cli.uncertainty.profile import UncertaintyProfile

# Texts are cut at words and at chat templates, so that lengths meant to be equal differ by a few tokens.
_SAME_LENGTH = 1.1


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of heads within their layers, and of layers; None where there are no two to be put in order or to be compared."""

    heads: float | None
    layers: float | None


@dataclass(frozen=True, slots=True)
class LengthGroup:
    """Samples of about the same length; `tokens` is their mean, `indices` are their places in the profile."""

    tokens: int
    indices: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class LengthAgreement:
    """Two groups of lengths, and how well the means of one measure over them agree."""

    tokens: tuple[int, int]
    agreement: Agreement


@dataclass(frozen=True, slots=True)
class StabilityRow:
    """A measure's line in a table: across texts, across lengths (means over the pairs), and with the reference."""

    measure: str
    texts: Agreement
    lengths: Agreement
    reference: Agreement


@dataclass(frozen=True, slots=True)
class StabilityReport:
    """Agreement of each measure across texts and lengths, and of all measures with each other.

    `texts[k]` is the mean over all pairs of samples; `lengths[k]` has an entry for each pair of `groups`;
    `measures[i][j]` compares the means of `keys[i]` and `keys[j]`: ranks, forms and states are keys. Measures per query
    head meet those per KV head as the means over the query heads of each KV head, which is the unit of eviction.
    """

    keys: tuple[str, ...]
    samples: int
    groups: tuple[LengthGroup, ...]
    texts: dict[str, Agreement]
    lengths: dict[str, tuple[LengthAgreement, ...]]
    measures: tuple[tuple[Agreement, ...], ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON; the measures' agreement as two matrices."""
        return {
            "measures": list(self.keys),
            "samples": self.samples,
            "lengths": [{"tokens": group.tokens, "samples": len(group.indices)} for group in self.groups],
            "across_texts": {key: asdict(agreement) for key, agreement in self.texts.items()},
            "across_lengths": {key: [_flat(pair) for pair in pairs] for key, pairs in self.lengths.items()},
            "across_measures": {
                "heads": [[agreement.heads for agreement in row] for row in self.measures],
                "layers": [[agreement.layers for agreement in row] for row in self.measures],
            },
        }

    def rows(self, reference: str | None = None) -> tuple[StabilityRow, ...]:
        """One row a measure; `reference` (the first measure) is what each is compared with in the last columns."""
        column = 0 if reference is None else self.keys.index(reference)
        return tuple(
            StabilityRow(
                measure=key,
                texts=self.texts[key],
                lengths=_mean_agreement([pair.agreement for pair in self.lengths[key]]),
                reference=self.measures[row][column],
            )
            for row, key in enumerate(self.keys)
        )


def rank_agreement(a: Tensor, b: Tensor) -> float:
    """Share of the pairs in the same order, ties as half; a and b [X]. ValueError for fewer than two or other sizes."""
    _check(a, b, dimensions=1)
    return _share(_orders(a) * _orders(b))


def head_agreement(a: Tensor, b: Tensor) -> float:
    """Mean over layers of the agreement within each; a and b [L, X]."""
    _check(a, b, dimensions=2)
    return _share(_orders(a) * _orders(b))


def layer_agreement(a: Tensor, b: Tensor) -> float:
    """Agreement of the layers' means; a [L, X] and b [L, Y] may have other widths."""
    return rank_agreement(a.double().mean(-1), b.double().mean(-1))


def stability(profile: UncertaintyProfile) -> StabilityReport:
    """How well the profile's measures agree with themselves on other texts and lengths, and with each other."""
    keys = tuple(profile.values)
    groups = length_groups([sample.tokens for sample in profile.samples])
    num_kv_heads = profile.fingerprint.num_kv_heads
    means = [profile.mean(key) for key in keys]
    return StabilityReport(
        keys=keys,
        samples=len(profile.samples),
        groups=groups,
        texts={key: across_samples(profile.samples_of(key)) for key in keys},
        lengths={key: across_lengths(profile.samples_of(key), groups) for key in keys},
        measures=tuple(tuple(compare(a, b, num_kv_heads=num_kv_heads) for b in means) for a in means),
    )


def across_samples(values: Tensor) -> Agreement:
    """Mean agreement over all pairs of N samples; values [N, L, X].

    With s the order of a pair of heads in each sample, −1, 0 or 1: Σ_{m<n} s_m s_n = ((Σ s)² − Σ s²) / 2.
    """
    if len(values) < 2:
        return Agreement(None, None)
    layers = values.double().mean(-1)
    return Agreement(
        heads=_mean_over_pairs(_orders(values)) if values.shape[-1] > 1 else None,
        layers=_mean_over_pairs(_orders(layers)) if layers.shape[-1] > 1 else None,
    )


def across_lengths(values: Tensor, groups: Sequence[LengthGroup]) -> tuple[LengthAgreement, ...]:
    """The agreement of the means over each pair of groups; values [N, L, X]."""
    means = [(group.tokens, values[list(group.indices)].double().mean(0)) for group in groups]
    return tuple(
        LengthAgreement((short, long), compare(a, b, num_kv_heads=a.shape[-1]))
        for (short, a), (long, b) in combinations(means, 2)
    )


def compare(a: Tensor, b: Tensor, *, num_kv_heads: int) -> Agreement:
    """The agreement of a [L, X] and b [L, Y], over KV heads where one of them has no query heads."""
    if a.shape[-1] != b.shape[-1]:
        a, b = (x.reshape(len(x), num_kv_heads, -1).mean(-1) if x.shape[-1] > num_kv_heads else x for x in (a, b))
    same_heads = a.shape == b.shape and a.shape[-1] > 1
    return Agreement(
        heads=head_agreement(a, b) if same_heads else None, layers=layer_agreement(a, b) if len(a) > 1 else None
    )


def length_groups(tokens: Sequence[int]) -> tuple[LengthGroup, ...]:
    """Samples from the shortest to the longest; a group ends at a length a tenth above its shortest."""
    groups: list[list[int]] = []
    for index in sorted(range(len(tokens)), key=lambda i: tokens[i]):
        if groups and tokens[index] <= _SAME_LENGTH * tokens[groups[-1][0]]:
            groups[-1].append(index)
        else:
            groups.append([index])
    return tuple(LengthGroup(round(_mean(tokens[i] for i in group)), tuple(group)) for group in groups)


def _orders(values: Tensor) -> Tensor:
    """Of all pairs i < j of the last dimension [..., X]: 1 where i is above j, −1 below, 0 equal [..., X(X−1)/2]."""
    first, second = torch.triu_indices(values.shape[-1], values.shape[-1], offset=1)
    a, b = values[..., first], values[..., second]
    return (a > b).double() - (a < b).double()


def _share(products: Tensor) -> float:
    return (1.0 + products.mean().item()) / 2


def _mean_over_pairs(orders: Tensor) -> float:
    """The mean agreement of all pairs along the first dimension [N, ..., pairs]."""
    count = len(orders)
    return _share((orders.sum(0).square() - orders.square().sum(0)) / (count * (count - 1)))


def _check(a: Tensor, b: Tensor, *, dimensions: int) -> None:
    if a.shape != b.shape or a.dim() != dimensions or a.shape[-1] < 2 or not a.numel():
        raise ValueError(f"no order can be compared of shapes {list(a.shape)} and {list(b.shape)}")
    if a.isnan().any() or b.isnan().any():
        raise ValueError("values that are no numbers have no order")


def _mean_agreement(agreements: Sequence[Agreement]) -> Agreement:
    heads = [agreement.heads for agreement in agreements if agreement.heads is not None]
    layers = [agreement.layers for agreement in agreements if agreement.layers is not None]
    return Agreement(_mean(heads) if heads else None, _mean(layers) if layers else None)


def _mean(numbers: Iterable[float]) -> float:
    listed = list(numbers)
    return fsum(listed) / len(listed)


def _flat(pair: LengthAgreement) -> dict[str, Any]:
    return {"tokens": list(pair.tokens), **asdict(pair.agreement)}
