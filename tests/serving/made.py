"""What the tests of the service share: made bundles, a client in process, and a real server."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from pipeline.canonical import files_hash, folder_files, json_bytes
from serving.app import create_app
from serving.release import Release, load
from serving.settings import Settings, read_settings
from serving.telemetry import Log
from tests.serving.serve import load_features

ROOT = Path(__file__).resolve().parents[2]
MAIN_PYTHON = ROOT / ".venv" / "bin" / "python"
TASKS = ("binary", "multiclass", "regression")


@dataclass(frozen=True)
class Bundle:
    """A bundle in a folder, with its inspection beside it, and the file of its features."""

    folder: Path
    features: Path

    def read(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text())

    @property
    def golden(self) -> Any:
        return self.read("golden.json")

    def rows(self, count: int | None = None) -> list[dict[str, Any]]:
        """Golden rows, as a client sends them."""
        columns = self.golden["rows"]
        return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)][:count]

    @property
    def hash(self) -> str:
        return files_hash(folder_files(self.folder))

    def inspect(self, **changed: Any) -> None:
        """Write an inspection of the bundle as it now is."""
        verdict = {"airworthy": True, "waived": [], "bundle": self.hash, "gates": []} | changed
        folder = self.folder.parent / "inspection"
        folder.mkdir(exist_ok=True)
        (folder / "gates.json").write_bytes(json_bytes(verdict))

    def settings(self, **environment: str) -> Settings:
        return read_settings({"SERVING_MODEL_DIR": str(self.folder), "SERVING_OPEN": "1"} | environment)

    def load(self, **environment: str) -> Release:
        return load(self.settings(**environment), load_features(self.features))


class Service:
    """The service in process: requests go through the edge unless `routed`, then straight to FastAPI's routes."""

    def __init__(self, bundle: Bundle, *, routed: bool = False, **environment: str) -> None:
        self.log = Log()
        self.data = Path(environment.setdefault("SERVING_DATA_DIR", tempfile.mkdtemp()))
        self.edge = create_app(bundle.settings(**environment), load_features(bundle.features), self.log)
        self.release = self.edge.service.live.release
        self._app: Any = self.edge.app if routed else self.edge

    def request(self, method: str, path: str, **given: Any) -> httpx.Response:
        return self.requests([(method, path, given)])[0]

    def requests(self, asked: Sequence[tuple[str, str, Mapping[str, Any]]]) -> list[httpx.Response]:
        """Several requests at once."""

        async def ask() -> list[httpx.Response]:
            transport = httpx.ASGITransport(self._app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
                return await asyncio.gather(*(client.request(method, path, **given) for method, path, given in asked))

        return asyncio.run(ask())

    def get(self, path: str, **given: Any) -> httpx.Response:
        return self.request("GET", path, **given)

    def post(self, path: str, **given: Any) -> httpx.Response:
        return self.request("POST", path, **given)

    def predict(self, rows: Any, **given: Any) -> httpx.Response:
        return self.post("/predict", json={"rows": rows}, **given)

    def metric(self, name: str, /, **labels: str) -> float | None:
        return self.edge.service.metrics.registry.get_sample_value(name, labels)

    def lines(self) -> list[dict[str, Any]]:
        """What has been logged."""
        return [json.loads(self.log._encoded(line)) for line in self.log._lines]


def problem(response: httpx.Response, status: int) -> Any:
    """The problem document that a response must be."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document["status"] == status
    assert document["type"] == "about:blank"
    assert document["instance"] == f"urn:request:{response.headers['x-request-id']}"
    assert "Traceback" not in response.text
    return document


@dataclass
class Server:
    """The service as a process of its own."""

    process: subprocess.Popen[str]
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stop(self) -> int:
        """Ask it to stop; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


def environment(**given: str) -> dict[str, str]:
    """This process's environment without what would reach a server by accident."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SERVING_", "OTEL_"))}
    return kept | given


def command(bundle: Bundle | None, python: str = sys.executable) -> list[str]:
    """How to start the service: the problem's own where there is no made bundle."""
    if bundle is None:
        return [python, "-m", "serving"]
    return [python, str(ROOT / "tests" / "serving" / "serve.py"), str(bundle.features)]


@contextlib.contextmanager
def serving(folder: Path, bundle: Bundle | None, python: str = sys.executable, **given: str) -> Iterator[Server]:
    """A server that answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    made = {"SERVING_OPEN": "1", "SERVING_DATA_DIR": str(folder / f"{port}.data")}
    made |= {"SERVING_MODEL_DIR": str(bundle.folder)} if bundle else {}
    log, errors = folder / f"{port}.log", folder / f"{port}.err"
    with log.open("w") as out, errors.open("w") as err:
        process = subprocess.Popen(
            command(bundle, python),
            cwd=ROOT,
            env=environment(SERVING_PORT=str(port), **(made | given)),
            stdout=out,
            stderr=err,
            text=True,
        )
    server = Server(process, port, log)
    try:
        while process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                httpx.get(f"{server.url}/health/ready", timeout=10).raise_for_status()
                break
            time.sleep(0.02)
        assert process.poll() is None, errors.read_text()
        yield server
    finally:
        process.terminate()
        process.wait(60)
