"""Reading what the user types: an editable line on a terminal, plain lines from a pipe.

The prompt is drawn on standard error, so that standard output carries answers only. A block (weights.py) comes as one
text on every way in.
"""

import os
import signal
import sys
import termios
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from uncomp_cli.errors import LockedError, UsageError
from uncomp_cli.numerals import format_count
from uncomp_cli.ui.blocks import CONTINUATION, PROMPT, QUOTES, is_open, without_quotes
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.interrupts import Interrupts

if TYPE_CHECKING:
    from uncomp_cli.documents.text import Wishes

# Returns the next text; EOFError at the end, KeyboardInterrupt on Ctrl-C, UsageError for a block that is never ended.
LineReader = Callable[[], str]


def line_reader(
    terminal: Terminal,
    interrupts: Interrupts,
    *,
    completer: Callable[[str], Sequence[str]] | None = None,
    status: Callable[[], str] | None = None,
    history: Path | None = None,
) -> LineReader:
    """Reads texts without their final newline and without the quotes of a block; a pasted text is one text.

    On an animated terminal: `completer` is given the line up to the cursor and returns what it may become, `status`
    the plain text of the bottom toolbar (asked once a prompt, "" for none), `history` is a file that only its owner
    can read (None: remembered until the end of the process).
    """
    if not is_typed(terminal):
        return interrupts.armed()(partial(_read_text, _read_line))
    if not terminal.animated:
        return _PlainReader(terminal, interrupts)
    from uncomp_cli.ui.line_editor import LineEditor

    return LineEditor(terminal, interrupts, completer=completer, status=status, history=history).read


def is_typed(terminal: Terminal) -> bool:
    """Whether somebody sits there and sees what is asked."""
    return _is_terminal(sys.stdin) and terminal.stderr_is_terminal


@contextmanager
def kept_keys(terminal: Terminal) -> Iterator[None]:
    """What is typed meanwhile is not echoed into what is written: it waits for the prompt.

    Also when Ctrl-C comes, at which a terminal drops what was typed, and of what was written that it has not shown yet:
    the cursor would not be where it is thought to be.
    """
    with _silent(termios.NOFLSH) if terminal.animated and _is_terminal(sys.stdin) else nullcontext():
        yield


@contextmanager
def _silent(flags: int = 0) -> Iterator[None]:
    """Nothing that is typed is echoed, but to a shell while Ctrl-Z has stopped this; with further local `flags`."""
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    silent = [*before[:3], before[3] & ~termios.ECHO | flags, *before[4:]]

    def stop(number: int, frame: object) -> None:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
        os.kill(os.getpid(), signal.SIGSTOP)
        termios.tcsetattr(descriptor, termios.TCSANOW, silent)  # fg goes on here

    termios.tcsetattr(descriptor, termios.TCSANOW, silent)
    stopped = signal.signal(signal.SIGTSTP, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTSTP, stopped)
        with suppress(termios.error):  # the terminal is gone
            termios.tcsetattr(descriptor, termios.TCSANOW, before)


def with_password(error: LockedError, wishes: "Wishes", terminal: Terminal) -> "Wishes":
    """The wishes with the password that is typed for a locked document; raises `error` where nobody types one."""
    if not is_typed(terminal):
        raise error
    terminal.warn(error.message)
    typed = _ask_silently(terminal)
    if not typed:
        raise error
    return replace(wishes, password=typed)


def _ask_silently(terminal: Terminal) -> str:
    terminal.stderr.write("password (nothing leaves): ")
    terminal.stderr.flush()
    try:
        with _silent():
            return _read_line()
    except EOFError:
        return ""
    finally:
        terminal.stderr.write("\n")


class _PlainReader:
    """Lines from a terminal that can draw nothing: a prompt before each, and no key but what the terminal knows.

    What was typed before a Ctrl-C is dropped by the terminal, which does not tell of it: a second one leaves.
    """

    def __init__(self, terminal: Terminal, interrupts: Interrupts) -> None:
        self.terminal, self.interrupts = terminal, interrupts
        self.prompt = PROMPT

    def __call__(self) -> str:
        for again in (True, False):
            self.prompt = PROMPT
            try:
                with self.interrupts.armed():
                    return _read_text(self._read_prompted)
            except KeyboardInterrupt:
                if not again:
                    raise
                self.terminal.stderr.write("\n")
        raise KeyboardInterrupt

    def _read_prompted(self) -> str:
        self.terminal.stderr.write(self.prompt)
        self.terminal.stderr.flush()
        self.prompt = CONTINUATION
        try:
            return _read_line()
        except EOFError:
            self.terminal.stderr.write("\n")
            raise


def _read_text(read_line: Callable[[], str]) -> str:
    """A line, or all lines of a block."""
    text = read_line()
    while is_open(text):
        try:
            text += "\n" + read_line()
        except EOFError as error:
            lines = format_count(text.count("\n") + 1, "line")
            message = f"the input ended in a {QUOTES} block of {lines}"
            raise UsageError(message, hint=f"end the block with {QUOTES}") from error
    return without_quotes(text)


def _read_line() -> str:
    line = b"" if sys.stdin is None else sys.stdin.buffer.readline()
    if not line:
        raise EOFError
    return line.decode("utf-8", "surrogateescape").rstrip("\r\n")


def _is_terminal(stdin: TextIO | None) -> bool:
    return stdin is not None and not stdin.closed and stdin.isatty()
