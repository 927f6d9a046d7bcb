import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sklearn.preprocessing import FunctionTransformer

from pipeline.archive import to_skops
from pipeline.featurize import raw_columns
from pipeline.scoring import TOLERANCE, Feature, Scorer, encode, parse_column
from tests.synthetic import CANDIDATES, TASKS, features, make_bundle, make_contract, make_scorer, prepared, write_bundle

SPEC = (Feature("number"), Feature.of("text", ("a", "b")))


@given(st.lists(st.tuples(st.floats(allow_nan=True), st.sampled_from(["a", "b", "c", None])), min_size=1, max_size=20))
def test_encoding_keeps_numbers_and_codes_text(rows: list[tuple[float, str | None]]) -> None:
    numbers, text = np.array([n for n, _ in rows]), np.array([t for _, t in rows], dtype=object)
    matrix = encode({"text": text, "number": numbers}, SPEC)
    assert matrix.dtype == np.float64
    np.testing.assert_array_equal(matrix[:, 0], numbers)
    codes = {"a": 0.0, "b": 1.0}
    np.testing.assert_array_equal(matrix[:, 1], [codes.get(t, np.nan) if t else np.nan for t in text])


def test_json_values_become_the_arrays_that_features_take() -> None:
    assert parse_column(["a", None], "category").tolist() == ["a", None]
    np.testing.assert_array_equal(parse_column([1, None, 2.5], "number"), [1.0, np.nan, 2.5])
    np.testing.assert_array_equal(parse_column([True, False, None], "boolean"), [1.0, 0.0, np.nan])
    moments = parse_column(["2020-01-01T00:00:00.000001", None], "time")
    assert moments.dtype == np.dtype("datetime64[us]")
    assert str(moments[0]) == "2020-01-01T00:00:00.000001"
    assert np.isnat(moments[1])


@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("task", TASKS)
def test_a_bundle_scores_its_golden_rows_as_training_did(tmp_path: Path, task: str, candidate: str) -> None:
    scorer = Scorer.load(write_bundle(tmp_path / "bundle", make_bundle(task, candidate)), features)
    golden = json.loads((tmp_path / "bundle/golden.json").read_text())
    columns = {
        entry["name"]: parse_column(golden["rows"][entry["name"]], entry["kind"]) for entry in scorer.contract["inputs"]
    }
    scores = scorer.score(columns)
    np.testing.assert_allclose(scores, golden["scores"], rtol=0, atol=scorer.contract["tolerance"])
    assert scores.shape == (len(golden["scores"]), 3 if task == "multiclass" else 1)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Scorer:
    return Scorer.load(write_bundle(tmp_path_factory.mktemp("bundle") / "bundle", make_bundle("multiclass")), features)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 100), min_size=1, max_size=8))
def test_a_row_scores_alone_as_in_a_batch(scorer: Scorer, rows: list[int]) -> None:
    columns = raw_columns(prepared("multiclass").test.iloc[rows], make_contract("multiclass"))
    together = scorer.score(columns)
    alone = [scorer.score({name: values[i : i + 1] for name, values in columns.items()})[0] for i in range(len(rows))]
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-12)


def test_a_set_inside_a_model_has_one_order() -> None:
    one, same = (FunctionTransformer(kw_args={"names": set(names)}) for names in (["a", "b", "c"], ["c", "b", "a"]))
    assert to_skops(one) == to_skops(same)


def golden(task: str = "binary", candidate: str = "boosting") -> dict[str, Any]:
    made: dict[str, Any] = json.loads(make_bundle(task, candidate)["golden.json"])
    return made


@pytest.mark.parametrize("candidate", CANDIDATES)
@pytest.mark.parametrize("task", TASKS)
def test_the_golden_rows_of_a_bundle_agree_to_the_tolerance(task: str, candidate: str) -> None:
    assert make_scorer(task, candidate).golden_gap(golden(task, candidate)) <= TOLERANCE


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_the_golden_gap_is_the_largest_difference_of_a_probability(task: str, sign: int) -> None:
    given = golden(task)
    given["scores"][0][0] += sign * 1e-7
    given["scores"][-1][-1] -= sign * 1e-6
    assert make_scorer(task).golden_gap(given) == pytest.approx(1e-6, rel=1e-6)


def test_the_golden_gap_of_a_prediction_is_relative_to_its_size_where_that_is_above_one() -> None:
    scorer, given = make_scorer("regression"), golden("regression")
    for size, expected in ((2000.0, 1e-6), (-2000.0, 1e-6), (0.5, 2e-3)):
        said = np.full((len(given["scores"]), 1), size)
        off = replace(scorer, model=lambda _matrix, said=said: said + 2e-3 * np.eye(len(said))[:, [7]])
        assert off.golden_gap({**given, "scores": said.tolist()}) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("task", TASKS)
def test_a_golden_score_that_is_no_number_is_no_gap_that_passes(task: str) -> None:
    scorer = make_scorer(task)

    def model(matrix: np.ndarray) -> np.ndarray:
        scores = scorer.model(matrix)
        scores[4] = np.nan
        return scores

    assert not replace(scorer, model=model).golden_gap(golden(task)) <= TOLERANCE
