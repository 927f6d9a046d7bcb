import asyncio
import gc
import json
import re
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from serving.protocols import Call, Predict
from serving.rows import Inputs
from tests.serving.made import Bundle, Server, Service, problem

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def fresh(made: Callable[[str], Bundle]) -> Service:
    """A service of its own, whose figures and log begin at nothing."""
    return Service(made("binary-onnx"), SERVING_MAX_BODY_BYTES="20000", SERVING_MAX_ROWS="50")


def test_a_request_id_is_taken_and_returned(fresh: Service, made: Callable[[str], Bundle]) -> None:
    response = fresh.predict(made("binary-onnx").rows(1), headers={"X-Request-ID": "order-7.a_B"})
    assert response.headers["x-request-id"] == "order-7.a_B"
    assert response.json()["request_id"] == "order-7.a_B"
    assert fresh.lines()[-1]["request_id"] == "order-7.a_B"


@pytest.mark.parametrize(
    ("given", "taken"),
    [(b'a"}\\n{"b', "anb"), (b"<script>", "script"), (b"\xff\xfe1", "1"), (b"x" * 5000, "x" * 128), (b"a b\tc", "abc")],
)
def test_a_hostile_request_id_is_cleaned_and_cut(fresh: Service, given: bytes, taken: str) -> None:
    assert fresh.get("/health/live", headers={b"x-request-id": given}).headers["x-request-id"] == taken


@pytest.mark.parametrize("given", [{}, {"x-request-id": ""}, {"x-request-id": "///"}])
def test_a_request_without_an_id_gets_one_that_no_other_has(fresh: Service, given: dict[str, str]) -> None:
    answers = fresh.requests([("GET", "/health/live", {"headers": given})] * 100)
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert len(ids) == 100
    assert all(re.fullmatch(r"[0-9a-f]{16}-\d+", one) for one in ids)


@pytest.mark.parametrize("path", ["/health/live", "/nothing", "/predict"])
def test_a_trace_is_continued_with_a_span_of_this_service(fresh: Service, path: str) -> None:
    response = fresh.request("POST" if path == "/predict" else "GET", path, headers={"traceparent": TRACE})
    version, trace, span, flags = response.headers["traceparent"].split("-")
    assert (version, trace, flags) == ("00", "0af7651916cd43dd8448eb211c80319c", "01")
    assert re.fullmatch("[0-9a-f]{16}", span)
    assert span != "b7ad6b7169203331"
    assert fresh.lines()[-1]["trace_id"] == trace


@pytest.mark.parametrize(
    "given",
    [
        "",
        "nonsense",
        TRACE.upper(),
        TRACE.replace("00-", "ff-", 1),
        TRACE.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32),
        TRACE.replace("b7ad6b7169203331", "0" * 16),
        TRACE[:-1],
    ],
)
def test_a_trace_that_is_none_is_not_continued(fresh: Service, given: str) -> None:
    response = fresh.get("/health/live", headers={"traceparent": given})
    assert response.status_code == 200
    assert "traceparent" not in response.headers


def test_a_body_that_is_too_long_is_413(fresh: Service) -> None:
    document = problem(fresh.post("/predict", content=b" " * 20_001), 413)
    assert document["detail"] == "expected a body of at most 20000 bytes"


def test_a_body_that_grows_too_long_is_413_without_its_length_said(fresh: Service) -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 1000:
            sent += 1
            yield b" " * 1000

    problem(fresh.post("/predict", content=endless()), 413)
    assert sent < 30


def test_too_many_rows_are_413(fresh: Service, made: Callable[[str], Bundle]) -> None:
    row = made("binary-onnx").rows(1)[0]
    assert fresh.predict([row] * 50).status_code == 200
    document = problem(fresh.predict([row] * 51), 413)
    assert document["detail"] == "expected at most 50 rows in one request, got 51"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/predict", {"rows": [7] * 51}),
        ("/invocations", {"inputs": {"cycles": [[]] * 51}}),
        ("/invocations", {"dataframe_split": {"columns": ["cycles"], "data": [[]] * 51}}),
        ("/invocations", {"dataframe_records": [7] * 51}),
        ("/v2", {"inputs": [{"name": "cycles", "datatype": "FP64", "shape": [51], "data": ["x"] * 51}]}),
    ],
)
def test_rows_are_counted_before_they_are_looked_at(fresh: Service, path: str, body: Any) -> None:
    path = f"/v2/models/{fresh.release.name}/infer" if path == "/v2" else path
    document = problem(fresh.post(path, json=body), 413)
    assert document["detail"] == "expected at most 50 rows in one request, got 51"


def test_a_length_beyond_all_numbers_is_refused(fresh: Service) -> None:
    headers = {"inference-header-content-length": "9" * 5000}
    problem(fresh.post(f"/v2/models/{fresh.release.name}/infer", content=b"{}", headers=headers), 422)


@pytest.mark.parametrize("routed", [False, True], ids=["edge", "route"])
@pytest.mark.parametrize("kind", ["text/csv", "application/x-www-form-urlencoded", "application/octet-stream", "x"])
def test_a_body_of_another_type_is_415(made: Callable[[str], Bundle], kind: str, routed: bool) -> None:
    service = Service(made("binary-onnx"), routed=routed)
    response = service.post("/predict", content=b"{}", headers={"content-type": kind})
    assert response.status_code == 415
    assert response.json()["detail"] == f"expected the content type application/json, got {kind}"


def test_a_compressed_body_is_415(fresh: Service) -> None:
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    assert "uncompressed" in problem(fresh.post("/predict", content=b"x", headers=headers), 415)["detail"]


@pytest.mark.parametrize(
    ("method", "path", "allowed"), [("GET", "/predict", "POST"), ("DELETE", "/model", "GET"), ("PUT", "/v2", "GET")]
)
def test_another_method_is_405_and_told_which(fresh: Service, method: str, path: str, allowed: str) -> None:
    response = fresh.request(method, path)
    problem(response, 405)
    assert response.headers["allow"] == allowed


@pytest.mark.parametrize("path", ["/nothing", "/predict/", "/v2/models/other", "/v2/models/other/infer", "/%00"])
def test_what_is_not_there_is_404(fresh: Service, path: str) -> None:
    for method in ("GET", "POST"):
        response = fresh.request(method, path)
        if response.status_code != 405:
            problem(response, 404)


def test_what_nobody_foresaw_is_500_and_tells_the_client_nothing(
    made: Callable[[str], Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = made("binary-onnx")
    service = Service(bundle)

    def fail(*_: object) -> None:
        raise ValueError("marker-x is in row 7")

    monkeypatch.setattr("serving.protocols.Predict.write", fail)
    response = service.predict(bundle.rows(1))
    document = problem(response, 500)
    assert "marker-x" not in response.text
    assert document["detail"] == "the service failed; its log says more under this request's id"
    failed = next(line for line in service.lines() if line["event"] == "failed")
    assert failed["request_id"] == response.headers["x-request-id"]
    assert failed["error"] == "ValueError"
    assert any("fail" in frame for frame in failed["at"])
    assert "marker-x" not in json.dumps(service.lines())


def test_an_error_behind_an_ordinary_route_is_500_too(
    made: Callable[[str], Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(made("binary-onnx"))
    monkeypatch.setattr("serving.app.generate_latest", lambda _registry: 1 / 0)
    problem(service.get("/metrics"), 500)
    assert service.metric("serving_requests_total", route="/metrics", status="500") == 1
    assert [line["error"] for line in service.lines() if line["event"] == "failed"] == ["ZeroDivisionError"]


def test_a_client_that_leaves_before_its_body_is_complete_is_no_error(fresh: Service) -> None:
    sent = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    for app, path in ((fresh.edge, "/predict"), (fresh.edge, "/v2/models/other/infer")):
        scope = {
            "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": [(b"content-length", b"5")], "root_path": "", "scheme": "http", "http_version": "1.1",
        }  # fmt: skip
        asyncio.run(app(scope, receive, send))
    assert [line["status"] for line in fresh.lines()] == [499, 404]
    assert fresh.metric("serving_requests_total", route="/predict", status="499") == 1
    assert fresh.metric("serving_in_flight") == 0


@pytest.mark.parametrize("size", [1, 500])
def test_a_client_that_reads_slowly_keeps_no_rows(
    made: Callable[[str], Bundle], monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    service = Service(made("binary-onnx"))
    body = json.dumps({"rows": (made("binary-onnx").rows() * 5)[:size]}).encode()
    arrays: list[weakref.ref[Any]] = []
    calls: list[Call] = []
    make, read = Inputs.arrays, Predict.read

    def arrays_of(inputs: Inputs, rows: Any) -> Any:
        columns = make(inputs, rows)
        arrays.extend(map(weakref.ref, columns.values()))
        return columns

    def read_of(form: Predict, call: Call) -> Any:
        calls.append(call)
        return read(form, call)

    monkeypatch.setattr(Inputs, "arrays", arrays_of)
    monkeypatch.setattr(Predict, "read", read_of)

    async def ask() -> None:
        gone = asyncio.Event()
        scope = {"type": "http", "method": "POST", "path": "/predict", "headers": []}

        async def receive() -> Any:
            return {"type": "http.request", "body": body}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.body":
                gone.set()
                await asyncio.Event().wait()

        slow = asyncio.create_task(service.edge(scope, receive, send))
        await asyncio.wait_for(gone.wait(), 10)
        gc.collect()
        assert arrays
        assert not any(array() is not None for array in arrays)
        assert [(call.asked, call.body) for call in calls] == [(None, b"")]
        slow.cancel()

    asyncio.run(ask())


def test_the_model_tells_its_contract_lineage_and_verdict(fresh: Service, made: Callable[[str], Bundle]) -> None:
    bundle = made("binary-onnx")
    model = fresh.get("/model").json()
    assert (model["hash"], model["airworthy"], model["inspected"]) == (bundle.hash, True, True)
    assert model["contract"] == bundle.read("contract.json")
    assert model["lineage"] == bundle.read("lineage.json")
    assert model["verdict"]["airworthy"] is True


@pytest.mark.parametrize("path", ["/health/ready", "/v2/health/ready", "/health", "/ping"])
def test_a_service_is_ready_and_says_what_is_amiss_all_the_same(made: Callable[[str], Bundle], path: str) -> None:
    service = Service(made("binary-onnx"), SERVING_KILLED="1")
    answer = service.get(path).json()
    assert answer["ready"] is True
    assert "SERVING_KILLED" in answer["details"][0]
    assert service.get("/health/live").json() == {"live": True}


@pytest.mark.parametrize("path", ["/predict", "/model", "/", "/docs", "/nothing"])
def test_every_answer_is_safe_in_a_browser_and_for_this_origin_alone(service: Service, path: str) -> None:
    ask = service.post if path == "/predict" else service.get
    headers = ask(path, headers={"origin": "https://elsewhere.example"}).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert headers["x-frame-options"] == "SAMEORIGIN"
    assert headers["referrer-policy"] == "no-referrer"
    assert not [name for name in headers if name.startswith("access-control-")]


@pytest.mark.parametrize("path", ["/predict", "/invocations"])
def test_an_answer_is_the_same_for_a_connection_that_stays_and_one_that_ends(
    server: Server, made: Callable[[str], Bundle], path: str
) -> None:
    asked = {"rows" if path == "/predict" else "instances": made("binary-onnx").rows()[:1]}
    stays, ends = (
        httpx.post(server.url + path, headers={"x-request-id": "one", "connection": connection}, json=asked)
        for connection in ("keep-alive", "close")
    )
    assert stays.status_code == 200
    assert ends.headers.pop("connection") == "close"
    assert (stays.status_code, stays.content) == (ends.status_code, ends.content)
    assert {**stays.headers, "date": ""} == {**ends.headers, "date": ""}


@pytest.mark.parametrize("path", ["/health/live", "/health/ready", "/v2/health/live", "/health", "/ping"])
def test_health_may_be_asked_for_without_a_body(service: Service, path: str) -> None:
    answer = service.request("HEAD", path)
    assert (answer.status_code, answer.content) == (200, b"")


def test_an_answer_that_is_not_the_model_s_says_so_in_every_form(made: Callable[[str], Bundle]) -> None:
    bundle = made("binary-onnx")
    service = Service(bundle, SERVING_KILLED="1")
    asked = service.post("/invocations", json={"dataframe_records": bundle.rows(1)})
    assert asked.headers["x-source"] == "baseline"
    assert "x-source" not in Service(bundle).predict(bundle.rows(1)).headers
