"""The folder of saved caches: found by name or by their contents' hash, kept under a size, shared by processes.

Every file NAME.safetensors is one cache (cache_file.py), last used when it was last modified. When all together have
more than `limit_bytes`, those that were not used for longest go, never the one that was just saved. Names in the folder
change under a lock of the file system, which ends with its process. A file that is found damaged is renamed to
NAME.safetensors.corrupt; temporary files of processes that are gone are removed by the next save.
"""

import errno
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from uncomp_cli.cache.header import TEMPORARY_PREFIX, DamagedCacheError, Manifest, Record, read_manifest
from uncomp_cli.config import CacheConfig
from uncomp_cli.errors import DoesNotFitError, UncompError, UsageError, check_encodable, did_you_mean
from uncomp_cli.files import locked, move
from uncomp_cli.share import Share, bytes_of_dtype

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from uncomp_cli.cache.cache_file import StoredCache
    from uncomp_cli.cache.ragged import RaggedKVCache


AUTO = "auto"
"""The name that stands for the content's hash; no cache can have it."""

_SUFFIX, _CORRUPT = ".safetensors", ".safetensors.corrupt"
_LOCK = ".lock"
_LOCK_TIMEOUT_S = 30.0
_YOUNG_S, _OLD_S = 60.0, 86400.0
_LEAST_PREFIX = 4
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, slots=True)
class Entry:
    """A saved cache: its file, when it was last used (seconds since 1970), and what it says of itself."""

    name: str
    path: Path
    file_bytes: int
    used: float
    manifest: Manifest

    @property
    def key(self) -> str:
        """The hash of everything that the cache was made from."""
        return self.manifest.record.key

    @property
    def share(self) -> Share:
        """The file's bytes, of those that all of the cache would take; more than that with what it says of itself."""
        manifest = self.manifest
        return Share(self.file_bytes, manifest.record.kv_full_bytes, bytes_of_dtype(manifest.dtype))


def check_name(name: str) -> str:
    """`name`, when a cache can be saved under it; else raises UsageError."""
    if name == AUTO or not _NAME.fullmatch(name):
        reason = "stands for the content's hash" if name == AUTO else "is no name of a saved cache"
        hint = "use letters, digits, '.', '_' and '-'; caches lie in one folder: uncomp cache list"
        raise UsageError(f"'{name}' {reason}", hint=hint)
    return name


@dataclass(frozen=True, slots=True)
class Shelf:
    """The saved caches in `folder`, which together have at most `limit_bytes`."""

    folder: Path
    limit_bytes: int = 2 * 2**30

    def entries(self) -> list[Entry]:
        """All caches whose manifest can be read, the latest used first."""
        found = [entry for entry, _ in self._scan() if entry is not None]
        return sorted(found, key=lambda entry: -entry.used)

    def unread(self) -> list[UncompError]:
        """Why files are no entries that are not damaged: a newer version wrote them, or they may not be read."""
        return [error for _, error in self._scan() if error is not None and not isinstance(error, DamagedCacheError)]

    def corrupt(self) -> list[Path]:
        """Files that were found damaged and set aside, those among them whose manifest cannot be read now."""
        self.set_aside()
        return sorted(self.folder.glob(f"*{_CORRUPT}"))

    def set_aside(self) -> list[tuple[str, str]]:
        """Set files aside whose manifest cannot be read: the name of each, and what is wrong with it."""
        found = []
        for path in sorted(self.folder.glob(f"*{_SUFFIX}")):
            with suppress(OSError, UncompError):  # a shelf that cannot be written can still be read
                reason = _damage(path)
                if reason is not None:
                    self._put_aside(path, _damage)
                    found.append((path.name.removesuffix(_SUFFIX), reason))
        return found

    def find(self, name: str) -> Entry:
        """The cache of this name, or whose key begins with it; raises UsageError when there is not exactly one."""
        entries = self.entries()
        named = [entry for entry in entries if entry.name == name]
        begun = [entry for entry in entries if len(name) >= _LEAST_PREFIX and entry.key.startswith(name.lower())]
        found = named or begun
        if len(found) == 1:
            return found[0]
        if found:
            names = ", ".join(entry.name for entry in found)
            raise UsageError(f"'{name}' is the beginning of {len(found)} caches' hashes", hint=f"say which: {names}")
        if _NAME.fullmatch(name):
            self._explain(self.folder / f"{name}{_SUFFIX}")
        hint = did_you_mean(name, [entry.name for entry in entries], "uncomp cache list")
        raise UsageError(f"there is no saved cache '{name}' in {self.folder}", hint=hint)

    def _explain(self, path: Path) -> None:
        """Raise UncompError, with the reason, for a file that is no entry; a damaged one is set aside."""
        try:
            _entry(path)
        except DamagedCacheError as error:
            raise UncompError(str(self._put_aside(path, _damage) or error.message), hint=error.hint) from error
        except FileNotFoundError:
            return

    def with_key(self, *keys: str) -> Entry | None:
        """A cache that was made from just this, the latest used of several."""
        return next((entry for entry in self.entries() if entry.key in keys), None)

    def save(
        self, name: str, cache: "RaggedKVCache", *, tensors: "Mapping[str, Tensor]", record: Record
    ) -> tuple[Entry, list[Entry]]:
        """Save under `name`, in place of what had it; returns it and the caches that were removed to make room.

        Raises DoesNotFitError when it alone is larger than the shelf, UncompError when it cannot be written.
        """
        from uncomp_cli.cache.cache_file import save_cache, stored_bytes

        size = stored_bytes(cache, tensors)
        if size > self.limit_bytes:
            raise DoesNotFitError(
                f"the cache '{name}' has {size:,} bytes, --cache-size allows {self.limit_bytes:,}",
                hint="use a larger --cache-size, or a smaller --budget",
            )
        path = self.folder / f"{check_name(name)}{_SUFFIX}"
        check_encodable(path, f"cache '{name}'")
        placed: list[Entry] = []
        with self._writing():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._sweep()
            save_cache(path, cache, tensors=tensors, record=record, renaming=self._placing(path, placed))
        return placed[0], placed[1:]

    def load(
        self,
        entry: Entry,
        *,
        device: "torch.device | str" = "cpu",
        reserve: int = 0,
        config: CacheConfig | None = None,
        misfit: "Callable[[StoredCache], str | None]" = lambda stored: None,
    ) -> "StoredCache":
        """What was saved, checked against its hash; it counts as used. Raises UncompError when it is damaged or gone.

        A damaged file is set aside, as is one whose contents are a `misfit` for who opens it.
        """
        from uncomp_cli.cache.cache_file import load_cache

        reason = self.verify(entry)
        if reason is None:
            with suppress(OSError):  # a shelf that cannot be written can still be read
                os.utime(entry.path)
            stored = load_cache(entry.path, device=device, reserve=reserve, config=config, verify=False)
            fault = misfit(stored)
            if fault is None:
                return stored
            reason = self._put_aside(entry.path, lambda path: fault)
        raise UncompError(f"cache '{entry.name}' is damaged: {reason}", hint="save it again")

    def verify(self, entry: Entry) -> str | None:
        """None when every byte is as it was saved and all of it fits together.

        Else what is wrong, and where the file was set aside.
        """
        from uncomp_cli.cache.cache_file import find_fault

        try:
            return None if find_fault(entry.path) is None else self._put_aside(entry.path, find_fault)
        except FileNotFoundError as error:
            raise UncompError(f"cache '{entry.name}' has been removed", hint="uncomp cache list") from error
        except OSError as error:
            raise UncompError(f"cache {entry.path}: {error.strerror or error}", hint="check its permissions") from error

    def _put_aside(self, path: Path, damage: Callable[[Path], str | None]) -> str | None:
        """Rename a damaged file; what is wrong with it, and its new name. None when it was saved anew meanwhile."""
        with self._locked():
            reason = damage(path)
            if reason is None:
                return None
            aside = path.with_name(f"{path.name.removesuffix(_SUFFIX)}{_CORRUPT}")
            move(path, aside)
        return f"{reason}; set aside as {aside}"

    def remove(self, paths: Iterable[Path]) -> int:
        """Delete files of the folder; returns how many bytes they had. Raises UncompError when one cannot be."""
        with self._writing(), self._locked():
            return sum(_unlink(path) for path in paths)

    def _scan(self) -> Iterator[tuple[Entry | None, UncompError | None]]:
        """Every file of the shelf, or why it is no entry; what is gone meanwhile is neither."""
        for path in self.folder.glob(f"*{_SUFFIX}"):
            try:
                yield _entry(path), None
            except UncompError as error:
                yield None, error
            except OSError:
                continue

    @contextmanager
    def _placing(self, path: Path, placed: list[Entry]) -> Iterator[None]:
        """Under the lock a file is put in its place and room is made; `placed` gets it and what was removed."""
        with self._locked():
            yield
            os.utime(path)  # it may have waited for the lock
            placed.append(_entry(path))
            placed += self._evict(path)

    def _evict(self, saved: Path) -> list[Entry]:
        """Remove what is damaged, then what was not used for longest, until the rest has at most `limit_bytes`."""
        entries, corrupt = self.entries(), sorted(self.folder.glob(f"*{_CORRUPT}"))
        total = sum(entry.file_bytes for entry in entries) + sum(_size(path) for path in corrupt)
        for path in corrupt:
            if total > self.limit_bytes:
                total -= _unlink(path)
        removed = []
        for entry in reversed(entries):
            if total > self.limit_bytes and entry.path != saved:
                total -= _unlink(entry.path)
                removed.append(entry)
        return removed

    def _sweep(self) -> None:
        """Remove temporary files that nobody writes any more."""
        for path in self.folder.glob(f"{TEMPORARY_PREFIX}*"):
            with suppress(OSError):
                if _is_left(path, time.time() - path.stat().st_mtime):
                    path.unlink()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The only process that changes names in the folder."""
        try:
            with FileLock(self.folder / _LOCK, timeout=_LOCK_TIMEOUT_S):
                yield
        except Timeout as error:
            message = f"another process has held {self.folder / _LOCK} for {_LOCK_TIMEOUT_S:.0f} s"
            raise UncompError(message, hint="try again when it has ended") from error

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Raise UncompError in place of an OSError."""
        try:
            yield
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            hint = "uncomp cache remove --older-than 7d" if full else "check its permissions"
            message = f"cannot write to {self.folder}: {error.strerror or error}"
            raise UncompError(message, hint=f"{hint}, or set UNCOMP_CACHE_DIR to another directory") from error


def _is_left(path: Path, age_s: float) -> bool:
    """Whether a temporary file's process has ended, be it another machine's: then nobody holds the file's lock."""
    try:
        with locked(path, waits=False):
            return age_s > _YOUNG_S
    except BlockingIOError:
        return False
    except OSError:  # of a file system without locks
        return age_s > _OLD_S


def _entry(path: Path) -> Entry:
    stat = path.stat()
    return Entry(path.name.removesuffix(_SUFFIX), path, stat.st_size, stat.st_mtime, read_manifest(path))


def _damage(path: Path) -> str | None:
    """What is wrong with a file whose manifest is none; other reasons not to read it are raised."""
    try:
        read_manifest(path)
    except DamagedCacheError as error:
        return error.message
    return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _unlink(path: Path) -> int:
    """Delete a file that may be gone already; returns its bytes."""
    size = _size(path)
    path.unlink(missing_ok=True)
    return size
