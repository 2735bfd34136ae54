"""The pace line has the watched heads' entropy so far, asked for only when it is drawn."""

import io
import time
from collections.abc import Callable, Generator, Iterator

from uncomp_cli.asking.events import Pace
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.meter import Display, show


def paces(count: int, entropy: Callable[[], float | None]) -> Iterator[Pace]:
    return (Pace(index + 1, 0.1 * (index + 1), 2**20, entropy=entropy) for index in range(count))


def drawn(terminal: Terminal, found: Iterator[Pace], clock: Callable[[], float] = time.monotonic) -> None:
    with Display(terminal, clock=clock) as display:
        for pace in found:
            display.show(pace)


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
    drawn(terminal, paces(6, entropy), lambda: next(ticks))
    assert "decode 10.0 tok/s · 1 tok · KV 1.0 MiB · entropy 0.31" in stream.getvalue()
    assert 0 < entropy.times == stream.getvalue().count("entropy") < 6


def test_nothing_is_said_of_what_is_not_known() -> None:
    terminal, stream = animated()
    drawn(terminal, paces(3, Asked(None)))
    assert "1 tok · KV 1.0 MiB" in stream.getvalue()
    assert "entropy" not in stream.getvalue()


def test_it_is_not_asked_for_where_no_line_is_drawn() -> None:
    entropy = Asked(0.3)
    terminal, stream = animated(stdout_is_terminal=True)
    drawn(terminal, paces(3, entropy))
    assert (entropy.times, stream.getvalue()) == (0, "")


def test_a_work_that_is_driven_shows_it_too() -> None:
    def work() -> Generator[Pace, None, int]:
        yield from paces(4, Asked(0.5))
        return 7

    terminal, stream = animated()
    assert show(work(), terminal) == 7
    assert "KV 1.0 MiB · entropy 0.50" in stream.getvalue()
