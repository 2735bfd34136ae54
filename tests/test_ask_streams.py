"""`uncomp ask` as a process: what reaches each stream, on pipes and terminals, and what Ctrl-C leaves behind."""

import json
import os
import re
import signal
import subprocess
import sys
from importlib.util import find_spec
from itertools import groupby
from pathlib import Path
from typing import Literal

import pytest

from support.commands import ENDLESS, PRELOADED, Running, environment, last_object, start, two_lines
from support.screen import ESCAPE, screen
from support.tiny import make_tiny_model

LONG = [*ENDLESS, "--max-new-tokens", "3500"]


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "notes.txt"
    path.write_text("The harbour was quiet and the lamps were lit. " * 8)
    return path


def ask(document: Path, model: Path, *args: str) -> list[str]:
    return ["ask", "-f", str(document), "-m", str(model), "--max-new-tokens", "24", *args]


def test_a_pipe_gets_the_answer_and_nothing_else(document: Path, tiny_model: Path) -> None:
    args = ask(document, tiny_model, "Where?")
    code, out, err = start(*args).finish()
    assert code == 0
    assert re.fullmatch(r"[a-z]{24}\n", out)
    assert ESCAPE not in err
    lines = err.splitlines()
    assert lines[:3] == ["preparing", "measuring", f"loading {tiny_model}"]
    assert re.fullmatch(r"preset balanced was measured on smollm2-135m; for .* preset live is used", lines[3])
    asked = r"budget 20%, at least 512 tokens of the document \(live, uncertain\)"
    assert re.match(
        asked + r": at most \d+ of \d+ tokens per head, .* in 16 bits \(\d+ %, \d+\.\d % of float32\)$", lines[4]
    )
    assert re.match(r"\d+ tok in .* s · .* tok/s · KV .* of .* %\)$", lines[-1])
    long = start(*args, "-v").finish()[2].splitlines()[-1]
    assert re.match(r"prefill \d+ tok .* · first token .* · KV .* · peak .* · context \d+/4,096$", long)
    assert start(*args, stderr="null").finish() == (0, out, "")
    ended = "warning: the answer ended at its longest length, 24 tokens: --max-new-tokens 48 lets it go on\n"
    assert start(*args, "-q").finish() == (0, out, ended)
    as_json = start(*args, "--json", "-q").finish()[1]
    assert as_json.count("\n") == 1
    assert last_object(as_json)["answer"] + "\n" == out


def test_several_answers_are_told_apart(document: Path, tiny_model: Path) -> None:
    code, out, err = start(*ask(document, tiny_model, "Where?", "-Q", "When?", "-Q", "Who?")).finish()
    assert code == 0
    assert re.fullmatch(r"[a-z]{24}\n\n[a-z]{24}\n\n[a-z]{24}\n", out)
    assert [line for line in err.splitlines() if line.startswith("question")] == [
        "question 1 of 3: Where?", "question 2 of 3: When?", "question 3 of 3: Who?",
    ]  # fmt: skip
    assert len(re.findall(r"^\d+ tok in .* KV", err, re.MULTILINE)) == 3


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_an_answer_with_its_record(document: Path, tiny_model: Path, number: int, code: int) -> None:
    running = start(*ask(document, tiny_model, "Where?", *LONG))
    running.wait_for_bytes("stdout")
    os.kill(running.process.pid, number)
    ended, out, err = running.finish()
    assert (ended, out[-1]) == (code, "\n")
    assert "[interrupted]" in err
    running = start(*ask(document, tiny_model, "Where?", "--json", *LONG), stderr="tty")
    running.wait_for("stderr", " tok · KV")
    os.kill(running.process.pid, number)
    ended, out, _ = running.finish()
    assert (ended, last_object(out)["finish_reason"]) == (code, "interrupted")


@pytest.mark.parametrize("flag", [(), ("-v",), ("--json",), ("--plain",)])
@pytest.mark.parametrize("stderr", ["pipe", "tty"])
def test_an_answer_is_written_though_nobody_reads_standard_error(
    document: Path, tiny_model: Path, stderr: Literal["pipe", "tty"], flag: tuple[str, ...]
) -> None:
    running = start(*ask(document, tiny_model, "Where?", *flag), stderr=stderr)
    if stderr == "tty":
        running.wait_for_bytes("stderr")
    os.close(running.readers.pop("stderr"))
    code, out, _ = running.finish()
    assert code == 0
    answer = last_object(out)["answer"] + "\n" if "--json" in flag else out
    assert re.fullmatch(r"[a-z]{24}\n", answer)


@pytest.mark.parametrize("command", ["ask", "ask --json", "chat", "model"])
def test_who_cannot_write_says_so_and_fails(document: Path, tiny_model: Path, command: str) -> None:
    lines = {
        "ask": ask(document, tiny_model, "Where?"),
        "ask --json": ask(document, tiny_model, "Where?", "--json"),
        "chat": ["chat", "-m", str(tiny_model), "--max-new-tokens", "8"],
        "model": ["model", "list"],
    }
    code, _, err = start(*lines[command], stdin=b"hello\nagain\n", stdout="full").finish()
    assert code == 1
    failure = (
        "error: standard output: No space left on device\nhint: check the path, its permissions and the free space\n"
    )
    assert err.endswith(failure)
    assert err.count("error") == 1


@pytest.mark.parametrize("plain", [False, True])
def test_on_a_terminal_every_answer_has_its_heading(document: Path, tiny_model: Path, plain: bool) -> None:
    args = ask(document, tiny_model, "Where?", "-Q", "When\x1b[2J?", *(["--plain"] if plain else []))
    code, out, err = start(*args, stdout="tty").finish()
    assert code == 0
    titles = "question 1 of 2: Where?", "question 2 of 2: When[2J?"
    first, second = titles if plain else [f"\x1b[1m{title}\x1b[0m" for title in titles]
    assert re.fullmatch(rf"{re.escape(first)}\n[a-z]{{24}}\n\n{re.escape(second)}\n[a-z]{{24}}\n", out)
    assert "question 1" not in err
    alone = start(*ask(document, tiny_model, "Where?"), stdout="tty").finish()[1]
    assert re.fullmatch(r"[a-z]{24}\n", alone)


def test_standard_input_is_a_document(document: Path, tiny_model: Path) -> None:
    args = ["ask", "-m", str(tiny_model), "--max-new-tokens", "24", "--json", "Where?"]
    code, out, _ = start(*args, stdin=document.read_bytes()).finish()
    assert code == 0
    from_stdin, from_file = last_object(out), last_object(start(*args, "-f", str(document)).finish()[1])
    assert [file["path"] for file in from_stdin["files"]] == ["-"]
    assert from_stdin["files"][0]["sha256"] == from_file["files"][0]["sha256"]
    assert from_stdin["answer"] == from_file["answer"]
    both = last_object(start(*args, "-f", "-", "-f", str(document), stdin=b"A second text.").finish()[1])
    assert [file["path"] for file in both["files"]] == ["-", str(document)]


@pytest.mark.parametrize("args", [["ask", "-f", "PIPE", "Where?"], ["ask", "--questions", "PIPE"], ["chat", "PIPE"]])
def test_a_pipe_without_a_writer_is_waited_for_aloud(tmp_path: Path, tiny_model: Path, args: list[str]) -> None:
    os.mkfifo(tmp_path / "p\x1bipe")
    running = start(*(str(tmp_path / "p\x1bipe") if arg == "PIPE" else arg for arg in args), "-m", str(tiny_model))
    running.wait_for("stderr", f"waiting for {tmp_path}/pipe\n")
    running.interrupt()
    assert running.finish()[0] == 130


def test_a_terminal_without_a_file_is_asked_for_one() -> None:
    code, out, err = start("ask", "Where?", stdin=None).finish()
    assert (code, out) == (2, "")
    assert two_lines(err) == (
        "no document was given, and standard input is a terminal", 'uncomp ask -f doc.txt "question"',
    )  # fmt: skip


def test_on_a_terminal_the_bar_comes_and_goes(document: Path, tiny_model: Path) -> None:
    code, out, err = start(*ask(document, tiny_model, "Where?"), stdout="tty", stderr="tty").finish()
    assert code == 0
    assert re.fullmatch(r"[a-z]{24}\n", out)
    assert re.search(r"prefill \d+ tok .*━", err)
    left = screen(err).splitlines()
    assert [line.split()[0] for line in left if line.strip()] == ["preset", "budget", "warning:", left[-1].split()[0]]
    assert "━" not in screen(err)
    assert " tok in " in left[-1]


def test_the_pace_shows_while_the_answer_goes_elsewhere(document: Path, tiny_model: Path) -> None:
    _, out, err = start(*ask(document, tiny_model, "Where?"), stderr="tty").finish()
    assert re.fullmatch(r"[a-z]{24}\n", out)
    assert re.search(r"\d.* tok/s · \d+ tok · KV", err)
    assert screen(err).count("tok/s") == 1  # the readout's own


def test_nobody_but_us_drives_the_terminal(tmp_path: Path) -> None:
    """Control characters in the answer, a file's name and a question stay off a terminal, and in a pipe's bytes."""
    rude = make_tiny_model(tmp_path / "rude", sayable="\x1b\x07[2Jm")
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "a.txt").write_text("The harbour was quiet. " * 20)
    (folder / "b\x1b]0;mine\x07.bin").write_bytes(b"\0\1\2")
    args = ask(folder, rude, "Where\x1b[5m?", "-Q", "When?")
    code, out, err = start(*args, stdout="tty", stderr="tty", NO_COLOR="1").finish()
    assert code == 0
    assert "skipped" in err
    assert "]0;mine" in err
    assert "Where[5m?" in out
    assert "\x07" not in out + err
    assert ESCAPE not in out
    drawn = {"\x1b[?25l", "\x1b[?25h", "\x1b[2K", "\x1b[1A", "\x1bD", "\x1b7\r\x1b[2K", "\x1b8\x1b[A", "\x1b[J"}
    assert set(re.findall(r"\x1b[^A-Za-z]*[A-Za-z]", err)) <= drawn
    assert ESCAPE in start(*args).finish()[1]


def test_ctrl_c_keeps_what_was_said(document: Path, tiny_model: Path, long_lived: list[Running]) -> None:
    running = start(*ask(document, tiny_model, "Where?", *LONG))
    long_lived.append(running)
    running.wait_for_bytes("stdout")
    running.interrupt()
    code, out, err = running.finish()
    assert code == 130
    assert re.fullmatch(r"[a-z]{1,3400}\n", out)
    assert "error" not in err
    assert " tok in " in err.splitlines()[-1]
    whole = start(*ask(document, tiny_model, "Where?", "--max-new-tokens", str(len(out) - 1))).finish()[1]
    assert whole == out


def test_ctrl_c_keeps_what_was_said_as_json(document: Path, tiny_model: Path, long_lived: list[Running]) -> None:
    running = start(*ask(document, tiny_model, "Where?", "-Q", "When?", "--json", *LONG), stderr="tty")
    long_lived.append(running)
    running.wait_for("stderr", " tok · KV")
    running.interrupt()
    code, out, _ = running.finish()
    assert code == 130
    assert [record["question"] for record in map(json.loads, out.splitlines())] == ["Where?", "When?"]
    for record in map(json.loads, out.splitlines()):  # both were being answered
        assert record["finish_reason"] == "interrupted"
        assert 0 < record["usage"]["completion_tokens"] < 3400
        assert 0 <= record["usage"]["completion_tokens"] - len(record["answer"]) <= 1


def test_a_forked_process_is_like_one_started_from_nothing(tiny_model: Path, tmp_path: Path) -> None:
    document = tmp_path / "notes.txt"
    document.write_text("The harbour was quiet.")
    args = ["ask", "-f", str(document), "-m", str(tiny_model), "-b", "full", "--max-new-tokens", "30", "Where?"]
    done = subprocess.run(
        [sys.executable, "-m", "uncomp_cli", *args],
        capture_output=True,
        check=False,
        text=True,
        env=environment(PYTHONPATH=str(Path(__file__).parent.parent)),
    )
    code, out, err = start(*args).finish()
    assert code == done.returncode == 0, (err, done.stderr)
    assert done.stdout == out
    assert len(out.strip("\n")) == 30
    first = ["preparing", "measuring", f"loading {tiny_model}"]
    assert done.stderr.splitlines()[:3] == err.splitlines()[:3] == first
    assert told(done.stderr) == told(err)


def told(stderr: str) -> list[str]:
    """What the lines begin with; how often one is written again depends on how long its work takes."""
    return [word for word, _ in groupby(line.split()[0] for line in stderr.splitlines())]


@pytest.mark.parametrize("module", PRELOADED)
def test_what_forked_processes_share_is_there(module: str) -> None:
    """The server that they are forked from says nothing of a module that it does not find."""
    assert find_spec(module) is not None
