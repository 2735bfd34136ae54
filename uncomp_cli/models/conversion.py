"""A prepared model's directory: built beside its place, noted, then renamed there: what is in place is complete.

It holds configuration and tokenizer, and a note of where the weights are: in a GGUF file that stays where it is, or in
the directory itself (the built-in model).

Every build has its own staging directory, so that two processes cannot harm each other; the first to finish wins. It is
locked while its process lives, wherever that is: containers that share the cache do not know each other's processes.
What nobody holds is removed by the next build. The note, where the
model came from and the hash of its weights, is written last. Weights are identified by the sha256 of their file; of
several files, by the sha256 of their hashes in name order. Hashes of files that are not ours are remembered by path,
size and time, because hashing gigabytes takes seconds.
"""

import errno
import hashlib
import json
import os
import shlex
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from uncomp_cli.errors import ModelError, UsageError, check_encodable
from uncomp_cli.files import locked, move, sync_tree, write_whole
from uncomp_cli.schema import Count, Hash, load_object, read, value_of

MANIFEST = "uncomp.json"
HASH_LENGTH = 64
NOTE_VERSION = 2
PREFIX, _ASIDE = ".staging-", "-old"


@dataclass(frozen=True, slots=True)
class Stored:
    """A file of weights as it was when it was noted; its path counts from the directory of the note."""

    path: str
    size_bytes: Count
    mtime_ns: int
    sha256: Hash


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a prepared model remembers of its source.

    `sha256` says which model it is, `size_bytes` how much of its weights is in the directory itself; `files` are those
    of the GGUF.
    """

    source: str
    licence: str | None
    sha256: Hash
    size_bytes: Count
    files: tuple[Stored, ...]
    version: Count


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write the note into `directory`."""
    (directory / MANIFEST).write_text(json.dumps(asdict(manifest), indent=2) + "\n", encoding="utf-8")


def read_manifest(directory: Path) -> Manifest | None:
    """The note in `directory`, or None when there is none that can be read, or another version wrote it."""
    try:
        found = read(Manifest, load_object(directory / MANIFEST))
    except UsageError:
        return None
    return found if found.version == NOTE_VERSION else None


def is_complete(directory: Path) -> bool:
    """Whether a prepared model is there with all the bytes that it has itself."""
    manifest = read_manifest(directory)
    return manifest is not None and weights_size(directory) == manifest.size_bytes


def weights_size(directory: Path) -> int:
    """Bytes of all files of weights in a directory."""
    return sum(path.stat().st_size for path in directory.iterdir() if path.suffix in (".safetensors", ".gguf"))


def describe(
    directory: Path,
    source: str,
    licence: str | None,
    files: Sequence[Path] = (),
    *,
    sha256: str | None = None,
    memo: Path | None = None,
) -> Manifest:
    """The note for a directory that has just been made; `files` are those of a GGUF, `sha256` its known identity."""
    stored = tuple(_stored(path, directory, memo) for path in files)
    if sha256 is None:
        sha256 = joined_sha256([each.sha256 for each in stored]) if stored else weights_sha256(directory, None)
    return Manifest(source, licence, sha256, weights_size(directory), files=stored, version=NOTE_VERSION)


def _stored(path: Path, directory: Path, memo: Path | None) -> Stored:
    stat = path.stat()
    where = path.name if path.parent == directory else str(path.resolve())
    return Stored(where, stat.st_size, stat.st_mtime_ns, remembered_sha256(path, memo))


def weights_files(directory: Path, name: str, memo: Path | None) -> list[Path]:
    """The files of the GGUF that a model is of, as they were noted; none for one with weights of its own.

    Raises ModelError when one is not there any more, or is another file now.
    """
    manifest = read_manifest(directory)
    return [_found(directory / each.path, each, name, memo) for each in (manifest.files if manifest else ())]


def _found(path: Path, stored: Stored, name: str, memo: Path | None) -> Path:
    if not path.is_file():
        hint = "put the file back, or name it where it is now: --model FILE.gguf"
        raise ModelError(f"the weights of {name} are not where they were: {path}", hint=hint)
    stat = path.stat()
    same = stat.st_size == stored.size_bytes
    if not same or (stat.st_mtime_ns != stored.mtime_ns and remembered_sha256(path, memo) != stored.sha256):
        hint = f"uncomp model remove {shlex.quote(name)}, then name the new file: --model {shlex.quote(str(path))}"
        raise ModelError(f"{path} is another file than the one that {name} was made of", hint=hint)
    return path


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
    return joined_sha256([remembered_sha256(path, memo) for path in files])


def joined_sha256(hashes: Sequence[str]) -> str:
    """The hash of a file, or of the hashes of several."""
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

    Raises ModelError in place of an OSError (disk full, no permission), and for a path that is not UTF-8.
    """
    check_encodable(target, "the model's directory")
    parent = target.parent
    staging = parent / f"{PREFIX}{os.getpid()}-{uuid.uuid4().hex[:8]}"
    try:
        with ExitStack() as locks:
            parent.mkdir(parents=True, exist_ok=True)
            with locked(parent):  # nobody sweeps between its making and its lock
                remove_stale(parent)
                staging.mkdir()
                locks.enter_context(locked(staging))
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
    aside = staging.with_name(f"{staging.name}{_ASIDE}")
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
    """Remove the staging directories that nobody holds, and what a build that nobody holds has moved aside."""
    for path in parent.glob(f"{PREFIX}*"):
        with suppress(OSError):  # held, or gone meanwhile
            building = path.with_name(path.name.removesuffix(_ASIDE))
            with locked(building if building.exists() else path, waits=False):
                shutil.rmtree(path, ignore_errors=True)


def disk_is_full(error: Exception) -> bool:
    """Whether an error that is no OSError (safetensors raises its own) tells of a full disk."""
    return not isinstance(error, ModelError) and f"os error {errno.ENOSPC}" in str(error)


def disk_hint(error: OSError) -> str:
    """What to do about it."""
    where = "or set UNCOMP_CACHE_DIR to a directory on another disk"
    return f"free some space {where}" if error.errno == errno.ENOSPC else f"check the directory's permissions {where}"
