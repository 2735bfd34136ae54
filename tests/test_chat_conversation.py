"""The turns of a chat: what stays when an answer is stopped, refused or fails, and what the user is told."""

import errno
import io
import os
from dataclasses import replace
from pathlib import Path

import pytest

from support.chats import GREEDY, Stopping, hold, make_chat
from support.tiny import TRAINED_LENGTH
from uncomp_cli.cli.chat.inspection import status_line
from uncomp_cli.cli.chat.loop import Conversation
from uncomp_cli.cli.chat.state import Chat
from uncomp_cli.engine.context import chat as engine_chat
from uncomp_cli.engine.context import kept as engine_kept
from uncomp_cli.engine.context.chat import ChatSession
from uncomp_cli.engine.tokens.messages import Message, render_messages
from uncomp_cli.models.loading import LoadedModel
from uncomp_cli.sessions.folder import SessionFile


@pytest.fixture
def chat(loaded: LoadedModel) -> Chat:
    return make_chat(loaded)


def answers(chat: Chat) -> list[str]:
    return [entry.text for entry in chat.dialogue.entries if entry.role == "assistant"]


def stop_at(chat: Chat, piece: int) -> None:
    """Press Ctrl-C when this piece of an answer is written."""
    assert isinstance(chat.terminal.stdout, Stopping)
    chat.terminal.stdout.presses_at = piece


def test_when_the_context_is_full_the_user_is_told_and_chooses(chat: Chat) -> None:
    said = hold(chat, "hello", "y" * TRAINED_LENGTH)
    error, hint = said[-2:]
    assert error.startswith("error: the conversation would have 4,")
    assert error.endswith("tokens, the context holds 4,096")
    assert hint == "hint: /forget 1 drops the oldest exchange (hello), /undo the latest, /clear all"
    assert len(chat.dialogue.entries) == 2
    assert chat.draft == "y" * TRAINED_LENGTH
    assert hold(chat, "hello again")[-1].startswith("cached ")
    assert len(answers(chat)) == 2


def test_the_user_is_told_before_the_context_is_full(chat: Chat) -> None:
    assert not any("nearly full" in line for line in hold(chat, "y" * (TRAINED_LENGTH * 8 // 10)))
    assert hold(chat, "y" * (TRAINED_LENGTH // 10))[-1].startswith("the context is nearly full: /forget 1 drops")


def test_a_message_that_never_fits(chat: Chat) -> None:
    assert hold(chat, "y" * TRAINED_LENGTH)[-1].startswith("hint: use something shorter, or leave")


def test_an_answer_that_runs_into_the_end_of_the_context_says_so(chat: Chat) -> None:
    prompt_tokens = len(render_messages(chat.loaded.tokenizer, [Message("user", "")]))
    said = hold(chat, "y" * (TRAINED_LENGTH - prompt_tokens - 5))
    assert any(line.startswith("[the answer ended because the context is full: /forget 1 drops") for line in said)
    assert chat.session.stats is not None
    assert chat.session.stats.completion_tokens == 5


def test_no_memory_is_refused_with_numbers(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(chat, "hello")
    with monkeypatch.context() as patched:
        patched.setattr(engine_kept, "free_bytes", lambda device: 1000)
        error, hint = hold(chat, "hello again")
    assert error.startswith("error: ")
    assert "0 are free" in error
    assert "/budget" in hint
    assert "--budget" not in hint
    assert len(answers(chat)) == 1


def test_a_stopped_answer_stays_with_the_very_tokens_it_had(chat: Chat) -> None:
    stop_at(chat, 7)
    said = hold(chat, "hello")
    assert said[0] == "[interrupted: what is above stays in the conversation]"
    assert chat.session.stats is not None
    assert chat.session.stats.finish_reason == "interrupted"
    answer = chat.dialogue.entries[1]
    assert isinstance(chat.terminal.stdout, io.StringIO)
    assert chat.terminal.stdout.getvalue() == answer.text + "\n"
    assert answer.interrupted
    assert answer.ids is not None
    assert len(answer.ids) == len(answer.text) == 7
    hold(chat, "go on")
    fresh = ChatSession(chat.loaded, chat.session.preset, GREEDY)
    list(fresh.turn(chat.dialogue.messages()[:3]))
    assert tuple(fresh.answer_ids) == chat.dialogue.entries[3].ids


def test_the_token_that_ends_an_answer_is_no_part_of_it(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(chat, "hello")
    ids = chat.dialogue.entries[1].ids
    assert ids is not None
    hold(chat, "/clear")
    monkeypatch.setattr(engine_chat, "stop_tokens", lambda *_: {ids[5]})
    hold(chat, "hello")
    answer = chat.dialogue.entries[1]
    assert not answer.interrupted
    assert answer.ids == ids[: ids.index(ids[5])]
    assert chat.loaded.tokenizer.decode(list(answer.ids)) == answer.text


def test_ctrl_c_before_the_answer_keeps_the_message_for_the_editor(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(chat, "hello")

    def pressed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(chat.session, "turn", pressed)
        patched.setattr(chat.session, "stats", None)
        said = hold(chat, "never mind")
    assert said == ["stopped before the answer began", "the message was not kept; /edit has it"]
    assert len(answers(chat)) == 1
    assert chat.draft == "never mind"
    assert hold(chat, "hello again")[-1].startswith("cached ")
    assert chat.draft == ""


def test_ctrl_c_in_a_command_stops_the_command_alone(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("uncomp_cli.cli.chat.loop.run_command", pressed)
        assert hold(chat, "/why") == ["[stopped]"]
    assert hold(chat, "hello")[-1].startswith("prefill ")


def test_memory_that_runs_out_is_told_and_the_chat_goes_on(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")

    with monkeypatch.context() as patched:
        patched.setattr(chat.session, "turn", fails)
        error, hint = hold(chat, "hello")
    assert error == "error: memory ran out; the message was not kept"
    assert hint.startswith("hint: /clear frees")
    assert chat.dialogue.entries == []


def test_what_the_session_did_unasked_is_said_once(chat: Chat) -> None:
    turn = chat.session.turn

    def noting(messages: list[Message]) -> object:
        steps = turn(messages)
        chat.session.notes.append("lines 1-2 of a.md were read again")
        return steps

    chat.session.turn = noting
    said = hold(chat, "hello", "again")
    assert said.count("lines 1-2 of a.md were read again") == 2
    assert chat.session.notes == []


def test_what_begins_with_a_slash_and_is_no_command_is_a_message(chat: Chat) -> None:
    hold(chat, "/usr/bin is full")
    assert chat.dialogue.entries[0].text == "/usr/bin is full"
    assert hold(chat, "/usr")[0] == "error: unknown command /usr"


def test_quiet_shows_what_was_asked_for_alone(loaded: LoadedModel) -> None:
    chat = make_chat(loaded)
    chat.terminal = replace(chat.terminal, quiet=True)
    assert hold(chat, "hello") == []
    assert len(hold(chat, "/set seed")) == 1


def test_a_failure_while_reading_lines_does_not_loop(chat: Chat) -> None:
    def closed() -> str:
        raise ValueError("I/O operation on closed file")

    with pytest.raises(ValueError, match="closed"):
        Conversation(chat).run(closed)


def test_a_session_that_cannot_be_saved_is_told_and_the_chat_goes_on(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    file = SessionFile("work", tmp_path / "work.json")
    conversation = Conversation(chat, file)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        said = hold(conversation, "hello")
    assert said[-1].startswith(f"warning: session {file.path} cannot be written: No space left on device")
    assert not file.path.exists()
    hold(conversation, "/help")  # what could not be written is tried again
    saved = file.load()
    assert saved is not None
    assert saved.entries == tuple(chat.dialogue.entries)


def test_the_status_line(chat: Chat) -> None:
    assert status_line(chat) == "context 0/4,096 (0.0 %) · KV 0 B · live 20%"
    hold(chat, "hello")
    used = chat.session.cached_tokens
    begin = f"context {used}/4,096 ({100 * used / 4096:.1f} %) · KV "
    assert status_line(chat).startswith(begin)
    assert status_line(chat).endswith(" tok/s · live 20%")
