"""The project's own Prefect server: one at a time, gone with who started it. Change here to serve otherwise.

`python -m flows.server` serves until its standard input ends, which also happens when the process that started it is
killed; with a command behind, it runs that command on the same terms. Whoever looks for the server asks it, by the
key in `.prefect/server.json`: a record whose server does not answer to its key means nothing.
"""

import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

from flows import anchor, begin_work

HEADER = "x-server-key"
START_S = 90  # a first start migrates the database: 6 s, on a slow machine far more
STOP_S = 5


def answers(url: str, key: str | None = None) -> bool:
    """Whether a Prefect API answers at `url`, and with `key` whether it is the server that has it."""
    try:
        with urlopen(f"{url}/health", timeout=2) as response:  # noqa: S310 - the user's own address
            return key is None or response.headers.get(HEADER) == key
    except HTTPError as error:  # a server that wants a log-in has no open health page
        return key is None and error.code < 500
    except (OSError, ValueError):
        return False


def recorded() -> str | None:
    """The API address of this project's server, if it is up."""
    try:
        record = json.loads(_record().read_text())
        return record["url"] if answers(record["url"], record["key"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


@dataclass(frozen=True)
class Tied:
    """A process that ends with this one."""

    process: subprocess.Popen[bytes] | None

    def url(self) -> str | None:
        """The address of the project's server as soon as it answers; None if it cannot start."""
        deadline = time.monotonic() + START_S
        while (found := recorded()) is None and time.monotonic() < deadline:
            if self.process is None or self.process.poll() is not None:
                return recorded()
            time.sleep(0.1)
        return found

    def alive(self) -> bool:
        """Whether it still runs; what another process started is taken to."""
        return self.process is None or self.process.poll() is None

    def stop(self) -> None:
        """End the process, and wait for it."""
        if self.process is None or self.process.stdin is None:
            return
        self.process.stdin.close()
        try:
            self.process.wait(2 * STOP_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


def tie(log: Path, command: Sequence[str] = ()) -> Tied:
    """Start a command (the project's server if none is given) that ends with this process; its output goes to `log`."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as file:
        return Tied(
            subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-m", "flows.server", *command],
                cwd=anchor(),
                stdin=subprocess.PIPE,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C reaches the flows first, and they still report to it
            )
        )


def start() -> Tied:
    """Start the project's server, unless it is up; do not wait."""
    return Tied(None) if recorded() else tie(_home() / "server.log")


@contextmanager
def running() -> Iterator[str | None]:
    """The API address of the project's server, started for the time of the block unless it is up already."""
    server = start()
    try:
        yield server.url()
    finally:
        server.stop()


def serve() -> None:
    """Serve the project's Prefect; wait for the turn if another server of this project is just leaving."""
    home = _home()
    home.mkdir(parents=True, exist_ok=True)
    with (home / "server.lock").open("w") as turn, socket.create_server(("127.0.0.1", 0)) as listener:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not _record().exists():  # a first start was cut short: its database is half made
            for left in home.glob("prefect.db*"):
                left.unlink()
        url, key = f"http://127.0.0.1:{listener.getsockname()[1]}/api", uuid.uuid4().hex
        os.environ.update(PREFECT_API_URL=url, PREFECT_UI_API_URL=url)
        import uvicorn
        from prefect.server.api.server import create_app

        config = uvicorn.Config(create_app(), headers=[(HEADER, key)], log_level="warning", timeout_graceful_shutdown=2)
        threading.Thread(target=_write_record, args=(url, key), daemon=True).start()
        begin_work()
        uvicorn.Server(config).run(sockets=[listener])


def _write_record(url: str, key: str) -> None:
    while not answers(url, key):
        time.sleep(0.05)
    with suppress(Exception):  # runs that look alive are no reason not to serve
        _end_runs(url)
    new = _record().with_suffix(".new")
    new.write_text(json.dumps({"url": url, "key": key}))
    new.replace(_record())


def _end_runs(url: str) -> None:
    """What the last server left as running is no longer under any server."""
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.filters import FlowRunFilter
    from prefect.states import Crashed

    left = FlowRunFilter.model_validate({"state": {"type": {"any_": ["PENDING", "RUNNING"]}}})
    with SyncPrefectClient(url) as client:  # it asks again where the database is busy
        for run in client.read_flow_runs(flow_run_filter=left):
            client.set_flow_run_state(run.id, Crashed(message="its Prefect server ended before it did"), force=True)


def _guard(command: Sequence[str]) -> int:
    """Run a command of our own process group; its exit code."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 - the command of `tie`
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # meant for the child, whose end is ours
    return child.wait()


def _end_with_input() -> None:
    """End this process group when standard input ends: politely, then surely."""
    while os.read(0, 1):
        pass
    os.killpg(0, signal.SIGTERM)
    time.sleep(STOP_S)
    os.killpg(0, signal.SIGKILL)


def _home() -> Path:
    return Path(anchor()) / ".prefect"


def _record() -> Path:
    return _home() / "server.json"


if __name__ == "__main__":
    if sys.stdin.isatty():
        sys.exit("flows.server is started by `make repro` and `make ui`")
    threading.Thread(target=_end_with_input, daemon=True).start()
    if sys.argv[1:]:
        sys.exit(_guard(sys.argv[1:]))
    serve()
