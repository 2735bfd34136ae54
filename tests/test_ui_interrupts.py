"""A signal raises in armed work alone, and once; everywhere else it is kept."""

import os
import signal
from collections.abc import Iterator

import pytest

from uncomp_cli.ui.interrupts import Interrupts


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
