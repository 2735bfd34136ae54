"""The four places a model comes from, one class each, and where the cache directory keeps what they prepare.

The built-in alias and converted GGUF files live in `models/`, hub snapshots in `hub/`; a directory in Hugging Face
format is used where it lies. A GGUF file is converted once, and known again by path, size and time, or by its hash.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import platformdirs

from uncomp_cli.config import DEFAULT_MODEL
from uncomp_cli.models.conversion import (
    describe,
    is_complete,
    publish,
    read_manifest,
    remembered_sha256,
    staging_directory,
    write_manifest,
)
from uncomp_cli.models.downloads import hub_path, pull_builtin, pull_hub
from uncomp_cli.steps import PullStep


class Source(Protocol):
    """Where a model comes from."""

    def local(self) -> Path | None:
        """The prepared directory, or None."""

    def pull(self, *, offline: bool, needs_tokenizer: bool) -> Iterator[PullStep]:
        """Prepare the directory, yielding progress; nothing when it is prepared."""


@dataclass(frozen=True, slots=True)
class Converted:
    """The default model, or a converted GGUF file named by its entry: a directory below `models/`."""

    path: Path

    def local(self) -> Path | None:
        return self.path if is_complete(self.path) else None

    def pull(self, *, offline: bool, needs_tokenizer: bool) -> Iterator[PullStep]:
        if self.path.name == DEFAULT_MODEL:
            yield from pull_builtin(self.path, offline=offline)


@dataclass(frozen=True, slots=True)
class Directory:
    """A directory in Hugging Face format, used where it lies."""

    path: Path

    def local(self) -> Path | None:
        return self.path

    def pull(self, *, offline: bool, needs_tokenizer: bool) -> Iterator[PullStep]:
        yield from ()


@dataclass(frozen=True, slots=True)
class GgufFile:
    """A .gguf file, converted into `models/<stem>-<hash>`."""

    path: Path

    def local(self) -> Path | None:
        return self.remembered() or self.by_hash()

    def remembered(self) -> Path | None:
        """The conversion that noted this file's path, size and time: no need to read it again."""
        stat = self.path.stat()
        mark = (str(self.path.resolve()), stat.st_size, stat.st_mtime_ns)
        for entry in converted():
            note = read_manifest(entry)
            if note and (note.source_path, note.source_size_bytes, note.source_mtime_ns) == mark:
                return entry
        return None

    def target(self) -> Path:
        """The directory for this content."""
        return models_dir() / f"{self.path.stem.lstrip('.')}-{remembered_sha256(self.path, hash_memo())[:12]}"

    def by_hash(self) -> Path | None:
        """The conversion of the same content under any name of the file."""
        entries = converted()
        if not entries:
            return None
        suffix = self.target().name.rpartition("-")[2]
        return next((entry for entry in entries if entry.name.endswith(f"-{suffix}")), None)

    def pull(self, *, offline: bool, needs_tokenizer: bool) -> Iterator[PullStep]:
        from uncomp_cli.models.gguf import convert_gguf, licence_of

        existing = self.local()
        if existing is not None and ((existing / "tokenizer.json").exists() or not needs_tokenizer):
            return
        yield PullStep("verify", 0, None)
        licence = licence_of(self.path)
        target = existing or self.target()
        with staging_directory(target) as staging:
            yield from convert_gguf(self.path, staging, needs_tokenizer=needs_tokenizer)
            write_manifest(staging, describe(staging, f"gguf {self.path.name}", licence, self.path))
            publish(staging, target, lambda path: existing is None and is_complete(path))


@dataclass(frozen=True, slots=True)
class Hub:
    """A model of the Hugging Face hub."""

    model_id: str

    def local(self) -> Path | None:
        return hub_path(self.model_id, hub_dir())

    def pull(self, *, offline: bool, needs_tokenizer: bool) -> Iterator[PullStep]:
        yield from pull_hub(self.model_id, hub_dir(), offline=offline)


def cache_dir() -> Path:
    """$UNCOMP_CACHE_DIR, or the user's cache directory for uncomp."""
    chosen = os.environ.get("UNCOMP_CACHE_DIR")
    return Path(chosen).expanduser() if chosen else platformdirs.user_cache_path("uncomp")


def models_dir() -> Path:
    """Converted models."""
    return cache_dir() / "models"


def hub_dir() -> Path:
    """Snapshots of hub models."""
    return cache_dir() / "hub"


def hash_memo() -> Path:
    """The file that remembers hashes."""
    return cache_dir() / "hashes.json"


def converted() -> list[Path]:
    """Complete directories of converted models; names with a dot in front are still being built."""
    root = models_dir()
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if not path.name.startswith(".") and is_complete(path))
