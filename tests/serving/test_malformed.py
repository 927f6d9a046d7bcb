"""Ten thousand bodies that are not as they should be, sent to the running server: it answers each with what is wrong,
and nothing of them stays."""

import http.client
import json
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import httpx
import numpy as np
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi import checks

from pipeline.journal import FEEDBACK, read_entries, read_predictions
from tests.serving.made import Bundle, Server, serving

KEY = "key_of_the_tests"
DESCRIBED, MUTATED, AT_ONCE = 36, 9_500, 100  # of each operation and mode; in all; in one example of hypothesis

_SETTINGS: dict[str, Any] = {
    "deadline": None,
    "database": None,
    "phases": (Phase.generate,),  # to shrink an example asks thousands of times more
    "suppress_health_check": list(HealthCheck),
}
_REFUSED = {401, 403, 404, 405, 408, 413, 415, 422}
_INSIDE = re.compile(
    r"Traceback|\.py\b|\b[A-Z]\w+(Error|Exception|Warning)\b|<class|object at 0x|NoneType|ndarray|dtype|float64"
    r"|`(str|int|float|bool|dict|list|tuple|bytes|set)`|msgspec|numpy|pydantic|starlette"
)
_SCALAR = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d[\d.eE+-]*|true|false|null')
_DEEP = 100_000

HOSTILE = [
    *b"null true false 0 -0 1 -1 1e400 -1e400 1e-400 1e308 NaN Infinity -Infinity 0x10 01 1. .5 +1 [] {} [[]]".split(),
    b"9" * 5_000, b"1" + b"0" * 400, b"0." + b"3" * 5_000, b"-9223372036854775809", b"18446744073709551616",
    b'""', b'"x"', b'"' + b"a" * 100_000 + b'"', b'"\\u0000"', b'"\\ud800"', b'"\xff\xfe"', b'"\xed\xa0\x80"',
    b'"0001-01-01T00:00:00+14:00"', b'"9999-12-31T23:59:59-14:00"', b'"2020-02-30T00:00:00"', b'"2020-01-01"',
    b"[" * _DEEP, b'{"a":' * _DEEP, b"[" * _DEEP + b"]" * _DEEP, b"",
]  # fmt: skip
KINDS = [
    "application/json", "application/json; charset=utf-16", "application/octet-stream", "text/csv", "", "x", "/",
    "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/json" * 500,
]  # fmt: skip


class Request(NamedTuple):
    """What is sent."""

    path: str
    body: bytes
    headers: dict[str, str]

    def __repr__(self) -> str:
        return f"{self.path} of {len(self.body)} bytes"  # a hundred of them stand beside the one that failed


class Asker:
    """A client with a key; each answer is looked at."""

    def __init__(self, server: Server) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        self.statuses: Counter[int] = Counter()

    def close(self) -> None:
        self._connection.close()

    def megabytes(self) -> float:
        """What the server takes."""
        self._connection.request("GET", "/metrics")
        text = self._connection.getresponse().read().decode()
        found = re.search(r"^process_resident_memory_bytes (.*)$", text, re.MULTILINE)
        assert found
        return float(found[1]) / 1e6

    def ask(self, sent: Request) -> None:
        """Send a body; AssertionError where the answer is none that a client may get."""
        self._connection.request("POST", sent.path, sent.body, {"authorization": f"Bearer {KEY}"} | sent.headers)
        response = self._connection.getresponse()
        body = response.read()
        self.statuses[response.status] += 1
        said = f"{sent.path} {sent.headers} {sent.body[:300]!r}: {response.status} {body[:500]!r}"
        check(response.status, response.headers.get("content-type", ""), body, said, page=sent.path == "/")


def check(status: int, media_type: str, body: bytes, said: str, *, page: bool) -> None:
    """Whether an answer is scores, or says in clients' words what is wrong."""
    assert status == 200 or status in _REFUSED, said
    found = None if page and status == 200 else _INSIDE.search(body.decode())
    assert found is None, f"{found}: {said}"
    if media_type == "application/problem+json":
        document = json.loads(body)
        assert document["status"] == status != 200, said
        assert {"type", "title", "detail", "instance"} <= document.keys(), said
        assert len(body) < 20_000, said
    elif page:
        assert media_type == "text/html; charset=utf-8", said
    else:
        assert status == 200, said
        assert media_type in ("application/json", "application/octet-stream"), said
        if media_type == "application/json":
            json.loads(body, parse_constant=pytest.fail)


def valid(bundle: Bundle, name: str) -> list[Request]:
    """Requests that are as they should be, one of each form."""
    rows = bundle.rows(3)
    columns = {column: [row[column] for row in rows] for column in rows[0]}
    forms = {
        "dataframe_split": {"columns": [*columns], "data": [[*row.values()] for row in rows]},
        "dataframe_records": rows,
        "instances": rows,
        "inputs": columns,
    }
    kinds = {"temperature": "FP64", "cycles": "INT64", "guarded": "BOOL"}
    tensors: list[dict[str, Any]] = [
        {"name": column, "shape": [3], "datatype": kinds.get(column, "BYTES"), "data": values}
        for column, values in columns.items()
    ]
    outcomes = [{"request_id": "a", "row": 0, "outcome": True}, {"request_id": "b", "outcome": False}]
    row = {entry["name"]: rows[0][entry["name"]] for entry in bundle.read("contract.json")["inputs"]}
    texts = ["" if value is None else value if isinstance(value, str) else json.dumps(value) for value in row.values()]
    filled = {"key": KEY} | {f"c{place}": text for place, text in enumerate(texts)}
    json_type = {"content-type": "application/json"}
    return [
        Request("/predict", json.dumps({"rows": rows}).encode(), json_type),
        *(Request("/invocations", json.dumps({form: value}).encode(), json_type) for form, value in forms.items()),
        Request(f"/v2/models/{name}/infer", json.dumps({"inputs": tensors, "id": "x"}).encode(), json_type),
        binary(f"/v2/models/{name}/infer", tensors),
        Request("/feedback", json.dumps({"outcomes": outcomes}).encode(), json_type),
        Request("/", urlencode(filled).encode(), {"content-type": "application/x-www-form-urlencoded"}),
    ]


def binary(path: str, tensors: list[dict[str, Any]]) -> Request:
    """A V2 request whose data stands behind its JSON."""
    heads, tail = [], b""
    for tensor in tensors:
        values = tensor["data"]
        if tensor["datatype"] == "BYTES":
            data = b"".join(struct.pack("<I", len(text)) + text.encode() for text in map(str, values))
        else:
            code = {"FP64": "<f8", "INT64": "<i8", "BOOL": "?"}[tensor["datatype"]]
            data = np.array([np.nan if value is None else value for value in values]).astype(code).tobytes()
        parameters = {"parameters": {"binary_data_size": len(data)}}
        heads.append({key: value for key, value in tensor.items() if key != "data"} | parameters)
        tail += data
    head = json.dumps({"inputs": heads}).encode()
    sent = {"content-type": "application/octet-stream", "inference-header-content-length": str(len(head))}
    return Request(path, head + tail, sent)


@st.composite
def mutated(draw: st.DrawFn, right: list[Request]) -> Request:
    """A request with one to three things wrong."""
    path, body, headers = draw(st.sampled_from(right))
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(body)))
        end = min(len(body), start + draw(st.integers(0, 40)))
        match draw(
            st.sampled_from(["value", "value", "value", "cut", "drop", "twice", "over", "in", "kind", "length"])
        ):
            case "value" if found := list(_SCALAR.finditer(body[:20_000])):
                start, end = draw(st.sampled_from(found)).span()
                body = body[:start] + draw(st.sampled_from(HOSTILE)) + body[end:]
            case "cut":
                body = body[:start]
            case "drop":
                body = body[:start] + body[end:]
            case "twice":  # of keys too
                body = body[:end] + body[start:]
            case "kind":
                headers = headers | {"content-type": draw(st.sampled_from(KINDS))}
            case "length":
                length = st.sampled_from(["", "-1", "x", "0", "1", str(len(body) + 1), "9" * 5_000, str(start)])
                headers = headers | {"inference-header-content-length": draw(length)}
            case "over":  # of the same length, as binary tensors need it
                other = draw(
                    st.sampled_from([b"\xff", b"\0", b"\xff" * 4, b"\xff" * 8]) | st.binary(min_size=1, max_size=4)
                )
                body = body[:start] + other + body[start + len(other) :]
            case _:
                body = body[:start] + draw(st.binary(max_size=8)) + body[start:]
    return Request(path, body, headers)


@contextmanager
def watched(folder: Path, bundle: Bundle) -> Iterator[Server]:
    """A server that must be at the end what it was: alive, no larger, and exact."""
    keys = folder / "keys.toml"
    scopes = ["predict", "feedback", "admin"]
    keys.write_text(f'[tests]\nscopes = {scopes}\nsha256 = "{sha256(KEY.encode()).hexdigest()}"\n')
    with serving(folder, bundle, SERVING_OPEN="0", SERVING_KEYS_FILE=str(keys)) as server:
        before = exact(server, bundle)
        yield server
        assert exact(server, bundle) == before
        assert server.stop() == 0
    lines = [json.loads(line) for line in server.log.read_bytes().splitlines()]
    assert {line["level"] for line in lines} <= {"info", "warning"}
    assert server.log.with_suffix(".err").read_text() == ""
    written = server.log.with_suffix(".data") / "log"
    assert sum(1 for _ in read_predictions(written)) > 0
    assert sum(1 for _ in read_entries(written, FEEDBACK)) > 0


def exact(server: Server, bundle: Bundle) -> list[float]:
    """The scores of the golden rows, by the model."""
    key = {"authorization": f"Bearer {KEY}"}
    assert httpx.post(f"{server.url}/admin/revive", headers=key).status_code == 200
    answer = httpx.post(f"{server.url}/predict", json={"rows": bundle.rows()}, headers=key).json()
    assert answer["source"] == "model"
    np.testing.assert_allclose(answer["scores"], np.ravel(bundle.golden["scores"]), atol=1e-9, rtol=0)
    return list(answer["scores"])


def test_nothing_that_is_wrong_with_a_body_shakes_the_server(made: Callable[[str], Bundle], tmp_path: Path) -> None:
    bundle = made("binary-onnx")
    right = valid(bundle, bundle.load().name)
    with watched(tmp_path, bundle) as server, closing(Asker(server)) as asker:
        sizes = []
        for request in right:
            asker.ask(request)
        assert asker.statuses == {200: len(right)}

        @settings(max_examples=MUTATED // AT_ONCE, **_SETTINGS)
        @given(some=st.lists(mutated(right), min_size=AT_ONCE, max_size=AT_ONCE))
        def ask(some: list[Request]) -> None:
            for sent in some:
                asker.ask(sent)
            sizes.append(asker.megabytes())

        ask()
        assert sum(asker.statuses.values()) >= MUTATED
        assert asker.statuses[422] > MUTATED / 2
        quarter = len(sizes) // 4
        assert max(sizes[-quarter:]) < max(sizes[:quarter]) + 20


def test_whatever_openapi_lets_be_made_is_answered_as_it_says(made: Callable[[str], Bundle], tmp_path: Path) -> None:
    bundle = made("binary-onnx")
    with watched(tmp_path, bundle) as server:
        schema = schemathesis.openapi.from_url(f"{server.url}/openapi.json")
        schema.config.checks.negative_data_rejection.expected_statuses = [str(status) for status in _REFUSED]
        operations = [found.ok() for found in schema.get_all_operations()]
        taking = [operation for operation in operations if operation.method == "post" and operation.body]
        with requests.Session() as session:
            asked = sum(explore(operation, mode, session) for operation in taking for mode in GenerationMode)
        assert len(taking) == 7
        assert asked >= 10_000 - MUTATED


def explore(operation: Any, mode: GenerationMode, session: requests.Session) -> int:
    """Ask what a mode makes of an operation, of what its schema allows or does not; how many were asked."""
    asked, key, page = 0, {"authorization": f"Bearer {KEY}"}, operation.path == "/"
    # Keys have tests of their own; and no schema but that of rows says all that is wanted.
    excluded = [checks.ignored_auth] + ([] if operation.path == "/predict" else [checks.positive_data_acceptance])

    @settings(max_examples=DESCRIBED, **_SETTINGS)
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        nonlocal asked
        asked += 1
        response = case.call(session=session, headers=key)
        case.validate_response(response, excluded_checks=excluded)
        check(response.status_code, response.headers["content-type"][0], response.content, str(case), page=page)

    ask()
    return asked
