"""`uncomp model`: fetch, list, describe and remove models in the cache directory."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uncomp_cli.cli.declare.completion import model_names
from uncomp_cli.cli.declare.options import Json, ModelOptions, Quiet, terminal_of
from uncomp_cli.cli.declare.tree import command_of, group, only
from uncomp_cli.numerals import format_bytes, format_count, format_value
from uncomp_cli.table import Table

if TYPE_CHECKING:
    from uncomp_cli.models.catalog import ModelInfo


app = group("model", "Fetch, list, describe and remove models.")

AnyName = Annotated[
    str,
    typer.Argument(
        help="Built-in name, directory, .gguf file or hub id.",
        metavar="NAME",
        show_default=False,
        autocompletion=model_names,
    ),
]
ListedName = Annotated[
    str,
    typer.Argument(
        help="Name as in `uncomp model list`.", metavar="NAME", show_default=False, autocompletion=model_names
    ),
]


@command_of(app, "pull")
def pull(
    ctx: typer.Context,
    name: AnyName,
    *,
    model: Annotated[ModelOptions, only("tokenizer", "offline")],
    quiet: Quiet = False,
) -> None:
    """Fetch a model, check it and make it ready to load; safe to interrupt and to repeat."""
    from uncomp_cli.models.catalog import ensure_local, local_path
    from uncomp_cli.steps import pulled
    from uncomp_cli.ui import meter

    terminal = terminal_of(ctx, quiet=quiet)
    meter.show(pulled(ensure_local(name, offline=model.offline, tokenizer_dir=model.tokenizer)), terminal)
    terminal.write_answer(f"{local_path(name)}\n")


@command_of(app, "list")
def list_all(ctx: typer.Context, as_json: Json = False) -> None:
    """List the models on this machine."""
    from uncomp_cli.models.catalog import list_models
    from uncomp_cli.models.sources import cache_dir

    terminal, models = terminal_of(ctx), list_models()
    if as_json:
        terminal.write_json([_record(model) for model in models])
        return
    if not models:
        terminal.note(f"no models in {cache_dir()} yet: uncomp model pull NAME fetches one")
    rows = [
        (m.name, m.architecture, format_count(m.trained_length), m.dtype, format_bytes(m.size_bytes)) for m in models
    ]
    terminal.write_table(Table(("NAME", "ARCHITECTURE", "TOKENS", "DTYPE", "SIZE"), rows))


@command_of(app, "show")
def show(ctx: typer.Context, name: AnyName, as_json: Json = False) -> None:
    """Describe a model: files, shape, trained length, what a token costs."""
    from uncomp_cli.models.catalog import show_model

    terminal, record = terminal_of(ctx), _record(show_model(name))
    if as_json:
        terminal.write_json({"schema_version": 1, **record})
        return
    rows = [(key.replace("_bytes", "").replace("_", " "), format_value(key, record[key])) for key in record]
    terminal.write_table(Table(("FIELD", "VALUE"), rows))


@command_of(app, "remove")
def remove(ctx: typer.Context, name: ListedName, quiet: Quiet = False) -> None:
    """Delete a model from the cache directory."""
    from uncomp_cli.models.catalog import remove_model

    left = remove_model(name)
    terminal_of(ctx, quiet=quiet).note("; ".join((f"removed model {name}", *(f"{path} stays" for path in left))))


def _record(model: "ModelInfo") -> dict[str, Any]:
    return {**asdict(model), "path": str(model.path)}
