"""`uncomp model`: fetch, list, describe and remove models in the cache directory."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uncomp_cli.cli.declare.completion import model_names
from uncomp_cli.cli.declare.options import Json, ModelOptions, Quiet, terminal_of
from uncomp_cli.cli.declare.tree import argument, command_of, group, only, option
from uncomp_cli.numerals import format_bytes, format_count, format_value
from uncomp_cli.table import Table

if TYPE_CHECKING:
    from uncomp_cli.engine.spend.fitting import Fit
    from uncomp_cli.models.catalog import ModelInfo
    from uncomp_cli.ui.console import Terminal


app = group("model", "Fetch, list, describe and remove models.")

AnyName = Annotated[str, argument("Built-in or known name, directory, .gguf file or hub id.", "NAME", model_names)]
ListedName = Annotated[str, argument("Name as in `uncomp model list`.", "NAME", model_names)]


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
    from uncomp_cli.models.loading import file_notes
    from uncomp_cli.steps import pulled
    from uncomp_cli.ui import meter

    terminal = terminal_of(ctx, quiet=quiet)
    meter.show(pulled(ensure_local(name, offline=model.offline, tokenizer_dir=model.tokenizer)), terminal)
    path = local_path(name)
    for note in [] if path is None else file_notes(path, name):
        terminal.note(note)
    terminal.write_answer(f"{path}\n")


@command_of(app, "list")
def list_all(
    ctx: typer.Context,
    known: Annotated[
        bool, option("--known", help="Those that can be pulled by name, the best that fit here first.")
    ] = False,
    as_json: Json = False,
) -> None:
    """List the models on this machine."""
    if known:
        _list_known(terminal_of(ctx), as_json=as_json)
        return
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


def _list_known(terminal: "Terminal", *, as_json: bool) -> None:
    from uncomp_cli.engine.spend.fitting import DOCUMENTS, fitting
    from uncomp_cli.models.catalog import local_path

    fits = [(fit, local_path(fit.model.alias) is not None) for fit in fitting()]
    if as_json:
        records = [{**_known_record(fit), "here": here} for fit, here in fits]
        terminal.write_json({"schema_version": 1, "models": records})
        return
    rows = [
        (
            fit.model.alias,
            f"{fit.model.parameters / 1e9:.1f}B",
            format_bytes(fit.model.size_bytes),
            fit.model.kind,
            format_count(fit.model.trained_length),
            *("–" if needed is None else format_bytes(needed) for needed in fit.needed_bytes),
            fit.model.licence,
            "here" if here else "" if fit.fits else "too large",
        )
        for fit, here in fits
    ]
    documents = (f"MEMORY {tokens // 1024}K" for tokens in DOCUMENTS)
    columns = ("NAME", "SIZE", "FILE", "KIND", "TRAINED", *documents, "LICENCE", "NOTE")
    notes = [
        "memory: weights, and a document of so many tokens at the default preset; uncomp model pull NAME fetches one"
    ]
    terminal.write_tables([Table(columns, rows, notes=notes)])


def _known_record(fit: "Fit") -> dict[str, Any]:
    from uncomp_cli.engine.spend.fitting import DOCUMENTS

    model = fit.model
    needed = {str(tokens): needed for tokens, needed in zip(DOCUMENTS, fit.needed_bytes, strict=True)}
    more = {"parameters": model.parameters, "url": model.url, "needed_bytes": needed, "fits": fit.fits}
    return {**asdict(model), **more}


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
