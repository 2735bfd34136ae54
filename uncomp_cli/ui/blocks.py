'''Texts of several lines: a block, which begins and ends with three double quotes, and what the user's editor leaves.

    """What do these two
    paragraphs have in common?"""

Only a text that begins with the quotes is a block, so quotes inside of a line mean themselves. The editor is $VISUAL,
else $EDITOR, else one of the usual ones, on a file of its own that is gone afterwards.
'''

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from uncomp_cli.errors import UncompError, UsageError
from uncomp_cli.ui.console import Terminal

PROMPT = "> "
CONTINUATION = ". "
QUOTES = '"""'
_CLIPBOARDS = (
    ("WAYLAND_DISPLAY", ("wl-copy",)),
    ("DISPLAY", ("xclip", "-selection", "clipboard")),
    ("DISPLAY", ("xsel", "--clipboard", "--input")),
    ("HOME", ("pbcopy",)),
)
_CLIPBOARD_S = 5
_EDITORS = ("sensible-editor", "nano", "vi")
_EDITOR_HINT = "set VISUAL or EDITOR to an editor: export EDITOR=nano"


def is_open(text: str) -> bool:
    """Whether `text` begins a block and does not end it."""
    body = text.strip()
    return body.startswith(QUOTES) and not _is_closed(body)


def without_quotes(text: str) -> str:
    """What stands between the quotes of a whole block; any other text as it is."""
    body = text.strip()
    return body.removeprefix(QUOTES).removesuffix(QUOTES).strip("\n") if _is_closed(body) else text


def _is_closed(body: str) -> bool:
    return len(body) >= 2 * len(QUOTES) and body.startswith(QUOTES) and body.endswith(QUOTES)


def edit_text(initial: str, terminal: Terminal) -> str:
    """`initial` as it was left in the editor, without a newline at its end.

    Raises UsageError without an editor or a terminal for it, and when the editor fails or leaves something that is no
    text; UncompError when the file for it cannot be written.
    """
    command = _editor_command()
    if not (sys.stdin is not None and sys.stdin.isatty() and terminal.stderr_is_terminal):
        raise UsageError("an editor needs a terminal", hint='type the text as a line, or between two lines of """')
    try:
        with tempfile.TemporaryDirectory(prefix="uncomp-") as folder:
            path = Path(folder) / "message.md"
            path.write_bytes(initial.encode("utf-8", "surrogateescape") + b"\n")
            _run_editor([*command, str(path)], terminal)
            return path.read_text(encoding="utf-8").removesuffix("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"the editor left something that is not UTF-8 text: {error}", hint=_EDITOR_HINT) from error
    except OSError as error:
        raise UncompError(f"the text for the editor cannot be kept: {error}", hint="set TMPDIR to a folder") from error


def copy_text(text: str, terminal: Terminal) -> None:
    """Put `text` into the clipboard: by a program for it, else by the terminal itself (OSC 52), be it far away."""
    for needed, command in _CLIPBOARDS:
        if os.environ.get(needed) and shutil.which(command[0]):
            try:
                data, quiet = text.encode("utf-8", "replace"), subprocess.DEVNULL
                subprocess.run(command, input=data, check=True, stdout=quiet, stderr=quiet, timeout=_CLIPBOARD_S)
            except (OSError, subprocess.SubprocessError) as error:
                raise UncompError(f"nothing was copied: {command[0]} failed", hint="/save answer.md") from error
            return
    if not terminal.animated:
        raise UsageError("there is no clipboard here", hint="/save answer.md writes the conversation to a file")
    terminal.stderr.write(f"\x1b]52;c;{b64encode(text.encode('utf-8', 'replace')).decode()}\x07")
    terminal.stderr.flush()


def _editor_command() -> list[str]:
    for variable in ("VISUAL", "EDITOR"):
        named = os.environ.get(variable, "").strip()
        if named:
            try:
                return shlex.split(named)
            except ValueError as error:
                raise UsageError(f"{variable} is {named!r}: {error}", hint=_EDITOR_HINT) from error
    found = next(filter(None, map(shutil.which, _EDITORS)), None)
    if found is None:
        raise UsageError("no editor is named, and there is none of the usual ones", hint=_EDITOR_HINT)
    return [found]


def _run_editor(command: list[str], terminal: Terminal) -> None:
    """Run the editor; it draws on standard error's terminal when standard output is none."""
    stdout = None if terminal.stdout_is_terminal else terminal.stderr
    try:
        with _deaf_to_interrupts():
            code = subprocess.run(command, stdout=stdout, check=False).returncode
    except OSError as error:
        raise UsageError(
            f"the editor {command[0]} cannot be run: {error.strerror or error}", hint=_EDITOR_HINT
        ) from error
    if code != 0:
        message = f"the editor {command[0]} ended with code {code}; the text is as it was"
        raise UsageError(message, hint="save the text and leave the editor, or set EDITOR to another one")


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Ctrl-C in the editor is the editor's. A handler, because a child would inherit that the signal is ignored."""
    previous = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
