"""A chat without a process and without a terminal."""

import io
from collections.abc import Iterator
from dataclasses import replace

from uncomp_cli.asking.chat import Chat
from uncomp_cli.asking.request import CHAT_CHOICE, PresetChoice
from uncomp_cli.cli.chat.loop import Loop
from uncomp_cli.cli.chat.talk import Talk
from uncomp_cli.config import SamplingConfig
from uncomp_cli.engine.engine import Engine
from uncomp_cli.models.runnable import LoadedModel, fingerprint
from uncomp_cli.ui.console import Terminal

GREEDY = SamplingConfig(max_new_tokens=24)


class Stopping(io.StringIO):
    """A stream at which Ctrl-C is pressed when the n-th piece is written."""

    presses_at: int | None = None

    def write(self, text: str) -> int:
        written = super().write(text)
        if self.presses_at is not None and text.strip():
            self.presses_at -= 1
            if self.presses_at == 0:
                self.presses_at = None
                raise KeyboardInterrupt
        return written


EXACT = replace(CHAT_CHOICE, kv_bits=16)
"""Everything in the model's own numbers: what is read anew is what was written."""


def make_talk(loaded: LoadedModel, choice: PresetChoice | None = None) -> Talk:
    """A chat without a terminal."""
    choice = choice or CHAT_CHOICE
    preset, _ = choice.settled(fingerprint(loaded), grows=True)
    terminal = Terminal(Stopping(), io.StringIO(), False, False, False, False, verbose=True)
    return Talk(Chat(Engine(loaded, sampling=GREEDY).conversation(preset), choice, name="tiny"), terminal)


def hold(talk: Talk | Loop, *lines: str) -> list[str]:
    """Type lines; what standard error says to them."""
    loop = talk if isinstance(talk, Loop) else Loop(talk)
    remaining: Iterator[str] = iter(lines)

    def read_line() -> str:
        line = next(remaining, None)
        if line is None:
            raise EOFError
        return line

    stderr = loop.talk.terminal.stderr
    assert isinstance(stderr, io.StringIO)
    before = len(stderr.getvalue())
    loop.run(read_line)
    return stderr.getvalue()[before:].splitlines()
