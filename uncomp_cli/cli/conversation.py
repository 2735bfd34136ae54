"""The loop of `uncomp chat`: read a line, run a command or a turn, show what it took."""

import difflib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from uncomp_cli.cli.failures import show_failure
from uncomp_cli.cli.prepare import check_text
from uncomp_cli.cli.report import readout
from uncomp_cli.config import SamplingConfig
from uncomp_cli.errors import OutOfMemoryError, UncompError, is_out_of_memory
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.format import format_bytes, format_count, format_readout
from uncomp_cli.ui.live import watch_generation

if TYPE_CHECKING:
    from uncomp_cli.engine.prompt import Message
    from uncomp_cli.engine.session import RunStats
    from uncomp_cli.models.load import LoadedModel

__all__ = ["Conversation"]

OWN_PROMPT = "default"


class Conversation:
    """The messages of a chat and the commands that change them; an answer that was stopped keeps its text."""

    def __init__(
        self, loaded: "LoadedModel", sampling: SamplingConfig, terminal: Terminal, *, system: str | None
    ) -> None:
        from uncomp_cli.engine.chat import ChatSession

        self.terminal = terminal
        self.loaded = loaded
        self.session = ChatSession(loaded, sampling)
        self.system = system
        self.messages: list[Message] = []
        self.stopped = 0
        self._commands: dict[str, tuple[str, Callable[[str], None]]] = {
            "/help": ("what can be typed", self._help),
            "/stats": ("context, memory and the latest readout", self._show_stats),
            "/system": (
                f"show the system prompt; with text after it, set it; {OWN_PROMPT}: the model's own",
                self._set_system,
            ),
            "/clear": ("forget the conversation, keep the system prompt", self._clear),
            "/exit": ("leave; Ctrl-D does the same", self._leave),
        }

    @property
    def commands(self) -> tuple[str, ...]:
        """The names of the commands."""
        return tuple(self._commands)

    def run(self, read_line: Callable[[], str]) -> None:
        """Take lines until they end, /exit, or Ctrl-C at the prompt; a turn that fails is told and the chat goes on."""
        while True:
            try:
                self.take(read_line())
            except (EOFError, KeyboardInterrupt):
                return
            except BrokenPipeError:  # nobody reads any more
                raise
            except Exception as error:
                show_failure(_in_chat(error), self.terminal)

    def take(self, line: str) -> None:
        """One line: a command, or a message to the model. Raises EOFError to leave."""
        check_text(line, "the line")
        text = line.strip()
        if text.startswith("/"):
            name, _, argument = text.partition(" ")
            self._command(name)(argument.strip())
        elif text:
            self._turn(text)

    def _command(self, name: str) -> Callable[[str], None]:
        if name in self._commands:
            return self._commands[name][1]
        near = difflib.get_close_matches(name, self._commands, n=1)
        raise UncompError(f"unknown command {name}", hint=f"did you mean {near[0]}?" if near else "/help lists them")

    def _turn(self, text: str) -> None:
        from uncomp_cli.engine.prompt import Message

        system = [Message("system", self.system)] if self.system is not None else []
        answer, interrupted = self._stream([*system, *self.messages, Message("user", text)])
        stats = self.session.stats
        if stats is None:
            self.terminal.note("stopped before the answer began; the message was not kept")
            return
        ids = self.session.answer_ids[:-1] if stats.finish_reason == "stop" else self.session.answer_ids
        self.messages += [Message("user", text), Message("assistant", answer, tuple(ids))]
        if interrupted:
            self.stopped += 1
            self.session.stats = stats = replace(stats, finish_reason="interrupted")
            self.terminal.note("[interrupted: what is above stays in the conversation]")
        elif stats.finish_reason == "length":
            self.terminal.note(self._why_it_ended(stats))
        self._show_readout()

    def _why_it_ended(self, stats: "RunStats") -> str:
        if stats.completion_tokens < self.session.sampling.max_new_tokens:
            return "[the answer ended because the context is full; /clear starts again]"
        return "[the answer ended at its longest length; --max-new-tokens sets it]"

    def _stream(self, messages: "list[Message]") -> tuple[str, bool]:
        """Write the answer to `messages` as it comes; returns its text and whether Ctrl-C ended it."""
        from uncomp_cli.engine.records import DecodeStep

        pieces: list[str] = []
        interrupted = False
        try:
            for step in watch_generation(self.session.turn(messages), self.terminal):
                if isinstance(step, DecodeStep):
                    pieces.append(step.texts[0])
                    self.terminal.write_answer(step.texts[0])
        except KeyboardInterrupt:
            interrupted = True
        finally:
            if self.session.stats is not None:
                self.terminal.write_line()
        return "".join(pieces), interrupted

    def _help(self, _: str) -> None:
        for name, (text, _action) in self._commands.items():
            self.terminal.note(f"{name:9}{text}")
        self.terminal.note("Ctrl-C    stop the answer and keep its text; at the prompt: leave")

    def _show_stats(self, _: str) -> None:
        spec = self.loaded.spec
        used, limit = self.session.cached_tokens, spec.trained_length
        self.terminal.note(
            f"{len(self.messages) // 2} turns ({self.stopped} interrupted) · context {format_count(used)}/"
            f"{format_count(limit)} ({100 * used / limit:.1f} %) · KV {format_bytes(self.session.kv_bytes)} · "
            f"weights {format_bytes(self.loaded.weights_bytes)}"
        )
        self._show_readout()

    def _show_readout(self) -> None:
        stats = self.session.stats
        if stats is not None:
            cached = f"cached {format_count(stats.cached_tokens)} · " if stats.cached_tokens else ""
            self.terminal.note(cached + format_readout(readout(stats, self.loaded.spec)))

    def _set_system(self, text: str) -> None:
        if text == OWN_PROMPT:
            self.system = None
            self.terminal.note("back to the model's own system prompt: the next turn reads the conversation again")
        elif text:
            self.system = text
            self.terminal.note("system prompt set: the next turn reads the conversation again")
        else:
            self.terminal.note(self.system if self.system is not None else "the model's own system prompt is used")

    def _clear(self, _: str) -> None:
        self.messages = []
        self.stopped = 0
        self.session.clear()
        self.session.stats = None
        self.terminal.note("the conversation is forgotten")

    def _leave(self, _: str) -> None:
        raise EOFError


def _in_chat(error: Exception) -> Exception:
    """`error` with a hint that can be followed in a chat."""
    if isinstance(error, UncompError) or not is_out_of_memory(error):
        return error
    hint = "/clear frees what the conversation takes; so does leaving and coming back with --quantize int8"
    return OutOfMemoryError("memory ran out; the message was not kept", hint=hint)
