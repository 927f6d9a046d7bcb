import asyncio
import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from serving.connection import HEAD_MAX_BYTES, Limits, limited
from serving.problems import Problem

SHORT_S = 0.3
LONG_S = 60.0  # as good as no limit, and how long a test waits for what must end
GET = b"GET /get HTTP/1.1\r\nhost: x\r\n\r\n"
POST = b"POST /count HTTP/1.1\r\nhost: x\r\n"
CHUNKED = POST + b"transfer-encoding: chunked\r\n\r\n"
UPGRADE = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAAB\r\n"
BIG = 50_000_000


class App:
    """Answers `/count` with the body's length, `/wait` late, `/long?<bytes>` at length, and all else with its path; by
    ASGI's messages, or where it may in one piece."""

    def __init__(self, *, pieces: bool) -> None:
        self.left, self.pieces = 0, pieces
        self.read_whole, self.sent_whole = 0, 0
        self.alone: list[bool] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = scope.pop("exchange") if self.pieces else None
        if exchange:
            self.alone.append(exchange.alone)
        answer = scope["path"].encode()
        if answer == b"/count":
            body = exchange.body() if exchange else None
            self.read_whole += body is not None
            answer = b"%d bytes" % (await self._count(receive) if body is None else len(body))
        elif answer == b"/wait":
            await asyncio.sleep(0.5)
        elif answer == b"/long":
            answer = b"x" * int(scope["query_string"])
        if exchange and exchange.answer(200, b"content-length: %d\r\n" % len(answer), answer):
            self.sent_whole += 1
            return
        headers = [(b"content-length", b"%d" % len(answer))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    async def _count(self, receive: Receive) -> int:
        length, more = 0, True
        while more:
            message = await receive()
            self.left += message["type"] == "http.disconnect"
            length += len(message.get("body", b""))
            more = message.get("more_body", False)
        return length


class Served:
    """A server with this protocol, in a thread."""

    def __init__(self, *, pieces: bool, read_s: float, write_s: float, keep_alive_s: float, most: int) -> None:
        self.app = App(pieces=pieces)
        self.refused: list[str] = []
        config = uvicorn.Config(
            self.app,
            port=0,
            loop="uvloop",
            http=limited(Limits(read_s, write_s, most, self.refused.append)),
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            timeout_keep_alive=keep_alive_s,  # the loop takes parts of a second
        )
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)

    @property
    def port(self) -> int:
        return self.server.servers[0].sockets[0].getsockname()[1]

    @property
    def connected(self) -> int:
        return len(self.server.server_state.connections)

    def connect(self, receive_buffer: int = 0) -> socket.socket:
        connection = socket.socket()
        connection.settimeout(LONG_S)
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        connection.connect(("127.0.0.1", self.port))
        return connection

    def talk(self, *pieces: bytes, pause_s: float = 0.05) -> bytes:
        """What comes back until the server closes the connection."""
        with self.connect() as connection:
            for piece in pieces:
                with contextlib.suppress(OSError):  # it is closed already
                    connection.sendall(piece)
                time.sleep(pause_s)
            return rest(connection)


Serve = Callable[..., Served]


@pytest.fixture(params=[False, True], ids=["messages", "one piece"])
def serve(request: pytest.FixtureRequest) -> Iterator[Serve]:
    """Starts a server, without limits but those that a test gives."""
    started: list[Served] = []

    def start(
        *, read_s: float = LONG_S, write_s: float = LONG_S, keep_alive_s: float = LONG_S, most: int = 1_000
    ) -> Served:
        served = Served(pieces=request.param, read_s=read_s, write_s=write_s, keep_alive_s=keep_alive_s, most=most)
        started.append(served)
        served.thread.start()
        until(lambda: served.server.started)
        return served

    yield start
    for served in started:
        served.server.should_exit = True
    for served in started:
        served.thread.join(LONG_S)
        assert not served.thread.is_alive()


def until(happens: Callable[[], bool]) -> None:
    """Wait for what must happen."""
    end = time.monotonic() + LONG_S
    while not happens():
        assert time.monotonic() < end
        time.sleep(0.01)


def rest(connection: socket.socket) -> bytes:
    """What still comes, until the server closes the connection."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(1_000_000):
            received += piece
    return received


def answers(received: bytes) -> list[tuple[int, dict[str, str], bytes]]:
    """Status, headers and body of each answer."""
    found = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.split(": ", 1) for line in lines)
        length = int(headers["content-length"])
        assert len(received) >= length
        found.append((int(first.split()[1]), headers, received[:length]))
        received = received[length:]
    return found


def bodies(received: bytes) -> list[bytes]:
    assert {status for status, _, _ in answers(received)} <= {200}
    return [body for _, _, body in answers(received)]


def problem(answer: tuple[int, dict[str, str], bytes], status: int) -> Any:
    """The problem document that closes a connection."""
    assert answer[0] == status
    assert answer[1]["content-type"] == "application/problem+json"
    assert answer[1]["connection"] == "close"
    document = json.loads(answer[2])
    assert document["status"] == status
    assert document["instance"] == f"urn:request:{answer[1]['x-request-id']}"
    return document


def test_a_connection_that_sends_nothing_is_closed(serve: Serve) -> None:
    assert serve(read_s=SHORT_S, keep_alive_s=SHORT_S).talk() == b""


def test_a_new_connection_may_be_silent_where_idle_ones_are_closed_at_once(serve: Serve) -> None:
    assert bodies(serve(keep_alive_s=0).talk(b"", GET, pause_s=0.2)) == [b"/get"]


@pytest.mark.parametrize("begun", [b"G", b"GET /get HT", GET[:-1], b"GET / HTTP/1.1\r\nx: a"])
def test_a_head_that_does_not_go_on_is_408(serve: Serve, begun: bytes) -> None:
    served = serve(read_s=SHORT_S)
    [answer] = answers(served.talk(begun))
    assert problem(answer, 408)["detail"] == "expected the whole head within 0.3 seconds"
    assert served.refused == [Problem(408, "").reason]


def test_a_head_that_comes_byte_by_byte_is_408(serve: Serve) -> None:
    served = serve(read_s=SHORT_S)
    with served.connect() as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nx: ")
        connection.settimeout(0.02)
        received = b""
        while not received:
            connection.sendall(b"a")
            with contextlib.suppress(TimeoutError):
                received = connection.recv(65536)
    problem(answers(received)[0], 408)


def test_a_second_head_has_no_more_time_than_the_first(serve: Serve) -> None:
    served = serve(read_s=SHORT_S)
    first, second = answers(served.talk(GET, GET[:6], GET[6:9]))
    assert first[2] == b"/get"
    problem(second, 408)


def test_the_beginning_of_a_head_behind_a_whole_one_is_waited_for_no_longer_than_an_idle_client(serve: Serve) -> None:
    assert bodies(serve(keep_alive_s=SHORT_S).talk(GET + GET[:9])) == [b"/get"]


@pytest.mark.parametrize("stray", [b"\r\n", b"a", b"\r\n\r\n"])
def test_bytes_that_begin_no_request_do_not_keep_a_connection(serve: Serve, stray: bytes) -> None:
    served = serve(read_s=SHORT_S)
    body_to_come = b"GET /get HTTP/1.1\r\ncontent-length: 1000\r\n\r\n" if stray == b"a" else GET
    with served.connect() as connection:
        connection.sendall(body_to_come)
        until(lambda: served.server.server_state.total_requests == 1)
        with contextlib.suppress(OSError):
            while served.connected:
                connection.sendall(stray)
                time.sleep(0.02)
        assert bodies(rest(connection)) == [b"/get"]


def test_a_body_may_take_longer_than_a_head(serve: Serve) -> None:
    served = serve(read_s=SHORT_S)
    length = b"content-length: 12\r\nconnection: close\r\n\r\n"
    assert bodies(served.talk(POST + length, *[b"ab"] * 6, pause_s=SHORT_S / 2)) == [b"12 bytes"]
    pieces = [
        POST + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n",
        *[b"2\r\n", b"ab\r\n"] * 3,
        b"0\r\n\r\n",
    ]
    assert bodies(served.talk(*pieces, pause_s=SHORT_S / 2)) == [b"6 bytes"]


def test_what_is_left_of_the_body_of_an_answered_request_is_skipped(serve: Serve) -> None:
    length = 10 * HEAD_MAX_BYTES
    head = b"POST /post HTTP/1.1\r\ncontent-length: %d\r\n\r\n" % length
    last = GET.replace(b"host: x", b"connection: close")
    assert bodies(serve().talk(head, *[b"x" * HEAD_MAX_BYTES] * 10, last)) == [b"/post", b"/get"]


def test_a_client_that_reads_gets_a_long_answer_whole(serve: Serve) -> None:
    request = b"GET /long?%d HTTP/1.1\r\nconnection: close\r\n\r\n" % BIG
    assert bodies(serve().talk(request)) == [b"x" * BIG]


def test_a_client_that_does_not_read_its_answer_is_cut_off(serve: Serve) -> None:
    served = serve(write_s=SHORT_S)
    with served.connect() as connection:
        connection.sendall(b"GET /long?%d HTTP/1.1\r\n\r\n" % BIG)
        until(lambda: served.server.server_state.total_requests == 1)
        until(lambda: served.connected == 0)
        assert len(rest(connection)) < BIG


def test_a_client_that_reads_its_answer_drop_by_drop_is_cut_off(serve: Serve) -> None:
    served = serve(write_s=1)
    with served.connect(receive_buffer=65_536) as connection:
        connection.sendall(b"GET /long?%d HTTP/1.1\r\n\r\n" % BIG)
        until(lambda: served.server.server_state.total_requests == 1)
        while served.connected:
            connection.recv(10_000)
            time.sleep(0.01)
    assert served.refused == ["slow_reader"]


def test_a_client_that_has_read_its_answer_may_stay(serve: Serve) -> None:
    served = serve(write_s=2)
    with served.connect() as connection:
        connection.sendall(b"GET /long?4000000 HTTP/1.1\r\n\r\n")
        received = 0
        while received < 4_000_000:
            received += len(connection.recv(1_000_000))
        time.sleep(2.2)
        connection.sendall(GET)
        assert connection.recv(65536).endswith(b"/get")


def test_a_client_that_left_is_not_counted_as_slow(serve: Serve) -> None:
    served = serve(write_s=1)
    with served.connect() as connection:
        connection.sendall(b"GET /long?%d HTTP/1.1\r\n\r\n" % BIG)
        until(lambda: served.server.server_state.total_requests == 1)
    until(lambda: served.connected == 0)
    time.sleep(1.2)
    assert served.refused == []


@pytest.mark.parametrize("header", [b"connection: close", b"connection: keep-alive"])
def test_answers_of_any_length_that_nobody_reads_are_not_kept(serve: Serve, header: bytes) -> None:
    served = serve(write_s=SHORT_S, keep_alive_s=SHORT_S)
    connections = [served.connect(receive_buffer=1) for _ in range(40)]
    for count, connection in enumerate(connections):
        connection.sendall(b"GET /long?%d HTTP/1.1\r\n%b\r\n\r\n" % (10_000 + 50_000 * count, header))
    until(lambda: served.server.server_state.total_requests == len(connections))
    until(lambda: served.connected == 0)
    for connection in connections:
        connection.close()


def test_pipelined_requests_are_answered_in_order(serve: Serve) -> None:
    last = GET.replace(b"host: x", b"connection: close")
    served = serve(read_s=SHORT_S)
    pipelined = b"GET /wait HTTP/1.1\r\n\r\n" + GET + POST + b"content-length: 2\r\n\r\nab" + last
    assert bodies(served.talk(pipelined)) == [b"/wait", b"/get", b"2 bytes", b"/get"]
    assert served.refused == []
    app = served.app
    assert (app.read_whole, app.sent_whole) == ((1, 3) if app.pieces else (0, 0))  # the last one ends its connection


def test_an_answer_in_one_piece_is_the_one_that_goes_by_messages(serve: Serve) -> None:
    asked = POST + b"content-length: 2\r\n\r\nab"
    served = serve()
    found = answers(served.talk(asked + asked.replace(b"host: x", b"connection: close")))
    for _, headers, _ in found:
        assert headers.pop("server") == "uvicorn"
        assert headers.pop("date").endswith("GMT")
    assert found == [
        (200, {"content-length": "7"}, b"2 bytes"),
        (200, {"content-length": "7", "connection": "close"}, b"2 bytes"),
    ]


@pytest.mark.parametrize("serve", [True], indirect=True)
def test_a_request_is_alone_where_no_other_is_under_way(serve: Serve) -> None:
    served = serve()
    with served.connect() as one, served.connect() as other:
        one.sendall(GET.replace(b"/get", b"/wait"))
        until(lambda: served.app.alone == [True])
        other.sendall(GET)
        until(lambda: served.app.alone == [True, False])
        answers(one.recv(65536))
        until(lambda: not served.server.server_state.tasks)
        other.sendall(GET)
        until(lambda: served.app.alone == [True, False, True])


def test_an_answer_to_who_is_still_sending_does_not_go_in_one_piece(serve: Serve) -> None:
    served = serve()
    with served.connect() as connection:
        connection.sendall(POST.replace(b"/count", b"/wait") + b"content-length: 5\r\n\r\nab")
        assert connection.recv(1_000).endswith(b"/wait")
        connection.sendall(b"cde" + GET)
        assert connection.recv(1_000).endswith(b"/get")
    assert served.app.sent_whole == served.app.pieces


def test_one_connection_serves_for_longer_than_every_limit(serve: Serve) -> None:
    served = serve(read_s=1, write_s=1, keep_alive_s=1)
    end = time.monotonic() + 4
    with served.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        asked = 0
        while time.monotonic() < end or asked < 30:
            whole = POST + b"x: " + b"a" * 10_000 + b"\r\ncontent-length: 2\r\n\r\nab"
            for piece in ([whole], [whole[:-2], whole[-2:]], [whole[:9_000], whole[9_000:]])[asked % 3]:
                connection.sendall(piece)
                time.sleep(0.02)  # or the pieces come as one
            assert b"2 bytes" in connection.recv(65536)
            asked += 1
    assert served.refused == []


@pytest.mark.parametrize(
    "given",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",  # TLS
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",  # HTTP/2
        b"GET /\xff HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nno header\r\n\r\n",
        b"CONNECT x:80 HTTP/1.1\r\nhost: x\r\n\r\n",
        POST + b"content-length: 3\r\ncontent-length: 4\r\n\r\nabcd",
        POST + b"content-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        POST + b"content-length: -1\r\n\r\n",
        CHUNKED + b"zz\r\n",
        CHUNKED + b"3\r\nabc\r\nzz\r\n",
    ],
)
def test_what_is_no_http_is_400(serve: Serve, given: bytes) -> None:
    served = serve()
    [answer] = answers(served.talk(given))
    assert problem(answer, 400)["detail"] == "expected a request as HTTP/1.1 has it"
    assert served.refused == [Problem(400, "").reason]


def test_an_app_hears_that_its_request_was_malformed_in_its_body(serve: Serve) -> None:
    served = serve()
    served.talk(CHUNKED, b"3\r\nabc\r\n", b"zz\r\n")
    until(lambda: served.app.left == 1)


def test_nonsense_behind_a_request_waits_for_its_answer_and_gets_none(serve: Serve) -> None:
    served = serve()
    [(status, headers, body)] = answers(served.talk(b"GET /wait HTTP/1.1\r\n\r\nnonsense\r\n\r\n"))
    assert (status, body, headers["connection"]) == (200, b"/wait", "close")


@pytest.mark.parametrize("name", [b"x", b"x" * HEAD_MAX_BYTES])
def test_a_head_that_does_not_end_is_431(serve: Serve, name: bytes) -> None:
    served = serve()
    [answer] = answers(served.talk(b"GET / HTTP/1.1\r\n" + name, b": " + b"a" * HEAD_MAX_BYTES))
    assert problem(answer, 431)["detail"] == "expected a head, or trailers, of at most 65536 bytes"


def test_empty_lines_without_end_are_431(serve: Serve) -> None:
    problem(answers(serve().talk(b"\r\n" * HEAD_MAX_BYTES))[0], 431)


@pytest.mark.parametrize("trailer", [b"x: " + b"a" * HEAD_MAX_BYTES, b"x: a\r\n" * HEAD_MAX_BYTES])
def test_trailers_that_do_not_end_are_431(serve: Serve, trailer: bytes) -> None:
    [answer] = answers(serve().talk(CHUNKED + b"1\r\na\r\n0\r\n", trailer, b"x"))
    problem(answer, 431)


def test_trailers_without_end_behind_an_answered_request_close_the_connection(serve: Serve) -> None:
    chunked = CHUNKED.replace(b"/count", b"/post")
    first, second = answers(serve().talk(chunked + b"1\r\na\r\n0\r\n", b"x: " + b"a" * HEAD_MAX_BYTES, b"x"))
    assert first[2] == b"/post"
    problem(second, 431)


def test_a_head_without_end_behind_a_request_waits_for_its_answer_and_gets_none(serve: Serve) -> None:
    pieces = [b"GET /wait HTTP/1.1\r\n\r\n" + GET[:-2] + b"x: ", b"a" * HEAD_MAX_BYTES]
    [(status, headers, body)] = answers(serve().talk(*pieces))
    assert (status, body, headers["connection"]) == (200, b"/wait", "close")


def test_a_body_may_come_in_very_many_chunks(serve: Serve) -> None:
    head = CHUNKED.replace(b"host: x", b"connection: close")
    chunks = [b"1\r\na\r\n" * 1000] * 50
    served = serve()
    assert bodies(served.talk(head, *chunks, b"0\r\nx: trailer\r\n\r\n", pause_s=0.001)) == [b"50000 bytes"]


@pytest.mark.parametrize(
    "pieces",
    [
        [b"content-length: 3\r\n\r\nabc"],
        [b"content-length: 3\r\n\r\n", b"abc"],
        [b"content-length: 3\r\n", b"\r\nab", b"c"],
        [b"transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"],
        [b"transfer-encoding: chunked\r\n\r\n", b"1\r\na\r\n", b"2\r\nbc\r\n", b"0\r\n\r\n"],
    ],
)
def test_a_request_that_asks_for_another_protocol_keeps_its_body(serve: Serve, pieces: list[bytes]) -> None:
    served = serve(read_s=1)
    [(status, headers, body)] = answers(served.talk(POST + UPGRADE + pieces[0], *pieces[1:]))
    assert (status, body, headers["connection"]) == (200, b"3 bytes", "close")
    assert served.refused == []


@pytest.mark.parametrize("upgrade", [UPGRADE, b"connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-key: x\r\n"])
def test_a_request_without_a_body_that_asks_for_another_protocol_is_answered(serve: Serve, upgrade: bytes) -> None:
    assert bodies(serve().talk(GET[:-2] + upgrade + b"\r\n")) == [b"/get"]


def test_a_body_is_never_taken_for_a_request(serve: Serve) -> None:
    request = POST + UPGRADE + b"content-length: %d\r\n\r\n" % len(GET)
    assert bodies(serve().talk(request + GET + GET)) == [b"%d bytes" % len(GET)]
    assert bodies(serve().talk(request, GET, GET)) == [b"%d bytes" % len(GET)]
    assert bodies(serve().talk(request + GET + POST + b"content-length: 2\r\n\r\nab")) == [b"%d bytes" % len(GET)]


def test_clients_too_many_are_503_and_those_who_are_connected_are_answered(serve: Serve) -> None:
    served = serve(most=2)
    with served.connect() as first:
        with served.connect():
            until(lambda: served.connected == 2)
            [answer] = answers(served.talk())
            assert problem(answer, 503)["detail"].startswith("more clients are connected than the service takes")
            assert answer[1]["retry-after"] == "1"
            first.sendall(GET)
            assert re.search(rb" 200 .*/get$", first.recv(65536), re.DOTALL)
        until(lambda: served.connected == 1)
        assert bodies(served.talk(GET.replace(b"host: x", b"connection: close"))) == [b"/get"]


def test_a_stop_waits_for_no_client_that_is_slow(serve: Serve) -> None:
    served = serve(read_s=SHORT_S, write_s=SHORT_S)
    with served.connect(), served.connect() as begun, served.connect(receive_buffer=1) as unread:
        begun.sendall(GET[:9])
        unread.sendall(b"GET /long?%d HTTP/1.1\r\n\r\n" % BIG)
        until(lambda: served.server.server_state.total_requests == 1)
        served.server.should_exit = True
        served.thread.join(LONG_S)
        assert not served.thread.is_alive()
