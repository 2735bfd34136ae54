"""Where sessions lie, and how they are kept: NAME.json in one folder, written as a whole after every turn.

Whatever ends the process, a session is either as it was or as it was to be (files.py). A session that is open is
locked, so that two chats cannot overwrite each other; the lock ends with the process. The lock file stays (removing it
would let two processes hold locks of one name), and beside it is the id of the process that has it. What was said
without a session becomes one when the chat is ended from outside.
"""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import psutil
from filelock import FileLock, Timeout
from platformdirs import user_data_path

from uncomp_cli.errors import UncompError, UsageError, did_you_mean
from uncomp_cli.files import remove_leftovers, write_whole
from uncomp_cli.schema import inside, load_bytes
from uncomp_cli.sessions.transcript import Transcript

SUFFIX = ".json"
LOCKS = ".locks"
LONGEST_NAME = 100
_UNSAVED = "unsaved-"
_MOST_BYTES = 64 * 2**20
_MARKS = set("._-")


@dataclass(frozen=True, slots=True)
class SessionFile:
    """A session that this process alone has."""

    name: str
    path: Path

    def load(self) -> Transcript | None:
        """What was saved last, or None for a new session. Raises UsageError for a file that is no session."""
        return load_transcript(self.path) if self.path.exists() else None

    def save(self, transcript: Transcript) -> Transcript:
        """Put `transcript` in the session's place, with the time; returns it as it was written.

        Raises UncompError when it cannot be written; the session then is as it was.
        """
        saved = transcript.saved_at(datetime.now(UTC).isoformat(timespec="seconds"))
        try:
            write_whole(self.path, saved.to_json().encode(), owner_only=True)
        except OSError as error:
            message = f"session {self.path} cannot be written: {error.strerror or error}"
            raise UncompError(message, hint="free some space; what was saved before is still there") from error
        return saved


@contextmanager
def open_session(name: str) -> Iterator[SessionFile]:
    """The session `name`, old or new, for this process alone until the end of the block.

    Raises UsageError for a name that is none, UncompError when another process has it or the folder cannot be used.
    """
    path = session_path(name)
    holder = path.parent / LOCKS / f"{name}.pid"
    path = path.resolve()  # a session may be a link into another folder
    lock = FileLock(holder.with_name(f"{name}.lock"), timeout=0, mode=0o600)
    try:
        for folder in (session_dir(), holder.parent):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock.acquire()
        holder.write_text(f"{os.getpid()}\n")
        remove_leftovers(path)
    except Timeout as error:
        message = f"session '{name}' is open in {_describe(holder)}"
        raise UncompError(message, hint=f"leave that chat first, or name another session than {name}") from error
    except OSError as error:
        lock.release()
        message = f"sessions cannot be kept in {path.parent}: {error.strerror or error}"
        raise UncompError(message, hint="check the folder's permissions, or leave --session out") from error
    try:
        yield SessionFile(name, path)
    finally:
        with suppress(OSError):
            holder.unlink()
        lock.release()


def keep_unsaved(transcript: Transcript) -> None:
    """A session of its own for what nobody had saved. Raises UncompError when it cannot be written."""
    with open_session(f"{_UNSAVED}{datetime.now():%Y-%m-%d}-{secrets.token_hex(3)}") as file:
        file.save(transcript)


def unsaved_names() -> list[str]:
    """The sessions that nobody had named."""
    return [name for name in session_names() if name.startswith(_UNSAVED)]


def read_session(name: str) -> Transcript:
    """What was last saved as `name`, also while a chat has it. Raises UsageError when there is no such session."""
    path = session_path(name)
    if not path.exists():
        hint = did_you_mean(name, session_names(), f"sessions lie in {path.parent}")
        raise UsageError(f"there is no session '{name}'", hint=hint)
    return load_transcript(path)


def session_names() -> list[str]:
    """The names of all sessions, sorted."""
    names = (path.name.removesuffix(SUFFIX) for path in session_dir().glob(f"*{SUFFIX}"))
    return sorted(name for name in names if _is_name(name))


def session_path(name: str) -> Path:
    """The file of a session. Raises UsageError when `name` cannot name one."""
    if not _is_name(name):
        hint = f"a name has letters, digits and {' '.join(sorted(_MARKS))}, and begins with a letter or digit"
        if os.sep in name or name.endswith(SUFFIX):
            hint = f"give the name alone: sessions lie in {session_dir()}"
        raise UsageError(f"session name {name!r} cannot be used", hint=hint)
    return session_dir() / f"{name}{SUFFIX}"


def session_dir() -> Path:
    """The folder of all sessions."""
    return user_data_path("uncomp") / "sessions"


def _is_name(name: str) -> bool:
    if not name or not name[0].isalnum() or len(name.encode("utf-8", "replace")) > LONGEST_NAME:
        return False
    return all(letter.isalnum() or letter in _MARKS for letter in name) and not name.endswith((".", SUFFIX))


def load_transcript(path: Path) -> Transcript:
    """The session in a file of any folder. Raises UsageError for a file that is no session."""
    with inside(f"session file {path}"):
        return Transcript.from_json(load_bytes(path, most_bytes=_MOST_BYTES))


def _describe(holder: Path) -> str:
    """The process whose id is in the file, as far as it can be known."""
    try:
        number = int(holder.read_text())
        return f"process {number} ({psutil.Process(number).name()})"
    except (OSError, ValueError, psutil.Error):
        return "another process"
