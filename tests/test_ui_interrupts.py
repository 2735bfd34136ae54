"""A signal raises in armed work alone, and once; everywhere else it is kept."""

import io
import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from rich.console import Console

from uncomp_cli.steps import Progress, Working
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.interrupts import HELD, Interrupts
from uncomp_cli.ui.meter import Display


@pytest.fixture
def interrupts() -> Iterator[Interrupts]:
    with Interrupts() as interrupts:
        yield interrupts


def press() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def test_a_signal_is_kept_where_nothing_is_armed(interrupts: Interrupts) -> None:
    press()
    press()
    assert interrupts.take() == signal.SIGINT
    assert interrupts.take() is None


def test_armed_work_is_broken_off_once_however_often_it_comes(interrupts: Interrupts) -> None:
    dealt_with: list[bool] = []

    @interrupts.armed()
    def work() -> None:
        try:
            press()
        finally:
            press()
            dealt_with.append(True)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert dealt_with == [True]
    assert interrupts.take() == signal.SIGINT


def test_what_was_kept_breaks_off_work_before_it_begins(interrupts: Interrupts) -> None:
    press()
    with pytest.raises(KeyboardInterrupt), interrupts.armed():
        raise AssertionError("it began")
    with interrupts.armed():
        pass
    press()
    assert interrupts.take() == signal.SIGINT


def test_whoever_waits_is_woken(interrupts: Interrupts) -> None:
    woken: list[int] = []
    interrupts.wake = lambda: woken.append(interrupts.take() or 0)
    press()
    assert woken == [signal.SIGINT]


def test_a_signal_that_does_more_than_interrupt_has_done_it_when_it_is_kept() -> None:
    ended: list[int] = []

    def end(number: int, _: object) -> None:
        signal.signal(number, signal.SIG_DFL)  # as the program's own: a second one ends at once
        ended.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, end)
    try:
        with Interrupts() as interrupts:
            os.kill(os.getpid(), signal.SIGTERM)
            assert interrupts.take() == signal.SIGTERM
        assert ended == [signal.SIGTERM]
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


def test_afterwards_all_is_as_it_was_and_what_is_ignored_stays_so() -> None:
    before, ignored = signal.getsignal(signal.SIGINT), signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interrupts.take() is None
        assert signal.getsignal(signal.SIGINT) is before
        with pytest.raises(KeyboardInterrupt):
            press()
    finally:
        signal.signal(signal.SIGHUP, ignored)


@pytest.fixture
def waits() -> Iterator[None]:
    """Ctrl-C as the program has it from its start."""
    before = signal.signal(signal.SIGINT, HELD.behind(signal.default_int_handler))
    yield
    signal.signal(signal.SIGINT, before)


def test_held_steps_are_done_whole(waits: None) -> None:
    done: list[int] = []

    def work() -> None:
        with HELD:
            with HELD:
                press()
                press()
                done.append(1)
            done.append(2)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done == [1, 2]
    with pytest.raises(KeyboardInterrupt):
        press()
    with Interrupts() as interrupts:
        with pytest.raises(KeyboardInterrupt):
            interrupts.armed()(work)()
        assert done == [1, 2, 1, 2]
        work()
        assert interrupts.take() == signal.SIGINT


def test_what_ends_the_program_is_not_lost_to_a_ctrl_c_in_the_same_held_steps(waits: None) -> None:
    came: list[int] = []
    before = signal.signal(signal.SIGHUP, HELD.behind(lambda number, _: came.append(number)))
    try:
        with HELD:
            os.kill(os.getpid(), signal.SIGHUP)
            press()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert came == [signal.SIGHUP]


def test_what_ends_the_program_is_heard_in_held_steps_when_it_comes_again(waits: None) -> None:
    came: list[str] = []
    before = signal.signal(signal.SIGTERM, HELD.behind(lambda *_: came.append("ended")))
    try:
        with HELD:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
                came.append("sent")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert came == ["sent", "ended", "sent", "ended"]


@pytest.mark.parametrize("step", [Working("reading"), Progress("reading", 0.5, "", 1.0)], ids=["spinner", "bar"])
def test_ctrl_c_while_something_is_first_drawn_leaves_no_half_of_it(
    waits: None, monkeypatch: pytest.MonkeyPatch, step: Any
) -> None:
    shows: Callable[..., bool] = Console.show_cursor

    def pressed(console: Console, show: bool = True) -> bool:
        if not show:  # the first thing that is done to the terminal
            press()
        return shows(console, show)

    monkeypatch.setattr(Console, "show_cursor", pressed)
    out = Terminal(io.StringIO(), io.StringIO(), True, True, True, True)
    with pytest.raises(KeyboardInterrupt), Display(out) as display:
        display.show(step)
    assert isinstance(out.stderr, io.StringIO)
    assert out.stderr.getvalue().rfind("\x1b[?25l") < out.stderr.getvalue().rfind("\x1b[?25h")
