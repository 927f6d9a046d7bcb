"""A server started in an environment of its own, and stopped. Change here to run rivals in containers, for example."""

import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import Request, urlopen

import psutil

from pipeline.canonical import file_hash
from tests.clones import ROOT
from tests.rivals.servers import Rows, Server

START_S = 120  # at most, until a server answers


class Running(NamedTuple):
    """A server that answers, after so many seconds."""

    url: str
    process: psutil.Popen
    cold_s: float


def binaries(server: Server) -> Path:
    """Where the programs of a server's environment are, which is made where it is not there yet."""
    if "/" in server.home:
        return ROOT / server.home / "bin"
    pins = ROOT / f"tests/rivals/{server.home}.txt"
    folder = ROOT / ".cache/rivals" / server.home / f"{file_hash(pins)[:12]}-{sys.implementation.cache_tag}"
    if not (folder / "ready").exists():
        say(f"making the environment of {server.home}, once")
        uv = [sys.executable, "-m", "uv", "--quiet"]
        make = [*uv, "venv", "--clear", "--relocatable", "--python", sys.executable, str(folder)]
        fill = [*uv, "pip", "sync", "--compile-bytecode", "--python", str(folder / "bin/python"), str(pins)]
        if any(subprocess.run(command, check=False).returncode for command in (make, fill)):
            sys.exit(f"expected a package index that answers and has what {pins.relative_to(ROOT)} names; see above")
        (folder / "ready").touch()
    return folder / "bin"


@contextmanager
def running(server: Server, rows: Rows, folder: Path) -> Iterator[Running]:
    """A server, from its first answer until it is stopped with all its processes."""
    data = tempfile.TemporaryDirectory(dir=folder)
    known = {"bin": str(binaries(server)), "data": data.name, **_free_ports()}
    url = f"http://127.0.0.1:{known['port']}{server.path}"
    log = folder / "log.txt"
    with log.open("wb") as out:
        begun = time.perf_counter()
        process = psutil.Popen(
            [part.format_map(known) for part in server.command.split()],
            cwd=ROOT,
            env=_environment(server, known),
            stdout=out,
            stderr=subprocess.STDOUT,
        )
    try:
        problem: Exception | None = None
        while time.perf_counter() - begun < START_S and process.poll() is None:
            try:
                ask(server, url, rows)
                break
            except OSError as error:
                problem = error
                time.sleep(0.01)
        else:
            end = f"ended with {process.returncode}" if process.poll() is not None else f"said {problem}"
            said = log.read_text(errors="replace")[-3000:]
            sys.exit(f"{said}\nexpected {server.command} to answer within {START_S} seconds; it {end}")
        yield Running(url, process, time.perf_counter() - begun)
    finally:
        started = tree(process)
        with suppress(psutil.NoSuchProcess):
            process.terminate()
        for left in psutil.wait_procs(started, timeout=20)[1]:
            left.kill()
        process.wait()
        data.cleanup()


def ask(server: Server, url: str, rows: Rows) -> Any:
    """What a server answers."""
    data = server.body and json.dumps(server.body(rows)).encode()
    request = Request(url, data, {"Content-Type": "application/json", **server.headers})  # noqa: S310 - ourselves
    with urlopen(request, timeout=START_S) as answer:  # noqa: S310
        return json.load(answer)


def tree(process: psutil.Popen) -> list[psutil.Process]:
    """A process and all those that it started."""
    try:
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _free_ports() -> dict[str, str]:
    """Ports below those that the system gives to clients, who would come first."""
    free: list[str] = []
    while len(free) < 3:
        port = random.randint(20_000, 30_000)  # noqa: S311 - a port, and no secret
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            free.append(str(port))
    return dict(zip(("port", "grpc", "metrics"), free, strict=True))


def _environment(server: Server, known: dict[str, str]) -> dict[str, str]:
    """A server's variables: none of this process's that would change it, and one thread a library."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SERVING_", "PYTHON"))}
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    quiet = {"DO_NOT_TRACK": "1", "BENTOML_DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true"}
    own = {name: value.format_map(known) for name, value in server.environment.items()}
    path = {"PATH": f"{known['bin']}:{os.environ['PATH']}", "PYTHONPATH": f"{ROOT}:{ROOT}/src"}
    return {**kept, **threads, **quiet, **path, **own}


def say(line: str) -> None:
    """Tell whoever waits."""
    sys.stderr.write(f"{line}\n")
