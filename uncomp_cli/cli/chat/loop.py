"""The loop of `uncomp chat`: read a text, run a command or a turn, keep the session's file as it now is.

Ctrl-C at the prompt leaves; while something runs it stops that and the chat goes on. What fails is told in two lines,
and the conversation is as it was.
"""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from uncomp_cli.asking.request import check_text
from uncomp_cli.cli.chat.commands import is_command, run_command
from uncomp_cli.cli.chat.talk import Talk
from uncomp_cli.cli.declare.failures import show_failure
from uncomp_cli.errors import UncompError

if TYPE_CHECKING:
    from uncomp_cli.sessions.folder import SessionFile
    from uncomp_cli.sessions.transcript import Transcript


_FLAGS = re.compile(r"--(budget|pin|preset|system)\b")


class Loop:
    """A chat that goes on until it is left; `file` is saved after whatever changed the conversation."""

    def __init__(self, talk: Talk, file: "SessionFile | None" = None, saved: "Transcript | None" = None) -> None:
        self.talk = talk
        self._file, self._saved = file, saved

    def run(self, read_text: Callable[[], str]) -> None:
        """Take texts until they end, /exit, or Ctrl-C at the prompt; what fails is told and the chat goes on."""
        while True:
            try:
                text = read_text()
            except (EOFError, KeyboardInterrupt):
                return
            except UncompError as error:
                show_failure(error, self.talk.terminal)
                continue
            if not self.guarded(partial(self.take, text)):
                return

    def guarded(self, work: Callable[[], None]) -> bool:
        """Do `work` and save; False when it was to leave. Ctrl-C and failures end the work alone."""
        try:
            work()
        except EOFError:
            return False
        except KeyboardInterrupt:
            self.talk.say("[stopped]")
        except BrokenPipeError:  # nobody reads any more
            raise
        except Exception as error:
            show_failure(_in_chat(error), self.talk.terminal)
        finally:
            self._save()
        return True

    def take(self, text: str) -> None:
        """One text: a command, or a message to the model. Raises EOFError to leave."""
        check_text(text, "the line")
        text = text.strip()
        if is_command(text):
            run_command(self.talk, text)
        elif text:
            self.talk.ask(text)

    def _save(self) -> None:
        """Write the session when it is not as it was written; a failure is told, and tried again next time."""
        if self._file is None:
            return
        chat, updated = self.talk.chat, "" if self._saved is None else self._saved.updated
        now = replace(chat.transcript(), updated=updated)
        if now == self._saved or (self._saved is None and not now.entries):
            return
        try:
            self._saved = self._file.save(now)
            chat.created = self._saved.created
        except UncompError as error:
            self.talk.terminal.warn(f"{error.message}; {error.hint}")


def _in_chat(error: Exception) -> Exception:
    """`error` that names commands in the place of flags."""
    if isinstance(error, UncompError):
        error.message = _FLAGS.sub(r"/\1", error.message)
        error.hint = None if error.hint is None else _FLAGS.sub(r"/\1", error.hint)
    return error
