"""Pictures: read from the figure before it is saved, and as files: PNG, whole or not there at all."""

import struct
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.text import Text

from uncomp_cli.calibrate.reliability import Judged, Verdict
from uncomp_cli.errors import UncompError
from uncomp_cli.evals.tables.summary import CoverageMap, Curve, CurvePoint, NeedleGrid
from uncomp_cli.ui import plots
from uncomp_cli.ui.figure import write
from uncomp_cli.ui.heatmap import HeatMap
from uncomp_cli.ui.roc import make_reliability
from uncomp_cli.uncertainty.error_rates import wilson_interval

DEPTHS, LENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0), (1024, 2048, 4096)
BUDGETS = (0.05, 0.1, 0.2, 0.5)
FULL = Curve("full", (CurvePoint(1.0, 0.07, 0.05, 0.09),))


def a_grid(index: int = 0, depths: tuple[float, ...] = DEPTHS, lengths: tuple[int, ...] = LENGTHS) -> NeedleGrid:
    columns = range(len(lengths))
    scores = tuple(tuple((row + column + index) % 7 / 8 for column in columns) for row in range(len(depths)))
    return NeedleGrid(f"entropy/agreement 2{index}%", 0.198, depths, lengths, scores)


def a_map(index: int = 0, layers: int = 30, heads: int = 3) -> CoverageMap:
    shares = tuple(tuple((layer + head + index) % 5 / 5 for head in range(heads)) for layer in range(layers))
    return CoverageMap(f"uniform/window {index}%", 0.0493, shares)


def a_heat_map(layers: int, heads: int) -> HeatMap:
    values = tuple(
        tuple(0.25 + 9 * ((layer + head) % heads) / heads for head in range(heads)) for layer in range(layers)
    )
    return HeatMap("mine", "lmbo", "query head", values)


def a_curve(label: str, *means: float) -> Curve:
    points = zip(BUDGETS, means, strict=False)
    return Curve(label, tuple(CurvePoint(kept, mean, 0.8 * mean, 1.3 * mean) for kept, mean in points))


def contestants(count: int) -> list[Curve]:
    return [a_curve(f"policy-{n}/scorer", 0.9 - n / 20, 0.6 - n / 30, 0.3 - n / 60, 0.1) for n in range(count)]


def nll(curves: list[Curve], *, lower_is_better: bool = True) -> Axes:
    """The axes of the curves' picture, drawn, so that its ticks and legend are final."""
    figure = plots.make_curves(curves, title="NLL", metric="NLL (nats)", lower_is_better=lower_is_better)
    figure.canvas.draw()
    return figure.axes[0]


def legend_labels(axes: Axes) -> list[str]:
    texts = axes.get_legend().get_texts()
    assert not any(text.get_parse_math() for text in texts)
    return [text.get_text() for text in texts]


def shown_texts(figure: Figure) -> list[Text]:
    """Every text that is drawn: matplotlib also keeps labels of ticks that lie outside of the axes."""
    outside = set()
    for axes in figure.axes:
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
            ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
            hidden = [tick for tick in ticks if not min(limits) <= tick.get_loc() <= max(limits)]
            outside.update(id(label) for tick in hidden for label in (tick.label1, tick.label2))
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    return [text for text in texts if id(text) not in outside]


def a_judgement(name: str, *, absent: bool = True) -> Judged:
    """Twenty answers, of which every second one above the middle is wrong."""
    values = tuple(n / 20 for n in range(20))
    wrong = Verdict(values, tuple(n >= 10 and n % 2 == 1 for n in range(20)), 0.9)
    rates = tuple(0.11 if n < 10 else 0.55 for n in range(20))
    return Judged(name, rates, wrong, Verdict(values, tuple(n > 15 for n in range(20)), 0.7) if absent else None)


FIGURES: dict[str, Callable[[], Figure]] = {
    "one panel": lambda: plots.make_needles([a_grid()], title="Needle in a haystack, UUID values, query-aware"),
    "reliability": lambda: make_reliability([a_judgement("a"), a_judgement("held out")], title="Rates"),
    "one cell": lambda: plots.make_needles([a_grid(0, (0.5,), (131072,))], title="One"),
    "12 panels": lambda: plots.make_needles([a_grid(n) for n in range(12)], title="Needle, query-aware"),
    "48 panels": lambda: plots.make_needles([a_grid(n) for n in range(48)], title="Needle, query-aware"),
    "long lengths": lambda: plots.make_needles([a_grid(n, lengths=(65536, 131072)) for n in range(3)], title="Far"),
    "fine grids": lambda: plots.make_needles(
        [a_grid(n, tuple(d / 20 for d in range(21)), tuple(range(1024, 33000, 1024))) for n in range(2)], title="Fine"
    ),
    "long title": lambda: plots.make_needles(
        [replace(a_grid(), title="entropy/agreement-of-heads 128 tokens a head, int8 keys"), a_grid()],
        title="A title of many words, " * 9,
    ),
    "30 layers": lambda: plots.make_coverage([a_map(n) for n in range(4)], title="Evidence kept"),
    "80 layers": lambda: plots.make_coverage([a_map(n, 80, 40) for n in range(2)], title="Evidence kept"),
    "2 layers": lambda: plots.make_coverage([a_map(0, 2, 1)], title="Evidence kept"),
    "14 curves": lambda: nll([FULL, *contestants(14)]).figure,
    "40 curves": lambda: nll(contestants(40)).figure,
    "log curves": lambda: nll([FULL, a_curve("uniform", 4.7, 1.0, 0.2, 0.0), a_curve("random", 9, 5, 1, 0.01)]).figure,
    **{
        f"heat map {layers}x{heads}": partial(plots.make_heat_map, a_heat_map(layers, heads))
        for layers, heads in ((1, 1), (2, 2), (30, 3), (30, 9), (80, 64))
    },
    "one point": lambda: nll([a_curve("int8 full cache with a long name", 0.07)]).figure,
}


@cache
def figure_of(name: str) -> Figure:
    """One of them, made once for all who only look at it."""
    return FIGURES[name]()


CROWDED = ("48 panels", "40 curves")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in CROWDED else n for n in FIGURES])
def test_no_text_is_small_or_cut_off_or_over_another(name: str) -> None:
    figure = figure_of(name)
    figure.canvas.draw()
    texts = shown_texts(figure)
    assert len(texts) > 5
    assert [text for text in texts if text.get_fontsize() < 8] == []
    left, bottom, right, top = np.array([text.get_window_extent().extents for text in texts]).T
    width, height = figure.canvas.get_width_height()
    cut_off = (left < 0) | (bottom < 0) | (right > width) | (top > height)
    assert [text.get_text() for text, cut in zip(texts, cut_off, strict=True) if cut] == []
    meets = (left[:, None] < right) & (bottom[:, None] < top)
    pairs = np.argwhere(np.triu(meets & meets.T, 1))
    assert [(texts[a].get_text(), texts[b].get_text()) for a, b in pairs] == []
    assert figure.get_figwidth() < 13.5


def test_needles_have_a_panel_a_setting_with_what_was_kept() -> None:
    axes = plots.make_needles([a_grid(n) for n in range(12)], title="Needle").axes
    assert len(axes) == 12 + 1
    assert axes[1].get_title(loc="left") == "entropy/agreement 21%\nkept 19.8 %"


def test_needles_have_depths_down_and_lengths_across() -> None:
    axes = plots.make_needles([a_grid()], title="Needle").axes[0]
    bottom, top = axes.get_ylim()
    assert bottom > top
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0 %", "25 %", "50 %", "75 %", "100 %"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["1,024", "2,048", "4,096"]
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("depth", "length (tokens)")


def test_every_score_stands_in_its_cell_in_an_ink_that_is_seen() -> None:
    grid = NeedleGrid("full", 1.0, (0.0, 1.0), (512, 1024), ((0.0, 0.25), (0.75, 1.0)))
    texts = plots.make_needles([grid], title="Needle").axes[0].texts
    assert [(text.get_position(), text.get_text(), text.get_color()) for text in texts] == [
        ((0.5, 0.5), "0.00", "white"),
        ((1.5, 0.5), "0.25", "white"),
        ((0.5, 1.5), "0.75", "black"),
        ((1.5, 1.5), "1.00", "black"),
    ]


def test_cells_too_small_to_read_have_no_numbers_and_fewer_labels() -> None:
    axes = figure_of("fine grids").axes[0]
    assert len(axes.texts) == 0
    assert list(axes.get_xticks()) == [n + 0.5 for n in range(0, 32, 5)]
    assert [label.get_text() for label in axes.get_xticklabels()][:2] == ["1,024", "6,144"]


@pytest.mark.parametrize("name", ["12 panels", "30 layers"])
def test_all_panels_share_one_colour_scale(name: str) -> None:
    *panels, bar = figure_of(name).axes
    meshes = [axes.collections[0] for axes in panels]
    assert {mesh.get_clim() for mesh in meshes} == {(0, 1)}
    assert {mesh.get_cmap().name for mesh in meshes} == {"viridis"}
    assert bar.get_ylim() == (0, 1)
    assert bar.get_ylabel() != ""


def test_what_was_not_measured_is_hatched_and_explained() -> None:
    holed = NeedleGrid("full", 1.0, (0.0, 1.0), (512, 1024), ((None, 0.25), (0.75, 0.0)))
    figure = plots.make_needles([holed, a_grid()], title="Needle")
    axes = figure.axes[0]
    assert axes.collections[0].get_array().mask.tolist() == [[True, False], [False, False]]
    assert axes.patch.get_hatch() == "////"
    assert len(axes.texts) == 3
    assert [text.get_text() for legend in figure.legends for text in legend.get_texts()] == [
        "not measured, or full fails"
    ]
    assert figure_of("12 panels").legends == []


def test_coverage_has_layers_down_heads_across_and_the_mean() -> None:
    shares = ((1.0, 0.5), (0.0, 0.25), (0.0, 0.25))
    axes = plots.make_coverage([CoverageMap("uniform/window 5%", 0.0493, shares)], title="Evidence").axes[0]
    assert axes.get_title(loc="left") == "uniform/window 5%\nkept 4.9 % · mean 0.33"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0", "1", "2"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1"]
    assert axes.yaxis_inverted()
    every = [label.get_text() for label in figure_of("30 layers").axes[0].get_yticklabels()]
    assert every == [str(layer) for layer in range(30)]
    assert axes.collections[0].get_array().tolist() == [list(row) for row in shares]


def test_stated_rates_stand_over_what_was_measured_with_its_interval() -> None:
    axes = make_reliability([a_judgement("a")], title="Rates").axes[0]
    (bars,) = axes.containers
    assert isinstance(bars, ErrorbarContainer)
    points, _, (reach,) = bars.lines
    assert np.array(points.get_xydata()) == pytest.approx(np.array([[0.11, 0.0], [0.55, 0.5]]))
    ends = [segment[:, 1] for segment in reach.get_segments()]
    assert np.array(ends) == pytest.approx(np.array([wilson_interval(0, 10), wilson_interval(5, 10)]))
    assert legend_labels(axes) == ["a: 20 answers"]


def test_a_mark_says_what_the_limit_catches() -> None:
    judged = [a_judgement("a"), a_judgement("b", absent=False)]
    _, wrong, absent = make_reliability(judged, title="Rates").axes
    for axes, names, at in ((wrong, "ab", (0, 0.2)), (absent, "a", (0.0625, 1))):
        lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
        assert [str(line.get_label())[0] for line in lines] == list(names)
        ((mark,),) = [line.get_markevery() for line in lines[:1]]
        assert np.array(lines[0].get_xydata())[mark] == pytest.approx(np.array(at))
    assert len(make_reliability(judged[1:], title="Rates").axes) == 2


def test_of_many_contestants_ours_are_in_colour_and_the_rest_grey() -> None:
    ours = [a_curve("uncertain/agreement/profile=balanced#1a2b3c4d", 0.8, 0.4), a_curve("preset:small#00ff00aa", 0.7)]
    axes = nll([FULL, *contestants(7), *ours])
    colours = {str(line.get_label()): to_hex(line.get_color()) for line in axes.lines}
    assert set(colours) - {"full cache: 0.07", *(f"policy-{n}/scorer" for n in range(7))} == {
        "uncertain/agreement/profile=balanced", "preset:small",
    }  # fmt: skip
    grey = {colours[f"policy-{n}/scorer"] for n in range(7)}
    assert len(grey) == 1
    assert len({colours["preset:small"], colours["uncertain/agreement/profile=balanced"], *grey}) == 3
    few = nll([*contestants(6), *ours])
    assert len({to_hex(line.get_color()) for line in few.lines}) == 8


def test_fourteen_contestants_differ_in_colour_and_marker_and_many_more_in_all() -> None:
    axes = nll(contestants(40))
    looks = [(to_hex(line.get_color()), str(line.get_marker()), line.get_linestyle()) for line in axes.lines[:14]]
    assert len({look[0] for look in looks}) == len({look[1] for look in looks}) == 14
    assert len({str(line._dash_pattern) for line in axes.lines[:5]}) == 5
    everything = {(line.get_color(), str(line.get_marker()), str(line._dash_pattern)) for line in axes.lines}
    assert len(everything) == 40


def test_data_stay_exact_while_points_are_drawn_side_by_side() -> None:
    axes = nll([a_curve("a", 0.5, 0.4, 0.3, 0.2), a_curve("b", 0.5, 0.4, 0.3, 0.2)])
    first, second = axes.lines
    assert list(first.get_xdata()) == list(second.get_xdata()) == [5, 10, 20, 50]
    drawn = [line.get_transform().transform((10, 0.4)) for line in (first, second)]
    assert 2 < drawn[1][0] - drawn[0][0] < 10
    assert drawn[1][1] == drawn[0][1]


def test_intervals_reach_from_low_to_high() -> None:
    curve = Curve("a", (CurvePoint(0.1, 0.5, 0.2, 0.6), CurvePoint(0.2, 0.4, 0.45, 0.5)))
    bars = nll([curve], lower_is_better=False).collections[0].get_segments()
    assert [sorted(y for _, y in segment) for segment in bars] == [pytest.approx([0.2, 0.6]), pytest.approx([0.4, 0.5])]


def test_the_full_cache_is_a_line_across_with_its_interval() -> None:
    axes = nll([FULL, *contestants(2)])
    line = axes.lines[0]
    assert list(line.get_ydata()) == [0.07, 0.07]
    assert list(line.get_xdata()) == [0, 1]  # of the width of the axes
    (band,) = axes.patches
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((0.05, 0.09))
    assert legend_labels(axes)[0] == "full cache: 0.07"


def test_the_legend_stands_as_the_lines_do_at_their_smallest_budget() -> None:
    curves = [Curve("refused", ()), a_curve("low", 0.2, 0.1), a_curve("high", 0.9, 0.05), a_curve("mid_$x$", 0.4)]
    assert legend_labels(nll(curves)) == ["high", "mid_$x$", "low"]


def test_a_single_point_is_a_marker_without_a_line() -> None:
    single, line = nll([a_curve("int8 full cache", 0.07), a_curve("uniform", 0.5, 0.4)]).lines
    assert single.get_linestyle() == "None"
    assert single.get_marker() != "None"
    assert line.get_linestyle() != "None"


def test_kept_bytes_are_in_per_cent_on_a_log_scale() -> None:
    curve = Curve("a", tuple(CurvePoint(kept, 0.5, 0.4, 0.6) for kept in (0.01, 1.0)))
    axes = nll([curve])
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == [f"{n} %" for n in (1, 2, 5, 10, 20, 50, 100)]
    assert len(axes.get_xticks(minor=True)) == 0


@pytest.mark.parametrize("kept", [0.014, 0.14, 0.35, 0.7, 1.0])
def test_one_budget_alone_still_has_a_tick(kept: float) -> None:
    assert len(nll([Curve("a", (CurvePoint(kept, 0.5, 0.4, 0.6),))]).get_xticks()) > 0


def test_the_axis_says_which_way_is_better() -> None:
    assert nll([FULL]).get_ylabel() == "NLL (nats), lower is better"
    assert nll([FULL], lower_is_better=False).get_ylabel() == "NLL (nats), higher is better"


@pytest.mark.parametrize(
    ("means", "lower_is_better", "scale"),
    [
        ((2.1, 0.1), True, "symlog"),
        ((1.9, 0.1), True, "linear"),
        ((2.1, 0.1), False, "linear"),
        ((2.1, 0.1, 0.0), True, "symlog"),
        ((0.2, 0.1, 0.0), True, "linear"),
        ((2.1, 0.1, -0.5), True, "linear"),
        ((0.0, 0.0), True, "linear"),
    ],
)
def test_wide_losses_are_on_a_log_scale(means: tuple[float, ...], lower_is_better: bool, scale: str) -> None:
    assert nll([a_curve("a", *means)], lower_is_better=lower_is_better).get_yscale() == scale


def test_a_log_scale_reaches_down_to_zero_and_shows_all() -> None:
    axes = nll([a_curve("a", 3.0, 0.5, 0.02, 0.0)])
    low, high = axes.get_ylim()
    assert low < 0
    assert high > 1.3 * 3.0
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels[:7] == ["0", "0.02", "0.05", "0.1", "0.2", "0.5", "1"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: plots.make_needles([], title="Empty"),
        lambda: plots.make_coverage([], title="Empty"),
        lambda: make_reliability([], title="Empty"),
        lambda: plots.make_curves([Curve("a", ())], title="Empty", metric="x", lower_is_better=True),
    ],
)
def test_nothing_to_draw_is_refused(make: Callable[[], Figure]) -> None:
    with pytest.raises(UncompError, match="nothing to draw in 'Empty'"):
        make()


def test_a_picture_is_a_png_in_a_new_folder_and_nothing_beside_it(tmp_path: Path) -> None:
    path, figure = tmp_path / "pictures" / "needles.png", figure_of("one panel")
    assert write(figure, path) == path
    first = path.stat().st_ino
    assert write(figure, path) == path
    assert path.stat().st_ino != first  # put in its place whole, not written over
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(data) > 5_000
    width, height = struct.unpack(">II", data[16:24])
    assert 500 < width < 2000
    assert 300 < height < 2000
    assert list(path.parent.iterdir()) == [path]


def test_a_picture_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "taken.png"
    folder.mkdir()
    (tmp_path / "file").write_text("")
    for path in (folder, tmp_path / "file" / "picture.png"):
        with pytest.raises(UncompError, match=str(path)):
            write(figure_of("one panel"), path)
    assert sorted(child.name for child in tmp_path.iterdir()) == ["file", "taken.png"]


@pytest.mark.parametrize("name", ["one panel", "2 layers", "reliability", "one point", "heat map 1x1"])
def test_the_extra_to_install_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UncompError) as raised:
        FIGURES[name]()
    assert raised.value.hint == "pip install 'uncomp[plot]'"
    assert "matplotlib" in raised.value.message
