import json
import os
import shlex
import socket
import subprocess
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from serving.image import engine
from tests.clones import ROOT

ENGINE = engine(os.environ)
IMAGE = os.environ.get("IMAGE") or tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["name"] + ":latest"
RUN = shlex.split(os.environ.get("RUN") or f"{ENGINE} run")
PRODUCTION = ["--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"]
GOLDEN = json.loads((ROOT / "bundle/golden.json").read_text())
ROWS = [dict(zip(GOLDEN["rows"], values, strict=True)) for values in zip(*GOLDEN["rows"].values(), strict=True)]


def ask_engine(*arguments: str) -> str:
    """What podman or docker prints."""
    return subprocess.run([ENGINE, *arguments], capture_output=True, check=True, text=True).stdout.strip()


def inspected(image: str) -> dict[str, Any]:
    return json.loads(ask_engine("image", "inspect", image))[0]


def health_check() -> list[str]:
    """The command of the image's own health check, which needs no shell."""
    image = inspected(IMAGE)
    kind, *command = {**image["Config"], **image}["Healthcheck"][
        "Test"
    ]  # docker has it in the one, podman in the other
    assert kind == "CMD"
    return command


class Container:
    """The image, run as in production, and asked from outside."""

    def __init__(self, folder: Path, *flags: str, image: str = IMAGE) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.name = f"test-{self.port}"
        self.log = folder / f"{self.name}.log"
        self.headers = {"Content-Type": "application/json"}
        published = [
            "-e",
            "SERVING_OPEN=1",
            "-p",
            f"127.0.0.1:{self.port}:{self.port}",
            "-e",
            f"SERVING_PORT={self.port}",
        ]
        command = [*RUN, "--rm", "--name", self.name, *PRODUCTION, *published, *flags, image]
        self.began = time.perf_counter()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def ask(self, path: str, body: object = None) -> tuple[int, str]:
        """The status and the text of an answer; a body is sent as JSON."""
        data = None if body is None else json.dumps(body).encode()
        request = Request(f"http://127.0.0.1:{self.port}{path}", data, self.headers)
        try:
            with urlopen(request, timeout=10) as answer:  # noqa: S310
                return answer.status, answer.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()

    def predict(self, rows: object) -> tuple[int, dict[str, Any]]:
        status, text = self.ask("/predict", {"rows": rows})
        return status, json.loads(text)

    def first_prediction(self, rows: object = ROWS[:1]) -> float:
        """Seconds from the start of the container to the first prediction that it answers."""
        while True:
            try:
                if self.predict(rows)[0] == 200:
                    return time.perf_counter() - self.began
            except OSError:
                assert self.process.poll() is None, self.said()
                assert time.perf_counter() - self.began < 60, self.said()
                time.sleep(0.005)

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command inside."""
        pairs = [part for name, value in environment.items() for part in ("-e", f"{name}={value}")]
        inside = [ENGINE, "exec", *pairs, self.name, *command]
        return subprocess.run(inside, capture_output=True, text=True, check=False)

    def stop(self) -> int:
        """Send SIGTERM; the exit code."""
        ask_engine("stop", self.name)
        return self.process.wait(60)

    def ended(self) -> int:
        """Wait until it ends by itself; the exit code."""
        return self.process.wait(60)

    def said(self) -> str:
        return self.log.read_text()

    def remove(self) -> None:
        subprocess.run([ENGINE, "rm", "--force", self.name], capture_output=True, check=False)
        self.process.wait(60)


Start = Callable[..., Container]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start a container with more flags for `run`; it is gone after the test."""
    started: list[Container] = []

    def start_one(*flags: str) -> Container:
        started.append(Container(tmp_path, *flags))
        return started[-1]

    yield start_one
    for container in started:
        container.remove()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Container]:
    """A container that answers, shared by the tests of a module."""
    container = Container(tmp_path_factory.mktemp("service"))
    try:
        seconds = container.first_prediction()
        print(f"\nfrom the start of the container to its first prediction: {seconds:.2f} s")  # noqa: T201
        yield container
    finally:
        container.remove()
