"""Who is let in, with how much: keys, requests and bytes under way, and bodies in time. Change here to let in others.

What is over a limit is refused at once, so that what is let in is answered soon.
"""

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, NamedTuple, cast

from starlette.types import Receive

from serving.access import Access, Scope
from serving.exchange import Exchange
from serving.problems import Answer, Problem
from serving.protocols import Call
from serving.settings import Settings

Handler = Callable[[Call], Coroutine[Any, Any, tuple[Answer, int]]]

_DIGITS = 18  # of a length that is worth reading
CLIENT_LEFT = 499  # what nginx logs then; nobody receives it
_HELD = 65_536  # bytes that uvicorn may hold of any connection
_LATE = "the body is late"
_CLOSE = (b"connection", b"close")
_RETRY = (b"retry-after", b"1")


class ClientLeft(Exception):
    """The client closed the connection before its body was complete."""


class Endpoint(NamedTuple):
    """A route that takes a body: its name in metrics, the scope that a key needs (where None, what answers sees to it),
    and what answers, with the number of rows scored."""

    route: str
    scope: Scope | None
    handle: Handler
    max_bytes: int | None = None  # where it takes less than others


class Admission:
    """The limits of the service, and what of them is taken."""

    def __init__(self, settings: Settings, access: Access) -> None:
        self.access = access
        self.taken, self.bytes_taken = 0, 0
        self._most, self._most_bytes = settings.max_in_flight, settings.max_bytes_in_flight
        self._max_bytes = settings.max_body_bytes
        self._seconds = settings.read_timeout_s

    async def answer(
        self, endpoint: Endpoint, call: Call, receive: Receive, exchange: Exchange | None = None
    ) -> tuple[Answer, int]:
        """What the endpoint answers; Problem where the request is not let in, ClientLeft where its body ends early."""
        if endpoint.scope is not None:
            call.holder = self.access.check(call.headers, endpoint.scope)
        most = endpoint.max_bytes or self._max_bytes
        size = max(0, _size(call.headers, most) - _HELD)
        if self.taken >= self._most or (self.bytes_taken and self.bytes_taken + size > self._most_bytes):
            raise _full()
        self.bytes_taken += size
        try:
            whole = exchange.body() if exchange else None
            call.body = body = await self._read(receive, most) if whole is None else whole
            if len(body) > most:
                raise _too_long(most)
            if self.taken >= self._most:  # once more: whoever is slow with a body has kept nobody else out meanwhile
                raise _full()
            self.taken += 1
            try:
                return await endpoint.handle(call)
            finally:
                self.taken -= 1
        except asyncio.CancelledError:  # the service stops, and has waited long enough
            raise Problem(503, "the service has stopped; ask again", headers=(_RETRY,)) from None
        finally:
            self.bytes_taken -= size

    async def _read(self, receive: Receive, most: int) -> bytes:
        # What asyncio.timeout does, at a third of its cost to a request whose body is already there.
        reading = cast("asyncio.Task[Any]", asyncio.current_task())
        alarm = asyncio.get_running_loop().call_later(self._seconds, reading.cancel, _LATE)
        try:
            return await _all(receive, most)
        except asyncio.CancelledError as error:
            if error.args != (_LATE,):
                raise
            reading.uncancel()
            raise Problem(408, f"expected the whole body within {self._seconds:g} seconds", headers=(_CLOSE,)) from None
        finally:
            alarm.cancel()


def _size(headers: Mapping[bytes, bytes], most: int) -> int:
    """The bytes that the body takes: as declared, or the most that it may have."""
    declared = headers.get(b"content-length", b"%d" % most)
    if not declared.isdigit() or len(declared) > _DIGITS or int(declared) > most:
        raise _too_long(most)
    return int(declared)


async def _all(receive: Receive, most: int) -> bytes:
    more = True
    chunks = []
    length = 0
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientLeft
        body, more = message.get("body", b""), message.get("more_body", False)
        length += len(body)
        if length > most:
            raise _too_long(most)
        chunks.append(body)
    return b"".join(chunks)


def _full() -> Problem:
    return Problem(503, "more requests are under way than the service takes; ask again", headers=(_RETRY,))


def _too_long(most: int) -> Problem:
    return Problem(413, f"expected a body of at most {most} bytes", headers=(_CLOSE,))
