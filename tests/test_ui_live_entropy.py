"""The pace line has the watched heads' entropy so far, asked for only when it is drawn."""

import io
from collections.abc import Iterator

from uncomp_cli.asking.events import Pace
from uncomp_cli.engine.records import DecodeStep
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.meter import show, watch_generation


def steps(count: int) -> Iterator[DecodeStep]:
    for index in range(count):
        ended = "length" if index == count - 1 else None
        yield DecodeStep(0, index, 1, "a", ended, 0.1 * (index + 1), 2**20)


def animated(*, stdout_is_terminal: bool = False) -> tuple[Terminal, io.StringIO]:
    """A terminal for standard error, with the answer in a pipe."""
    stream = io.StringIO()
    return Terminal(io.StringIO(), stream, stdout_is_terminal, True, False, True), stream


class Asked:
    """Says an entropy, and counts how often."""

    def __init__(self, value: float | None) -> None:
        self.value, self.times = value, 0

    def __call__(self) -> float | None:
        self.times += 1
        return self.value


def test_it_is_asked_for_as_often_as_the_line_is_drawn() -> None:
    terminal, stream = animated()
    ticks, entropy = iter([0.0, 0.0, *(0.04 * tick for tick in range(100))]), Asked(0.314)
    assert len(list(watch_generation(steps(6), terminal, entropy=entropy, clock=lambda: next(ticks)))) == 6
    assert "decode 10.0 tok/s · 1 tok · KV 1.0 MiB · entropy 0.31" in stream.getvalue()
    assert 0 < entropy.times == stream.getvalue().count("entropy") < 6


def test_nothing_is_said_of_what_is_not_known() -> None:
    terminal, stream = animated()
    list(watch_generation(steps(3), terminal, entropy=Asked(None)))
    assert "1 tok · KV 1.0 MiB" in stream.getvalue()
    assert "entropy" not in stream.getvalue()


def test_it_is_not_asked_for_where_no_line_is_drawn() -> None:
    entropy = Asked(0.3)
    terminal, stream = animated(stdout_is_terminal=True)
    list(watch_generation(steps(3), terminal, entropy=entropy))
    assert (entropy.times, stream.getvalue()) == (0, "")


def test_a_single_row_has_it_beside_the_pace() -> None:
    terminal, stream = animated()
    paces = (Pace(step.index + 1, step.elapsed_s, 2**20, entropy=Asked(0.5)) for step in steps(4))
    show(paces, terminal)
    assert "KV 1.0 MiB · entropy 0.50" in stream.getvalue()
