"""What was typed is remembered in a file that only its owner can read; a history that cannot be kept stops nothing."""

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from support.desk import PROMPT, Desks
from uncomp_cli.ui.line_editor import PrivateHistory, history_path

UP = "\x1b[A"


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def entries(path: Path) -> list[str]:
    """What a new process would remember, the newest first."""
    return list(PrivateHistory(path).load_history_strings())


def test_lines_are_there_in_the_next_chat(desks: Desks, tmp_path: Path) -> None:
    path = tmp_path / "state" / "history"
    desk = desks.sit_down(HISTORY=str(path))
    assert desk.says("the first") == "the first"
    assert desk.says('"""two\rlines"""') == "two\nlines"
    desk.leaves()
    assert entries(path) == ['"""two\nlines"""', "the first"]
    assert mode_of(path) == 0o600
    assert mode_of(path.parent) == 0o700

    desk = desks.sit_down(HISTORY=str(path))
    desk.sees(PROMPT)
    desk.types(UP + UP + UP)
    desk.sees("the first")
    desk.types("\r")
    assert desk.reads() == "the first"


def test_without_a_file_a_chat_remembers_its_own_lines(desks: Desks, tmp_path: Path) -> None:
    desk = desks.sit_down(XDG_STATE_HOME=str(tmp_path), HOME=str(tmp_path))
    desk.says("only here")
    assert desk.says(UP) == "only here"
    desk.leaves()
    assert list(tmp_path.rglob("*")) == []


def test_a_history_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_text("\n# long ago\n+older\n")
    path.chmod(0o644)
    PrivateHistory(path).store_string("newer")
    assert mode_of(path) == 0o600
    assert entries(path) == ["newer", "older"]


def test_a_torn_entry_spoils_no_other(tmp_path: Path) -> None:
    path = tmp_path / "history"
    path.write_bytes(b"\n# long ago\n+older\n\n# now\n+ha\xff")
    PrivateHistory(path).store_string("emoji 🎈\nand\rmore")
    assert entries(path) == ["emoji 🎈\nand\rmore", "ha\ufffd", "older"]


def test_two_chats_share_a_history(tmp_path: Path) -> None:
    path = tmp_path / "history"
    one, other = PrivateHistory(path), PrivateHistory(path)
    for number in range(3):
        one.append_string(f"one {number}")
        other.append_string(f"other {number}")
    assert sorted(entries(path)) == sorted(f"{who} {number}" for who in ("one", "other") for number in range(3))


def test_a_history_that_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    history = PrivateHistory(tmp_path / "file" / "history")
    assert history.take_problem() == ""
    history.store_string("first")
    assert "file/history cannot be written: File exists" in history.take_problem()
    history.store_string("second")
    assert history.take_problem() == ""


def test_the_chat_goes_on_without_a_history(desks: Desks, tmp_path: Path) -> None:
    (tmp_path / "history").mkdir()
    desk = desks.sit_down(HISTORY=str(tmp_path / "history"))
    desk.sees(PROMPT)
    desk.types("first\r")
    desk.sees(r"(?s)warning:.*?/history\s+cannot\s+be\s+read:\s+Is\s+a\s+directory")  # a long path wraps the line
    assert desk.reads() == "first"
    assert desk.says("second") == "second"


def test_the_place_of_the_history(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert history_path() == tmp_path / "uncomp" / "history"


def test_writers_in_other_processes_do_not_tear_entries(tmp_path: Path) -> None:
    """Entries far longer than a pipe or a buffer is."""
    path = tmp_path / "history"
    write = (
        "import sys; from pathlib import Path; from uncomp_cli.ui.line_editor import PrivateHistory\n"
        "for _ in range(20): PrivateHistory(Path(sys.argv[1])).store_string(sys.argv[2] * 100_000)"
    )
    writers = [subprocess.Popen([sys.executable, "-c", write, str(path), letter]) for letter in "ab"]
    assert [writer.wait() for writer in writers] == [0, 0]
    assert sorted(entries(path)) == ["a" * 100_000] * 20 + ["b" * 100_000] * 20
