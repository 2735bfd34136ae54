"""Heat maps of layers × heads: as text at any width, coloured on a terminal, as a picture."""

import io
import re

import pytest

from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.heatmap import HeatMap, Scale, heat_lines, write_heat_map
from uncomp_cli.ui.plots import make_heat_map

KEPT = HeatMap("mine", "tokens kept", "KV head", ((20.0, 730.0, 1204.0), (388.0, 21.0, 900.0)))
ENTROPY = HeatMap("mine", "entropy/q/r1/4", "query head", ((0.5, 1.25), (3.14159, 2.0)))


def a_map(layers: int, heads: int) -> HeatMap:
    """Values from 0.25 to just above 9 that rise from head to head and start anew in each layer."""
    steps = [0.25 + 9 * step / heads for step in range(heads)]
    values = tuple(tuple(steps[(layer + head) % heads] for head in range(heads)) for layer in range(layers))
    return HeatMap("mine", "lmbo", "query head", values)


def lines_of(heat: HeatMap, *, columns: int = 80, shades: bool = True) -> list[str]:
    return ["".join(piece.text for piece in line).rstrip() for line in heat_lines(heat, columns=columns, shades=shades)]


def test_few_heads_have_their_numbers_and_a_shade() -> None:
    assert lines_of(KEPT) == [
        "mine: tokens kept",
        "layer  KV head 0–2",
        "            0      1      2",
        "    0  ·   20 ▒  730 █1,204",
        "    1  ░  388 ·   21 ▓  900",
        "least 20 (layer 0, head 0) ·░▒▓█ most 1,204 (layer 0, head 2)",
    ]


def test_fractions_have_the_same_decimals_everywhere() -> None:
    assert lines_of(ENTROPY)[3:5] == ["    0  ·0.50 ░1.25", "    1  █3.14 ▒2.00"]
    assert Scale.of(HeatMap("", "", "", ((0.00123, 0.0),))).written(0.0005) == "0.00050"
    assert Scale.of(HeatMap("", "", "", ((12345.6, 0.5),))).written(12345.6) == "12,346"


def test_many_heads_have_a_level_each() -> None:
    lines = lines_of(a_map(2, 40))
    assert lines[3] == "    0 0000111122223333444455556666777788889999"
    assert lines[4] == "    1 0001111222233334444555566667777888899990"
    assert lines[2].split() == [str(head) for head in range(0, 40, 5)]
    assert lines[2][6::5] == "".join(str(head)[-1] for head in range(0, 40, 5))  # each ends over its own cell
    assert "0123456789" in lines[-1]


@pytest.mark.parametrize("columns", [80, 100, 40])
@pytest.mark.parametrize("shape", [(30, 3), (30, 9), (32, 32), (80, 64), (2, 128), (1, 1)])
def test_every_cell_is_there_and_no_line_of_cells_is_too_wide(shape: tuple[int, int], columns: int) -> None:
    layers, heads = shape
    lines = lines_of(a_map(*shape), columns=columns)[:-1]
    rows = [line for line in lines if re.match(r" {0,4}\d+ ", line[:6]) and line[:5].strip().isdigit()]
    assert max(map(len, lines)) <= columns
    cells = "".join(row[6:] for row in rows)
    numbers = re.findall(r"\d\.\d\d", cells)
    assert len(numbers or re.findall(r"\d", cells)) == layers * heads
    named = {int(line[:5]) for line in rows}
    assert named == set(range(layers))


def test_thirty_layers_of_nine_heads_have_numbers_in_80_columns() -> None:
    assert "9.25" not in lines_of(a_map(30, 9))[3]
    assert lines_of(a_map(30, 9))[3].count(".") == 9


def test_a_wide_map_goes_on_in_a_further_block() -> None:
    lines = lines_of(a_map(2, 100))
    assert [line for line in lines if line.startswith("layer")] == ["layer  query head 0–73", "layer  query head 74–99"]
    assert lines[6].split()[0] == "75"
    assert lines[6].index("5") == 6 + 1  # head 75 is the second cell of its block


def test_a_map_of_one_value_says_so() -> None:
    lines = lines_of(HeatMap("even", "tokens kept", "KV head", ((400.0, 400.0),) * 2))
    assert lines[-1] == "all 400"
    assert lines[3] == "    0  ▒400 ▒400"


def test_one_column_needs_no_head() -> None:
    lines = lines_of(HeatMap("mine", "entropy/hidden/r1/4", "all heads", ((1.0,), (2.0,))))
    assert lines[1] == "layer  all heads"
    assert lines[-1] == "least 1 (layer 0) ·░▒▓█ most 2 (layer 1)"


def terminal(*, colour: bool, is_terminal: bool) -> Terminal:
    return Terminal(
        stdout=io.StringIO(), stderr=io.StringIO(), stdout_is_terminal=is_terminal, stderr_is_terminal=False,
        colour=colour, animated=False,
    )  # fmt: skip


def written(heat: HeatMap, monkeypatch: pytest.MonkeyPatch, columns: int = 80, **kind: bool) -> str:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("COLUMNS", str(columns))
    out = terminal(**kind)
    write_heat_map(heat, out)
    assert isinstance(out.stdout, io.StringIO)
    return out.stdout.getvalue()


def test_colours_lie_behind_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    text = written(KEPT, monkeypatch, colour=True, is_terminal=True)
    assert "\x1b[37;48;2;68;1;84m    20 \x1b[0m" in text  # the least: white on viridis' first colour
    assert "\x1b[30;48;2;253;231;37m 1,204 \x1b[0m" in text
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    assert [line.rstrip() for line in plain.splitlines()] == [
        "mine: tokens kept",
        "layer  KV head 0–2",
        "            0      1      2",
        "    0     20    730  1,204",
        "    1    388     21    900",
        "least 20 (layer 0, head 0) 0123456789 most 1,204 (layer 0, head 2)",
    ]


@pytest.mark.parametrize(("colour", "is_terminal"), [(False, True), (True, False), (False, False)])
def test_no_escape_without_colour_or_terminal(monkeypatch: pytest.MonkeyPatch, colour: bool, is_terminal: bool) -> None:
    text = written(KEPT, monkeypatch, colour=colour, is_terminal=is_terminal)
    assert "\x1b" not in text
    assert text.splitlines() == lines_of(KEPT)


def test_a_coloured_line_is_never_wrapped(monkeypatch: pytest.MonkeyPatch) -> None:
    text = written(a_map(3, 64), monkeypatch, columns=40, colour=True, is_terminal=True)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()
    assert [line.strip() for line in plain] == [
        line.strip() for line in lines_of(a_map(3, 64), columns=40, shades=False)
    ]


def test_a_title_cannot_move_the_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    heat = HeatMap("a\x1b[2Jb", "tokens kept", "KV head", ((1.0, 2.0),))
    assert written(heat, monkeypatch, colour=True, is_terminal=True).startswith("a[2Jb: tokens kept\n")


def test_a_picture_has_layers_down_heads_across_and_its_own_scale() -> None:
    figure = make_heat_map(KEPT)
    axes, bar = figure.axes
    assert axes.yaxis_inverted()
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("layer", "KV head")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "1", "2"]
    assert axes.collections[0].get_clim() == bar.get_ylim() == (20, 1204)
    assert axes.collections[0].get_array().tolist() == [list(row) for row in KEPT.values]
    assert bar.get_ylabel() == "tokens kept"
    inks = {text.get_text(): text.get_color() for text in axes.texts}
    assert inks == {"20": "white", "730": "black", "1,204": "black", "388": "white", "21": "white", "900": "black"}


def test_a_picture_of_one_value_is_drawn() -> None:
    axes = make_heat_map(HeatMap("even", "tokens kept", "KV head", ((400.0, 400.0),) * 2)).axes[0]
    assert axes.collections[0].get_clim() == (400, 401)
