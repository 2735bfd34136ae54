"""Reading what the user types: an editable line on a terminal, plain lines from a pipe; what waits there to be read.

The prompt is drawn on standard error, so that standard output carries answers only.
"""

import array
import os
import stat
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

from uncomp_cli.ui.console import Terminal

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["has_data", "line_reader"]

PROMPT = "> "


def line_reader(terminal: Terminal, *, completions: "Sequence[str]" = ()) -> Callable[[], str]:
    """A function that returns the next line; it raises EOFError at the end and KeyboardInterrupt on Ctrl-C."""
    if not (sys.stdin.isatty() and terminal.stderr_is_terminal):
        return _read_line
    if not terminal.animated:
        return lambda: _read_plain(terminal)
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.output import create_output

    completer = WordCompleter(list(completions), sentence=True)
    session: PromptSession[str] = PromptSession(
        output=create_output(stdout=sys.stderr), completer=completer, complete_while_typing=False
    )
    return lambda: session.prompt(PROMPT)


def has_data(stdin: TextIO | None) -> bool:
    """Whether something waits on standard input: in a pipe, or in a file behind what was read of it."""
    try:
        descriptor = -1 if stdin is None else stdin.fileno()
        status = os.fstat(descriptor)
        if stat.S_ISREG(status.st_mode):
            return status.st_size > os.lseek(descriptor, 0, os.SEEK_CUR)
        return stat.S_ISFIFO(status.st_mode) and _waiting_bytes(descriptor) > 0
    except (OSError, ValueError):  # closed, or replaced by something that is no file
        return False


def _waiting_bytes(descriptor: int) -> int:
    try:
        import fcntl
        import termios
    except ImportError:  # not on this system
        return 0
    size = array.array("i", [0])
    fcntl.ioctl(descriptor, termios.FIONREAD, size)
    return size[0]


def _read_plain(terminal: Terminal) -> str:
    terminal.stderr.write(PROMPT)
    terminal.stderr.flush()
    try:
        return _read_line()
    except EOFError:
        terminal.stderr.write("\n")
        raise


def _read_line() -> str:
    line = sys.stdin.buffer.readline()
    if not line:
        raise EOFError
    return line.decode("utf-8", "surrogateescape").rstrip("\r\n")
