"""Flag, then environment, then configuration file, then default; a key that nobody knows is an error."""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.pace import swift
from uncomp_cli.cli.app import run
from uncomp_cli.models import catalog
from uncomp_cli.steps import PullStep


@pytest.fixture(autouse=True)
def config_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "config.toml"
    path.write_text("")
    monkeypatch.setenv("UNCOMP_CONFIG", str(path))
    return path


@pytest.fixture
def pulled(monkeypatch: pytest.MonkeyPatch) -> list[Path | None]:
    """The tokenizer directories that `uncomp model pull` was called with."""
    seen: list[Path | None] = []

    def ensure_local(name: str, *, offline: bool, tokenizer_dir: Path | None) -> Iterator[PullStep]:
        seen.append(tokenizer_dir)
        yield PullStep("download", 1, 2)

    monkeypatch.setattr(catalog, "ensure_local", ensure_local)
    monkeypatch.setattr(catalog, "local_path", lambda name: Path("/models") / name)
    return seen


@pytest.mark.parametrize(
    ("flag", "variable", "file", "expected", "source"),
    [
        ("flag", "env", 'tokenizer = "file"', "flag", "flag"),
        (None, "env", 'tokenizer = "file"', "env", "env"),
        (None, None, 'tokenizer = "top"\n[model.pull]\ntokenizer = "table"', "table", "config"),
        (None, None, 'tokenizer = "top"\n[model]\ntokenizer = "group"', "group", "config"),
        (None, None, 'tokenizer = "top"', "top", "config"),
        (None, None, "", None, "default"),
    ],
)
def test_precedence(
    config_file: Path, pulled: list[Path | None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    flag: str | None, variable: str | None, file: str, expected: str | None, source: str,
) -> None:  # fmt: skip
    config_file.write_text(file)
    if variable:
        monkeypatch.setenv("UNCOMP_TOKENIZER", variable)
    assert run(["model", "pull", "x", *(["--tokenizer", flag] if flag else [])]) == 0
    assert pulled == [Path(expected) if expected else None]
    assert capsys.readouterr().out == "/models/x\n"
    if source != "flag":
        assert run(["config", "show", "--json"]) == 0
        shown = {(s["command"], s["key"]): s for s in json.loads(capsys.readouterr().out)}
        assert shown["model pull", "tokenizer"]["source"] == source
        assert shown["model pull", "tokenizer"]["value"] == expected


def test_global_options_have_sources_too(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config_file.write_text("no-color = true")
    assert run(["config", "show", "--plain", "--json"]) == 0
    shown = {s["key"]: (s["value"], s["source"]) for s in json.loads(capsys.readouterr().out) if not s["command"]}
    assert shown == {"plain": (True, "flag"), "no-color": (True, "config"), "debug": (False, "default")}


@pytest.mark.parametrize(
    ("file", "message", "hint"),
    [
        ("ofline = true", "unknown setting 'ofline'", "did you mean 'offline'?"),
        ("[model.list]\noffline = true", "unknown setting 'offline' in [list] of [model]", "`uncomp config show`"),
        ("[modle]\noffline = true", "unknown setting 'modle'", "did you mean 'model'?"),
        ("zzzzzz = 1", "unknown setting 'zzzzzz'", "`uncomp config show`"),
        ("a = 1\nb = = 2", "line 2", "mend that line"),
        ("a = " + "[" * 100_000, "recursion depth", "mend that line"),
        ("a = " + "9" * 5000, "4300 digits", "mend that line"),
        ("offline = 1979-05-27", "setting 'offline' in ", "use text, a number"),
        ("offline = {a = 1}", "setting 'offline' in ", "use text, a number"),
        ("offline = [true]", "setting 'offline' in ", "use one value"),
    ],
)
def test_a_wrong_file_is_refused(
    config_file: Path, capsys: pytest.CaptureFixture[str], file: str, message: str, hint: str
) -> None:
    config_file.write_text(file)
    assert run(["model", "list"]) == 2
    error, second = capsys.readouterr().err.splitlines()
    assert message in error
    assert str(config_file) in error
    assert second.startswith(f"hint: {hint}")


def test_a_wrong_value_names_the_file(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config_file.write_text('json = "perhaps"')
    assert run(["model", "list"]) == 2
    error, hint = capsys.readouterr().err.splitlines()
    assert error.startswith("error: invalid value 'perhaps' for '--json'")
    assert hint == f"hint: the value comes from {config_file}"


def test_the_way_out_stays_open(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config_file.write_text("= broken")
    assert run(["model", "list", "--help"]) == 0
    capsys.readouterr()
    assert run(["config", "path"]) == 0
    assert capsys.readouterr().out == f"{config_file}\n"


def test_a_file_may_begin_with_a_byte_order_mark(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config_file.write_bytes(b"\xef\xbb\xbfoffline = true")
    assert run(["model", "list"]) == 0


def test_a_named_file_must_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNCOMP_CONFIG", str(tmp_path / "absent.toml"))
    assert run(["model", "list"]) == 2


def test_a_named_file_must_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name, said in ((tmp_path / "pipe", "is a pipe"), ("~nobody-here/a.toml", "cannot be found")):
        monkeypatch.setenv("UNCOMP_CONFIG", str(name))
        assert run(["model", "list"]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (f"\nx = 1\n{'a.' * 50_000}a = 1", "line 3 has more than 32 parts"),
        (f"['a' . {'a.' * 50_000}a]", "line 1 has more than 32 parts"),
        ("a = {" + '"a" . ' * 5_000 + "a = 1}", "line 1 has more than 32 parts"),
        (f"#{' ' * 2**18}", "more than 262,144 bytes"),
        ("a" * 2**18, "Expected '='"),
        ('a"' * 2**17, "Expected '='"),
        ("a " * 2**17, "Expected '='"),
        (f'{"a" * 200_000} = "x"', "unknown setting 'aaaa"),
        (f"budget = [[{'1,' * 100_000}]]", "setting 'budget'"),
        (f"budget = [{'1,' * 100_000}]", "setting 'budget'"),
    ],
    ids=["key", "table", "inline", "bytes", "word", "quotes", "spaces", "name", "lists", "list"],
)
def test_a_file_that_no_person_wrote_is_refused_at_once(
    config_file: Path, text: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config_file.write_text(text)
    with swift(3):
        assert run(["model", "list"]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert len(told) < 2000


def test_a_text_with_dots_is_no_key(config_file: Path) -> None:
    config_file.write_text(f'[ask]\nsystem = "Wait {"." * 99} {"no. " * 20}"')
    assert run(["model", "list"]) == 0


def test_numbers_are_what_could_be_typed(
    config_file: Path, pulled: list[Path | None], capsys: pytest.CaptureFixture[str]
) -> None:
    config_file.write_text("tokenizer = 512")
    assert run(["model", "pull", "x"]) == 0
    assert pulled == [Path("512")]


def test_show_one_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "show", "model", "pull", "--json"]) == 0
    assert {s["command"] for s in json.loads(capsys.readouterr().out)} == {"model pull"}
    assert run(["config", "show", "nothing"]) == 2


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("UNCOMP_BUDGET", b"\x1b]0;x\x07", "budget"),
        ("UNCOMP_BUDGET", b"\xff\xfe", "budget"),
        ("UNCOMP_TEMPERATURE", b"1e9999", "temperature is inf"),
        ("UNCOMP_CONTEXT", b"9" * 30, "context"),
        ("UNCOMP_SEED", b"\xff", "seed"),
        ("UNCOMP_KV_MEM", b"1e400GiB", "kv-mem"),
        ("UNCOMP_ENCODING", b"\xff", "encoding"),
        ("UNCOMP_SYSTEM", b"\xff", "the system prompt is not UTF-8 text"),
        ("UNCOMP_CONFIG", b"/\xff\x1b]0;a", "cannot read configuration file"),
    ],
)
def test_a_hostile_variable_is_refused_in_two_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: bytes, said: str
) -> None:
    monkeypatch.setenv(name, os.fsdecode(value))
    assert run(["ask", "-f", __file__, "Where?", "--dry-run"]) == 2
    told = capsys.readouterr().err
    assert said in told
    assert [line.partition(":")[0] for line in told.splitlines()] == ["error", "hint"]
    assert not set(told) & set("\x1b\x07")


@pytest.mark.parametrize("name", ["UNCOMP_CACHE_DIR", "XDG_CACHE_HOME"])
def test_a_cache_directory_that_is_not_utf8_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    monkeypatch.delenv("UNCOMP_CACHE_DIR", raising=False)
    monkeypatch.setenv(name, os.fsdecode(bytes(tmp_path) + b"/c\xff"))
    assert run(["ask", "-f", __file__, "Where?", "--dry-run"]) == 2
    told = capsys.readouterr().err
    assert "is not UTF-8" in told
    assert "UNCOMP_CACHE_DIR" in told


def test_help_says_that_a_question_may_begin_with_a_number_sign(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ask", "--help-all"]) == 0
    assert "also one that begins with #" in " ".join(capsys.readouterr().out.split())
