"""How commands are declared: Typer groups and commands with one plain look, and what a setting is called everywhere.

A setting is an option with an environment variable: `--max-new-tokens`, `UNCOMP_MAX_NEW_TOKENS` and the key
`max-new-tokens` in the configuration file are one thing. Help is plain text, grouped by panel: it needs no rich, so it
is fast, and it writes no escapes.
"""

from collections.abc import Iterator
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

__all__ = ["PlainCommand", "PlainGroup", "env_name", "group", "key_name", "option", "settings_of", "walk"]

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


def option(*flags: str, help: str, panel: str | None = None, **settings: Any) -> Any:
    """A `typer.Option` that is a setting: its environment variable is made from its first long flag."""
    return typer.Option(*flags, help=help, rich_help_panel=panel, envvar=env_name(flags), show_envvar=False, **settings)


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
