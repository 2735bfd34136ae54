"""The server: routes, who may come in, and answers on their way, whole or as a stream of server-sent events.

No client is let in from another machine without the key, and no web page: requests must name this machine as their host
and be JSON, which a page of another origin cannot send unasked. Bodies are bounded before they are read.
"""

import asyncio
import hmac
import json
import re
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from socket import socket
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from uncomp_cli.asking.events import Done, Piece
from uncomp_cli.asking.request import Request
from uncomp_cli.errors import DocumentError, DoesNotFitError, OutOfMemoryError, UncompError, UsageError, failure_of
from uncomp_cli.schema import shortened, shown
from uncomp_cli.serving.desk import Desk, FullError, Said, StoppingError, Ticket
from uncomp_cli.serving.exchange import Replies, UnknownModelError, parse
from uncomp_cli.serving.status import exposition, page

_LOCAL_HOST = re.compile(r"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
_BODY_S = 120
_CLOSING_S = 5
_MOST_TOLD = 2000
_PLACES = "there are POST /v1/chat/completions, POST /v1/completions and GET /v1/models"


@dataclass(frozen=True, slots=True)
class Served:
    """What is served: the model and what requests do not say, to whom, how much they may send, and since when."""

    usual: Request
    key: str | None
    body_bytes: int
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def model(self) -> str:
        """Its name, which requests give."""
        return self.usual.model.name


class _TurnedAwayError(UncompError):
    """A request that nobody answers, with the status and the code that say why."""

    def __init__(self, status: int, code: str, message: str, *, hint: str) -> None:
        super().__init__(message, hint=hint)
        self.told = status, code


_STATUS: dict[type[Exception], tuple[int, str]] = {
    UnknownModelError: (404, "model_not_found"),
    FullError: (429, "queue_full"),
    StoppingError: (503, "stopping"),
    DocumentError: (400, "invalid_document"),
}
_STATUS_OF_EXIT = {
    UsageError.exit_code: (400, "invalid_value"),
    DoesNotFitError.exit_code: (400, "context_length_exceeded"),
    OutOfMemoryError.exit_code: (503, "out_of_memory"),
}


class Front(uvicorn.Server):
    """Listens for a desk whose thread runs; a signal ends the answers that are being written, and it."""

    def __init__(self, desk: Desk, served: Served) -> None:
        self._desk = desk
        super().__init__(
            uvicorn.Config(
                make_app(desk, served),
                log_config=None,
                access_log=False,
                lifespan="off",
                ws="none",
                proxy_headers=False,
                timeout_graceful_shutdown=_CLOSING_S,
                server_header=False,
            )
        )

    async def shutdown(self, sockets: list[socket] | None = None) -> None:
        """Tell all who wait, and then close."""
        self._desk.close()
        await super().shutdown(sockets)


def make_app(desk: Desk, served: Served) -> Starlette:
    """The application over a desk whose thread runs."""
    house = _House(desk, served)
    routes = [
        Route("/", house.page),
        Route("/health", house.health),
        Route("/metrics", house.metrics),
        Route("/v1/models", house.models),
        Route("/v1/models/{name:path}", house.models),
        Route("/v1/chat/completions", partial(house.answer, plain=False), methods=["POST"]),
        Route("/v1/completions", partial(house.answer, plain=True), methods=["POST"]),
    ]
    return Starlette(routes=routes, exception_handlers=dict.fromkeys((UncompError, HTTPException, Exception), refusal))


class _House:
    """The routes."""

    def __init__(self, desk: Desk, served: Served) -> None:
        self._desk, self._served = desk, served

    async def health(self, request: HttpRequest) -> Response:
        """That it is there."""
        return JSONResponse({"status": "ok"})

    async def page(self, request: HttpRequest) -> Response:
        """What it does now, for people."""
        self._admit(request)
        policy = {"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
        return HTMLResponse(page(self._desk, self._served.model), headers=policy)

    async def metrics(self, request: HttpRequest) -> Response:
        """What it did, for Prometheus."""
        self._admit(request)
        return PlainTextResponse(exposition(self._desk), media_type="text/plain; version=0.0.4")

    async def models(self, request: HttpRequest) -> Response:
        """The model, or that there is no other."""
        self._admit(request)
        named, served = request.path_params.get("name"), self._served
        if named not in (None, served.model):
            raise UnknownModelError(f"the model is {shown(named)}, and {served.model} is served")
        length = self._desk.engine.spec.trained_length
        known = {"id": served.model, "object": "model", "created": served.created, "owned_by": "uncomp"}
        known |= {"context_length": length}
        return JSONResponse(known if named else {"object": "list", "data": [known]})

    async def answer(self, request: HttpRequest, *, plain: bool) -> Response:
        """An answer, whole or as it comes; what is refused before its first word has a status of its own."""
        self._admit(request)
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise UsageError("the body is no application/json", hint="send Content-Type: application/json")
        self._desk.check_room()
        body = await _body(request, self._served.body_bytes)
        wanted = parse(body, self._served.usual, plain=plain)
        del body
        heard: asyncio.Queue[Said] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(said: Said) -> None:
            with suppress(RuntimeError):  # the loop that listened is gone
                loop.call_soon_threadsafe(heard.put_nowait, said)

        ticket, replies = Ticket(wanted, tell), Replies(wanted)
        self._desk.submit(ticket)
        leaving = asyncio.create_task(_leaving(request, heard))
        try:
            first = await _heard(heard)
            if wanted.streams:
                return _Stream(ticket, _events(first, heard, replies))
            return JSONResponse(await _whole(first, heard, replies))
        except BaseException:
            ticket.left = True
            raise
        finally:
            leaving.cancel()

    def _admit(self, request: HttpRequest) -> None:
        """Raise for who has not the key, and without one for who does not mean this machine."""
        headers = request.headers
        if self._served.key is not None:
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self._served.key.encode()):
                message = "the key is missing or wrong"
                raise _TurnedAwayError(401, "invalid_api_key", message, hint="send Authorization: Bearer KEY")
        elif not _LOCAL_HOST.fullmatch(headers.get("host", "")):
            message = f"the host is {shown(headers.get('host'))}"
            raise _TurnedAwayError(403, "foreign_host", message, hint="ask http://127.0.0.1")


class _Stream(StreamingResponse):
    """Server-sent events, which nobody listens to any more when it has ended, however it did."""

    def __init__(self, ticket: Ticket, events: AsyncIterator[str]) -> None:
        self._ticket = ticket
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ticket.left = True


async def _body(request: HttpRequest, most_bytes: int) -> bytes:
    """A request's body. Raises for more than `most_bytes` before they are read, and for one that does not come."""
    body = bytearray()
    try:
        async with asyncio.timeout(_BODY_S):
            async for piece in request.stream():
                body += piece
                if len(body) > most_bytes:
                    message = f"the body has more than {most_bytes / 2**20:,.0f} MiB"
                    hint = "save the document, and name its cache"
                    raise _TurnedAwayError(413, "body_too_large", message, hint=hint)
    except TimeoutError:
        message = f"the body has not come within {_BODY_S} seconds"
        raise _TurnedAwayError(408, "body_too_slow", message, hint="send it at once") from None
    except ClientDisconnect:
        raise UncompError("the client has left") from None
    return bytes(body)


async def _leaving(request: HttpRequest, heard: "asyncio.Queue[Said]") -> None:
    """Say it when the client leaves."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    heard.put_nowait(UncompError("the client has left"))


async def _heard(heard: "asyncio.Queue[Said]") -> Piece | Done:
    """What is told next. Raises it where it is an error."""
    said = await heard.get()
    if isinstance(said, UncompError):
        raise said
    return said


async def _whole(said: Piece | Done, heard: "asyncio.Queue[Said]", replies: Replies) -> dict[str, Any]:
    """The answer at its end."""
    texts = list[str]()
    while isinstance(said, Piece):
        texts.append(said.text)
        said = await _heard(heard)
    return replies.whole(said, "".join(texts))


async def _events(said: Piece | Done, heard: "asyncio.Queue[Said]", replies: Replies) -> AsyncIterator[str]:
    """The answer as it comes; what is refused in the middle is told as an object of its own."""
    is_first = True
    try:
        while isinstance(said, Piece):
            yield _event(replies.piece(said.text, first=is_first))
            is_first, said = False, await _heard(heard)
        for each in replies.last(said):
            yield _event(each)
    except Exception as error:
        yield _event(_refused(error)[1])
    yield "data: [DONE]\n\n"


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


async def refusal(request: HttpRequest, error: Exception) -> Response:
    """An error as OpenAI's clients read it."""
    status, data = _refused(error)
    return JSONResponse(data, status, headers={"Retry-After": "5"} if status in (429, 503) else {})


def _refused(error: BaseException) -> tuple[int, dict[str, Any]]:
    """Status and body of an error; what is quoted in it may be long, and no text."""
    failure = failure_of(error)
    known = next((found for kind, found in _STATUS.items() if isinstance(error, kind)), None)
    known = error.told if isinstance(error, _TurnedAwayError) else known
    status, code = known or _STATUS_OF_EXIT.get(failure.exit_code, (500, "failed"))
    message = failure.message if failure.hint is None else f"{failure.message} ({failure.hint})"
    if isinstance(error, HTTPException):
        status, message = error.status_code, f"{error.detail} ({_PLACES})"
        code = HTTPStatus(status).name.lower()
    message = shortened(message.encode(errors="backslashreplace").decode(), _MOST_TOLD)
    kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    return status, {"error": {"message": message, "type": kind, "param": None, "code": code}}
