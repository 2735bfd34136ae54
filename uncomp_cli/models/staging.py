"""Build a directory beside its place, then rename it there: what is in place is always complete.

Every build has its own staging directory, named after its process, so that two processes cannot harm each other; the
first to finish wins. Staging directories of processes that are gone are removed by the next build.
"""

import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from uncomp_cli.errors import ModelError
from uncomp_cli.files import move, sync_tree

PREFIX = ".staging-"


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
        sync_tree(staging)
        move(staging, target)
    except OSError:
        if not is_complete(target):
            raise
    finally:
        restore(aside, target)


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
