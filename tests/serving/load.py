"""Clients that never pause, each on a connection of its own, and what they were answered."""

import http.client
import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from pipeline.journal import Prediction, read_predictions
from tests.serving.made import Bundle

PREDICT, INFER, INVOCATIONS, FEEDBACK = "/predict", "infer", "/invocations", "/feedback"


class Exchange(NamedTuple):
    """A request under its own id; `status` None where not a byte came back, -1 where the answer broke off."""

    id: str
    path: str
    sent: bytes
    status: int | None
    answer: Any

    @property
    def scores(self) -> list[float]:
        """The scores of an answer, whatever its form."""
        match self.answer:
            case {"scores": scores}:
                return list(scores)
            case {"predictions": rows}:
                return [score for row in rows for score in row]
        return list(next(output["data"] for output in self.answer["outputs"] if output["name"] == "score"))


class Client:
    """One connection, made again where it was closed."""

    def __init__(self, port: int, key: str = "") -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})

    def post(self, path: str, body: bytes, name: str) -> Exchange:
        """Ask under an id; errors of the connection are part of the answer."""
        status: int | None = None
        try:
            self._connection.request("POST", path, body, self._headers | {"x-request-id": name})
            response = self._connection.getresponse()
            status = -1
            answer = response.read()
        except (OSError, http.client.HTTPException):
            self._connection.close()
            return Exchange(name, path, body, status, None)
        return Exchange(name, path, body, response.status, json.loads(answer))

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def ask(port: int, path: str, body: bytes, name: str, key: str = "") -> Exchange:
    """One request on a connection of its own."""
    client = Client(port, key)
    try:
        return client.post(path, body, name)
    finally:
        client.close()


def get(port: int, path: str) -> str:
    """What stands at a path."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        assert response.status == 200
        return response.read().decode()
    finally:
        connection.close()


class Load:
    """Clients that ask for scores until they are stopped, or the server is gone; some tell outcomes besides."""

    _counted = itertools.count()

    def __init__(
        self, port: int, asks: Sequence[tuple[str, bytes]], *, clients: int = 16, outcomes: bool = False, key: str = ""
    ) -> None:
        self._port, self._asks, self._outcomes, self._key = port, asks, outcomes, key
        self._prefix = f"load-{next(self._counted)}"
        self._exchanges: list[list[Exchange]] = [[] for _ in range(clients)]
        self._stopping = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(n,), daemon=True) for n in range(clients)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stopping.set()
        self.wait()

    @property
    def exchanges(self) -> list[Exchange]:
        """Everything so far."""
        return [exchange for mine in self._exchanges for exchange in list(mine)]

    @property
    def scored(self) -> list[Exchange]:
        """The predictions whose answer came whole."""
        return [exchange for exchange in self.exchanges if exchange.status == 200 and exchange.path != FEEDBACK]

    def wait(self) -> None:
        """Until every client has ended, which they do by themselves where the server is gone."""
        for thread in self._threads:
            thread.join(120)
            assert not thread.is_alive(), "a client waits for an answer that does not come"

    def until_scored(self, count: int) -> None:
        """Until so many more predictions are answered."""
        count += len(self.scored)
        until(lambda: len(self.scored) >= count)

    def _ask(self, number: int) -> None:
        client, drawn = Client(self._port, self._key), random.Random(number)  # noqa: S311 - which request comes next
        for count in itertools.count():
            path, body = drawn.choice(self._asks)
            told = client.post(path, body, f"{self._prefix}-{number}-{count}")
            self._exchanges[number].append(told)
            if told.status == 200 and self._outcomes:
                outcome = {"request_id": told.id, "row": 0, "outcome": count % 2 == 0}
                self._exchanges[number].append(
                    client.post(FEEDBACK, json.dumps({"outcomes": [outcome]}).encode(), told.id)
                )
            if self._stopping.is_set() or told.status in (None, -1):
                break
            if drawn.random() < 0.1:  # clients come and go
                client.close()
        client.close()


def until(done: Callable[[], object], limit_s: float = 60) -> None:
    """Wait for something."""
    end = time.monotonic() + limit_s
    while not done():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def every_form(bundle: Bundle, model: str) -> list[tuple[str, bytes]]:
    """Requests in every form: of one row, of some, and of so many that a thread scores them."""
    rows = bundle.rows()
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    kinds = {"temperature": "FP64", "cycles": "INT64", "guarded": "BOOL"}
    tensors = [
        {"name": name, "shape": [len(rows)], "datatype": kinds.get(name, "BYTES"), "data": values}
        for name, values in columns.items()
    ]
    bodies = [
        *((PREDICT, {"rows": [row]}) for row in rows[:8]),
        (PREDICT, {"rows": rows[:5]}),
        (PREDICT, {"rows": (rows * 300)[:300]}),
        (INVOCATIONS, {"dataframe_records": rows[3:6]}),
        (f"/v2/models/{model}/infer", {"inputs": tensors}),
    ]
    return [(path, json.dumps(body).encode()) for path, body in bodies]


def logged(folder: Path) -> dict[str, list[Prediction]]:
    """The prediction log by request id; each request is there once."""
    found: dict[str, list[Prediction]] = {}
    for entry in read_predictions(folder):
        found.setdefault(entry.request_id, []).append(entry)
    for name, entries in found.items():
        assert [entry.row for entry in entries] == list(range(len(entries))), f"{name} is logged more than once"
    return found
