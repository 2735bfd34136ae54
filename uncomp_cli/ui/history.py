"""The lines that were typed before: a file in the user's state directory that only its owner can read and write.

The file has prompt_toolkit's own form (a comment with the time, then the lines, each behind a `+`). An entry is added
by one write at the end of the file, so several chats can share it; a history that cannot be read or written is no
reason to stop a chat, and is told.
"""

import os
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from platformdirs import user_state_path
from prompt_toolkit.history import FileHistory

__all__ = ["PrivateHistory", "history_path"]

OWNER_ONLY = 0o600


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
