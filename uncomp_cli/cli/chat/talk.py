"""A chat at a terminal: what happens in it is shown, answers on standard output, everything else on standard error.

When the context is full the user is told and chooses: nothing falls out by itself.
"""

from dataclasses import replace
from inspect import GEN_CLOSED, getgeneratorstate
from typing import TYPE_CHECKING

from uncomp_cli.asking.events import Done, Event, Noted, Piece, Progress, Stopped, Warned
from uncomp_cli.asking.readout import readout
from uncomp_cli.asking.startup import length_warnings
from uncomp_cli.errors import DoesNotFitError
from uncomp_cli.numerals import format_count, format_readout
from uncomp_cli.ui.meter import Display

if TYPE_CHECKING:
    from uncomp_cli.asking.chat import Chat
    from uncomp_cli.asking.reply import Events
    from uncomp_cli.engine.records import RunStats
    from uncomp_cli.ui.console import Terminal

__all__ = ["Talk"]

_NEARLY_FULL = 0.9
_SHOWN = 30


class Talk:
    """A chat with somebody who types: what its commands work on."""

    def __init__(self, chat: "Chat", terminal: "Terminal") -> None:
        self.chat, self.terminal = chat, terminal

    def say(self, text: str) -> None:
        """A remark on standard error, unless quiet."""
        self.terminal.note(text)

    def tell(self, text: str) -> None:
        """What a command was asked for, on standard error, also when quiet."""
        replace(self.terminal, quiet=False).note(text)

    def ask(self, text: str) -> None:
        """Answer a message."""
        if self.show(self.chat.say(text)) is None:
            self.say("the message was not kept; /edit has it")

    def show(self, events: "Events") -> Done | None:
        """Show what happens; Ctrl-C goes to the work, which ends itself well. Returns the answer, if one came."""
        try:
            with _Screen(self) as screen:
                return screen.show(events)
        except DoesNotFitError as error:
            hint = self.ways_out() if error.hint is None or "--rope" in error.hint else error.hint
            raise DoesNotFitError(error.message, hint=hint) from error

    def ways_out(self) -> str:
        """How room is made when the context is full."""
        exchanges = self.chat.dialogue.exchanges
        if not exchanges:
            return "use something shorter, or leave and come back with a larger --context"
        oldest = exchanges[0][0].spoken.split("\n")[0]
        shown = oldest if len(oldest) <= _SHOWN else oldest[: _SHOWN - 1] + "…"
        return f"/forget 1 drops the oldest exchange ({shown}), /undo the latest, /clear all"

    def show_readout(self) -> None:
        """What the latest answer took."""
        stats = self.chat.session.stats
        if stats is not None:
            cached = f"cached {format_count(stats.cached_tokens)} · " if stats.cached_tokens else ""
            self.say(cached + format_readout(readout(stats, self.chat.loaded.spec.trained_length)))


class _Screen:
    """The events of one piece of work: answers on standard output, everything else on standard error."""

    def __init__(self, talk: Talk) -> None:
        self._talk, self._terminal = talk, talk.terminal
        self._display = Display(talk.terminal)
        self._line: bool | None = None  # of an answer: begun and not ended yet; None before the first piece

    def __enter__(self) -> "_Screen":
        return self

    def __exit__(self, *_: object) -> None:
        self._display.close()
        self._end_line()

    def show(self, events: "Events") -> Done | None:
        """Ctrl-C while something is shown is thrown into the work; when that is over, it is the caller's."""
        pressed, done = None, None
        while True:
            try:
                event = next(events) if pressed is None else events.throw(pressed)
                pressed, done = None, event if isinstance(event, Done) else done
                self._show(event)
            except StopIteration:
                return done
            except KeyboardInterrupt as error:
                if getgeneratorstate(events) == GEN_CLOSED:
                    raise
                pressed = error

    def _show(self, event: Event) -> None:
        if isinstance(event, Progress):
            self._display.show(event.of)
        elif isinstance(event, Piece):
            self._line = True
            self._terminal.write_answer(event.text)
        else:
            self._display.close()
            self._end_line()
            self._tell(event)

    def _tell(self, event: Event) -> None:
        if isinstance(event, Noted):
            self._talk.say(event.text)
        elif isinstance(event, Warned):
            self._terminal.warn(event.text)
        elif isinstance(event, Stopped):
            self._talk.say("stopped before the answer began")
        elif isinstance(event, Done):
            self._tell_end(event)

    def _end_line(self) -> None:
        if self._line:
            self._line = False
            self._terminal.write_line()

    def _tell_end(self, done: Done) -> None:
        """Why the answer ended, what it took, what is to be doubted, and that there is hardly any room left."""
        talk, stats, loaded = self._talk, done.stats, self._talk.chat.loaded
        if self._line is None:  # it was stopped before anything of it could be shown
            self._terminal.write_line()
        for line in self._endings(stats):
            talk.say(line)
        talk.show_readout()
        for doubt in done.doubts:
            self._terminal.warn(doubt)
        if stats.cached_tokens <= loaded.info.trained_length:  # once, on the way past it
            for warning in length_warnings(loaded, stats.prompt_tokens):
                self._terminal.warn(warning)
        used, limit = stats.prompt_tokens + stats.completion_tokens, loaded.spec.trained_length
        if _NEARLY_FULL * limit <= used < limit:
            talk.say(f"the context is nearly full: {talk.ways_out()}")

    def _endings(self, stats: "RunStats") -> list[str]:
        if stats.finish_reason == "interrupted":
            return ["[interrupted: what is above stays in the conversation]"]
        if stats.finish_reason != "length":
            return []
        if stats.completion_tokens < self._talk.chat.session.sampling.max_new_tokens:
            return [f"[the answer ended because the context is full: {self._talk.ways_out()}]"]
        return ["[the answer ended at its longest length; /set max-new-tokens N sets it]"]
