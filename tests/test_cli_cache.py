"""`uncomp cache`: what it prints, for people and as JSON, what it removes and what it refuses."""

import json
import os
import time
from pathlib import Path

import pytest

from support.caches import make_cache, make_record, resave
from uncomp_cli.asking.request import cabinet_of, shelf_of
from uncomp_cli.cache.shelf import Entry, Shelf
from uncomp_cli.cli.app import run
from uncomp_cli.cli.declare.completion import cache_names
from uncomp_cli.errors import UsageError


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Shelf:
    """The user's shelf, with two caches: `new`, and `old`, which was not used for ten days."""
    monkeypatch.setenv("UNCOMP_CACHE_DIR", str(tmp_path))
    shelf = shelf_of()
    assert shelf.folder == tmp_path / "documents"
    put(shelf, "new", key="abcdef0123456789")
    old = put(shelf, "old", key="ffff0123456789")
    os.utime(old.path, (time.time() - 10 * 86400,) * 2)
    return shelf


def put(shelf: Shelf, name: str, *, key: str) -> Entry:
    return shelf.save(name, make_cache([60, 50]), tensors={}, record=make_record(key=key))[0]


def names(shelf: Shelf) -> list[str]:
    return [entry.name for entry in shelf.entries()]


def test_list(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "list"]) == 0
    header, new, old = capsys.readouterr().out.splitlines()
    assert header.split()[:4] == ["NAME", "HASH", "MODEL", "TOKENS"]
    size = shelf.find("new").file_bytes
    assert new.split()[:5] == ["new", "abcdef012345", "tiny", "1,234", "30%"]
    assert f"{size / 1024:.1f} KiB" in new
    assert f"{2 * size / 1000:.1f} %" in new  # of the 50,000 bytes of a full cache in 16 bits
    assert new.endswith("a.md, zoë.md")
    assert " s ago " in new
    assert " 10 d ago " in old


def test_list_as_json(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "list", "--json"]) == 0
    new, old = json.loads(capsys.readouterr().out)
    assert (new["name"], new["key"], old["name"]) == ("new", "abcdef0123456789".ljust(64, "0"), "old")
    assert new["file_bytes"] == shelf.find("new").path.stat().st_size


def test_an_empty_shelf_says_how_to_fill_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNCOMP_CACHE_DIR", str(tmp_path))
    assert run(["cache", "list"]) == 0
    assert "uncomp ask --cache NAME" in capsys.readouterr().err
    assert run(["cache", "verify"]) == 0
    assert not (tmp_path / "documents").exists()


def test_show_by_name_and_by_hash(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "show", "abcdef"]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert shown["name"] == "new"
    assert shown["compression.budget"] == "30%"
    assert shown["compression.kv_mem_bytes"] == "-"
    assert shown["documents.2.path"] == "zoë.md"
    assert shown["uncertainty.values"] == "2 rows"
    assert shown["kv_full"] == "97.7 KiB (100,000 B)"
    assert run(["cache", "show", "new", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["schema_version"], record["context_tokens"]) == (1, 1234)


def test_verify_tells_and_sets_aside(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["cache", "verify"]) == 0
    assert capsys.readouterr().out == "new: valid\nold: valid\n"
    path = shelf.find("old").path
    path.write_bytes(path.read_bytes()[:-1])
    assert run(["cache", "verify", "old", "--json"]) == 1
    captured = capsys.readouterr()
    (record,) = json.loads(captured.out)
    assert (record["name"], record["valid"]) == ("old", False)
    assert "bytes" in record["reason"]
    assert "error: 1 of 1 saved documents are damaged: old\nhint: " in captured.err
    assert names(shelf) == ["new"]
    assert run(["cache", "list"]) == 0
    assert "old.safetensors.corrupt was found damaged" in capsys.readouterr().err
    assert run(["cache", "remove", "--damaged"]) == 0
    assert shelf.corrupt() == []
    assert names(shelf) == ["new"]


@pytest.mark.parametrize(
    ("args", "left"),
    [
        (["new"], ["old"]),
        (["new", "ffff0", "old"], []),
        (["--older-than", "9d"], ["new"]),
        (["--older-than", "2w"], ["new", "old"]),
        (["--older-than", "1.5w"], ["new", "old"]),
        (["new", "--older-than", "1h"], ["new", "old"]),
        (["--all"], []),
        (["--all", "--older-than", "9d"], ["new"]),
    ],
)
def test_remove(shelf: Shelf, capsys: pytest.CaptureFixture[str], args: list[str], left: list[str]) -> None:
    before = sum(entry.file_bytes for entry in shelf.entries())
    assert run(["cache", "remove", *args]) == 0
    assert names(shelf) == left
    freed = before - sum(entry.file_bytes for entry in shelf.entries())
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("removed ")
    assert ("nothing (0 B)" in captured.err) == (freed == 0)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["remove"], "error: nothing was named to remove"),
        (["remove", "new", "--all"], "error: --all and 'new' are two choices"),
        (["remove", "new", "nwe"], "error: there is no saved cache 'nwe'"),
        (["remove", "--older-than", "7"], "error: older-than '7' is no age"),
        (["remove", "--older-than", "-7d"], "error: older-than '-7d' is no age"),
        (["show", "nwe"], "hint: did you mean 'new'?"),
        (["verify", "x/y"], "error: there is no saved cache 'x/y'"),
    ],
)
def test_refused(shelf: Shelf, capsys: pytest.CaptureFixture[str], args: list[str], message: str) -> None:
    assert run(["cache", *args]) == 2
    assert message in capsys.readouterr().err
    assert names(shelf) == ["new", "old"]


def test_names_are_completed(shelf: Shelf) -> None:
    assert cache_names("o") == ["old"]


@pytest.mark.parametrize("size", ["10%", "many", "5", "auto"])
def test_a_size_that_is_none_is_refused(size: str) -> None:
    with pytest.raises(UsageError, match="cache-size"):
        shelf_of(size)
    assert shelf_of("3KiB").limit_bytes == 3072


def test_what_cannot_be_read_is_told_and_what_is_damaged_set_aside(
    shelf: Shelf, capsys: pytest.CaptureFixture[str]
) -> None:
    resave(shelf.find("old").path, manifest={"schema_version": 3})
    path = shelf.find("new").path
    resave(path, manifest={"num_rows": "one"})
    assert run(["cache", "show", "new"]) == 1
    assert 'is damaged: num_rows is "one"; set aside as ' in capsys.readouterr().err
    assert run(["cache", "show", "old"]) == 2
    assert "schema version 3, this uncomp reads 2\nhint: update uncomp" in capsys.readouterr().err
    os.mkfifo(path)
    assert run(["cache", "list"]) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 1
    assert "new.safetensors.corrupt was found damaged" in err
    assert "old.safetensors: it has schema version 3" in err
    assert "new.safetensors is not a regular file" in err


def test_a_time_that_no_calendar_has_is_shown_all_the_same(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    for when in (-(2**40), 2**34):
        os.utime(shelf.find("new").path, (when, when))
        assert run(["cache", "show", "new"]) == 0
        assert run(["cache", "list"]) == 0
    assert "internal error" not in capsys.readouterr().err


def test_texts_of_documents_are_counted_and_removed(shelf: Shelf, capsys: pytest.CaptureFixture[str]) -> None:
    cabinet = cabinet_of()
    cabinet.keep(b"x" * 1000, "a text")
    assert run(["cache", "list"]) == 0
    said = "texts and tokens of documents: 1 file, 1.0 KiB; uncomp cache remove --texts deletes them"
    assert said in capsys.readouterr().err
    assert run(["cache", "remove", "--texts"]) == 0
    assert capsys.readouterr().err.startswith("removed texts and tokens of documents (1.0 KiB")
    assert cabinet.size() == (0, 0)
    assert shelf.entries()
