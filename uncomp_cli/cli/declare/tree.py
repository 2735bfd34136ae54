"""How commands are declared: Typer groups and commands with one plain look, and what a setting is called everywhere.

A setting is an option with an environment variable: `--max-new-tokens`, `UNCOMP_MAX_NEW_TOKENS` and the key
`max-new-tokens` in the configuration file are one thing. Help is plain text, grouped by panel: it needs no rich, so it
is fast, and it writes no escapes.

A parameter of a command whose type is a frozen dataclass stands for the options of its fields.

    @dataclass(frozen=True, slots=True)
    class OutputOptions:
        as_json: Annotated[bool, option("--json", help="Write one JSON object.")] = False
        quiet: Annotated[bool, option("--quiet", "-q", help="No progress.")] = False

    def show(ctx: typer.Context, *, output: OutputOptions) -> None: ...

Typer reads `show(*, ctx, output_as_json=False, output_quiet=False)`; the command gets the dataclass, filled. A field
`tuple[T, ...]` may be given several times; one that is not given at all has the dataclass's default. A command takes a
part of a group with `Annotated[OutputOptions, only("quiet")]`; the other fields are then what they are by default.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from types import GenericAlias
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup

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


@dataclass(frozen=True, slots=True)
class Only:
    """The fields of a group that a command takes, and what its help calls a default that is another there."""

    names: frozenset[str]
    shown: Mapping[str, str]


def only(*names: str, **shown: str) -> Only:
    """These fields of a group; `name="…"` is what the help calls the default of one of them."""
    return Only(frozenset(names), shown)


def expand(command: Callable[..., Any]) -> Callable[..., Any]:
    """`command` as Typer can read it: every group in its signature is replaced by its options."""
    hints = get_type_hints(command, include_extras=True)
    names = inspect.signature(command).parameters
    groups = {name: dict(_options(name, hints[name])) for name in names if is_dataclass(_bare(hints[name]))}

    def run(**given: Any) -> Any:
        return command(
            **{
                name: _filled(_bare(hints[name]), groups[name], given) if name in groups else given[name]
                for name in names
            }
        )

    parameters: list[inspect.Parameter] = []
    for name, parameter in names.items():
        own = parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        parameters += groups[name].values() if name in groups else [own]
    expanded = wraps(command)(run)
    vars(expanded)["__signature__"] = inspect.Signature(parameters)
    return expanded


def _bare(hint: Any) -> Any:
    """A type without what annotates it."""
    return getattr(hint, "__origin__", hint) if hasattr(hint, "__metadata__") else hint


def _options(group: str, hint: Any) -> Iterator[tuple[str, inspect.Parameter]]:
    """Field → Typer's parameter, for every field of a group that its command takes."""
    part = next((each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Only)), None)
    hints = get_type_hints(_bare(hint), include_extras=True)
    for item in fields(_bare(hint)):
        if part is None or item.name in part.names:
            shown = None if part is None else part.shown.get(item.name)
            yield item.name, _parameter(f"{group}_{item.name}", hints[item.name], item.default, shown)


def _parameter(name: str, hint: Any, default: Any, shown: str | None) -> inspect.Parameter:
    """A field as Typer reads it. The default of what may be given several times is told, and not given to Typer."""
    kind, option = get_args(hint)
    option = copy(option)
    if get_origin(kind) is tuple:
        shown = shown or (", ".join(map(str, default)) if option.show_default is True else None)
        kind, default = GenericAlias(list, get_args(kind)[:1]) | None, None
    elif option.parser is not None and default is not None:
        default = str(default)  # as it would be typed
    option.show_default = shown or option.show_default
    default = inspect.Parameter.empty if default is MISSING else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _filled(kind: type, options: Mapping[str, inspect.Parameter], given: Mapping[str, Any]) -> Any:
    """The group with what was given; of an option that was not, Typer says None or nothing."""
    values = {name: given[parameter.name] for name, parameter in options.items()}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return kind(**{name: value for name, value in values.items() if value not in (None, ())})
