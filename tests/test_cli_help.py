"""Asking for help is quick and light, and writes no escapes."""

import json
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from uncomp_cli.cli.app import COMMANDS, app, run
from uncomp_cli.cli.declare.tree import settings_of, walk

WALK = """
import contextlib, io, json, sys
from uncomp_cli.cli.app import run
shown = []
for words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = run([*words, "--help"])
    own = {f"uncomp_cli.{name}" for name in ("asking.request", "budget.presets", "documents", "sessions")}
    heavy = sorted({"torch", "transformers", "rich", "numpy", "psutil", *own} & set(sys.modules))
    shown.append([words, code, heavy, out.getvalue()])
print(json.dumps(shown))
"""
ROOT = typer.main.get_command(app)


def test_help_imports_nothing_heavy() -> None:
    """One process walks all commands: what one of them imports stays for those behind it."""
    commands = json.dumps([list(words) for words, _ in walk(ROOT)])
    done = subprocess.run([sys.executable, "-c", WALK, commands], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert len(shown) > len(COMMANDS)
    for words, code, heavy, text in shown:
        assert (code, heavy) == (0, []), words
        assert text.startswith("Usage: uncomp"), words
        assert "\x1b" not in text, words


def test_help_takes_a_small_part_of_what_torch_would() -> None:
    """Seconds of the processor, side by side: a busy machine waits, a slow one is slow at both; in doubt once more."""

    def once(*arguments: str) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert any(once("-m", "uncomp_cli", "--help") < 0.4 * once("-c", "import torch") for _ in range(2))


def test_every_command_has_help_and_every_option_says_something() -> None:
    for words, command in walk(ROOT):
        assert command.help, words
        for param in command.params:
            assert param.help, (words, param.name)


def test_one_name_is_one_setting_everywhere() -> None:
    """A variable belongs to one key, and the key is the flag."""
    variables = {(param.envvar, key) for _, command in walk(ROOT) for key, param in settings_of(command).items()}
    assert len({variable for variable, _ in variables}) == len(variables)
    assert all(variable == "UNCOMP_" + key.replace("-", "_").upper() for variable, key in variables)


def test_shell_completion_knows_commands() -> None:
    environment = {"_UNCOMP_COMPLETE": "complete_bash", "COMP_WORDS": "uncomp mod", "COMP_CWORD": "1"}
    script = "from uncomp_cli.cli.app import main; main()"
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["model"], done.stderr


def test_commands_that_are_registered_are_those_that_are_listed() -> None:
    assert set(ROOT.commands) == set(COMMANDS)


def test_completion_is_installed_for_the_shell_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert run(["--install-completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith(f"zsh completion installed in {tmp_path}/.zfunc/_uncomp")
    assert (tmp_path / ".zshrc").exists()
    assert not (tmp_path / ".bashrc").exists()
    assert run(["--show-completion", "fish"]) == 0
    assert capsys.readouterr().out.startswith("complete --command uncomp")
    assert run(["--install-completion", "tcsh"]) == 2
    assert capsys.readouterr().err.startswith("error: there is no completion for the shell 'tcsh'\nhint: name one of")


def test_the_help_of_ask_is_sixteen_options_and_four_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ask", "--help"]) == 0
    short = capsys.readouterr().out
    flags = re.findall(r"^  (?:-\w, )?(--[\w-]+)", short, re.MULTILINE)
    assert len(set(flags) - {"--help", "--help-all"}) == 16
    assert {"--help", "--help-all", "--cache", "--why"} <= set(flags)
    assert len(re.findall(r"^  uncomp ask ", short, re.MULTILINE)) == 4
    assert max(map(len, short.splitlines())) <= 80
    assert len(short.splitlines()) < 75
    assert run(["ask", "--help-all"]) == 0
    whole = capsys.readouterr().out
    assert "Examples:" not in whole
    settings = {f"--{key}" for words, command in walk(ROOT) if words == ("ask",) for key in settings_of(command)}
    assert settings <= set(re.findall(r"--[\w-]+", whole))
    trust = whole.partition("Trust:")[2].partition("Generation:")[0]
    assert re.findall(r"^  (--[\w-]+)", trust, re.MULTILINE) == [
        "--pin", "--escalate", "--fail-under", "--evidence", "--why",
    ]  # fmt: skip
    for old in ("--force", "--save-cache", "--reuse", "--explain-budget"):
        assert old not in whole


def test_the_help_of_a_chat_is_short_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["chat", "--help"]) == 0
    short = capsys.readouterr().out
    assert "--min-p" not in short
    assert len(re.findall(r"^  uncomp chat", short, re.MULTILINE)) == 4
    assert run(["chat", "--help-all"]) == 0
    assert "--min-p" in capsys.readouterr().out
