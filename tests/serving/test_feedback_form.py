import json
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.journal import FEEDBACK, PREDICTIONS, Journal, read_predictions
from serving.feedback import MOST, Feedback
from serving.rows import MAX_ERRORS, RowError, TooManyRows
from tests.serving.made import TASKS, Bundle

Made = Callable[[str], Bundle]

OUTCOMES: dict[str, list[Any]] = {
    "binary": [True, False],
    "multiclass": ["fine", "worn", "broken"],
    "regression": [1.5, -2, 0, 1e300],
}
WRONG: dict[str, list[Any]] = {
    "binary": [1, 0, 1.0, "true", None, [True]],
    "multiclass": ["new", "Fine", "", None, 1, True],
    "regression": ["1.5", True, None, [1.5], {}],
}
EXPECTED = {"binary": "true or false", "multiclass": "one of broken, fine, worn", "regression": "a number"}
EACH = [(task, outcome) for task in TASKS for outcome in WRONG[task]]
ID = "1 to 128 letters, digits, dots, underscores and hyphens"
ROW = "a whole number from 0 to 2147483647"


@pytest.fixture
def feedback(made: Made) -> Feedback:
    return form(made, "binary")


def form(made: Made, task: str) -> Feedback:
    return Feedback(made(f"{task}-onnx").read("contract.json"))


def body(*outcomes: Any) -> bytes:
    return json.dumps({"outcomes": outcomes}).encode()


def refused(feedback: Feedback, sent: bytes) -> RowError:
    with pytest.raises(RowError) as raised:
        feedback.read(sent)
    return raised.value


def errors(error: RowError) -> list[dict[str, Any]]:
    return msgspec.to_builtins(list(error.errors))  # type: ignore[no-any-return]


@pytest.mark.parametrize("task", TASKS)
def test_outcomes_are_what_the_target_is(made: Made, task: str) -> None:
    sent = [{"request_id": f"r.{n}_-", "row": n, "outcome": outcome} for n, outcome in enumerate(OUTCOMES[task])]
    read = form(made, task).read(body(*sent))
    assert [(each.request_id, each.row, each.outcome) for each in read] == [tuple(each.values()) for each in sent]
    assert {type(each.outcome) for each in read} == {type(OUTCOMES[task][0])}


def test_a_row_that_is_not_named_is_the_first(feedback: Feedback) -> None:
    assert feedback.read(body({"request_id": "a", "outcome": True}))[0].row == 0


@pytest.mark.parametrize(("task", "outcome"), EACH)
def test_an_outcome_of_another_kind_is_named(made: Made, task: str, outcome: Any) -> None:
    fine = {"request_id": "a", "outcome": OUTCOMES[task][0]}
    error = refused(form(made, task), body(fine, {"request_id": "b", "outcome": outcome}))
    assert errors(error) == [{"expected": EXPECTED[task], "row": 1, "column": "outcome", "value": outcome}]
    came = json.dumps(outcome, separators=(",", ":"))
    assert str(error) == f"row 1, column 'outcome': expected {EXPECTED[task]}, got {came}"


@pytest.mark.parametrize("request_id", ["", "a" * 129, "a b", "a\n", "ü", "../a", 5, None])
def test_an_id_that_no_prediction_has_is_named(feedback: Feedback, request_id: Any) -> None:
    (error,) = errors(refused(feedback, body({"request_id": request_id, "outcome": True})))
    shown = request_id if request_id != "a" * 129 else "a" * 100 + "..."
    assert error == {"expected": ID, "row": 0, "column": "request_id", "value": shown}


@pytest.mark.parametrize("row", [-1, 2**31, 10**30, 1.5, "0", True, None])
def test_a_row_that_is_no_position_is_named(feedback: Feedback, row: Any) -> None:
    (error,) = errors(refused(feedback, body({"request_id": "a", "row": row, "outcome": True})))
    assert (error["expected"], error["row"], error["column"]) == (ROW, 0, "row")


def test_everything_that_is_wrong_is_named(feedback: Feedback) -> None:
    error = refused(feedback, body({"request_id": "", "row": -1, "rows": 1}, {"request_id": "a"}, 5))
    assert errors(error) == [
        {"expected": "one of request_id, outcome, row", "row": 0, "column": "rows", "value": 1},
        {"expected": ID, "row": 0, "column": "request_id", "value": ""},
        {"expected": "true or false", "row": 0, "column": "outcome"},
        {"expected": ROW, "row": 0, "column": "row", "value": -1},
        {"expected": "true or false", "row": 1, "column": "outcome"},
        {"expected": "an object with request_id, outcome, row", "row": 2, "value": 5},
    ]


def test_errors_are_bounded(feedback: Feedback) -> None:
    assert len(refused(feedback, body(*[{}] * 1000)).errors) == MAX_ERRORS


@pytest.mark.parametrize(
    "sent", [b"{}", b"[]", b"null", b'{"outcomes": 5}', b'{"outcomes": null}', b'{"outcomes": [], "more": 1}']
)
def test_a_body_of_another_form_is_refused(feedback: Feedback, sent: bytes) -> None:
    assert str(refused(feedback, sent)) == 'expected {"outcomes": [{...}, ...]}'


@pytest.mark.parametrize("sent", [b"", b"{", b"\xff", b'{"outcomes": [NaN]}', b"[" * 100_000, b'{"outcomes": [1e400]}'])
def test_a_body_that_is_no_json_is_refused(feedback: Feedback, sent: bytes) -> None:
    assert str(refused(feedback, sent)).startswith("expected JSON")


def test_outcomes_come_in_bounded_numbers(feedback: Feedback) -> None:
    one = {"request_id": "a", "outcome": True}
    assert len(feedback.read(body(*[one] * MOST))) == MOST
    many, none = refused(feedback, body(*[one] * (MOST + 1))), refused(feedback, body())
    assert isinstance(many, TooManyRows)
    assert str(many) == "expected 1 to 10,000 outcomes, got 10,001"
    assert not isinstance(none, TooManyRows)
    assert str(none) == "expected 1 to 10,000 outcomes, got 0"


def test_a_name_that_comes_twice_counts_as_its_last(feedback: Feedback) -> None:
    sent = b'{"outcomes": [{"request_id": "a", "row": "x", "outcome": 5, "row": 3, "outcome": false}]}'
    (read,) = feedback.read(sent)
    assert (read.row, read.outcome) == (3, False)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5) | st.just("a"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["request_id", "row"]), inner),
    max_leaves=5,
)
_RECORD = _JSON | st.fixed_dictionaries({"request_id": _JSON, "outcome": _JSON}, optional={"row": _JSON, "x": _JSON})


@pytest.mark.parametrize("task", TASKS)
def test_any_json_is_read_or_refused(made: Made, task: str) -> None:
    feedback = form(made, task)

    @settings(deadline=None)
    @given(st.lists(_RECORD, min_size=1, max_size=3))
    def read(records: list[Any]) -> None:
        with suppress(RowError):
            assert len(feedback.read(body(*records))) == len(records)

    read()


@pytest.mark.parametrize("task", TASKS)
def test_what_is_read_is_joined_with_what_was_predicted(made: Made, task: str, tmp_path: Path) -> None:
    feedback, time = form(made, task), datetime(2026, 1, 31, 12, 0, 0, 5, tzinfo=UTC)
    answer = {"time": time, "request_id": "a", "model": "abc", "source": "model", "rows": [{}, {}], "scores": [0, 1]}
    assert Journal(tmp_path, PREDICTIONS).append([msgspec.json.encode(answer)])
    sent = body({"request_id": "a", "row": 1, "outcome": OUTCOMES[task][0]})
    lines = feedback.entries(feedback.read(sent), "warehouse", time)
    assert Journal(tmp_path, FEEDBACK).append(lines)
    assert json.loads(lines[0])["by"] == "warehouse"
    first, second = read_predictions(tmp_path)
    assert (first.outcome, first.outcome_time) == (None, None)
    assert (second.outcome, second.outcome_time) == (OUTCOMES[task][0], time)


@pytest.mark.parametrize("task", TASKS)
def test_the_type_of_the_body_describes_itself(made: Made, task: str) -> None:
    (page,), made_types = msgspec.json.schema_components([form(made, task).request], ref_template="#/{name}")
    assert page == {"$ref": "#/Outcomes"}
    outcome = made_types["Outcome"]["properties"]["outcome"]
    target = made(f"{task}-onnx").read("contract.json")["target"]
    kinds = {
        "binary": {"type": "boolean"},
        "multiclass": {"enum": sorted(OUTCOMES["multiclass"])},
        "regression": {"type": "number"},
    }
    assert outcome == {"description": f"What came true of {target}"} | kinds[task]
    assert made_types["Outcome"]["required"] == ["request_id", "outcome"]
