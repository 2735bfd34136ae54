"""A converted model's directory: built beside its place, noted, then renamed there: what is in place is complete.

Every build has its own staging directory, named after its process, so that two processes cannot harm each other; the
first to finish wins. Staging directories of processes that are gone are removed by the next build. The note, where the
model came from and the hash of its weights, is written last. Weights are identified by the sha256 of their safetensors
file; of several files, by the sha256 of their hashes in name order. Hashes of files that are not ours are remembered by
path, size and time, because hashing gigabytes takes seconds.
"""

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from uncomp_cli.errors import ModelError, UsageError
from uncomp_cli.files import move, sync_tree, write_whole
from uncomp_cli.schema import Count, Hash, load_object, read, value_of

MANIFEST = "uncomp.json"
HASH_LENGTH = 64
PREFIX = ".staging-"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a converted model remembers of its source. `source_*` name the GGUF file as it was when it was read."""

    source: str
    licence: str | None
    sha256: Hash
    size_bytes: Count
    source_path: str | None = None
    source_size_bytes: Count | None = None
    source_mtime_ns: int | None = None


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the note into `directory`."""
    (directory / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")


def read_manifest(directory: Path) -> Manifest | None:
    """The note in `directory`, or None when there is none that can be read."""
    try:
        return read(Manifest, load_object(directory / MANIFEST))
    except UsageError:
        return None


def is_complete(directory: Path) -> bool:
    """Whether a converted model is there with all its bytes."""
    manifest = read_manifest(directory)
    return manifest is not None and weights_size(directory) == manifest.size_bytes


def weights_size(directory: Path) -> int:
    """Bytes of all safetensors files."""
    return sum(path.stat().st_size for path in directory.glob("*.safetensors"))


def describe(directory: Path, source: str, licence: str | None, gguf: Path | None = None) -> Manifest:
    """The note for a directory that has just been converted."""
    stat = gguf.stat() if gguf else None
    return Manifest(
        source=source,
        licence=licence,
        sha256=weights_sha256(directory, None),
        size_bytes=weights_size(directory),
        source_path=str(gguf.resolve()) if gguf else None,
        source_size_bytes=stat.st_size if stat else None,
        source_mtime_ns=stat.st_mtime_ns if stat else None,
    )


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def weights_sha256(directory: Path, memo: Path | None) -> str:
    """The hash of a directory's weights; `memo` is the file that remembers hashes. ModelError without weights."""
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        hint = "uncomp reads safetensors only; convert the model first"
        raise ModelError(f"{directory} holds no *.safetensors file", hint=hint)
    hashes = [remembered_sha256(path, memo) for path in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def remembered_sha256(path: Path, memo: Path | None) -> str:
    """The hash of one file, from its name in the hub's cache, from `memo`, or computed and noted there."""
    real = path.resolve()
    if len(real.name) == HASH_LENGTH and set(real.name) <= set("0123456789abcdef"):
        return real.name
    if memo is None:
        return file_sha256(real)
    stat = real.stat()
    key = f"{real}|{stat.st_size}|{stat.st_mtime_ns}"
    known = read_memo(memo)
    if key not in known:
        known[key] = file_sha256(real)
        write_memo(memo, known)
    return known[key]


def read_memo(memo: Path) -> dict[str, str]:
    """The remembered hashes; none when the file is missing or damaged."""
    try:
        known: dict[str, str] = value_of(dict[str, Hash], load_object(memo), "")
    except UsageError:
        return {}
    return known


def write_memo(memo: Path, known: dict[str, str]) -> None:
    """Remember hashes; a cache directory that cannot be written is no reason to stop."""
    with suppress(OSError):
        memo.parent.mkdir(parents=True, exist_ok=True)
        write_whole(memo, json.dumps(known).encode())


@contextmanager
def staging_directory(target: Path) -> Iterator[Path]:
    """An empty directory beside `target`, gone at the end, whatever happens.

    Raises ModelError in place of an OSError: disk full, no permission.
    """
    parent = target.parent
    staging = parent / f"{PREFIX}{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        remove_stale(parent)
        staging.mkdir()
        yield staging
    except OSError as error:
        raise ModelError(f"cannot write to {parent}: {error.strerror or error}", hint=disk_hint(error)) from error
    except Exception as error:
        if not disk_is_full(error):
            raise
        message = f"cannot write to {parent}: {os.strerror(errno.ENOSPC)}"
        raise ModelError(message, hint=disk_hint(OSError(errno.ENOSPC, ""))) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def publish(staging: Path, target: Path, is_complete: Callable[[Path], bool]) -> None:
    """Move `staging` to `target` in one step. A complete target of another process stays; a broken one is replaced.

    Interrupted between the two renames, the old target is put back.
    """
    if is_complete(target):
        return
    aside = staging.with_name(f"{staging.name}-old")
    try:
        if target.exists():
            move(target, aside)
        _open_up(staging)
        sync_tree(staging)
        move(staging, target)
    except OSError:
        if not is_complete(target):
            raise
    finally:
        restore(aside, target)


def _open_up(folder: Path) -> None:
    """Give all files what the folder has by the user's umask: safetensors writes weights for their owner alone."""
    granted = folder.stat().st_mode & 0o666
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(granted)


def restore(aside: Path, target: Path) -> None:
    """Put back what was moved aside when nothing came in its place, else remove it."""
    if aside.exists() and not target.exists():
        move(aside, target)
    shutil.rmtree(aside, ignore_errors=True)


def remove_stale(parent: Path) -> None:
    """Remove the staging directories of processes that no longer run."""
    for path in parent.glob(f"{PREFIX}*"):
        pid = path.name.removeprefix(PREFIX).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def disk_is_full(error: Exception) -> bool:
    """Whether an error that is no OSError (safetensors raises its own) tells of a full disk."""
    return not isinstance(error, ModelError) and f"os error {errno.ENOSPC}" in str(error)


def disk_hint(error: OSError) -> str:
    """What to do about it."""
    where = "or set UNCOMP_CACHE_DIR to a directory on another disk"
    return f"free some space {where}" if error.errno == errno.ENOSPC else f"check the directory's permissions {where}"
