"""The ask pipeline as a library: the events of a question about documents, without a terminal."""

from pathlib import Path
from typing import Any

import pytest
import torch

from uncomp_cli.asking.events import (
    Began,
    Done,
    Event,
    Noted,
    Pace,
    Piece,
    Planned,
    Refused,
    Spoken,
    Stopped,
    Thought,
)
from uncomp_cli.asking.pipeline import ask, run
from uncomp_cli.asking.request import ModelChoice, PresetChoice, Request
from uncomp_cli.asking.startup import Growth
from uncomp_cli.budget.amount import Budget
from uncomp_cli.budget.presets import preset
from uncomp_cli.config import SamplingConfig
from uncomp_cli.documents.collection import DocumentSet, read_documents
from uncomp_cli.engine.engine import Engine
from uncomp_cli.errors import UsageError
from uncomp_cli.models.loading import load_model
from uncomp_cli.steps import Progress, Working

SHORT = SamplingConfig(max_new_tokens=6)
TEXTS = {
    "town.txt": "The harbour was quiet. " * 40,
    "hill.txt": "A garden on the hill. " * 30,
    "long.txt": "Sea. " * 2000,
}


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Engine:
    return Engine(load_model(str(tiny_model)), sampling=SHORT)


@pytest.fixture
def documents(tmp_path: Path) -> DocumentSet:
    for name, text in TEXTS.items():
        (tmp_path / name).write_text(text)
    return read_documents([str(tmp_path / "town.txt"), str(tmp_path / "hill.txt")])


def kinds(events: list[Event]) -> list[type]:
    """What happened, with runs of one kind taken together and the work between left out."""
    told = [type(event) for event in events if not isinstance(event, (Working, Progress, Pace))]
    return [kind for at, kind in enumerate(told) if at == 0 or told[at - 1] is not kind]


def asked(engine: Engine, documents: DocumentSet, *questions: str, **how: Any) -> list[Event]:
    request = Request(sampling=SHORT, **how)
    return list(ask(engine, documents, questions, preset("live", budget="30%"), request))


def test_questions_have_their_turns_in_order(engine: Engine, documents: DocumentSet) -> None:
    events = asked(engine, documents, "Where?", "When?")
    assert kinds(events) == [Planned, Began, Piece, Done, Began, Piece, Done]
    done = [event for event in events if isinstance(event, Done)]
    assert [event.turn.question for event in done] == ["Where?", "When?"]
    pieces = "".join(event.text for event in events if isinstance(event, Piece))
    assert pieces == "".join(event.text for event in done)
    assert [event.record()["answer"] for event in done] == [event.text for event in done]
    assert all(len(event.ids) == 6 == event.stats.completion_tokens for event in done)
    (planned,) = [event for event in events if isinstance(event, Planned)]
    assert planned.plan.seq_len > 1000
    assert planned.lines[0].startswith("budget 30% (live, ")


def test_every_document_by_itself(engine: Engine, documents: DocumentSet) -> None:
    done = [event for event in asked(engine, documents, "Where?", each=True) if isinstance(event, Done)]
    assert [event.turn.document for event in done] == [document.path for document in documents.documents]


def test_what_is_refused_is_an_event_and_the_others_are_answered(engine: Engine, documents: DocumentSet) -> None:
    events = asked(engine, documents, "Where?", "why " * 2000, "When?")
    assert kinds(events) == [Planned, Began, Piece, Done, Refused, Began, Piece, Done]
    (refused,) = [event for event in events if isinstance(event, Refused)]
    assert refused.title == "question 2 of 3"
    assert [record["error"]["exit_code"] for record in refused.records()] == [3]


def pressed(events: Any, when: type) -> list[Event]:
    """All events, with Ctrl-C pressed while the first of a kind is being told."""
    found: list[Event] = []
    for event in events:
        found.append(event)
        if isinstance(event, when):
            break
    found.append(events.throw(KeyboardInterrupt()))
    return [*found, *events]


def test_ctrl_c_in_an_answer_keeps_what_there_is_of_it(engine: Engine, documents: DocumentSet) -> None:
    how = Request(sampling=SHORT)
    events = pressed(ask(engine, documents, ["Where?", "When?"], preset("live", budget="30%"), how), Piece)
    assert kinds(events)[-1] is Stopped
    assert [event.stats.finish_reason for event in events if isinstance(event, Done)] == ["interrupted"] * 2


def test_ctrl_c_before_anything_was_said_goes_on(engine: Engine, documents: DocumentSet) -> None:
    events = ask(engine, documents, ["Where?"], preset("live", budget="30%"), Request(sampling=SHORT))
    with pytest.raises(KeyboardInterrupt):
        pressed(events, Planned)


def test_a_request_is_all_that_is_needed(tiny_model: Path, tmp_path: Path, documents: DocumentSet) -> None:
    request = Request(
        paths=(str(tmp_path / "town.txt"),),
        questions=("Where?",),
        model=ModelChoice(str(tiny_model)),
        preset=PresetChoice(budget=Budget.parse("30%")),
        sampling=SHORT,
    )
    events = list(run(request))
    assert kinds(events) == [Noted, Planned, Began, Piece, Done]
    assert [event.at for event in events if isinstance(event, Working)] == [
        "preparing", None, "measuring", None, f"loading {tiny_model}", None,
    ]  # fmt: skip


def test_a_slip_is_found_before_a_document_is_read() -> None:
    with pytest.raises(UsageError, match="no question was given"):
        next(run(Request(paths=("nowhere.txt",))))


def test_loading_is_told_in_bytes_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    resident = iter([2**30, 2**30, 2**30 + 310 * 2**20, 3 * 2**30])
    monkeypatch.setattr("uncomp_cli.engine.spend.memory.resident_bytes", lambda device: next(resident))
    growth = Growth(513 * 2**20)
    assert growth.text() == ""
    growth.begin(torch.device("cpu"))
    assert [growth.text() for _ in range(3)] == ["", "310 MiB of 513 MiB", "513 MiB of 513 MiB"]


def test_a_loaded_model_was_told_where_its_weights_begin(tiny_model: Path) -> None:
    begun: list[torch.device] = []
    load_model(str(tiny_model), begin=begun.append)
    assert begun == [torch.device("cpu")]


@pytest.mark.parametrize("size", [1, 3, 100])
@pytest.mark.parametrize(
    ("text", "thinks", "said", "thought"),
    [
        ("hello", False, "hello", ""),
        ("<think>a < b</thin</think>\n\nAda", False, "Ada", "a < b</thin\n"),
        (" \n<think>not done", False, "", "not done\n"),
        ("<thin ice>", False, "<thin ice>", ""),
        ("of <think>it</think>", False, "of <think>it</think>", ""),
        ("<think></think>Yes <", False, "Yes <", "\n"),
        ("so</think> Ada", True, "Ada", "so\n"),
        ("", False, "", ""),
    ],
)
def test_thoughts_are_no_part_of_what_is_said(text: str, thinks: bool, said: str, thought: str, size: int) -> None:
    spoken, events = Spoken(thinks=thinks), list[Piece | Thought]()
    for at in range(0, len(text), size):
        events += spoken.push(text[at : at + size])
    events += spoken.rest()
    assert "".join(each.text for each in events if isinstance(each, Piece)) == said
    assert "".join(each.text for each in events if isinstance(each, Thought)).rstrip("\n") == thought.rstrip("\n")
