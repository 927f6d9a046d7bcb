from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from tests.serving.made import TASKS, Bundle, Service, problem


def forms(bundle: Bundle) -> dict[str, Any]:
    rows, columns = bundle.rows(), bundle.golden["rows"]
    split = {"columns": [*columns], "data": [[*row.values()] for row in rows]}
    return {"dataframe_split": split, "dataframe_records": rows, "instances": rows, "inputs": columns}


@pytest.mark.parametrize("form", ["dataframe_split", "dataframe_records", "instances", "inputs"])
@pytest.mark.parametrize("task", TASKS)
def test_every_form_of_mlflow_gives_the_golden_scores(made: Callable[[str], Bundle], task: str, form: str) -> None:
    bundle = made(f"{task}-onnx")
    answer = Service(bundle).post("/invocations", json={form: forms(bundle)[form]}).json()
    expected = bundle.golden["scores"]
    assert answer.keys() == {"predictions"}
    assert np.shape(answer["predictions"]) == np.shape(expected)
    np.testing.assert_allclose(answer["predictions"], expected, rtol=1e-9, atol=1e-9)


def test_what_pandas_and_mlflow_add_is_taken(service: Service, made: Callable[[str], Bundle]) -> None:
    split = forms(made("binary-onnx"))["dataframe_split"]
    split["index"] = list(range(len(split["data"])))
    headers = {"content-type": "application/json; charset=utf-8"}
    response = service.post("/invocations", json={"dataframe_split": split, "params": None}, headers=headers)
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ([], "expected an object with one of dataframe_split, dataframe_records, instances, inputs"),
        ({}, "expected an object with one of dataframe_split"),
        ({"rows": []}, "expected an object with one of dataframe_split"),
        ({"inputs": {}, "instances": []}, "expected an object with one of dataframe_split"),
        ({"inputs": {}, "params": {"threshold": 1}}, "and no params"),
        ({"inputs": {}}, "expected a list of rows, with one or more"),
        ({"inputs": {"site": ["north"], "maker": []}}, "inputs: expected columns of one length"),
        ({"inputs": [[1, 2]]}, "inputs: Expected `object`, got `array`"),
        ({"instances": [[1, 2]]}, "row 0: expected an object"),
        ({"instances": "all"}, "expected a list of rows"),
        ({"dataframe_records": []}, "expected a list of rows"),
        ({"dataframe_split": {"columns": ["site"], "data": [["north", 1]]}}, "expected 1 values in row 0"),
        ({"dataframe_split": {"columns": ["site", "site"], "data": [["north", "north"]]}}, "each column once"),
        ({"dataframe_split": {"columns": ["site"]}}, "dataframe_split: Object missing required field `data`"),
        ({"dataframe_split": {"columns": ["site"], "data": [["west"]]}}, "row 0, column 'read_at': expected a time"),
    ],
)  # fmt: skip
def test_a_body_in_no_form_of_mlflow_is_422(service: Service, body: Any, said: str) -> None:
    assert said in problem(service.post("/invocations", json=body), 422)["detail"]


def test_bad_values_are_named_by_row_and_column(service: Service, made: Callable[[str], Bundle]) -> None:
    columns = {name: [*values] for name, values in made("binary-onnx").golden["rows"].items()}
    columns["cycles"][4] = -3
    (error,) = problem(service.post("/invocations", json={"inputs": columns}), 422)["errors"]
    assert (error["row"], error["column"], error["value"]) == (4, "cycles", -3)


@pytest.mark.parametrize("path", ["/ping", "/health", "/version"])
def test_what_mlflows_server_answers_beside_is_answered(service: Service, path: str) -> None:
    assert service.get(path).status_code == 200
