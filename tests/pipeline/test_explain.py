from itertools import combinations
from math import factorial

import numpy as np
import pandas as pd
import pandera.pandas as pa
import pytest
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LinearRegression

from pipeline.contract import Contract, column
from pipeline.decisions import Costs
from pipeline.explain import importance, shap_values, worst_errors
from pipeline.metrics import Decision, Judged
from pipeline.prepared import as_arrays, features_of
from pipeline.resamples import Bootstrap
from pipeline.scoring import Feature, Model, encode
from tests.synthetic import evaluation, make_contract, make_scorer, prepared

HOW = Bootstrap(resamples=200, confidence=0.9, seed=0)
DECISION = Decision(0.5, Costs(missed=3.0, false_alarm=1.0))
N = 600


def logistic(*weights: float) -> Model:
    return lambda matrix: 1 / (1 + np.exp(-(matrix @ np.array(weights))))[:, None]


def linear(*weights: float) -> Model:
    return lambda matrix: (matrix @ np.array(weights))[:, None]


def normal(width: int, rows: int = N, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, width))


def drawn_from(scores: np.ndarray, seed: int = 1) -> np.ndarray:
    return (np.random.default_rng(seed).random(len(scores)) < scores[:, 0]).astype("float64")


def importances(
    matrix: np.ndarray, truth: np.ndarray, model: Model, metric: str = "roc_auc", how: Bootstrap = HOW
) -> pd.DataFrame:
    decision = DECISION if metric == "roc_auc" else None
    judged = Judged(truth, model(matrix), decision)
    spec = tuple(Feature(f"x{i}") for i in range(matrix.shape[1]))
    blocks = np.arange(len(matrix)) * 40 // len(matrix)
    return importance(matrix, judged, model, spec, metric=metric, blocks=blocks, how=how)


def test_what_the_model_goes_by_helps_and_what_it_does_not_read_helps_nothing() -> None:
    matrix = normal(4)
    model = logistic(0.5, 0.0, 2.0, 0.0)
    found = importances(matrix, drawn_from(model(matrix)), model)
    assert found["feature"].tolist() == ["x2", "x0", "x1", "x3"]
    assert found["says"].tolist() == ["helps", "helps", "helps nothing", "helps nothing"]
    assert (found.loc[2:, ["importance", "low", "high"]] == 0).all(axis=None)
    assert found["importance"].is_monotonic_decreasing
    assert (found["low"] <= found["importance"]).all()
    assert (found["importance"] <= found["high"]).all()


def test_a_feature_whose_shuffle_leaves_the_metric_undefined_has_no_importance() -> None:
    matrix = normal(2)
    truth = (matrix[:, 0] > 0).astype("float64")
    calls = iter([False] * 3 + [True] * 3)  # while the first is shuffled, no row is called positive

    def model(rows: np.ndarray) -> np.ndarray:
        return truth[:, None] if next(calls) else np.zeros((len(rows), 1))

    judged, blocks = Judged(truth, truth[:, None], DECISION), np.arange(N) * 40 // N
    spec = (Feature("x0"), Feature("x1"))
    found = importance(matrix, judged, model, spec, metric="precision", blocks=blocks, how=HOW).set_index("feature")
    assert found.loc["x0", ["importance", "low", "high"]].isna().all()
    assert found.loc["x0", "says"] == "helps nothing"
    assert found.loc["x1", "importance"] == 0


def test_importance_is_about_scikit_learns() -> None:
    matrix = normal(3, 3000)
    truth = matrix @ [2.0, 1.0, 0.0] + np.random.default_rng(1).normal(size=3000)
    fitted = LinearRegression().fit(matrix, truth)
    found = importances(matrix, truth, lambda rows: fitted.predict(rows)[:, None], "rmse").set_index("feature")
    expected = permutation_importance(
        fitted, matrix, truth, scoring="neg_root_mean_squared_error", n_repeats=20, random_state=0
    )
    for name, mean in zip(["x0", "x1"], expected.importances_mean, strict=False):
        assert found.loc[name, "importance"] == pytest.approx(mean, rel=0.05)
        assert found.loc[name, "low"] < mean < found.loc[name, "high"]
    assert found.loc["x0", "importance"] == pytest.approx(
        np.sqrt(2 * 4 + 1) - 1, rel=0.1
    )  # y keeps its part, x0 loses it


def test_a_feature_that_is_used_but_says_nothing_has_an_interval_around_zero() -> None:
    found = []
    for seed in range(20):
        matrix = normal(2, seed=seed)
        truth = drawn_from(logistic(1.5, 0.0)(matrix), seed + 100)
        found.append(importances(matrix, truth, logistic(1.5, 0.05)).set_index("feature").loc["x1"])
    table = pd.DataFrame(found)
    around = (table["low"] <= 0) & (table["high"] >= 0)
    assert (table["says"] == np.where(around, "helps nothing", np.where(table["low"] > 0, "helps", "harms"))).all()
    assert around.sum() >= 12
    assert (table["importance"][around] > 0).any()
    assert (table["importance"][around] < 0).any()


def test_a_feature_that_misleads_harms() -> None:
    matrix = normal(2)
    truth = drawn_from(logistic(1.5, 1.5)(matrix))
    found = importances(matrix, truth, logistic(1.5, -1.0)).set_index("feature")
    assert found["says"].to_dict() == {"x0": "helps", "x1": "harms"}
    assert found.loc["x1", "high"] < 0


def test_importance_can_be_asked_again_and_leaves_its_input_as_it_was() -> None:
    matrix = normal(2)
    truth, kept = drawn_from(logistic(1, 1)(matrix)), matrix.copy()
    one, again = (importances(matrix, truth, logistic(1, 1)) for _ in range(2))
    pd.testing.assert_frame_equal(one, again)
    np.testing.assert_array_equal(matrix, kept)
    assert not one.equals(importances(matrix, truth, logistic(1, 1), how=HOW._replace(seed=1)))


def test_many_rows_are_sampled_for_importance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.explain._SAMPLE", 200)
    matrix, asked = normal(2), []

    def model(rows: np.ndarray) -> np.ndarray:
        asked.append(len(rows))
        return logistic(1, 1)(rows)

    found = importances(matrix, drawn_from(logistic(1, 1)(matrix)), model)
    assert asked[1:] == [200] * 6  # three shuffles of each
    assert (found["importance"] > 0).all()


def exact_shap(row: np.ndarray, others: np.ndarray, model: Model) -> np.ndarray:
    """Shapley values over all coalitions, the features left out taken from every other row."""
    width, found = len(row), np.zeros(len(row))

    def worth(revealed: tuple[int, ...]) -> float:
        mixed = others.copy()
        mixed[:, revealed] = row[list(revealed)]
        return float(model(mixed)[:, 0].mean())

    for feature in range(width):
        rest = [i for i in range(width) if i != feature]
        for size in range(width):
            for revealed in combinations(rest, size):
                weight = factorial(size) * factorial(width - size - 1) / factorial(width)
                found[feature] += weight * (worth((*revealed, feature)) - worth(revealed))
    return found


def test_shap_values_come_close_to_the_exact_ones_of_a_model_with_interactions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.explain._ORDERS", 3000)
    matrix = normal(3, 12)

    def model(rows: np.ndarray) -> np.ndarray:
        return (rows[:, 0] * rows[:, 1] + 2 * rows[:, 2] + np.maximum(rows[:, 0], 0))[:, None]

    values, rows = shap_values(matrix, model, seed=0)
    np.testing.assert_array_equal(rows, matrix)
    expected = np.array([exact_shap(row, matrix, model) for row in matrix])
    np.testing.assert_allclose(values, expected, atol=0.12)
    assert np.corrcoef(values.ravel(), expected.ravel())[0, 1] > 0.998


def test_shap_values_of_a_linear_model_are_its_weights_times_the_distance_from_the_mean() -> None:
    matrix, weights = normal(4, 2000), np.array([2.0, -1.0, 0.5, 0.0])
    values, rows = shap_values(matrix, linear(*weights), seed=0)
    expected = weights * (rows - matrix.mean(axis=0))
    assert (values[:, 3] == 0).all()
    off = values - expected
    assert np.abs(off.mean(axis=0)).max() < 0.15  # right in expectation: 2 / sqrt(8 * 200) is 0.05
    assert off.std(axis=0) == pytest.approx(np.abs(weights) / np.sqrt(8), abs=0.1)  # eight other rows each


def test_shap_values_add_up_to_the_score_less_that_of_the_others() -> None:
    matrix = prepared_matrix("binary")
    scorer = make_scorer("binary")
    values, rows = shap_values(matrix, scorer.model, seed=0)
    whole = scorer.model(matrix)[:, 0]
    assert values.shape == rows.shape == (len(matrix), 6)
    short = values.sum(axis=1) - (scorer.model(rows)[:, 0] - whole.mean())
    assert np.abs(short.mean()) < 3 * whole.std() / np.sqrt(8 * len(rows))
    assert np.abs(short).max() < 4 * whole.std() / np.sqrt(8)


def prepared_matrix(task: str) -> np.ndarray:
    return encode(as_arrays(features_of(prepared(task).test)), make_scorer(task).spec)


def test_features_that_are_alike_share_alike() -> None:
    """Since each order in which they are revealed is also taken from its end."""
    matrix = normal(1, 300) * np.ones((1, 2))
    values, _ = shap_values(matrix, lambda rows: rows[:, [0]] * rows[:, [1]], seed=0)
    np.testing.assert_allclose(values[:, 0], values[:, 1], atol=1e-12)


def test_of_several_classes_the_called_one_is_explained() -> None:
    matrix = normal(2, 150)

    def model(rows: np.ndarray) -> np.ndarray:
        return np.column_stack([rows[:, 0], rows[:, 1], np.full(len(rows), 0.3)])

    values, rows = shap_values(matrix, model, seed=0)
    called = model(rows).argmax(axis=1)
    assert set(called) == {0, 1, 2}
    assert (values[called == 2] == 0).all()
    for mine, other in ((0, 1), (1, 0)):
        assert (values[called == mine, other] == 0).all()
        expected = rows[called == mine, mine].mean() - matrix[:, mine].mean()
        assert values[called == mine, mine].mean() == pytest.approx(expected, abs=0.15)


def test_few_rows_are_explained_and_always_the_same_ones() -> None:
    matrix = normal(2, 1050)
    values, rows = shap_values(matrix, linear(1, 1), seed=5)
    assert values.shape == (200, 2)
    np.testing.assert_array_equal(rows, matrix[::5][:200])
    np.testing.assert_array_equal(values, shap_values(matrix, linear(1, 1), seed=5)[0])
    assert (values != shap_values(matrix, linear(1, 1), seed=6)[0]).any()


def test_a_missing_value_is_explained_like_any_other() -> None:
    matrix = normal(2, 100)
    matrix[::2, 0] = np.nan
    values, rows = shap_values(matrix, lambda rows: np.nan_to_num(rows[:, [0]], nan=9.0), seed=0)
    missing = np.isnan(rows[:, 0])
    assert values[missing, 0].mean() == pytest.approx(4.5 - matrix[~missing, 0].mean() / 2, abs=0.5)
    assert values[~missing, 0].mean() == pytest.approx(-4.5 + matrix[~missing, 0].mean() / 2, abs=0.5)
    assert (values[:, 1] == 0).all()


def test_the_worst_errors_of_two_classes_are_the_scores_farthest_from_the_truth() -> None:
    test = prepared().test
    scores = np.full((len(test), 1), 0.5)
    truth = test["outcome"].to_numpy()
    scores[7], scores[20] = 0.99 - 0.98 * truth[7], 0.9 - 0.8 * truth[20]
    found = worst_errors(test, Judged(truth, scores, DECISION), make_contract(), None)
    assert len(found) == 10
    assert found["model_score"][:2].tolist() == [scores[7, 0], scores[20, 0]]
    assert found["outcome"][:2].tolist() == [truth[7], truth[20]]
    assert found["cycles"][:2].tolist() == test["cycles"].iloc[[7, 20]].tolist()
    assert list(found) == ["read_at", "site", "maker", "measured_at", "temperature", "cycles", "guarded",
                           "outcome", "model_score"]  # fmt: skip
    assert found["read_at"][2:].tolist() == test["read_at"].drop(7)[:8].tolist()  # as wrong as others: in their order


def test_the_worst_errors_show_keys_and_inputs_once_and_no_entity() -> None:
    class Calls(pa.DataFrameModel):
        """One row per call."""

        number: int = column("Its number", roles=["key", "feature"])
        caller: str = column("Who", roles=["key", "entity", "feature"], open_categories=True)
        minute: int = column("When", roles=["feature", "slice"], spans={"night": 0, "day": 360})
        length: float = column("How long", roles=["target"], known="after")

    table = pd.DataFrame({"number": range(12), "caller": "me", "minute": 7, "length": np.arange(12.0)})
    judged = Judged(table["length"].to_numpy(), np.zeros((12, 1)), None)
    found = worst_errors(table, judged, Contract.of(Calls, noun="calls"), None)
    assert list(found) == ["number", "minute", "length", "model_score"]
    assert found["number"].tolist() == list(range(11, 1, -1))


def test_the_worst_errors_of_classes_are_where_the_true_one_got_least() -> None:
    test, names = prepared("multiclass").test, ["broken", "fine", "worn"]
    truth = pd.Index(names).get_indexer(test["outcome"]).astype("float64")
    scores = np.tile([0.3, 0.3, 0.4], (len(test), 1))
    wrong = int(np.flatnonzero(truth == 2)[3])
    scores[wrong] = [0.5, 0.49, 0.01]
    found = worst_errors(test, Judged(truth, scores, None), make_contract("multiclass"), names)
    assert (found["outcome"][0], found["model_score"][0]) == ("worn", 0.01)
    assert found["cycles"][0] == test["cycles"].iloc[wrong]
    assert (found["model_score"][1:] == 0.3).all()


def test_the_worst_errors_of_a_number_are_the_largest_whichever_way() -> None:
    test = prepared("regression").test
    truth = test["outcome"].to_numpy()
    scores = truth[:, None] + 0.1
    scores[3] -= 9
    scores[5] += 5
    found = worst_errors(test, Judged(truth, scores, None), make_contract("regression"), None)
    assert found["outcome"][:2].tolist() == truth[[3, 5]].tolist()
    assert (found["model_score"] - found["outcome"])[:3].tolist() == pytest.approx([-8.9, 5.1, 0.1])


def test_the_made_evaluation_explains_what_made_the_outcome() -> None:
    found = evaluation("regression").tables["importance"].set_index("feature")
    assert set(found.index[:3]) == {"temperature", "cycles", "maker"}
    assert (found.loc[["site", "guarded", "age_min"], "says"] == "helps nothing").all()
