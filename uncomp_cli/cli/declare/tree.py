"""How commands are declared: Typer groups and commands with one plain look, and what a setting is called everywhere.

A setting is an option with an environment variable: `--max-new-tokens`, `UNCOMP_MAX_NEW_TOKENS` and the key
`max-new-tokens` in the configuration file are one thing. Help is plain text, grouped by panel: it needs no rich, so it
is fast, and it writes no escapes.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from uncomp_cli.cli.declare.signature import expand

ENV_PREFIX = "UNCOMP_"

# Typer keeps its context, parameter and formatter classes private: they are Any here.
Context = Any
Parameter = Any
Command = Any


class PlainCommand(TyperCommand):
    """A command whose help lists its options by panel."""

    def format_options(self, ctx: Context, formatter: Any) -> None:
        _write_panels(self.get_params(ctx), ctx, formatter)


class PlainGroup(TyperGroup):
    """A group of commands, same look."""

    def format_options(self, ctx: Context, formatter: Any) -> None:
        self.format_commands(ctx, formatter)
        _write_panels(self.get_params(ctx), ctx, formatter)


def group(name: str, help_text: str, **settings: Any) -> typer.Typer:
    """A Typer application in the house's look: the root, or a group such as `uncomp model`."""
    return typer.Typer(
        name=name,
        help=help_text,
        cls=PlainGroup,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        **settings,
    )


def command_of(app: typer.Typer, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function the command `name` of a Typer application, with what its groups of options hold."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        app.command(name, cls=PlainCommand)(expand(function))
        return function

    return add


def option(*flags: str, help: str, panel: str | None = None, setting: bool = True, **more: Any) -> Any:
    """A `typer.Option`; when it is a setting, its environment variable is made from its first long flag."""
    variable = env_name(flags) if setting else None
    return typer.Option(*flags, help=help, rich_help_panel=panel, envvar=variable, show_envvar=not setting, **more)


def env_name(flags: tuple[str, ...] | list[str]) -> str:
    """`('-m', '--model')` → `UNCOMP_MODEL`."""
    return ENV_PREFIX + key_name(flags).replace("-", "_").upper()


def key_name(flags: tuple[str, ...] | list[str]) -> str:
    """The key of a setting in the configuration file: its first long flag, without dashes in front."""
    long_flag = next(flag for flag in flags if flag.startswith("--"))
    return long_flag.partition("/")[0].removeprefix("--")


def settings_of(command: Command) -> dict[str, Parameter]:
    """The settings of one command: key → parameter."""
    return {key_name(param.opts): param for param in command.params if _is_setting(param)}


def sources_of(ctx: Context) -> dict[str, str]:
    """Where the value of every option of the running command comes from: COMMANDLINE, ENVIRONMENT and so on."""
    options = [param for param in ctx.command.params if param.param_type_name == "option"]
    return {key_name(param.opts): str(ctx.get_parameter_source(param.name).name) for param in options}


def typed(ctx: Context, keys: Iterable[str]) -> list[str]:
    """Those of the flags that stand on the command line."""
    sources = sources_of(ctx)
    return [f"--{key}" for key in keys if sources[key] == "COMMANDLINE"]


def walk(command: Command, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Command]]:
    """Every command below `command` and itself, parents first, with the words that name it."""
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from walk(child, (*path, name))


def _is_setting(param: Parameter) -> bool:
    envvar = getattr(param, "envvar", None)
    return param.param_type_name == "option" and isinstance(envvar, str) and envvar.startswith(ENV_PREFIX)


def _write_panels(params: list[Parameter], ctx: Context, formatter: Any) -> None:
    panels: dict[str, list[tuple[str, str]]] = {}
    for param in params:
        record = param.get_help_record(ctx)
        if record is not None:
            title = "Arguments" if param.param_type_name == "argument" else param.rich_help_panel or "Options"
            panels.setdefault(title, []).append(record)
    for title, records in panels.items():
        with formatter.section(title):
            formatter.write_dl(records)
