"""The server: routes, who may come in, and answers on their way, whole or as a stream of server-sent events.

No client is let in from another machine without the key, and no web page: requests must name this machine as their host
and be JSON, which a page of another origin cannot send unasked. Bodies are bounded before they are read.
"""

import asyncio
import hmac
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request as HttpRequest
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from uncomp_cli.asking.events import Done, Piece, Refused
from uncomp_cli.asking.request import Request
from uncomp_cli.errors import DoesNotFitError, OutOfMemoryError, UncompError, UsageError, failure_of
from uncomp_cli.schema import parse_object
from uncomp_cli.serving.desk import Desk, FullError, Said, Ticket
from uncomp_cli.serving.exchange import Replies, UnknownModelError, Wanted, finish_reason, parse
from uncomp_cli.serving.status import exposition, page

LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1")
_LISTEN_S = 0.25


@dataclass(frozen=True, slots=True)
class Served:
    """What is served: a model's name, what requests do not say, who may come in, and how much they may send."""

    model: str
    usual: Request
    created: int
    key: str | None = None
    body_bytes: int = 64 * 2**20


class _TooLargeError(UncompError):
    """A body of more bytes than are read."""


class _ForbiddenError(UncompError):
    """Who asks may not."""


_STATUS: dict[type[Exception], tuple[int, str]] = {
    _ForbiddenError: (401, "invalid_api_key"),
    _TooLargeError: (413, "body_too_large"),
    UnknownModelError: (404, "model_not_found"),
    FullError: (429, "queue_full"),
}
_STATUS_OF_EXIT = {
    UsageError.exit_code: (400, "invalid_value"),
    DoesNotFitError.exit_code: (400, "context_length_exceeded"),
    OutOfMemoryError.exit_code: (503, "out_of_memory"),
}


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
    return Starlette(routes=routes, exception_handlers={UncompError: refusal, Exception: refusal})


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
            raise UnknownModelError(f"the model is {named!r:.80}, and {served.model!r} is served")
        length = self._desk.engine.spec.trained_length
        known = {"id": served.model, "object": "model", "created": served.created, "owned_by": "uncomp"}
        known |= {"context_length": length}
        return JSONResponse(known if named else {"object": "list", "data": [known]})

    async def answer(self, request: HttpRequest, *, plain: bool) -> Response:
        """An answer, whole or as it comes; what is refused before its first word has a status of its own."""
        self._admit(request)
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            raise UsageError("the body is no application/json", hint="send Content-Type: application/json")
        data = parse_object(await _body(request, self._served.body_bytes))
        wanted = parse(data, self._served.usual, model=self._served.model, plain=plain)
        heard: asyncio.Queue[Said] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(said: Said) -> None:
            loop.call_soon_threadsafe(heard.put_nowait, said)

        ticket = Ticket(wanted, tell)
        self._desk.submit(ticket)
        try:
            first = await _heard(request, heard)
            replies = Replies(wanted, self._served.model)
            if wanted.streams:
                stream = _events(wanted, ticket, first, heard, replies)
                return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
            return JSONResponse(await _whole(request, first, heard, replies))
        except BaseException:
            ticket.left = True
            raise

    def _admit(self, request: HttpRequest) -> None:
        """Raise for who has not the key, and without one for who does not mean this machine."""
        if self._served.key is not None:
            given = request.headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode(), self._served.key.encode()):
                raise _ForbiddenError("the key is missing or wrong", hint="send Authorization: Bearer KEY")
        elif (request.url.hostname or "") not in LOCAL_HOSTS:
            raise _ForbiddenError(f"the host is {request.url.hostname!r:.80}", hint="ask http://127.0.0.1")


async def _body(request: HttpRequest, most_bytes: int) -> bytes:
    """A request's body. Raises for more than `most_bytes` before they are read."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > most_bytes:
            raise _TooLargeError(
                f"the body has more than {most_bytes / 2**20:,.0f} MiB", hint="save the document, and name its cache"
            )
    return bytes(body)


async def _heard(request: HttpRequest, heard: "asyncio.Queue[Said]") -> Said:
    """What is told next, but for remarks. Raises ConnectionError when the client has left, or what was refused."""
    while True:
        try:
            said = await asyncio.wait_for(heard.get(), _LISTEN_S)
        except TimeoutError:
            if await request.is_disconnected():
                raise ConnectionError("the client has left") from None
            continue
        if isinstance(said, Refused):
            raise said.error
        if isinstance(said, (Piece, Done)):
            return said


async def _whole(request: HttpRequest, first: Said, heard: "asyncio.Queue[Said]", replies: Replies) -> dict[str, Any]:
    """The answer at its end."""
    texts, said = list[str](), first
    while not isinstance(said, Done):
        if isinstance(said, Piece):
            texts.append(said.text)
        said = await _heard(request, heard)
    return replies.whole(said, "".join(texts), finish_reason(said))


async def _events(
    wanted: Wanted, ticket: Ticket, first: Said, heard: "asyncio.Queue[Said]", replies: Replies
) -> AsyncIterator[str]:
    """The answer as it comes; what is refused in the middle is told as an object of its own."""
    said, is_first = first, True
    try:
        while True:
            if isinstance(said, Piece):
                yield _event(replies.piece(said.text, first=is_first))
                is_first = False
            elif isinstance(said, Done):
                for each in replies.last(said, finish_reason(said)):
                    yield _event(each)
                break
            elif isinstance(said, Refused):
                yield _event(_refused(said.error)[1])
                break
            said = await heard.get()
        yield "data: [DONE]\n\n"
    finally:
        ticket.left = True


def _event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n"


async def refusal(request: HttpRequest, error: Exception) -> Response:
    """An error as OpenAI's clients read it."""
    status, data = _refused(error)
    return JSONResponse(data, status, headers={"Retry-After": "5"} if status in (429, 503) else {})


def _refused(error: Exception) -> tuple[int, dict[str, Any]]:
    """Status and body of an error."""
    failure = failure_of(error)
    known = next((found for kind, found in _STATUS.items() if isinstance(error, kind)), None)
    status, code = known or _STATUS_OF_EXIT.get(failure.exit_code, (500, "failed"))
    message = failure.message if failure.hint is None else f"{failure.message} ({failure.hint})"
    kind = "server_error" if status >= HTTPStatus.INTERNAL_SERVER_ERROR else "invalid_request_error"
    return status, {"error": {"message": message, "type": kind, "param": None, "code": code}}
