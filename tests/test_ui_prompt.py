"""What is typed, pasted or piped comes as it was meant: one text at a time, through a real pseudo-terminal."""

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from prompt_toolkit.key_binding.key_processor import KeyPress

from support.desk import PROMPT, Desks
from support.pace import swift
from uncomp_cli.ui.blocks import is_open, without_quotes
from uncomp_cli.ui.line_editor import GRACE_S, PasteParser, paths_beginning

READ_ALL = """
import sys
from uncomp_cli.errors import UncompError
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.input import line_reader
from uncomp_cli.ui.interrupts import Interrupts
read = line_reader(Terminal.detect(), Interrupts(), status=lambda: "status", completer=lambda line: [])
while True:
    try:
        print(ascii(read()))
    except UncompError as error:
        print("REFUSED", error.message, "|", error.hint)
    except EOFError:
        break
"""


def piped(data: bytes) -> list[str]:
    """What is read of standard input, as Python literals; nothing is said on standard error."""
    ran = subprocess.run([sys.executable, "-c", READ_ALL], input=data, capture_output=True, check=True)
    assert ran.stderr == b""
    return ran.stdout.decode().splitlines()


# A line


def test_lines_are_read_until_ctrl_d(desks: Desks) -> None:
    desk = desks.sit_down()
    assert desk.says("hello there") == "hello there"
    assert desk.says("emoji 🎈 and עברית") == "emoji 🎈 and עברית"
    assert desk.says("") == ""
    desk.leaves()


def test_ctrl_c_clears_the_line_and_interrupts_an_empty_one(desks: Desks) -> None:
    desk = desks.sit_down()
    desk.sees(PROMPT)
    desk.types("half a line\x03a whole one\r")
    assert desk.reads() == "a whole one"
    desk.sees(PROMPT)
    desk.types('"""block\rof lines\x03\x03')  # the second comes too soon behind the prompt to leave
    time.sleep(GRACE_S + 0.5)
    desk.types("\x03")
    desk.sees("INTERRUPTED")


def test_on_a_plain_terminal_a_second_ctrl_c_interrupts(desks: Desks) -> None:
    desk = desks.sit_down("--plain")
    desk.sees(PROMPT)
    desk.types("half a line\x03")
    desk.sees(PROMPT)
    desk.types("\x03")
    desk.sees("INTERRUPTED")


@pytest.mark.parametrize("args", [(), ("--plain",)])
def test_a_line_can_be_corrected(desks: Desks, args: tuple[str, ...]) -> None:
    desk = desks.sit_down(*args)
    assert desk.says("hexl\x7f\x7fllo") == "hello"


def test_a_password_is_asked_for_without_echo(desks: Desks) -> None:
    desk = desks.sit_down()
    desk.sees(PROMPT)
    desk.types("/unlock\r")
    desk.sees(r"it is locked\r\n.*password")
    desk.types("dark\r")
    seen = desk.sees(r": \r\n.*it is locked\r\n.*password")
    assert "dark" not in seen[0]
    desk.types("lamp\r")
    assert "lamp" not in desk.sees(r": \r\nOPENED all of it")[0]
    desk.sees(PROMPT)
    desk.types("/unlock\r")
    desk.sees("password")
    desk.types("\r")
    desk.sees(r"REFUSED it is locked \| --password PASSWORD")


# Several lines


@pytest.mark.parametrize("changes", [{}, {"TERM": "dumb"}], ids=str)
def test_a_block_comes_as_one_text(desks: Desks, changes: dict[str, str]) -> None:
    desk = desks.sit_down(**changes)
    desk.sees(PROMPT)
    desk.types('"""first\r')
    desk.types("second\r\r")
    desk.types('last"""\r')
    assert desk.reads() == "first\nsecond\n\nlast"
    assert desk.says('"""one line"""') == "one line"
    assert desk.says('say """ and go on') == 'say """ and go on'
    desk.leaves()


def test_a_pasted_text_is_one_text_and_waits_for_enter(desks: Desks) -> None:
    desk = desks.sit_down()
    desk.sees(PROMPT)
    desk.types('\x1b[200~def f():\r\n    """It does."""\r\n\treturn 1\x1b[201~')
    desk.types(" # typed\r")
    assert desk.reads() == 'def f():\n    """It does."""\n\treturn 1 # typed'
    assert desk.says("next") == "next"


def test_alt_enter_begins_a_line(desks: Desks) -> None:
    assert desks.sit_down().says("one\x1b\rtwo") == "one\ntwo"


def test_a_long_paste_is_read_whole(desks: Desks) -> None:
    pasted = "".join(f"line {number} of a long text\n" for number in range(2000))
    desk = desks.sit_down()
    desk.sees(PROMPT)
    desk.types(f"\x1b[200~{pasted}\x1b[201~\r")
    assert desk.reads() == pasted


@pytest.mark.parametrize(("length", "piece"), [(5_000_000, 1024), (50_000, 1)])
def test_how_long_a_paste_takes_is_by_its_length(length: int, piece: int) -> None:
    found: list[KeyPress] = []
    parser = PasteParser(found.append)
    with swift(3):
        typed = f"a\x1b[200~{'b' * length}\x1b[201~c\x1b[200~d\x1b[201~\r"
        for at in range(0, len(typed), piece):
            parser.feed(typed[at : at + piece])
    assert [key.data for key in found] == ["a", "b" * length, "c", "d", "\r"]


@pytest.mark.parametrize(
    ("text", "is_block", "inside"),
    [
        ('"""', True, '"""'),
        ('"""a', True, '"""a'),
        ('"""a"""', False, "a"),
        (' """\n  a\n\n b\n""" ', False, "  a\n\n b"),
        ('"""""', True, '"""""'),
        ('""""""', False, ""),
        ('a """', False, 'a """'),
        ('""a""', False, '""a""'),
        ("", False, ""),
    ],
)
def test_what_is_a_block(text: str, is_block: bool, inside: str) -> None:
    assert is_open(text) is is_block
    assert without_quotes(text) == inside


# Not a terminal


def test_a_pipe_is_read_line_by_line() -> None:
    assert piped(b'one\r\n\n"""two\nthree"""\nfour') == ["'one'", "''", "'two\\nthree'", "'four'"]


def test_a_block_without_an_end_is_refused() -> None:
    refused = 'REFUSED the input ended in a """ block of 2 lines | end the block with """'
    assert piped(b'one\n"""two\nthree\n') == ["'one'", refused]


def test_bytes_that_are_no_text_reach_the_caller() -> None:
    assert piped(b"h\xe9llo\n") == ["'h\\udce9llo'"]


def test_a_closed_standard_input_is_an_empty_one() -> None:
    command = f"exec {sys.executable} -c '{READ_ALL}' <&-"
    ran = subprocess.run(["/bin/sh", "-c", command], capture_output=True, check=True)
    assert (ran.stdout, ran.stderr) == (b"", b"")


def test_a_dumb_terminal_sees_no_escape(desks: Desks) -> None:
    desk = desks.sit_down(TERM="dumb", STATUS="context 5 %")
    shown = desk.sees("(?s).*> ").group()
    for typed in ("hello\r", '"""two\r'):
        desk.types(typed)
        shown += desk.sees(r"(?s).*\n[>.] ").group()
    desk.types('lines"""\r')
    shown += desk.sees("(?s).*> ").group()
    said = [line.rstrip("\r") for line in shown.split("\n")]
    assert said == ["> hello", "TEXT 'hello'", '> """two', '. lines"""', r"TEXT 'two\nlines'", "> "]


# Completion


def test_tab_completes_commands_and_their_arguments(desks: Desks) -> None:
    desk = desks.sit_down()
    assert desk.says("/p\tb\t") == "/preset balanced"
    desk.sees(PROMPT)
    desk.types("/preset \t")
    assert "/preset small" not in desk.sees("(?s).*balanced.*?small").group()  # what is new, below the line
    desk.types("s\t\r")
    assert desk.reads() == "/preset small"
    assert desk.says("/f\t") == "/file"


def test_enter_takes_what_is_chosen_and_sends_nothing_yet(desks: Desks) -> None:
    desk = desks.sit_down()
    assert desk.says("/preset \t\t\t\r, please") == "/preset small, please"
    assert desk.says("next") == "next"


def test_what_has_no_candidate_stays(desks: Desks) -> None:
    assert desks.sit_down().says("nothing like it\t") == "nothing like it"


def test_paths_are_offered_as_they_were_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("notes.md", "no space.txt", ".hidden", "bell\a.txt", "übung.md"):
        Path(name).write_text("x")
    Path("nested").mkdir()
    Path("nested/deep.md").write_text("x")
    assert paths_beginning("n") == ["nested/", "no space.txt", "notes.md"]
    assert paths_beginning("") == ["nested/", "no space.txt", "notes.md", "übung.md"]
    assert paths_beginning(".h") == [".hidden"]
    assert paths_beginning("./nested/") == ["./nested/deep.md"]
    assert paths_beginning("~/no") == ["~/no space.txt", "~/notes.md"]
    assert paths_beginning(f"{tmp_path}/nes") == [f"{tmp_path}/nested/"]
    assert paths_beginning("nowhere/x") == paths_beginning("~nobody-here/x") == paths_beginning("a\0/") == []


# The toolbar


def test_the_status_is_shown_below_and_wraps_when_the_window_gets_narrow(desks: Desks) -> None:
    desk = desks.sit_down(cursor_row=5, STATUS="context 120/8,192 (1.5 %) · KV 3.1 MiB\x1b[31m\n· tail")
    desk.sees(PROMPT)
    shown = desk.sees(r"context 120/8,192[^\r\n]*?tail").group()
    assert "^[" not in shown
    assert "·" in shown
    desk.resize(30)
    desk.sees(r"context 120/8,192[^\n]*\n[^\n]*3\.1 MiB[^\n]*tail")
    desk.types("a line that is typed after it became narrow\r")
    assert desk.reads() == "a line that is typed after it became narrow"


@pytest.mark.parametrize("args", [(), ("--no-color",)])
def test_without_colour_nothing_is_coloured(desks: Desks, args: tuple[str, ...]) -> None:
    shown = desks.sit_down(*args, cursor_row=5, STATUS="context 120/8,192").sees("(?s).*context 120/8,192").group()
    looks = set(re.findall(r"\x1b\[[0-9;]*m", shown))
    assert (looks == {"\x1b[0m"}) is ("--no-color" in args)
