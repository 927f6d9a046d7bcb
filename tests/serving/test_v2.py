import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from pipeline.canonical import json_bytes
from pipeline.journal import read_predictions
from tests.serving.made import TASKS, Bundle, Server, Service, problem, serving


@pytest.fixture(scope="session", params=TASKS)
def served(
    request: pytest.FixtureRequest, made: Callable[[str], Bundle], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Bundle, Server]]:
    bundle = made(f"{request.param}-onnx")
    with serving(tmp_path_factory.mktemp("v2"), bundle) as server:
        yield bundle, server


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        yield client


def tensors(bundle: Bundle, *, binary: bool = True, columns: dict[str, Any] | None = None) -> list[Any]:
    """The golden rows as tritonclient's inputs."""
    inputs = []
    for entry in bundle.read("contract.json")["inputs"]:
        values = (columns or bundle.golden["rows"])[entry["name"]]
        made = _array(values, entry["kind"])
        datatype = {"f": "FP64", "i": "INT64", "b": "BOOL", "O": "BYTES"}[made.dtype.kind]
        tensor = triton.InferInput(entry["name"], made.shape, datatype)
        tensor.set_data_from_numpy(made, binary_data=binary)
        inputs.append(tensor)
    return inputs


def _array(values: list[Any], kind: str) -> np.ndarray:
    if kind in ("category", "time"):
        return np.array([b"" if value is None else value.encode() for value in values], dtype=object)
    if kind == "boolean":
        return np.array(values, dtype=bool)
    return np.array(values, dtype="int64" if kind == "integer" else "float64")


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_tritonclient_gets_the_golden_scores(served: tuple[Bundle, Server], binary: bool, name: str) -> None:
    bundle, server = served
    outputs = None if binary else [triton.InferRequestedOutput("score", binary_data=False)]
    columns = {column: values[:50] for column, values in bundle.golden["rows"].items()}
    if not binary:  # what its JSON cannot hold: a missing number
        whole = [row for row in range(50) if columns["temperature"][row] is not None]
        columns = {column: [values[row] for row in whole] for column, values in columns.items()}
    else:
        whole = list(range(50))
    expected = np.array(bundle.golden["scores"])[whole]
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        result = client.infer(name, tensors(bundle, binary=binary, columns=columns), request_id="7", outputs=outputs)
    scores = result.as_numpy("score")
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores.reshape(expected.shape), expected, rtol=1e-9, atol=1e-9)
    response = result.get_response()
    assert response["id"] == "7"
    assert (response["model_name"], response["model_version"]) == (name, bundle.hash[:12])
    contract = bundle.read("contract.json")
    if contract["task"] == "binary" and binary:
        assert result.as_numpy("label").tolist() == [score >= contract["threshold"] for score in scores.tolist()]
    if contract["task"] == "multiclass" and binary:
        likeliest = [contract["classes"][best].encode() for best in scores.argmax(axis=1)]
        assert result.as_numpy("label").tolist() == likeliest
    if contract["task"] == "regression":
        assert [output["name"] for output in response["outputs"]] == ["score"]


@pytest.fixture(scope="session")
def name(service: Service) -> str:
    return service.release.name


def test_the_server_and_the_model_are_live_and_ready(client: Any, name: str, made: Callable[[str], Bundle]) -> None:
    version = made("binary-onnx").hash[:12]
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(name)
    assert client.is_model_ready(name, version)
    assert not client.is_model_ready(name, "other")
    assert not client.is_model_ready("other")


def test_metadata_names_every_tensor(client: Any, name: str, made: Callable[[str], Bundle]) -> None:
    assert client.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    version = made("binary-onnx").hash[:12]
    metadata = client.get_model_metadata(name, version)
    assert metadata == client.get_model_metadata(name)
    assert metadata["versions"] == [version]
    assert {t["name"]: t["datatype"] for t in metadata["inputs"]} == {
        "read_at": "BYTES",
        "site": "BYTES",
        "maker": "BYTES",
        "measured_at": "BYTES",
        "temperature": "FP64",
        "cycles": "INT64",
        "guarded": "BOOL",
    }
    assert metadata["outputs"] == [
        {"name": "score", "datatype": "FP64", "shape": [-1]},
        {"name": "label", "datatype": "BOOL", "shape": [-1]},
    ]


def test_a_version_may_be_named(client: Any, name: str, made: Callable[[str], Bundle]) -> None:
    bundle = made("binary-onnx")
    result = client.infer(name, tensors(bundle), model_version=bundle.hash[:12])
    assert len(result.as_numpy("score")) == len(bundle.golden["scores"])


def _infer(client: Any, name: str, inputs: list[Any], **given: Any) -> str:
    """What the client hears when it is refused."""
    with pytest.raises(InferenceServerException) as refused:
        client.infer(name, inputs, **given)
    return f"{refused.value.status()} {refused.value.message()}"


def test_tritonclient_hears_what_is_wrong(client: Any, name: str, made: Callable[[str], Bundle]) -> None:
    bundle = made("binary-onnx")
    inputs = tensors(bundle)
    assert "404 expected the model" in _infer(client, "other", inputs)
    assert "404 expected the model" in _infer(client, name, inputs, model_version="9")
    assert "422 expected the column 'read_at'" in _infer(client, name, inputs[1:])
    wanted = [triton.InferRequestedOutput("shap")]
    assert "422 outputs: expected some of score, label" in _infer(client, name, inputs, outputs=wanted)


def test_a_tensor_of_another_name_shape_or_type_is_refused(
    client: Any, name: str, made: Callable[[str], Bundle]
) -> None:
    bundle = made("binary-onnx")

    def changed(column: str, values: np.ndarray, datatype: str, as_name: str | None = None) -> str:
        other = triton.InferInput(as_name or column, values.shape, datatype)
        other.set_data_from_numpy(values)
        return _infer(client, name, [t for t in tensors(bundle) if t.name() != column] + [other])

    rows = len(bundle.golden["scores"])
    numbers = np.zeros(rows)
    assert "got 'warmth'" in changed("temperature", numbers, "FP64", "warmth")
    assert "once, got 'site'" in changed("temperature", numbers, "FP64", "site")
    assert "expected datatype FP64, got BYTES" in changed("temperature", np.full(rows, b"1", dtype=object), "BYTES")
    assert "expected datatype BYTES, got FP64" in changed("site", numbers, "FP64")
    assert "expected shape [n] or [n, 1]" in changed("temperature", np.zeros((rows, 2)), "FP64")
    assert "expected shapes of one length" in changed("temperature", numbers[1:], "FP64")
    assert "expected a whole number from 0 to 1000, got 0.5" in changed("cycles", numbers + 0.5, "FP64")
    assert "expected a number from -50 to 150 (C), or null, got 999.0" in changed("temperature", numbers + 999, "FP64")
    assert 'expected a number from -50 to 150 (C), or null, got "inf"' in changed(
        "temperature", numbers + np.inf, "FP64"
    )
    assert "expected true or false, got 2.0" in changed("guarded", numbers + 2, "FP64")
    assert "expected a whole number from 0 to 1000, got" in changed("cycles", numbers * np.nan, "FP64")
    assert 'expected one of north, south, got "west"' in changed("site", np.full(rows, b"west", dtype=object), "BYTES")
    assert "expected UTF-8" in changed("site", np.full(rows, b"\xff", dtype=object), "BYTES")


def test_other_types_of_numbers_and_columns_of_width_one_are_taken(
    service: Service, made: Callable[[str], Bundle], name: str
) -> None:
    row = made("binary-onnx").rows(1)[0] | {"temperature": 20}
    expected = service.predict([row]).json()["scores"]
    for datatype in ("FP32", "INT32", "UINT8"):
        given = [_json(column, value, shape=[1, 1]) for column, value in row.items() if column != "temperature"]
        given.append({"name": "temperature", "shape": [1, 1], "datatype": datatype, "data": [[20]]})
        answer = service.post(f"/v2/models/{name}/infer", json={"inputs": given}).json()
        assert answer["outputs"][0] == {"name": "score", "datatype": "FP64", "shape": [1], "data": expected}
        assert answer["outputs"][1]["datatype"] == "BOOL"
        assert "id" not in answer


def test_missing_values_are_null_in_json_and_nullable_columns_may_be_left_out(
    service: Service, made: Callable[[str], Bundle], name: str
) -> None:
    row = made("binary-onnx").rows(1)[0] | {"temperature": None, "maker": None, "measured_at": None}
    expected = service.predict([row]).json()["scores"]
    for given in (row, {column: value for column, value in row.items() if value is not None}):
        inputs = [_json(column, value) for column, value in given.items()]
        answer = service.post(f"/v2/models/{name}/infer", json={"inputs": inputs}).json()
        assert answer["outputs"][0]["data"] == expected


@pytest.mark.parametrize("space", [" ", "\t", "\n", "\r"])
def test_the_log_has_what_was_scored_however_it_was_written(
    made: Callable[[str], Bundle], name: str, space: str
) -> None:
    bundle = made("binary-onnx")
    service = Service(bundle)
    # Written otherwise than this service would: an exponent, an escape, an offset, a list in a list.
    row = bundle.rows(1)[0] | {"temperature": 20.5, "cycles": 230, "site": "north", "read_at": "2020-04-01T00:28:00"}
    inputs = [_json(column, value) for column, value in row.items()]
    body = json.dumps({"inputs": inputs}).replace(" ", space)
    for before, after in (
        ("20.5", "2.05E+1"),
        ("230", "[2300e-1]"),
        ('"north"', '"\\u006eorth"'),
        ('"2020-04-01T00:28:00"', '"2020-04-01T05:28:00.000+05:00"'),
    ):
        assert body.count(before) == 1
        body = body.replace(before, after)
    response = service.post(f"/v2/models/{name}/infer", content=body)
    assert response.status_code == 200, response.text
    (segment,) = (service.data / "log").iterdir()
    assert len(segment.read_text().splitlines()) == 1
    told = [*read_predictions(service.data / "log")]
    assert [entry.inputs for entry in told] == [row | {"read_at": "2020-04-01T00:28:00"}]
    assert [entry.score for entry in told] == response.json()["outputs"][0]["data"]
    assert service.predict([entry.inputs for entry in told]).json()["scores"] == [entry.score for entry in told]


def test_a_missing_boolean_is_logged_as_missing(bundle: Bundle, name: str) -> None:
    contract = bundle.read("contract.json")
    for column in contract["inputs"]:
        column["nullable"] = column["nullable"] or column["name"] == "guarded"
    (bundle.folder / "contract.json").write_bytes(json_bytes(contract))
    bundle.inspect()
    service = Service(bundle)
    inputs = [_json(column, value) for column, value in bundle.rows(1)[0].items() if column != "guarded"]
    flags = {"name": "guarded", "shape": [1], "datatype": "FP64", "parameters": {"binary_data_size": 8}}
    head = json.dumps({"inputs": [*inputs, flags]}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    for value in (np.nan, 1.0, 0.0):
        body = head + np.array([value]).tobytes()
        assert service.post(f"/v2/models/{name}/infer", content=body, headers=headers).status_code == 200
    assert [entry.inputs["guarded"] for entry in read_predictions(service.data / "log")] == [None, True, False]


def test_texts_in_another_encoding_are_422(service: Service, made: Callable[[str], Bundle], name: str) -> None:
    inputs = [_json(column, value) for column, value in (made("binary-onnx").rows(1)[0] | {"maker": "acme"}).items()]
    body = json.dumps({"inputs": inputs}).encode().replace(b'"acme"', b'"\xff\xfe"')
    assert "expected JSON in UTF-8" in problem(service.post(f"/v2/models/{name}/infer", content=body), 422)["detail"]


def test_an_output_may_be_binary_and_another_not(service: Service, made: Callable[[str], Bundle], name: str) -> None:
    inputs = [_json(column, value) for column, value in made("binary-onnx").rows(1)[0].items()]
    outputs = [{"name": "label"}, {"name": "score", "parameters": {"binary_data": True}}]
    response = service.post(f"/v2/models/{name}/infer", json={"inputs": inputs, "outputs": outputs})
    assert response.headers["content-type"] == "application/octet-stream"
    length = int(response.headers["inference-header-content-length"])
    head = json.loads(response.content[:length])
    assert [output["name"] for output in head["outputs"]] == ["label", "score"]
    assert head["outputs"][1]["parameters"] == {"binary_data_size": 8}
    score = service.predict(made("binary-onnx").rows(1)).json()["scores"]
    assert np.frombuffer(response.content[length:]).tolist() == score


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"inputs": 5}, "V2 request: Expected `array`"),
        ({"inputs": []}, "expected shapes of one length, 1 or more"),
        ({"inputs": [{"name": "site"}]}, "V2 request: Object missing required field"),
        ({"site": {"shape": [-1]}}, "expected -1 values"),
        ({"site": {"shape": [5]}}, "expected 5 values as its shape says, got 1"),
        ({"site": {"shape": []}}, "expected shape [n] or [n, 1]"),
        ({"site": {"data": [["north", "south"]]}}, "expected one of north, south"),
        ({"site": {"data": {"north": 1}}}, "input 'site': Expected `array`, got `object`"),
        ({"cycles": {"data": [1, "2"]}}, "row 1, column 'cycles': expected a whole number"),
        ({"site": {"data": []}}, "expected 1 values as its shape says, got 0"),
        ({"site": {"parameters": {"shared_memory_region": "x"}}}, "expected no parameters but binary_data_size"),
        ({"site": {"parameters": {"binary_data_size": 4}}}, "expected a binary_data_size of at most 0, got 4"),
        ({"site": {"parameters": {"binary_data_size": -1}}}, "expected a binary_data_size of at most 0, got -1"),
        ({"site": {"parameters": {"binary_data_size": "4"}}}, "expected a binary_data_size of at most 0, got 4"),
        ({"site": {"parameters": {"binary_data_size": 0}}}, "expected either data or binary_data_size"),
        ({"outputs": [{"name": "score", "parameters": {"classification": 2}}]}, "outputs: expected some of score"),
    ],
)  # fmt: skip
def test_a_malformed_v2_request_is_422(
    service: Service, made: Callable[[str], Bundle], name: str, change: dict[str, Any], said: str
) -> None:
    row = made("binary-onnx").rows(1)[0]
    inputs = [_json(column, value) | change.get(column, {}) for column, value in row.items()]
    body = {"inputs": inputs} | {key: value for key, value in change.items() if key not in row}
    document = problem(service.post(f"/v2/models/{name}/infer", json=body), 422)
    assert said in document["error"]


@pytest.mark.parametrize(
    ("length", "extra", "said"),
    [
        (b"x", b"", "Inference-Header-Content-Length: expected at most"),
        (b"-1", b"", "Inference-Header-Content-Length: expected at most"),
        (b"999999", b"", "Inference-Header-Content-Length: expected at most"),
        (None, b"1234", "4 bytes remain"),
    ],
)
def test_a_length_that_is_not_the_bodys_is_422(
    service: Service, made: Callable[[str], Bundle], name: str, length: bytes | None, extra: bytes, said: str
) -> None:
    row = made("binary-onnx").rows(1)[0]
    body = json.dumps({"inputs": [_json(column, value) for column, value in row.items()]}).encode()
    headers = {b"inference-header-content-length": length or str(len(body)).encode()}
    response = service.post(f"/v2/models/{name}/infer", content=body + extra, headers=headers)
    assert said in problem(response, 422)["detail"]


@pytest.mark.parametrize("data", [b"\x05\x00\x00\x00abc", b"\x05\x00", b"\xff\xff\xff\xff"])
def test_texts_that_are_cut_off_are_422(
    service: Service, made: Callable[[str], Bundle], name: str, data: bytes
) -> None:
    inputs = [_json(column, value) for column, value in made("binary-onnx").rows(1)[0].items() if column != "maker"]
    size = {"binary_data_size": len(data)}
    inputs.append({"name": "maker", "shape": [1], "datatype": "BYTES", "parameters": size})
    head = json.dumps({"inputs": inputs}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    response = service.post(f"/v2/models/{name}/infer", content=head + data, headers=headers)
    assert "got fewer bytes" in problem(response, 422)["detail"]


def test_numbers_that_are_cut_off_are_422(service: Service, made: Callable[[str], Bundle], name: str) -> None:
    row = made("binary-onnx").rows(1)[0]
    inputs = [_json(column, value) for column, value in row.items() if column != "cycles"]
    size = {"binary_data_size": 7}
    inputs.append({"name": "cycles", "shape": [1], "datatype": "INT64", "parameters": size})
    head = json.dumps({"inputs": inputs}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    response = service.post(f"/v2/models/{name}/infer", content=head + b"1234567", headers=headers)
    assert "expected 1 values of 8 bytes, got 7 bytes" in problem(response, 422)["detail"]


def _json(column: str, value: Any, shape: list[int] | None = None) -> dict[str, Any]:
    kinds = {"temperature": "FP64", "cycles": "INT64", "guarded": "BOOL"}
    return {"name": column, "shape": shape or [1], "datatype": kinds.get(column, "BYTES"), "data": [value]}
