"""The editable prompt on a terminal: history, completion, texts of several lines, a toolbar with the status.

Enter sends; in an open block it begins a new line, as Alt-Enter does everywhere; in Tab's menu it takes what is chosen.
Tab writes as much as is certain, then shows a menu; the candidates are looked up while the key is handled, so that what
is typed right behind it comes after them. Ctrl-C clears what was typed, and leaves where nothing was; right behind
Enter it stops what was sent: as a key it is kept as the signal that it would have been a moment later. What is pasted
stays one text (bracketed paste). A Ctrl-C as soon as a prompt is drawn was meant for what ran before, or pressed twice:
it leaves nothing. Everything is drawn on standard error.

The history is a file in the user's state directory that only its owner can read and write, in prompt_toolkit's own form
(a comment with the time, then the lines, each behind a `+`). An entry is added by one write at the end of the file, so
several chats can share it; a history that cannot be read or written is no reason to stop a chat, and is told.
"""

import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

from platformdirs import user_state_path
from prompt_toolkit import PromptSession
from prompt_toolkit.application import Application, get_app
from prompt_toolkit.buffer import Buffer, CompletionState
from prompt_toolkit.completion import Completion, DummyCompleter, get_common_complete_suffix
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input import Input, create_input
from prompt_toolkit.input.typeahead import get_typeahead, store_typeahead
from prompt_toolkit.input.vt100 import Vt100Input
from prompt_toolkit.input.vt100_parser import Vt100Parser
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.keys import Keys
from prompt_toolkit.output import ColorDepth, create_output
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.styles import Style

from uncomp_cli.table import wrapped
from uncomp_cli.ui.blocks import CONTINUATION, PROMPT, is_open, without_quotes
from uncomp_cli.ui.console import Terminal, strip_controls
from uncomp_cli.ui.interrupts import Interrupts

GRACE_S = 0.5  # a Ctrl-C this soon behind a new prompt does not leave
MENU_LINES = 6  # taken below the line while Tab's menu is open
OWNER_ONLY = 0o600
_PASTED = "\x1b[201~"  # behind a paste
STYLE = Style.from_dict({"bottom-toolbar": "noreverse fg:ansibrightblack"})


class LineEditor:
    """Reads one text after another; the arguments are those of input.line_reader."""

    def __init__(
        self,
        terminal: Terminal,
        interrupts: Interrupts,
        *,
        completer: Callable[[str], Sequence[str]] | None,
        status: Callable[[], str] | None,
        history: Path | None,
    ) -> None:
        self.terminal, self.interrupts = terminal, interrupts
        self.status = status
        self.leaves_from_s = self.next_leaves_from_s = -math.inf
        self.history: History = InMemoryHistory() if history is None else PrivateHistory(history)
        self.session: PromptSession[str] = PromptSession(
            input=_quick_input(),
            output=create_output(stdout=sys.stderr),
            history=self.history,
            completer=DummyCompleter(),  # Tab has a binding of its own, but without one no room is made for its menu
            complete_while_typing=False,
            complete_style=CompleteStyle.MULTI_COLUMN,
            reserve_space_for_menu=MENU_LINES,
            multiline=True,
            prompt_continuation=_continuation,
            key_bindings=_key_bindings(completer or (lambda line: ()), self),
            enable_suspend=True,
            style=STYLE,
            color_depth=None if terminal.colour else ColorDepth.DEPTH_1_BIT,
        )
        self.session.app.after_render += self._drawn

    def read(self) -> str:
        """The next text, without the quotes of a block. A Ctrl-C right behind it is kept as an interrupt."""
        status = "" if self.status is None else strip_controls(self.status(), single_line=True)
        self.session.bottom_toolbar = (lambda: _wrap(status)) if status else None
        self.leaves_from_s, self.next_leaves_from_s = self.next_leaves_from_s, math.inf
        self.interrupts.wake = self._wake
        try:
            text = without_quotes(self._prompted())
            if self._is_stopped():
                self.interrupts.keep(signal.SIGINT)
            return text
        finally:
            self.interrupts.wake = None
            self._tell_problem()

    def _prompted(self) -> str:
        """What was typed; a Ctrl-C that comes as a signal before the prompt is there is too early to leave."""
        while True:
            try:
                return self.session.prompt(PROMPT, pre_run=self._give_up, handle_sigint=False)
            except KeyboardInterrupt:
                if self.interrupts.take() != signal.SIGINT or not self.is_early():
                    raise

    def _wake(self) -> None:
        """A signal was kept: it ends the prompt, unless that has ended."""
        if (loop := self.session.app.loop) is not None:
            loop.call_soon_threadsafe(self._give_up)

    def _give_up(self) -> None:
        app = self.session.app
        if self.interrupts.kept and app.is_running and not app.is_done:
            app.exit(exception=KeyboardInterrupt(), style="class:aborting")

    def _drawn(self, _: Application[str]) -> None:
        """The prompt is on the screen: from now on it takes no while longer for a Ctrl-C to be meant for it."""
        if self.leaves_from_s == math.inf:
            self.leaves_from_s = time.monotonic() + GRACE_S

    def is_early(self) -> bool:
        """Whether Ctrl-C was meant for what ran before this prompt."""
        return time.monotonic() < self.leaves_from_s

    def _is_stopped(self) -> bool:
        """Whether Ctrl-C was typed behind what was sent, before the terminal made a signal of it; other keys wait."""
        typed = self.session.input
        keys = get_typeahead(typed)
        with typed.raw_mode():
            while new := typed.read_keys():
                keys += new
        stops = [at for at, pressed in enumerate(keys) if pressed.key == Keys.ControlC]
        store_typeahead(typed, keys[stops[-1] + 1 :] if stops else keys)
        return bool(stops)

    def _tell_problem(self) -> None:
        """A history that cannot be kept is told once, after the prompt: the chat goes on without it."""
        if isinstance(self.history, PrivateHistory) and (problem := self.history.take_problem()):
            self.terminal.warn(problem)


class PasteParser(Vt100Parser):
    """Makes keys of what is typed; a paste, which comes in pieces, is searched for its end once and not a piece."""

    def reset(self, request: bool = False) -> None:
        """Begin anew."""
        self._pieces, self._tail = list[str](), ""
        super().reset(request)

    def feed(self, data: str) -> None:
        """Take what has come."""
        if self._in_bracketed_paste:
            self._pieces.append(data)
            end = self._tail + data
            self._tail = end[1 - len(_PASTED) :]
            if _PASTED not in end:
                return
            data, self._pieces, self._tail = "".join(self._pieces), [], ""
        super().feed(data)


def _quick_input() -> Input:
    made = create_input()
    if isinstance(made, Vt100Input):
        made.vt100_parser = PasteParser(made.vt100_parser.feed_key_callback)
    return made


def _key_bindings(candidates: Callable[[str], Sequence[str]], editor: LineEditor) -> KeyBindings:
    bindings = KeyBindings()
    typing = has_focus(DEFAULT_BUFFER)

    @bindings.add("enter", filter=typing)
    def send(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.complete_state and buffer.complete_state.current_completion:
            buffer.complete_state = None  # Enter takes what was chosen in the menu, and sends nothing yet
        elif is_open(buffer.text):
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @bindings.add("tab", filter=typing)
    def look_up(event: KeyPressEvent) -> None:
        complete(event.current_buffer, candidates)

    @bindings.add("c-c", filter=typing)
    def clear(event: KeyPressEvent) -> None:
        if event.current_buffer.text:
            event.current_buffer.reset()
        elif not editor.is_early():
            event.app.exit(exception=KeyboardInterrupt(), style="class:aborting")

    @bindings.add("escape", "enter", filter=typing)
    def begin_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def _continuation(width: int, line: int, wrapped: int) -> str:
    return "" if wrapped else CONTINUATION


def _wrap(text: str) -> str:
    """Broken at the terminal's width as it is now: nothing of the status is cut off."""
    return "\n".join(wrapped(text, max(20, get_app().output.get_size().columns)))


def complete(buffer: Buffer, candidates: Callable[[str], Sequence[str]]) -> None:
    """One press of Tab: the next choice of an open menu, or what the line up to the cursor may become.

    `candidates` is given that line and returns texts to stand in its place; a text of several lines has none.
    """
    if buffer.complete_state:
        buffer.complete_next()
        return
    line = buffer.document.text_before_cursor
    found = [] if "\n" in line else [_completion(line, candidate) for candidate in candidates(line)]
    if len(found) == 1:
        buffer.apply_completion(found[0])
    elif certain := get_common_complete_suffix(buffer.document, found):
        buffer.insert_text(certain)
    elif found:
        buffer.complete_state = CompletionState(buffer.document, found)


def _completion(line: str, candidate: str) -> Completion:
    return Completion(candidate, start_position=-len(line), display=_last_part(line, candidate))


def paths_beginning(fragment: str) -> list[str]:
    """The files and folders whose path begins with `fragment`, as it was written; a folder ends in `/`.

    A name that begins with a dot is offered when the fragment's does; what cannot be listed has none.
    """
    folder, slash, beginning = fragment.rpartition("/")
    try:
        names = sorted(_names(Path(folder + slash).expanduser()))
    except (OSError, RuntimeError, ValueError):  # not there, not readable, no home directory, a null character
        return []
    shown = (name for name in names if name.startswith(beginning) and (beginning or not name.startswith(".")))
    return [f"{folder}{slash}{name}" for name in shown]


def _names(folder: Path) -> Iterator[str]:
    for path in folder.iterdir():
        if path.name.isprintable():
            yield f"{path.name}/" if path.is_dir() else path.name


def _last_part(line: str, candidate: str) -> str:
    """What is new in `candidate`, from the beginning of the word (or of the path's last part) that it ends."""
    same = len(line) if candidate.startswith(line) else 0
    begin = max(candidate.rfind(mark, 0, same) + 1 for mark in " /")
    return candidate[begin:] or candidate


def history_path() -> Path:
    """Where the history of `uncomp chat` lies."""
    return user_state_path("uncomp") / "history"


class PrivateHistory(FileHistory):
    """A FileHistory with mode 0600 from its first byte on, whose failures wait in `take_problem`."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path))
        self.path = path
        self._problem = ""
        self._told = False

    def take_problem(self) -> str:
        """What went wrong, the first time that this is asked; "" for nothing."""
        problem, self._problem = self._problem, ""
        return problem

    def load_history_strings(self) -> Iterable[str]:
        """The entries, the newest first."""
        try:
            return list(super().load_history_strings())
        except OSError as error:
            self._note(error, "read")
            return []

    def store_string(self, string: str) -> None:
        """Add an entry at the end of the file."""
        lines = "".join(f"+{line}\n" for line in string.split("\n"))
        entry = f"\n# {datetime.now().astimezone().isoformat(timespec='seconds')}\n{lines}"
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, OWNER_ONLY)
            try:
                self.path.chmod(OWNER_ONLY)  # one that was made by other means
                os.write(descriptor, entry.encode("utf-8", "replace"))
            finally:
                os.close(descriptor)
        except OSError as error:
            self._note(error, "written")

    def _note(self, error: OSError, done: str) -> None:
        if not self._told:
            self._told = True
            reason = error.strerror or error
            self._problem = f"the history {self.path} cannot be {done}: {reason}; what is typed here may not be in it"
