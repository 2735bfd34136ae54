"""The editable prompt on a terminal: history, completion, texts of several lines, a toolbar with the status.

Enter sends; in an open block it begins a new line, as Alt-Enter does everywhere; in Tab's menu it takes what is chosen.
What is pasted stays one text (bracketed paste). Everything is drawn on standard error.
"""

import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.application import get_app
from prompt_toolkit.completion import DummyCompleter
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.output import ColorDepth, create_output
from prompt_toolkit.shortcuts import CompleteStyle
from prompt_toolkit.styles import Style

from uncomp_cli.ui.blocks import CONTINUATION, PROMPT, is_open, without_quotes
from uncomp_cli.ui.completion import complete
from uncomp_cli.ui.console import Terminal, strip_controls
from uncomp_cli.ui.history import PrivateHistory

__all__ = ["LineEditor"]

MENU_LINES = 6  # taken below the line while Tab's menu is open
STYLE = Style.from_dict({"bottom-toolbar": "noreverse fg:ansibrightblack"})


class LineEditor:
    """Reads one text after another; the arguments are those of prompt.line_reader."""

    def __init__(
        self,
        terminal: Terminal,
        *,
        completer: Callable[[str], Sequence[str]] | None,
        status: Callable[[], str] | None,
        history: Path | None,
    ) -> None:
        self.terminal = terminal
        self.status = status
        self.history: History = InMemoryHistory() if history is None else PrivateHistory(history)
        self.session: PromptSession[str] = PromptSession(
            output=create_output(stdout=sys.stderr),
            history=self.history,
            completer=DummyCompleter(),  # Tab has a binding of its own, but without one no room is made for its menu
            complete_while_typing=False,
            complete_style=CompleteStyle.MULTI_COLUMN,
            reserve_space_for_menu=MENU_LINES,
            multiline=True,
            prompt_continuation=_continuation,
            key_bindings=_key_bindings(completer or (lambda line: ())),
            enable_suspend=True,
            style=STYLE,
            color_depth=None if terminal.colour else ColorDepth.DEPTH_1_BIT,
        )

    def read(self) -> str:
        """The next text, without the quotes of a block."""
        status = "" if self.status is None else strip_controls(self.status(), single_line=True)
        self.session.bottom_toolbar = (lambda: _wrap(status)) if status else None
        try:
            return without_quotes(self.session.prompt(PROMPT))
        finally:
            self._tell_problem()

    def _tell_problem(self) -> None:
        """A history that cannot be kept is told once, after the prompt: the chat goes on without it."""
        if isinstance(self.history, PrivateHistory) and (problem := self.history.take_problem()):
            self.terminal.warn(problem)


def _key_bindings(candidates: Callable[[str], Sequence[str]]) -> KeyBindings:
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

    @bindings.add("escape", "enter", filter=typing)
    def begin_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings


def _continuation(width: int, line: int, wrapped: int) -> str:
    return "" if wrapped else CONTINUATION


def _wrap(text: str) -> str:
    """Broken at the terminal's width as it is now: nothing of the status is cut off."""
    return "\n".join(textwrap.wrap(text, max(20, get_app().output.get_size().columns)))
