"""`uncomp preset`: what a preset sets, shipped and own."""

from collections.abc import Iterator
from typing import Annotated, Any

import typer

from uncomp_cli.cli.options import Json, preset_names, terminal_of
from uncomp_cli.cli.tree import PlainCommand, group

__all__ = ["app"]

app = group("preset", "List, show, check and remove presets.")

OwnName = Annotated[
    str,
    typer.Argument(
        help="Name of one of your own presets.", metavar="NAME", show_default=False, autocompletion=preset_names
    ),
]


@app.command("list", cls=PlainCommand)
def list_all(ctx: typer.Context, as_json: Json = False) -> None:
    """List presets: the shipped ones and your own."""
    from uncomp_cli.budget.presets import read_presets

    terminal, (presets, broken) = terminal_of(ctx), read_presets()
    for error in broken:
        terminal.warn(f"left out: {error.message}; uncomp preset validate tells more")
    if as_json:
        terminal.write_json([preset.to_dict() for preset in presets])
        return
    rows = [(p.name, p.policy, p.scorer.name, p.budget, p.description) for p in presets]
    terminal.write_table(("NAME", "POLICY", "SCORER", "BUDGET", "DESCRIPTION"), rows)


@app.command("show", cls=PlainCommand)
def show(
    ctx: typer.Context,
    name: Annotated[
        str, typer.Argument(help="Name or file.", metavar="NAME|PATH", show_default=False, autocompletion=preset_names)
    ],
    as_json: Json = False,
) -> None:
    """Show everything that a preset sets."""
    from uncomp_cli.budget.presets import load_preset

    terminal, record = terminal_of(ctx), load_preset(name).to_dict()
    if as_json:
        terminal.write_json(record)
    else:
        terminal.write_table(("SETTING", "VALUE"), list(_flat(record)))


@app.command("validate", cls=PlainCommand)
def validate(
    ctx: typer.Context,
    path: Annotated[str, typer.Argument(help="File to check.", metavar="PATH", show_default=False)],
    as_json: Json = False,
) -> None:
    """Check a preset file; an unknown key or a value that cannot be used ends with exit code 2."""
    from uncomp_cli.budget.presets import load_preset

    terminal, preset = terminal_of(ctx), load_preset(path)
    if as_json:
        terminal.write_json({"schema_version": 1, "path": path, "name": preset.name, "valid": True})
    else:
        terminal.write_line(f"{path}: valid preset '{preset.name}'")


@app.command("remove", cls=PlainCommand)
def remove(ctx: typer.Context, name: OwnName) -> None:
    """Delete one of your own presets; shipped ones stay."""
    from uncomp_cli.budget.presets import remove_preset

    remove_preset(name)
    terminal_of(ctx).note(f"removed preset '{name}'")


def _flat(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """`scorer: {window: 32}` as the row `scorer.window`, `32`."""
    for key, value in record.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "-" if value is None else str(value)
