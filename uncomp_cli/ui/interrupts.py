"""Ctrl-C, and the signals that end a program, taken where somebody is ready for them.

Python raises KeyboardInterrupt wherever the program happens to be, and once more at the next press while the first is
still being dealt with. Within `with interrupts:` a signal is kept instead, for whoever asks with `take()`; it raises in
`armed()` work alone, and once: what is pressed again is the same wish. Nothing of this happens outside the block.
Within `with HELD:`, anywhere, what is done is done whole: a signal that comes meanwhile is handled right behind it.
"""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
Handler = Callable[[int, FrameType | None], Any]


class Hold:
    """Steps that a signal must not break off in the middle, such as drawing; may be nested."""

    def __init__(self) -> None:
        self._depth = 0
        self._came: int | None = None

    def __enter__(self) -> None:
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if self._depth == 0 and self._came is not None:
            number, self._came = self._came, None
            signal.raise_signal(number)

    def behind(self, handler: Handler) -> Handler:
        """The handler, for a signal that comes in held steps right behind them.

        One that ends the program waits once: a terminal that nobody reads holds a step for ever.
        """

        def come(number: int, frame: FrameType | None) -> None:
            if not self._depth or self._came == number != signal.SIGINT:
                handler(number, frame)
            elif self._came is None or number != signal.SIGINT:  # one that ends the program is not lost to a Ctrl-C
                self._came = number

        return come


HELD = Hold()
"""The process's own, as its handlers are."""


class Interrupts:
    """The signals that came and were not raised; `wake` is called when one is kept. For the main thread."""

    def __init__(self) -> None:
        self.wake: Callable[[], None] | None = None
        self.kept: int | None = None
        self._armed = False
        self._handlers: dict[int, Any] = {}
        self._handler = HELD.behind(self._come)

    def __enter__(self) -> Self:
        for number in _SIGNALS:
            if callable(handler := signal.getsignal(number)):  # not one that is ignored
                self._handlers[number] = handler
                signal.signal(number, self._handler)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            if signal.getsignal(number) == self._handler:
                signal.signal(number, handler)

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Work that the first signal breaks off by KeyboardInterrupt; one that was kept does so before it begins."""
        self._armed = True
        try:
            if self.take() is not None:
                raise KeyboardInterrupt
            yield
        finally:
            self._armed = False

    def keep(self, number: int) -> None:
        """As though the signal had come now."""
        self.kept = number
        if self.wake is not None:
            self.wake()

    def take(self) -> int | None:
        """The number of the last signal that was kept, once."""
        kept, self.kept = self.kept, None
        return kept

    def _come(self, number: int, frame: FrameType | None) -> None:
        armed, self._armed = self._armed, False
        try:
            self._handlers[number](number, frame)
        except KeyboardInterrupt:
            if armed:
                raise
            self.keep(number)
