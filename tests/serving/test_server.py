import json
import platform
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from tests.serving.made import TASKS, Bundle, Server, serving


def test_the_server_answers_with_the_golden_scores(server: Server, made: Callable[[str], Bundle]) -> None:
    bundle = made("binary-onnx")
    answer = httpx.post(f"{server.url}/predict", json={"rows": bundle.rows()}).json()
    np.testing.assert_allclose(answer["scores"], np.ravel(bundle.golden["scores"]), atol=1e-9, rtol=0)


@pytest.mark.parametrize("task", TASKS)
def test_a_model_on_scikit_learn_answers_with_the_golden_scores_to_many_at_once(
    made: Callable[[str], Bundle], sklearn_python: str, tmp_path: Path, task: str
) -> None:
    bundle = made(f"{task}-sklearn")
    expected, rows = np.array(bundle.golden["scores"]), bundle.rows()
    with serving(tmp_path, bundle, sklearn_python) as server, httpx.Client(base_url=server.url) as client:
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda row: client.post("/predict", json={"rows": [row]}).json(), rows))
        scores = np.array([answer["scores"][0] for answer in answers]).reshape(expected.shape)
        np.testing.assert_allclose(scores, expected, rtol=1e-9, atol=1e-9)
        assert 'runtime="sklearn"' in client.get("/metrics").text
        refused = client.post("/predict", json={"rows": [rows[0] | {"cycles": -1}]})
        assert refused.json()["errors"][0]["column"] == "cycles"


def test_the_problems_own_bundle_answers_with_its_golden_scores(own: Bundle, tmp_path: Path) -> None:
    with serving(tmp_path, None, SERVING_INSPECTED="0", SERVING_MODEL_DIR=str(own.folder)) as server:
        answer = httpx.post(f"{server.url}/predict", json={"rows": own.rows()}).json()
        assert httpx.get(f"{server.url}/model").json()["hash"] == own.hash
    scores = np.array(answer["scores"]).reshape(np.shape(own.golden["scores"]))
    np.testing.assert_allclose(scores, own.golden["scores"], rtol=1e-9, atol=1e-9)
    warnings = [line["event"] for line in server.lines() if line["level"] == "warning"]
    assert any("SERVING_INSPECTED=0" in warning for warning in warnings)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another libc keeps memory otherwise")
def test_a_large_request_takes_no_new_memory_of_the_kernel(server: Server, made: Callable[[str], Bundle]) -> None:
    body = json.dumps({"rows": made("binary-onnx").rows() * 60})

    def faults(requests: int) -> int:
        before = _faults(server.process.pid)
        with httpx.Client(base_url=server.url) as client:
            for _ in range(requests):
                assert client.post("/predict", content=body).status_code == 200
        return _faults(server.process.pid) - before

    faults(20)  # it grows to what such requests need
    assert faults(20) < 20 * len(body) / 4096 / 2  # even one copy of the body would take twice as many pages


def _faults(pid: int) -> int:
    """How many pages the kernel has given a process so far."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[7])


def _raw(server: Server, sent: bytes) -> bytes:
    """What comes back until the server closes the connection."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(sent)
        received = b""
        while piece := connection.recv(65536):
            received += piece
    return received


def test_a_body_that_does_not_come_is_408_and_the_connection_closed(server: Server) -> None:
    head = b"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n"
    answer = _raw(server, head + b'{"rows"')
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"connection: close" in answer
    assert b"expected the whole body within 0.5 seconds" in answer


def test_a_body_that_comes_byte_by_byte_is_408(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(b"POST /predict HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n")
        connection.settimeout(0.05)
        answer = b""
        while not answer:
            connection.sendall(b"1\r\n \r\n")
            try:
                answer = connection.recv(65536)
            except TimeoutError:
                continue
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_client_of_too_long_a_body_hears_413(server: Server) -> None:
    response = httpx.post(f"{server.url}/predict", content=b" " * 12_000_000)
    assert response.status_code == 413
    assert response.json()["detail"] == "expected a body of at most 10000000 bytes"


def test_what_is_no_http_is_400(server: Server) -> None:
    assert _raw(server, b"nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 ")


def test_the_server_does_not_tell_what_it_is(server: Server) -> None:
    assert "server" not in httpx.get(f"{server.url}/health/live").headers


def test_every_line_of_the_log_is_json_without_contents_of_rows(made: Callable[[str], Bundle], tmp_path: Path) -> None:
    bundle = made("binary-onnx")
    row = bundle.rows(1)[0]
    with serving(tmp_path, bundle) as server:
        for changed in ({"maker": "marker-x"}, {"site": "marker-x"}, {"marker-x": 1}):
            httpx.post(f"{server.url}/predict", json={"rows": [row | changed]}, headers={"x-request-id": "mine"})
        assert server.stop() == 0
    lines = server.lines()
    assert [line["status"] for line in lines if line.get("request_id") == "mine"] == [200, 422, 422]
    assert all({"time", "level", "event"} <= line.keys() for line in lines)
    assert lines[0]["event"] == "serving"
    assert "marker-x" not in server.log.read_text()
    assert Path(str(server.log).replace(".log", ".err")).read_text() == ""


def test_a_request_under_way_is_answered_before_the_server_stops(made: Callable[[str], Bundle], tmp_path: Path) -> None:
    bundle = made("binary-onnx")
    body = json.dumps({"rows": bundle.rows(1)}).encode()
    with serving(tmp_path, bundle) as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            head = f"POST /predict HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            connection.sendall(head + body[:10])
            while httpx.get(f"{server.url}/metrics").text.find("serving_in_flight 2.0") < 0:
                time.sleep(0.01)
            server.process.terminate()
            while any(line["event"] == "Shutting down" for line in server.lines()) is False:
                time.sleep(0.01)
            connection.sendall(body[10:])
            answer = connection.recv(65536)
        assert server.process.wait(30) == 0
    assert answer.startswith(b"HTTP/1.1 200 ")
