"""The pictures of `uncomp rope`: for every arm its needles beside the entropy of its answers, and text by position.

All heat maps stand on the same axes, and all of one quantity on the same colours, dark being high, so that cells that
fail can be compared with cells that are uncertain. Laid out as those of plots.py: in inches, no text below 8 points;
every cell has its number, and a missed needle a cross beside it, so that colour never carries meaning alone.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from uncomp_cli.errors import UncompError
from uncomp_cli.evals.rope.cells import ArmMaps
from uncomp_cli.numerals import format_count
from uncomp_cli.ui.plots import (
    BAR_IN,
    BELOW_IN,
    COLOURS,
    EDGE_IN,
    LEFT_IN,
    MARKERS,
    SMALL_PT,
    TEXT_PT,
    add_axes,
    new_figure,
    write,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure


_CELL_IN, _LEAST_WIDTH_IN, _HEAD_IN, _BETWEEN_IN = (0.72, 0.28), 2.4, 0.3, 0.4
_DARK = 0.45  # viridis, reversed, is dark above this share of its way
_MISSED = "✗"
_PLOT_IN, _SCALE_IN, _LEGEND_IN = (7.2, 4.2), 0.85, 2.0
Losses = Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class _Scale:
    """The range of a quantity over all arms."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float | None]) -> "_Scale":
        known = [value for value in values if value is not None]
        low, high = min(known), max(known)
        return cls(low, high if high > low else low + 1)

    def is_dark(self, value: float) -> bool:
        return (value - self.low) / (self.high - self.low) > _DARK


def plot_arm_maps(maps: Sequence[ArmMaps], path: Path, *, trained_length: int) -> Path:
    """Write `make_arm_maps` to `path`, whole or not at all, and return it."""
    return write(make_arm_maps(maps, trained_length=trained_length), path)


def plot_losses(curves: Mapping[str, Losses], path: Path, *, trained_length: int) -> Path:
    """Write `make_losses` to `path`, whole or not at all, and return it."""
    return write(make_losses(curves, trained_length=trained_length), path)


def make_arm_maps(maps: Sequence[ArmMaps], *, trained_length: int) -> "Figure":
    """An arm a row: on the left the NLL of its needles, on the right the entropy of its answers.

    Raises UncompError without matplotlib or anything to draw.
    """
    if not maps:
        raise UncompError("there are no needles to draw", hint="run uncomp rope without --from first")
    size = max(_LEAST_WIDTH_IN, _CELL_IN[0] * len(maps[0].lengths)), _CELL_IN[1] * len(maps[0].depths)
    panel, row = size[0] + LEFT_IN + BAR_IN, size[1] + _HEAD_IN + _BETWEEN_IN
    title = f"Needles, and attention entropy of their answers\nmodel trained to {format_count(trained_length)} tokens"
    figure, top = new_figure(EDGE_IN + 2 * panel, len(maps) * row + BELOW_IN, title)
    scales = [_Scale.of([v for one in maps for line in grid(one) for v in line]) for grid in (_nll, _entropy)]
    for number, one in enumerate(maps):
        last = number + 1 == len(maps)
        names = f"{one.arm}: NLL ({_MISSED} missed)", f"{one.arm}: entropy / ln n, {one.heads}"
        for side, (grid, scale, name) in enumerate(zip((_nll, _entropy), scales, names, strict=True)):
            left, down = EDGE_IN + side * panel + LEFT_IN, top + number * row + _HEAD_IN
            axes = add_axes(figure, (left, down), size)
            mesh = _draw_cells(axes, one, grid(one), scale, missed=side == 0)
            axes.set_title(name, fontsize=TEXT_PT, loc="left", pad=4, parse_math=False)
            axes.set_xlabel("length (tokens)" if last else "", fontsize=TEXT_PT)
            axes.set_ylabel("" if side else "depth", fontsize=TEXT_PT)
            bar = add_axes(figure, (left + size[0] + 0.1, down), (0.14, size[1]))
            figure.colorbar(mesh, cax=bar)
            bar.tick_params(labelsize=SMALL_PT)
    return figure


def _nll(maps: ArmMaps) -> Sequence[Sequence[float | None]]:
    return maps.nll


def _entropy(maps: ArmMaps) -> Sequence[Sequence[float | None]]:
    return maps.entropy


def _draw_cells(
    axes: "Axes", maps: ArmMaps, grid: Sequence[Sequence[float | None]], scale: _Scale, *, missed: bool
) -> "QuadMesh":
    """Cells with their numbers; what was not measured is hatched."""
    values = [[math.nan if value is None else value for value in line] for line in grid]
    mesh = axes.pcolormesh(values, cmap="viridis_r", vmin=scale.low, vmax=scale.high, edgecolors="white", linewidth=0.8)
    axes.patch.set(facecolor="#eeeeee", edgecolor="#999999", hatch="////")
    axes.set_xticks([at + 0.5 for at in range(len(maps.lengths))], list(map(format_count, maps.lengths)))
    axes.set_yticks([at + 0.5 for at in range(len(maps.depths))], [f"{100 * depth:.0f} %" for depth in maps.depths])
    axes.tick_params(length=0, labelsize=SMALL_PT)
    axes.invert_yaxis()
    for row, line in enumerate(grid):
        for column, value in enumerate(line):
            if value is not None:
                cross = _cross(maps.found[row][column]) if missed else ""
                text = axes.text(column + 0.5, row + 0.5, f"{value:.2f}{cross}", ha="center", va="center_baseline")
                text.set(fontsize=SMALL_PT, color="white" if scale.is_dark(value) else "black")
    return mesh


def _cross(found: float | None) -> str:
    return "" if found == 1 else f" {_MISSED}"


def make_losses(curves: Mapping[str, Losses], *, trained_length: int) -> "Figure":
    """The NLL of plain text by position, a line an arm; the trained length is a dashed line."""
    if not any(curves.values()):
        raise UncompError("there is no text to draw", hint="run uncomp rope without --from first")
    width = _SCALE_IN + _PLOT_IN[0] + _LEGEND_IN
    figure, top = new_figure(width, _PLOT_IN[1] + 0.7, "Plain text by position")
    axes = add_axes(figure, (_SCALE_IN, top + 0.1), _PLOT_IN)
    for number, (arm, losses) in enumerate(curves.items()):
        axes.plot(
            [end for end, _ in losses],
            [loss for _, loss in losses],
            label=arm,
            color=COLOURS[number % len(COLOURS)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=4,
            linewidth=1.3,
        )
    axes.axvline(trained_length, color="black", linewidth=1, linestyle=(0, (4, 3)), label="trained length")
    axes.set_xlabel("position (tokens)", fontsize=TEXT_PT)
    axes.set_ylabel("NLL (nats a token), lower is better", fontsize=TEXT_PT)
    axes.xaxis.set_major_formatter(lambda value, _: format_count(round(value)))
    axes.tick_params(labelsize=SMALL_PT)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    legend = axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=TEXT_PT, frameon=False)
    for text in legend.get_texts():
        text.set_parse_math(False)
    return figure
