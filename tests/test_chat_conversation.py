"""The turns of a chat: what stays when an answer is stopped, refused or fails, and what the user is told."""

import errno
import io
import os
from dataclasses import replace
from pathlib import Path

import pytest

from support.chats import EXACT, GREEDY, Stopping, hold, make_talk
from support.tiny import TRAINED_LENGTH
from uncomp_cli.cli.chat.controls import status_line
from uncomp_cli.cli.chat.loop import Loop
from uncomp_cli.cli.chat.talk import Talk
from uncomp_cli.engine.context import growth as engine_growth
from uncomp_cli.engine.engine import Engine
from uncomp_cli.engine.tokens.messages import Message, render_messages
from uncomp_cli.engine.write import writer as engine_writer
from uncomp_cli.models.runnable import LoadedModel
from uncomp_cli.sessions.folder import SessionFile


@pytest.fixture
def talk(loaded: LoadedModel) -> Talk:
    return make_talk(loaded)


def answers(talk: Talk) -> list[str]:
    return [entry.text for entry in talk.chat.dialogue.entries if entry.role == "assistant"]


def stop_at(talk: Talk, piece: int) -> None:
    """Press Ctrl-C when this piece of an answer is written."""
    assert isinstance(talk.terminal.stdout, Stopping)
    talk.terminal.stdout.presses_at = piece


def test_when_the_context_is_full_the_user_is_told_and_chooses(talk: Talk) -> None:
    said = hold(talk, "hello", "y" * TRAINED_LENGTH)
    error, hint = said[-2:]
    assert error.startswith("error: the conversation would have 4,")
    assert error.endswith("tokens, the context holds 4,096")
    assert hint == "hint: /forget 1 drops the oldest exchange (hello), /undo the latest, /clear all"
    assert len(talk.chat.dialogue.entries) == 2
    assert talk.chat.draft == "y" * TRAINED_LENGTH
    assert hold(talk, "hello again")[-1].startswith("cached ")
    assert len(answers(talk)) == 2


def test_the_user_is_told_before_the_context_is_full(talk: Talk) -> None:
    assert not any("nearly full" in line for line in hold(talk, "y" * (TRAINED_LENGTH * 8 // 10)))
    assert hold(talk, "y" * (TRAINED_LENGTH // 10))[-1].startswith("the context is nearly full: /forget 1 drops")


def test_a_message_that_never_fits(talk: Talk) -> None:
    assert hold(talk, "y" * TRAINED_LENGTH)[-1].startswith("hint: use something shorter, or leave")


def test_an_answer_that_runs_into_the_end_of_the_context_says_so(talk: Talk) -> None:
    prompt_tokens = len(render_messages(talk.chat.loaded.tokenizer, [Message("user", "")]))
    said = hold(talk, "y" * (TRAINED_LENGTH - prompt_tokens - 5))
    assert any(line.startswith("[the answer ended because the context is full: /forget 1 drops") for line in said)
    assert talk.chat.session.stats is not None
    assert talk.chat.session.stats.completion_tokens == 5


def test_no_memory_is_refused_with_numbers(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(talk, "hello")
    with monkeypatch.context() as patched:
        patched.setattr(engine_growth, "free_bytes", lambda device: 1000)
        error, hint = hold(talk, "hello again")
    assert error.startswith("error: ")
    assert "0 are free" in error
    assert "/budget" in hint
    assert "--budget" not in hint
    assert len(answers(talk)) == 1


def test_a_stopped_answer_stays_with_the_very_tokens_it_had(loaded: LoadedModel) -> None:
    talk = make_talk(loaded, EXACT)
    stop_at(talk, 7)
    said = hold(talk, "hello")
    assert said[0] == "[interrupted: what is above stays in the conversation]"
    assert talk.chat.session.stats is not None
    assert talk.chat.session.stats.finish_reason == "interrupted"
    answer = talk.chat.dialogue.entries[1]
    assert isinstance(talk.terminal.stdout, io.StringIO)
    assert talk.terminal.stdout.getvalue() == answer.text + "\n"
    assert answer.interrupted
    assert answer.ids is not None
    assert len(answer.ids) == len(answer.text) == 7
    hold(talk, "go on")
    fresh = Engine(talk.chat.loaded, sampling=GREEDY).conversation(talk.chat.session.preset)
    list(fresh.turn(talk.chat.dialogue.messages()[:3]))
    assert tuple(fresh.answer_ids) == talk.chat.dialogue.entries[3].ids


def test_the_token_that_ends_an_answer_is_no_part_of_it(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(talk, "hello")
    ids = talk.chat.dialogue.entries[1].ids
    assert ids is not None
    hold(talk, "/clear")
    monkeypatch.setattr(engine_writer, "stop_tokens", lambda *_: {ids[5]})
    hold(talk, "hello")
    answer = talk.chat.dialogue.entries[1]
    assert not answer.interrupted
    assert answer.ids == ids[: ids.index(ids[5])]
    assert talk.chat.loaded.tokenizer.decode(list(answer.ids)) == answer.text


def test_ctrl_c_before_the_answer_keeps_the_message_for_the_editor(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(talk, "hello")

    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(talk.chat.session, "turn", pressed)
        patched.setattr(talk.chat.session, "stats", None)
        said = hold(talk, "never mind")
    assert said == ["stopped before the answer began", "the message was not kept; /edit has it"]
    assert len(answers(talk)) == 1
    assert talk.chat.draft == "never mind"
    assert hold(talk, "hello again")[-1].startswith("cached ")
    assert talk.chat.draft == ""


def test_ctrl_c_in_a_command_stops_the_command_alone(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("uncomp_cli.cli.chat.loop.run_command", pressed)
        assert hold(talk, "/why") == ["[stopped]"]
    assert hold(talk, "hello")[-1].startswith("prefill ")


def test_memory_that_runs_out_is_told_and_the_chat_goes_on(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")

    with monkeypatch.context() as patched:
        patched.setattr(talk.chat.session, "turn", fails)
        error, hint = hold(talk, "hello")
    assert error == "error: memory ran out; the message was not kept"
    assert hint.startswith("hint: /clear frees")
    assert talk.chat.dialogue.entries == []


def test_what_the_session_did_unasked_is_said_once(talk: Talk) -> None:
    turn = talk.chat.session.turn

    def noting(messages: list[Message]) -> object:
        steps = turn(messages)
        talk.chat.session.notes.append("lines 1-2 of a.md were read again")
        return steps

    talk.chat.session.turn = noting
    said = hold(talk, "hello", "again")
    assert said.count("lines 1-2 of a.md were read again") == 2
    assert talk.chat.session.notes == []


def test_what_begins_with_a_slash_and_is_no_command_is_a_message(talk: Talk) -> None:
    hold(talk, "/usr/bin is full")
    assert talk.chat.dialogue.entries[0].text == "/usr/bin is full"
    assert hold(talk, "/usr")[0] == "error: unknown command /usr"


def test_quiet_shows_what_was_asked_for_alone(loaded: LoadedModel) -> None:
    talk = make_talk(loaded)
    talk.terminal = replace(talk.terminal, quiet=True)
    assert hold(talk, "hello") == []
    assert len(hold(talk, "/set seed")) == 1


def test_a_failure_while_reading_lines_does_not_loop(talk: Talk) -> None:
    def closed() -> str:
        raise ValueError("I/O operation on closed file")

    with pytest.raises(ValueError, match="closed"):
        Loop(talk).run(closed)


def test_a_session_that_cannot_be_saved_is_told_and_the_chat_goes_on(
    talk: Talk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = SessionFile("work", tmp_path / "work.json")
    conversation = Loop(talk, file)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        said = hold(conversation, "hello")
    assert said[-1].startswith(f"warning: session {file.path} cannot be written: No space left on device")
    assert not file.path.exists()
    hold(conversation, "/help")  # what could not be written is tried again
    saved = file.load()
    assert saved is not None
    assert saved.entries == tuple(talk.chat.dialogue.entries)


def test_the_status_line(talk: Talk) -> None:
    assert status_line(talk) == "context 0/4,096 (0.0 %) · KV 0 B · unseen full"
    hold(talk, "hello")
    used = talk.chat.session.cached_tokens
    begin = f"context {used}/4,096 ({100 * used / 4096:.1f} %) · KV "
    assert status_line(talk).startswith(begin)
    assert status_line(talk).endswith(" tok/s · unseen full")
