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
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from copy import copy
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import partial, wraps
from types import GenericAlias
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand, TyperGroup
from typer.models import OptionInfo

from uncomp_cli.numerals import parse_count

ENV_PREFIX = "UNCOMP_"
_ALL = "uncomp.help_all"

# Typer keeps its context, parameter and formatter classes private: they are Any here.
Context = Any
Parameter = Any
Command = Any


@dataclass(frozen=True, slots=True)
class Brief:
    """What --help shows of a command that has many options: some of them, and examples; --help-all shows them all."""

    options: frozenset[str]
    examples: tuple[tuple[str, str], ...]


def brief(options: str, *examples: tuple[str, str]) -> Brief:
    """These options, by their keys, and examples: a command line and what it does."""
    return Brief(frozenset(options.split()), examples)


class PlainCommand(TyperCommand):
    """A command whose help lists its options by panel, all of them or what is `brief`."""

    brief: Brief | None = None

    def format_options(self, ctx: Context, formatter: Any) -> None:
        params, shown = self.get_params(ctx), self.brief
        if shown is None or ctx.meta.get(_ALL):
            _write_panels(params, ctx, formatter)
            return
        told = {*shown.options, "help", "help-all"}
        _write_panels([each for each in params if not _is_option(each) or key_name(each.opts) in told], ctx, formatter)
        with formatter.section("Examples"):
            formatter.write_dl(shown.examples)


def _show_all(ctx: typer.Context, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        ctx.meta[_ALL] = True
        typer.echo(ctx.get_help())
        raise typer.Exit


class PlainGroup(TyperGroup):
    """A group of commands, same look."""

    def format_options(self, ctx: Context, formatter: Any) -> None:
        self.format_commands(ctx, formatter)
        _write_panels(self.get_params(ctx), ctx, formatter)


_HELP_ALL = inspect.Parameter(
    "help_all",
    inspect.Parameter.KEYWORD_ONLY,
    default=False,
    annotation=Annotated[
        bool,
        typer.Option(
            "--help-all", is_eager=True, expose_value=False, callback=_show_all, help="Show all options and exit."
        ),
    ],
)


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


def command_of(
    app: typer.Typer, name: str, *, shown: Brief | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a function the command `name` of a Typer application, with what its groups of options hold."""

    def add(function: Callable[..., None]) -> Callable[..., None]:
        more = () if shown is None else (_HELP_ALL,)
        app.command(name, cls=type("Plain", (PlainCommand,), {"brief": shown}))(expand(function, *more))
        return function

    return add


def option(*flags: str, help: str, panel: str | None = None, setting: bool = True, **more: Any) -> Any:
    """A `typer.Option`; when it is a setting, its environment variable is made from its first long flag."""
    variable = env_name(flags) if setting else None
    return typer.Option(*flags, help=help, rich_help_panel=panel, envvar=variable, show_envvar=not setting, **more)


def argument(help: str, metavar: str, completes: Callable[[str], list[str]] | None = None) -> Any:
    """A `typer.Argument`, whose default is not told."""
    return typer.Argument(help=help, metavar=metavar, show_default=False, autocompletion=completes)


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
    options = [param for param in ctx.command.params if _is_option(param)]
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
    return _is_option(param) and isinstance(envvar, str) and envvar.startswith(ENV_PREFIX)


def _is_option(param: Parameter) -> bool:
    return bool(param.param_type_name == "option")


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
    """The fields of a group that a command takes, those of them that have to be `typed` and are no settings there.

    `shown` is what its help calls a default that is another there.
    """

    names: frozenset[str]
    shown: Mapping[str, str]
    typed: frozenset[str]


def only(*names: str, typed: Collection[str] = (), **shown: str) -> Only:
    """These fields of a group, and those that have to be `typed`; `name="…"` is what the help calls a default."""
    return Only(frozenset((*names, *typed)), shown, frozenset(typed))


def expand(command: Callable[..., Any], *more: inspect.Parameter) -> Callable[..., Any]:
    """`command` as Typer can read it: every group in its signature is replaced by its options, and `more` comes behind.

    What is more is not told to the command.
    """
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
        own = parameter.replace(annotation=_with_counts(hints[name]), kind=inspect.Parameter.KEYWORD_ONLY)
        parameters += groups[name].values() if name in groups else [own]
    expanded = wraps(command)(run)
    vars(expanded)["__signature__"] = inspect.Signature([*parameters, *more])
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
            parameter = _parameter(f"{group}_{item.name}", hints[item.name], item.default, shown)
            if part is not None and item.name in part.typed:
                _, option = get_args(parameter.annotation)
                option.envvar, option.show_envvar = None, True
            yield item.name, parameter


def _parameter(name: str, hint: Any, default: Any, shown: str | None) -> inspect.Parameter:
    """A field as Typer reads it. The default of what may be given several times is told, and not given to Typer."""
    kind, option = get_args(_with_counts(hint))
    option = copy(option)
    if get_origin(kind) is tuple:
        shown = shown or (", ".join(map(str, default)) if option.show_default is True else None)
        kind, default = GenericAlias(list, get_args(kind)[:1]) | None, None
    elif option.parser is not None and default is not None:
        default = str(default)  # as it would be typed
    option.show_default = shown or option.show_default
    default = inspect.Parameter.empty if default is MISSING else default
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _with_counts(hint: Any) -> Any:
    """A whole number may be written `2k`."""
    kind, *notes = get_args(hint) if hasattr(hint, "__metadata__") else (hint,)
    counted = kind in (int, int | None, tuple[int, ...], list[int] | None)
    if not (counted and notes and isinstance(notes[0], OptionInfo) and notes[0].parser is None):
        return hint
    option = copy(notes[0])
    option.parser = partial(_count, least=option.min, most=option.max)
    option.min = option.max = None
    return Annotated[kind, option]


def _count(given: str | int, *, least: float | None, most: float | None) -> int:
    """A whole number as it was typed. Raises typer.BadParameter for none, and for one that is out of range."""
    plain = isinstance(given, int) or re.fullmatch(r"-?[0-9]{1,100}", given.strip())
    count = int(given) if plain else parse_count(str(given))
    if count is None:
        raise typer.BadParameter(f"'{given}' is not a valid integer.")
    if (least is not None and count < least) or (most is not None and count > most):
        ends = ("" if least is None else f"{least:g}<=") + "x" + ("" if most is None else f"<={most:g}")
        shown = f"x>={least:g}" if most is None else ends
        raise typer.BadParameter(f"{count} is not in the range {shown}.")
    return count


def _filled(kind: type, options: Mapping[str, inspect.Parameter], given: Mapping[str, Any]) -> Any:
    """The group with what was given; of an option that was not, Typer says None or nothing."""
    values = {name: given[parameter.name] for name, parameter in options.items()}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return kind(**{name: value for name, value in values.items() if value not in (None, ())})
