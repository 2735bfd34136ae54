"""Draw docs/picture.svg: a real terminal session of `uncomp ask`, as rich renders what a pseudo-terminal received.

    .venv/bin/python docs/picture.py

The commands run as written, on a terminal of their own; what each line looked like when it was complete is drawn.
"""

import os
import pty
import shlex
import struct
import sys
import termios
from fcntl import ioctl
from io import StringIO
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS = 100
COMMANDS = (
    'uncomp ask -f docs/demo/lighthouse-handbook.md "What is the combination of the stores safe?" --evidence',
    'uncomp ask -f docs/demo/lighthouse-handbook.md "Who keeps the log?" -p tiny',
)
TARGET = Path(__file__).with_name("picture.svg")


def shown(command: str) -> str:
    """What a terminal shows of a command when it has ended: of lines that were redrawn, the last state."""
    words = shlex.split(command)
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ.update(TERM="xterm-256color", COLUMNS=str(COLUMNS), PYTHONWARNINGS="ignore")
        os.execv(sys.executable, [sys.executable, "-m", "uncomp_cli", *words[1:]])
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
    received = b""
    while True:
        try:
            data = os.read(terminal, 65536)
        except OSError:  # the other side has closed
            break
        if not data:
            break
        received += data
    os.waitpid(pid, 0)
    return settle(received.decode())


def settle(received: str) -> str:
    """A terminal's text with carriage returns, erased lines and moves upwards carried out."""
    lines: list[str] = [""]
    row = 0
    rest = received.replace("\r\n", "\n")
    while rest:
        if rest.startswith("\n"):
            row, rest = row + 1, rest[1:]
            lines += [""] * (row + 1 - len(lines))
        elif rest.startswith("\r"):
            rest = rest[1:]
        elif rest.startswith(("\x1b[2K", "\x1b[1A")):
            if rest[3] == "K":
                lines[row] = ""
            else:
                row = max(0, row - 1)
            rest = rest[4:]
        elif rest.startswith(("\x1b[?25l", "\x1b[?25h")):
            rest = rest[6:]
        else:
            lines[row], rest = lines[row] + rest[0], rest[1:]
    return "\n".join(line for line in lines if line.strip())


def main() -> None:
    console = Console(record=True, width=COLUMNS, file=StringIO(), force_terminal=True)
    for command in COMMANDS:
        console.print(Text("$ " + command, style="bold"))
        console.print(Text.from_ansi(shown(command)))
        console.print()
    console.save_svg(str(TARGET), title="uncomp")
    print(TARGET.name)


if __name__ == "__main__":
    main()
