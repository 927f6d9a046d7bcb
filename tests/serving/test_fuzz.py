from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serving.made import Bundle, Service

_SOME = settings(
    max_examples=150, deadline=None, database=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
_NAMES = ("read_at", "site", "maker", "measured_at", "temperature", "cycles", "guarded")
_VALUE = _JSON | st.sampled_from(["north", "acme", "2020-01-01T00:00:00", 5, 5.0, True, 1e308])
_ROW = st.dictionaries(st.sampled_from(_NAMES) | st.text(max_size=8), _VALUE, max_size=9)
_TENSOR = st.fixed_dictionaries(
    {"name": st.sampled_from(_NAMES)},
    optional={
        "shape": st.lists(st.integers(-2, 5), max_size=3) | _JSON,
        "datatype": st.sampled_from(["FP64", "BOOL", "BYTES", "INT64", "FP16", "?"]) | _JSON,
        "data": st.lists(_VALUE, max_size=3) | _JSON,
        "parameters": st.dictionaries(st.sampled_from(["binary_data_size"]) | st.text(max_size=4), _JSON, max_size=2),
    },
)
_BODIES = {
    "/predict": st.fixed_dictionaries({"rows": st.lists(_ROW, max_size=3) | _JSON}) | _JSON,
    "/invocations": st.dictionaries(
        st.sampled_from(["dataframe_split", "dataframe_records", "instances", "inputs", "params"]),
        st.lists(_ROW, max_size=3)
        | st.dictionaries(st.sampled_from(_NAMES), st.lists(_VALUE, max_size=3))
        | st.fixed_dictionaries({"columns": _JSON, "data": _JSON}),
        max_size=2,
    )
    | _JSON,
    "/v2/models/{name}/infer": st.fixed_dictionaries(
        {"inputs": st.lists(_TENSOR, max_size=8) | _JSON}, optional={"outputs": _JSON, "parameters": _JSON, "id": _JSON}
    )
    | _JSON,
}


@_SOME
@given(asked=st.sampled_from(sorted(_BODIES)).flatmap(lambda path: st.tuples(st.just(path), _BODIES[path])))
def test_no_json_body_is_answered_with_an_error_of_the_service(service: Service, asked: tuple[str, Any]) -> None:
    path, body = asked
    response = service.post(path.format(name=service.release.name), json=body)
    assert response.status_code in (200, 422), response.text
    assert "Traceback" not in response.text


@_SOME
@given(path=st.sampled_from(sorted(_BODIES)), body=st.binary(max_size=200), length=st.integers(-5, 250) | st.none())
def test_no_bytes_are_answered_with_an_error_of_the_service(
    service: Service, path: str, body: bytes, length: int | None
) -> None:
    headers = {} if length is None else {"inference-header-content-length": str(length)}
    response = service.post(path.format(name=service.release.name), content=body, headers=headers)
    assert response.status_code == 422, response.text


@_SOME
@given(column=st.sampled_from(_NAMES), value=_VALUE)
def test_one_strange_value_is_scored_or_named(
    service: Service, made: Callable[[str], Bundle], column: str, value: Any
) -> None:
    response = service.predict([made("binary-onnx").rows(1)[0] | {column: value}])
    if response.status_code != 200:
        assert response.status_code == 422
        assert [error["column"] for error in response.json().get("errors", [{"column": column}])] == [column]
