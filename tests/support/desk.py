"""A process that reads texts from a real pseudo-terminal and prints each as a Python literal: what the prompt tests
type at.
"""

import ast
import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios

import pexpect
import pexpect.fdpexpect

SCRIPT = """
import fcntl, os, sys, termios
from pathlib import Path
from uncomp_cli.documents.text import NO_WISHES
from uncomp_cli.errors import LockedError, UncompError
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.blocks import edit_text
from uncomp_cli.ui.input import line_reader, with_password
from uncomp_cli.ui.interrupts import Interrupts

fcntl.ioctl(0, termios.TIOCSCTTY, 0)
terminal = Terminal.detect(plain="--plain" in sys.argv, no_color="--no-color" in sys.argv)
commands = ["/file ", "/files", "/preset balanced", "/preset small"]
history = os.environ.get("HISTORY")
interrupts = Interrupts().__enter__()
read = line_reader(
    terminal,
    interrupts,
    completer=lambda line: [command for command in commands if command.startswith(line)],
    status=lambda: os.environ.get("STATUS", ""),
    history=Path(history) if history else None,
)

def opened(wishes):
    if wishes.password != "lamp":
        raise LockedError("it is locked", hint="--password PASSWORD")
    return "all of it"

def unlocked(wishes):
    try:
        return opened(wishes)
    except LockedError as error:
        return unlocked(with_password(error, wishes, terminal))

while True:
    try:
        text = read()
        if text == "/unlock":
            print("OPENED", unlocked(NO_WISHES))
        print("TEXT", ascii(text))
        if text.startswith("/edit "):
            print("EDITED", ascii(edit_text(text[6:], terminal)))
    except EOFError:
        print("THE END")
        break
    except KeyboardInterrupt:
        print("INTERRUPTED")
        break
    except UncompError as error:
        print("REFUSED", error.message, "|", error.hint)
"""
PROMPT = r">(?: |\x08\x1b\[2C)"  # prompt_toolkit moves the cursor instead of writing a space
PATIENCE_S = 60
WHERE_IS_THE_CURSOR = r"\x1b\[6n"


class Desk:
    """A terminal with somebody who types at it, and answers it where the cursor is when `cursor_row` is given."""

    def __init__(self, *args: str, cursor_row: int | None = None, columns: int = 200, **changes: str) -> None:
        self.ours, theirs = pty.openpty()
        self.resize(columns)
        kept = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "VISUAL", "EDITOR")}
        silent = {} if cursor_row else {"PROMPT_TOOLKIT_NO_CPR": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *args],
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
            env={**kept, "TERM": "xterm-256color", **silent, **changes},
        )  # fmt: skip
        os.close(theirs)
        self.cursor_row = cursor_row
        self.terminal = pexpect.fdpexpect.fdspawn(self.ours, timeout=PATIENCE_S, encoding="utf-8")

    def resize(self, columns: int) -> None:
        """Give the window another width; the process hears of it."""
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    def sees(self, pattern: str) -> re.Match[str]:
        """What matched, where it comes next on the screen."""
        expected = [pattern, WHERE_IS_THE_CURSOR] if self.cursor_row else [pattern]
        while self.terminal.expect(expected) == 1:
            self.terminal.send(f"\x1b[{self.cursor_row};1R")
        match: re.Match[str] = self.terminal.match
        return match

    def types(self, keys: str) -> None:
        """Keys as they come from a keyboard: Enter is \\r."""
        self.terminal.send(keys)

    def reads(self) -> str:
        """The next text that the process has read."""
        return str(ast.literal_eval(self.sees(r"TEXT ('[^\r]*'|\"[^\r]*\")\r\n").group(1)))

    def says(self, keys: str) -> str:
        """Type keys and Enter at the next prompt; what was read."""
        self.sees(PROMPT)
        self.types(keys + "\r")
        return self.reads()

    def leaves(self) -> None:
        """Ctrl-D at the next prompt."""
        self.sees(PROMPT)
        self.types("\x04")
        self.sees("THE END")
        assert self.process.wait(PATIENCE_S) == 0

    def close(self) -> None:
        """Nothing of it stays."""
        self.process.kill()
        self.process.wait()
        self.terminal.close()


class Desks(list[Desk]):
    """All desks of a test."""

    def sit_down(self, *args: str, cursor_row: int | None = None, columns: int = 200, **changes: str) -> Desk:
        """A new one."""
        self.append(Desk(*args, cursor_row=cursor_row, columns=columns, **changes))
        return self[-1]
