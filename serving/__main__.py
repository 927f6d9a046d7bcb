"""Starts the service: `python -m serving`; with `--check` it says only whether the bundle may be served. Change here to
start it otherwise."""

import gc
import os
import signal
import sys

import uvicorn

from pipeline.errors import InputError
from pipeline.scoring import Features
from problem.features import features as own_features
from serving.app import create_app
from serving.connection import Limits, limited
from serving.release import load
from serving.service import Service
from serving.settings import read_settings
from serving.telemetry import Log, log_of_libraries

_CLIENTS_A_TURN = 16


def main(features: Features = own_features, *, check: bool = False) -> None:
    """Serve until told to stop; ends at once where a setting or the bundle is wrong, or where it is only to check."""
    log = Log()
    try:
        settings = read_settings(os.environ)
        if check:
            sys.stdout.write(f"{settings.model_dir}: {load(settings, features).hash} may be served\n")
            return
        app = create_app(settings, features, log)
    except InputError as error:
        sys.exit(f"serving: {error}")
    log_of_libraries(log)
    log.start()
    _tell(log, app.service)
    app.service.keep()
    gc.collect()
    gc.freeze()  # the collector need not look again at what stays
    refused = app.service.metrics.refused
    limits = Limits(settings.read_timeout_s, settings.write_timeout_s, settings.max_connections, refused)
    # uvicorn raises the signal that stopped it once more: this lets the process end in order.
    signal.signal(signal.SIGTERM, lambda _signal, _frame: None)
    try:
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            loop="uvloop",
            http=limited(limits),
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=settings.keep_alive_s,
            timeout_graceful_shutdown=settings.shutdown_s,
        )
        listening = config.bind_socket()
        # uvloop takes one client of each socket in a turn, and turns are long under load: new clients would wait long.
        uvicorn.Server(config).run([listening, *(listening.dup() for _ in range(_CLIENTS_A_TURN - 1))])
    finally:
        app.close()
        log.stop()
    os._exit(0)  # Python would wait for the thread of a model that hangs


def _tell(log: Log, service: Service) -> None:
    release, settings = service.live.release, service.settings
    log.line(
        "serving",
        name=release.name,
        version=release.version,
        model=release.hash,
        airworthy=release.airworthy,
        address=f"http://{settings.host}:{settings.port}",
    )
    if not settings.inspected:
        log.line("SERVING_INSPECTED=0: this bundle is served whatever its inspection says", "warning")
    if settings.open:
        log.line("SERVING_OPEN=1: whoever reaches this address may ask for predictions", "warning")


if __name__ == "__main__":
    main(check=sys.argv[1:] == ["--check"])
