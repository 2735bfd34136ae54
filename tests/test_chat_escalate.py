"""The live flag in `uncomp chat`, and /set escalate on: a flagged answer is given again behind a larger budget."""

import io
from pathlib import Path

import pytest

from support.chats import Stopping, hold, make_chat
from support.curves import risky
from uncomp_cli.cli.app import run
from uncomp_cli.cli.chat.chat_preset import PresetChoice
from uncomp_cli.cli.chat.state import Chat
from uncomp_cli.engine.context.chat import ChatSession
from uncomp_cli.errors import DoesNotFitError
from uncomp_cli.models.loading import LoadedModel

TOWN = "The harbour was quiet and the lamps were lit. " * 30
BUDGETS = ["20%", "40%", "80%", "full"]


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def chat_of(loaded: LoadedModel, top: float) -> Chat:
    """A chat whose preset flags entropies above `top`."""
    return make_chat(loaded, PresetChoice(risky(Path(), top, budget="20%")))


def written(chat: Chat) -> str:
    assert isinstance(chat.terminal.stdout, io.StringIO)
    return chat.terminal.stdout.getvalue()


def warnings(said: list[str]) -> list[str]:
    return [line for line in said if line.startswith("warning: the retrieval heads are unusually uncertain")]


def test_a_flagged_answer_is_doubted(loaded: LoadedModel) -> None:
    said = hold(chat_of(loaded, 0.01), TOWN)
    assert len(warnings(said)) == 1
    assert warnings(said)[0].endswith("wrong in 62.5 % of calibrated cases like this, 40 to 80 %")
    assert any(" · entropy 0." in line for line in said)
    assert warnings(hold(chat_of(loaded, 5.0), TOWN)) == []


def test_it_is_asked_again_and_one_answer_stays(loaded: LoadedModel) -> None:
    chat = chat_of(loaded, 0.01)
    assert hold(chat, "/set escalate on") == [
        "--escalate: an answer is written when it is final", "escalate           on",
    ]  # fmt: skip
    said = hold(chat, TOWN)
    tries = [line for line in said if line.startswith("try ")]
    assert [line.split(" · ")[0] for line in tries] == [
        f"try {number}: budget {budget}" for number, budget in enumerate(BUDGETS, start=1)
    ]
    assert "the conversation goes on with budget full; /budget 20% goes back" in said
    _, answer = chat.dialogue.entries
    assert written(chat) == answer.text + "\n"
    assert str(chat.session.preset.budget) == "full"
    assert chat.session.stats is not None
    latest = float(tries[-1].split("entropy ")[1].split(",")[0])  # all have one rate: the one with most kept
    assert chat.session.stats.attention_entropy == pytest.approx(latest, abs=0.005)
    assert answer.ids == tuple(chat.session.answer_ids)
    assert len(warnings(said)) == 1
    hold(chat, "/set escalate off", "go on")
    fresh = ChatSession(loaded, chat.session.preset, chat.session.sampling)
    list(fresh.turn(chat.dialogue.messages()[:3]))
    assert tuple(fresh.answer_ids) == chat.dialogue.entries[3].ids  # what was tried in between has left no trace


def test_what_is_not_flagged_is_asked_once(loaded: LoadedModel) -> None:
    chat = chat_of(loaded, 5.0)
    said = hold(chat, "/set escalate on", TOWN)
    assert not [line for line in said if line.startswith("try ")]
    assert str(chat.session.preset.budget) == "20%"
    assert written(chat) == chat.dialogue.entries[1].text + "\n"


def test_a_budget_that_is_refused_leaves_the_answer_there_is(
    loaded: LoadedModel,
) -> None:
    chat = chat_of(loaded, 0.01)
    hold(chat, "/set escalate on")
    turn, turns = chat.session.turn, []

    def once(messages: list[object]) -> object:
        turns.append(messages)
        if len(turns) > 1:
            raise DoesNotFitError("needs about 9 MiB more, 1 are free", hint="use a smaller --budget")
        return turn(messages)

    chat.session.turn = once
    said = hold(chat, TOWN)
    assert "warning: budget 40% was not tried: needs about 9 MiB more, 1 are free" in said
    assert (str(chat.session.preset.budget), chat.choice.budget) == ("20%", None)
    assert written(chat) == chat.dialogue.entries[1].text + "\n"
    chat.session.turn = turn
    assert any(line.startswith("cached ") for line in hold(chat, "/set escalate off", "go on"))


def test_ctrl_c_in_a_second_try_keeps_the_first(loaded: LoadedModel) -> None:
    chat = chat_of(loaded, 0.01)
    hold(chat, "/set escalate on")
    turn, turns = chat.session.turn, []

    def pressed(messages: list[object]) -> object:
        turns.append(messages)
        if len(turns) > 1:
            chat.session.stats = None
            raise KeyboardInterrupt
        return turn(messages)

    chat.session.turn = pressed
    hold(chat, TOWN)
    _, answer = chat.dialogue.entries
    assert not answer.interrupted
    assert written(chat) == answer.text + "\n"
    assert chat.session.stats is not None
    assert (str(chat.session.preset.budget), chat.choice.budget) == ("20%", None)


def test_ctrl_c_in_the_first_keeps_what_there_is(loaded: LoadedModel) -> None:
    chat = chat_of(loaded, 0.01)
    hold(chat, "/set escalate on")
    turn = chat.session.turn

    def stopping(messages: list[object]) -> object:
        for number, step in enumerate(turn(messages)):
            if number == 12:
                raise KeyboardInterrupt
            yield step

    chat.session.turn = stopping
    said = hold(chat, TOWN)
    assert "[interrupted: what is above stays in the conversation]" in said
    assert not [line for line in said if line.startswith("try ")]
    assert chat.dialogue.entries[1].interrupted
    assert written(chat) == chat.dialogue.entries[1].text + "\n"


def test_escalation_needs_measured_rates(loaded: LoadedModel, capsys: pytest.CaptureFixture[str]) -> None:
    chat = make_chat(loaded)
    error, hint = hold(chat, "/set escalate on")
    assert error == "error: escalate needs measured error rates, preset live has none"
    assert "uncomp calibrate --risk" in hint
    assert chat.escalates is False
    assert hold(chat, "/set escalate maybe")[0] == "error: escalate is 'maybe', not on or off"
    assert run(["chat", "-m", "no-such-model", "--escalate"]) == 2
    assert "--escalate needs measured error rates" in capsys.readouterr().err


def test_the_screen_shows_nothing_of_what_is_held_back(loaded: LoadedModel) -> None:
    chat = chat_of(loaded, 0.01)
    hold(chat, "/set escalate on")
    seen: list[str] = []
    assert isinstance(chat.terminal.stdout, Stopping)
    write = chat.terminal.stdout.write
    chat.terminal.stdout.write = lambda text: (seen.append(text), write(text))[1]
    hold(chat, TOWN)
    assert seen == [chat.dialogue.entries[1].text, "\n"]
