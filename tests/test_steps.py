"""steps.py: what is left to do is judged and kept a piece at a time, and how far that is can be shown."""

from collections.abc import Generator
from io import StringIO
from pathlib import Path

import pytest

from uncomp_cli.steps import Progress, finished, resume
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.meter import show


def test_every_piece_is_kept_before_the_next_is_begun() -> None:
    events: list[str] = []

    def judge(work: str) -> str:
        events.append(f"judge {work}")
        return work.upper()

    steps = resume("abc", judge, lambda made: events.append(f"keep {made}"), label=lambda work: f"piece {work}")
    seen = [next(steps)]
    assert events == []
    seen += [next(steps), next(steps)]
    steps.close()
    assert events == ["judge a", "keep A", "judge b", "keep B"]
    assert [step.label for step in seen] == ["piece a", "piece b", "piece c"]


def test_the_fraction_is_of_the_cost() -> None:
    steps = list(resume([3, 1, 4], str, str, label=str, cost=float, done="that is all"))
    assert [(step.fraction, step.rate) for step in steps] == [
        (0, "0 of 3"),
        (3 / 8, "1 of 3"),
        (4 / 8, "2 of 3"),
        (1, "3 of 3"),
    ]
    assert steps[-1].label == "that is all"


@pytest.mark.parametrize("todo", [[], [0.0, 0.0]])
def test_nothing_to_do_and_nothing_that_costs_end(todo: list[float]) -> None:
    steps = list(resume(todo, str, str, label=str, cost=float))
    assert [step.fraction for step in steps] == [0] * len(todo) + [1]


def work(*, stopped: bool = False) -> Generator[Progress, None, str]:
    yield Progress("work", 0.5, "1 of 2", 3.0)
    if stopped:
        raise KeyboardInterrupt
    return "result"


def test_finished_returns_what_the_steps_return() -> None:
    assert finished(work()) == "result"


def terminal() -> tuple[Terminal, StringIO]:
    said = StringIO()
    streams = {"stdout": StringIO(), "stderr": said}
    return Terminal(**streams, stdout_is_terminal=False, stderr_is_terminal=False, colour=False, animated=False), said


def test_show_returns_what_the_steps_return() -> None:
    assert show(work(), terminal()[0]) == "result"


@pytest.mark.parametrize("there", [True, False])
def test_ctrl_c_says_where_the_results_are(tmp_path: Path, *, there: bool) -> None:
    kept = tmp_path / "run.jsonl"
    if there:
        kept.touch()
    screen, said = terminal()
    with pytest.raises(KeyboardInterrupt):
        show(work(stopped=True), screen, kept=kept)
    note = f"what was measured is in {kept}; the same command goes on from there\n"
    assert said.getvalue() == (note if there else "")


def test_show_closes_steps_that_it_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []

    def steps() -> Generator[Progress, None, None]:
        try:
            yield Progress("work", None, None, 0.0)
        finally:
            closed.append("closed")

    screen, _ = terminal()
    monkeypatch.setattr("uncomp_cli.ui.meter.Display._show_progress", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        show(steps(), screen)
    assert closed == ["closed"]
