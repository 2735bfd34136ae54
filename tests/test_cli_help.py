"""Asking for help is quick and light, and writes no escapes."""

import subprocess
import sys
import time

import pytest
import typer

from uncomp_cli.cli.app import COMMANDS, app
from uncomp_cli.cli.declare.tree import settings_of, walk

LIGHT = """
import sys
from uncomp_cli.cli.app import run
code = run(sys.argv[1:])
heavy = {"torch", "transformers", "rich", "numpy"} & set(sys.modules)
sys.exit(f"imported {heavy}" if heavy else code)
"""
ROOT = typer.main.get_command(app)
EVERY_COMMAND = [list(words) for words, _ in walk(ROOT)]


@pytest.mark.parametrize("words", EVERY_COMMAND, ids=" ".join)
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT, *words, "--help"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Usage: uncomp")
    assert "\x1b" not in done.stdout


def test_help_takes_less_than_half_a_second() -> None:
    def once() -> float:
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "uncomp_cli", "--help"], capture_output=True, check=True)
        return time.perf_counter() - started

    assert min(once() for _ in range(5)) < 0.5


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
