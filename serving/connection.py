"""Connections of clients that are slow on purpose, or that speak HTTP as uvicorn does not expect it. Change here to
have more patience with them.

uvicorn waits without end for the first byte of a connection, for the rest of a head, and for a client to read its
answer; a head, and trailers behind a body, may be of any length; and it loses the body of a request that asks for
HTTP/2, as Java's client does unless told otherwise. Its `limit_concurrency` refuses those who are connected when too
many others connect. Bodies have their limits in `serving.admission`. A request that comes whole needs no timer here.
"""

import asyncio
import os
import socket
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import NamedTuple

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serving.exchange import Exchange, Whole, header_lines
from serving.problems import Problem

HEAD_MAX_BYTES = 65_536  # of a head that comes in pieces; a single piece is at most four times as long


class Limits(NamedTuple):
    """How long clients may take, and how many may be connected; `refused` hears, in one word, why one was refused."""

    read_timeout_s: float
    write_timeout_s: float
    max_connections: int
    refused: Callable[[str], None]


def limited(limits: Limits) -> type["Connection"]:
    """The class for `uvicorn.run(http=...)`: a head must be whole, and an answer read, within so many seconds."""
    return type("Limited", (Connection,), {"limits": limits})


class Connection(HttpToolsProtocol):
    """One connection."""

    limits: Limits
    _late: asyncio.TimerHandle | None = None  # runs from the first byte that is of no request under way
    _unread: asyncio.TimerHandle | None = None  # runs while the client has much to read
    _outside = 0  # bytes since the last that ended a request, or were of a body
    _is_body = False  # whether some of those that have just come are

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn has it
        """It may be silent for as long as between two requests."""
        super().connection_made(Whole(transport, self.loop))  # type: ignore[arg-type]  # it is one, as far as is needed
        self.ws_protocol_class = None
        first = max(self.timeout_keep_alive, self.limits.read_timeout_s)
        self.timeout_keep_alive_task = self.loop.call_later(first, self.timeout_keep_alive_handler)
        if sys.platform == "linux":  # whose kernel sees too who reads nothing of a short answer, or of the last one
            milliseconds = round(1000 * self.limits.write_timeout_s)
            transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        if len(self.connections) > self.limits.max_connections:
            self._refuse(503, "more clients are connected than the service takes; come again", (b"retry-after", b"1"))

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended, and its timers with it."""
        super().connection_lost(exc)
        for timer in (self.timeout_keep_alive_task, self._late, self._unread):
            if timer is not None:
                timer.cancel()

    def data_received(self, data: bytes) -> None:
        """Bytes have come: nothing remains to be done where they end a request."""
        self._unset_keepalive_if_required()
        self._is_body = False
        try:
            self.parser.feed_data(data)
        except HttpParserError:
            self._refuse(400, "expected a request as HTTP/1.1 has it")
        except HttpParserUpgrade as upgrade:
            self.data_received(self._head_without_upgrade() + data[upgrade.args[0] :])
            return
        cycle = self.cycle
        if cycle is None or cycle.more_body or cycle.response_complete or cycle.scope is not self.scope:
            self._watch(len(data))
            return
        self._outside = 0
        if self._late is not None:
            self._stop_late()

    def on_headers_complete(self) -> None:
        """A request's head is whole: its route may do without ASGI's messages."""
        super().on_headers_complete()
        if not self._in_head():
            self.scope["exchange"] = Exchange(self.cycle, self.tasks)  # type: ignore[typeddict-unknown-key]  # our own

    def on_body(self, body: bytes) -> None:
        """Bytes are of a body: kept, or skipped where its request is answered."""
        self._is_body = True
        super().on_body(body)

    def pause_writing(self) -> None:
        """The client has much to read."""
        super().pause_writing()
        self._unread = self.loop.call_later(self.limits.write_timeout_s, self._is_unread)

    def resume_writing(self) -> None:
        """It has read most of it."""
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def _head_without_upgrade(self) -> bytes:
        """The head again, as far as a parser for its body alone needs it; nothing may come behind that body.

        httptools takes what follows for another protocol: https://github.com/Kludex/uvicorn/issues/2722
        """
        reader = SimpleNamespace(on_body=self.on_body, on_message_complete=self.on_message_complete)
        self.parser = HttpRequestParser(reader)
        self.cycle.keep_alive, self.cycle.more_body = False, True
        self.cycle.message_event.clear()
        framing = [field for field in self.headers if field[0] in (b"content-length", b"transfer-encoding")]
        return b"POST / HTTP/1.1\r\n" + header_lines([(b"connection", b"close"), *framing]) + b"\r\n"

    def _watch(self, length: int) -> None:
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            self._stop_late()
        elif self._late is None:
            self._late = self.loop.call_later(self.limits.read_timeout_s, self._is_late)
        self._outside = 0 if self._is_body else self._outside + length
        if self._outside > HEAD_MAX_BYTES:
            self._refuse(431, f"expected a head, or trailers, of at most {HEAD_MAX_BYTES} bytes")

    def _in_head(self) -> bool:
        return self.cycle is None or self.cycle.scope is not self.scope

    def _stop_late(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _is_late(self) -> None:
        if self._in_head() and self.scope is not None:
            self._refuse(408, f"expected the whole head within {self.limits.read_timeout_s:g} seconds")
        else:
            self.transport.close()

    def _is_unread(self) -> None:
        self.limits.refused("slow_reader")
        self.transport.abort()

    def _refuse(self, status: int, detail: str, *headers: tuple[bytes, bytes]) -> None:
        """Answer with a problem and close; where another answer is due first, only close behind that."""
        if self.transport.is_closing():
            return
        problem = Problem(status, detail, headers=((b"connection", b"close"), *headers))
        self.limits.refused(problem.reason)
        cycle = self.cycle
        under_way = cycle is not None and not cycle.response_complete
        if under_way and (cycle.response_started or self.pipeline or not cycle.more_body):
            self.flow.pause_reading()
            self.shutdown()
        else:
            self._write(problem)
            self.transport.close()

    def _write(self, problem: Problem) -> None:
        request_id = os.urandom(8).hex()
        answer = problem.answer(request_id)
        headers = (
            *self.server_state.default_headers,
            (b"content-type", answer.media_type),
            (b"content-length", b"%d" % len(answer.body)),
            (b"x-request-id", request_id.encode()),
            *answer.headers,
        )
        self.transport.write(STATUS_LINE[answer.status] + header_lines(headers) + b"\r\n" + answer.body)
