"""Every slash command: what it does, what it refuses, and that /help and Tab say what there is."""

import re
from base64 import b64encode
from dataclasses import replace
from pathlib import Path

import pytest

from support.chats import EXACT, hold, make_talk
from support.tiny import TRAINED_LENGTH
from uncomp_cli.cli.chat.commands import COMMANDS, candidates, help_lines, is_command
from uncomp_cli.cli.chat.controls import status_line
from uncomp_cli.cli.chat.talk import Talk
from uncomp_cli.models.runnable import LoadedModel
from uncomp_cli.sessions.transcript import Transcript


@pytest.fixture
def talk(loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Talk:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    Path("notes.txt").write_text("\nalpha\nbeta\ngamma\n")
    return make_talk(loaded)


def texts(talk: Talk) -> list[str]:
    return [entry.text for entry in talk.chat.dialogue.entries]


def test_help_has_a_line_for_every_command(talk: Talk) -> None:
    shown = hold(talk, "/help")
    assert [line.split()[0] for line in shown if line.startswith("/")] == list(COMMANDS)
    for name, command in COMMANDS.items():
        (line,) = hold(talk, f"/help {name}")
        assert line.startswith(command.usage)
        assert command.text in line


def test_help_keeps_its_columns_on_a_narrow_screen() -> None:
    lines = help_lines(width=80)
    assert max(map(len, lines)) <= 80
    column = lines[0].index("what can be typed")
    assert all(line[column - 1] == " " and line[column] != " " for line in lines)


def test_what_the_contract_lists_is_there() -> None:
    listed = "/help /file /files /system /set /budget /preset /stats /why /evidence /pin /save /load /retry /undo /edit"
    assert set(f"{listed} /clear /exit".split()) <= set(COMMANDS)


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("/help", "/exit")])
def test_no_command_fails_unforeseen_before_anything_was_said(talk: Talk, name: str) -> None:
    said = hold(talk, name, f"{name} nonsense")
    assert not [line for line in said if "internal error" in line]


def test_exit_leaves(talk: Talk) -> None:
    hold(talk, "/exit", "hello")
    assert talk.chat.dialogue.entries == []


@pytest.mark.parametrize(
    ("typed", "hint"),
    [("/clera", "did you mean /clear?"), ("/zzz", "/help lists them"), ("/HELLP", "did you mean /help?")],
)
def test_an_unknown_command(talk: Talk, typed: str, hint: str) -> None:
    assert hold(talk, typed) == [f"error: unknown command {typed}", f"hint: {hint}"]


def test_an_argument_too_many(talk: Talk) -> None:
    assert hold(talk, "/clear all")[0] == "error: /clear takes nothing behind it, not 'all'"


def test_capitals_do_not_matter(talk: Talk) -> None:
    assert hold(talk, "/SYSTEM") == ["the model's own system prompt is used"]
    assert is_command("/Help")


def test_tab_offers_commands_and_their_arguments(talk: Talk) -> None:
    assert candidates(talk, "/st") == ["/stats"]
    assert candidates(talk, "/f") == ["/file ", "/files", "/forget "]
    assert candidates(talk, "/set te") == ["/set temperature"]
    assert candidates(talk, "/preset un") == ["/preset unseen"]
    assert candidates(talk, "/system d") == ["/system default"]
    assert candidates(talk, "hello") == candidates(talk, "/nonsense x") == []
    Path("my notes.txt").write_text("x")
    assert candidates(talk, "/file n") == ["/file notes.txt"]
    assert candidates(talk, "/file notes.txt m") == ["/file notes.txt my\\ notes.txt"]
    assert candidates(talk, "/file my\\ n") == ["/file my\\ notes.txt"]
    hold(talk, "/file notes.txt", "/pin notes.txt:2")
    assert candidates(talk, "/pin no") == ["/pin notes.txt:"]
    assert candidates(talk, "/unpin ") == ["/unpin all", "/unpin notes.txt:2"]


def test_a_file_is_read_ahead_and_goes_with_the_next_question(talk: Talk) -> None:
    said = hold(talk, "/file notes.txt")
    assert said[-1].startswith("notes.txt: ")
    assert said[-1].endswith("the next question may be about it")
    read = talk.chat.session.cached_tokens
    assert read > len("[notes.txt]\n\nalpha\nbeta\ngamma")
    assert "turn 1 · 4 lines · 17 tokens" in hold(talk, "/files")[0]
    hold(talk, "what is second?")
    assert talk.chat.session.stats is not None
    assert talk.chat.session.stats.cached_tokens == read
    assert texts(talk)[0] == "[notes.txt]\n\nalpha\nbeta\ngamma\n\nwhat is second?"
    hold(talk, "and third?")
    assert texts(talk)[2] == "and third?"
    assert "kept 100 %" in hold(talk, "/files")[0]


def test_the_same_file_twice(talk: Talk) -> None:
    said = hold(talk, "/file notes.txt", "/file notes.txt")
    assert said[-3:] == [
        "notes.txt is part of the conversation already",
        "error: nothing new was named",
        "hint: /files lists the documents",
    ]
    assert len(talk.chat.dialogue.pending) == 1


def test_a_bad_file_among_good_ones_is_named_and_the_others_are_taken(talk: Talk) -> None:
    said = hold(talk, "/file note.txt notes.txt")
    assert said[0] == "warning: no file or directory 'note.txt'"
    assert [document.path for document in talk.chat.dialogue.pending] == ["notes.txt"]
    assert hold(talk, "/file a.txt b.txt")[0] == "error: no file or directory 'a.txt'"


def test_a_missing_and_a_huge_file(talk: Talk) -> None:
    assert hold(talk, "/file note.txt") == [
        "error: no file or directory 'note.txt'",
        "hint: did you mean 'notes.txt'?",
    ]
    Path("huge.txt").write_text("word " * TRAINED_LENGTH * 20)
    error, _ = hold(talk, "/file huge.txt")
    assert error.startswith("error: the first 16.0 % of huge.txt has 65,536 tokens already, the context holds 4,096")
    Path("large.txt").write_text("y" * (TRAINED_LENGTH + 1))
    error = hold(talk, "/file large.txt")[0]
    assert "tokens, the context holds 4,096" in error
    assert talk.chat.dialogue.pending == []
    assert hold(talk, "/file -")[0].startswith("error: '-' names standard input")
    assert hold(talk, '/file "a b')[0].startswith('error: "a b is no list of files')


def test_a_file_whose_reading_is_stopped_is_not_added(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    def pressed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(talk.chat.session, "read_ahead", pressed)
        assert hold(talk, "/file notes.txt") == ["stopped: notes.txt was not added"]
    assert talk.chat.dialogue.pending == []
    hold(talk, "hello")
    assert texts(talk)[0] == "hello"


def test_settings(talk: Talk) -> None:
    shown = hold(talk, "/set")
    assert [line.split()[0] for line in shown] == [
        "temperature", "top-p", "top-k", "min-p", "repetition-penalty", "seed", "max-new-tokens",
        "lookup", "recall", "escalate",
    ]  # fmt: skip
    assert hold(talk, "/set lookup off") == ["lookup             off"]
    assert talk.chat.session.sampling.lookup is False
    assert hold(talk, "/set temperature 0.7") == ["temperature        0.7"]
    assert hold(talk, "/set top_k=5") == ["top-k              5"]
    assert (talk.chat.session.sampling.temperature, talk.chat.session.sampling.top_k) == (0.7, 5)
    assert hold(talk, "/set temprature 1") == ["error: unknown setting temprature", "hint: did you mean temperature?"]
    assert hold(talk, "/set recall off") == ["recall             off"]
    assert talk.chat.session.recalls is False
    assert hold(talk, "/set recall maybe")[0] == "error: recall is 'maybe', not on or off"
    assert hold(talk, "/set seed x")[0] == "error: seed is 'x', not a whole number"
    assert hold(talk, "/set top-p 7")[0] == "error: top-p is 7.0"
    assert talk.chat.session.sampling.top_p == 1.0


def test_budget_and_preset_are_used_at_once_and_cost_is_said(talk: Talk) -> None:
    Path("long.txt").write_text("word " * 600)
    assert "nothing has been said yet" in hold(talk, "/budget 10%")[-1]
    hold(talk, "/file long.txt", "what?")
    before = talk.chat.session.kv_bytes
    (said,) = hold(talk, "/budget 3x")
    assert said.startswith("preset live · budget 30%, at least 768 tokens, in 4 bits · policy uncertain")
    assert re.search(r"read [\d,]+ tokens in [\d.]+ s · KV [\d.]+ KiB → [\d.]+ KiB", said)
    assert talk.chat.session.kv_bytes > before
    assert hold(talk, "/preset full")[-1].startswith("preset full · budget full · policy full · read ")
    assert "budget 50%" in hold(talk, "/budget 50%")[0]
    shown = hold(talk, "/preset")
    assert any(line.startswith("unseen ") for line in shown)
    assert hold(talk, "/preset small")[1].startswith("hint: /preset live")


def test_a_budget_that_is_too_small_is_said_once_and_keeps_what_it_must(talk: Talk) -> None:
    hold(talk, "hello there, this is a question of some length")
    hold(talk, "/budget 3")
    said = [line for _ in range(2) for line in hold(talk, "and again")]
    assert sum("budget 3 is less than is always kept" in line for line in said) == 1


def test_a_budget_that_is_refused_changes_nothing(talk: Talk) -> None:
    hold(talk, "hello there, this is a question of some length")
    context, choice = talk.chat.session.growth, talk.chat.choice
    error, hint = hold(talk, "/budget 3KiB")
    assert error.startswith("error: the budget keeps ")
    assert hint.startswith("hint: use a larger /budget ")
    assert (talk.chat.session.growth, talk.chat.choice) == (context, choice)
    assert hold(talk, "/budget nonsense")[0].startswith("error: budget 'nonsense'")
    assert hold(talk, "again")[-1].startswith("cached ")


def test_why_and_evidence_and_pins(talk: Talk) -> None:
    lines = [f"Line {number} says {number * 7} things." for number in range(1, 60)]
    Path("long.txt").write_text("\n".join(lines))
    assert hold(talk, "/why")[0] == "error: nothing has been read yet"
    assert hold(talk, "/evidence")[0] == "error: there is no answer to what was read last"
    hold(talk, "/budget 300", "/file long.txt", "/pin long.txt:10-12", "what?")
    survival, places = talk.chat.session.survival(), talk.chat.places()
    pinned = places.tokens_of("long.txt", "10-12")
    assert float(survival[pinned.start : pinned.stop].min()) == 1
    assert float(survival.mean()) < 0.5
    assert any("heads keep" in line for line in hold(talk, "/why"))
    for line in hold(talk, "/evidence")[1:3]:
        assert re.match(r"  long\.txt:\d+(-\d+)?  +\d+ % +\d+ %  \"Line \d+ says", line)
    assert hold(talk, "/pin") == ["long.txt:10-12"]
    assert hold(talk, "/pin long.txt:10-12")[0] == "error: long.txt:10-12 is pinned already"
    assert hold(talk, "/unpin long.txt:1")[0] == "error: no pin 'long.txt:1'"
    assert hold(talk, "/unpin all") == ["long.txt:10-12 may be evicted again"]
    for change in ("/undo", "/forget", "/clear", "/file notes.txt", "/system Be kind."):
        hold(talk, "/clear", "/system default", "one", "two")
        assert not hold(talk, "/evidence")[0].startswith("error")
        hold(talk, change)
        assert hold(talk, "/evidence")[0] == "error: there is no answer to what was read last"


def test_another_seed_answers_again(talk: Talk) -> None:
    hold(talk, "/set temperature 2", "hello")
    first = texts(talk)[1]
    hold(talk, "/retry")
    assert len(texts(talk)) == 2
    assert texts(talk)[1] != first
    assert talk.chat.session.sampling.seed == 0
    assert "/set temperature 0.7" in hold(talk, "/set temperature 0", "/retry")[1]
    assert hold(make_talk(talk.chat.loaded), "/retry")[0] == "error: nothing has been asked yet"


def test_an_answer_stays_when_there_is_no_other(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(talk, "hello")
    before = list(talk.chat.dialogue.entries)

    def fails(*_: object) -> None:
        raise RuntimeError("broken")

    with monkeypatch.context() as patched:
        patched.setattr(talk.chat.session, "turn", fails)
        assert "the earlier answer stays" in hold(talk, "/retry")
    assert talk.chat.dialogue.entries == before


def test_undo_gives_documents_and_question_back(talk: Talk) -> None:
    hold(talk, "hello", "/file notes.txt", "/pin notes.txt:3", "what?", "and?")
    hold(talk, "/undo 2")
    assert texts(talk)[0] == "hello"
    assert talk.chat.draft == "what?"
    assert [paper.path for paper in talk.chat.dialogue.pending] == ["notes.txt"]
    assert [pin.entry for pin in talk.chat.dialogue.pins] == [2]
    assert hold(talk, "/undo") == ["notes.txt taken out again"]
    assert talk.chat.dialogue.pins == []
    assert hold(talk, "/undo 2")[0] == "error: the conversation has 1 exchange, not 2"
    assert hold(talk, "/undo x")[0] == "error: 'x' is no number of exchanges"


def test_forget_drops_the_oldest_and_keeps_its_documents(talk: Talk) -> None:
    hold(talk, "/file notes.txt", "what?", "hello", "/pin notes.txt:3")
    (told,) = hold(talk, "/forget")
    assert told.startswith("the oldest exchange forgotten: ")
    assert told.endswith("; notes.txt stays, /forget FILE forgets it too")
    question = talk.chat.dialogue.entries[0]
    assert (question.spoken, [each.path for each in question.attachments]) == ("hello", ["notes.txt"])
    (pin,) = talk.chat.dialogue.pins
    assert (pin.label, pin.entry) == ("notes.txt:3", 0)
    line = Path("notes.txt").read_text().split("\n")[2]
    assert question.text[pin.first_char : pin.last_char] == line
    hold(talk, "again")
    assert len(texts(talk)) == 4
    assert hold(talk, "/forget 2")[0].endswith("notes.txt stays, /forget FILE forgets it too")
    assert [each.path for each in talk.chat.dialogue.pending] == ["notes.txt"]
    assert [pin.label for pin in talk.chat.dialogue.pins] == ["notes.txt:3"]


def test_forget_drops_a_document(talk: Talk) -> None:
    Path("long.txt").write_text("one\ntwo\n")
    hold(talk, "/file notes.txt", "what?", "/file long.txt", "and?", "/pin notes.txt:3", "/pin long.txt:2")
    assert candidates(talk, "/forget l") == ["/forget long.txt"]
    assert hold(talk, "/forget notes.txt")[0] == "notes.txt forgotten: the next turn reads the conversation again"
    assert [each.spoken for each in talk.chat.dialogue.entries[::2]] == ["what?", "and?"]
    assert [page.path for page in talk.chat.dialogue.pages()] == ["long.txt"]
    assert [pin.label for pin in talk.chat.dialogue.pins] == ["long.txt:2"]
    assert hold(talk, "/forget notes.txt")[0] == "error: no document 'notes.txt' is in the conversation"


def test_what_is_told_of_the_cache_is_so(talk: Talk) -> None:
    hold(talk, "hello")
    one = talk.chat.session.cached_tokens
    hold(talk, "and again")
    assert talk.chat.session.cached_tokens > one
    hold(talk, "/undo")
    assert one - 8 <= talk.chat.session.cached_tokens <= one + 8  # the template's frame of a next turn
    assert "tok/s" not in status_line(talk)
    hold(talk, "/undo")
    assert status_line(talk) == "context 0/4,096 (0.0 %) · KV 0 B · unseen full"
    hold(talk, "hello", "/file notes.txt")
    read = talk.chat.session.cached_tokens
    hold(talk, "/undo")
    assert talk.chat.session.cached_tokens < read
    hold(talk, "/forget")
    assert talk.chat.session.cached_tokens == 0


def test_system_prompt_and_clear(talk: Talk) -> None:
    hold(talk, "hello", "/system Be brief.", "/file notes.txt", "/clear")
    assert talk.chat.dialogue.entries == talk.chat.dialogue.pending == []
    assert talk.chat.dialogue.system == "Be brief."
    assert talk.chat.session.cached_tokens == 0
    assert hold(talk, "/system") == ["Be brief."]
    hold(talk, "/system default")
    assert talk.chat.dialogue.system is None


def test_save_and_load(talk: Talk) -> None:
    talk = make_talk(talk.chat.loaded, EXACT)  # what is read anew is what was written
    hold(talk, "/system Be kind.", "/file notes.txt", "what?", "/pin notes.txt:2-3", "and?")
    said = texts(talk)
    assert hold(talk, "/save talk.json", "/save talk.md") == [
        "2 exchanges written to talk.json", "2 exchanges written to talk.md",
    ]  # fmt: skip
    assert hold(talk, "/save talk.md") == ["2 exchanges written to talk.md"]
    lost = "error: talk.md holds something else"
    assert hold(make_talk(talk.chat.loaded), "/save talk.md")[0].startswith("error: talk.md is there already")
    kept = Path("talk.md").read_text()
    Path("talk.md").write_text("edited")
    assert hold(talk, "/save talk.md")[:2] == [lost, "hint: name another file, such as /save talk-2.md"]
    Path("talk.md").write_text(kept)
    entries, pins = talk.chat.dialogue.entries, talk.chat.dialogue.pins
    talk.chat.dialogue.entries, talk.chat.dialogue.pins = entries[2:], []
    assert hold(talk, "/save talk.md")[0] == lost
    talk.chat.dialogue.entries, talk.chat.dialogue.pins = entries, pins
    assert "## You" in Path("talk.md").read_text()
    assert Path("talk.json").stat().st_mode & 0o077 == 0
    assert Transcript.from_json(Path("talk.json").read_bytes()).entries == tuple(talk.chat.dialogue.entries)
    other = make_talk(talk.chat.loaded, EXACT)
    assert hold(other, "/load talk.json") == ["2 exchanges loaded: the next turn reads all of it"]
    assert (texts(other), other.chat.dialogue.system, other.chat.dialogue.pins) == (
        said,
        "Be kind.",
        talk.chat.dialogue.pins,
    )
    hold(talk, "next")
    hold(other, "next")
    assert texts(other)[-1] == texts(talk)[-1]
    assert hold(other, "/load talk.json")[0] == "error: there is a conversation already"
    told = hold(other, "/save talk.json")
    assert told[0] == "error: talk.json is there already, and this chat did not write it"
    assert told[1] == "hint: name another file, such as /save talk-2.json"


def test_what_cannot_be_saved_or_loaded(talk: Talk) -> None:
    assert hold(talk, "/save notes.pdf")[1] == "hint: /save notes.md"
    assert hold(talk, "/save no/where.md")[0] == "error: no/where.md cannot be written: No such file or directory"
    assert (
        hold(talk, "/load talk.json")[0]
        == "error: session file talk.json: it cannot be read: No such file or directory"
    )
    Path("talk.json").write_text('{"schema_version": 1, "model": 5, "preset": "unseen"}')
    error, hint = hold(talk, "/load talk.json")
    assert error == "error: session file talk.json: model is 5"
    assert hint == "hint: it must be text"
    assert hold(talk, "/load talk")[0] == "error: there is no session 'talk'"


def test_an_answer_that_was_edited_is_read_as_text(talk: Talk) -> None:
    hold(talk, "hello", "/save talk.json")
    record = Path("talk.json").read_text()
    Path("talk.json").write_text(record.replace(texts(talk)[1], "something else"))
    other = make_talk(talk.chat.loaded)
    assert hold(other, "/load talk.json")[0] == "1 answer is read as text: its tokens are not this model's"
    assert other.chat.dialogue.entries[1].ids is None
    assert len(hold(other, "go on")) > 0
    assert len(texts(other)) == 4


def test_history_and_copy(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    assert hold(talk, "/history") == ["nothing has been said yet"]
    assert hold(talk, "/copy")[0] == "error: there is no answer to copy"
    hold(talk, "hello there", "and " * 40)
    first, second = hold(talk, "/history")
    assert first.startswith("1 hello there → ")
    assert second.startswith("2 and and ")
    assert (len(second) <= 80, second[-1]) == (True, "…")
    assert hold(talk, "/history 1") == ["> hello there", texts(talk)[1]]
    assert hold(talk, "/history 3")[0] == "error: there is no exchange 3"
    for name in ("WAYLAND_DISPLAY", "DISPLAY", "HOME"):
        monkeypatch.delenv(name, raising=False)
    assert hold(talk, "/copy")[0] == "error: there is no clipboard here"
    talk.terminal = replace(talk.terminal, animated=True)
    assert b64encode(texts(talk)[-1].encode()).decode() in hold(talk, "/copy")[0]


def test_numbers_in_thousands(talk: Talk) -> None:
    assert hold(talk, "/set max-new-tokens 2k")[0].split() == ["max-new-tokens", "2048"]
    assert hold(talk, "/set max-new-tokens many")[0] == "error: max-new-tokens is 'many', not a whole number"
