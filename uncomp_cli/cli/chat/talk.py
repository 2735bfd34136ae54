"""A chat at a terminal: what happens in it is shown, answers on standard output, everything else on standard error.

When the context is full the user is told and chooses: nothing falls out by itself.
"""

import re
from collections.abc import Generator
from dataclasses import replace
from typing import TYPE_CHECKING, TypeVar

from uncomp_cli.asking.events import Done, Event, Piece, Refused, Stopped, Thought
from uncomp_cli.cli.declare.failures import show_failure
from uncomp_cli.documents.text import NO_WISHES, Wishes
from uncomp_cli.errors import DoesNotFitError
from uncomp_cli.ui.input import kept_keys
from uncomp_cli.ui.meter import show

if TYPE_CHECKING:
    from uncomp_cli.asking.chat import Chat
    from uncomp_cli.ui.console import Terminal


T = TypeVar("T")
_NEARLY_FULL = 0.9
_SHOWN = 30
NOT_KEPT = "the message was not kept; /edit has it"
_COMMANDS = re.compile(r"--(?:(budget|pin|preset|system)|(max-new-tokens|repetition-penalty))\b")


def as_commands(text: str) -> str:
    """`text` that names commands in the place of flags."""
    return _COMMANDS.sub(lambda flag: f"/{flag[1]}" if flag[1] else f"/set {flag[2]}", text)


class Talk:
    """A chat with somebody who types: what its commands work on."""

    def __init__(
        self, chat: "Chat", terminal: "Terminal", wishes: Wishes = NO_WISHES, include: tuple[str, ...] = ()
    ) -> None:
        self.chat, self.terminal, self.wishes, self.include = chat, terminal, wishes, include

    def say(self, text: str) -> None:
        """A remark on standard error, unless quiet."""
        self.terminal.note(text)

    def tell(self, *lines: str) -> None:
        """What a command was asked for, on standard error, also when quiet."""
        for line in lines:
            replace(self.terminal, quiet=False).note(line)

    def ask(self, text: str) -> None:
        """Answer a message."""
        if self.show(self.chat.say(text)) is None:
            self.say(NOT_KEPT)

    def show(self, events: "Generator[Event, None, T]") -> T:
        """Show what happens; Ctrl-C goes to the work, which ends itself well. Returns what the work does."""
        screen = _Screen(self)
        try:
            with kept_keys(self.terminal):
                return show(events, self.terminal, tell=screen.tell)
        except DoesNotFitError as error:
            hint = self.ways_out() if error.hint is None or "--rope" in error.hint else error.hint
            raise DoesNotFitError(error.message, hint=hint) from error
        finally:
            screen.end_line()

    def ways_out(self) -> str:
        """How room is made when the context is full."""
        exchanges = self.chat.dialogue.exchanges
        if not exchanges:
            return "use something shorter, or leave and come back with a larger --context"
        oldest = exchanges[0][0].spoken.split("\n")[0]
        shown = oldest if len(oldest) <= _SHOWN else oldest[: _SHOWN - 1] + "…"
        pages = self.chat.dialogue.pages()
        document = f", /forget {pages[0].path} a document" if pages else ""
        return f"/forget 1 drops the oldest exchange ({shown}){document}, /undo the latest, /clear all"


class _Screen:
    """The answer of one piece of work, on standard output, and what is said at its end."""

    def __init__(self, talk: Talk) -> None:
        self._talk, self._terminal = talk, talk.terminal
        self._line: bool | None = None  # of an answer: begun and not ended yet; None before the first piece

    def tell(self, event: Event) -> None:
        """What is neither progress nor a remark."""
        if isinstance(event, Piece):
            self._line = True
            self._terminal.write_answer(event.text)
        elif isinstance(event, Thought):
            self._terminal.write_thought(event.text)
        elif isinstance(event, Refused):
            show_failure(event.error, self._terminal)
        elif isinstance(event, Stopped):
            self._talk.say("stopped before the answer began")
        elif isinstance(event, Done):
            self._tell_end(event)

    def end_line(self) -> None:
        """End the line of an answer that has begun."""
        if self._line:
            self._line = False
            self._terminal.write_line()

    def _tell_end(self, done: Done) -> None:
        """Why the answer ended, what it took, what is to be doubted, and that there is hardly any room left."""
        talk, stats = self._talk, done.stats
        self._line = self._line is not False  # one that was stopped before a piece was shown has an empty one
        self.end_line()
        if stats.finish_reason == "interrupted":
            talk.say("[interrupted: what is above stays in the conversation]")
        elif done.ending is not None:
            full = stats.prompt_tokens + stats.completion_tokens >= done.context_limit
            talk.say(f"[{as_commands(done.ending)}{f': {talk.ways_out()}' if full else ''}]")
        talk.say(done.readout(verbose=self._terminal.verbose))
        for doubt in done.doubts:
            self._terminal.warn(doubt)
        used = stats.prompt_tokens + stats.completion_tokens
        if _NEARLY_FULL * done.context_limit <= used < done.context_limit:
            talk.say(f"the context is nearly full: {talk.ways_out()}")
