"""files.py: a file is whole or as it was, its name is on the disk, and a torn line is told from a broken one."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import pytest

from uncomp_cli.budget.presets import load_preset, save_preset
from uncomp_cli.files import (
    append,
    cut,
    journal_lines,
    move,
    remove_leftovers,
    replace_file,
    set_aside,
    sync_tree,
    write_whole,
)


def no_space(*_: object) -> None:
    raise OSError(28, "No space left on device")


def stopped(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is brought to the disk and what is renamed, in order."""
    seen: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        seen.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file")
        fsync(descriptor)

    def replaced(source: Path, target: Path) -> None:
        seen.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    return seen


# Replacing


def save_a_preset(path: Path) -> None:
    save_preset(load_preset("live"), path.parent)


@pytest.mark.parametrize("save", [lambda path: write_whole(path, b"new"), save_a_preset])
def test_bytes_then_name_then_folder(tmp_path: Path, events: list[str], save: Callable[[Path], None]) -> None:
    save(tmp_path / "live.json")
    assert events == ["file", "rename", "folder"]


@pytest.mark.parametrize("owner_only", [True, False])
def test_who_may_read_it(tmp_path: Path, *, owner_only: bool) -> None:
    path, modes = tmp_path / "x", []

    def write(stream: BinaryIO) -> int:
        modes.append(stat.S_IMODE(os.fstat(stream.fileno()).st_mode))
        return stream.write(b"new")

    before = os.umask(0o022)
    try:
        assert replace_file(path, write, owner_only=owner_only) == 3
    finally:
        os.umask(before)
    assert [*modes, stat.S_IMODE(path.stat().st_mode)] == [0o600 if owner_only else 0o644] * 2


@pytest.mark.parametrize("step", ["replace", "fsync"])
@pytest.mark.parametrize(("failure", "error"), [(no_space, OSError), (stopped, KeyboardInterrupt)])
def test_what_ends_a_write_leaves_what_was_there(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    failure: Callable[..., None],
    error: type[BaseException],
) -> None:
    path = tmp_path / "x"
    write_whole(path, b"old")
    monkeypatch.setattr(os, step, failure)
    with pytest.raises(error):
        write_whole(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_synced_is_no_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda number: no_space() if stat.S_ISDIR(os.fstat(number).st_mode) else fsync(number)
    )
    write_whole(tmp_path / "x", b"new")
    assert (tmp_path / "x").read_bytes() == b"new"


def test_leftovers_of_one_file_are_removed(tmp_path: Path) -> None:
    for name in (".x.json.0123abcd.new", ".x.json.y.json.0123abcd.new", "x.json"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "x.json")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".x.json.y.json.0123abcd.new", "x.json"]


# Renaming


def test_setting_aside_takes_one_free_number_for_all(tmp_path: Path, events: list[str]) -> None:
    first, second = tmp_path / "a.json", tmp_path / "a.safetensors"
    for path in (first, second, tmp_path / "a.safetensors.1"):
        path.write_text(path.name)
    assert set_aside(first, second) == [tmp_path / "a.json.2", tmp_path / "a.safetensors.2"]
    assert (tmp_path / "a.safetensors.1").read_text() == "a.safetensors.1"
    first.touch()
    assert set_aside(first, before_suffix=True) == [tmp_path / "a.1.json"]
    assert set_aside() == []
    assert events == ["rename", "folder"] * 3


def test_a_folder_is_on_the_disk_before_it_moves(tmp_path: Path, events: list[str]) -> None:
    staging = tmp_path / "staging"
    (staging / "deep").mkdir(parents=True)
    (staging / "deep" / "x").touch()
    (staging / "y").touch()
    sync_tree(staging)
    move(staging, tmp_path / "model")
    assert events == ["file", "file", "folder", "rename", "folder"]


# Lines


def test_a_line_is_added_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, write = tmp_path / "x", os.write
    path.write_bytes(b"one\n")
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
    try:
        monkeypatch.setattr(os, "write", lambda number, data: write(number, data[:2]))
        with pytest.raises(OSError, match="No space left"):
            append(descriptor, b"two\n")
        assert path.read_bytes() == b"one\n"
        monkeypatch.undo()
        append(descriptor, b"two\n")
        assert path.read_bytes() == b"one\ntwo\n"
        cut(descriptor, 4)
        cut(descriptor, 9)
        assert path.read_bytes() == b"one\n"
    finally:
        os.close(descriptor)


@pytest.mark.parametrize(
    ("data", "records", "size"),
    [
        (b"", [], 0),
        (b"[1]\n{}\n", [[1], {}], 7),
        (b"[1]\n{}", [[1]], 4),  # what lacks its end may lack more
        (b"[1]\n{\n", [[1]], 4),
        (b"[1]\n{\n[2]\n", [[1], None, [2]], 10),
        (b'["\xe2\x80\xa8"]\n', [["\u2028"]], 8),
    ],
)
def test_lines_of_a_journal(data: bytes, records: list[object], size: int) -> None:
    assert journal_lines(data) == (records, size)
