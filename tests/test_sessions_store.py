"""A session outlives what ends a process, and belongs to one chat at a time."""

import os
import random
import signal
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from support.matrix import some
from uncomp_cli.errors import UncompError, UsageError
from uncomp_cli.sessions.folder import (
    open_session,
    read_session,
    session_dir,
    session_names,
    session_path,
)
from uncomp_cli.sessions.transcript import Entry, Transcript

ONE_TURN = Transcript("m", "p", entries=(Entry("user", "hello"), Entry("assistant", "hi")))

# Saves 1, 2, 3, … turns of a long text without end, and tells after each how many there are.
SAVE_ON = """
from dataclasses import replace
from uncomp_cli.sessions.folder import open_session
from uncomp_cli.sessions.transcript import Entry, Transcript
with open_session("talk") as session:
    transcript = session.load() or Transcript("m", "p", system="x" * 300_000)
    while True:
        number = len(transcript.entries) // 2
        added = (Entry("user", f"question {number}"), Entry("assistant", f"answer {number}", ids=(number,)))
        transcript = session.save(replace(transcript, entries=(*transcript.entries, *added)))
        print(number + 1, flush=True)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All sessions lie below the test's own folder."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    return tmp_path / "uncomp" / "sessions"


def run(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


def save(name: str, transcript: Transcript = ONE_TURN) -> Transcript:
    with open_session(name) as session:
        return session.save(transcript)


def leftovers(folder: Path) -> list[Path]:
    return list(folder.glob(".*.new"))


# Keeping


def test_a_session_is_resumed(folder: Path) -> None:
    with open_session("talk") as session:
        assert session.load() is None
        first = session.save(ONE_TURN)
        assert first.created == first.updated != ""
        then = session.save(replace(first, created="2026-01-31T12:00:00+00:00", system="changed"))
    assert session.path == folder / "talk.json" == session_path("talk")
    with open_session("talk") as session:
        assert session.load() == then == read_session("talk")
    assert then.created == "2026-01-31T12:00:00+00:00"
    assert leftovers(folder) == []


def test_sessions_are_for_their_owner_only(folder: Path) -> None:
    save("talk")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [stat.S_IMODE(path.stat().st_mode) for path in folder.glob("*.json")] == [0o600]


def test_a_session_may_be_a_link(folder: Path, tmp_path: Path) -> None:
    folder.mkdir(parents=True)
    elsewhere = tmp_path / "elsewhere.json"
    (folder / "talk.json").symlink_to(elsewhere)
    saved = save("talk")
    assert (folder / "talk.json").is_symlink()
    assert Transcript.from_json(elsewhere.read_bytes()) == saved == read_session("talk")


def test_sessions_are_listed(folder: Path) -> None:
    assert session_names() == []
    save("b.2", replace(ONE_TURN, entries=(*ONE_TURN.entries, Entry("user", "and?"))))
    save("a")
    (folder / "broken.json").write_text("{")
    (folder / "not a name.json").write_text("{}")
    assert session_names() == ["a", "b.2", "broken"]
    with pytest.raises(UsageError, match="no session 'brokn'") as caught:
        read_session("brokn")
    assert caught.value.hint == "did you mean 'broken'?"


@pytest.mark.parametrize("name", ["work", "2026-01-31", "Ünder_score.v2", "a"])
def test_names(name: str) -> None:
    assert session_path(name).parent == session_dir()


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "a/b", "/x/y", "../x", "a b", "a\n", "-flag", "x.json", "dot.", "a" * 101]
)
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(UsageError, match="session name") as caught, open_session(name):
        pass
    assert caught.value.hint


def test_a_session_edited_into_nonsense_is_named_and_stays(folder: Path) -> None:
    save("talk")
    path = folder / "talk.json"
    path.write_text(path.read_text().replace('"hi"', "hi"))
    nonsense = path.read_bytes()
    with open_session("talk") as session, pytest.raises(UsageError, match=r"talk\.json: it is not JSON: .*line \d+"):
        session.load()
    assert path.read_bytes() == nonsense


# One chat at a time


def test_two_chats_on_one_session() -> None:
    attempt = 'from uncomp_cli.sessions.folder import open_session\nwith open_session("talk"): pass'
    with open_session("talk"):
        refused = run(attempt)
        assert f"session 'talk' is open in process {os.getpid()} (" in refused.stderr
        with pytest.raises(UncompError, match=f"is open in process {os.getpid()} "), open_session("talk"):
            pass
        assert run(attempt.replace("talk", "other")).returncode == 0
        assert run(attempt).returncode == 1
    assert run(attempt).returncode == 0


def test_a_chat_that_is_gone_holds_nothing() -> None:
    with subprocess.Popen([sys.executable, "-c", SAVE_ON], stdout=subprocess.PIPE, text=True) as chat:
        assert chat.stdout is not None
        chat.stdout.readline()
        with pytest.raises(UncompError, match=rf"is open in process {chat.pid} \(python"), open_session("talk"):
            pass
        assert read_session("talk").entries  # reading is always possible
        chat.kill()
    with open_session("talk") as session:
        assert session.load() is not None


# Whatever happens


def test_a_save_that_fails_in_the_middle_keeps_what_was_there(folder: Path) -> None:
    """A limit on the size of files ends the write after some of the bytes, as a full disk does."""
    before = save("talk")
    failed = run(
        "import resource\nfrom dataclasses import replace\n"
        "from uncomp_cli.sessions.folder import open_session\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "with open_session('talk') as session: session.save(replace(session.load(), system='x' * 200_000))"
    )
    assert "UncompError: session" in failed.stderr
    assert "talk.json cannot be written: File too large" in failed.stderr
    assert read_session("talk") == before
    assert leftovers(folder) == []


def test_a_folder_that_cannot_be_used_is_told(folder: Path) -> None:
    folder.parent.mkdir()
    folder.write_text("a file")
    with pytest.raises(UncompError, match=r"sessions cannot be kept in .*: File exists"), open_session("talk"):
        pass


def wait_for_a_save(folder: Path) -> None:
    deadline = time.monotonic() + 60
    while not leftovers(folder):
        assert time.monotonic() < deadline


def kill_while_saving(folder: Path, times: int) -> int:
    """Kill a process that saves, again and again; how many died in the middle of writing.

    Every other kill is at a random moment, the rest when a file is seen being written. Every save that was told of must
    be there, whole, and go on to be there when the next process is killed.
    """
    moments = random.Random(times)
    other, died_saving = save("other"), 0
    for number in range(times):
        with subprocess.Popen([sys.executable, "-c", SAVE_ON], stdout=subprocess.PIPE, text=True) as chat:
            assert chat.stdout is not None
            told = int(chat.stdout.readline())
            if number % 2:
                time.sleep(moments.uniform(0, 0.03))
            else:
                wait_for_a_save(folder)
            chat.send_signal(signal.SIGKILL)
            told = max([told, *map(int, chat.stdout.read().splitlines())])
        died_saving += bool(leftovers(folder))
        found = read_session("talk")
        assert len(found.entries) // 2 in (told, told + 1)
        assert [entry.ids for entry in found.entries[1::2]] == [(turn,) for turn in range(len(found.entries) // 2)]
        assert found.system == "x" * 300_000
    assert read_session("other") == other
    with open_session("talk"):
        assert leftovers(folder) == []
    return died_saving


def test_kill_9_loses_no_turn(folder: Path) -> None:
    assert kill_while_saving(folder, times=len(some(8, 20))) > 0


@pytest.mark.slow
def test_1000_kills_lose_no_turn(folder: Path) -> None:
    died_saving = kill_while_saving(folder, times=1000)
    print(f"1000 kills, {died_saving} in the middle of writing")
    assert died_saving > 100
