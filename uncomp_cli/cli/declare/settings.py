"""The configuration file: TOML, where a key is a flag without its dashes.

    model = "smollm2-135m"      # top level: every command that has the option
    [ask]                       # a table: this command only, before the top level
    budget = "10%"

It becomes Typer's `default_map`, so the precedence flag, environment, file, default is Typer's own. A key that no
command knows is an error that names it. An option that may be repeated takes a list, or one value; in its variable
several are separated as in PATH.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs

from uncomp_cli.cli.declare.tree import Command, settings_of, walk
from uncomp_cli.errors import UsageError, did_you_mean, require
from uncomp_cli.numerals import format_count
from uncomp_cli.schema import shortened

CONFIG_VARIABLE = "UNCOMP_CONFIG"
_MOST_BYTES, _MOST_PARTS = 2**18, 32
_PART, _DOT = r"""(?:[\w-]++|"[^"\n]*+"|'[^'\n]*+')""", r"[ \t]*+\.[ \t]*+"
_DEEP_KEY = re.compile(rf"(?<![\w-]){_PART}(?:{_DOT}{_PART}){{{_MOST_PARTS}}}")
"""Of a.b.c and so on; tomllib takes the square of the parts in time."""


def config_path() -> Path:
    """`$UNCOMP_CONFIG`, or `config.toml` in the user's configuration directory."""
    named = os.environ.get(CONFIG_VARIABLE)
    try:
        return Path(named).expanduser() if named else platformdirs.user_config_path("uncomp") / "config.toml"
    except RuntimeError as error:  # no such user
        raise UsageError(f"{CONFIG_VARIABLE} {named} cannot be found: {error}", hint="write the whole path") from error


def load_default_map(root: Command) -> dict[str, Any]:
    """The settings of the user's file for the tree below `root`; empty when there is no file and none was named."""
    path = config_path()
    if not path.exists() and CONFIG_VARIABLE not in os.environ:
        return {}
    return default_map(root, read_settings(path), source=path)


def split_variables(root: Command) -> None:
    """Let the variables of repeatable options hold values with spaces: only `os.pathsep` separates two."""
    for _, command in walk(root):
        for param in settings_of(command).values():
            if param.multiple:
                param.envvar_list_splitter = os.pathsep


def read_settings(path: Path) -> dict[str, Any]:
    """Parse a configuration file; raises UsageError with the line when it is not TOML."""
    what = f"configuration file {path}"
    require(not path.is_fifo(), f"{what} is a pipe", hint="write it to a file, and name that")
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
        require(len(data) <= _MOST_BYTES, f"{what} has more than {_MOST_BYTES:,} bytes", hint="name another file")
        text = data.decode("utf-8-sig")
        if deep := _DEEP_KEY.search(text):
            line, parts = text.count("\n", 0, deep.start()) + 1, format_count(_MOST_PARTS)
            raise UsageError(f"{what}: a key in line {line:,} has more than {parts} parts", hint="mend that line")
        return tomllib.loads(text)
    except OSError as error:
        raise UsageError(
            f"cannot read configuration file {path}: {error.strerror}", hint=f"unset {CONFIG_VARIABLE} or mend the path"
        ) from error
    except (ValueError, RecursionError) as error:  # of TOML, of UTF-8, of a number with too many digits
        raise UsageError(f"configuration file {path}: {error}", hint="mend that line, or delete the file") from error


def default_map(root: Command, settings: Mapping[str, Any], *, source: Path) -> dict[str, Any]:
    """Nested defaults for Typer: parameter names, and a mapping for each command below.

    Tables nest like commands: `[model.pull]` is for `uncomp model pull`. Raises UsageError for an unknown key.
    """
    return _defaults(root, settings, inherited={}, where=str(source))


def _defaults(
    command: Command, table: Mapping[str, Any], *, inherited: Mapping[str, Any], where: str
) -> dict[str, Any]:
    """Defaults of `command` from its own table over what its parents' tables say, and those of its subcommands."""
    children: Mapping[str, Command] = getattr(command, "commands", {})
    known = {key for _, below in walk(command) for key in settings_of(below)}
    shared, tables = dict(inherited), {}
    for key, value in table.items():
        if isinstance(value, dict) and key in children:
            tables[key] = value
        elif _canonical(key) in known:
            shared[_canonical(key)] = _as_typed(value, f"setting '{key}' in {where}")
        else:
            raise _unknown(key, {*known, *children}, where=where)
    params = settings_of(command)
    result: dict[str, Any] = {
        params[key].name: _as_list(value) if params[key].multiple else _one(value, f"setting '{key}' in {where}")
        for key, value in shared.items()
        if key in params
    }
    for name, child in children.items():
        result[name] = _defaults(child, tables.get(name, {}), inherited=shared, where=f"[{name}] of {where}")
    return result


def _as_typed(value: object, what: str) -> object:
    """A value as the user could have typed it: `budget = 512` is `--budget 512`, whatever type the option has."""
    if isinstance(value, list):
        return [_one(_as_typed(item, what), what) for item in value]
    require(
        isinstance(value, (str, int, float)),
        f"{what} is {shortened(str(value))}",
        hint="use text, a number, true or false",
    )
    return str(value).lower() if isinstance(value, bool) else str(value)


def _as_list(value: object) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _one(value: object, what: str) -> object:
    require(not isinstance(value, list), f"{what} is a list: {shortened(str(value))}", hint="use one value")
    return value


def _canonical(key: str) -> str:
    return key.replace("_", "-")


def _unknown(key: str, known: set[str], *, where: str) -> UsageError:
    hint = did_you_mean(_canonical(key), sorted(known), "`uncomp config show` lists every setting")
    return UsageError(f"unknown setting '{shortened(key)}' in {where}", hint=hint)
