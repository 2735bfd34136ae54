"""Somebody who types at a chat in a process of its own, through a real pseudo-terminal."""

import fcntl
import os
import pty
import re
import struct
import termios
import time
from pathlib import Path
from typing import Any

import pexpect
import pexpect.fdpexpect

from support.commands import PATIENCE_S, start_on
from support.desk import PROMPT
from uncomp_cli.ui.line_editor import GRACE_S

READOUT = r"prefill ([\d,]+) tok .*? context ([\d,]+)/4,096"
_PACE = re.compile(r"\x1bD\x1b7.*?\x1b8\x1b\[A|\x1b\[J", re.DOTALL)
_BEGUN = re.compile(r"(?:\x1bD(?:(?!\x1b8\x1b\[A).)*|\x1b\[?)\Z", re.DOTALL)


class Typist:
    """Types at a chat, and reads what it shows."""

    def __init__(self, *args: str, **changes: str) -> None:
        ours, theirs = pty.openpty()
        fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 120, 0, 0))
        # Nobody here answers where the cursor is.
        environment = {"PROMPT_TOOLKIT_NO_CPR": "1", **changes}
        self.process: Any = start_on([theirs, theirs, theirs], ["chat", *args], **environment)
        os.close(theirs)
        self.terminal: Any = pexpect.fdpexpect.fdspawn(ours, timeout=PATIENCE_S, encoding="utf-8")
        self._receive, self.terminal.read_nonblocking = self.terminal.read_nonblocking, self._without_pace
        self._begun = ""
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

    def sees_below(self, pattern: str) -> None:
        """A pattern, while it is told where the cursor is as often as it asks: with PROMPT_TOOLKIT_NO_CPR=0."""
        while self.terminal.expect([pattern, r"\x1b\[6n"]):
            self.terminal.send("\x1b[5;1R")

    def presses(self, key: str) -> None:
        """Ctrl and a key."""
        self.terminal.send(chr(ord(key) - ord("a") + 1))

    def leaves(self, key: str = "d") -> None:
        """Ctrl and a key at the prompt, and again: what was said is not saved. A Ctrl-C at once would not leave."""
        time.sleep(GRACE_S + 0.1 if key == "c" else 0)
        self.presses(key)
        self.sees("the conversation is not saved: /save talk.json keeps it; leave again to lose it")
        self.sees(PROMPT)
        time.sleep(GRACE_S + 0.1 if key == "c" else 0)
        self.presses(key)

    def _without_pace(self, size: int, timeout: float | None) -> str:
        """What has come, as far as it is whole, without the pace that comes and goes below an answer."""
        text = self._begun + self._receive(size, timeout)
        begun = _BEGUN.search(text)
        end = len(text) if begun is None else begun.start()
        self._begun = text[end:]
        return _PACE.sub("", text[:end])

    def exit_code(self) -> int | None:
        """Wait for the end."""
        self.terminal.expect(pexpect.EOF)
        self.process.join(PATIENCE_S)
        code: int | None = self.process.exitcode
        return code


def sit_down(typists: list[Typist], model: Path, *args: str, **changes: str) -> Typist:
    """Somebody at a new chat; nothing is written into the user's own folders."""
    own = model.parent / "own"
    places = {name: str(own / name) for name in ("XDG_DATA_HOME", "XDG_STATE_HOME")}
    typists.append(Typist("-v", "-m", str(model), *args, **{**places, **changes}))
    return typists[-1]


def numbers(match: re.Match[str]) -> list[int]:
    """The groups, read as numbers with commas."""
    return [int(group.replace(",", "")) for group in match.groups()]
