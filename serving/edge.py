"""What is the same for every request: its id, trace, limits, metrics, log line and last resort. Change here to do
something once for all routes.

The routes that score are answered here, before FastAPI's router: routing costs as much as the model. The same handlers
stand in the FastAPI app too, which describes them and answers when it is asked without this wrapper.
"""

import itertools
import os
import re
from collections.abc import Mapping
from functools import cache
from time import perf_counter

from msgspec import UNSET
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.admission import CLIENT_LEFT, Admission, ClientLeft, Endpoint
from serving.exchange import Exchange, header_lines
from serving.problems import Answer
from serving.protocols import Call
from serving.service import Service
from serving.telemetry import Span, Tracing

_ID_MAX = 128
_ID_FOREIGN = re.compile(rb"[^A-Za-z0-9._-]")
# Answers are data, for whoever asked: no browser is to guess their type, keep them, or show them inside another page.
_SECURITY = (
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"x-frame-options", b"SAMEORIGIN"),
    (b"referrer-policy", b"no-referrer"),
)


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


class Edge:
    """The ASGI application that the server runs."""

    def __init__(
        self, app: ASGIApp, lanes: Mapping[str, Endpoint], *, service: Service, admission: Admission, tracing: Tracing
    ) -> None:
        self.app = app
        self.service = service
        self._lanes = lanes  # by path: what answers a POST
        self._metrics = service.metrics
        self._admission = admission
        self._tracing = tracing
        self._ids = Ids()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        begun = perf_counter()
        exchange = scope.pop("exchange", None)  # which knows the scope: else only the collector would end the two
        headers = dict(scope["headers"])
        call = Call(self._ids.of(headers), headers, alone=exchange is not None and exchange.alone)
        span = self._tracing.begin(scope["method"], scope["path"], headers)
        self._metrics.in_flight += 1
        route, status, rows = "other", CLIENT_LEFT, 0
        try:
            lane = self._lanes.get(scope["path"]) if scope["method"] == "POST" else None
            if lane is None:
                scope["call"] = call
                route, status = await self._forward(scope, receive, send, call, span)
            else:
                route = lane.route
                try:
                    answer, rows = await self._admission.answer(lane, call, receive, exchange)
                except ClientLeft:
                    raise
                except Exception as error:
                    answer = self.service.refuse(error, call)
                status = answer.status
                await _send(send, exchange, answer, call, span)
        except ClientLeft:
            pass
        finally:
            self._metrics.in_flight -= 1
            seconds = perf_counter() - begun
            self._metrics.answered(route, status, seconds)
            model = call.model or self.service.live.release.hash[:12]
            trace_id = span.trace_id if span else UNSET
            ms = round(1e6 * seconds) / 1000  # with digits, `round` would print the number and read it again
            self.service.log.request(call.id, model, call.holder, route, status, ms, rows, trace_id)
            if span:
                span.end(route, status)

    def close(self) -> None:
        """Write and send what waits."""
        self.service.close()
        self._tracing.stop()

    async def _forward(
        self, scope: Scope, receive: Receive, send: Send, call: Call, span: Span | None
    ) -> tuple[str, int]:
        """Let FastAPI answer; the route's name, and the status that it sent."""
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *_named(call, span), *_SECURITY]}
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except Exception:  # FastAPI has had it answered, and raises it once more
            return _route(scope), 500
        return _route(scope), status


def _route(scope: Scope) -> str:
    """The route that FastAPI found, as its template; never the path, of which there are endlessly many."""
    return getattr(scope.get("route"), "path", "other")


def _named(call: Call, span: Span | None) -> list[tuple[bytes, bytes]]:
    named = [(b"x-request-id", call.id.encode())]
    return named if span is None else [*named, (b"traceparent", span.traceparent)]


@cache
def _lines(media_type: bytes) -> bytes:
    """The headers of every answer of a type."""
    return header_lines(((b"content-type", media_type), *_SECURITY))


async def _send(send: Send, exchange: Exchange | None, answer: Answer, call: Call, span: Span | None) -> None:
    if exchange and span is None and not answer.headers:
        own = b"content-length: %d\r\nx-request-id: %b\r\n" % (len(answer.body), call.id.encode())
        if exchange.answer(answer.status, _lines(answer.media_type) + own, answer.body):
            return
    call.asked, call.body = None, b""  # who reads slowly keeps no rows
    headers = [
        (b"content-type", answer.media_type),
        (b"content-length", b"%d" % len(answer.body)),
        *_named(call, span),
        *_SECURITY,
        *answer.headers,
    ]
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
