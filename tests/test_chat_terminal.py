"""`uncomp chat` typed into through a real pseudo-terminal, and piped into."""

import os
import pty
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pexpect.fdpexpect
import pytest
from test_ask_support import PATIENCE_S, start, start_on, tiny_model

__all__ = ["tiny_model"]

NO_CPR = {"PROMPT_TOOLKIT_NO_CPR": "1"}  # nobody here answers where the cursor is
PROMPT = r">(?: |\x08\x1b\[2C)"  # prompt_toolkit moves the cursor instead of writing a space
READOUT = r"prefill ([\d,]+) tok .*? context ([\d,]+)/4,096"
ENDED = r"\[the answer ended at its longest length"


class Typist:
    """Types at a chat, and reads what it shows."""

    def __init__(self, *args: str) -> None:
        ours, theirs = pty.openpty()
        self.process: Any = start_on([theirs, theirs, theirs], ["chat", *args], **NO_CPR)
        os.close(theirs)
        self.terminal = pexpect.fdpexpect.fdspawn(ours, timeout=20, encoding="utf-8")
        self.sees("Ctrl-D leaves")

    def sees(self, pattern: str) -> re.Match[str]:
        """What matched, where it comes next on the screen."""
        self.terminal.expect(pattern)
        match: re.Match[str] = self.terminal.match
        return match

    def types(self, line: str) -> None:
        """A line and Enter, once the prompt is there."""
        self.sees(PROMPT)
        self.terminal.send(line + "\r")

    def says(self, line: str, *patterns: str) -> list[re.Match[str]]:
        """Type a line and see every pattern in order."""
        self.types(line)
        return [self.sees(pattern) for pattern in patterns]

    def presses(self, key: str) -> None:
        """Ctrl and a key."""
        self.terminal.send(chr(ord(key) - ord("a") + 1))

    def exit_code(self) -> int | None:
        """Wait for the end."""
        self.terminal.expect(pexpect.EOF)
        self.process.join(PATIENCE_S)
        code: int | None = self.process.exitcode
        return code


@pytest.fixture
def typists() -> Iterator[list[Typist]]:
    """Those in here are gone after the test."""
    found: list[Typist] = []
    yield found
    for typist in found:
        typist.process.kill()
        typist.terminal.close()


def sit_down(typists: list[Typist], model: Path, *args: str) -> Typist:
    typists.append(Typist("-m", str(model), *args))
    return typists[-1]


def numbers(match: re.Match[str]) -> list[int]:
    return [int(group.replace(",", "")) for group in match.groups()]


def test_three_turns_with_a_ctrl_c_in_the_second(tiny_model: Path, typists: list[Typist]) -> None:
    chat = sit_down(typists, tiny_model, "--max-new-tokens", "500")
    first, _, readout = chat.says("hello there", "[a-z]{40}", ENDED, READOUT)
    assert first.group()
    prompt, context = numbers(readout)
    assert context == prompt + 500

    chat.says("and again", "[a-z]{12}")
    chat.presses("c")
    chat.sees(r"\[interrupted: what is above stays in the conversation\]")
    (cached,) = numbers(chat.sees(r"cached ([\d,]+) · "))
    prefilled, interrupted_context = numbers(chat.sees(READOUT))
    assert cached == context - 1  # the last token chosen is in no cache yet
    assert prefilled < 70
    assert interrupted_context < cached + prefilled + 500

    stats = chat.says("/stats", r"(\d+) turns \((\d+) interrupted\) · context ([\d,]+)/4,096")[0]
    assert numbers(stats) == [2, 1, interrupted_context - 1]
    chat.sees(READOUT)

    (cached_then,) = numbers(chat.says("third", "[a-z]{40}", r"cached ([\d,]+) · ")[1])
    assert cached_then == interrupted_context - 1
    assert numbers(chat.sees(READOUT))[0] < 70
    chat.sees(PROMPT)
    chat.presses("d")
    assert chat.exit_code() == 0


def test_commands(tiny_model: Path, typists: list[Typist]) -> None:
    chat = sit_down(typists, tiny_model, "--max-new-tokens", "16")
    chat.says("/help", "/help ", "/stats ", "/system ", "/clear ", "/exit ", "Ctrl-C ")
    chat.says("/system", "the model's own system prompt is used")
    chat.says("hello", READOUT)
    chat.says("/system You are brief.", "system prompt set")
    chat.says("/system", "\n.*You are brief\\.")
    changed = chat.says("hello again", READOUT)[0]
    assert numbers(changed)[0] > 60  # read again from the start
    chat.says("/clera", "unknown command /clera", r"did you mean /clear\?")
    chat.says("/whatever", "unknown command /whatever", "/help lists them")
    chat.says("/clear", "the conversation is forgotten")
    assert numbers(chat.says("/stats", r"(\d+) turns \((\d+) interrupted\) · context (\d+)/")[0]) == [0, 0, 0]
    chat.types("")
    chat.sees(PROMPT)
    chat.terminal.send("/ex\t")
    chat.sees("/ex.*it")  # Tab completes
    chat.terminal.send("\r")
    assert chat.exit_code() == 0


def test_ctrl_c_at_the_prompt_leaves(tiny_model: Path, typists: list[Typist]) -> None:
    chat = sit_down(typists, tiny_model)
    chat.sees(PROMPT)
    chat.presses("c")
    assert chat.exit_code() == 0


def test_a_plain_terminal_sees_no_escapes(tiny_model: Path, typists: list[Typist]) -> None:
    typists.append(Typist("-m", str(tiny_model), "--max-new-tokens", "16", "--plain"))
    chat = typists[0]
    chat.sees(PROMPT)
    chat.terminal.send("hello\n")
    shown = chat.sees(r"(?s).*\n([a-z]{16})\r\n.*context.*?> ")
    assert "\x1b" not in shown.group()
    chat.presses("d")
    assert chat.exit_code() == 0


def test_piped_lines_are_answered_on_a_clean_stdout(tiny_model: Path) -> None:
    args = ["chat", "-m", str(tiny_model), "--max-new-tokens", "16"]
    code, out, err = start(*args, stdin=b"hello\n\n/nonsense\nagain\n").finish()
    assert code == 0
    assert re.fullmatch(r"[a-z]{16}\n[a-z]{16}\n", out)
    assert "\x1b" not in err
    assert "> " not in err
    assert "error: unknown command /nonsense\nhint: /help lists them\n" in err
    assert "cached " in err
    code, quiet_out, quiet_err = start(*args, "-q", stdin=b"hello\n/exit\nagain\n").finish()
    assert (code, quiet_out, quiet_err) == (0, out[:17], "")


def test_a_line_that_is_no_text_is_refused_and_the_next_one_heard(tiny_model: Path) -> None:
    args = ["chat", "-m", str(tiny_model), "--max-new-tokens", "16", "-q"]
    code, out, err = start(*args, stdin=b"h\xe9llo\nhello").finish()
    assert code == 0
    assert re.fullmatch(r"[a-z]{16}\n", out)
    assert err.splitlines()[0] == "error: the line is not UTF-8 text"
    assert len(err.splitlines()) == 2
