"""`uncomp preset`: what a preset sets and what was measured for it, shipped and own.

A preset that was calibrated has a profile, the uncertainty of a model's layers and heads, and the loss of its budgets.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uncomp_cli.cli.ask.report import QUALITY_COLUMNS, quality_row
from uncomp_cli.cli.declare.options import Json, preset_names, terminal_of
from uncomp_cli.cli.declare.tree import command_of, group, option
from uncomp_cli.numerals import format_count
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.meter import loading

if TYPE_CHECKING:
    from uncomp_cli.budget.presets import Preset
    from uncomp_cli.uncertainty.profile import UncertaintyProfile

__all__ = ["app"]

PLOT_TOKENS = 2000

app = group("preset", "List, show, plot, check and remove presets.")

AnyName = Annotated[
    str, typer.Argument(help="Name or file.", metavar="NAME|PATH", show_default=False, autocompletion=preset_names)
]

OwnName = Annotated[
    str,
    typer.Argument(
        help="Name of one of your own presets.", metavar="NAME", show_default=False, autocompletion=preset_names
    ),
]


@command_of(app, "list")
def list_all(ctx: typer.Context, as_json: Json = False) -> None:
    """List presets: the shipped ones and your own."""
    from uncomp_cli.budget.presets import read_presets

    terminal, (presets, broken) = terminal_of(ctx), read_presets()
    for error in broken:
        terminal.warn(f"left out: {error.message}; uncomp preset validate tells more")
    if as_json:
        terminal.write_json([preset.to_dict() for preset in presets])
        return
    rows = [(p.name, p.policy, p.scorer.name, str(p.budget), p.description) for p in presets]
    terminal.write_table(("NAME", "POLICY", "SCORER", "BUDGET", "DESCRIPTION"), rows)


@command_of(app, "show")
def show(ctx: typer.Context, name: AnyName, as_json: Json = False) -> None:
    """Show everything that a preset sets, and what was measured for it."""
    from uncomp_cli.budget.presets import load_preset

    terminal, preset = terminal_of(ctx), load_preset(name)
    record = preset.to_dict()
    profile = None if preset.profile_path is None else _load(preset.profile_path, terminal)
    if as_json:
        terminal.write_json(record if profile is None else {**record, "measured": _measured(profile)})
        return
    settings = {key: value for key, value in record.items() if key != "quality"}
    rows = list(_flat(settings))
    terminal.write_table(("SETTING", "VALUE"), rows if profile is None else [*rows, *_measured_rows(profile)])
    if preset.quality:
        terminal.write_line()
        terminal.write_table(QUALITY_COLUMNS, _quality_rows(preset))


@command_of(app, "plot")
def plot(
    ctx: typer.Context,
    name: AnyName,
    measure: Annotated[
        str | None,
        option(
            "--measure",
            help="Which of the measures of the preset's profile to show: entropy/q/r1/4, lmba/sinkfree.",
            metavar="KEY",
            show_default="the one that its policy uses",
            setting=False,
        ),
    ] = None,
    folder: Annotated[
        Path | None, option("--plot", help="Draw pictures into this directory too.", metavar="DIR", show_default=False)
    ] = None,
    tokens: Annotated[
        int,
        option(
            "--tokens",
            help="Length of the prompt that the budget is spread over.",
            metavar="N",
            min=64,
            setting=False,
        ),
    ] = PLOT_TOKENS,
    as_json: Json = False,
) -> None:
    """Show the uncertainty and the tokens kept of every layer and head, as heat maps."""
    from uncomp_cli.budget.presets import load_preset
    from uncomp_cli.cli.stock.preset_plot import run_plot

    run_plot(
        load_preset(name), measure=measure, folder=folder, tokens=tokens, as_json=as_json, terminal=terminal_of(ctx)
    )


@command_of(app, "validate")
def validate(
    ctx: typer.Context,
    path: Annotated[str, typer.Argument(help="File to check.", metavar="PATH", show_default=False)],
    as_json: Json = False,
) -> None:
    """Check a preset file and its profile; an unknown key, a bad value or a damaged profile ends with exit code 2."""
    from uncomp_cli.budget.presets import load_preset

    terminal, preset = terminal_of(ctx), load_preset(path)
    if preset.profile_path is not None:
        _load(preset.profile_path, terminal)
    if as_json:
        terminal.write_json({"schema_version": 1, "path": path, "name": preset.name, "valid": True})
    else:
        terminal.write_line(f"{path}: valid preset '{preset.name}'")


@command_of(app, "remove")
def remove(ctx: typer.Context, name: OwnName) -> None:
    """Delete one of your own presets; shipped ones stay."""
    from uncomp_cli.budget.presets import remove_preset

    _, *profiles = remove_preset(name)
    also = "".join(f" and its profile {path.name}" for path in profiles)
    terminal_of(ctx).note(f"removed preset '{name}'{also}")


def _load(path: Path, terminal: Terminal) -> "UncertaintyProfile":
    with loading(terminal, "reading the profile"):
        from uncomp_cli.uncertainty.profile import load_profile

        return load_profile(path)


def _measured(profile: "UncertaintyProfile") -> dict[str, Any]:
    """What the profile holds, with the mean of every measure [L][X] in place of its samples."""
    from dataclasses import asdict

    return {
        "model": asdict(profile.fingerprint),
        "samples": len(profile.samples),
        "tokens": sum(sample.tokens for sample in profile.samples),
        "created": profile.parameters.get("created"),
        "parameters": dict(profile.parameters),
        "means": {key: [list(row) for row in profile.as_rows(key)] for key in profile.values},
    }


def _measured_rows(profile: "UncertaintyProfile") -> Iterator[tuple[str, str]]:
    model, lengths = profile.fingerprint, [sample.tokens for sample in profile.samples]
    least, most = format_count(min(lengths)), format_count(max(lengths))
    each = f"{least} each" if least == most else f"{least} to {most} each"
    shape = f"{model.num_layers} layers, {model.num_heads} query and {model.num_kv_heads} KV heads"
    yield "measured.model", f"{model.name} ({shape})"
    yield "measured.weights", model.weights_sha256
    yield "measured.samples", format_count(len(profile.samples))
    yield "measured.tokens", f"{format_count(sum(lengths))} ({each})"
    yield "measured.created", str(profile.parameters.get("created") or "-")
    yield "measured.measures", ", ".join(profile.values)


def _quality_rows(preset: "Preset") -> list[tuple[str, ...]]:
    """The curve from the smallest budget on."""
    return [quality_row(point) for point in sorted(preset.quality, key=lambda point: point.kept_fraction)]


def _flat(record: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """`scorer: {window: 32}` as the row `scorer.window`, `32`."""
    for key, value in record.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "-" if value is None else str(value)
