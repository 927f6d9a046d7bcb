from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipeline.scoring import TOLERANCE
from tests.serving.made import TASKS, Bundle, Service, problem


@pytest.mark.parametrize("routed", [False, True], ids=["edge", "route"])
@pytest.mark.parametrize("task", TASKS)
def test_predict_gives_the_golden_scores_of_every_task(made: Callable[[str], Bundle], task: str, routed: bool) -> None:
    bundle = made(f"{task}-onnx")
    answer = Service(bundle, routed=routed).predict(bundle.rows()).json()
    expected = np.array(bundle.golden["scores"])
    scores = np.array(answer["scores"]).reshape(expected.shape)
    assert np.max(np.abs(scores - expected)) <= TOLERANCE * max(1, np.abs(expected).max())
    assert answer["source"] == "model"


def test_predict_answers_with_the_model_and_with_decisions_at_the_threshold(made: Callable[[str], Bundle]) -> None:
    bundle = made("binary-onnx")
    answer = Service(bundle, SERVING_MODEL_VERSION="v7").predict(bundle.rows()).json()
    threshold = bundle.read("contract.json")["threshold"]
    assert answer["labels"] == [score >= threshold for score in answer["scores"]]
    assert {True, False} == set(answer["labels"])
    assert answer["model"]["version"] == "v7"
    assert answer["model"]["hash"] == bundle.hash
    assert "classes" not in answer


def test_predict_names_the_likeliest_of_several_classes(made: Callable[[str], Bundle]) -> None:
    bundle = made("multiclass-onnx")
    answer = Service(bundle).predict(bundle.rows()).json()
    assert answer["classes"] == bundle.read("contract.json")["classes"]
    assert answer["labels"] == [answer["classes"][int(np.argmax(scores))] for scores in answer["scores"]]


def test_predict_gives_a_regression_no_labels(made: Callable[[str], Bundle]) -> None:
    bundle = made("regression-onnx")
    assert "labels" not in Service(bundle).predict(bundle.rows(2)).json()


def test_many_rows_get_the_scores_that_they_get_alone(made: Callable[[str], Bundle]) -> None:
    bundle = made("binary-onnx")
    service, rows = Service(bundle), bundle.rows()
    alone = [service.predict([row]).json()["scores"][0] for row in rows]
    together = service.predict(rows * 20).json()["scores"]  # enough for a thread
    assert len(together) > 200
    assert together == alone * 20


@pytest.mark.parametrize("time", ["2020-05-01T14:00:00+02:00", "2020-05-01T12:00:00Z", "2020-05-01T12:00:00"])
def test_times_with_an_offset_are_converted_and_those_without_are_utc(
    service: Service, made: Callable[[str], Bundle], time: str
) -> None:
    row = made("binary-onnx").rows(1)[0] | {"read_at": "2020-05-01T14:00:00", "measured_at": "2020-05-01T12:00:00"}
    assert service.predict([row | {"measured_at": time}]).json()["scores"] == service.predict([row]).json()["scores"]


def test_a_nullable_column_may_be_left_out_and_is_then_missing(service: Service, made: Callable[[str], Bundle]) -> None:
    row = made("binary-onnx").rows(1)[0]
    null = row | {"temperature": None, "maker": None, "measured_at": None}
    without = {name: value for name, value in null.items() if value is not None}
    assert service.predict([without]).json()["scores"] == service.predict([null]).json()["scores"]


def test_whole_numbers_may_come_as_floats(service: Service, made: Callable[[str], Bundle]) -> None:
    row = made("binary-onnx").rows(1)[0]
    as_float = service.predict([row | {"cycles": 5.0}])
    assert as_float.json()["scores"] == service.predict([row | {"cycles": 5}]).json()["scores"]


def test_categories_never_seen_are_scored_flagged_and_counted(made: Callable[[str], Bundle]) -> None:
    bundle = made("binary-onnx")
    service, row = Service(bundle), bundle.rows(1)[0]
    answer = service.predict([row, row | {"maker": "marker-x"}, row | {"maker": None}]).json()
    assert answer["unseen"] == [{"row": 1, "column": "maker"}]
    assert answer["scores"][1] == answer["scores"][2]  # it means as much as a missing one
    assert service.metric("serving_unseen_total", column="maker") == 1


BAD: list[tuple[str, Any, str]] = [
    ("site", "west", "one of north, south"),
    ("site", None, "one of north, south"),
    ("site", 5, "one of north, south"),
    ("maker", 5, "text, or null"),
    ("cycles", "5", "a whole number from 0 to 1000"),
    ("cycles", 5.5, "a whole number from 0 to 1000"),
    ("cycles", -1, "a whole number from 0 to 1000"),
    ("cycles", 1001, "a whole number from 0 to 1000"),
    ("cycles", True, "a whole number from 0 to 1000"),
    ("cycles", 10**400, "a whole number from 0 to 1000"),
    ("temperature", 150.5, "a number from -50 to 150 (C), or null"),
    ("temperature", "warm", "a number from -50 to 150 (C), or null"),
    ("temperature", [1], "a number from -50 to 150 (C), or null"),
    ("guarded", 1, "true or false"),
    ("guarded", "true", "true or false"),
    ("read_at", "yesterday", "a time as in ISO 8601, such as 2026-01-31T12:00:00, in UTC or with its offset"),
    ("read_at", 1577836800, "a time as in ISO 8601, such as 2026-01-31T12:00:00, in UTC or with its offset"),
    ("read_at", None, "a time as in ISO 8601, such as 2026-01-31T12:00:00, in UTC or with its offset"),
]


@pytest.mark.parametrize(("column", "value", "expected"), BAD)
def test_a_bad_value_is_named_by_row_column_value_and_what_was_expected(
    service: Service, made: Callable[[str], Bundle], column: str, value: Any, expected: str
) -> None:
    row = made("binary-onnx").rows(1)[0]
    document = problem(service.predict([row, row | {column: value}]), 422)
    shown = value if len(str(value)) < 100 else str(value)[:100] + "..."
    assert document["errors"] == [{"row": 1, "column": column, "value": shown, "expected": expected}]
    assert document["detail"].startswith(f"row 1, column '{column}': expected {expected}, got ")
    assert document["error"] == document["detail"]


def test_a_column_that_must_be_there_is_named_where_it_is_not(service: Service, made: Callable[[str], Bundle]) -> None:
    row = made("binary-onnx").rows(1)[0]
    del row["site"]
    document = problem(service.predict([row]), 422)
    assert document["errors"] == [{"row": 0, "column": "site", "expected": "one of north, south"}]


def test_a_column_that_the_contract_does_not_have_is_refused(service: Service, made: Callable[[str], Bundle]) -> None:
    row = made("binary-onnx").rows(1)[0] | {"sight": "north"}
    (error,) = problem(service.predict([row]), 422)["errors"]
    assert (error["row"], error["column"], error["value"]) == (0, "sight", "north")
    assert "which are read_at, site, maker" in error["expected"]


def test_every_bad_value_is_named_up_to_twenty(service: Service, made: Callable[[str], Bundle]) -> None:
    row = made("binary-onnx").rows(1)[0]
    document = problem(service.predict([row | {"site": "west", "cycles": -1}] * 2), 422)
    assert [(error["row"], error["column"]) for error in document["errors"]] == [
        (0, "site"),
        (0, "cycles"),
        (1, "site"),
        (1, "cycles"),
    ]
    document = problem(service.predict([row | {"site": "west", "cycles": -1}] * 1000), 422)
    assert len(document["errors"]) == 20


def test_a_long_value_is_shown_by_its_first_hundred_characters(service: Service, made: Callable[[str], Bundle]) -> None:
    row = made("binary-onnx").rows(1)[0]
    (error,) = problem(service.predict([row | {"site": "w" * 5000}]), 422)["errors"]
    assert error["value"] == "w" * 100 + "..."


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "expected JSON in UTF-8"),
        (b"{", "expected JSON in UTF-8"),
        (b'{"rows": [{"temperature": NaN}]}', "JSON has no NaN and no Infinity, send null"),
        (b'{"rows": [{"temperature": -Infinity}]}', "JSON has no NaN and no Infinity, send null"),
        (b'{"rows": [{"temperature": 1e400}]}', "Number out of range"),
        (b'{"rows": [{"site": "\xff"}]}', "expected JSON in UTF-8"),
        (b'{"rows": [{"site": "\\ud800"}]}', "expected JSON in UTF-8"),
        (b"[" * 100_000, "nested too deep"),
        (b'{"rows": ' + b'[{"a":' * 100_000, "nested too deep"),
        (b"[]", 'expected {"rows": [{...}, ...]}'),
        (b'{"rows": [], "more": 1}', 'expected {"rows": [{...}, ...]}'),
        (b'{"rows": []}', "expected a list of rows, with one or more"),
        (b'{"rows": {}}', "expected a list of rows, with one or more"),
        (b'{"rows": [5]}', "row 0: expected an object"),
        (b'{"rows": [null]}', "row 0: expected an object"),
        (b"null", 'expected {"rows": [{...}, ...]}'),
        (b'"rows"', 'expected {"rows": [{...}, ...]}'),
    ],
)  # fmt: skip
def test_a_body_that_is_no_rows_is_422(service: Service, body: bytes, said: str) -> None:
    document = problem(service.post("/predict", content=body), 422)
    assert said in document["detail"]


def test_a_time_at_the_end_of_the_calendar_is_scored(service: Service, made: Callable[[str], Bundle]) -> None:
    row = made("binary-onnx").rows(1)[0]
    for time in ("0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59"):
        assert service.predict([row | {"measured_at": time}]).status_code == 200
