"""Lines every ten seconds, one-line JSON and stripped control characters: no terminal needed."""

import io
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from uncomp_cli.engine.records import PrefillStep
from uncomp_cli.ui.console import Terminal, strip_controls
from uncomp_cli.ui.meter import Display


@pytest.fixture
def terminal() -> Terminal:
    return Terminal(
        stdout=io.StringIO(), stderr=io.StringIO(), stdout_is_terminal=False, stderr_is_terminal=False,
        colour=True, animated=False,
    )  # fmt: skip


class Clock:
    """A clock that jumps when told to."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def prefill(clock: Clock) -> Iterator[PrefillStep]:
    for layer in range(1, 31):
        clock.now_s = float(layer)
        yield PrefillStep(layer, 30, 7500, float(layer), 0)


def text_of(terminal: Terminal) -> str:
    assert isinstance(terminal.stderr, io.StringIO)
    return terminal.stderr.getvalue()


def test_one_line_every_ten_seconds(terminal: Terminal) -> None:
    clock = Clock()
    with Display(terminal, clock=clock) as display:
        for step in prefill(clock):
            display.show(step)
    assert text_of(terminal).splitlines() == [
        "prefill 7,500 tok 33 % · 250 tok/s · 20.0 s left",
        "prefill 7,500 tok 67 % · 250 tok/s · 10.0 s left",
        "prefill 7,500 tok 100 % · 250 tok/s · 0.0 s left",
    ]


def test_quiet_shows_nothing_but_warnings(terminal: Terminal) -> None:
    clock, quiet = Clock(), replace(terminal, quiet=True)
    with Display(quiet, clock=clock) as display:
        for step in prefill(clock):
            display.show(step)
    quiet.note("a remark")
    quiet.warn("a warning")
    assert text_of(quiet) == "warning: a warning\n"


def test_json_is_one_line_of_utf8(terminal: Terminal) -> None:
    terminal.write_json({"answer": "é\n7"})
    assert isinstance(terminal.stdout, io.StringIO)
    written = terminal.stdout.getvalue()
    assert written.count("\n") == 1
    assert json.loads(written) == {"answer": "é\n7"}
    assert "é" in written


def test_controls() -> None:
    assert strip_controls("a\x00\x1b[1m\tb\r\n\x7f\x9bc\u00e9") == "a[1m\tb\nc\u00e9"
    assert strip_controls("a\tb\nc", single_line=True) == "a b c"
