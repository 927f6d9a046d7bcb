"""Starts the service: `python -m serving`; with `--check` it says only whether the bundle may be served. Change here to
start it otherwise."""

import ctypes
import gc
import os
import signal
import socket
import sys
from contextlib import suppress

import uvicorn

from pipeline.errors import InputError
from pipeline.scoring import Features
from problem.features import features as own_features
from serving.app import create_app
from serving.connection import Limits, limited
from serving.release import load
from serving.service import Service
from serving.settings import Settings, read_settings
from serving.telemetry import Log, log_of_libraries

_CLIENTS_A_TURN = 16
_COLLECTED_AFTER = 20_000  # objects more than there were
_KEPT = {-1: 32_000_000, -3: 4_000_000}  # bytes, by the numbers of M_TRIM_THRESHOLD and M_MMAP_THRESHOLD


def main(features: Features = own_features, *, check: bool = False) -> None:
    """Serve until told to stop; ends at once where a setting or the bundle is wrong, or where it is only to check."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there is something to load anew
    log = Log()
    try:
        settings = read_settings(os.environ)
        if check:
            sys.stdout.write(f"{settings.model_dir}: {load(settings, features).hash} may be served\n")
            return
        app = create_app(settings, features, log)
        listening = _bind(settings)
    except InputError as error:
        sys.exit(f"serving: {error}")
    _keep_memory()
    log_of_libraries(log)
    log.start()
    _tell(log, app.service)
    app.service.keep()
    gc.collect()
    gc.freeze()  # the collector need not look again at what stays
    gc.set_threshold(_COLLECTED_AFTER, 20, 20)  # nor often at requests, which leave next to nothing behind
    refused = app.service.metrics.refused
    limits = Limits(settings.read_timeout_s, settings.write_timeout_s, settings.max_connections, refused)
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
        server = uvicorn.Server(config)
        for stop in (signal.SIGINT, signal.SIGTERM):  # that come before uvicorn listens, or that it raises once more
            signal.signal(stop, server.handle_exit)
        # uvloop takes one client of each socket in a turn, and turns are long under load: new clients would wait long.
        server.run([listening, *(listening.dup() for _ in range(_CLIENTS_A_TURN - 1))])
    finally:
        app.close()
        log.stop()
    os._exit(0)  # Python would wait for the thread of a model that hangs


def _keep_memory() -> None:
    """Let glibc keep what a large request has given back, for the next: the kernel would clear each page anew, which
    took a quarter of the time of 1,000 rows (mallopt(3))."""
    with suppress(AttributeError):  # another libc
        for parameter, size in _KEPT.items():
            ctypes.CDLL(None).mallopt(parameter, size)


def _bind(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        address = f"SERVING_HOST={settings.host} SERVING_PORT={settings.port}"
        raise InputError(f"{address}: expected an address that is free, got '{error.strerror}'; name another") from None


def _tell(log: Log, service: Service) -> None:
    release, settings = service.live.release, service.settings
    named = {"name": release.name, "version": release.version, "model": release.hash}
    address = f"http://{settings.host}:{settings.port}"
    log.line("serving", **named, airworthy=release.airworthy, address=address)
    if not settings.inspected:
        log.line("SERVING_INSPECTED=0: this bundle is served whatever its inspection says", "warning")
    if settings.open:
        log.line("SERVING_OPEN=1: whoever reaches this address may ask for predictions", "warning")


if __name__ == "__main__":
    main(check=sys.argv[1:] == ["--check"])
