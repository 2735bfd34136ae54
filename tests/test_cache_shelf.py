"""The shelf of saved caches: names, room, damage; and what processes do to it that save at once or are killed."""

import os
import random
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch

from support.caches import make_cache, make_record
from support.commands import fork_server
from uncomp_cli.cache.cache_file import save_cache
from uncomp_cli.cache.header import TEMPORARY_PREFIX
from uncomp_cli.cache.ragged import RaggedKVCache
from uncomp_cli.cache.shelf import Entry, Shelf, check_name
from uncomp_cli.errors import DoesNotFitError, UncompError, UsageError
from uncomp_cli.files import locked

LENGTHS = [40, 30, 20]


def put(shelf: Shelf, name: str, *, key: str = "", cache: RaggedKVCache | None = None, number: int = 0) -> Entry:
    record = make_record(key=key, preset=str(number))
    return shelf.save(name, cache or make_cache(LENGTHS), tensors={}, record=record)[0]


def names(shelf: Shelf) -> list[str]:
    return [entry.name for entry in shelf.entries()]


def set_used(entry: Entry, *, seconds_ago: float) -> None:
    os.utime(entry.path, (time.time() - seconds_ago,) * 2)


@pytest.mark.parametrize("name", ["", "auto", "a/b", "../a", ".hidden", "a b", "ü", "x" * 101])
def test_names_that_are_none_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="stands for" if name == "auto" else "is no name"):
        check_name(name)
    with pytest.raises(UsageError):
        put(Shelf(tmp_path), name)
    assert not list(tmp_path.glob("*.safetensors"))


def test_found_by_name_by_hash_and_by_key(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "documents")
    assert shelf.entries() == []
    put(shelf, "one", key="abcd1111")
    put(shelf, "two", key="abcd2222")
    put(shelf, "abcd", key="ffff")
    assert shelf.find("one").key.startswith("abcd1111")
    assert shelf.find("ABCD2").name == "two"
    assert shelf.find("abcd").key.startswith("ffff")  # a name goes before the beginning of a hash
    found = shelf.with_key("abcd2222".ljust(64, "0"))
    assert found is not None
    assert found.name == "two"
    assert shelf.with_key("abcd") is None


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("tow", "no saved cache 'tow'", "did you mean 'two'?"),
        ("abc", "no saved cache 'abc'", "uncomp cache list"),  # too short for a hash
        ("abcd", "'abcd' is the beginning of 2 caches' hashes", "two, one"),
    ],
)
def test_what_is_not_found_is_said(tmp_path: Path, name: str, message: str, hint: str) -> None:
    shelf = Shelf(tmp_path)
    set_used(put(shelf, "one", key="abcd1111"), seconds_ago=60)
    put(shelf, "two", key="abcd2222")
    with pytest.raises(UsageError, match=message) as caught:
        shelf.find(name)
    assert hint in str(caught.value.hint)


def test_saving_again_replaces(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    put(shelf, "one", number=1)
    put(shelf, "one", number=2)
    assert names(shelf) == ["one"]
    assert shelf.load(shelf.find("one")).record.preset == "2"


def test_the_longest_unused_go_and_never_the_one_just_saved(tmp_path: Path) -> None:
    size = put(Shelf(tmp_path), "size").file_bytes
    shelf = Shelf(tmp_path, limit_bytes=3 * size + 200)
    shelf.remove([shelf.find("size").path])
    for age, name in enumerate(["newest", "middle", "oldest"]):
        set_used(put(shelf, name), seconds_ago=100 * (age + 1))
    shelf.load(shelf.find("oldest"))  # counts as a use
    entry, removed = shelf.save("fourth", make_cache(LENGTHS), tensors={}, record=make_record())
    assert [each.name for each in removed] == ["middle"]
    assert set(names(shelf)) == {"fourth", "oldest", "newest"}
    tight = Shelf(tmp_path, limit_bytes=size)
    _, removed = tight.save("alone", make_cache(LENGTHS), tensors={}, record=make_record())
    assert names(tight) == ["alone"]
    assert {each.name for each in removed} == {"fourth", "oldest", "newest"}
    assert not entry.path.exists()


def test_the_one_just_saved_stays_beside_one_that_was_used_in_the_future(tmp_path: Path) -> None:
    entry = put(Shelf(tmp_path), "clock")
    set_used(entry, seconds_ago=-3600)
    put(Shelf(tmp_path, limit_bytes=entry.file_bytes + 200), "saved")
    assert names(Shelf(tmp_path)) == ["saved"]


def test_what_is_larger_than_the_shelf_is_refused_and_removes_nothing(tmp_path: Path) -> None:
    put(Shelf(tmp_path), "small")
    shelf = Shelf(tmp_path, limit_bytes=10_000)
    with pytest.raises(DoesNotFitError, match=r"has [\d,]+ bytes, --cache-size allows 10,000"):
        put(shelf, "large", cache=make_cache([900, 900]))
    assert names(shelf) == ["small"]


def test_nothing_is_saved_where_it_could_not_be_opened(tmp_path: Path) -> None:
    shelf = Shelf(Path(os.fsdecode(bytes(tmp_path) + b"/c\xff")), limit_bytes=2**20)
    with pytest.raises(UsageError, match="is not UTF-8"):
        put(shelf, "one")
    assert not shelf.folder.exists()


def damage(entry: Entry) -> None:
    data = bytearray(entry.path.read_bytes())
    data[-5] ^= 1
    entry.path.write_bytes(data)


def test_a_damaged_file_is_set_aside_and_told(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    entry = put(shelf, "one")
    put(shelf, "two")
    assert shelf.verify(entry) is None
    damage(entry)
    with pytest.raises(UncompError, match=r"'one' is damaged: its checksum .* set aside as .*one.safetensors.corrupt"):
        shelf.load(entry)
    assert names(shelf) == ["two"]
    assert [path.name for path in shelf.corrupt()] == ["one.safetensors.corrupt"]
    with pytest.raises(UncompError, match="has been removed"):
        shelf.load(entry)


def test_damaged_files_go_first(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    entry = put(shelf, "one")
    damage(entry)
    shelf.verify(entry)
    put(shelf, "two")
    put(Shelf(tmp_path, limit_bytes=2 * entry.file_bytes + 200), "three")
    assert set(names(shelf)) == {"two", "three"}
    assert shelf.corrupt() == []


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"not ours")
    shelf = Shelf(tmp_path)
    put(shelf, "one")
    assert names(shelf) == ["one"]
    assert (tmp_path / "model.safetensors").exists()


def test_temporary_files_that_nobody_holds_are_swept(tmp_path: Path) -> None:
    stale, young, held = (tmp_path / f"{TEMPORARY_PREFIX}{name}" for name in ("1-a", "b", f"{2**22}-c"))
    for path in (stale, young, held):
        path.write_bytes(b"x")
    for path in (stale, held):
        os.utime(path, (time.time() - 2 * 86400,) * 2)
    with locked(held):  # by a process that another container does not know
        put(Shelf(tmp_path), "one")
    assert (stale.exists(), young.exists(), held.exists()) == (False, True, True)


def test_what_waits_for_its_place_is_not_swept(tmp_path: Path) -> None:
    put(Shelf(tmp_path), "first")

    @contextmanager
    def beside_another() -> Iterator[None]:
        (fresh,) = tmp_path.glob(f"{TEMPORARY_PREFIX}*")
        os.utime(fresh, (time.time() - 2 * 86400,) * 2)
        put(Shelf(tmp_path), "second")
        yield

    first = Shelf(tmp_path).find("first")
    stored = Shelf(tmp_path).load(first)
    save_cache(first.path, stored.cache, tensors={}, record=stored.record, renaming=beside_another())
    assert sorted(names(Shelf(tmp_path))) == ["first", "second"]


def _save_until_killed(folder: Path, pipe: Connection) -> None:
    """Save "new" again and again, a higher number each time, and tell each that is saved."""
    torch.set_num_threads(1)
    shelf, cache, number = Shelf(folder), make_cache([9000, 8000], dim=16), 0
    while True:
        number += 1
        put(shelf, "new", cache=cache, number=number)
        pipe.send(number)


def kill_while_saving(folder: Path, *, after_s: float) -> int:
    """The number of the last save that a process told before it was killed, so long after its first."""
    context = fork_server()
    ours, theirs = context.Pipe()
    process = context.Process(target=_save_until_killed, args=(folder, theirs), daemon=True)
    process.start()
    theirs.close()
    assert ours.poll(60)
    time.sleep(after_s)
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    told = 0
    while ours.poll():
        try:
            told = ours.recv()
        except EOFError:
            break
    return told


def kill_many(folder: Path, *, kills: int) -> None:
    shelf = Shelf(folder)
    put(shelf, "earlier", number=-1)
    chance, before = random.Random(5), 0
    for _ in range(kills):
        told = kill_while_saving(folder, after_s=chance.uniform(0, 0.08))
        there = shelf.find("new")
        assert shelf.verify(there) is None
        assert told <= int(there.manifest.record.preset) <= told + 1
        before = max(before, told)
        assert shelf.load(shelf.find("earlier")).record.preset == "-1"
    assert before > 1
    assert shelf.corrupt() == []
    interrupted = list(folder.glob(f"{TEMPORARY_PREFIX}*"))
    assert interrupted  # some were killed in the middle of a file
    for path in interrupted:
        os.utime(path, (time.time() - 120,) * 2)
    put(shelf, "last")
    assert list(folder.glob(f"{TEMPORARY_PREFIX}*")) == []


def test_killed_while_saving_nothing_earlier_is_lost(tmp_path: Path) -> None:
    kill_many(tmp_path, kills=20)


@pytest.mark.slow
def test_killed_a_thousand_times_nothing_earlier_is_lost(tmp_path: Path) -> None:
    kill_many(tmp_path, kills=1000)


def _save_beside_others(folder: Path, own: str, limit_bytes: int, pipe: Connection) -> None:
    torch.set_num_threads(1)
    shelf = Shelf(folder, limit_bytes=limit_bytes)
    for number in range(15):
        put(shelf, "shared", cache=make_cache([900, 700]), number=number)
        put(shelf, f"{own}{number}", cache=make_cache([500, 400]))
    pipe.send("done")


def test_processes_that_save_at_once_leave_whole_files_within_the_size(tmp_path: Path) -> None:
    context = fork_server()
    limit = 6 * put(Shelf(tmp_path), "shared", cache=make_cache([900, 700])).file_bytes
    pipes: list[Any] = []
    for own in ("a", "b"):
        ours, theirs = context.Pipe()
        context.Process(target=_save_beside_others, args=(tmp_path, own, limit, theirs), daemon=True).start()
        theirs.close()
        pipes.append(ours)
    assert [pipe.poll(60) and pipe.recv() for pipe in pipes] == ["done", "done"]
    shelf = Shelf(tmp_path, limit_bytes=limit)
    entries = shelf.entries()
    assert [shelf.verify(entry) for entry in entries] == [None] * len(entries)
    assert sum(entry.file_bytes for entry in entries) <= limit
    assert {"a14", "b14"} & {entry.name for entry in entries}  # the one that ended last
    assert list(tmp_path.glob(f"{TEMPORARY_PREFIX}*")) == []


def _save_on_a_full_disk(folder: Path, pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
    try:
        put(Shelf(folder), "one", cache=make_cache([9000, 8000], dim=16), number=2)
    except UncompError as error:
        pipe.send((error.message, error.hint))


def test_a_full_disk_is_told_and_leaves_what_was_there(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path)
    put(shelf, "one", number=1)
    context = fork_server()
    ours, theirs = context.Pipe()
    context.Process(target=_save_on_a_full_disk, args=(tmp_path, theirs), daemon=True).start()
    theirs.close()
    assert ours.poll(60)
    message, hint = ours.recv()
    assert message == f"cannot write to {tmp_path}: File too large"
    assert "uncomp cache remove" in hint
    assert shelf.load(shelf.find("one")).record.preset == "1"
    assert list(tmp_path.glob(f"{TEMPORARY_PREFIX}*")) == []
