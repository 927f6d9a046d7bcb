import json
import logging
import os
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from pipeline.errors import InputError
from serving.app import INFER, INFER_VERSION
from serving.telemetry import SECONDS, Distribution, Log, LogHandler, Requests, make_tracing
from tests.serving.made import ROOT, Bundle, Service, serving


@pytest.fixture
def fresh(made: Callable[[str], Bundle]) -> Service:
    return Service(made("binary-onnx"))


def test_requests_rows_scores_and_refusals_are_counted(fresh: Service, made: Callable[[str], Bundle]) -> None:
    rows = made("binary-onnx").rows()
    scores = fresh.predict(rows).json()["scores"]
    fresh.predict(rows[:1])
    fresh.predict([{}])
    fresh.post("/predict", content=b"x", headers={"content-type": "text/csv"})
    fresh.get("/nothing")
    assert fresh.metric("serving_requests_total", route="/predict", status="200") == 2
    assert fresh.metric("serving_requests_total", route="/predict", status="422") == 1
    assert fresh.metric("serving_requests_total", route="other", status="404") == 1
    assert fresh.metric("serving_request_seconds_count", route="/predict") == 4
    assert fresh.metric("serving_rows_total") == len(rows) + 1
    assert fresh.metric("serving_scores_count") == len(rows) + 1
    assert fresh.metric("serving_scores_sum") == pytest.approx(sum(scores) + scores[0])
    edge = fresh.release.reference["scores"]["score"]["edges"][0]
    assert fresh.metric("serving_scores_bucket", le=str(edge)) == sum(s <= edge for s in [*scores, scores[0]])
    for reason in ("invalid", "media_type", "not_found"):
        assert fresh.metric("serving_refused_total", reason=reason) == 1
    assert fresh.metric("serving_in_flight") == 0
    assert fresh.metric("serving_airworthy") == 1


def test_the_metrics_are_what_prometheus_reads_and_name_the_model(fresh: Service) -> None:
    fresh.get("/health/live")
    families = {family.name: family for family in text_string_to_metric_families(fresh.get("/metrics").text)}
    (info,) = families["serving_model_info"].samples
    assert info.labels == {
        "name": fresh.release.name,
        "version": fresh.release.version,
        "hash": fresh.release.hash,
        "runtime": "onnx",
    }
    assert {"serving_requests", "serving_request_seconds", "serving_rows", "serving_unseen"} <= families.keys()
    assert "process_resident_memory_bytes" in families
    bounds = [s.labels["le"] for s in families["serving_request_seconds"].samples if "le" in s.labels]
    assert (bounds[0], bounds[-2]) == ("0.0005", "5.0")


def test_requests_are_told_as_by_prometheus_own_counter_and_histogram() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    requests = Requests()
    ours.register(requests)
    counter = Counter("serving_requests", "Requests", ["route", "status"], registry=theirs)
    histogram = Histogram("serving_request_seconds", "Time to answer", ["route"], buckets=SECONDS, registry=theirs)
    for number, seconds in enumerate([0.0, *SECONDS, 5.001, 60.0] * 2):
        route, status = ("/predict", "other")[number % 2], (200, 422, 503)[number % 3]
        requests.count(route, status, seconds)
        counter.labels(route, str(status)).inc()
        histogram.labels(route).observe(seconds)
    assert sorted(generate_latest(ours).splitlines()) == sorted(generate_latest(theirs).splitlines())


def test_a_route_that_is_first_asked_for_while_the_metrics_are_told_breaks_nothing() -> None:
    requests = Requests()
    requests.count("/predict", 200, 0.5)
    requests._counts["/model", 200] = [1] + [0] * len(SECONDS)  # its time comes a moment later
    told = {family.name: family for family in requests.collect()}
    assert {sample.labels["route"] for sample in told["serving_requests"].samples} == {"/predict", "/model"}
    sums = [sample for sample in told["serving_request_seconds"].samples if sample.name.endswith("_sum")]
    assert {sample.labels["route"]: sample.value for sample in sums} == {"/predict": 0.5, "/model": 0.0}


def test_predictions_are_counted_by_the_edges_of_the_reference(made: Callable[[str], Bundle]) -> None:
    bundle = made("regression-onnx")
    service = Service(bundle)
    service.predict(bundle.rows())
    text = service.get("/metrics").text
    edges = bundle.read("reference.json")["scores"]["score"]["edges"]
    counted = [line.split('le="')[1].split('"')[0] for line in text.splitlines() if "serving_scores_bucket" in line]
    assert [float(edge) for edge in counted[:-1]] == edges


def test_of_several_classes_the_called_one_is_counted(made: Callable[[str], Bundle]) -> None:
    bundle = made("multiclass-onnx")
    service = Service(bundle)
    answer = service.predict(bundle.rows()).json()
    assert service.metric("serving_scores_sum") == pytest.approx(sum(map(max, answer["scores"])))


def test_thousands_of_scores_are_counted_as_one_by_one() -> None:
    scores = np.random.default_rng(0).random(1000).round(2)
    one, many = (Distribution("a", "b", [0.1, 0.5, 0.9]) for _ in range(2))
    for score in scores:
        one.observe(np.array([score]))
    many.observe(scores)
    (first,), (second,) = one.collect(), many.collect()
    assert [s.value for s in first.samples] == pytest.approx([s.value for s in second.samples])


def test_each_request_is_one_line_that_holds_nothing_of_its_rows(fresh: Service, made: Callable[[str], Bundle]) -> None:
    row = made("binary-onnx").rows(1)[0]
    fresh.predict([row, row | {"maker": "marker-x"}], headers={"x-request-id": "a"})
    fresh.predict([row | {"site": "marker-x"}])
    fresh.post("/invocations", json={"inputs": {"marker-x": ["marker-x"]}})
    fresh.get("/marker-x")
    lines = fresh.lines()
    assert [line["status"] for line in lines] == [200, 422, 422, 404]
    ok = lines[0]
    assert ok["time"].endswith("Z")
    assert (ok["level"], ok["event"], ok["request_id"]) == ("info", "request", "a")
    assert (ok["route"], ok["rows"], ok["model"]) == ("/predict", 2, fresh.release.hash[:12])
    assert isinstance(ok["ms"], float)
    assert "marker-x" not in json.dumps(lines)
    assert "marker-x" not in fresh.get("/metrics").text


def test_lines_are_written_by_another_thread_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    descriptor = os.open(path, os.O_CREAT | os.O_WRONLY)
    log = Log(descriptor)
    log.start()
    for number in range(5000):
        log.line("counted", number=number)
    log.stop()
    os.close(descriptor)
    assert [json.loads(line)["number"] for line in path.read_text().splitlines()] == list(range(5000))
    assert log.dropped == 0


def test_lines_that_have_no_room_are_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.telemetry._MAX_LINES", 3)
    log = Log()
    for _ in range(5):
        log.line("counted")
    assert (len(log._lines), log.dropped) == (3, 2)


def test_dropped_lines_are_told_as_a_counter(fresh: Service) -> None:
    assert fresh.metric("serving_log_lines_dropped_total") == 0
    fresh.log.dropped += 2
    assert fresh.metric("serving_log_lines_dropped_total") == 2
    assert "# TYPE serving_log_lines_dropped_total counter" in fresh.get("/metrics").text


def test_alerts_and_dashboard_take_the_routes_that_score_and_no_other(fresh: Service) -> None:
    files = [ROOT / "serving" / name for name in ("alerts.yml", "grafana/dashboard.json")]
    (pattern,) = {found for file in files for found in re.findall(r'route=~\\?"([^"\\]+)', file.read_text())}
    routes = {route.path for route in fresh.edge.app.routes}  # type: ignore[attr-defined]
    scoring = {"/predict", "/invocations", INFER, INFER_VERSION}
    assert {route for route in routes if re.fullmatch(pattern, route)} == scoring


def test_a_log_that_nobody_reads_stops_nothing() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    log = Log(writer)
    log.start()
    log.line("lost")
    log.stop()
    os.close(writer)
    assert log.dropped == 1


def test_what_libraries_log_stands_in_the_same_form_without_the_message_of_an_error() -> None:
    log = Log()
    logger = logging.Logger("uvicorn.error")
    logger.addHandler(LogHandler(log))
    try:
        raise ValueError("marker-x")
    except ValueError:
        logger.exception("Exception in ASGI application")
    line = json.loads(log._lines[0])
    assert (line["level"], line["event"], line["logger"]) == ("error", "Exception in ASGI application", "uvicorn.error")
    assert line["error"] == "ValueError"
    assert "marker-x" not in json.dumps(line)


class Collector:
    """A real OTLP collector, as far as it takes spans over HTTP."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.names: set[str] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                request = ExportTraceServiceRequest.FromString(self.rfile.read(int(self.headers["content-length"])))
                for resource in request.resource_spans:
                    said = {a.key: a.value.string_value for a in resource.resource.attributes}
                    collector.names.add(said["service.name"])
                    collector.spans += [span for scope in resource.scope_spans for span in scope.spans]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()


def test_spans_reach_a_collector_with_their_parent(made: Callable[[str], Bundle], tmp_path: Path) -> None:
    import httpx

    bundle, collector = made("binary-onnx"), Collector()
    address = f"http://127.0.0.1:{collector.server.server_port}"
    trace = "0af7651916cd43dd8448eb211c80319c"
    with serving(tmp_path, bundle, OTEL_EXPORTER_OTLP_ENDPOINT=address, OTEL_SERVICE_NAME="scores") as server:
        headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
        ok = httpx.post(f"{server.url}/predict", json={"rows": bundle.rows(1)}, headers=headers)
        bad = httpx.post(f"{server.url}/predict", json={"rows": []})
        assert server.stop() == 0
    collector.close()
    by_id = {span.span_id.hex(): span for span in collector.spans}
    span = by_id[ok.headers["traceparent"].split("-")[2]]
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (trace, "b7ad6b7169203331")
    assert (span.name, span.kind) == ("POST /predict", 2)
    said = {a.key: a.value.string_value or a.value.int_value for a in span.attributes}
    assert said["http.route"] == "/predict"
    assert said["http.response.status_code"] == 200
    assert by_id[bad.headers["traceparent"].split("-")[2]].parent_span_id == b""
    assert collector.names == {"scores"}
    logged = [line.get("trace_id") for line in server.lines() if line["event"] == "request"]
    assert trace in logged


@pytest.mark.parametrize(
    "variables", [{}, {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://x"},
                  {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_SDK_DISABLED": "true"}]
)  # fmt: skip
def test_without_the_standard_variables_nothing_is_traced(variables: dict[str, str]) -> None:
    assert make_tracing(variables, "x").begin("GET", "/", {}) is None


def test_another_exporter_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="OTEL_TRACES_EXPORTER: expected otlp or none, got 'zipkin'"):
        make_tracing({"OTEL_TRACES_EXPORTER": "zipkin"}, "x")


@pytest.mark.parametrize("name", ["OTEL_EXPORTER_OTLP_PROTOCOL", "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL"])
@pytest.mark.parametrize("protocol", ["grpc", "http/json"])
def test_another_protocol_is_refused_by_name(name: str, protocol: str) -> None:
    with pytest.raises(InputError, match=f"^{name}: expected http/protobuf, got '{protocol}'$"):
        make_tracing({"OTEL_TRACES_EXPORTER": "otlp", name: protocol}, "x")


def test_the_protocol_of_traces_holds_before_that_of_all_signals() -> None:
    variables = {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    tracing = make_tracing(variables | {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf"}, "x")
    assert tracing.begin("GET", "/", {}) is not None


def test_where_nothing_is_traced_the_protocol_is_anyones() -> None:
    assert make_tracing({"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "x").begin("GET", "/", {}) is None
