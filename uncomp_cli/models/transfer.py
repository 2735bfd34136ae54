"""One file over HTTP, of a known size and hash, gone on with where the last try ended.

What has arrived lies in `NAME.part` beside the file's place. A try asks for the rest (`Range`, RFC 9110, section 14.2);
a server that sends the whole instead is taken at its word, and the part begins anew. Only a file with the expected
sha256 gets its name, so that no mixture of two files and no error page ever does. A token for the hub goes to the hub
alone, never to where it redirects.
"""

import errno
import fcntl
import os
import shutil
import socket
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from uncomp_cli.errors import ModelError
from uncomp_cli.files import move
from uncomp_cli.models.conversion import disk_hint, file_sha256
from uncomp_cli.numerals import format_bytes
from uncomp_cli.steps import PullStep

TIMEOUT_S = 30.0
PAUSE_S = 1.0
_TRIES = 3
"""Connections one after the other that bring nothing before it is given up."""
_PIECE = 2**20
_TICK_S = 0.2
_REFUSED = (401, 403)
_LATER = (408, 429)
_PAST_THE_END = 416


@dataclass(frozen=True, slots=True)
class Remote:
    """A file on a server, and how somebody gets it without us."""

    url: str
    size_bytes: int
    sha256: str
    by_hand: str


def fetched(remote: Remote, target: Path) -> Iterator[PullStep]:
    """Make sure that the file is at `target`, yielding the bytes that have arrived. Raises ModelError otherwise.

    A file that somebody has put there is checked like one that has arrived.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        if target.is_file():
            yield PullStep("verify", 0, None)
            _check(target, remote, hint=f"remove it, then: {remote.by_hand}")
            return
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(part):
            yield from _arrive(remote, part)
            yield PullStep("verify", 0, None)
            _check(part, remote, hint="remove that part and run it again; a newer uncomp may know a newer file")
            move(part, target)
    except OSError as error:
        raise ModelError(f"cannot write {target}: {error.strerror or error}", hint=disk_hint(error)) from error


@contextmanager
def _alone(part: Path) -> Iterator[None]:
    """While nobody else fetches the same file. Raises ModelError when somebody does."""
    with part.open("ab") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ModelError(f"{part.stem} is being fetched by another uncomp", hint="wait for it") from error
        yield


def _arrive(remote: Remote, part: Path) -> Iterator[PullStep]:
    """Connect until all is there, or several connections one after the other brought nothing."""
    yield PullStep("download", _size(part), remote.size_bytes)
    _check_disk(remote, part)
    left = _TRIES
    while (before := _size(part)) < remote.size_bytes:
        try:
            for arrived in _append(remote, part, before):
                yield PullStep("download", arrived, remote.size_bytes)
            problem = "the connection ended"
        except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
            problem = _problem(error, remote, part)
        left = _TRIES if _size(part) > before else left - 1
        if left == 0:
            so_far = f"{format_bytes(_size(part))} of {format_bytes(remote.size_bytes)} are here"
            host = urllib.parse.urlsplit(remote.url).netloc
            hint = f"run it again, which goes on from there; or {remote.by_hand}"
            raise ModelError(f"cannot fetch {part.stem} from {host}: {problem}; {so_far}", hint=hint)
        if _size(part) < remote.size_bytes:
            time.sleep(PAUSE_S)


def _check(path: Path, remote: Remote, *, hint: str) -> None:
    """Raise ModelError for a file that is not the one that is meant."""
    if (actual := file_sha256(path)) != remote.sha256:
        message = f"{path} is damaged or another file: sha256 is {actual}, expected {remote.sha256}"
        raise ModelError(message, hint=hint)


def _append(remote: Remote, part: Path, have: int) -> Iterator[int]:
    """Put the rest of the file behind what is there, yielding what has arrived."""
    with _opened(remote, have) as answer, part.open("ab") as file:
        if have and answer.status != 206:
            file.truncate(0)
        told = time.monotonic()
        while piece := answer.read1(_PIECE):
            file.write(piece)
            if file.tell() > remote.size_bytes:
                break
            if time.monotonic() - told > _TICK_S:
                told = time.monotonic()
                yield file.tell()


def _opened(remote: Remote, have: int) -> HTTPResponse:
    """The server's answer. Raises ModelError for one that another try will not change, else what urllib does."""
    from huggingface_hub import get_token

    request = urllib.request.Request(remote.url, headers={"User-Agent": "uncomp", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
    if (token := get_token()) is not None:
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    answer: HTTPResponse = urllib.request.urlopen(request, timeout=TIMEOUT_S)
    return answer


def _problem(error: Exception, remote: Remote, part: Path) -> str:
    """What went wrong, for another try. Raises ModelError where another try changes nothing."""
    if not isinstance(error, urllib.error.HTTPError):
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, socket.gaierror):
            return "no network, or no such name"
        return getattr(reason, "strerror", None) or str(reason) or type(error).__name__
    error.close()
    said = f"{error.code} {error.reason}"
    if error.code in _REFUSED:
        hint = f"agree to the model's terms on its page, and say who you are: hf auth login; or {remote.by_hand}"
        raise ModelError(f"the hub refuses {remote.url}: {said}", hint=hint) from error
    if error.code == _PAST_THE_END:
        os.truncate(part, 0)
    elif 400 <= error.code < 500 and error.code not in _LATER:
        hint = "uncomp model list --known shows others; a newer uncomp may know where it is now"
        raise ModelError(f"the hub does not have {remote.url}: {said}", hint=hint) from error
    return said


def _check_disk(remote: Remote, part: Path) -> None:
    """Raise ModelError when the disk does not hold what is still to come."""
    needed, free = remote.size_bytes - _size(part), shutil.disk_usage(part.parent).free
    if needed > free:
        message = f"{part.stem} needs {format_bytes(needed)} more, {format_bytes(free)} are free at {part.parent}"
        raise ModelError(message, hint=disk_hint(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))


def _size(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0
