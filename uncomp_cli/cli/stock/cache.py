"""`uncomp cache`: documents that were read, compressed and saved, to be asked about again.

`uncomp ask --cache` makes them.
"""

import re
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uncomp_cli.cli.declare.completion import cache_names
from uncomp_cli.cli.declare.options import Json, Quiet, terminal_of
from uncomp_cli.cli.declare.tree import argument, command_of, group, option
from uncomp_cli.errors import UncompError, UsageError
from uncomp_cli.numerals import format_bytes, format_count, format_decimal
from uncomp_cli.table import Table

if TYPE_CHECKING:
    from uncomp_cli.cache.shelf import Entry, Shelf


_LATEST_S = datetime(9999, 12, 31, tzinfo=UTC).timestamp()
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_AGE = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)([smhdw])")

app = group("cache", "List, show, check and remove saved documents.")

Name = Annotated[str, argument("Name, or how the hash begins.", "NAME", cache_names)]
Names = Annotated[list[str] | None, argument("Names, or how the hashes begin.", "NAME…", cache_names)]


@command_of(app, "list")
def list_all(ctx: typer.Context, as_json: Json = False) -> None:
    """List saved documents, the latest used first."""
    from uncomp_cli.asking.request import cabinet_of, shelf_of

    terminal, shelf = terminal_of(ctx), shelf_of()
    entries = shelf.entries()
    for path in shelf.corrupt():
        terminal.warn(f"{path} was found damaged; uncomp cache remove --damaged deletes it")
    for error in shelf.unread():
        terminal.warn(error.message)
    count, count_bytes = cabinet_of().size()
    if count:
        what = f"texts and tokens of documents: {format_count(count, 'file')}"
        terminal.note(f"{what}, {format_bytes(count_bytes)}; uncomp cache remove --texts deletes them")
    if as_json:
        terminal.write_json([_record(entry) for entry in entries])
        return
    if not entries:
        terminal.note(f"no saved documents in {shelf.folder} yet: uncomp ask --cache NAME saves one")
    columns = ("NAME", "HASH", "MODEL", "TOKENS", "BUDGET", "SIZE", "OF 16 BITS", "USED", "DOCUMENTS")
    terminal.write_table(Table(columns, [_row(entry) for entry in entries]))


@command_of(app, "show")
def show(ctx: typer.Context, name: Name, as_json: Json = False) -> None:
    """Describe a saved document: what it was made from, how, and what it takes."""
    from uncomp_cli.asking.request import shelf_of

    terminal, record = terminal_of(ctx), _record(shelf_of().find(name))
    if as_json:
        terminal.write_json({"schema_version": 1, **record})
        return
    terminal.write_table(Table(("FIELD", "VALUE"), list(_rows(record))))


@command_of(app, "verify")
def verify(ctx: typer.Context, names: Names = None, as_json: Json = False, quiet: Quiet = False) -> None:
    """Check every byte of saved documents, of all when none is named; damaged files are set aside: exit code 1."""
    from uncomp_cli.asking.request import shelf_of

    terminal, shelf = terminal_of(ctx, quiet=quiet), shelf_of()
    checked: list[tuple[str, str | None]] = list(shelf.set_aside())
    gone = {name for name, _ in checked}
    entries = [shelf.find(name) for name in names if name not in gone] if names else shelf.entries()
    checked += [(entry.name, shelf.verify(entry)) for entry in entries]
    damaged = [name for name, reason in checked if reason is not None]
    if as_json:
        terminal.write_json([{"name": name, "valid": not reason, "reason": reason} for name, reason in checked])
    else:
        for name, reason in checked:
            terminal.write_line(f"{name}: {reason or 'valid'}")
    if damaged:
        raise UncompError(
            f"{len(damaged)} of {len(checked)} saved documents are damaged: {', '.join(damaged)}",
            hint="save them again; uncomp cache remove --damaged deletes the files",
        )


@command_of(app, "remove")
def remove(
    ctx: typer.Context,
    names: Names = None,
    older_than: Annotated[
        str | None,
        option(
            "--older-than", help="Those that were not used for this long: 12h, 7d, 2w.", metavar="AGE", setting=False
        ),
    ] = None,
    everything: Annotated[bool, option("--all", help="All of them, and damaged files.", setting=False)] = False,
    damaged: Annotated[
        bool, option("--damaged", help="Files that were found damaged and set aside.", setting=False)
    ] = False,
    texts: Annotated[
        bool, option("--texts", help="Texts and tokens of documents, which are made again when needed.", setting=False)
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Delete saved documents: those named, of these or of all those that are old, or everything."""
    from uncomp_cli.asking.request import cabinet_of, shelf_of

    shelf = shelf_of()
    entries = _chosen(shelf, names or [], older_than=older_than, everything=everything, others=damaged or texts)
    corrupt = shelf.corrupt() if everything or damaged else []
    paths = [entry.path for entry in entries] + corrupt
    freed = shelf.remove(paths) if paths else 0
    removed = [entry.name for entry in entries] + [path.name for path in corrupt]
    if (everything or texts) and (cleared := cabinet_of().clear()):
        freed, removed = freed + cleared, [*removed, "texts and tokens of documents"]
    what = ", ".join(removed) or "nothing"
    terminal_of(ctx, quiet=quiet).note(f"removed {what} ({format_bytes(freed)})")


def _chosen(
    shelf: "Shelf", names: Sequence[str], *, older_than: str | None, everything: bool, others: bool
) -> list["Entry"]:
    """What `remove` is to delete; raises UsageError when nothing was said, or too much."""
    if not (names or older_than or everything or others):
        raise UsageError("nothing was named to remove", hint="uncomp cache remove NAME, --older-than 7d or --all")
    if everything and names:
        raise UsageError(f"--all and '{names[0]}' are two choices", hint="leave out --all, or the names")
    before = None if older_than is None else time.time() - _age_s(older_than)
    if not names:
        found = shelf.entries() if everything or before is not None else []
    else:
        found = list({entry.path: entry for entry in map(shelf.find, names)}.values())
    return [entry for entry in found if before is None or entry.used < before]


def _age_s(text: str) -> float:
    match = _AGE.fullmatch(text.strip().lower())
    if match is None:
        raise UsageError(f"older-than '{text}' is no age", hint="write a number and s, m, h, d or w: 12h, 7d")
    return float(match[1]) * _SECONDS[match[2]]


def _record(entry: "Entry") -> dict[str, Any]:
    """All that is known of a saved document, as JSON data."""
    manifest = entry.manifest
    return {
        "name": entry.name,
        "path": str(entry.path),
        "file_bytes": entry.file_bytes,
        "tensor_bytes": manifest.tensor_bytes,
        "used": datetime.fromtimestamp(min(max(entry.used, 0), _LATEST_S), UTC).isoformat(timespec="seconds"),
        "kv_bits": manifest.kv_bits,
        "dtype": manifest.dtype,
        "sha256": manifest.sha256,
        **asdict(manifest.record),
    }


def _row(entry: "Entry") -> tuple[str, ...]:
    record = entry.manifest.record
    share = f"{format_decimal(100 * entry.share.of_16_bit)} %" if entry.share.of_run < 1 else "all"
    return (
        entry.name,
        entry.key[:12],
        record.model.name,
        format_count(record.context_tokens),
        record.compression.budget,
        format_bytes(entry.file_bytes),
        share,
        _ago(time.time() - entry.used),
        ", ".join(document.path for document in record.documents) or "-",
    )


def _ago(seconds: float) -> str:
    """`5 m ago`, `3 d ago`: in the largest unit of which it is at least one."""
    units = [unit for unit in ("d", "h", "m") if seconds >= _SECONDS[unit]]
    unit = units[0] if units else "s"
    return f"{max(0, int(seconds // _SECONDS[unit]))} {unit} ago"


def _rows(record: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """`model: {name: x}` as the row `model.name`, `x`; objects in a list are numbered from 1."""
    rows: list[tuple[str, str]] = []
    for key, value in record.items():
        if isinstance(value, (list, tuple)) and all(isinstance(item, dict) for item in value):
            value = {str(number): item for number, item in enumerate(value, start=1)}
        if isinstance(value, dict):
            rows += _rows(value, f"{prefix}{key}.")
        elif key.endswith("_bytes") and isinstance(value, int):
            rows.append((f"{prefix}{key.removesuffix('_bytes')}", f"{format_bytes(value)} ({format_count(value)} B)"))
        else:
            rows.append((f"{prefix}{key}", _shown(value)))
    return rows


def _shown(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return f"{format_count(len(value))} rows"
    return "-" if value is None else str(value)
