"""Streams that are missing, variables that hold lists, values at the edge: what a review found."""

import io
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
import torch
import typer

from support.chats import hold, make_talk
from support.commands import environment, start
from uncomp_cli.asking import pipeline
from uncomp_cli.asking.request import PresetChoice
from uncomp_cli.bench import contenders as bench_worker
from uncomp_cli.bench import rounds
from uncomp_cli.budget import presets
from uncomp_cli.budget.presets import list_presets, load_preset
from uncomp_cli.cli.app import app, run
from uncomp_cli.cli.chat.talk import Talk
from uncomp_cli.cli.declare.completion import preset_names
from uncomp_cli.cli.declare.options import ReadingOptions
from uncomp_cli.cli.declare.settings import split_variables
from uncomp_cli.cli.declare.tree import key_name, walk
from uncomp_cli.cli.judge.trial import texts_of
from uncomp_cli.config import SamplingConfig
from uncomp_cli.documents.collection import has_data
from uncomp_cli.engine.write.sampler import Sampler, fetch
from uncomp_cli.errors import ModelError, OutOfMemoryError, UncompError, UsageError, is_out_of_memory
from uncomp_cli.models import catalog
from uncomp_cli.models.loading import load_model
from uncomp_cli.steps import finished
from uncomp_cli.ui.console import Terminal

ROOT = Path(__file__).parent.parent
SEPARATOR = os.pathsep


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty directory, and no settings of the user's."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UNCOMP_CONFIG", str(tmp_path / "config.toml"))
    Path("config.toml").write_text("")
    Path("notes.txt").write_text("The harbour was quiet and the lamps were lit. " * 8)


# A chat goes on


@pytest.fixture
def talk(tiny_model: Path) -> Talk:
    talk = make_talk(load_model(str(tiny_model)))
    talk.chat.session.sampling = SamplingConfig(max_new_tokens=8)
    return talk


@pytest.mark.parametrize(
    ("error", "says", "hint"),
    [
        (RuntimeError("shapes differ"), "internal error: RuntimeError: shapes differ", "--debug"),
        (torch.OutOfMemoryError("CUDA out of memory"), "memory ran out", "/clear"),
        (MemoryError(), "memory ran out", "/clear"),
    ],
)
def test_a_turn_that_fails_does_not_end_the_chat(
    talk: Talk, monkeypatch: pytest.MonkeyPatch, error: Exception, says: str, hint: str
) -> None:
    forward, calls = talk.chat.session.decoder.forward, []

    def fails_once(*args: object) -> torch.Tensor:
        calls.append(1)
        if len(calls) == 4:
            raise error
        return forward(*args)

    monkeypatch.setattr(talk.chat.session.decoder, "forward", fails_once)
    said = hold(talk, "hello", "hello again")
    assert said[0].startswith(f"error: {says}")
    assert said[1].startswith("hint: ")
    assert hint in said[1]
    assert len(talk.chat.dialogue.entries) == 2
    assert said[-1].startswith(("cached", "prefill"))
    assert re.fullmatch(r"[a-z]{3}\n[a-z]{8}\n", talk.terminal.stdout.getvalue())


def test_a_turn_that_fails_shows_its_traceback_with_debug(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> NoReturn:
        raise RuntimeError("shapes differ")

    monkeypatch.setattr(talk.chat.session.decoder, "forward", fail)
    object.__setattr__(talk.terminal, "debug", True)
    assert "Traceback (most recent call last):" in hold(talk, "hello")


def test_nobody_who_reads_ends_the_chat(talk: Talk, monkeypatch: pytest.MonkeyPatch) -> None:
    def closed(*_: object) -> NoReturn:
        raise BrokenPipeError

    monkeypatch.setattr(Terminal, "write_answer", closed)
    with pytest.raises(BrokenPipeError):
        hold(talk, "hello", "hello again")


def test_back_to_the_models_own_system_prompt(talk: Talk) -> None:
    said = hold(talk, "/system Be brief.", "/system default", "/system")
    assert talk.chat.dialogue.system is None
    assert said[1].startswith("back to the model's own system prompt")
    assert said[2] == "the model's own system prompt is used"
    assert any("default" in line for line in hold(talk, "/help") if line.startswith("/system"))


def test_a_template_that_refuses_the_system_prompt(talk: Talk) -> None:
    tokenizer = talk.chat.loaded.tokenizer
    refuse = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    tokenizer.chat_template = refuse + tokenizer.chat_template
    said = hold(talk, "/system Be brief.", "hello", "/system default", "hello")
    assert said[1] == "error: this model's chat template refuses these messages: no system role"
    assert "/system default" in said[2]
    assert len(talk.chat.dialogue.entries) == 2


# Variables and keys of options that may be repeated


def resolved(command: str, key: str, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    assert run(["config", "show", command, "--json"]) == 0
    shown = {setting["key"]: setting for setting in json.loads(capsys.readouterr().out)}
    return shown[key]["value"], shown[key]["source"]


def test_a_variable_with_several_values(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("UNCOMP_TASK", f"needle{SEPARATOR}ruler/a b")
    assert resolved("eval", "task", capsys) == (["needle", "ruler/a b"], "env")


def test_what_is_done_once_has_no_variable_and_no_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["config", "show", "--json"]) == 0
    keys = {setting["key"] for setting in json.loads(capsys.readouterr().out)}
    once = "dry-run file include question questions each pin save-cache reuse session explain-budget out markdown plot"
    assert keys & {*once.split(), "fresh", "all", "damaged", "older-than", "name", "measure"} == set()
    assert {"budget", "model", "evidence", "json", "truncate"} <= keys


def test_the_budget_of_bench_from_everywhere(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("config.toml").write_text("budget = 512")
    assert resolved("bench", "budget", capsys) == (["512"], "config")
    assert resolved("ask", "budget", capsys) == ("512", "config")
    Path("config.toml").write_text('budget = "5%"\n[bench]\nbudget = ["10%", 64]')
    assert resolved("bench", "budget", capsys) == (["10%", "64"], "config")
    monkeypatch.setenv("UNCOMP_BUDGET", "64 MiB")
    assert resolved("bench", "budget", capsys) == (["64 MiB"], "env")
    seen: list[object] = []

    def stored(choice: PresetChoice) -> NoReturn:
        seen.append(choice.budget)
        raise UncompError("enough")

    monkeypatch.setattr(PresetChoice, "stored", stored)
    assert run(["bench", "-q", "-m", "no-such-model"]) == 1
    assert [str(budget) for budget in seen] == ["64 MiB"]


def test_every_repeatable_setting_is_split_alike() -> None:
    command = typer.main.get_command(app)
    split_variables(command)
    params = [param for _, each in walk(command) for param in each.params]
    several = [param for param in params if getattr(param, "multiple", False) and param.envvar]
    assert {"budget", "task", "tokens"} <= {key_name(param.opts) for param in several}
    assert {param.envvar_list_splitter for param in several} == {SEPARATOR}


# Streams


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&-", ">&- 2>&- <&-"])
def test_closed_streams(closed: str) -> None:
    """What is asked for has to go somewhere; all else need not."""
    line = f"{sys.executable} -m uncomp_cli preset list {closed}"
    done = subprocess.run(
        ["sh", "-c", line], capture_output=True, text=True, check=False, env=environment(PYTHONPATH=str(ROOT))
    )
    unread = ">&-" in closed.split()
    assert (done.returncode, done.stdout[:4]) == ((1, "") if unread else (0, "NAME"))
    assert ("standard output" in done.stderr) == (closed == ">&-")


def test_bench_without_standard_input(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    terminal = Terminal.detect()
    assert [each.path for each in texts_of(["notes.txt"], ReadingOptions(), terminal)] == ["notes.txt"]
    assert run(["bench", "-f", "-"]) == 2
    assert "standard input" in capsys.readouterr().err


def warning_of(stdin: bytes, *args: str) -> bool:
    _, _, err = start(
        "ask", "-f", "absent-model-only.txt", "-m", "no-such-model", *args, "Where?", stdin=stdin
    ).finish()
    return "warning: standard input is not read; add -f - to make it a document\n" in err


def test_a_pipe_that_is_not_read_is_told() -> None:
    assert warning_of(b"some text")
    assert warning_of(b"some text", "-q")
    assert not warning_of(b"some text", "-f", "-")
    assert not warning_of(b"")


def test_what_waits_on_standard_input(tmp_path: Path) -> None:
    assert not has_data(None)
    assert not has_data(io.StringIO("text"))
    path = tmp_path / "x"
    path.write_text("text")
    with path.open() as file:
        assert has_data(file)
        os.lseek(file.fileno(), 0, os.SEEK_END)
        assert not has_data(file)
    with Path(os.devnull).open() as file:
        assert not has_data(file)
    reader, writer = os.pipe()
    with os.fdopen(reader) as file:
        assert not has_data(file)
        os.write(writer, b"x")
        assert has_data(file)
        os.close(writer)


def test_without_a_file_nothing_is_said_of_standard_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pipeline, "has_data", lambda stdin: True)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"text")))
    run(["ask", "Where?", "-m", "no-such-model"])
    assert "not read" not in capsys.readouterr().err


# Failures


@pytest.mark.parametrize(("code", "expected"), [("it broke", 1), (None, 0), (3, 3), (0, 0)])
def test_leaving_from_inside(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: str | int | None, expected: int
) -> None:
    def leave() -> NoReturn:
        sys.exit(code)

    monkeypatch.setattr(catalog, "list_models", leave)
    assert run(["model", "list"]) == expected
    assert capsys.readouterr().err == ("it broke\n" if code == "it broke" else "")


def test_what_running_out_of_memory_looks_like() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(OutOfMemoryError("x"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not is_out_of_memory(ValueError("out of memory"))
    assert not is_out_of_memory(RuntimeError("shape"))


def test_a_failed_run_shows_its_traceback_with_debug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a run writes is written here, and again by the child, which then imports nothing heavy."""
    monkeypatch.setattr(sys, "stdin", io.StringIO('{"no": "job"}'))
    with monkeypatch.context() as patch:
        patch.setattr(logging, "disable", lambda level: None)
        bench_worker.main()
    child = "import sys; sys.stdout.write(sys.argv[1]); sys.stderr.write(sys.argv[2])"
    monkeypatch.setattr(rounds, "_COMMAND", (sys.executable, "-c", child, *capsys.readouterr()))
    job = type("Job", (), {"to_json": lambda self: ""})()
    monkeypatch.setattr(catalog, "list_models", lambda *_: finished(rounds.measure_in_child(job)))
    assert run(["model", "list", "--debug"]) == 1
    shown = capsys.readouterr().err
    assert "\nerror: a run failed: KeyError" in shown
    assert "--debug" in shown.splitlines()[-1]
    assert "In the process of the run:\nTraceback (most recent call last):" in shown
    assert "in from_json" in shown


def test_the_worker_names_memory() -> None:
    assert isinstance(bench_worker._as_known(torch.OutOfMemoryError("x")), OutOfMemoryError)


# Presets


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's preset directory, with a good preset and two broken ones."""
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.setattr(presets, "user_preset_dir", lambda: folder)
    record = {**load_preset("live").to_dict(), "name": "good"}
    (folder / "good.json").write_text(json.dumps(record))
    (folder / "bad.json").write_text("{")
    (folder / "other.json").write_text(json.dumps(record))
    return folder


def test_broken_presets_are_left_out_and_named(own: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "good" in {preset.name for preset in list_presets()}
    assert preset_names("go") == ["good"]
    for args in ([], ["--json"]):
        assert run(["preset", "list", *args]) == 0
        out, err = capsys.readouterr()
        assert "good" in out
        assert "tiny" in out
        warnings = err.splitlines()
        assert len(warnings) == 2
        assert warnings[0].startswith(f"warning: left out: preset file {own / 'bad.json'}: it is not JSON")
        assert str(own / "other.json") in warnings[1]


def test_a_preset_is_named_as_its_file(own: Path) -> None:
    for name in ("other", str(own / "other.json")):
        with pytest.raises(UsageError, match=r"other\.json: it is named 'other', the preset in it 'good'") as caught:
            load_preset(name)
        assert "good.json" in str(caught.value.hint)


# Values


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"seed": 2**64}, "seed is 18446744073709551616"),
        ({"seed": -(2**63) - 1}, "seed is -9223372036854775809"),
        ({"temperature": 1e-40}, "temperature is 1e-40"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"repetition_penalty": 1e-40}, "repetition-penalty is 1e-40"),
        ({"repetition_penalty": float("inf")}, "repetition-penalty is inf"),
    ],
)
def test_numbers_that_cannot_be_computed_with(settings: dict[str, float], says: str) -> None:
    with pytest.raises(UsageError, match=f"^{says}$") as caught:
        SamplingConfig(**settings)
    assert caught.value.hint


@pytest.mark.parametrize(
    "settings", [{"seed": 2**64 - 1}, {"seed": -(2**63)}, {"temperature": 1e-4}, {"repetition_penalty": 1000.0}]
)
def test_numbers_at_the_edge(settings: dict[str, float]) -> None:
    sampler = Sampler(SamplingConfig(**{"temperature": 1.0, **settings}))
    (scores,) = fetch(torch.tensor([[300.0, -300.0, 0.0]]), [sampler])
    assert sampler.choose(scores, torch.tensor([0])) in range(3)


def test_a_seed_of_18_digits_for_the_random_scorer() -> None:
    from uncomp_cli.cache.scorers import make_scorer
    from uncomp_cli.cache.view import LayerView
    from uncomp_cli.config import ScorerConfig

    view = LayerView(3, torch.zeros(4, 5, 4), torch.zeros(2, 5, 4), torch.zeros(2, 5, 4), (), 1.0)
    assert make_scorer(ScorerConfig("random", seed=10**18)).score(view).shape == (2, 5)


def test_flags_beyond_the_edge_are_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    for flag, value in (("--seed", str(2**70)), ("--temperature", "1e-40")):
        assert run(["ask", "-f", "notes.txt", "-m", "no-such-model", flag, value, "Where?"]) == 2
        assert capsys.readouterr().err.startswith(f"error: {flag[2:]} is ")


def test_the_system_prompts_error_reaches_the_user(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import shutil

    shutil.copytree(tiny_model, "deaf")
    template = "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}"
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        path = Path("deaf") / name
        if name.endswith("jinja") and path.exists():
            path.write_text(template)
    args = ["ask", "-f", "notes.txt", "-m", "deaf", "--dry-run", "Where?"]
    assert run([*args, "-s", "Be brief."]) == ModelError.exit_code
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "error: this model's chat template leaves out the system prompt", "hint: leave --system out",
    ]  # fmt: skip
    assert run(args) == 0
