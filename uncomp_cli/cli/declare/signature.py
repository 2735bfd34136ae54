"""What a command takes: a parameter whose type is a frozen dataclass stands for the options of its fields.

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
from collections.abc import Callable, Iterator, Mapping
from copy import copy
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter
from types import GenericAlias
from typing import Annotated, Any, get_args, get_origin, get_type_hints


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

    parameters: list[Parameter] = []
    for name, parameter in names.items():
        own = parameter.replace(annotation=hints[name], kind=Parameter.KEYWORD_ONLY)
        parameters += groups[name].values() if name in groups else [own]
    expanded = wraps(command)(run)
    vars(expanded)["__signature__"] = inspect.Signature(parameters)
    return expanded


def _bare(hint: Any) -> Any:
    """A type without what annotates it."""
    return getattr(hint, "__origin__", hint) if hasattr(hint, "__metadata__") else hint


def _options(group: str, hint: Any) -> Iterator[tuple[str, Parameter]]:
    """Field → Typer's parameter, for every field of a group that its command takes."""
    part = next((each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Only)), None)
    hints = get_type_hints(_bare(hint), include_extras=True)
    for item in fields(_bare(hint)):
        if part is None or item.name in part.names:
            shown = None if part is None else part.shown.get(item.name)
            yield item.name, _parameter(f"{group}_{item.name}", hints[item.name], item.default, shown)


def _parameter(name: str, hint: Any, default: Any, shown: str | None) -> Parameter:
    """A field as Typer reads it. The default of what may be given several times is told, and not given to Typer."""
    kind, option = get_args(hint)
    option = copy(option)
    if get_origin(kind) is tuple:
        shown = shown or (", ".join(map(str, default)) if option.show_default is True else None)
        kind, default = GenericAlias(list, get_args(kind)[:1]) | None, None
    elif option.parser is not None and default is not None:
        default = str(default)  # as it would be typed
    option.show_default = shown or option.show_default
    default = Parameter.empty if default is MISSING else default
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])


def _filled(kind: type, options: Mapping[str, Parameter], given: Mapping[str, Any]) -> Any:
    """The group with what was given; of an option that was not, Typer says None or nothing."""
    values = {name: given[parameter.name] for name, parameter in options.items()}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return kind(**{name: value for name, value in values.items() if value not in (None, ())})
