"""What every exception comes to: a message, a hint and an exit code.

Also what the program could not foresee: memory that ran out inside torch, a mistyped option, a defect of our own.
SIGTERM and SIGHUP end an answer as Ctrl-C does, so that what was said stays, and then the program.
"""

import difflib
import re
import shlex
import signal
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

import typer

from uncomp_cli.cli.declare.settings import config_path
from uncomp_cli.cli.declare.tree import walk
from uncomp_cli.errors import Failure, failure_of
from uncomp_cli.ui.console import Terminal, strip_controls
from uncomp_cli.ui.interrupts import HELD

_SYNONYMS = {"rm": "remove", "delete": "remove", "ls": "list", "download": "pull", "run": "chat", "help": "--help"}
_ENDED_BY: list[int] = []
"""The signal that came; a process has one set of handlers, and so one of these."""


def end_on_signals() -> None:
    """From now on SIGTERM and SIGHUP interrupt, unless they were to be ignored; a second one ends at once.

    They and Ctrl-C wait for held steps.
    """

    def end(number: int, _: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        _ENDED_BY.append(number)
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) == signal.SIG_DFL:
            signal.signal(number, HELD.behind(end))
    if signal.getsignal(signal.SIGINT) == signal.default_int_handler:
        signal.signal(signal.SIGINT, HELD.behind(signal.default_int_handler))


def ended_by() -> int | None:
    """The signal that is to end the program, when one came."""
    return _ENDED_BY[0] if _ENDED_BY else None


def show_failure(error: BaseException, terminal: Terminal) -> int:
    """Write the two lines, and with --debug the traceback before them; returns the exit code."""
    if terminal.debug:
        terminal.stderr.write(strip_controls("".join(traceback.format_exception(error))))
    failure = describe_failure(error)
    terminal.error(failure.message, hint=failure.hint)
    return failure.exit_code


def describe_failure(error: BaseException) -> Failure:
    """Turn any exception that reached the top into what the user is told."""
    if isinstance(error, typer.TyperException):
        return _usage_failure(error)
    if isinstance(error, KeyboardInterrupt):
        number = ended_by()
        return Failure("interrupted", None, 130) if number is None else Failure("ended", None, 128 + number)
    if isinstance(error, typer.Abort):
        return Failure("input ended before the answer", "give the answer as an option", 1)
    return failure_of(error)


def _usage_failure(error: typer.TyperException) -> Failure:
    """Typer's own complaint: one line that names the value, and a hint with what was probably meant."""
    ctx: Any = getattr(error, "ctx", None)
    message = " ".join(error.format_message().split()).rstrip(".")
    message = re.split(r" \(Possible options: |\. Did you mean ", message)[0]
    message = re.sub(r" \(env var: '\w+'\)|(?<=: )Value error, |(?<=: )Input (?=should)", "", message)
    hint = _origin_hint(error, ctx) or _file_hint(ctx, message) or _close_hint(error, ctx, message) or _help_hint(ctx)
    message = _name_value(error, message)
    return Failure(message[:1].lower() + message[1:], hint, error.exit_code)


def _name_value(error: typer.TyperException, message: str) -> str:
    """Pydantic's messages leave the wrong value out: put it in."""
    details: list[Any] = getattr(error.__cause__, "errors", list)()
    value = repr(details[0]["input"]) if details else ""
    return message if value in message else message.replace("Invalid value for", f"Invalid value {value} for", 1)


def _origin_hint(error: typer.TyperException, ctx: Any) -> str | None:
    """Where a wrong value came from, when the user did not type it just now."""
    param: Any = getattr(error, "param", None)
    source = ctx.get_parameter_source(param.name) if ctx and param else None
    origins = {
        "ENVIRONMENT": lambda: f"the value comes from the environment variable {param.envvar}",
        "DEFAULT_MAP": lambda: f"the value comes from {config_path()}",
    }
    return origins[source.name]() if source and source.name in origins else None


def _file_hint(ctx: Any, message: str) -> str | None:
    """What was probably meant by `uncomp compare b.md "what?"`, or by a question without quotes."""
    extra = re.search(r"unexpected extra arguments?(?:\(s\))? \((.*)\)", message)
    first = ctx.params.get("question") if ctx and extra else None
    if not (extra and isinstance(first, str)):
        return None
    if Path(first).exists():
        return f'{ctx.command_path} -f {shlex.quote(first)} "{extra[1]}"'
    return f'write the question in quotes: "{first} {extra[1]}"'


def _command_hint(wrong: str, ctx: Any) -> str | None:
    """The groups that have a command of this name, or of what others call it so."""
    name = _SYNONYMS.get(wrong, wrong)
    root = ctx.find_root().command
    if name in ("chat", "--help"):
        return f"did you mean 'uncomp {name}'?"
    found = [" ".join(words) for words, _ in walk(root) if len(words) > 1 and words[-1] == name]
    found = [words for words in found if words.startswith(f"{ctx.info_name} ")] or found
    return f"did you mean {' or '.join(repr(f'uncomp {words}') for words in found)}?" if found else None


def _close_hint(error: typer.TyperException, ctx: Any, message: str) -> str | None:
    """What was probably meant by an unknown option, command or choice."""
    possibilities = list(getattr(error, "possibilities", None) or ())
    if not possibilities:
        wrong, *choices = re.findall(r"'([^']*)'", message.partition(": ")[2]) or [""]
        possibilities = difflib.get_close_matches(wrong, choices, n=1)
    if not possibilities and ctx and message.startswith("No such command"):
        wrong = message.partition("'")[2].rstrip("'")
        if elsewhere := _command_hint(wrong, ctx):
            return elsewhere
        possibilities = difflib.get_close_matches(wrong, list(ctx.command.commands), n=1)
    return f"did you mean '{possibilities[0]}'?" if possibilities else None


def _help_hint(ctx: Any) -> str:
    return f"`{ctx.command_path if ctx else 'uncomp'} --help` shows what is possible"
