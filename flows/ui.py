"""The interfaces of MLflow and Prefect on this machine, until Ctrl-C. Change here to show more of them."""

import os
import signal
import socket
import sys
import time
import webbrowser
from pathlib import Path

from flows import anchor, server, tracking
from flows.stage import say
from pipeline.errors import InputError


def ui() -> None:
    """Show both, and keep the Prefect server that `make repro` leaves behind replaced by our own."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    mlflow, address = _mlflow()
    prefect = server.start()
    try:
        _wait(mlflow, address)
        say(f"MLflow   {address}/#/experiments")
        shown = None
        while mlflow.alive():
            if (url := server.recorded()) is None:
                prefect.stop()
                prefect = server.start()
                url = prefect.url()
            if url is None:
                sys.exit(f"Prefect's server does not start; {anchor()}/.prefect/server.log says why")
            if url != shown:
                say(f"Prefect  {url.removesuffix('/api')}")
                if shown is None:
                    say("Ctrl-C stops both")
                    _open(f"{address}/#/experiments", url.removesuffix("/api"))
                shown = url
            time.sleep(1)
        sys.exit(1)
    except KeyboardInterrupt:
        say("")
    finally:
        prefect.stop()
        mlflow.stop()


def _mlflow() -> tuple[server.Tied, str]:
    """MLflow's interface on the database of this repository, or the address of the server that is configured."""
    configured = os.environ.get("MLFLOW_TRACKING_URI", "")
    if configured.startswith("http"):
        return server.Tied(None), configured
    tracking.create_database()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    store = ["--backend-store-uri", configured or f"sqlite:///{anchor()}/mlflow.db"]
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # its seven job runners are of no use here
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return server.tie(Path(anchor()) / "mlartifacts/server.log", [*command, *store]), f"http://127.0.0.1:{port}"


def _wait(process: server.Tied, address: str) -> None:
    deadline = time.monotonic() + server.START_S
    while not server.answers(address):
        if not process.alive() or time.monotonic() > deadline:
            sys.exit(f"expected MLflow at {address}, it does not answer; {anchor()}/mlartifacts/server.log says why")
        time.sleep(0.2)


def _open(*addresses: str) -> None:
    if sys.stdout.isatty() and (sys.platform == "darwin" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))):
        for address in addresses:
            webbrowser.open(address)


if __name__ == "__main__":
    try:
        ui()
    except InputError as error:
        sys.exit(f"ui: {error}")
