"""`uncomp serve`: the engine for other tools, over HTTP in OpenAI's forms, on this machine.

Nothing leaves loopback unless there is a key, and then who has it is let in. Ctrl-C lets answers that are being written
go, and ends it.
"""

import errno
import re
import socket
import threading
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

from uncomp_cli.cli.declare.failures import show_failure
from uncomp_cli.cli.declare.options import (
    ModelOptions,
    PresetOptions,
    ReadingOptions,
    SamplingOptions,
    System,
    terminal_of,
)
from uncomp_cli.cli.declare.tree import brief, only, option
from uncomp_cli.errors import UncompError, UsageError
from uncomp_cli.numerals import format_count
from uncomp_cli.ui.console import Terminal
from uncomp_cli.ui.meter import show

if TYPE_CHECKING:
    from uncomp_cli.asking.request import Request
    from uncomp_cli.serving.desk import Desk
    from uncomp_cli.serving.http import Served

_server = partial(option, panel="Server")
_LOCAL = ("127.0.0.1", "localhost", "::1")
_LINE_BODIES = 4
"""Bytes that may wait in line, in largest bodies."""
_KEY = re.compile("[!-~]+")


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """Where it listens, to whom, and how much at once."""

    host: Annotated[
        str, _server("--host", help="Address to listen on; one of others needs a key.", metavar="ADDRESS")
    ] = "127.0.0.1"
    port: Annotated[int, _server("--port", help="Port; 0 takes a free one.", metavar="N", min=0, max=65535)] = 8080
    key: Annotated[
        str | None,
        _server(
            "--key",
            help="What clients must send as their API key; better in the variable, which nobody else sees.",
            metavar="KEY",
            show_default="none",
        ),
    ] = None
    rows: Annotated[int, _server("--rows", help="Answers written at once, at most.", metavar="N", min=1)] = 16
    queue: Annotated[
        int, _server("--queue", help="Requests that may wait; more are told to come back.", metavar="N", min=1)
    ] = 64
    body: Annotated[str, _server("--body", help="Largest request, with the documents in it.", metavar="SIZE")] = "64MiB"


BRIEF = brief(
    "host port key rows queue model preset budget system max-new-tokens quiet",
    ("uncomp serve", "OpenAI's API at http://127.0.0.1:8080/v1"),
    ("uncomp serve -m qwen3-4b --port 9000 --rows 4", "another model, at most four answers at once"),
    ("UNCOMP_KEY=secret uncomp serve --host 0.0.0.0", "for other machines, who have the key"),
)


def serve(
    ctx: typer.Context,
    *,
    server: ServerOptions,
    model: ModelOptions,
    preset: PresetOptions,
    reading: Annotated[ReadingOptions, only("chunk", "kv_mem", "encoding", "text_cache")],
    system: System = None,
    sampling: SamplingOptions,
    quiet: Annotated[bool, option("--quiet", "-q", help="Say nothing but errors.")] = False,
) -> None:
    """Serve the model to other tools, by OpenAI's API."""
    from uncomp_cli.asking.request import Request, bytes_of

    terminal = terminal_of(ctx, quiet=quiet)
    if server.key is None and server.host not in _LOCAL:
        raise UsageError(f"--host {server.host} lets other machines in", hint="set UNCOMP_KEY, which they must send")
    if server.key is not None and not _KEY.fullmatch(server.key):
        message = "the key is empty, or has characters that no header has"
        raise UsageError(message, hint="UNCOMP_KEY=$(openssl rand -hex 16) uncomp serve")
    body_bytes = bytes_of(server.body, "body", "memory", hint="use --body 64MiB")
    usual = Request(
        model=model.choice(),
        preset=preset.choice(sampling.seed),
        system=system,
        sampling=sampling.config(),
        limits=reading.limits(),
        wishes=reading.wishes(),
    )
    usual.choice.stored()  # a slip in it must not wait for the model
    with _listening(server) as listener:
        desk = _desk(server, usual, terminal, body_bytes=body_bytes)
        from uncomp_cli.serving.http import Served

        terminal.note(_greeting(server, usual.model.name, listener))
        run_front(desk, Served(usual, server.key, body_bytes), listener)


def _listening(server: ServerOptions) -> socket.socket:
    """The socket, before anything heavy: a port in use is told at once."""
    try:
        family = socket.AF_INET6 if ":" in server.host else socket.AF_INET
        return socket.create_server((server.host, server.port), family=family)
    except OSError as error:
        reason = (error.strerror or str(error)).partition(" (while")[0]  # Python says the address again
        hint = "use --host 127.0.0.1 for this machine alone, 0.0.0.0 for others, and a --port above 1023"
        if error.errno == errno.EADDRINUSE:
            hint = f"uncomp serve --port {server.port + 1}, or --port 0 for any free one"
        raise UncompError(f"{server.host}:{server.port} cannot be listened on: {reason}", hint=hint) from error


def _greeting(server: ServerOptions, model: str, listener: socket.socket) -> str:
    """Where it is, and how much it does at once."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    rows, places = format_count(server.rows), format_count(server.queue)
    return f"{model} at http://{shown}:{port}/v1 · {rows} answers at once, {places} may wait · Ctrl-C ends it"


def _desk(server: ServerOptions, usual: "Request", terminal: Terminal, *, body_bytes: int) -> "Desk":
    """The model, loaded, and who answers with it."""
    _needed()
    from uncomp_cli.asking.pipeline import engine_for, settle
    from uncomp_cli.documents.collection import DocumentSet
    from uncomp_cli.serving.desk import Desk

    loaded, preset = show(settle(usual), terminal)
    engine = show(engine_for(loaded, usual, preset, DocumentSet(()), usual.questions), terminal)
    return Desk(
        engine,
        places=server.queue,
        rows=server.rows,
        bytes_waiting=_LINE_BODIES * body_bytes,
        on_defect=lambda error: show_failure(error, terminal),
    )


def _needed() -> None:
    """Raise UncompError where the extra is not installed."""
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise UncompError(f"serving needs {' and '.join(missing)}", hint="pip install 'uncomp[serve]'")


def run_front(desk: "Desk", served: "Served", listener: socket.socket) -> None:
    """Serve until a signal ends it, or what answers fails, which is raised."""
    from uncomp_cli.serving.http import Front

    front, failed = Front(desk, served), list[BaseException]()

    def work() -> None:
        try:
            desk.run()
        except BaseException as error:  # told by the main thread
            failed.append(error)
        finally:
            front.should_exit = True

    thread = threading.Thread(target=work, name="desk", daemon=True)  # a second signal waits for nothing
    thread.start()
    try:
        front.run(sockets=[listener])
    finally:
        desk.close()
        thread.join()
    if failed:
        raise failed[0]
