"""`uncomp chat --session`: what was said is there again, whatever ended the process."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from support.commands import ENDLESS, start
from support.desk import PROMPT
from support.typist import READOUT, Typist, sit_down


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where sessions lie."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path / "uncomp" / "sessions"


def talk(model: Path, *args: str, lines: str) -> tuple[int, str, str]:
    settings = ["chat", "-m", str(model), "--max-new-tokens", "16", *args]
    return start(*settings, stdin=lines.encode()).finish()


def saved(folder: Path, name: str) -> Any:
    return json.loads((folder / f"{name}.json").read_text())


def test_a_session_goes_on_where_it_ended(tiny_model: Path, folder: Path) -> None:
    whole = talk(tiny_model, "-s", "Be brief.", lines="hello\nand?\nthen?\n")[1].splitlines()
    assert talk(tiny_model, "-s", "Be brief.", "--session", "work", lines="hello\nand?\n")[1].splitlines() == whole[:2]
    code, out, err = talk(tiny_model, "--session", "work", lines="/system\nthen?\n")
    assert (code, out.splitlines()) == (0, whole[2:])
    assert "session work: 2 exchanges · read " in err
    assert "Be brief." in err
    record = saved(folder, "work")
    assert [entry["role"] for entry in record["entries"]] == ["user", "assistant"] * 3
    assert record["created"] <= record["updated"]


def test_settings_come_back_and_options_win(tiny_model: Path, folder: Path) -> None:
    talk(tiny_model, "--session", "set", lines="hello\n/set temperature 0.5\n/budget 50%\n/set top-k 7\n")
    code, _, err = talk(tiny_model, "--session", "set", "--top-k", "3", lines="/set\n/budget\n")
    assert code == 0
    assert "temperature        0.5\n" in err
    assert "top-k              3\n" in err
    assert "budget 50%" in err
    code, _, err = talk(tiny_model, "--session", "set", "-b", "25%", lines="/budget\n")
    assert "budget 25%" in err


def test_what_commands_change_is_saved_and_an_empty_chat_is_not(tiny_model: Path, folder: Path) -> None:
    talk(tiny_model, "--session", "empty", lines="/help\n")
    assert not (folder / "empty.json").exists()
    talk(tiny_model, "--session", "work", lines="hello\nagain\n/undo\n")
    assert len(saved(folder, "work")["entries"]) == 2
    talk(tiny_model, "--session", "work", lines="/clear\n")
    assert saved(folder, "work")["entries"] == []


def test_a_killed_chat_loses_the_running_turn_alone(tiny_model: Path, folder: Path, typists: list[Typist]) -> None:
    own = {"XDG_DATA_HOME": str(folder.parent.parent)}
    chat = sit_down(typists, tiny_model, "--session", "work", *ENDLESS, "--max-new-tokens", "2000", **own)
    chat.says("/set max-new-tokens 16", "16")
    chat.says("hello", "[a-z]{16}", READOUT)
    chat.says("/set max-new-tokens 2000", "2000")
    chat.says("tell me more", "[a-z]{40}")
    os.kill(chat.process.pid, signal.SIGKILL)
    chat.process.join(20)
    kept = saved(folder, "work")["entries"]
    assert (kept[0]["text"], len(kept)) == ("hello", 2)
    code, out, _ = talk(tiny_model, "--session", "work", "--max-new-tokens", "16", lines="more\n")
    assert (code, len(out.splitlines())) == (0, 1)


def test_two_chats_on_one_session(tiny_model: Path, folder: Path, typists: list[Typist]) -> None:
    own = {"XDG_DATA_HOME": str(folder.parent.parent)}
    chat = sit_down(typists, tiny_model, "--session", "work", **own)
    chat.sees(PROMPT)
    code, out, err = talk(tiny_model, "--session", "work", lines="hello\n")
    assert (code, out) == (1, "")
    assert err.startswith(f"error: session 'work' is open in process {chat.process.pid} ")
    assert "loading" not in err


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda text: text[:40], "is not JSON"),
        (lambda text: text.replace('"hello"', "5"), "entries[0].text is 5"),
        (lambda text: text.replace('"role": "user"', '"role": "usr"'), 'entries[0].role is "usr"'),
        (lambda text: text.replace('"pins"', '"pinz"'), "pinz is an unknown key"),
    ],
)
def test_a_session_that_was_edited_into_nonsense(tiny_model: Path, folder: Path, edit: Any, says: str) -> None:
    talk(tiny_model, "--session", "work", lines="hello\n")
    path = folder / "work.json"
    broken = edit(path.read_text())
    path.write_text(broken)
    code, out, err = talk(tiny_model, "--session", "work", lines="hello\n")
    assert (code, out) == (2, "")
    assert says in err
    assert path.read_text() == broken


def test_a_session_of_another_vocabulary_is_read_as_text(tiny_model: Path, folder: Path) -> None:
    talk(tiny_model, "--session", "work", lines="hello\n")
    record = saved(folder, "work")
    record["entries"][1]["ids"] = [10**6]
    (folder / "work.json").write_text(json.dumps(record))
    code, out, err = talk(tiny_model, "--session", "work", lines="go on\n")
    assert (code, len(out.splitlines())) == (0, 1)
    assert "1 answer is read as text" in err


def test_a_session_smuggles_no_control_token(tiny_model: Path, folder: Path) -> None:
    """Ids that spell the text, but for marks that are not shown: they would end a turn and begin another."""
    talk(tiny_model, "--session", "work", lines="hello\n")
    record = saved(folder, "work")
    record["entries"][1]["ids"] += [2, 1]  # <|im_end|><|im_start|>
    (folder / "work.json").write_text(json.dumps(record))
    code, out, err = talk(tiny_model, "--session", "work", lines="go on\n")
    assert (code, len(out.splitlines())) == (0, 1)
    assert "1 answer is read as text" in err


def test_a_session_that_ends_with_a_question(tiny_model: Path, folder: Path) -> None:
    talk(tiny_model, "--session", "work", lines="hello\n")
    record = saved(folder, "work")
    del record["entries"][1]
    (folder / "work.json").write_text(json.dumps(record))
    code, out, err = talk(tiny_model, "--session", "work", lines="hello\n")
    assert (code, len(out.splitlines())) == (0, 1)
    assert "the last question has no answer; /edit has it" in err
    assert len(saved(folder, "work")["entries"]) == 2


def test_documents_and_pins_come_back(tiny_model: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("\nalpha\nbeta\n")
    lines = f"/file {tmp_path}/notes.txt\nwhat?\n/pin notes.txt:3\n"
    talk(tiny_model, "--session", "work", lines=lines)
    (tmp_path / "notes.txt").unlink()
    code, _, err = talk(tiny_model, "--session", "work", lines="/files\n/pin\nand?\n/evidence\n")
    assert code == 0
    assert "notes.txt · turn 1 · 3 lines" in err
    assert "notes.txt:3\n" in err
    assert "notes.txt:2" in err


def test_the_same_command_goes_on_with_its_document(tiny_model: Path, folder: Path, tmp_path: Path) -> None:
    """The line that began a session, taken from the shell's history, goes on with it."""
    (tmp_path / "notes.txt").write_text("alpha\nbeta\n")
    arguments = ("--session", "work", "-f", f"{tmp_path}/notes.txt")
    talk(tiny_model, *arguments, lines="what?\n")
    code, _, err = talk(tiny_model, *arguments, lines="and?\n")
    assert code == 0
    assert "notes.txt is part of the conversation already" in err
    assert "error" not in err
    assert len(saved(folder, "work")["entries"]) == 4


def test_a_document_whose_question_has_no_answer_is_not_lost(tiny_model: Path, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("alpha\nbeta\n")
    talk(tiny_model, "--session", "work", "-f", f"{tmp_path}/notes.txt", lines="what?\n")
    path = folder / "work.json"
    session = json.loads(path.read_text())
    del session["entries"][1:]
    path.write_text(json.dumps(session))
    code, _, err = talk(tiny_model, "--session", "work", lines="/files\nwhat now?\n")
    assert code == 0
    assert "waits for a question" in err
    assert saved(folder, "work")["entries"][0]["parts"][0].endswith("alpha\nbeta")


def test_half_a_character_in_a_session(tiny_model: Path, folder: Path) -> None:
    talk(tiny_model, "--session", "work", lines="hello\n")
    path = folder / "work.json"
    path.write_text(path.read_text().replace('"hello"', '"hel\\ud800lo"'))
    code, _, err = talk(tiny_model, "--session", "work", lines="and?\n")
    assert code == 2
    assert "entries[0] has half a character" in err
