"""What stated rates of errors came to: a reliability diagram, and ROC curves beside it."""

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING

from uncomp_cli.calibrate.reliability import Judged, Separation, Verdict
from uncomp_cli.numerals import format_count
from uncomp_cli.ui.figure import (
    COLOURS,
    DASHES,
    EDGE_IN,
    MARKERS,
    SCALE_IN,
    SMALL_PT,
    STEP_PT,
    TEXT_PT,
    add_axes,
    add_legend,
    new_figure,
    refuse_nothing,
)
from uncomp_cli.uncertainty.error_rates import roc, wilson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SQUARE_IN, _APART_IN, _ENTRY_IN = 3.2, 0.3, 0.19
_ABSENT_SHARES = "said of what the text has", "said of what the text does not have"
_JUDGED_NOTE = """Left: answers of stated rates within a tenth are a point, with a 95 % interval; dotted: as stated.
Right: AUROC with a 95 % interval; dotted: chance; the mark: the limit that is used."""


def make_reliability(judged: Sequence[Judged], *, title: str) -> "Figure":
    """Stated rates of errors against measured ones; beside it, at every limit, how many wrong answers it catches for
    how many right ones, and the same of what the text does not have where that was asked.
    """
    refuse_nothing(judged, title)
    missing = any(one.absent is not None for one in judged)
    across = SCALE_IN + _SQUARE_IN + _APART_IN
    figure, top = new_figure(across * (3 if missing else 2), _SQUARE_IN + 1.25 + _ENTRY_IN * len(judged), title)
    places = [(SCALE_IN + at * across, top + 0.15) for at in range(3 if missing else 2)]
    rates, *tellers = [add_axes(figure, place, (_SQUARE_IN, _SQUARE_IN)) for place in places]
    for number, one in enumerate(judged):
        _draw_rates(rates, one, number, shift_pt=STEP_PT * (number - (len(judged) - 1) / 2))
        for axes, verdict in zip(tellers, (one.wrong, one.absent), strict=False):
            if verdict is not None:
                _draw_roc(axes, one.name, verdict, number)
    named = ("stated: wrong", "measured: wrong"), ("right answers flagged", "wrong answers flagged")
    for axes, names in zip((rates, *tellers), (*named, _ABSENT_SHARES), strict=False):
        _set_shares(axes, *names)
    note = figure.text(EDGE_IN / figure.get_figwidth(), 0.15 / figure.get_figheight(), _JUDGED_NOTE)
    note.set(fontsize=SMALL_PT, color="#444444")
    return figure


def _draw_rates(axes: "Axes", judged: Judged, number: int, *, shift_pt: float) -> None:
    """A point for every tenth of stated rates: their mean, and the share that was wrong with its interval."""
    from matplotlib.transforms import ScaledTranslation

    tenths: dict[int, list[tuple[float, bool]]] = {}
    for rate, wrong in zip(judged.rates, judged.wrong.holds, strict=True):
        tenths.setdefault(min(int(10 * rate), 9), []).append((rate, wrong))
    found = [tenths[tenth] for tenth in sorted(tenths)]
    counts = [(sum(wrong for _, wrong in each), len(each)) for each in found]
    measured = [hits / total for hits, total in counts]
    ends = [wilson_interval(*count) for count in counts]
    bars = axes.errorbar(
        [fmean(rate for rate, _ in each) for each in found], measured,
        yerr=[[at - low for at, (low, _) in zip(measured, ends, strict=True)],
              [high - at for at, (_, high) in zip(measured, ends, strict=True)]],
        color=COLOURS[number], ecolor=(COLOURS[number], 0.6), elinewidth=0.9, linestyle="none",
        marker=MARKERS[number], markersize=7, markeredgecolor="white", markeredgewidth=0.5, clip_on=False,
        transform=axes.transData + ScaledTranslation(shift_pt / 72, 0, axes.figure.dpi_scale_trans),
    )  # fmt: skip
    bars.lines[0].set_label(f"{judged.name}: {format_count(len(judged.rates), 'answer')}")


def _draw_roc(axes: "Axes", name: str, verdict: Verdict, number: int) -> None:
    """A line with its area, and a mark where the limit is."""
    found, points = Separation.of(name, verdict.values, verdict.holds), roc(verdict.values, verdict.holds)
    (line,) = axes.plot(*zip(*points, strict=True), color=COLOURS[number], linewidth=1.6, clip_on=False)
    line.set(dashes=DASHES[number], marker=MARKERS[number], markersize=7, markeredgecolor="white")
    line.set(label=f"{name}: {found.auroc:.2f} ({found.low:.2f} to {found.high:.2f})")
    line.set_markevery([sum(value > verdict.limit for value in set(verdict.values))])


def _set_shares(axes: "Axes", across: str, up: str) -> None:
    """A square of shares from nothing to all, its diagonal, and the legend below."""
    ticks = [0, 0.2, 0.4, 0.6, 0.8, 1]
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_ticks(ticks, [f"{100 * tick:.0f} %" for tick in ticks], fontsize=SMALL_PT)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    axes.axline((0, 0), slope=1, color="black", linewidth=1, linestyle=":")
    axes.set_xlabel(across, fontsize=TEXT_PT)
    axes.set_ylabel(up, fontsize=TEXT_PT)
    named = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    add_legend(axes, named, corner=(-0.02, -0.14))
