"""The pictures of `uncomp preset plot`: layers down, heads across, one quantity on its own colour scale, one PNG each.

Laid out as those of plots.py: in inches, so that no text is smaller than 8 points or cut off; cells that are large
enough have their numbers, so that colour never carries meaning alone.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from uncomp_cli.ui.heatmap import HeatMap, Scale
from uncomp_cli.ui.plots import (
    BAR_IN,
    BELOW_IN,
    EDGE_IN,
    LEFT_IN,
    LETTER_IN,
    NUMBER_CELL_IN,
    SMALL_PT,
    TEXT_PT,
    add_axes,
    new_figure,
    step,
    write,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure


_CELL_IN, _LARGEST_IN, _LEAST_CELL_IN, _LEAST_PANEL_IN = (0.52, 0.22), (9.0, 12.0), 0.12, (2.8, 1.2)
_DARK = 0.55  # viridis is dark below this share of its way


def plot_heat_map(heat: HeatMap, path: Path) -> Path:
    """Write `make_heat_map` to `path`, whole or not at all, and return it."""
    return write(make_heat_map(heat), path)


def make_heat_map(heat: HeatMap) -> "Figure":
    """The map with a colour bar from the least to the most; raises UncompError without matplotlib."""
    counts = len(heat.values[0]), len(heat.values)
    cells = [max(_LEAST_CELL_IN, min(_CELL_IN[i], _LARGEST_IN[i] / counts[i])) for i in (0, 1)]
    width, height = (max(_LEAST_PANEL_IN[i], counts[i] * cells[i]) for i in (0, 1))
    across = EDGE_IN + LEFT_IN + width + 0.2 + BAR_IN
    figure, top = new_figure(across, 0.1 + height + BELOW_IN, f"{heat.title}: {heat.quantity}")
    axes = add_axes(figure, (EDGE_IN + LEFT_IN, top + 0.1), (width, height))
    mesh = _draw(axes, heat, (width, height))
    bar = add_axes(figure, (across - BAR_IN + 0.1, top + 0.1), (0.16, height))
    figure.colorbar(mesh, cax=bar).set_label(heat.quantity, fontsize=TEXT_PT, parse_math=False)
    bar.tick_params(labelsize=SMALL_PT)
    return figure


def _draw(axes: "Axes", heat: HeatMap, size_in: tuple[float, float]) -> "QuadMesh":
    """Cells, labels of as many layers and heads as there is room for, and numbers where cells are large enough."""
    rows, columns, scale = len(heat.values), len(heat.values[0]), Scale.of(heat)
    mesh = axes.pcolormesh(heat.values, cmap="viridis", edgecolors="white", linewidth=0.4)
    mesh.set_clim(scale.low, scale.high if scale.high > scale.low else scale.low + 1)
    cell_in = size_in[0] / columns, size_in[1] / rows
    across = step(cell_in[0], 0.06 + LETTER_IN * SMALL_PT * len(str(columns - 1)))
    down = step(cell_in[1], 0.14)
    axes.set_xticks([head + 0.5 for head in range(0, columns, across)], list(map(str, range(0, columns, across))))
    axes.set_yticks([layer + 0.5 for layer in range(0, rows, down)], list(map(str, range(0, rows, down))))
    axes.tick_params(length=0, labelsize=SMALL_PT)
    axes.invert_yaxis()
    axes.set_ylabel("layer", fontsize=TEXT_PT)
    axes.set_xlabel(heat.column, fontsize=TEXT_PT)
    longest = max(len(scale.written(value)) for row in heat.values for value in row)
    if cell_in[0] >= 0.06 + LETTER_IN * SMALL_PT * longest and cell_in[1] >= NUMBER_CELL_IN[1]:
        _write_numbers(axes, heat, scale)
    return mesh


def _write_numbers(axes: "Axes", heat: HeatMap, scale: Scale) -> None:
    """Every value, white on the dark colours and black on the light ones."""
    span = scale.high - scale.low or 1.0
    for layer, row in enumerate(heat.values):
        for head, value in enumerate(row):
            text = axes.text(head + 0.5, layer + 0.5, scale.written(value), ha="center", va="center_baseline")
            text.set(fontsize=SMALL_PT, color="black" if (value - scale.low) / span > _DARK else "white")
