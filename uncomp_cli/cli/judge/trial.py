"""What the commands share that judge a model on a text: the text, where results go by themselves, what made them."""

import hashlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from uncomp_cli.cli.declare.options import OutputOptions, ReadingOptions, output_option
from uncomp_cli.cli.declare.tree import option
from uncomp_cli.errors import LockedError, UncompError, UsageError
from uncomp_cli.numerals import format_count
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.input import with_password
from uncomp_cli.ui.meter import loading, show

if TYPE_CHECKING:
    from uncomp_cli.documents.collection import Document
    from uncomp_cli.documents.text import Wishes
    from uncomp_cli.evals.tasks.haystack import Haystack


result_option = partial(option, panel="Results", setting=False)
Out = Annotated[
    Path | None,
    result_option(
        "--out",
        "-o",
        help="Results file (JSON lines); one that exists is continued.",
        metavar="PATH",
        show_default="a file of its own in the data directory for every combination of model, text and seed",
    ),
]
Plot = Annotated[Path | None, result_option("--plot", help="Draw pictures into this directory.", metavar="DIR")]


def text_files(what: str, *, panel: str | None = None) -> Any:
    """The option that names a text to measure on, which the help calls `what`."""
    told = f"{what}: file, directory, glob, or - for standard input; repeatable."
    shown = "generated prose"
    return option("--file", "-f", help=told, metavar="PATH", show_default=shown, panel=panel, setting=False)


@dataclass(frozen=True, slots=True)
class TableOptions(OutputOptions):
    """In which form the figures are written."""

    wide: Annotated[
        bool, output_option("--wide", help="All columns, and a line a row, however long.", setting=False)
    ] = False
    csv: Annotated[bool, output_option("--csv", help="The figures as CSV in place of a table.", setting=False)] = False

    def terminal(self, ctx: typer.Context) -> Terminal:
        """As in every command; raises UsageError for two forms at once."""
        if self.csv and self.as_json:
            raise UsageError("--csv and --json both say how the figures are written", hint="leave one of the two out")
        return OutputOptions.terminal(self, ctx)


def check_plot(folder: Path | None) -> None:
    """Raise UsageError when pictures are asked for and cannot be drawn, or the folder can be none."""
    if folder is None:
        return
    if find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib, which is not installed", hint="pip install 'uncomp[plot]'")
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UsageError(f"--plot {folder} lies at or below a file", hint="give a directory, which may be new")


def draw_into(folder: Path, draw: Callable[[Path], Iterable[Path]], terminal: Terminal) -> None:
    """Draw pictures into a folder; raises UncompError when it cannot be made."""
    with loading(terminal, "drawing"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            message = f"{folder} cannot be made: {error.strerror or error}"
            raise UncompError(message, hint="give another directory with --plot") from error
        drawn = len([*draw(folder)])
    terminal.note(f"{format_count(drawn, 'picture')} in {folder}")


def texts_of(
    paths: Sequence[str], options: ReadingOptions, terminal: Terminal, wishes: "Wishes | None" = None
) -> "Sequence[Document]":
    """The documents that are named; what is skipped of them is said, and a password that one needs is asked for."""
    from uncomp_cli.documents.collection import reading

    stdin: TextIO | None = sys.stdin  # None when the process was started without one
    wishes = options.wishes() if wishes is None else wishes
    taken = reading(paths, include=options.include, stdin=None if stdin is None else stdin.buffer, wishes=wishes)
    try:
        found = show(taken, terminal)
    except LockedError as error:
        return texts_of(paths, options, terminal, with_password(error, wishes, terminal))
    for remark in found.remarks:
        terminal.warn(remark.text, remark.more)
    return found.documents


def haystack_of(
    paths: Sequence[str], options: ReadingOptions, tokens: int, *, seed: int, terminal: Terminal
) -> "Haystack":
    """The text that samples are made of: the documents that are named, or prose for samples of up to `tokens`."""
    from uncomp_cli.evals.tasks.haystack import Haystack

    if not paths:
        return Haystack.generated_for(tokens, seed=seed)
    return Haystack.of_documents(texts_of(paths, options, terminal))


def results_path(settings: Mapping[str, object], prefix: str = "") -> Path:
    """A file in the user's data directory for just these settings."""
    from platformdirs import user_data_path

    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]
    folder = user_data_path("uncomp") / "evals"
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"{prefix}{digest}.jsonl"


def made_here() -> dict[str, object]:
    """What made the results: known of a run alone, since a file that is shown again may come from another machine."""
    from uncomp_cli.bench.rounds import cpu_name

    versions = {name: version(name) for name in ("torch", "transformers")}
    command = shlex.join(["uncomp", *sys.argv[1:]])
    return {"cpu": cpu_name(), "cores": os.cpu_count(), **versions, "command": command}
