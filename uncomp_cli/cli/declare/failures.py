"""What every exception comes to: a message, a hint and an exit code.

Also what the program could not foresee: memory that ran out inside torch, a mistyped option, a defect of our own.
"""

import difflib
import re
import traceback
from typing import Any

import typer

from uncomp_cli.cli.declare.settings import config_path
from uncomp_cli.errors import Failure, failure_of
from uncomp_cli.ui.console import Terminal, strip_controls


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
        return Failure("interrupted", None, 130)
    if isinstance(error, typer.Abort):
        return Failure("input ended before the answer", "give the answer as an option", 1)
    return failure_of(error)


def _usage_failure(error: typer.TyperException) -> Failure:
    """Typer's own complaint: one line that names the value, and a hint with what was probably meant."""
    ctx: Any = getattr(error, "ctx", None)
    message = " ".join(error.format_message().split()).rstrip(".")
    message = re.split(r" \(Possible options: |\. Did you mean ", message)[0]
    message = re.sub(r" \(env var: '\w+'\)|(?<=: )Value error, |(?<=: )Input (?=should)", "", message)
    hint = _origin_hint(error, ctx) or _close_hint(error, ctx, message) or _help_hint(ctx)
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


def _close_hint(error: typer.TyperException, ctx: Any, message: str) -> str | None:
    """What was probably meant by an unknown option, command or choice."""
    possibilities = list(getattr(error, "possibilities", None) or ())
    if not possibilities:
        wrong, *choices = re.findall(r"'([^']*)'", message.partition(": ")[2]) or [""]
        possibilities = difflib.get_close_matches(wrong, choices, n=1)
    if not possibilities and ctx and message.startswith("No such command"):
        wrong = message.partition("'")[2].rstrip("'")
        possibilities = difflib.get_close_matches(wrong, list(ctx.command.commands), n=1)
    return f"did you mean '{possibilities[0]}'?" if possibilities else None


def _help_hint(ctx: Any) -> str:
    return f"`{ctx.command_path if ctx else 'uncomp'} --help` shows what is possible"
