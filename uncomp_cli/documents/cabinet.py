"""What was slow to make of a file's bytes or a text, kept on the disk by what it was made of: texts, tokens.

A drawer's name is a hash of all that decides what is in it: the bytes, the reader's version, what was wished for.
Inside stand the hash of the content and the content; what does not agree is thrown away, so damage is as though nothing
were there. Those used longest ago go when there is too much. Nothing fails because something could not be kept.
"""

import hashlib
import importlib.metadata
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from uncomp_cli.files import write_whole

_DRAWER = re.compile(r"[0-9a-f]{64}")
_EXTRA = re.compile(r"""([\w.-]+).*extra\s*==\s*['"]documents['"]""")


@dataclass(frozen=True, slots=True)
class Cabinet:
    """A folder of drawers, which have `limit_bytes` together at most."""

    folder: Path
    limit_bytes: int

    def find(self, *made_of: str) -> bytes | None:
        """What was kept of this; it counts as used. None where there is nothing, or no more what was kept."""
        path = self._drawer(made_of)
        try:
            digest, _, content = path.read_bytes().partition(b"\n")
            if digest.decode("ascii", "replace") == hashlib.sha256(content).hexdigest():
                os.utime(path)
                return content
            path.unlink()
        except OSError:
            pass
        return None

    def keep(self, content: bytes, *made_of: str) -> None:
        """Keep it where there is room and the disk can be written; what was not used for longest goes."""
        if len(content) > self.limit_bytes:
            return
        with suppress(OSError):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            head = hashlib.sha256(content).hexdigest().encode() + b"\n"
            write_whole(self._drawer(made_of), head + content, owner_only=True)
            self._make_room()

    def size(self) -> tuple[int, int]:
        """How many drawers there are, and their bytes."""
        sizes = [status.st_size for _, status in self._drawers()]
        return len(sizes), sum(sizes)

    def clear(self) -> int:
        """Throw all away; returns how many bytes that were. Raises OSError."""
        _, count_bytes = self.size()
        for path, _ in self._drawers():
            path.unlink(missing_ok=True)
        return count_bytes

    def _drawer(self, made_of: tuple[str, ...]) -> Path:
        return self.folder / hashlib.sha256("\0".join(made_of).encode("utf-8", "surrogatepass")).hexdigest()

    def _drawers(self) -> Iterator[tuple[Path, os.stat_result]]:
        with suppress(OSError):
            for path in self.folder.iterdir():
                if _DRAWER.fullmatch(path.name):
                    with suppress(OSError):  # gone meanwhile
                        yield path, path.stat()

    def _make_room(self) -> None:
        oldest_first = sorted(self._drawers(), key=lambda drawer: drawer[1].st_mtime)
        total = sum(status.st_size for _, status in oldest_first)
        for path, status in oldest_first:
            if total <= self.limit_bytes:
                return
            path.unlink(missing_ok=True)
            total -= status.st_size


@cache
def readers_version() -> str:
    """The version of what reads documents: the modules beside this one, and the packages that they use."""
    packages: list[str] = []
    with suppress(importlib.metadata.PackageNotFoundError):
        named = (_EXTRA.match(line) for line in importlib.metadata.requires("uncomp") or ())
        packages = sorted(match[1] for match in named if match)
    return version_of(tuple(map(str, sorted(Path(__file__).parent.rglob("*.py")))), tuple(packages))


@cache
def version_of(modules: tuple[str, ...], packages: tuple[str, ...]) -> str:
    """A hash of modules, by their files, and of the versions of packages."""
    digest = hashlib.sha256()
    for path in modules:
        digest.update(Path(path).read_bytes())
    for name in packages:
        with suppress(importlib.metadata.PackageNotFoundError):
            digest.update(f"{name} {importlib.metadata.version(name)}\n".encode())
    return digest.hexdigest()
