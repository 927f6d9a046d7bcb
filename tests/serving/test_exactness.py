"""Bounds that are easily moved by one sign: the golden check, the threshold, numbers without a range."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.canonical import json_bytes
from pipeline.errors import InputError
from pipeline.scoring import TOLERANCE, Scorer
from serving.protocols import labels
from serving.rows import Column, RowError
from tests.serving.made import Bundle, Service

SCORE = Scorer.score
MINUTES = st.integers(-1439, 1439).map(lambda minutes: timedelta(minutes=minutes))
BEYOND = r"golden\.json: expected the scores that training gave, within 1e-09; here they differ by "


def _scores(monkeypatch: pytest.MonkeyPatch, change: Callable[[np.ndarray], Any]) -> None:
    """Let every model give changed scores."""
    monkeypatch.setattr(Scorer, "score", lambda scorer, columns: change(SCORE(scorer, columns)))


def _column(kind: str, *, nullable: bool) -> Column:
    """A column without a range."""
    return Column(
        {"name": "load", "kind": kind, "nullable": nullable, "minimum": None, "maximum": None, "unit": None,
         "description": "How much it bears"}
    )  # fmt: skip


def _served(bundle: Bundle, golden: np.ndarray) -> bool:
    """Whether a bundle is served with other golden scores than its own."""
    (bundle.folder / "golden.json").write_bytes(json_bytes(bundle.golden | {"scores": golden.tolist()}))
    bundle.inspect()
    try:
        bundle.load()
    except InputError as error:
        if re.match(f".+/{BEYOND}", str(error)):
            return False
        raise
    return True


@pytest.mark.parametrize("every", [True, False])
def test_a_model_that_gives_nan_on_a_golden_row_is_refused(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, every: bool
) -> None:
    def lose(scores: np.ndarray) -> np.ndarray:
        lost = scores.copy()
        lost[slice(None) if every else 3] = np.nan
        return lost

    _scores(monkeypatch, lose)
    with pytest.raises(InputError, match=BEYOND + "nan"):
        bundle.load()


def test_a_score_at_the_threshold_is_true_and_one_below_it_is_false() -> None:
    threshold = 0.3
    scores = np.array([[np.nextafter(threshold, 0)], [threshold], [np.nextafter(threshold, 1)]])
    assert labels(scores, {"task": "binary"}, threshold) == [False, True, True]


def test_a_score_at_the_threshold_is_answered_with_true(bundle: Bundle) -> None:
    score = Service(bundle).predict(bundle.rows(1)).json()["scores"][0]
    contract = bundle.read("contract.json")
    for threshold, label in [(score, True), (float(np.nextafter(score, 1)), False)]:
        (bundle.folder / "contract.json").write_bytes(json_bytes(contract | {"threshold": threshold}))
        bundle.inspect()
        assert Service(bundle).predict(bundle.rows(1)).json()["labels"] == [label]


@given(
    st.lists(
        st.none() | st.datetimes(timezones=st.none() | st.just(UTC) | st.timezones() | st.builds(timezone, MINUTES))
    )
)
def test_times_are_microseconds_since_1970_in_utc(times: list[datetime | None]) -> None:
    made = _column("time", nullable=True).array(times)
    assert made.dtype == "datetime64[us]"
    since = [time and (time.replace(tzinfo=time.tzinfo or UTC) - datetime(1970, 1, 1, tzinfo=UTC)) for time in times]
    expected = [np.iinfo("int64").min if each is None else each // timedelta(microseconds=1) for each in since]
    assert made.view("int64").tolist() == expected


@pytest.mark.parametrize("nullable", [True, False])
def test_infinity_is_refused_where_a_column_has_no_range(nullable: bool) -> None:
    with pytest.raises(RowError) as refused:
        _column("number", nullable=nullable).array_of_numbers(np.array([1.0, np.inf, -2.0, -np.inf]))
    assert [(error.row, error.value) for error in refused.value.errors] == [(1, "inf"), (3, "-inf")]


@pytest.mark.parametrize("kind", ["number", "integer"])
def test_nan_is_missing_where_a_column_without_a_range_may_be(kind: str) -> None:
    numbers = np.array([1.0, np.nan, -2e300])
    np.testing.assert_array_equal(_column(kind, nullable=True).array_of_numbers(numbers), numbers)
    with pytest.raises(RowError) as refused:
        _column(kind, nullable=False).array_of_numbers(numbers)
    assert [(error.row, error.value) for error in refused.value.errors] == [(1, "nan")]


@pytest.fixture
def regression(made: Callable[[str], Bundle], bundle: Bundle) -> Bundle:
    """A copy of the bundle of a regression, to be changed."""
    for path in made("regression-onnx").folder.iterdir():
        (bundle.folder / path.name).write_bytes(path.read_bytes())
    return bundle


@pytest.mark.parametrize("factor", [1e6, -1e6])
def test_a_large_prediction_may_differ_by_the_tolerance_times_its_size(
    regression: Bundle, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    _scores(monkeypatch, lambda scores: scores * factor)
    scores = np.array(regression.golden["scores"]) * factor
    gap = np.where(np.abs(scores) == np.abs(scores).max(), TOLERANCE * scores, 0)
    assert np.abs(gap).max() > 1000 * TOLERANCE
    assert [_served(regression, scores + share * gap) for share in (-2, -0.5, 0.5, 2)] == [False, True, True, False]


def test_a_small_prediction_may_differ_by_the_tolerance_itself(
    regression: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    _scores(monkeypatch, lambda scores: scores / 1000)
    scores = np.array(regression.golden["scores"]) / 1000
    assert [_served(regression, scores + gap * TOLERANCE) for gap in (-2, -0.5, 0.5, 2)] == [False, True, True, False]


def test_a_probability_may_differ_by_the_tolerance_itself(bundle: Bundle) -> None:
    scores = np.array(bundle.golden["scores"])
    assert [_served(bundle, scores + gap * TOLERANCE) for gap in (-2, -0.5, 0.5, 2)] == [False, True, True, False]
