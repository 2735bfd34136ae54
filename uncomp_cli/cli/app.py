"""The root command and the one place where errors become two lines and an exit code.

    error: what was wrong, and the value that was wrong
    hint: the command or flag that mends it

Importing this, and asking for help, imports neither torch nor transformers: commands import what they run inside
their functions. To add a command: a module in this package with a function of its name (or `app`, a group), and a
line in COMMANDS.
"""

import io
import logging
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Annotated, Any, NoReturn

import typer

from uncomp_cli import __version__
from uncomp_cli.cli.declare.failures import end_on_signals, ended_by, show_failure
from uncomp_cli.cli.declare.settings import load_default_map, split_variables
from uncomp_cli.cli.declare.tree import command_of, group, option
from uncomp_cli.errors import UsageError
from uncomp_cli.kernels.library import share_heap
from uncomp_cli.ui.console import Terminal, strip_controls

PROGRAM = "uncomp"
COMMANDS = {
    "ask": "ask",
    "chat": "chat",
    "eval": "judge.eval",
    "compare": "judge.compare",
    "calibrate": "calibrate",
    "rope": "judge.rope",
    "bench": "judge.bench",
    "batch": "batch",
    "serve": "serve",
    "model": "stock.model",
    "preset": "stock.preset",
    "cache": "stock.cache",
    "config": "stock.config",
    "doctor": "stock.doctor",
}
"""The module of this package in which each command is."""

_GLOBAL_FLAGS = ("--plain", "--no-color", "--debug")
# What must work although the configuration file is broken: it shows the way out.
_COMPLETION_FLAGS = ("--show-completion", "--install-completion")
_CONFIG_FREE_FLAGS = {"-h", "--help", "--help-all", "--version", *_COMPLETION_FLAGS}
_CONFIG_FREE_COMMANDS = (["config", "path"], ["doctor"])

_SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")

_EPILOG = """
Global options may stand anywhere. Options are also variables, UNCOMP_ and their name in capitals, and keys of the
configuration file: `uncomp config show` lists them. `man uncomp` tells the rest.
"""

app = group(PROGRAM, "Ask long documents questions with a local model, in the memory you have.", epilog=_EPILOG)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"{PROGRAM} {__version__}")
        raise typer.Exit


@app.callback()
def root(
    ctx: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    plain: Annotated[bool, option("--plain", help="No colours, nothing redrawn: progress as lines.")] = False,
    no_color: Annotated[bool, option("--no-color", help="No colours; NO_COLOR does the same.")] = False,
    debug: Annotated[bool, option("--debug", help="Show the traceback when something fails.")] = False,
) -> None:
    ctx.obj = Terminal.detect(plain=plain, no_color=no_color, debug=debug)


def register(name: str, module_name: str) -> None:
    """Add the command or group `name`, which a module of this package exports."""
    module = import_module(f"uncomp_cli.cli.{module_name}")
    if hasattr(module, "app"):
        app.add_typer(module.app, name=name)
    else:
        command_of(app, name, shown=getattr(module, "BRIEF", None))(getattr(module, name))


for _name, _module in COMMANDS.items():
    register(_name, _module)


def main() -> NoReturn:
    """Entry point of the `uncomp` command."""
    _open_streams()
    share_heap()
    unread = _Unread(os.dup(sys.stderr.fileno()), "w")
    sys.stderr = io.TextIOWrapper(io.BufferedWriter(unread), encoding=sys.stderr.encoding, line_buffering=True)
    for stream in (sys.stdout, sys.stderr):
        # A locale without some letter must not end an answer in the middle.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if not _wants_debug(sys.argv[1:]):
        # Libraries warn their developers, not our users; what users must know is said in our own words.
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
    end_on_signals()
    code, number = run(sys.argv[1:]), ended_by()
    sys.exit(code if number is None else 128 + number)


def run(args: Sequence[str]) -> int:
    """Run one command line; returns the exit code, never raises."""
    hoisted, rest = _split_global_flags(args)
    debug = _wants_debug(args)
    try:
        return _invoke(hoisted, rest)
    except BrokenPipeError:
        _drop_stdout()
        return 1
    except SystemExit as leaving:
        return _exit_code(leaving.code)
    except BaseException as error:  # an interrupt, and what libraries in Rust raise
        if isinstance(error, OSError) and not _is_written():
            _drop_stdout()
        return _report(error, debug=debug, plain="--plain" in hoisted, no_color="--no-color" in hoisted)


def _complete_for(flag: str, shell: str) -> int:
    """`--install-completion zsh`: Typer by itself takes no name, and would install for the shell that runs."""
    typers: Any = import_module("typer.completion")
    if shell not in _SHELLS:
        raise UsageError(f"there is no completion for the shell '{shell}'", hint=f"name one of {', '.join(_SHELLS)}")
    typers.completion_init()
    own = {"prog_name": PROGRAM, "complete_var": f"_{PROGRAM.upper()}_COMPLETE", "shell": shell}
    if flag == "--show-completion":
        typer.echo(typers.get_completion_script(**own))
    else:
        typer.echo("{} completion installed in {}; it takes effect in a new terminal".format(*typers.install(**own)))
    return 0


@cache
def _tree() -> Any:
    made = typer.main.get_command(app)
    split_variables(made)
    return made


def _invoke(hoisted: list[str], rest: list[str]) -> int:
    if len(rest) == 2 and rest[0] in _COMPLETION_FLAGS:
        return _complete_for(*rest)
    tree = _tree()
    defaults = {} if _needs_no_settings(rest) else load_default_map(tree)
    result: Any = tree.main([*hoisted, *rest], prog_name=PROGRAM, standalone_mode=False, default_map=defaults)
    sys.stdout.flush()
    return result if isinstance(result, int) else 0


def _report(error: BaseException, *, debug: bool, plain: bool, no_color: bool) -> int:
    terminal = Terminal.detect(plain=plain, no_color=no_color, debug=debug)
    if type(error).__name__ == "NoArgsIsHelpError":
        terminal.stderr.write(f"{error}\n")
        return UsageError.exit_code
    return show_failure(error, terminal)


def _exit_code(code: str | int | None) -> int:
    """What the interpreter would make of `sys.exit(code)`: a text is a message and means failure."""
    if isinstance(code, str):
        sys.stderr.write(f"{strip_controls(code)}\n")
    return code if isinstance(code, int) else int(code is not None)


def _split_global_flags(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Global flags may stand anywhere before `--`: take them to the front, where Typer looks for them."""
    end = args.index("--") if "--" in args else len(args)
    before, after = list(args[:end]), list(args[end:])
    hoisted = [arg for arg in before if arg in _GLOBAL_FLAGS]
    return hoisted, [arg for arg in before if arg not in _GLOBAL_FLAGS] + after


def _needs_no_settings(args: Sequence[str]) -> bool:
    asks_for_help = any(arg in _CONFIG_FREE_FLAGS for arg in args)
    return asks_for_help or any(list(args[: len(words)]) == words for words in _CONFIG_FREE_COMMANDS)


def _wants_debug(args: Sequence[str]) -> bool:
    off = ("", "0", "false", "no", "off")
    return "--debug" in _split_global_flags(args)[0] or os.environ.get("UNCOMP_DEBUG", "").lower() not in off


def _open_streams() -> None:
    """Streams that the caller closed (`>&-`) are None: nothing is read, an answer is an error, the rest is dropped."""
    for name, mode, flag in (  # in this order each gets its own descriptor
        ("stdin", "r", os.O_RDONLY),
        ("stdout", "w", os.O_RDONLY),  # an answer that nobody can read is not written
        ("stderr", "w", os.O_WRONLY),
    ):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, flag), mode, encoding="utf-8"))


class _Unread(io.FileIO):
    """Standard error, which goes nowhere once nobody reads it: that is no reason to lose an answer."""

    def write(self, data: Any, /) -> int:
        """As many bytes as there are, written or not."""
        with suppress(OSError):
            return super().write(data)
        return len(data)


def _is_written() -> bool:
    """Whether standard output takes what it still holds."""
    try:
        sys.stdout.flush()
    except OSError:
        return False
    return True


def _drop_stdout() -> None:
    """What it still holds cannot be written: let the interpreter's last flush go nowhere instead of complaining."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
