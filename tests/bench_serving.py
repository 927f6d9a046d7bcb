"""What the service costs beside its rivals, as ratios measured in turn: `make bench-serving` prints the table of
docs/benchmarks.md. It needs wrk."""

import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import Request, urlopen

import joblib
import psutil
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OrdinalEncoder

from pipeline.prepared import feature_spec, features_of, read_prepared
from problem.models import CANDIDATES
from problem.schema import CONTRACT
from tests.clones import ROOT

ROUNDS, SECONDS, CLIENTS = 5, 3, 16
HERE = str(ROOT / ".venv/bin/python")
THERE = str(ROOT / "serving/.venv/bin/python")
UVICORN = ("-m", "uvicorn", "--no-access-log", "--log-level", "warning", "--port", "{port}")


class Server(NamedTuple):
    """A rival: how it is started, and what it is asked."""

    command: tuple[str, ...]
    path: str
    body: Any
    environment: dict[str, str]


class Load(NamedTuple):
    """What a server did under load: answers a second, and the processor time of one."""

    per_second: float
    cpu_us: float


def servers(pipeline: Path) -> dict[str, Server]:
    """The service and its rivals, each in the form that serves it best."""
    golden = json.loads((ROOT / "bundle/golden.json").read_text())
    row = {name: values[0] for name, values in golden["rows"].items()}
    fast = ("--loop", "uvloop", "--http", "httptools")
    path = f"{ROOT}/src:{ROOT}"
    return {
        "service": Server((THERE, "-m", "serving"), "/predict", {"rows": [row]}, {"SERVING_INSPECTED": "0"}),
        "hello": Server((THERE, *UVICORN, *fast, "tests.rivals.hello:app"), "/", None, {}),
        "tutorial": Server(
            (HERE, *UVICORN, "tests.rivals.tutorial:app"),
            "/predict",
            row,
            {"PIPELINE": str(pipeline), "PYTHONPATH": path},
        ),
    }


def tutorial_pipeline() -> Any:
    """The model of the bundle as a tutorial would have trained it: one scikit-learn pipeline on a DataFrame."""
    rows = read_prepared(ROOT / "prepared/train.parquet")
    frame, best = features_of(rows), json.loads((ROOT / "tuning/best.json").read_text())
    spec = sorted(feature_spec(frame), key=lambda feature: feature.categories is None)  # as the transformer orders them
    names = [feature.name for feature in spec if feature.categories is not None]
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=float("nan"))
    columns = ColumnTransformer([("categories", encoder, names)], remainder="passthrough")
    estimator = CANDIDATES[best["candidate"]].build(best["params"], spec, CONTRACT.task, 0)
    return make_pipeline(columns, estimator).fit(frame, rows[CONTRACT.target.name])


@contextmanager
def running(server: Server) -> Iterator[tuple[str, psutil.Process]]:
    """A server that answers, and its process."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [part.format(port=port) for part in server.command]
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    environment = {**os.environ, **threads, "SERVING_PORT": str(port), **server.environment}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
    try:
        _await(f"http://127.0.0.1:{port}{server.path}", server.body, process)
        yield f"http://127.0.0.1:{port}{server.path}", psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def _await(url: str, body: Any, process: "subprocess.Popen[bytes]") -> None:
    data = None if body is None else json.dumps(body).encode()
    for _ in range(600):
        if process.poll() is not None:
            sys.exit(f"expected {url} to be served, the server ended with {process.returncode}")
        try:
            urlopen(Request(url, data, {"Content-Type": "application/json"}), timeout=5).close()  # noqa: S310 - local
            return
        except OSError as error:
            if hasattr(error, "code"):
                sys.exit(f"expected {url} to answer, got {error}")
            time.sleep(0.1)
    sys.exit(f"expected {url} to answer within a minute")


def loaded(url: str, process: psutil.Process, body: Any, folder: Path) -> Load:
    """Ask one server as fast as it answers, with as many clients as `CLIENTS`."""
    script = folder / "ask.lua"
    said = "" if body is None else f"wrk.method, wrk.body = 'POST', [==[{json.dumps(body)}]==]\n"
    script.write_text(said + "wrk.headers['Content-Type'] = 'application/json'\n")
    before = process.cpu_times()
    command = ["wrk", "-t1", f"-c{CLIENTS}", f"-d{SECONDS}s", "-s", str(script), url]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    after = process.cpu_times()
    if "Non-2xx" in told:
        sys.exit(f"{url} refused requests:\n{told}")
    answered = int(re.findall(r"(\d+) requests in", told)[0])
    cpu = after.user + after.system - before.user - before.system
    return Load(float(re.findall(r"Requests/sec:\s+([\d.]+)", told)[0]), 1e6 * cpu / answered)


def main() -> None:
    """Measure in turn, and print a table."""
    with tempfile.TemporaryDirectory() as scratch, ExitStack() as stack:
        folder = Path(scratch)
        joblib.dump(tutorial_pipeline(), folder / "pipeline.joblib")
        known = servers(folder / "pipeline.joblib")
        up = {name: stack.enter_context(running(server)) for name, server in known.items()}
        rounds = [{name: loaded(*up[name], known[name].body, folder) for name in known} for _ in range(ROUNDS)]
    goals = {"hello": "at least half", "tutorial": "at least 40 times"}
    out = [f"\n{os.cpu_count()} cores, Python {sys.version.split()[0]}, {CLIENTS} clients, one row a request\n"]
    out += ["| the service over | answers a second | processor time of an answer | goal |", "| --- | --- | --- | --- |"]
    for name, goal in goals.items():
        ratios = [each["service"].per_second / each[name].per_second for each in rounds]
        cheaper = [each[name].cpu_us / each["service"].cpu_us for each in rounds]
        ours, theirs = (statistics.median(each[n].per_second for each in rounds) for n in ("service", name))
        least = statistics.median(each["service"].cpu_us for each in rounds)
        out.append(
            f"| {name} | {_spread(ratios)} times ({ours:,.0f} over {theirs:,.0f}) "
            f"| {_spread(cheaper)} times less ({least:.0f} µs) | {goal} |"
        )
    sys.stdout.write("\n".join(out) + "\n")


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
