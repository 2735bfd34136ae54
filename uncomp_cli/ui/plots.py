"""Heat maps of needles, evidence, arms and profiles; quality by bytes, text by position.

A sheet grows with its contents, downwards once it is as wide as a page. Maps of one quantity share their colours, so
that cells can be compared, and have numbers or rising lightness. `make_*` build a figure (figure.py) and raise
UncompError without matplotlib or anything to draw.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING

from uncomp_cli.budget.loss_curve import QualityPoint
from uncomp_cli.errors import UncompError
from uncomp_cli.evals.rope.cells import ArmMaps
from uncomp_cli.evals.tables.summary import CoverageMap, Curve, CurvePoint, NeedleGrid
from uncomp_cli.numerals import format_count, format_decimal
from uncomp_cli.ui.figure import (
    COLOURS,
    DASHES,
    EDGE_IN,
    LETTER_IN,
    MARKERS,
    SCALE_IN,
    SMALL_PT,
    STEP_PT,
    TEXT_PT,
    add_axes,
    add_legend,
    new_figure,
    refuse_nothing,
    wrap,
)
from uncomp_cli.ui.heatmap import HeatMap, Scale

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.colorbar import Colorbar
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D


FULL_CACHE = "full"  # the label of the curve that is drawn as the reference line

_PAGE_IN, _ASPECT = 12.0, 1.5  # the widest that the panels of a sheet get, and the width over height it aims at
_LEFT_IN, _GAP_IN, _BELOW_IN, _BAR_IN, _NOTE_IN = 0.55, 0.2, 0.5, 1.0, 0.3
_LEAST_PANEL_IN, _LEAST_CELL_IN, _LABEL_IN, _NUMBER_IN = (1.9, 1.0), 0.09, 0.14, 0.2
_CELLS_IN, _ALONE_IN = (6.2, 8.0), (9.0, 12.0)  # the most that all cells of a panel take, and of one that stands alone
_ARM_CELL_IN, _LEAST_ARM_IN, _ARM_HEAD_IN, _BETWEEN_IN = (0.72, 0.28), 2.4, 0.3, 0.4
_PLOT_IN, _FOOT_IN = (7.2, 4.8), 1.0
_MANY, _GREY, _OURS, _DIGEST = 8, "#B4B9BE", ("uncertain", "preset:"), re.compile(r"#[0-9a-f]{8}\b")
_DARK = 0.55  # viridis is dark below this share of its way
_MISSED = "✗"

_STARS = ("*", (4, 1, 0))  # drawn larger: they fill little of their size
_SPREAD_PT = 26.0  # from first to last of the points that share their bytes
_KEPT_TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
_LOG_RANGE, _LOG_DEPTH = 20, 1e4  # losses over a wider range get a log axis, of at most this depth
_FOOTNOTE = """Bars and grey band: 95 % intervals. Points at the same bytes stand side by side.
Legend: as the lines stand, from top to bottom, at their smallest budgets."""

Losses = Sequence[tuple[int, float]]
"""The NLL of a text up to each position."""


@dataclass(frozen=True, slots=True)
class _Panel:
    """One heat map of [rows][columns] on the colours from `low` to `high`, None where nothing was measured.

    `cells` are the numbers as they are written; where `inverted`, high is dark.
    """

    title: str
    values: Sequence[Sequence[float | None]]
    row_labels: Sequence[str]
    column_labels: Sequence[str]
    cells: Sequence[Sequence[str]]
    low: float = 0.0
    high: float = 1.0
    inverted: bool = False

    @classmethod
    def of_shares(
        cls, title: str, values: Sequence[Sequence[float | None]], rows: Sequence[str], columns: Sequence[str]
    ) -> "_Panel":
        """A map of values from 0 to 1."""
        return cls(title, values, rows, columns, _hundredths(values))

    def ink(self, value: float) -> str:
        """White on the dark colours, and black on the light ones."""
        share = (value - self.low) / (self.high - self.low)
        return "black" if (1 - share if self.inverted else share) > _DARK else "white"


def _hundredths(values: Sequence[Sequence[float | None]]) -> list[list[str]]:
    return [["" if value is None else f"{value:.2f}" for value in row] for row in values]


def make_quality(name: str, points: Sequence[QualityPoint]) -> "Figure":
    """The loss of a preset's budgets by the bytes that they keep."""
    found = sorted(points, key=lambda point: point.kept_fraction)
    curve = Curve(name, tuple(CurvePoint(p.kept_fraction, p.loss, p.loss_low, p.loss_high) for p in found))
    metric = "share of an answer token's likelihood that is lost"
    return make_curves([curve], title=f"{name}: loss by budget", metric=metric, lower_is_better=True)


def make_needles(grids: Sequence[NeedleGrid], *, title: str) -> "Figure":
    """A heat map a setting, depths down and lengths across, scores on one scale from 0 to 1."""
    panels = []
    for grid in grids:
        head = f"{_DIGEST.sub('', grid.title)}\nkept {format_decimal(100 * grid.kept_fraction)} %"
        depths, lengths = [f"{100 * depth:.3g} %" for depth in grid.depths], list(map(format_count, grid.lengths))
        panels.append(_Panel.of_shares(head, grid.scores, depths, lengths))
    return _make_sheet(panels, ("depth", "length (tokens)", "score, higher is better"), cell=(0.52, 0.3), title=title)


def make_coverage(maps: Sequence[CoverageMap], *, title: str) -> "Figure":
    """A heat map a setting, layers down and KV heads across, shares of the evidence on one scale from 0 to 1."""
    panels = []
    for shown in maps:
        mean = fmean(map(fmean, shown.shares))
        head = f"{_DIGEST.sub('', shown.title)}\nkept {format_decimal(100 * shown.kept_fraction)} % · mean {mean:.2f}"
        layers, heads = range(len(shown.shares)), range(len(shown.shares[0]))
        panels.append(_Panel.of_shares(head, shown.shares, list(map(str, layers)), list(map(str, heads))))
    return _make_sheet(panels, ("layer", "KV head", "share of the evidence kept"), cell=(0.3, 0.17), title=title)


def make_heat_map(heat: HeatMap) -> "Figure":
    """Layers down and heads across, one quantity on its own colours from the least to the most."""
    scale, rows, columns = Scale.of(heat), range(len(heat.values)), range(len(heat.values[0]))
    cells = [[scale.written(value) for value in row] for row in heat.values]
    panels = _on_one_scale([_Panel("", heat.values, list(map(str, rows)), list(map(str, columns)), cells)])
    title, names = f"{heat.title}: {heat.quantity}", ("layer", heat.column, heat.quantity)
    return _make_sheet(panels, names, cell=(0.52, 0.22), most=_ALONE_IN, title=title)


def make_arm_maps(maps: Sequence[ArmMaps], *, trained_length: int) -> "Figure":
    """An arm a row: on the left the NLL of its needles, misses crossed, on the right the entropy of its answers."""
    if not maps:
        raise UncompError("there are no needles to draw", hint="run uncomp rope without --from first")
    size = max(_LEAST_ARM_IN, _ARM_CELL_IN[0] * len(maps[0].lengths)), _ARM_CELL_IN[1] * len(maps[0].depths)
    across, down = size[0] + _LEFT_IN + _BAR_IN, size[1] + _ARM_HEAD_IN + _BETWEEN_IN
    title = f"Needles, and attention entropy of their answers\nmodel trained to {format_count(trained_length)} tokens"
    figure, top = new_figure(EDGE_IN + 2 * across, len(maps) * down + _BELOW_IN, title)
    columns = [_on_one_scale([*map(make, maps)]) for make in (_nll_panel, _entropy_panel)]
    for number, panels in enumerate(zip(*columns, strict=True)):
        for side, panel in enumerate(panels):
            left, upper = EDGE_IN + side * across + _LEFT_IN, top + number * down + _ARM_HEAD_IN
            axes = add_axes(figure, (left, upper), size)
            mesh = _draw_panel(axes, panel, size, head_in=across)
            axes.set_xlabel("length (tokens)" if number + 1 == len(maps) else "", fontsize=TEXT_PT)
            axes.set_ylabel("" if side else "depth", fontsize=TEXT_PT)
            _add_bar(figure, mesh, (left + size[0] + 0.1, upper), size[1])
    return figure


def _on_one_scale(panels: Sequence[_Panel]) -> list[_Panel]:
    """The panels on the colours from the least to the most of all their values."""
    known = [value for panel in panels for row in panel.values for value in row if value is not None]
    low, high = min(known), max(known)
    return [replace(panel, low=low, high=high if high > low else low + 1) for panel in panels]


def _nll_panel(maps: ArmMaps) -> _Panel:
    numbers, found = _hundredths(maps.nll), maps.found
    crosses = [["" if share in (1, None) else f" {_MISSED}" for share in row] for row in found]
    cells = [[text + cross for text, cross in zip(*rows, strict=True)] for rows in zip(numbers, crosses, strict=True)]
    return _arm_panel(maps, f"{maps.arm}: NLL ({_MISSED} missed)", maps.nll, cells)


def _entropy_panel(maps: ArmMaps) -> _Panel:
    return _arm_panel(maps, f"{maps.arm}: entropy / ln n, {maps.heads}", maps.entropy, _hundredths(maps.entropy))


def _arm_panel(
    maps: ArmMaps, title: str, values: Sequence[Sequence[float | None]], cells: Sequence[Sequence[str]]
) -> _Panel:
    depths = [f"{100 * depth:.0f} %" for depth in maps.depths]
    return _Panel(title, values, depths, list(map(format_count, maps.lengths)), cells, inverted=True)


def make_losses(curves: Mapping[str, Losses], *, trained_length: int) -> "Figure":
    """The NLL of plain text by position, a line an arm; the trained length is a dashed line."""
    if not any(curves.values()):
        raise UncompError("there is no text to draw", hint="run uncomp rope without --from first")
    figure, top = new_figure(SCALE_IN + _PLOT_IN[0] + 2.0, _PLOT_IN[1] + 0.7, "Plain text by position")
    axes = add_axes(figure, (SCALE_IN, top + 0.1), _PLOT_IN)
    for number, (arm, losses) in enumerate(curves.items()):
        (line,) = axes.plot([end for end, _ in losses], [loss for _, loss in losses], label=arm, markersize=4)
        line.set(color=COLOURS[number % len(COLOURS)], marker=MARKERS[number % len(MARKERS)], linewidth=1.3)
    axes.axvline(trained_length, color="black", linewidth=1, linestyle=(0, (4, 3)), label="trained length")
    axes.set_xlabel("position (tokens)", fontsize=TEXT_PT)
    axes.set_ylabel("NLL (nats a token), lower is better", fontsize=TEXT_PT)
    axes.xaxis.set_major_formatter(lambda value, _: format_count(round(value)))
    axes.tick_params(labelsize=SMALL_PT)
    add_legend(axes, axes.get_lines())
    return figure


def make_curves(curves: Sequence[Curve], *, title: str, metric: str, lower_is_better: bool) -> "Figure":
    """Quality against kept bytes, a line a contestant with its 95 % intervals, the full cache as a horizontal line.

    The legend lists contestants from top to bottom as they stand at their smallest budget. Points are moved sideways
    by up to 13 points on the picture, never in their data, so that intervals at the same bytes stand side by side.
    """
    drawn = [curve for curve in curves if curve.points]
    refuse_nothing(drawn, title)
    full = [curve for curve in drawn if curve.label == FULL_CACHE]
    contestants = [curve for curve in drawn if curve.label != FULL_CACHE]
    legend_in = 1.05 + max(1.2, LETTER_IN * TEXT_PT * max(len(_DIGEST.sub("", curve.label)) for curve in drawn))
    height = max(_PLOT_IN[1], 0.22 * len(drawn))
    figure, top = new_figure(SCALE_IN + _PLOT_IN[0] + legend_in, height + _FOOT_IN, title)
    axes = add_axes(figure, (SCALE_IN, top), (_PLOT_IN[0], height))
    lines = [_draw_full(axes, curve) for curve in full] + _draw_contestants(axes, contestants)
    _set_kept_scale(axes, contestants or full)
    _set_quality_scale(axes, drawn, may_be_log=lower_is_better)
    axes.set_ylabel(f"{metric}, {'lower' if lower_is_better else 'higher'} is better", parse_math=False)
    add_legend(axes, lines)
    note = axes.annotate(_FOOTNOTE, (0, 0), (0, -40), xycoords="axes fraction", textcoords="offset points", va="top")
    note.set(fontsize=SMALL_PT, color="#444444")
    return figure


def _draw_full(axes: "Axes", curve: Curve) -> "Line2D":
    point = curve.points[-1]
    axes.axhspan(point.low, point.high, color="black", alpha=0.1, linewidth=0)
    return axes.axhline(point.mean, color="black", linewidth=1.2, label=f"full cache: {point.mean:.3g}")


def _draw_contestants(axes: "Axes", curves: Sequence[Curve]) -> "list[Line2D]":
    """The lines in the order of the legend; colour, marker and dash go by the place in `curves`."""
    step_pt = min(STEP_PT, _SPREAD_PT / max(len(curves) - 1, 1))
    middle, crowded = (len(curves) - 1) / 2, len(curves) > _MANY and any(map(_is_ours, curves))
    lines = [
        _draw_curve(axes, curve, index, (index - middle) * step_pt, grey=crowded and not _is_ours(curve))
        for index, curve in enumerate(curves)
    ]
    return [lines[index] for index in sorted(range(len(curves)), key=lambda index: -curves[index].points[0].mean)]


def _is_ours(curve: Curve) -> bool:
    """Whether it spreads by uncertainty, as our presets do: where there are many lines, it is these that stand out."""
    return curve.label.startswith(_OURS)


def _draw_curve(axes: "Axes", curve: Curve, index: int, shift_pt: float, *, grey: bool) -> "Line2D":
    from matplotlib.transforms import ScaledTranslation

    kept = [100 * point.kept_fraction for point in curve.points]
    means = [point.mean for point in curve.points]
    reach = [[max(p.mean - p.low, 0.0) for p in curve.points], [max(p.high - p.mean, 0.0) for p in curve.points]]
    colour, marker = _GREY if grey else COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    bars = axes.errorbar(
        kept, means, yerr=reach, color=colour, ecolor=(colour, 0.6), elinewidth=0.9, linewidth=0.9 if grey else 1.6,
        linestyle=(0, DASHES[index % len(DASHES)]) if len(means) > 1 else "none",
        marker=marker, markersize=11 if marker in _STARS else 7.5, markeredgecolor="white", markeredgewidth=0.5,
        zorder=2 if grey else 3,
        transform=axes.transData + ScaledTranslation(shift_pt / 72, 0, axes.figure.dpi_scale_trans),
    )  # fmt: skip
    bars.lines[0].set_label(_DIGEST.sub("", curve.label))  # the label given to all of it is on none of its parts
    return bars.lines[0]


def _set_kept_scale(axes: "Axes", curves: Sequence[Curve]) -> None:
    kept = [100 * point.kept_fraction for curve in curves for point in curve.points]
    margin = 1.25 if max(kept) > 4 * min(kept) else 2.0
    low, high = min(kept) / margin, max(kept) * margin
    ticks = [tick for tick in _KEPT_TICKS if low <= tick <= high]
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g} %" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(low, high)
    axes.set_xlabel("kept bytes (% of the full KV cache)")


def _set_quality_scale(axes: "Axes", curves: Sequence[Curve], *, may_be_log: bool) -> None:
    """Linear, or logarithmic for losses over a wide range, then with a linear foot down to zero."""
    points = [point for curve in curves for point in curve.points]
    low, high = min(point.low for point in points), max(point.high for point in points)
    floor = _log_floor([point.mean for point in points]) if may_be_log else None
    if floor is None:
        margin = 0.05 * (high - low) or 0.1
        axes.ticklabel_format(axis="y", useOffset=False)
        axes.set_ylim(low - margin, high + margin)
        return
    decades = range(math.floor(math.log10(floor)), math.ceil(math.log10(high)) + 1)
    ticks = [0.0, *(n * 10.0**decade for decade in decades for n in (1, 2, 5) if n * 10.0**decade >= floor)]
    axes.set_yscale("symlog", linthresh=floor, linscale=0.4)
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(-0.2 * floor, 1.2 * high)


def _log_floor(means: Sequence[float]) -> float | None:
    """The smallest loss worth a place on a log scale; None where a linear scale shows them all."""
    losses = [mean for mean in means if mean > max(means) / _LOG_DEPTH]
    wide = bool(losses) and min(means) >= -0.1 * min(losses) and max(losses) > _LOG_RANGE * min(losses)
    return min(losses) if wide else None


def _make_sheet(
    panels: Sequence[_Panel],
    names: Sequence[str],
    *,
    cell: tuple[float, float],
    title: str,
    most: tuple[float, float] = _CELLS_IN,
) -> "Figure":
    """Panels of one size, one colour bar, and a note when a cell is blank; `names` are of y, x and colour."""
    refuse_nothing(panels, title)
    size = _panel_size(panels, cell, most)
    above = 0.1 + 0.17 * max(wrap(panel.title, size[0] + _GAP_IN, TEXT_PT).count("\n") + 1 for panel in panels)
    across, down = size[0] + _LEFT_IN + _GAP_IN, size[1] + above + _BELOW_IN
    columns = _choose_columns(len(panels), across / down, most=int(_PAGE_IN / across))
    width, height = EDGE_IN + columns * across + _BAR_IN, math.ceil(len(panels) / columns) * down
    gaps = any(None in row for panel in panels for row in panel.values)
    figure, top = new_figure(width, height + _NOTE_IN * gaps, title)
    for index, panel in enumerate(panels):
        row, column = divmod(index, columns)
        axes = add_axes(figure, (EDGE_IN + _LEFT_IN + column * across, top + above + row * down), size)
        mesh = _draw_panel(axes, panel, size, head_in=size[0] + _GAP_IN)
        axes.set_ylabel("" if column else names[0], fontsize=TEXT_PT)
        axes.set_xlabel("" if index + columns < len(panels) else names[1], fontsize=TEXT_PT)
    bar = _add_bar(figure, mesh, (width - _BAR_IN + 0.1, top + above), size[1])
    bar.set_label(names[2], fontsize=TEXT_PT, parse_math=False)
    if gaps:
        figure.legend([axes.patch], ["not measured, or full fails"], loc="lower left", frameon=False, fontsize=TEXT_PT)
    return figure


def _add_bar(figure: "Figure", mesh: "QuadMesh", corner_in: tuple[float, float], height_in: float) -> "Colorbar":
    """The colours of a map, and what they mean."""
    bar_axes = add_axes(figure, corner_in, (0.16, height_in))
    bar_axes.tick_params(labelsize=SMALL_PT)
    return figure.colorbar(mesh, cax=bar_axes)


def _panel_size(panels: Sequence[_Panel], cell: tuple[float, float], most: tuple[float, float]) -> tuple[float, float]:
    counts = max(len(panel.column_labels) for panel in panels), max(len(panel.row_labels) for panel in panels)
    cells = [max(_LEAST_CELL_IN, min(cell[i], most[i] / counts[i])) for i in (0, 1)]
    return max(_LEAST_PANEL_IN[0], counts[0] * cells[0]), max(_LEAST_PANEL_IN[1], counts[1] * cells[1])


def _choose_columns(count: int, panel_aspect: float, *, most: int) -> int:
    """The number of columns that brings the sheet near its aspect, with few empty places."""
    candidates = range(1, max(1, min(count, most)) + 1)
    rows = {columns: math.ceil(count / columns) for columns in candidates}
    misfit = {columns: abs(math.log(columns / rows[columns] * panel_aspect / _ASPECT)) for columns in candidates}
    return min(candidates, key=lambda columns: misfit[columns] + 0.15 * (columns * rows[columns] - count))


def _draw_panel(axes: "Axes", panel: _Panel, size_in: tuple[float, float], *, head_in: float) -> "QuadMesh":
    """Cells with their labels, and numbers where there is room; the hatched background shows where one is missing."""
    values = [[math.nan if value is None else value for value in row] for row in panel.values]
    mesh = axes.pcolormesh(values, cmap="viridis_r" if panel.inverted else "viridis", edgecolors="white", linewidth=0.8)
    mesh.set_clim(panel.low, panel.high)
    cell_in = size_in[0] / len(panel.column_labels), size_in[1] / len(panel.row_labels)
    across, down = _step(cell_in[0], _width_in(panel.column_labels)), _step(cell_in[1], _LABEL_IN)
    axes.set_xticks([i + 0.5 for i in range(0, len(panel.column_labels), across)], panel.column_labels[::across])
    axes.set_yticks([i + 0.5 for i in range(0, len(panel.row_labels), down)], panel.row_labels[::down])
    axes.tick_params(length=0, labelsize=SMALL_PT)
    axes.invert_yaxis()
    axes.set_title(wrap(panel.title, head_in, TEXT_PT), fontsize=TEXT_PT, loc="left", pad=4, parse_math=False)
    axes.patch.set(facecolor="#eeeeee", edgecolor="#999999", hatch="////")
    if cell_in[0] >= max(map(_width_in, panel.cells)) and cell_in[1] >= _NUMBER_IN:
        for row, line in enumerate(panel.values):
            for column, value in enumerate(line):
                if value is not None:
                    text = axes.text(column + 0.5, row + 0.5, panel.cells[row][column])
                    text.set(fontsize=SMALL_PT, color=panel.ink(value), ha="center", va="center_baseline")
    return mesh


def _width_in(texts: Sequence[str]) -> float:
    """What a cell must be wide to hold the longest of them."""
    return 0.06 + LETTER_IN * SMALL_PT * max(map(len, texts))


def _step(cell_in: float, needed_in: float) -> int:
    """Every how many cells there is room for a label."""
    return next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if step * cell_in >= needed_in)
