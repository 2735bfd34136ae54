"""`uncomp config`: every setting, its value, and where the value comes from."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from uncomp_cli.cli.declare.options import Json, terminal_of
from uncomp_cli.cli.declare.settings import config_path
from uncomp_cli.cli.declare.tree import Command, Context, Parameter, command_of, group, settings_of, walk
from uncomp_cli.errors import UsageError
from uncomp_cli.table import Table

app = group("config", "Show settings and where they come from.")

_SOURCES = {"COMMANDLINE": "flag", "ENVIRONMENT": "env", "DEFAULT_MAP": "config", "DEFAULT": "default"}


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting of one command; `command` is empty for the global ones."""

    command: str
    key: str
    value: Any
    source: str
    variable: str


@command_of(app, "show")
def show(
    ctx: typer.Context,
    command: Annotated[
        list[str] | None, typer.Argument(help="Only this command's, such as ask or model pull.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """List every setting, its value and its source: flag, env, config or default."""
    terminal = terminal_of(ctx)
    words = command or []
    settings = [each for each in _all_settings(ctx.find_root()) if each.command.split()[: len(words)] == words]
    if not settings:
        raise UsageError(f"no settings for command '{' '.join(words)}'", hint="`uncomp --help` lists commands")
    if as_json:
        terminal.write_json([asdict(setting) for setting in settings])
        return
    rows = [(s.command or "(global)", s.key, _shown(s.value), s.source, s.variable) for s in settings]
    terminal.write_table(Table(("COMMAND", "KEY", "VALUE", "SOURCE", "VARIABLE"), rows))


@command_of(app, "path")
def path(ctx: typer.Context) -> None:
    """Print where the configuration file is, or would be."""
    terminal = terminal_of(ctx)
    place: Path = config_path()
    terminal.write_answer(f"{place}\n")
    if not place.exists():
        terminal.note("no such file yet: every setting has its default")


def _all_settings(root: Context) -> Iterator[Setting]:
    contexts: dict[tuple[str, ...], Context] = {(): root}
    for words, command in walk(root.command):
        if words:
            parent = contexts[words[:-1]]
            contexts[words] = type(root)(command, info_name=words[-1], parent=parent)
        yield from _settings_of(command, contexts[words], " ".join(words))


def _settings_of(command: Command, ctx: Context, words: str) -> Iterator[Setting]:
    for key, param in settings_of(command).items():
        value, source = _resolve(param, ctx)
        yield Setting(command=words, key=key, value=value, source=_SOURCES[source], variable=param.envvar)


def _resolve(param: Parameter, ctx: Context) -> tuple[Any, str]:
    """Value and source: of the running root command, or what another command would find with no flags."""
    if param.name in ctx.params:
        return ctx.params[param.name], ctx.get_parameter_source(param.name).name
    value, source = param.consume_value(ctx, {})
    return value, source.name


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "-" if value is None else str(value)
