"""A chat as a library, without a terminal: which events a turn is, and what stays when it is stopped or fails."""

from dataclasses import replace
from pathlib import Path

import pytest

from support.chats import GREEDY
from uncomp_cli.asking.chat import Chat
from uncomp_cli.asking.events import Done, Event, Noted, Pace, Piece, Stopped
from uncomp_cli.asking.request import CHAT_CHOICE
from uncomp_cli.budget.presets import preset
from uncomp_cli.documents.collection import Document
from uncomp_cli.engine.engine import Engine
from uncomp_cli.errors import DoesNotFitError, UsageError
from uncomp_cli.models.runnable import LoadedModel
from uncomp_cli.steps import Progress

NOTES = Document("notes.txt", "\nalpha\nbeta\ngamma\n", "11")


@pytest.fixture
def chat(loaded: LoadedModel) -> Chat:
    return Chat(Engine(loaded, sampling=GREEDY).conversation(preset("live", scorer="distinct")))


def kinds(events: list[Event]) -> list[type]:
    """The kinds of events, neighbours of one kind once."""
    found: list[type] = []
    for event in events:
        kind = type(event)
        if [kind] != found[-1:]:
            found.append(kind)
    return found


def test_a_turn_is_progress_pieces_and_the_answer(chat: Chat) -> None:
    events = list(chat.say("hello"))
    assert kinds(events)[0] is Progress
    assert set(kinds(events)[1:-1]) == {Pace, Piece}
    *_, done = events
    assert isinstance(done, Done)
    assert done.text == "".join(event.text for event in events if isinstance(event, Piece))
    assert (done.turn.question, done.text) == tuple(entry.text for entry in chat.dialogue.entries)
    assert done.stats == chat.session.stats
    assert len(done.ids) == GREEDY.max_new_tokens


def test_documents_are_read_ahead_and_are_part_of_the_question_when_it_is_answered(chat: Chat) -> None:
    *_, read = list(chat.add([NOTES]))
    assert isinstance(read, Noted)
    assert read.text.startswith("notes.txt: ")
    assert list(chat.add([NOTES])) == [Noted("notes.txt is part of the conversation already")]
    for event in chat.say("what?"):
        if isinstance(event, Done):
            assert chat.dialogue.pending == []  # whatever becomes of who shows it
            assert (event.turn.question, chat.draft) == ("what?", "")
    assert [page.path for page in chat.dialogue.pages()] == ["notes.txt"]
    assert {found.path for found in chat.evidence()} == {"notes.txt"}
    assert chat.kept_shares() == {"notes.txt": 1.0}
    chat.undo()
    assert [document.path for document in chat.dialogue.pending] == ["notes.txt"]
    with pytest.raises(UsageError, match="no answer to what was read last"):
        chat.evidence()


def test_ctrl_c_that_is_thrown_in_keeps_what_was_said(chat: Chat) -> None:
    events = chat.say("hello")
    pieces: list[str] = []
    while len(pieces) < 3:
        event = next(events)
        pieces += [event.text] if isinstance(event, Piece) else []
    done = events.throw(KeyboardInterrupt())
    assert isinstance(done, Done)
    assert (done.text, done.stats.finish_reason) == ("".join(pieces), "interrupted")
    assert chat.dialogue.entries[-1].interrupted
    assert list(events) == []


def test_ctrl_c_before_the_answer_leaves_the_message_as_the_draft(chat: Chat) -> None:
    events = chat.say("hello")
    assert isinstance(next(events), Progress)
    assert events.throw(KeyboardInterrupt()) == Stopped()
    assert list(events) == []
    assert (chat.draft, chat.dialogue.entries) == ("hello", [])


def test_another_preset_is_used_at_once_or_not_at_all(chat: Chat) -> None:
    list(chat.say("hello there, this is a question of some length"))
    *_, read = list(chat.use(replace(CHAT_CHOICE, name="full")))
    assert isinstance(read, Noted)
    assert read.text.startswith("preset full · budget full · policy full · read ")
    with pytest.raises(DoesNotFitError):
        list(chat.use(replace(CHAT_CHOICE, name="live", budget="3KiB")))
    assert (chat.session.preset.name, chat.choice.name) == ("full", "full")


def test_what_is_left_early_changes_nothing(chat: Chat) -> None:
    list(chat.say("hello there, this is a question of some length"))
    before, preset_before, choice = list(chat.dialogue.entries), chat.session.preset, chat.choice
    for events in (chat.add([NOTES]), chat.use(replace(CHAT_CHOICE, name="full")), chat.say("and?")):
        assert isinstance(next(events), Progress)
        events.close()
        assert (chat.dialogue.entries, chat.dialogue.pending) == (before, [])
        assert (chat.session.preset, chat.choice) == (preset_before, choice)
    assert [type(event) for event in chat.say("and?")][-1] is Done


def test_what_is_set_is_checked(chat: Chat) -> None:
    chat.set(recall=False)
    chat.set(temperature=0.5)
    assert (chat.session.sampling, chat.session.recalls) == (replace(GREEDY, temperature=0.5), False)
    with pytest.raises(UsageError, match="top-p is 7"):
        chat.set(top_p=7.0, recall=True)
    with pytest.raises(UsageError, match="escalate needs measured error rates"):
        chat.set(escalate=True)
    assert (chat.session.recalls, chat.escalates) == (False, False)


def test_a_retry_that_fails_leaves_the_earlier_answer(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    list(chat.say("hello"))
    before, sampling = chat.dialogue.entries, chat.session.sampling

    def refuses(_: object) -> object:
        raise DoesNotFitError("too much")

    monkeypatch.setattr(chat.session, "turn", refuses)
    with pytest.raises(DoesNotFitError, match="too much"):
        list(chat.retry())
    assert chat.dialogue.entries is before
    assert chat.session.sampling == sampling


def test_a_conversation_goes_on_from_its_file(chat: Chat, tmp_path: Path) -> None:
    list(chat.add([NOTES]))
    list(chat.say("what?"))
    pinned = chat.pin("notes.txt:2")
    chat.save(tmp_path / "talk.json")
    other = Chat(Engine(chat.loaded, sampling=GREEDY).conversation(preset("live", scorer="distinct")))
    assert (chat.transcript().preset, chat.transcript().budget) == ("live", "20%")
    assert other.restore(chat.transcript()) == 0
    assert (other.dialogue.entries, other.dialogue.pins) == (chat.dialogue.entries, [pinned])
    list(chat.say("and?"))
    list(other.say("and?"))
    assert other.dialogue.entries[-1].ids == chat.dialogue.entries[-1].ids
    with pytest.raises(UsageError, match="this chat did not write it"):
        other.save(tmp_path / "talk.json")
