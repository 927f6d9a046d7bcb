"""The running server under more than it can take: requests, bytes, connections, clients that are slow on purpose, and
those who have no key."""

import asyncio
import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import pytest
import uvloop

from tests.serving.made import ROOT, Bundle, Server, command, environment, serving

Made = Callable[[str], Bundle]

LONG_S = 60.0  # how long a test waits for what must happen
MB = 1_000_000
BODY = 10 * MB  # the longest that is let in
_LENGTH = re.compile(rb"^content-length: (\d+)\r?$", re.IGNORECASE | re.MULTILINE)


class Answer(NamedTuple):
    """What came back, after how many seconds."""

    status: int
    head: bytes
    body: bytes
    seconds: float


class Client(asyncio.Protocol):
    """One connection that asks once at a time, and costs little."""

    connected: ClassVar[set[Self]] = set()
    transport: asyncio.Transport

    def __init__(self) -> None:
        self.closed = asyncio.Event()
        self._came = b""
        self._answer: asyncio.Future[tuple[bytes, bytes]] = asyncio.get_running_loop().create_future()
        self._answer.cancel()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.connected.add(self)

    def data_received(self, data: bytes) -> None:
        self._came += data
        self._look()

    def _look(self) -> None:
        head, ended, body = self._came.partition(b"\r\n\r\n")
        length = _LENGTH.search(head) if ended else None
        if length and len(body) >= int(length[1]) and not self._answer.done():
            self._came = b""
            self._answer.set_result((head, body))

    def connection_lost(self, error: Exception | None) -> None:
        self.closed.set()
        self.connected.discard(self)
        if not self._answer.done():
            self._answer.set_exception(error or ConnectionError("closed without an answer"))

    async def ask(self, sent: bytes) -> Answer:
        """The answer to a request; ConnectionError where none comes."""
        begun = perf_counter()
        self._answer = asyncio.get_running_loop().create_future()
        self.transport.write(sent)
        self._look()  # some are answered before they ask
        head, body = await asyncio.wait_for(self._answer, LONG_S)
        return Answer(int(head[9:12]), head, body, perf_counter() - begun)


async def connect(server: Server, **given: Any) -> Client:
    _, client = await asyncio.get_running_loop().create_connection(Client, "127.0.0.1", server.port, **given)
    return client


async def connect_many(server: Server, count: int) -> list[Client]:
    return await asyncio.gather(*(connect(server) for _ in range(count)))


async def ask(server: Server, sent: bytes) -> Answer:
    """The answer to a request on a connection of its own."""
    client = await connect(server)
    try:
        return await client.ask(sent)
    finally:
        client.transport.close()


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run a test, and leave no connection behind."""

    async def tidy() -> None:
        try:
            await work
        finally:
            for client in set(Client.connected):
                client.transport.abort()
            await asyncio.sleep(0.01)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(tidy())


def get(path: str) -> bytes:
    return b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n" % path.encode()


def head(length: int, path: str = "/predict", key: str = "") -> bytes:
    bearer = f"authorization: Bearer {key}\r\n" if key else ""
    return f"POST {path} HTTP/1.1\r\nhost: x\r\n{bearer}content-length: {length}\r\n\r\n".encode()


def asking(rows: list[dict[str, Any]], key: str = "") -> bytes:
    body = json.dumps({"rows": rows}).encode()
    return head(len(body), key=key) + body


async def until(done: Callable[[], Any]) -> None:
    end = time.monotonic() + LONG_S
    while not (await result if asyncio.iscoroutine(result := done()) else result):
        assert time.monotonic() < end, "it did not happen"
        await asyncio.sleep(0.05)


async def figure(server: Server, name: str) -> float:
    """The sum of what has a name, or begins with it."""
    answer = await ask(server, get("/metrics"))
    assert answer.status == 200
    return sum(float(line.split()[-1]) for line in answer.body.decode().splitlines() if line.startswith(name))


async def nothing_under_way(server: Server) -> bool:
    return await figure(server, "serving_in_flight") == 1  # the question itself


async def memory(server: Server) -> float:
    """MB."""
    return await figure(server, "process_resident_memory_bytes") / MB


async def closed_loop(server: Server, sent: bytes, clients: int, until_done: Callable[[], bool]) -> list[Answer]:
    """Clients that ask again once they are answered."""
    answers: list[Answer] = []

    async def again(client: Client) -> None:
        while not until_done():
            answers.append(await client.ask(sent))
        client.transport.close()

    await asyncio.gather(*map(again, await connect_many(server, clients)))
    return answers


async def open_loop(server: Server, sent: bytes, rate: float, seconds: float, clients: int) -> list[Answer]:
    """So many requests a second are due, whatever has become of those before, and take turns on the connections."""
    answers: list[Answer] = []
    due: asyncio.Queue[bool] = asyncio.Queue()

    async def take(client: Client) -> None:
        while await due.get():
            answers.append(await client.ask(sent))
        client.transport.close()

    taking = [asyncio.create_task(take(client)) for client in await connect_many(server, clients)]
    start, count = perf_counter(), 0
    while (passed := perf_counter() - start) < seconds:
        for _ in range(int(passed * rate) - count):
            due.put_nowait(True)
            count += 1
        await asyncio.sleep(0.002)
    while not due.empty():
        due.get_nowait()
    for _ in taking:
        due.put_nowait(False)
    await asyncio.gather(*taking)
    return answers


def after(seconds: float) -> Callable[[], bool]:
    end = perf_counter() + seconds
    return lambda: perf_counter() > end


def statuses(answers: Iterable[Answer]) -> Counter[int]:
    """How many there are of each; what is refused says so as a problem, and when to come again."""
    for answer in answers:
        if answer.status != 200:
            assert b"\r\ncontent-type: application/problem+json" in answer.head
            document = json.loads(answer.body)
            assert document["status"] == answer.status
            assert document["detail"].startswith("more ")
            assert b"\r\nretry-after: 1" in answer.head
    return Counter(answer.status for answer in answers)


def p99(answers: Iterable[Answer]) -> float:
    return float(np.quantile([answer.seconds for answer in answers if answer.status == 200], 0.99))


async def shrink(folder: Path) -> None:
    """Remove the prediction log, again and again, as its manual allows."""
    while True:
        await asyncio.sleep(0.5)
        for segment in folder.glob("*.data/log/*.jsonl"):
            segment.unlink()


def test_at_four_times_the_sustainable_load_requests_are_answered_or_refused_and_nothing_grows(
    made: Made, tmp_path: Path
) -> None:
    bundle = made("binary-onnx")
    sent, seconds, most = asking((bundle.rows() * 6)[:300]), 30.0, 16

    async def overload(server: Server) -> None:
        shrinking = asyncio.create_task(shrink(tmp_path))
        sustained = await closed_loop(server, sent, most, after(3))
        assert statuses(sustained).keys() == {200}
        megabytes = []

        async def watch() -> None:
            while True:  # also the health of a server is told meanwhile, to who was not connected before
                assert (await ask(server, get("/health/live"))).status == 200
                megabytes.append(await memory(server))
                await asyncio.sleep(1)

        watching = asyncio.create_task(watch())
        rate = 4 * len(sustained) / 3
        answers = await open_loop(server, sent, rate, seconds, clients=800)
        watching.cancel()
        shrinking.cancel()
        with suppress(asyncio.CancelledError):
            await watching
        told = statuses(answers)
        assert told.keys() == {200, 503}
        assert told[503] > told[200]
        assert told[200] > 0.1 * len(sustained) / 3 * seconds
        assert p99(answers) < 15 * p99(sustained)
        third = len(megabytes) // 3
        assert max(megabytes[-third:]) < max(megabytes[:third]) + 30
        await until(lambda: nothing_under_way(server))
        again = await closed_loop(server, sent, most, after(1))
        assert statuses(again).keys() == {200}  # who holds as many as are let in holds every one that was taken

    with serving(tmp_path, bundle, SERVING_MAX_IN_FLIGHT=str(most)) as server:
        run(overload(server))


def test_a_crowd_that_never_pauses_is_answered_or_refused_and_keeps_no_newcomer_waiting(
    made: Made, tmp_path: Path
) -> None:
    sent, crowd, newcomers = asking(made("binary-onnx").rows(1)), 256, 128

    async def ask_all(server: Server) -> None:
        left, turns = asyncio.Event(), Counter[str]()

        async def again(client: Client) -> list[Answer]:
            answers = []
            while not left.is_set():
                answers.append(await client.ask(sent))
                turns["crowd"] += 1
            return answers

        clients = await connect_many(server, crowd)
        asked = [asyncio.create_task(again(client)) for client in clients]
        await until(lambda: turns["crowd"] > 10 * crowd)
        before = turns["crowd"]
        told = await asyncio.gather(*(ask(server, get("/health/live")) for _ in range(newcomers)))
        meanwhile = turns["crowd"] - before
        left.set()
        assert {answer.status for answer in told} == {200}
        assert meanwhile < crowd * newcomers / 3  # each would wait for a turn of the crowd, were one let in each turn
        answers = [answer for some in await asyncio.gather(*asked) for answer in some]
        assert statuses(answers).keys() == {200, 503}

    with serving(tmp_path, made("binary-onnx")) as server:
        run(ask_all(server))


@pytest.mark.parametrize("length", ["declared", "chunked"])
def test_bodies_that_are_too_long_together_are_refused_at_once_and_the_others_kept_in_bounds(
    made: Made, tmp_path: Path, length: str
) -> None:
    """Sixty bodies of 10 MB, of which a room of 40 MB takes four; who has a short body is not in their way."""
    short = asking(made("binary-onnx").rows(1))
    body = short.partition(b"\r\n\r\n")[2].ljust(BODY)
    begun, rest = body[:-1000], body[-1000:]
    if length == "chunked":
        first, end = (
            head(0).replace(b"content-length: 0", b"transfer-encoding: chunked"),
            b"3e8\r\n%b\r\n0\r\n\r\n" % rest,
        )
        first += b"%x\r\n%b\r\n" % (len(begun), begun)
    else:
        first, end = head(BODY) + begun, rest

    async def ask_sixty(server: Server, before: float) -> None:
        clients = await connect_many(server, 60)
        asked = [asyncio.create_task(client.ask(first)) for client in clients]
        await until(lambda: sum(task.done() for task in asked) == 56)
        assert statuses([task.result() for task in asked if task.done()]).keys() == {503}
        assert (await ask(server, short)).status == 200
        assert await memory(server) < before + 4 * BODY / MB + 60
        for client, task in zip(clients, asked, strict=True):
            if not task.done():
                client.transport.write(end)
        assert statuses(await asyncio.gather(*asked)) == {200: 4, 503: 56}
        for client in clients:
            client.transport.close()
        await until(lambda: nothing_under_way(server))

    async def ask_all(server: Server) -> None:
        assert (await ask(server, short)).status == 200
        before = await memory(server)
        await ask_sixty(server, before)
        await ask_sixty(server, before)  # what was taken has been given back

    with serving(tmp_path, made("binary-onnx"), SERVING_READ_TIMEOUT_S=str(LONG_S)) as server:
        run(ask_all(server))


def test_clients_beyond_the_most_connections_are_refused_and_the_others_answered(made: Made, tmp_path: Path) -> None:
    sent = asking(made("binary-onnx").rows(1))

    async def ask_all(server: Server) -> None:
        clients = await connect_many(server, 50)
        for client in clients:
            assert (await client.ask(sent)).status == 200
        for _ in range(3):
            refused = await asyncio.gather(*(ask(server, sent) for _ in range(100)))
            assert statuses(refused) == {503: 100}
            assert all(b"\r\nconnection: close" in answer.head for answer in refused)
            assert statuses(await asyncio.gather(*(client.ask(sent) for client in clients))) == {200: 50}
        for client in clients[25:]:
            client.transport.close()
        await until(lambda: any_room(server))
        assert statuses(await asyncio.gather(*(ask(server, sent) for _ in range(20)))) == {200: 20}

    async def any_room(server: Server) -> bool:
        return (await ask(server, sent)).status == 200

    with serving(tmp_path, made("binary-onnx"), SERVING_MAX_CONNECTIONS="50") as server:
        run(ask_all(server))


def test_two_hundred_slow_clients_are_cut_off_and_in_nobodys_way(made: Made, tmp_path: Path) -> None:
    """A byte a second of a head or a body, no byte at all, and answers that nobody reads."""
    sent = asking(made("binary-onnx").rows(1))

    async def drip(client: Client, text: bytes) -> None:
        for position in range(len(text)):
            if client.closed.is_set():
                return
            client.transport.write(text[position : position + 1])
            await asyncio.sleep(1)

    async def ask_all(server: Server) -> None:
        before = await figure(server, "process_open_fds")
        clients = await connect_many(server, 200)
        heads, bodies, silent, deaf = clients[:30], clients[30:140], clients[140:170], clients[170:]
        for client in bodies:
            client.transport.write(head(1000))
        dripping = [asyncio.create_task(drip(client, b"GET /" + b"x" * 1000)) for client in heads + bodies]
        for client in deaf:
            client.transport.pause_reading()
            client.transport.write(get("/openapi.json") * 1000)
        gone = asyncio.create_task(all_gone(server, heads + bodies + silent, before + 16))
        others = await closed_loop(server, sent, 8, gone.done)
        await gone
        assert statuses(others).keys() == {200}
        await asyncio.gather(*dripping)
        assert await figure(server, 'serving_refused_total{reason="slow_body"}') == len(heads + bodies)
        assert await figure(server, 'serving_requests_total{route="other",status="200"}') < 1000 * len(deaf)

    async def all_gone(server: Server, clients: list[Client], most: float) -> None:
        await asyncio.wait_for(asyncio.gather(*(client.closed.wait() for client in clients)), LONG_S)
        await until(lambda: few_are_left(server, most))  # of the deaf too, who do not hear that they are cut off

    async def few_are_left(server: Server, most: float) -> bool:
        return await figure(server, "process_open_fds") < most

    slow = {"SERVING_READ_TIMEOUT_S": "2", "SERVING_WRITE_TIMEOUT_S": "2", "SERVING_KEEP_ALIVE_S": "2"}
    with serving(tmp_path, made("binary-onnx"), **slow) as server:
        run(ask_all(server))


def table(holder: str, key: str, *scopes: str) -> str:
    return f'[{holder}]\nscopes = {list(scopes)}\nsha256 = "{sha256(key.encode()).hexdigest()}"\n'


KEYS = {name: f"key_{name}_{sha256(name.encode()).hexdigest()}" for name in ("always", "former", "later", "admin")}
ALWAYS = table("always", KEYS["always"], "predict") + table("admin", KEYS["admin"], "admin")


@contextmanager
def locked(folder: Path, bundle: Bundle) -> Iterator[tuple[Server, Path]]:
    """A server that asks for keys, and their file."""
    file = folder / "keys.toml"
    file.write_text(ALWAYS + table("former", KEYS["former"], "predict"))
    given = {"SERVING_OPEN": "0", "SERVING_KEYS_FILE": str(file), "SERVING_READ_TIMEOUT_S": "2"}
    with serving(folder, bundle, **given) as server:
        yield server, file


def test_without_a_key_no_byte_of_a_body_is_read_and_no_key_is_ever_repeated(made: Made, tmp_path: Path) -> None:
    bundle = made("binary-onnx")
    row = bundle.rows(1)
    name = bundle.load().name
    paths = ["/predict", "/invocations", f"/v2/models/{name}/infer", "/feedback", "/admin/kill", "/admin/reload"]

    async def ask_all(server: Server) -> None:
        told = []
        for key, status in (("", 401), ("key_unknown", 401), (KEYS["always"] + "x", 401), (KEYS["always"], 403)):
            for path in paths if status == 401 else paths[3:]:  # nothing follows the head
                told.append(await ask(server, head(BODY, path, key)))
                assert told[-1].status == status, path
                assert json.loads(told[-1].body)["status"] == status
        assert all(b"\r\nwww-authenticate: Bearer" in answer.head for answer in told if answer.status == 401)
        told.append(await ask(server, asking(row, KEYS["always"])))
        assert told[-1].status == 200
        form = f"key={KEYS['always']}x&site=north".encode()
        told.append(await ask(server, head(len(form), "/") + form))
        assert told[-1].status == 401
        for path in (
            "/metrics",
            "/",
            "/figures",
            "/openapi.json",
            f"/model?key={KEYS['always']}",
            f"/{KEYS['always']}",
        ):
            told.append(await ask(server, get(path)))
        secrets = [*KEYS.values(), *(sha256(key.encode()).hexdigest() for key in KEYS.values())]
        seen = b"".join(answer.head + answer.body for answer in told).decode()
        assert [secret for secret in secrets if secret in seen] == []
        assert server.stop() == 0
        seen = server.log.read_text() + server.log.with_suffix(".err").read_text()
        assert '"holder":"always"' in seen
        assert [secret for secret in secrets if secret in seen] == []
        written = b"".join(path.read_bytes() for path in tmp_path.glob("*.data/log/*")).decode()
        assert [secret for secret in secrets if secret in written] == []

    with locked(tmp_path, bundle) as (server, _):
        run(ask_all(server))


def test_keys_are_rotated_under_load_and_whose_key_is_valid_does_not_notice(made: Made, tmp_path: Path) -> None:
    bundle = made("binary-onnx")
    sent = {name: asking(bundle.rows(1), key) for name, key in KEYS.items()}

    async def rotate(server: Server, file: Path) -> None:
        async def becomes(name: str, status: int) -> None:
            async def done() -> bool:
                return (await ask(server, sent[name])).status == status

            await until(done)

        ended = asyncio.Event()
        load = asyncio.create_task(closed_loop(server, sent["always"], 16, ended.is_set))
        await becomes("former", 200)
        await becomes("later", 401)
        new = file.with_suffix(".new")
        new.write_text(ALWAYS + table("later", KEYS["later"], "predict"))
        new.rename(file)
        await becomes("later", 200)
        await becomes("former", 401)
        file.write_text("a file that is only half writ")  # keeps the keys as they are
        await until(lambda: any("keys stay" in line["event"] for line in server.lines()))
        await becomes("later", 200)
        ended.set()
        assert statuses(await load).keys() == {200}

    with locked(tmp_path, bundle) as (server, file):
        run(rotate(server, file))


def test_a_service_with_neither_keys_nor_leave_to_be_open_does_not_start(made: Made, tmp_path: Path) -> None:
    bundle = made("binary-onnx")
    given = environment(SERVING_MODEL_DIR=str(bundle.folder), SERVING_DATA_DIR=str(tmp_path))
    done = subprocess.run(command(bundle), cwd=ROOT, env=given, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert re.fullmatch(r"serving: expected SERVING_KEYS_FILE, .* or SERVING_OPEN=1, .*\n", done.stderr)
