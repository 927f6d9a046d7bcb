"""A request and its answer in one piece each. Change here to pass them between uvicorn and the routes otherwise.

ASGI hands over a body, an answer's head and its body by messages, and uvicorn looks at each header of an answer twice:
that costs a prediction an eighth of its time. Where a request has come whole and its answer is made whole, what the
scope has as `exchange` does without; where not, or under another server, the messages do as ever.
"""

import asyncio
from collections.abc import Iterable, Sized
from functools import lru_cache
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle


class Whole:
    """A transport that sends an answer's head with its body: one system call, and one packet, instead of two."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport, self._loop = transport, loop
        self._head = b""
        self.is_closing = transport.is_closing  # asked at each request, and `__getattr__` takes its time

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        """Send data, behind what waits; or let it wait for what comes in the same turn of the loop."""
        if self._head:
            self.write_now(data)
        elif data:
            self._head = data
            self._loop.call_soon(self.write, b"")

    def write_now(self, data: bytes) -> None:
        """Send data, behind what waits."""
        head, self._head = self._head, b""
        self._transport.write(head + data)

    def close(self) -> None:
        """Send what waits, and close."""
        if self._head:
            self.write_now(b"")
        self._transport.close()


class Exchange:
    """One request, past ASGI's messages."""

    def __init__(self, cycle: RequestResponseCycle, under_way: Sized) -> None:
        self._cycle, self._under_way = cycle, under_way

    @property
    def alone(self) -> bool:
        """Whether no other request is under way."""
        return len(self._under_way) == 1

    def body(self) -> bytes | None:
        """The request's body, None where not all of it is here; what `receive` does at once."""
        cycle = self._cycle
        if cycle.more_body or cycle.disconnected:
            return None
        cycle.flow.resume_reading()
        cycle.message_event.clear()
        body, cycle.body = bytes(cycle.body), bytearray()
        return body

    def answer(self, status: int, lines: bytes, body: bytes) -> bool:
        """Send an answer, its headers as they stand on the wire; False where it has to go by messages: to a client that
        is still sending, that reads slowly, that has left, or whose connection ends."""
        cycle = self._cycle
        if cycle.more_body or cycle.disconnected or cycle.flow.write_paused or not cycle.keep_alive:
            return False
        own = _header_lines(tuple(cycle.default_headers))
        cycle.response_started = cycle.response_complete = True
        cycle.transport.write_now(b"%b%b%b\r\n%b" % (STATUS_LINE[status], own, lines, body))  # type: ignore[attr-defined]
        cycle.message_event.set()
        cycle.on_response()
        return True


def header_lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Headers as they stand on the wire."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


_header_lines = lru_cache(1)(header_lines)  # the server's own change once a second
