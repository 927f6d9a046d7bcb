"""What the service tells of itself: metrics, log lines, traces. Change here to tell more.

Never what a row holds: not in a metric, a log line, a span or the report of an error.
"""

import itertools
import logging
import os
import re
import threading
import traceback
from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from threading import Lock
from time import time
from typing import Any, cast, get_args

import msgspec
import numpy as np
from msgspec import UNSET, Struct, UnsetType
from msgspec.structs import replace
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector, disable_created_metrics
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from pipeline.errors import InputError
from serving.breaker import Reason
from serving.protocols import Source
from serving.release import Release

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_PROBABILITIES = tuple(edge / 10 for edge in range(1, 11))
SOURCES = get_args(Source)
FAILURES = get_args(Reason)
_FLUSH_S = 0.1
_STOP_S = 5.0
_MAX_LINES = 100_000  # that wait to be written
_PROTOCOL = "http/protobuf"  # of the exporter that serving/requirements.lock has
_TRACEPARENT = re.compile(rb"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-([0-9a-f]{2})(-.*)?")


class Distribution(Collector):
    """A histogram that takes thousands of values at once, from any thread."""

    def __init__(self, name: str, meaning: str, edges: Iterable[float]) -> None:
        self._name, self._meaning = name, meaning
        self._lock = Lock()
        self._edges: list[float] = []
        self.count_between(edges)

    def count_between(self, edges: Iterable[float]) -> None:
        """Begin anew, unless the edges are the same."""
        wanted = [*edges, float("inf")]
        with self._lock:
            if self._edges != wanted:
                self._edges, self._counts, self._sum = wanted, [0] * len(wanted), 0.0

    def observe(self, values: np.ndarray) -> None:
        """Count values of shape [n]."""
        with self._lock:
            if len(values) == 1:  # numpy takes four times as long to look at one
                value = values.item()
                self._sum += value
                self._counts[bisect_left(self._edges, value)] += 1
                return
            self._sum += float(values.sum())
            for edge, count in enumerate(np.bincount(np.searchsorted(self._edges, values)).tolist()):
                self._counts[edge] += count

    def collect(self) -> Iterable[HistogramMetricFamily]:
        """What prometheus_client asks for."""
        with self._lock:
            buckets, total = _buckets(self._edges[:-1], self._counts), self._sum
        yield HistogramMetricFamily(self._name, self._meaning, buckets, total)


class Requests(Collector):
    """Requests by route and status, and the time that they took: for one thread, which is why counting one costs a
    third of what prometheus_client's own take."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, int], list[int]] = {}  # by the bucket of its time
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def count(self, route: str, status: int, seconds: float) -> None:
        """Count one."""
        counts = self._counts.get((route, status))
        if counts is None:
            counts = self._counts[route, status] = [0] * (len(SECONDS) + 1)
        counts[bisect_left(SECONDS, seconds)] += 1
        self._seconds[route] += seconds

    def collect(self) -> Iterable[CounterMetricFamily | HistogramMetricFamily]:
        """What prometheus_client asks for."""
        requests = CounterMetricFamily("serving_requests", "Requests", labels=["route", "status"])
        times = HistogramMetricFamily("serving_request_seconds", "Time to answer", labels=["route"])
        by_route = defaultdict(list)
        for (route, status), counts in list(self._counts.items()):
            requests.add_metric([route, str(status)], sum(counts))
            by_route[route].append(counts)
        for route, counts_of in by_route.items():
            counts = [*map(sum, zip(*counts_of, strict=True))]
            times.add_metric([route], _buckets(SECONDS, counts), self._seconds.get(route, 0.0))
        yield requests
        yield times


class Counted(Collector):
    """A counter of what something else counts: by the values of its labels, of which it may have none."""

    def __init__(
        self, name: str, meaning: str, counts: Callable[[], Mapping[tuple[str, ...], float]], *labels: str
    ) -> None:
        self._name, self._meaning, self._counts, self._labels = name, meaning, counts, labels

    def collect(self) -> Iterable[CounterMetricFamily]:
        """What prometheus_client asks for."""
        counter = CounterMetricFamily(self._name, self._meaning, labels=self._labels)
        for labels, count in self._counts().items():
            counter.add_metric(labels, count)
        yield counter


class Metrics:
    """Everything that Prometheus may ask for."""

    def __init__(self, release: Release, log: "Log") -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # prometheus_client types none of its functions
        self.in_flight = 0
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Requests()
        registry.register(self._requests)
        self.answered = self._requests.count
        self._rows = 0
        self.tell_count("serving_rows", "Rows scored", lambda: self._rows)
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        self._sources: dict[tuple[str, ...], int] = {(source,): 0 for source in SOURCES}
        meaning = "Requests scored, by what scored them"
        registry.register(Counted("serving_answers", meaning, lambda: self._sources, "source"))
        self._unseen = counter("serving_unseen", "Categories that training never saw", ["column"])
        self._refused = counter("serving_refused", "Requests that were refused", ["reason"])
        self._failures = counter("serving_model_failures", "Calls of the model that failed", ["reason"])
        self.reloads = counter("serving_reloads", "Bundles that were to replace another", ["outcome"])
        for told, labels in ((self._failures, FAILURES), (self.reloads, ("done", "refused"))):
            for label in labels:  # a counter that begins at 1 has not risen, to Prometheus
                told.labels(label)
        self.tell("serving_in_flight", "Requests under way", lambda: self.in_flight)
        self.tell_count("serving_log_lines_dropped", "Log lines that had no room", lambda: log.dropped)
        self._about = gauge("serving_model_info", "The model", ["name", "version", "hash", "runtime"])
        self._airworthy = gauge("serving_airworthy", "Whether an inspection found it airworthy")
        self._scores = Distribution("serving_scores", "Scores: of the called class, or predictions", ())
        registry.register(self._scores)
        self.serves(release)

    def tell(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """Tell what a function returns when asked."""
        Gauge(name, meaning, registry=self.registry).set_function(value)

    def tell_count(self, name: str, meaning: str, value: Callable[[], float]) -> None:
        """Tell what a function returns, which only grows."""
        self.registry.register(Counted(name, meaning, lambda: {(): value()}))

    def serves(self, release: Release) -> None:
        """Tell of the release that answers from now on."""
        self._about.clear()
        self._about.labels(release.name, release.version, release.hash, release.contract["runtime"]).set(1)
        self._airworthy.set(release.airworthy)
        for column in release.inputs.columns:
            if column.open:
                self._unseen.labels(column.name)
        self._several = release.contract["task"] == "multiclass"
        self._scores.count_between(_score_edges(release))

    def scored(self, scores: np.ndarray, unseen: list[tuple[int, str]], source: str, requests: int) -> None:
        """Count the scores [n, k] of some requests, and unseen categories."""
        self._rows += len(scores)
        self._sources[source,] += requests
        self._scores.observe(scores.max(axis=1) if self._several else scores[:, 0])
        for _, column in unseen:
            self._unseen.labels(column).inc()

    def model_failed(self, reason: str) -> None:
        """Count a call of the model that failed."""
        self._failures.labels(reason).inc()

    def refused(self, reason: str) -> None:
        """Count a request that was refused."""
        self._refused.labels(reason).inc()


def _buckets(edges: Sequence[float], counts: Sequence[int]) -> list[tuple[str, float]]:
    """The buckets of a histogram: up to each edge, and in all."""
    return list(zip([*map(str, edges), "+Inf"], itertools.accumulate(counts), strict=True))


def _score_edges(release: Release) -> tuple[float, ...]:
    """As in training, so that the two can be compared."""
    return tuple(release.reference["scores"].get("score", {}).get("edges", ())) or _PROBABILITIES


class RequestLine(Struct, gc=False):
    """The line of a request; `time` is in seconds since 1970 until it is written."""

    time: float | datetime
    request_id: str
    model: str
    holder: str
    route: str
    status: int
    ms: float
    rows: int
    trace_id: str | UnsetType = UNSET
    level: str = "info"
    event: str = "request"


class Log:
    """JSON lines to a file descriptor, written by a thread: whoever logs waits for no disk and no pipe."""

    def __init__(self, descriptor: int = 1) -> None:
        self._descriptor = descriptor
        self._lines: deque[bytes | RequestLine] = deque()
        self._encode = msgspec.json.Encoder().encode
        self._stopping = threading.Event()
        self._writer = threading.Thread(target=self._write, name="log", daemon=True)
        self.dropped = 0

    def line(self, event: str, level: str = "info", **fields: Any) -> None:
        """Log an event."""
        self._append(self._encode({"time": datetime.now(UTC), "level": level, "event": event, **fields}))

    def request(self, *fields: Any) -> None:
        """Log a request: the fields of `RequestLine` behind its time. The thread makes JSON of it."""
        self._append(RequestLine(time(), *fields))

    def start(self) -> None:
        """Begin to write."""
        self._writer.start()

    def stop(self) -> None:
        """Write what waits, and end."""
        self._stopping.set()
        self._writer.join(_STOP_S)

    def _write(self) -> None:
        while not self._stopping.wait(_FLUSH_S):
            self._flush()
        self._flush()

    def _append(self, line: bytes | RequestLine) -> None:
        if len(self._lines) < _MAX_LINES:
            self._lines.append(line)
        else:
            self.dropped += 1

    def _encoded(self, line: bytes | RequestLine) -> bytes:
        if isinstance(line, bytes):
            return line
        return self._encode(replace(line, time=datetime.fromtimestamp(cast("float", line.time), UTC)))

    def _flush(self) -> None:
        lines = [self._encoded(self._lines.popleft()) for _ in range(len(self._lines))]
        data = memoryview(b"\n".join([*lines, b""]))
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError:  # nobody reads it any more
            self.dropped += len(lines)


class LogHandler(logging.Handler):
    """What libraries log, uvicorn above all, as lines of the same log."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.INFO)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Log a record."""
        failure = failed(record.exc_info[1]) if record.exc_info and record.exc_info[1] else {}
        self._log.line(record.getMessage(), record.levelname.lower(), logger=record.name, **failure)


def failed(error: BaseException) -> dict[str, Any]:
    """An exception without its message, which may quote a row: its type, and where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    return {"error": type(error).__name__, "at": [f"{f.filename}:{f.lineno} {f.name}" for f in frames]}


class Span:
    """A request's part in a trace: handed on, and not recorded."""

    def __init__(self, trace_id: str, traceparent: bytes) -> None:
        self.trace_id = trace_id
        self.traceparent = traceparent

    def end(self, route: str, status: int) -> None:
        """Its request is answered."""


class Tracing:
    """Nothing is recorded: the trace of a request that has one goes on under a new span's id (W3C Trace Context)."""

    def begin(self, method: str, path: str, headers: Mapping[bytes, bytes]) -> Span | None:  # noqa: ARG002 - for those who record
        """The span of a request."""
        came = headers.get(b"traceparent")
        matched = came and _TRACEPARENT.fullmatch(came)
        if not matched:
            return None
        trace_id, flags = matched[1], matched[2]
        return Span(trace_id.decode(), b"00-%b-%b-%b" % (trace_id, os.urandom(8).hex().encode(), flags))

    def stop(self) -> None:
        """Nothing waits."""


def make_tracing(environment: Mapping[str, str], name: str) -> Tracing:
    """OpenTelemetry where its standard variables ask for it, which then costs each request its span."""
    asked = any(environment.get(f"OTEL_EXPORTER_OTLP_{kind}ENDPOINT") for kind in ("", "TRACES_"))
    exporter = environment.get("OTEL_TRACES_EXPORTER", "otlp" if asked else "none")
    if exporter not in ("otlp", "none"):
        raise InputError(f"OTEL_TRACES_EXPORTER: expected otlp or none, got '{exporter}'")
    if exporter == "none" or environment.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return Tracing()
    _check_protocol(environment)
    from serving.tracing import Traced  # only here: it loads the SDK

    return Traced(environment.get("OTEL_SERVICE_NAME", name))


def _check_protocol(environment: Mapping[str, str]) -> None:
    for name in ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"):  # the first that is set holds
        protocol = environment.get(name)
        if protocol == _PROTOCOL:
            return
        if protocol:
            raise InputError(f"{name}: expected {_PROTOCOL}, got '{protocol}'")


def log_of_libraries(log: Log) -> None:
    """Send what libraries log and warn of to the log."""
    logging.basicConfig(handlers=[LogHandler(log)], level=logging.INFO, force=True)
    logging.captureWarnings(True)
