"""The pictures of `uncomp rope`: every cell and number is there, on common scales, and nothing is drawn outside."""

from pathlib import Path

import pytest

from uncomp_cli.errors import UncompError
from uncomp_cli.evals.rope.cells import ArmMaps
from uncomp_cli.ui.figure import write
from uncomp_cli.ui.plots import make_arm_maps, make_losses

DEPTHS, LENGTHS = (0.0, 0.5, 1.0), (8192, 16_384)
PLAIN = ArmMaps(
    "plain", DEPTHS, LENGTHS, ((0.1, 6.0), (0.2, 7.25), (0.1, 5.0)), ((1.0, 0.0), (1.0, 0.0), (1.0, 0.5)),
    ((0.3, 0.6), (0.3, 0.7), (0.3, 0.5)), "all heads",
)  # fmt: skip
YARN = ArmMaps(
    "yarn:2 $x$", DEPTHS, LENGTHS, ((0.1, None), (0.2, 0.3), (0.1, 0.4)), ((1.0, None), (1.0, 1.0), (1.0, 1.0)),
    ((0.2, None), (0.3, 0.4), (0.3, 0.4)), "all heads",
)  # fmt: skip


def test_an_arm_has_two_maps_with_every_number_and_missed_needles_marked() -> None:
    figure = make_arm_maps([PLAIN, YARN], trained_length=8192)
    maps = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in maps] == [
        "plain: NLL (✗ missed)", "plain: entropy / ln n, all heads",
        "yarn:2 $x$: NLL (✗ missed)", "yarn:2 $x$: entropy / ln n, all heads",
    ]  # fmt: skip
    assert [text.get_text() for text in maps[0].texts] == ["0.10", "6.00 ✗", "0.20", "7.25 ✗", "0.10", "5.00 ✗"]
    assert [text.get_text() for text in maps[3].texts] == ["0.20", "0.30", "0.40", "0.30", "0.40"]
    assert [label.get_text() for label in maps[0].get_xticklabels()] == ["8,192", "16,384"]
    assert [label.get_text() for label in maps[0].get_yticklabels()] == ["0 %", "50 %", "100 %"]


def test_all_maps_of_a_quantity_have_one_scale_and_high_is_dark() -> None:
    figure = make_arm_maps([PLAIN, YARN], trained_length=8192)
    maps = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [mesh.get_clim() for axes in maps for mesh in axes.collections] == [(0.1, 7.25), (0.2, 0.7)] * 2
    mesh = maps[0].collections[0]
    assert sum(mesh.to_rgba(7.25)[:3]) < sum(mesh.to_rgba(0.1)[:3])
    colours = {text.get_text(): text.get_color() for text in maps[0].texts}
    assert (colours["7.25 ✗"], colours["0.10"]) == ("white", "black")


def test_nothing_is_cut_off(tmp_path: Path) -> None:
    figure = make_arm_maps([PLAIN, YARN, PLAIN], trained_length=8192)
    figure.canvas.draw()
    width, height = figure.canvas.get_width_height()
    for axes in figure.axes:
        box = axes.get_tightbbox()
        assert box is not None
        assert box.x0 >= 0
        assert box.y0 >= 0
        assert box.x1 <= width
        assert box.y1 <= height
    path = write(make_arm_maps([PLAIN], trained_length=8192), tmp_path / "maps.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_cells_of_one_value_can_be_drawn() -> None:
    same = ArmMaps("plain", (0.5,), (8192,), ((1.0,),), ((1.0,),), ((0.5,),), "all heads")
    assert make_arm_maps([same], trained_length=8192).axes


def test_text_by_position_has_a_line_an_arm_and_the_trained_length(tmp_path: Path) -> None:
    curves = {"plain": [(513, 2.0), (1025, 3.0)], "yarn:2": [(513, 2.1), (1025, 2.2)]}
    (axes,) = make_losses(curves, trained_length=800).axes
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    assert list(lines) == ["plain", "yarn:2", "trained length"]
    assert list(lines["yarn:2"].get_ydata()) == [2.1, 2.2]
    assert set(lines["trained length"].get_xdata()) == {800}
    assert write(make_losses(curves, trained_length=800), tmp_path / "text.png").read_bytes().startswith(b"\x89PNG")


def test_nothing_to_draw_is_said() -> None:
    with pytest.raises(UncompError, match="no needles"):
        make_arm_maps([], trained_length=8192)
    with pytest.raises(UncompError, match="no text"):
        make_losses({"plain": []}, trained_length=8192)
