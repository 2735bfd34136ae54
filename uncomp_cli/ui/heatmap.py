"""A heat map of layers × heads in a terminal: a line a layer, a cell a head.

Every cell has its number where there is room for it, else one of ten levels from 0 (the least) to 9 (the most), so that
colour never carries meaning alone: where colours are on they lie behind the same text, where they are off a shade block
stands beside a number. Heads that do not fit beside each other are written in further blocks; nothing is left out.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from uncomp_cli.ui.console import Terminal, strip_controls

LEVELS = 10
_SHADES = "·░▒▓█"
# Viridis at ten even steps; black is read on the last six of them, white on the others.
_COLOURS = (
    "#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725",
)  # fmt: skip
_FIRST_LIGHT = 4
_PIPE_COLUMNS = 80
_LABEL = len("layer")


@dataclass(frozen=True, slots=True)
class HeatMap:
    """`values` [L][X] under a title; `quantity` says what they are, `column` what one of X is, such as `KV head`."""

    title: str
    quantity: str
    column: str
    values: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class Scale:
    """The least and the most of a map, and how many decimals its numbers are written with."""

    low: float
    high: float
    decimals: int

    @classmethod
    def of(cls, heat: HeatMap) -> "Scale":
        """Whole numbers are written whole; of others the largest has three digits that count."""
        cells = [value for row in heat.values for value in row]
        largest = max(map(abs, cells))
        whole = all(float(value).is_integer() for value in cells)
        decimals = 0 if whole or largest == 0 else max(0, 2 - math.floor(math.log10(largest)))
        return cls(min(cells), max(cells), decimals)

    def level(self, value: float) -> int:
        """0 to 9 on a line from the least to the most; the middle when all are the same."""
        if self.low == self.high:
            return LEVELS // 2
        return min(LEVELS - 1, int(LEVELS * (value - self.low) / (self.high - self.low)))

    def written(self, value: float) -> str:
        """`1,204`, `3.84`."""
        return f"{value:,.{self.decimals}f}"


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of a line; with a level it is a cell, whose background may be coloured."""

    text: str
    level: int | None = None


@dataclass(frozen=True, slots=True)
class _Layout:
    """How wide a cell is, whether it has its number, and how many heads stand beside each other."""

    cell_width: int
    numbers: bool
    heads: int


def write_heat_map(heat: HeatMap, terminal: Terminal) -> None:
    """The map on standard output: coloured on a terminal that may be, as text alone everywhere else."""
    coloured = terminal.colour and terminal.stdout_is_terminal
    columns = terminal.width("stdout") or _PIPE_COLUMNS
    for line in heat_lines(heat, columns=columns, shades=not coloured):
        if coloured:
            _print_coloured(line, terminal)
        else:
            terminal.write_line("".join(piece.text for piece in line).rstrip())


def heat_lines(heat: HeatMap, *, columns: int, shades: bool) -> Iterator[tuple[Piece, ...]]:
    """Title, a line a layer in as many blocks as `columns` demand, and the legend; `shades` put blocks by numbers."""
    scale, count = Scale.of(heat), len(heat.values[0])
    layout = _lay_out(heat, scale, columns)
    yield (Piece(f"{heat.title}: {heat.quantity}"),)
    for first in range(0, count, layout.heads):
        heads = range(first, min(count, first + layout.heads))
        yield (Piece(f"layer  {heat.column}" + (f" {heads.start}–{heads.stop - 1}" if count > 1 else "")),)
        yield (Piece(_head_line(layout, heads)),)
        for layer, row in enumerate(heat.values):
            cells = (_cell(scale, row[head], layout, shades=shades) for head in heads)
            yield (Piece(f"{layer:>{_LABEL}} "), *cells)
    yield _legend(heat, scale, blocks=shades and layout.numbers)


def _lay_out(heat: HeatMap, scale: Scale, columns: int) -> _Layout:
    """Numbers when all heads fit with them, else levels, two columns wide or one."""
    count, room = len(heat.values[0]), max(1, columns - _LABEL - 1)
    number_width = 2 + max(len(scale.written(value)) for row in heat.values for value in row)
    numbers = count * number_width <= room
    cell_width = number_width if numbers else 2 if 2 * count <= room else 1
    return _Layout(cell_width, numbers, min(count, max(1, room // cell_width)))


def _head_line(layout: _Layout, heads: range) -> str:
    """The heads' numbers, right-aligned over their cells: every one, or every second, fifth, tenth where it fits."""
    needed = len(str(heads[-1])) + 1
    step = next(step for step in (1, 2, 5, 10, 20, 50, 100, 1000) if step * layout.cell_width >= needed)
    line = ""
    for head in heads[-heads.start % step :: step]:
        end = _LABEL + 1 + (head - heads.start + 1) * layout.cell_width
        line += str(head).rjust(end - len(line))
    return line


def _cell(scale: Scale, value: float, layout: _Layout, *, shades: bool) -> Piece:
    level = scale.level(value)
    if not layout.numbers:
        return Piece(f"{level:>{layout.cell_width}}", level)
    number = f"{scale.written(value):>{layout.cell_width - 2}}"
    return Piece(f" {_SHADES[level * len(_SHADES) // LEVELS]}{number}" if shades else f" {number} ", level)


def _legend(heat: HeatMap, scale: Scale, *, blocks: bool) -> tuple[Piece, ...]:
    """The least and the most with the layer and head that have them, and the steps between."""
    if scale.low == scale.high:
        return (Piece(f"all {scale.written(scale.low)}"),)
    steps = [Piece(_SHADES)] if blocks else [Piece(str(level), level) for level in range(LEVELS)]
    return Piece(f"least {_place(heat, scale, scale.low)} "), *steps, Piece(f" most {_place(heat, scale, scale.high)}")


def _place(heat: HeatMap, scale: Scale, value: float) -> str:
    layer, head = next((index, row.index(value)) for index, row in enumerate(heat.values) if value in row)
    return f"{scale.written(value)} (layer {layer}" + (f", head {head})" if len(heat.values[0]) > 1 else ")")


def _print_coloured(line: Sequence[Piece], terminal: Terminal) -> None:
    from rich.text import Text

    text = Text()
    for piece in line:
        text.append(strip_controls(piece.text, single_line=True), "" if piece.level is None else _style(piece.level))
    terminal.rich_console("stdout").print(text, soft_wrap=True)


def _style(level: int) -> str:
    return f"{'black' if level >= _FIRST_LIGHT else 'white'} on {_COLOURS[level]}"
