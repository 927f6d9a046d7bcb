import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor, RandomForestRegressor
from sklearn.frozen import FrozenEstimator
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import Pipeline, make_pipeline

from pipeline.archive import sklearn_scores
from pipeline.export import to_onnx
from pipeline.parity import Parity, edge_rows, measure

RANDOM = np.random.default_rng(0)
X = np.column_stack([RANDOM.normal(size=(500, 2)), RANDOM.integers(0, 4, 500)])
Y = X[:, 0] + (X[:, 2] == 1) + RANDOM.normal(size=500) / 4


def constant_graph(scores):
    """A graph that gives each row the same scores."""
    value = numpy_helper.from_array(np.array([scores], dtype=np.float64), "value")
    nodes = [
        helper.make_node("ReduceMean", ["X", "axis"], ["mean"], keepdims=1),
        helper.make_node("Mul", ["mean", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "value"], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "constant",
        [helper.make_tensor_value_info("X", TensorProto.DOUBLE, [None, 3])],
        [helper.make_tensor_value_info("scores", TensorProto.DOUBLE, [None, len(scores)])],
        [value, numpy_helper.from_array(np.array([1]), "axis"), numpy_helper.from_array(np.array(0.0), "zero")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10).SerializeToString()


class Constant:
    """A fitted regressor, or classifier, with the same scores for each row."""

    def __init__(self, *scores, kind="regressor"):
        self._scores, self._estimator_type = scores, kind

    def __sklearn_tags__(self):
        tags = Ridge().__sklearn_tags__()
        tags.estimator_type = self._estimator_type
        return tags

    def predict(self, X):
        return np.full(len(X), self._scores[0])

    def predict_proba(self, X):
        return np.tile(self._scores, (len(X), 1))


def calibrated(target, classifier=None):
    classifier = classifier or HistGradientBoostingClassifier(max_iter=10, categorical_features=[2])
    method = "sigmoid" if len(np.unique(target)) == 2 else "temperature"
    return CalibratedClassifierCV(FrozenEstimator(classifier.fit(X, target)), method=method).fit(X, target)


def test_scores_are_one_column_for_binary_and_regression_and_one_per_class_otherwise():
    assert sklearn_scores(calibrated((Y > 0).astype(int)), X).shape == (500, 1)
    assert sklearn_scores(calibrated(np.digitize(Y, [0, 1])), X).shape == (500, 3)
    assert sklearn_scores(Ridge().fit(X, Y), X).shape == (500, 1)


def test_exact_graph_passes():
    model = calibrated((Y > 0).astype(int))
    measured = measure(model, to_onnx(model, 3), X, threshold=0.4321, tolerance=1e-12)
    assert measured.passed
    assert (measured.changed_decisions, measured.rows, measured.reason) == (0, 500, None)


@pytest.mark.parametrize("place", [0, 7])
def test_weight_changed_in_the_sixth_decimal_is_caught(place):
    model = HistGradientBoostingRegressor(max_iter=10).fit(X, Y)
    graph = onnx.load_from_string(to_onnx(model, 3))
    (weights,) = (each for each in graph.graph.node[0].attribute if each.name == "leaf_weights")
    changed = numpy_helper.to_array(weights.t).copy()
    changed[place] += 1e-6
    weights.t.CopyFrom(numpy_helper.from_array(changed, "leaf_weights"))
    measured = measure(model, graph.SerializeToString(), X, None, tolerance=1e-9)
    assert not measured.passed
    assert measured.max_difference == pytest.approx(1e-6, rel=1e-3)
    assert "scores differ by up to 1e-06, more than 1e-09" in measured.reason


def test_changed_decision_fails_even_within_the_tolerance():
    measured = measure(Constant(0.5, 0.5, kind="classifier"), constant_graph([0.5 - 1e-13]), X, 0.5, 1e-9)
    assert measured == Parity(pytest.approx(1e-13, rel=0.01), 500, 500, "500 of 500 decisions differ")


def test_multiclass_decision_is_the_largest_score():
    model = Constant(0.4, 0.4, 0.2, kind="classifier")
    assert measure(model, constant_graph([0.4, 0.4, 0.2]), X, None, 1e-9).passed
    assert measure(model, constant_graph([0.4 - 1e-13, 0.4, 0.2]), X, None, 1e-9).changed_decisions == 500


def test_regression_is_measured_relative_to_a_large_prediction():
    assert measure(Constant(1e9), constant_graph([1e9 + 0.1]), X, None, 1e-9).max_difference == pytest.approx(1e-10)
    assert measure(Constant(1e-3), constant_graph([2e-3]), X, None, 1e-9).max_difference == pytest.approx(1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_score_that_is_not_finite_fails_on_either_side(value):
    for model, graph in ((Constant(1.0), constant_graph([value])), (Constant(value), constant_graph([value]))):
        assert measure(model, graph, X, None, 1e-9).reason == "500 of 500 rows have a score that is not finite"


def test_scores_of_another_shape_fail():
    assert "the graph gave float64 (500, 2)" in measure(Constant(1.0), constant_graph([1, 2]), X, None, 1).reason


def test_batches_cover_every_row(monkeypatch):
    model = Ridge().fit(X, Y)
    monkeypatch.setattr("pipeline.parity.BATCH_ROWS", 7)
    monkeypatch.setattr("pipeline.parity.SINGLE_ROWS", 3)
    assert measure(model, to_onnx(model, 3), X, None, 1e-12).passed
    assert not measure(model, to_onnx(Ridge().fit(X[:499], Y[:499]), 3), X, None, 1e-12).passed


def test_edge_rows_hold_every_edge_and_are_the_same_each_time():
    model = calibrated((Y > 0).astype(int))
    rows = edge_rows(model, X, {2: 4}, seed=1)
    assert np.array_equal(rows, edge_rows(model, X, {2: 4}, seed=1), equal_nan=True)
    assert np.isnan(rows).all(axis=1).any()
    for column in range(3):
        assert (np.isnan(rows).sum(axis=1) == 1)[np.isnan(rows[:, column])].any()
    assert set(rows[~np.isnan(rows[:, 2]), 2]) == {0.0, 1.0, 2.0, 3.0}
    assert {X[:, 0].min(), X[:, 0].max(), -1e30, 1e30} <= set(rows[:, 0])
    assert np.nanmax(np.abs(rows[:, 1][np.abs(rows[:, 1]) < 1e29])) >= 1e6


def test_edge_rows_stand_on_and_next_to_every_split_of_a_small_tree():
    boosting = HistGradientBoostingRegressor(max_iter=2, max_leaf_nodes=4, categorical_features=[2]).fit(X, Y)
    nodes = np.concatenate([trees[0].nodes for trees in boosting._predictors])
    nodes = nodes[(nodes["is_leaf"] == 0) & (nodes["is_categorical"] == 0)]
    for model in (boosting, Pipeline([("only", boosting)])):
        rows = edge_rows(model, X, {2: 4}, seed=0)
        # The trees number the categorical column first: feature 1 is column 0 of X.
        for feature, split in zip(nodes["feature_idx"], nodes["num_threshold"], strict=True):
            near = {np.nextafter(split, -np.inf), split, np.nextafter(split, np.inf)}
            assert near <= set(rows[:, feature - 1])


def test_edge_rows_are_bounded_and_cover_forests():
    forest = RandomForestRegressor(20, random_state=0).fit(X, Y)
    rows = edge_rows(forest, X, {2: 10_000}, seed=0)
    assert 1500 < len(rows) < 1800
    assert set(rows[:, 0]) & set(forest.estimators_[0].tree_.threshold)


def test_edge_rows_leave_out_what_the_model_itself_refuses():
    model = calibrated((Y > 0).astype(int), LogisticRegression())
    rows = edge_rows(model, X, {2: 4}, seed=0)
    assert len(rows) == 2 * 6 + 4
    assert np.isfinite(rows).all()
    assert measure(model, to_onnx(model, 3), rows, 0.4321, 1e-12).passed


def test_a_column_without_values_still_gets_edges():
    empty = np.column_stack([X[:, 0], np.full(500, np.nan)])
    model = make_pipeline(SimpleImputer(keep_empty_features=True), Ridge()).fit(empty, Y)
    assert {-1e6, 0.0, 1e6} <= set(edge_rows(model, empty, {}, seed=0)[:, 1])
