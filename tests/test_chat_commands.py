"""Every slash command: what it does, what it refuses, and that /help and Tab say what there is."""

import re
from pathlib import Path

import pytest

from support.chats import hold, make_chat
from support.tiny import TRAINED_LENGTH
from uncomp_cli.cli.chat.commands import COMMANDS, candidates, is_command
from uncomp_cli.cli.chat.inspection import places_of
from uncomp_cli.cli.chat.state import Chat
from uncomp_cli.models.loading import LoadedModel
from uncomp_cli.sessions.transcript import Transcript


@pytest.fixture
def chat(loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Chat:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    Path("notes.txt").write_text("\nalpha\nbeta\ngamma\n")
    return make_chat(loaded)


def texts(chat: Chat) -> list[str]:
    return [entry.text for entry in chat.dialogue.entries]


def test_help_has_a_line_for_every_command(chat: Chat) -> None:
    shown = hold(chat, "/help")
    assert [line.split()[0] for line in shown if line.startswith("/")] == list(COMMANDS)
    for name, command in COMMANDS.items():
        (line,) = hold(chat, f"/help {name}")
        assert line.startswith(command.usage)
        assert command.text in line


def test_what_the_contract_lists_is_there() -> None:
    listed = "/help /file /files /system /set /budget /preset /stats /why /evidence /pin /save /load /retry /undo /edit"
    assert set(f"{listed} /clear /exit".split()) <= set(COMMANDS)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("/help", "/exit")])
def test_no_command_fails_unforeseen_before_anything_was_said(chat: Chat, name: str) -> None:
    said = hold(chat, name, f"{name} nonsense")
    assert not [line for line in said if "internal error" in line]


def test_exit_leaves(chat: Chat) -> None:
    hold(chat, "/exit", "hello")
    assert chat.dialogue.entries == []


@pytest.mark.parametrize(
    ("typed", "hint"),
    [("/clera", "did you mean /clear?"), ("/zzz", "/help lists them"), ("/HELLP", "did you mean /help?")],
)
def test_an_unknown_command(chat: Chat, typed: str, hint: str) -> None:
    assert hold(chat, typed) == [f"error: unknown command {typed}", f"hint: {hint}"]


def test_an_argument_too_many(chat: Chat) -> None:
    assert hold(chat, "/clear all")[0] == "error: /clear takes nothing behind it, not 'all'"


def test_capitals_do_not_matter(chat: Chat) -> None:
    assert hold(chat, "/SYSTEM") == ["the model's own system prompt is used"]
    assert is_command("/Help")


def test_tab_offers_commands_and_their_arguments(chat: Chat) -> None:
    assert candidates(chat, "/st") == ["/stats"]
    assert candidates(chat, "/f") == ["/file ", "/files", "/forget "]
    assert candidates(chat, "/set te") == ["/set temperature"]
    assert candidates(chat, "/preset un") == ["/preset unseen"]
    assert candidates(chat, "/system d") == ["/system default"]
    assert candidates(chat, "hello") == candidates(chat, "/nonsense x") == []
    Path("my notes.txt").write_text("x")
    assert candidates(chat, "/file n") == ["/file notes.txt"]
    assert candidates(chat, "/file notes.txt m") == ["/file notes.txt my\\ notes.txt"]
    assert candidates(chat, "/file my\\ n") == ["/file my\\ notes.txt"]
    hold(chat, "/file notes.txt", "/pin notes.txt:2")
    assert candidates(chat, "/pin no") == ["/pin notes.txt:"]
    assert candidates(chat, "/unpin ") == ["/unpin all", "/unpin notes.txt:2"]


def test_a_file_is_read_ahead_and_goes_with_the_next_question(chat: Chat) -> None:
    said = hold(chat, "/file notes.txt")
    assert said[-1].startswith("notes.txt: ")
    assert said[-1].endswith("the next question may be about it")
    read = chat.session.cached_tokens
    assert read > len("[notes.txt]\n\nalpha\nbeta\ngamma")
    assert "turn 1 · 4 lines · 17 tokens" in hold(chat, "/files")[0]
    hold(chat, "what is second?")
    assert chat.session.stats is not None
    assert chat.session.stats.cached_tokens == read
    assert texts(chat)[0] == "[notes.txt]\n\nalpha\nbeta\ngamma\n\nwhat is second?"
    hold(chat, "and third?")
    assert texts(chat)[2] == "and third?"
    assert "kept 100 %" in hold(chat, "/files")[0]


def test_the_same_file_twice(chat: Chat) -> None:
    said = hold(chat, "/file notes.txt", "/file notes.txt")
    assert said[-3:] == [
        "notes.txt is part of the conversation already",
        "error: nothing new was named",
        "hint: /files lists the documents",
    ]
    assert len(chat.dialogue.pending) == 1


def test_a_missing_and_a_huge_file(chat: Chat) -> None:
    assert hold(chat, "/file note.txt") == [
        "error: no file or directory 'note.txt'",
        "hint: did you mean 'notes.txt'?",
    ]
    Path("huge.txt").write_text("word " * TRAINED_LENGTH * 20)
    error, _ = hold(chat, "/file huge.txt")
    assert error.startswith("error: the first 16.0 % of huge.txt has 65,536 tokens already, the context holds 4,096")
    Path("large.txt").write_text("y" * (TRAINED_LENGTH + 1))
    error = hold(chat, "/file large.txt")[0]
    assert "tokens, the context holds 4,096" in error
    assert chat.dialogue.pending == []
    assert hold(chat, "/file -")[0].startswith("error: '-' names standard input")
    assert hold(chat, '/file "a b')[0].startswith('error: "a b is no list of files')


def test_a_file_whose_reading_is_stopped_is_not_added(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(chat.session, "read_ahead", pressed)
        assert hold(chat, "/file notes.txt") == ["stopped: notes.txt was not added"]
    assert chat.dialogue.pending == []
    hold(chat, "hello")
    assert texts(chat)[0] == "hello"


def test_settings(chat: Chat) -> None:
    shown = hold(chat, "/set")
    assert [line.split()[0] for line in shown] == [
        "temperature", "top-p", "top-k", "min-p", "repetition-penalty", "seed", "max-new-tokens",
        "recall", "escalate",
    ]  # fmt: skip
    assert hold(chat, "/set temperature 0.7") == ["temperature        0.7"]
    assert hold(chat, "/set top_k=5") == ["top-k              5"]
    assert (chat.session.sampling.temperature, chat.session.sampling.top_k) == (0.7, 5)
    assert hold(chat, "/set temprature 1") == ["error: unknown setting temprature", "hint: did you mean temperature?"]
    assert hold(chat, "/set recall off") == ["recall             off"]
    assert chat.session.recalls is False
    assert hold(chat, "/set recall maybe")[0] == "error: recall is 'maybe', not on or off"
    assert hold(chat, "/set seed x")[0] == "error: seed is 'x', not a whole number"
    assert hold(chat, "/set top-p 7")[0] == "error: top-p is 7.0"
    assert chat.session.sampling.top_p == 1.0


def test_budget_and_preset_are_used_at_once_and_cost_is_said(chat: Chat) -> None:
    Path("long.txt").write_text("word " * 600)
    assert "nothing has been said yet" in hold(chat, "/budget 10%")[-1]
    hold(chat, "/file long.txt", "what?")
    before = chat.session.kv_bytes
    (said,) = hold(chat, "/budget 3x")
    assert said.startswith("preset live · budget 30%, at least 768 tokens · policy uncertain")
    assert re.search(r"read [\d,]+ tokens in [\d.]+ s · KV [\d.]+ KiB → [\d.]+ KiB", said)
    assert chat.session.kv_bytes > before
    assert hold(chat, "/preset full")[-1].startswith("preset full · budget full · policy full · read ")
    assert "budget 50%" in hold(chat, "/budget 50%")[0]
    shown = hold(chat, "/preset")
    assert any(line.startswith("unseen ") for line in shown)
    assert hold(chat, "/preset small")[1].startswith("hint: /preset live")


def test_a_budget_that_is_refused_changes_nothing(chat: Chat) -> None:
    hold(chat, "hello there, this is a question of some length")
    context, choice = chat.session.context, chat.choice
    error, hint = hold(chat, "/budget 3")
    assert error.startswith("error: the budget keeps 3 tokens per head")
    assert hint.startswith("hint: use /budget ")
    assert (chat.session.context, chat.choice) == (context, choice)
    assert hold(chat, "/budget nonsense")[0].startswith("error: budget 'nonsense'")
    assert hold(chat, "again")[-1].startswith("cached ")


def test_why_and_evidence_and_pins(chat: Chat) -> None:
    lines = [f"Line {number} says {number * 7} things." for number in range(1, 60)]
    Path("long.txt").write_text("\n".join(lines))
    assert hold(chat, "/why")[0] == "error: nothing has been read yet"
    assert hold(chat, "/evidence")[0] == "error: there is no answer to what was read last"
    hold(chat, "/budget 300", "/file long.txt", "/pin long.txt:10-12", "what?")
    survival, places = chat.session.survival(), places_of(chat)
    assert places is not None
    pinned = places.tokens_of("long.txt", 10, 12)
    assert float(survival[pinned.start : pinned.stop].min()) == 1
    assert float(survival.mean()) < 0.5
    assert any("heads keep" in line for line in hold(chat, "/why"))
    for line in hold(chat, "/evidence")[:2]:
        assert re.match(r"  long\.txt:\d+(-\d+)?  +\d+ %  kept +\d+ %  \"Line \d+ says", line)
    assert hold(chat, "/pin") == ["long.txt:10-12"]
    assert hold(chat, "/pin long.txt:10-12")[0] == "error: long.txt:10-12 is pinned already"
    assert hold(chat, "/unpin long.txt:1")[0] == "error: no pin 'long.txt:1'"
    assert hold(chat, "/unpin all") == ["long.txt:10-12 may be evicted again"]
    for change in ("/undo", "/forget", "/clear", "/file notes.txt", "/system Be kind."):
        hold(chat, "/clear", "/system default", "one", "two")
        assert not hold(chat, "/evidence")[0].startswith("error")
        hold(chat, change)
        assert hold(chat, "/evidence")[0] == "error: there is no answer to what was read last"


def test_another_seed_answers_again(chat: Chat) -> None:
    hold(chat, "/set temperature 2", "hello")
    first = texts(chat)[1]
    hold(chat, "/retry")
    assert len(texts(chat)) == 2
    assert texts(chat)[1] != first
    assert chat.session.sampling.seed == 0
    assert "/set temperature 0.7" in hold(chat, "/set temperature 0", "/retry")[1]
    assert hold(make_chat(chat.loaded), "/retry")[0] == "error: nothing has been asked yet"


def test_an_answer_stays_when_there_is_no_other(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(chat, "hello")
    before = list(chat.dialogue.entries)

    def fails(*_: object) -> None:
        raise RuntimeError("broken")

    with monkeypatch.context() as patched:
        patched.setattr(chat.session, "turn", fails)
        assert "the earlier answer stays" in hold(chat, "/retry")
    assert chat.dialogue.entries == before


def test_undo_gives_documents_and_question_back(chat: Chat) -> None:
    hold(chat, "hello", "/file notes.txt", "/pin notes.txt:3", "what?", "and?")
    hold(chat, "/undo 2")
    assert texts(chat)[0] == "hello"
    assert chat.draft == "what?"
    assert [paper.path for paper in chat.dialogue.pending] == ["notes.txt"]
    assert [pin.entry for pin in chat.dialogue.pins] == [2]
    assert hold(chat, "/undo") == ["notes.txt taken out again"]
    assert chat.dialogue.pins == []
    assert hold(chat, "/undo 2")[0] == "error: the conversation has 1 exchange, not 2"
    assert hold(chat, "/undo x")[0] == "error: 'x' is no number of exchanges"


def test_forget_drops_the_oldest(chat: Chat) -> None:
    hold(chat, "/file notes.txt", "what?", "hello")
    assert hold(chat, "/forget")[0].startswith("the oldest exchange forgotten, with notes.txt: ")
    assert texts(chat)[0] == "hello"
    hold(chat, "again")
    assert len(texts(chat)) == 4


def test_system_prompt_and_clear(chat: Chat) -> None:
    hold(chat, "hello", "/system Be brief.", "/file notes.txt", "/clear")
    assert chat.dialogue.entries == chat.dialogue.pending == []
    assert chat.dialogue.system == "Be brief."
    assert chat.session.cached_tokens == 0
    assert hold(chat, "/system") == ["Be brief."]
    hold(chat, "/system default")
    assert chat.dialogue.system is None


def test_save_and_load(chat: Chat) -> None:
    hold(chat, "/system Be kind.", "/file notes.txt", "what?", "/pin notes.txt:2-3", "and?")
    said = texts(chat)
    assert hold(chat, "/save talk.json", "/save talk.md") == [
        "2 exchanges written to talk.json", "2 exchanges written to talk.md",
    ]  # fmt: skip
    assert hold(chat, "/save talk.md") == ["2 exchanges written to talk.md"]
    assert "## You" in Path("talk.md").read_text()
    assert Path("talk.json").stat().st_mode & 0o077 == 0
    assert Transcript.from_json(Path("talk.json").read_bytes()).entries == tuple(chat.dialogue.entries)
    other = make_chat(chat.loaded)
    assert hold(other, "/load talk.json") == ["2 exchanges loaded: the next turn reads all of it"]
    assert (texts(other), other.dialogue.system, other.dialogue.pins) == (said, "Be kind.", chat.dialogue.pins)
    hold(chat, "next")
    hold(other, "next")
    assert texts(other)[-1] == texts(chat)[-1]
    assert hold(other, "/load talk.json")[0] == "error: there is a conversation already"
    assert hold(other, "/save talk.json")[0] == "error: talk.json is there already, and this chat did not write it"


def test_what_cannot_be_saved_or_loaded(chat: Chat) -> None:
    assert hold(chat, "/save notes.pdf")[1] == "hint: /save notes.md"
    assert hold(chat, "/save no/where.md")[0] == "error: no/where.md cannot be written: No such file or directory"
    assert hold(chat, "/load talk.json")[0] == "error: talk.json cannot be read: No such file or directory"
    Path("talk.json").write_text('{"schema_version": 1, "model": 5, "preset": "unseen"}')
    error, hint = hold(chat, "/load talk.json")
    assert error == "error: talk.json: model is 5"
    assert hint == "hint: it must be text"
    assert hold(chat, "/load talk")[0] == "error: there is no session 'talk'"


def test_an_answer_that_was_edited_is_read_as_text(chat: Chat) -> None:
    hold(chat, "hello", "/save talk.json")
    record = Path("talk.json").read_text()
    Path("talk.json").write_text(record.replace(texts(chat)[1], "something else"))
    other = make_chat(chat.loaded)
    assert hold(other, "/load talk.json")[0] == "1 answer is read as text: its tokens are not this model's"
    assert other.dialogue.entries[1].ids is None
    assert len(hold(other, "go on")) > 0
    assert len(texts(other)) == 4
