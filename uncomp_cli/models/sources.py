"""The four places a model comes from, one class each, and where the cache directory keeps what they prepare.

The built-in alias, known models and what is written of a GGUF file live in `models/`, hub snapshots in `hub/`; a
directory in Hugging Face format is used where it lies, and so are the weights of a GGUF. It is known again by its hash,
which is remembered by path, size and time.
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
    joined_sha256,
    publish,
    read_manifest,
    remembered_sha256,
    staging_directory,
    write_manifest,
)
from uncomp_cli.models.downloads import hub_path, pull_builtin, pull_hub
from uncomp_cli.models.known import known_models, pull_known
from uncomp_cli.models.preamble import parts_of, read_preambles
from uncomp_cli.steps import PullStep


class Source(Protocol):
    """Where a model comes from."""

    def local(self) -> Path | None:
        """The prepared directory, or None."""

    def pull(self, *, offline: bool, needs_tokenizer: bool) -> Iterator[PullStep]:
        """Prepare the directory, yielding progress; nothing when it is prepared."""


@dataclass(frozen=True, slots=True)
class Converted:
    """The default model, one of the known ones, or a GGUF file named by its entry: a directory below `models/`."""

    path: Path

    def local(self) -> Path | None:
        return self.path if is_complete(self.path) else None

    def pull(self, *, offline: bool, needs_tokenizer: bool) -> Iterator[PullStep]:
        known = known_models().get(self.path.name)
        if self.path.name == DEFAULT_MODEL:
            yield from pull_builtin(self.path, offline=offline)
        elif known is not None:
            yield from pull_known(known, self.path, cache_dir() / "downloads", offline=offline)


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
    """A .gguf file, or the first of several, described in `models/<stem>-<hash>`."""

    path: Path

    def local(self) -> Path | None:
        entries = converted()
        if not entries:
            return None
        suffix = self.target().name.rpartition("-")[2]
        return next((entry for entry in entries if entry.name.endswith(f"-{suffix}")), None)

    def target(self) -> Path:
        """The directory for this content."""
        hashes = [remembered_sha256(path, hash_memo()) for path in parts_of(self.path)]
        return models_dir() / f"{self.path.stem.lstrip('.')}-{joined_sha256(hashes)[:12]}"

    def pull(self, *, offline: bool, needs_tokenizer: bool) -> Iterator[PullStep]:
        """What is there already learns where the file is now."""
        files, existing = parts_of(self.path), self.local()
        note = None if existing is None else read_manifest(existing)
        if existing and note and ((existing / "tokenizer.json").exists() or not needs_tokenizer):
            moved = describe(existing, note.source, note.licence, files, sha256=note.sha256, memo=hash_memo())
            if moved != note:
                write_manifest(existing, moved)
            return
        from uncomp_cli.models.gguf import prepare_gguf

        yield PullStep("verify", 0, None)
        read_preambles(files)
        target, known = existing or self.target(), note.sha256 if note else None
        with staging_directory(target) as staging:
            licence = yield from prepare_gguf(files, staging, needs_tokenizer=needs_tokenizer)
            source = f"gguf {self.path.name}"
            write_manifest(staging, describe(staging, source, licence, files, sha256=known, memo=hash_memo()))
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
    """The built-in model, known ones, and what is written of GGUF files."""
    return cache_dir() / "models"


def hub_dir() -> Path:
    """Snapshots of hub models."""
    return cache_dir() / "hub"


def hash_memo() -> Path:
    """The file that remembers hashes."""
    return cache_dir() / "hashes.json"


def converted() -> list[Path]:
    """Complete directories of prepared models; names with a dot in front are still being built."""
    root = models_dir()
    if not root.is_dir():
        return []
    return sorted(path for path in root.iterdir() if not path.name.startswith(".") and is_complete(path))
