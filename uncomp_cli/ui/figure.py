"""What every picture has: its page in inches, its title, axes and legend, colours and marks, and its file.

No text is smaller than 8 points, cut off or drawn over another. Colours are told apart by colour-blind readers and
never carry meaning alone: lines have markers and dashes. A file is there whole or not at all.
"""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from uncomp_cli.errors import UncompError
from uncomp_cli.files import replace_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

DPI, SMALL_PT, TEXT_PT, TITLE_PT = 150, 8, 9, 12
LETTER_IN = 0.62 / 72  # about how wide a letter is for each point of its size
EDGE_IN, SCALE_IN = 0.3, 0.85
STEP_PT = 3.0  # between neighbours of points that stand at the same place

# Okabe and Ito (2008) without yellow and black, then Tol's muted palette and some between them.
COLOURS = (
    "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#882255",
    "#332288", "#999933", "#DC267F", "#117733", "#8B5A2B", "#AA4499", "#6E7781",
)  # fmt: skip
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", "*", ">", "p", "d", (4, 1, 0), "h")
DASHES = ((), (6, 2), (2, 1.5), (7, 2, 1.5, 2), (11, 3))


def new_figure(width_in: float, height_in: float, title: str) -> "tuple[Figure, float]":
    """A figure with room of this size below its title, and where that room begins, in inches from the top."""
    try:
        import matplotlib.backends.backend_agg
        import matplotlib.figure
    except ImportError as error:
        raise UncompError(f"'{title}' cannot be drawn without matplotlib", hint="pip install 'uncomp[plot]'") from error
    heading = wrap(title, width_in - 2 * EDGE_IN, 1.1 * TITLE_PT)
    top = 0.2 + 0.24 * (heading.count("\n") + 1)
    figure = matplotlib.figure.Figure(figsize=(width_in, height_in + top), facecolor="white")
    matplotlib.backends.backend_agg.FigureCanvasAgg(figure)
    left, down = EDGE_IN / width_in, 1 - 0.15 / (height_in + top)
    figure.text(left, down, heading, va="top", fontsize=TITLE_PT, fontweight="bold", parse_math=False)
    return figure, top


def add_axes(figure: "Figure", corner_in: tuple[float, float], size_in: tuple[float, float]) -> "Axes":
    """Axes whose upper left corner is so far from that of the figure."""
    (left, top), (width, height) = corner_in, size_in
    across, down = figure.get_size_inches()
    return figure.add_axes((left / across, 1 - (top + height) / down, width / across, height / down))


def write(figure: "Figure", path: Path) -> Path:
    """A picture is there whole or not at all."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda stream: figure.savefig(stream, format="png", dpi=DPI))
    except OSError as error:
        reason = error.strerror or error
        raise UncompError(f"{path} cannot be written: {reason}", hint="--plot with another folder") from error
    return path


def refuse_nothing(shown: Sequence[object], title: str) -> None:
    """Raise UncompError where there is nothing to draw."""
    if not shown:
        raise UncompError(f"there is nothing to draw in '{title}'", hint="--budget with more, if all were refused")


def add_legend(axes: "Axes", lines: "Sequence[Line2D]", *, corner: tuple[float, float] = (1.02, 1)) -> None:
    """A grid, and the names of these lines beside it."""
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    legend = axes.legend(handles=lines, loc="upper left", bbox_to_anchor=corner, fontsize=TEXT_PT, handlelength=3.4)
    legend.set(frame_on=False)
    for text in legend.get_texts():
        text.set_parse_math(False)


def wrap(text: str, width_in: float, size_pt: float) -> str:
    """The text in lines of this width."""
    width = max(8, int(width_in / (LETTER_IN * size_pt)))
    return "\n".join(textwrap.fill(line, width) for line in text.splitlines())
