"""The bridge between a forward pass that cannot pause and a stream of records."""

import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import closing

import pytest

from uncomp_cli.engine.forward.thread import stream

Emit = Callable[[int], None]


def count_to(total: int) -> Callable[[Emit], str]:
    def work(emit: Emit) -> str:
        for i in range(total):
            emit(i)
        return "done"

    return work


def result_of(records: Generator[int, None, str]) -> tuple[list[int], str]:
    seen = []
    while True:
        try:
            seen.append(next(records))
        except StopIteration as end:
            return seen, end.value


def alive() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "uncomp-forward"]


@pytest.mark.parametrize("total", [0, 1, 50])
def test_records_in_order_and_the_result(total: int) -> None:
    assert result_of(stream(count_to(total))) == (list(range(total)), "done")
    assert not alive()


def test_none_is_a_record_and_a_result() -> None:
    def work(emit: Callable[[None], None]) -> None:
        emit(None)

    assert list(stream(work)) == [None]


def test_the_work_runs_beside_its_consumer() -> None:
    threads: list[int] = []

    def work(emit: Emit) -> str:
        threads.append(threading.get_ident())
        return "x"

    assert result_of(stream(work)) == ([], "x")
    assert threads != [threading.get_ident()]


@pytest.mark.parametrize("error", [ValueError("bad"), KeyboardInterrupt(), MemoryError("full")], ids=repr)
def test_errors_pass_through_after_the_records(error: BaseException) -> None:
    def work(emit: Emit) -> str:
        emit(7)
        raise error

    records = stream(work)
    assert next(records) == 7
    with pytest.raises(type(error)) as caught:
        next(records)
    assert caught.value is error
    assert not alive()


def endless(reached: list[int]) -> Callable[[Emit], str]:
    def work(emit: Emit) -> str:
        for i in range(10_000):
            reached.append(i)
            emit(i)
            time.sleep(0.001)
        return "never"

    return work


def test_closing_stops_the_work_at_its_next_record() -> None:
    reached: list[int] = []
    with closing(stream(endless(reached))) as records:
        assert [next(records) for _ in range(3)] == [0, 1, 2]
    assert not alive()
    assert len(reached) < 2000


def test_nothing_starts_before_it_is_asked_for() -> None:
    reached: list[int] = []
    stream(endless(reached)).close()
    assert reached == []


def test_ctrl_c_while_waiting_for_a_record() -> None:
    """A signal reaches the consumer while it waits; the work ends at its next record."""
    reached: list[int] = []
    main = threading.get_ident()

    def work(emit: Emit) -> str:
        time.sleep(0.02)
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.05)
        reached.append(1)
        emit(1)
        reached.append(2)
        return "x"

    with pytest.raises(KeyboardInterrupt):
        list(stream(work))
    assert not alive()
    assert reached == [1]


def test_an_interrupt_of_the_consumer_stops_the_work() -> None:
    reached: list[int] = []
    records = stream(endless(reached))
    next(records)
    with pytest.raises(KeyboardInterrupt):
        records.throw(KeyboardInterrupt())
    assert not alive()
    assert len(reached) < 2000


def test_ctrl_c_while_the_thread_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work has begun but nobody waits for it: it must still end."""
    reached: list[int] = []
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(stream(endless(reached)))
    assert not alive()
    assert len(reached) < 2000


def test_ctrl_c_twice_waits_for_the_work_all_the_same() -> None:
    """The second comes while the first waits for the forward to end: nothing may go on behind the caller's back."""
    reached: list[int] = []
    main = threading.get_ident()

    def work(emit: Emit) -> str:
        for _ in range(3):
            time.sleep(0.03)
            signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.05)
        reached.append(1)
        emit(1)
        reached.append(2)
        return "x"

    with pytest.raises(KeyboardInterrupt):
        list(stream(work))
    assert reached == [1]
    assert not alive()
    time.sleep(0.1)
    assert reached == [1]


def test_ctrl_c_while_a_closed_stream_ends_is_not_lost() -> None:
    reached: list[int] = []
    main = threading.get_ident()

    def work(emit: Emit) -> str:
        emit(0)
        time.sleep(0.03)
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.03)
        reached.append(1)
        return "x"

    records = stream(work)
    next(records)
    with pytest.raises(KeyboardInterrupt):
        records.close()
    assert reached == [1]
