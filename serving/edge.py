"""What is the same for every request: its id, trace, limits, metrics, log line and last resort. Change here to do
something once for all routes.

The routes that score are answered here, before FastAPI's router: routing costs as much as the model. The same handlers
stand in the FastAPI app too, which describes them and answers when it is asked without this wrapper.
"""

import asyncio
import itertools
import os
import re
from collections.abc import Mapping
from time import perf_counter
from typing import Any, cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.problems import Answer, Problem
from serving.protocols import Call
from serving.service import Handler, Service
from serving.settings import Settings
from serving.telemetry import Span, Tracing

_ID_MAX = 128
_DIGITS = 18  # of a length that is worth reading
_ID_FOREIGN = re.compile(rb"[^A-Za-z0-9._-]")
_LATE = "the body is late"
_CLIENT_LEFT = 499  # what nginx logs then; nobody receives it


class ClientLeft(Exception):
    """The client closed the connection before its body was complete."""


class Ids:
    """Request ids: the client's where it sent one, else a prefix of this process and a count."""

    def __init__(self) -> None:
        self._prefix = os.urandom(8).hex()
        self._count = itertools.count(1)

    def of(self, headers: Mapping[bytes, bytes]) -> str:
        """The id of a request."""
        if given := headers.get(b"x-request-id"):
            given = _ID_FOREIGN.sub(b"", given)[:_ID_MAX]
        return given.decode() if given else f"{self._prefix}-{next(self._count)}"


class Bodies:
    """Bodies, read within limits."""

    def __init__(self, settings: Settings) -> None:
        self._max_bytes = settings.max_body_bytes
        self._seconds = settings.read_timeout_s

    async def read(self, headers: Mapping[bytes, bytes], receive: Receive) -> bytes:
        """The whole body; Problem where it is too long or too slow, ClientLeft where it ends early."""
        declared = headers.get(b"content-length", b"0")
        if not declared.isdigit() or len(declared) > _DIGITS or int(declared) > self._max_bytes:
            raise self._too_long()
        # What asyncio.timeout does, at a third of its cost to a request whose body is already there.
        reading = cast("asyncio.Task[Any]", asyncio.current_task())
        alarm = asyncio.get_running_loop().call_later(self._seconds, reading.cancel, _LATE)
        try:
            return await self._all(receive)
        except asyncio.CancelledError as error:
            if error.args != (_LATE,):
                raise
            reading.uncancel()
            detail = f"expected the whole body within {self._seconds:g} seconds"
            raise Problem(408, detail, headers=((b"connection", b"close"),)) from None
        finally:
            alarm.cancel()

    async def _all(self, receive: Receive) -> bytes:
        body, more = b"", True
        chunks = []
        length = 0
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientLeft
            body, more = message.get("body", b""), message.get("more_body", False)
            length += len(body)
            if length > self._max_bytes:
                raise self._too_long()
            chunks.append(body)
        return body if len(chunks) == 1 else b"".join(chunks)

    def _too_long(self) -> Problem:
        return Problem(413, f"expected a body of at most {self._max_bytes} bytes", headers=((b"connection", b"close"),))


class Edge:
    """The ASGI application that the server runs."""

    def __init__(
        self,
        app: ASGIApp,
        lanes: Mapping[str, tuple[str, Handler]],
        *,
        service: Service,
        bodies: Bodies,
        tracing: Tracing,
    ) -> None:
        self.app = app
        self._lanes = lanes  # by path: the route's name in metrics, and what answers a POST
        self._service = service
        self._metrics = service.metrics
        self._bodies = bodies
        self._tracing = tracing
        self._model = service.release.hash[:12]
        self._ids = Ids()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = perf_counter()
        headers = dict(scope["headers"])
        call = Call(self._ids.of(headers), headers)
        span = self._tracing.begin(scope["method"], scope["path"], headers)
        self._metrics.in_flight += 1
        route, status, rows = "other", _CLIENT_LEFT, 0
        try:
            lane = self._lanes.get(scope["path"]) if scope["method"] == "POST" else None
            if lane is None:
                scope["call"] = call
                route, status = await self._forward(scope, receive, send, call, span)
            else:
                route, handle = lane
                answer, rows = await self._answer(handle, call, receive)
                status = answer.status
                await _send(send, answer, call, span)
        except ClientLeft:
            pass
        finally:
            self._metrics.in_flight -= 1
            seconds = perf_counter() - begun
            self._metrics.answered(route, status, seconds)
            self._access(call, span, route=route, status=status, ms=round(1000 * seconds, 3), rows=rows)
            if span:
                span.end(route, status)

    def close(self) -> None:
        """Send the spans that wait."""
        self._tracing.stop()

    async def _answer(self, handle: Handler, call: Call, receive: Receive) -> tuple[Answer, int]:
        try:
            call.body = await self._bodies.read(call.headers, receive)
            return await handle(call)
        except ClientLeft:
            raise
        except Exception as error:
            return self._service.refuse(error, call), 0

    async def _forward(
        self, scope: Scope, receive: Receive, send: Send, call: Call, span: Span | None
    ) -> tuple[str, int]:
        """Let FastAPI answer; the route's name, and the status that it sent."""
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *_named(call, span)]}
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except ClientLeft:
            return _route(scope), _CLIENT_LEFT
        except Exception:  # FastAPI has had it answered, and raises it once more
            return _route(scope), 500
        return _route(scope), status

    def _access(self, call: Call, span: Span | None, **fields: Any) -> None:
        if span:
            fields["trace_id"] = span.trace_id
        self._service.log.line("request", request_id=call.id, model=self._model, **fields)


def _route(scope: Scope) -> str:
    """The route that FastAPI found, as its template; never the path, of which there are endlessly many."""
    return getattr(scope.get("route"), "path", "other")


def _named(call: Call, span: Span | None) -> list[tuple[bytes, bytes]]:
    named = [(b"x-request-id", call.id.encode())]
    return named if span is None else [*named, (b"traceparent", span.traceparent)]


async def _send(send: Send, answer: Answer, call: Call, span: Span | None) -> None:
    headers = [
        (b"content-type", answer.media_type),
        (b"content-length", b"%d" % len(answer.body)),
        *_named(call, span),
        *answer.headers,
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
