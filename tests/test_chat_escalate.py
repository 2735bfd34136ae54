"""The live flag in `uncomp chat`, and /set escalate on: a flagged answer is given again behind a larger budget."""

import io
from pathlib import Path

import pytest

from support.chats import Stopping, hold, make_talk
from support.curves import risky
from uncomp_cli.asking.request import PresetChoice
from uncomp_cli.cli.app import run
from uncomp_cli.cli.chat.talk import Talk
from uncomp_cli.engine.engine import Engine
from uncomp_cli.errors import DoesNotFitError
from uncomp_cli.models.runnable import LoadedModel

pytestmark = pytest.mark.usefixtures("alone")
TOWN = "The harbour was quiet and the lamps were lit. " * 30
BUDGETS = ["20%", "40%", "80%", "full"]


def chat_of(loaded: LoadedModel, top: float) -> Talk:
    """A chat whose preset flags entropies above `top`."""
    return make_talk(loaded, PresetChoice(risky(Path(), top, budget="20%")))


def written(talk: Talk) -> str:
    assert isinstance(talk.terminal.stdout, io.StringIO)
    return talk.terminal.stdout.getvalue()


def warnings(said: list[str]) -> list[str]:
    return [line for line in said if line.startswith("warning: the answer is unusually uncertain")]


def test_a_flagged_answer_is_doubted(loaded: LoadedModel) -> None:
    said = hold(chat_of(loaded, 0.01), TOWN)
    assert len(warnings(said)) == 1
    assert warnings(said)[0].endswith("wrong in 62.5 % of calibrated cases like this, 40 to 80 %")
    assert any(line.endswith(" · unsure") for line in said)
    assert warnings(hold(chat_of(loaded, 5.0), TOWN)) == []


def test_a_chat_says_what_its_document_does_not_name(loaded: LoadedModel) -> None:
    """The question's own words, which stand behind the document, do not count as its."""
    Path("town.txt").write_text(TOWN)
    talk = make_talk(loaded, PresetChoice(risky(Path(), 5.0, budget="20%", absent=0.9)))
    said = hold(talk, "/file town.txt", "Were the lamps lit?")
    assert said[-1].endswith(" · sure")
    for question in ("Who was the bishop of Bergen?", "And who was the bishop of Bergen?"):
        said = hold(talk, question)
        warning = "warning: what was asked for is probably not in the document"
        assert any(line.startswith(warning) for line in said), said
    for talked in ("Thank you.", "Say it shorter.", "And in French?", "That's not what I asked."):
        assert not any(line.startswith(warning) for line in hold(talk, talked)), talked


def test_without_a_document_nothing_is_missing_in_one(loaded: LoadedModel) -> None:
    talk = make_talk(loaded, PresetChoice(risky(Path(), 5.0, budget="20%", absent=0.9)))
    said = hold(talk, "/set escalate on", TOWN, "Who was the bishop of Bergen?")
    assert not any(line.startswith(("warning: what was asked", "try 2")) for line in said), said


def test_it_is_asked_again_and_one_answer_stays(loaded: LoadedModel) -> None:
    talk = chat_of(loaded, 0.01)
    assert hold(talk, "/set escalate on") == [
        "--escalate: an answer is written when it is final", "escalate           on",
    ]  # fmt: skip
    said = hold(talk, TOWN)
    tries = [line for line in said if line.startswith("try ")]
    assert [line.split(" · ")[0] for line in tries] == [
        f"try {number}: budget {budget}" for number, budget in enumerate(BUDGETS, start=1)
    ]
    assert "the conversation goes on with budget full; /budget 20% goes back" in said
    _, answer = talk.chat.dialogue.entries
    assert written(talk) == answer.text + "\n"
    assert str(talk.chat.session.preset.budget) == "full"
    assert talk.chat.session.stats is not None
    latest = float(tries[-1].split("entropy ")[1].split(",")[0])  # all have one rate: the one with most kept
    assert talk.chat.session.stats.signs["attention"] == pytest.approx(latest, abs=0.005)
    assert answer.ids == tuple(talk.chat.session.answer_ids)
    assert len(warnings(said)) == 1
    hold(talk, "/set escalate off", "go on")
    fresh = Engine(loaded, sampling=talk.chat.session.sampling).conversation(talk.chat.session.preset)
    list(fresh.turn(talk.chat.dialogue.messages()[:3]))
    assert tuple(fresh.answer_ids) == talk.chat.dialogue.entries[3].ids  # what was tried in between has left no trace


def test_what_is_not_flagged_is_asked_once(loaded: LoadedModel) -> None:
    talk = chat_of(loaded, 5.0)
    said = hold(talk, "/set escalate on", TOWN)
    assert not [line for line in said if line.startswith("try ")]
    assert str(talk.chat.session.preset.budget) == "20%"
    assert written(talk) == talk.chat.dialogue.entries[1].text + "\n"


def test_a_budget_that_is_refused_leaves_the_answer_there_is(
    loaded: LoadedModel,
) -> None:
    talk = chat_of(loaded, 0.01)
    hold(talk, "/set escalate on")
    turn, turns = talk.chat.session.turn, []

    def once(messages: list[object]) -> object:
        turns.append(messages)
        if len(turns) > 1:
            raise DoesNotFitError("needs about 9 MiB more, 1 are free", hint="use a smaller --budget")
        return turn(messages)

    talk.chat.session.turn = once
    said = hold(talk, TOWN)
    assert "warning: budget 40% was not tried: needs about 9 MiB more, 1 are free" in said
    assert (str(talk.chat.session.preset.budget), talk.chat.choice.budget) == ("20%", None)
    assert written(talk) == talk.chat.dialogue.entries[1].text + "\n"
    talk.chat.session.turn = turn
    assert any(line.startswith("cached ") for line in hold(talk, "/set escalate off", "go on"))


def test_ctrl_c_in_a_second_try_keeps_the_first(loaded: LoadedModel) -> None:
    talk = chat_of(loaded, 0.01)
    hold(talk, "/set escalate on")
    turn, turns = talk.chat.session.turn, []

    def pressed(messages: list[object]) -> object:
        turns.append(messages)
        if len(turns) > 1:
            talk.chat.session.stats = None
            raise KeyboardInterrupt
        return turn(messages)

    talk.chat.session.turn = pressed
    hold(talk, TOWN)
    _, answer = talk.chat.dialogue.entries
    assert not answer.interrupted
    assert written(talk) == answer.text + "\n"
    assert talk.chat.session.stats is not None
    assert (str(talk.chat.session.preset.budget), talk.chat.choice.budget) == ("20%", None)


def test_ctrl_c_in_the_first_keeps_what_there_is(loaded: LoadedModel) -> None:
    talk = chat_of(loaded, 0.01)
    hold(talk, "/set escalate on")
    turn = talk.chat.session.turn

    def stopping(messages: list[object]) -> object:
        for number, step in enumerate(turn(messages)):
            if number == 12:
                raise KeyboardInterrupt
            yield step

    talk.chat.session.turn = stopping
    said = hold(talk, TOWN)
    assert "[interrupted: what is above stays in the conversation]" in said
    assert not [line for line in said if line.startswith("try ")]
    assert talk.chat.dialogue.entries[1].interrupted
    assert written(talk) == talk.chat.dialogue.entries[1].text + "\n"


def test_escalation_needs_measured_rates(loaded: LoadedModel, capsys: pytest.CaptureFixture[str]) -> None:
    talk = make_talk(loaded)
    error, hint = hold(talk, "/set escalate on")
    assert error == "error: escalate needs measured error rates, preset unseen has none"
    assert "uncomp calibrate --risk" in hint
    assert talk.chat.escalates is False
    assert hold(talk, "/set escalate maybe")[0] == "error: escalate is 'maybe', not on or off"
    assert run(["chat", "-m", "no-such-model", "--escalate"]) == 2
    assert "--escalate needs measured error rates" in capsys.readouterr().err


def test_the_screen_shows_nothing_of_what_is_held_back(loaded: LoadedModel) -> None:
    talk = chat_of(loaded, 0.01)
    hold(talk, "/set escalate on")
    seen: list[str] = []
    assert isinstance(talk.terminal.stdout, Stopping)
    write = talk.terminal.stdout.write
    talk.terminal.stdout.write = lambda text: (seen.append(text), write(text))[1]
    hold(talk, TOWN)
    assert seen == [talk.chat.dialogue.entries[1].text, "\n"]
