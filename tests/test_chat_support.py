"""What the tests of `uncomp chat` share: somebody who types at a real pseudo-terminal, and a chat without a process."""

import fcntl
import io
import os
import pty
import re
import struct
import termios
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pexpect
import pexpect.fdpexpect
import pytest
from test_ask_support import PATIENCE_S, start_on, tiny_model

from uncomp_cli.cli.chat.chat_preset import PresetChoice
from uncomp_cli.cli.chat.loop import Conversation
from uncomp_cli.cli.chat.state import Chat
from uncomp_cli.config import SamplingConfig
from uncomp_cli.engine.context.chat import ChatSession
from uncomp_cli.models.identity import fingerprint
from uncomp_cli.models.loading import LoadedModel, load_model
from uncomp_cli.ui.console import Terminal

__all__ = ["loaded", "tiny_model", "typists"]

PROMPT = r">(?: |\x08\x1b\[2C)"  # prompt_toolkit moves the cursor instead of writing a space
READOUT = r"prefill ([\d,]+) tok .*? context ([\d,]+)/4,096"
GREEDY = SamplingConfig(max_new_tokens=24)


class Typist:
    """Types at a chat, and reads what it shows."""

    def __init__(self, *args: str, **changes: str) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
        # Nobody here answers where the cursor is.
        environment = {"PROMPT_TOOLKIT_NO_CPR": "1", **changes}
        self.process: Any = start_on([theirs, theirs, theirs], ["chat", *args], **environment)
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

    def tells_the_cursor(self) -> None:
        """Answer where the cursor is, as terminals do; asked for with PROMPT_TOOLKIT_NO_CPR=0."""
        self.sees(r"\x1b\[6n")
        self.terminal.send("\x1b[5;1R")

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


def sit_down(typists: list[Typist], model: Path, *args: str, **changes: str) -> Typist:
    """Somebody at a new chat; nothing is written into the user's own folders."""
    own = model.parent / "own"
    places = {name: str(own / name) for name in ("XDG_DATA_HOME", "XDG_STATE_HOME")}
    typists.append(Typist("-m", str(model), *args, **{**places, **changes}))
    return typists[-1]


def numbers(match: re.Match[str]) -> list[int]:
    """The groups, read as numbers with commas."""
    return [int(group.replace(",", "")) for group in match.groups()]


class Stopping(io.StringIO):
    """A stream at which Ctrl-C is pressed when the n-th piece is written."""

    presses_at: int | None = None

    def write(self, text: str) -> int:
        written = super().write(text)
        if self.presses_at is not None and text.strip():
            self.presses_at -= 1
            if self.presses_at == 0:
                self.presses_at = None
                raise KeyboardInterrupt
        return written


@pytest.fixture(scope="module")
def loaded(tiny_model: Path) -> LoadedModel:
    return load_model(str(tiny_model))


def make_chat(loaded: LoadedModel, choice: PresetChoice | None = None) -> Chat:
    """A chat without a terminal."""
    choice = choice or PresetChoice()
    preset, _ = choice.settled(fingerprint(loaded))
    terminal = Terminal(Stopping(), io.StringIO(), False, False, False, False)
    return Chat(loaded, ChatSession(loaded, preset, GREEDY), terminal, choice, model_name="tiny")


def hold(chat: Chat | Conversation, *lines: str) -> list[str]:
    """Type lines; what standard error says to them."""
    conversation = chat if isinstance(chat, Conversation) else Conversation(chat)
    remaining: Iterator[str] = iter(lines)

    def read_line() -> str:
        line = next(remaining, None)
        if line is None:
            raise EOFError
        return line

    stderr = conversation.chat.terminal.stderr
    assert isinstance(stderr, io.StringIO)
    before = len(stderr.getvalue())
    conversation.run(read_line)
    return stderr.getvalue()[before:].splitlines()
