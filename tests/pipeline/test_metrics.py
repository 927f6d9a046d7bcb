import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as theirs

from pipeline.decisions import Costs
from pipeline.metrics import (
    Bootstrap,
    Decision,
    Estimate,
    Judged,
    calibration_error,
    estimates,
    resampled,
    rounded,
    weighted_metrics,
)

DECISION = Decision(0.4, Costs(missed=3.0, false_alarm=1.0))
BOOTSTRAP = Bootstrap(resamples=400, confidence=0.9, seed=1)
N = 300


def binary(seed: int) -> Judged:
    """Scores with many ties, and some that are certain."""
    random = np.random.default_rng(seed)
    truth = (random.random(N) < 0.3).astype("float64")
    scores = np.clip(random.normal(0.3 + 0.2 * truth, 0.3), 0, 1).round(1 if seed % 2 else 9)
    return Judged(truth, scores[:, None])


def weights_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 4, size=(3, N)).astype("float64")


@pytest.mark.parametrize("seed", range(4))
def test_metrics_of_two_classes_are_scikit_learns_with_weights(seed: int) -> None:
    judged, weights = binary(seed), weights_of(seed)
    truth, scores = judged.truth, judged.scores[:, 0]
    called = scores >= DECISION.threshold
    found = weighted_metrics(judged, DECISION, weights)
    for draw, weight in enumerate(weights):
        expected = {
            "roc_auc": theirs.roc_auc_score(truth, scores, sample_weight=weight),
            "pr_auc": theirs.average_precision_score(truth, scores, sample_weight=weight),
            "log_loss": theirs.log_loss(truth, scores, sample_weight=weight),
            "brier": theirs.brier_score_loss(truth, scores, sample_weight=weight),
            "precision": theirs.precision_score(truth, called, sample_weight=weight),
            "recall": theirs.recall_score(truth, called, sample_weight=weight),
            "f1": theirs.f1_score(truth, called, sample_weight=weight),
        }
        assert {name: found[name][draw] for name in expected} == pytest.approx(expected)
        (_, alarm), (missed, _) = theirs.confusion_matrix(truth, called, sample_weight=weight)
        assert found["cost_per_1000"][draw] == pytest.approx(1000 * (3 * missed + alarm) / weight.sum())


@pytest.mark.parametrize("seed", range(3))
def test_metrics_of_classes_are_scikit_learns_with_weights(seed: int) -> None:
    random = np.random.default_rng(seed)
    truth = random.integers(0, 3, N).astype("float64")
    scores = random.dirichlet([1, 1, 1], N) * 0.5 + 0.5 * np.eye(3)[random.integers(0, 3, N)]
    weights, called = weights_of(seed), scores.argmax(axis=1)
    found = weighted_metrics(Judged(truth, scores), None, weights)
    for draw, weight in enumerate(weights):
        one_against_rest = [theirs.roc_auc_score(truth == k, scores[:, k], sample_weight=weight) for k in range(3)]
        expected = {
            "accuracy": theirs.accuracy_score(truth, called, sample_weight=weight),
            "log_loss": theirs.log_loss(truth, scores, sample_weight=weight),
            "macro_f1": theirs.f1_score(truth, called, average="macro", sample_weight=weight),
            "macro_roc_auc": np.mean(one_against_rest),
            "brier": np.average(((scores - np.eye(3)[truth.astype(int)]) ** 2).sum(axis=1), weights=weight),
        }
        assert {name: found[name][draw] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("seed", range(3))
def test_metrics_of_a_regression_are_scikit_learns_with_weights(seed: int) -> None:
    random = np.random.default_rng(seed)
    truth = 1e6 + random.normal(size=N)
    predicted = truth + random.normal(size=N)
    weights = weights_of(seed)
    found = weighted_metrics(Judged(truth, predicted[:, None]), None, weights)
    for draw, weight in enumerate(weights):
        expected = {
            "rmse": theirs.root_mean_squared_error(truth, predicted, sample_weight=weight),
            "mae": theirs.mean_absolute_error(truth, predicted, sample_weight=weight),
            "r2": theirs.r2_score(truth, predicted, sample_weight=weight),
            "bias": np.average(predicted - truth, weights=weight),
        }
        assert {name: found[name][draw] for name in expected} == pytest.approx(expected)


def test_a_class_that_a_resample_lacks_is_left_out_of_the_mean() -> None:
    scores = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.3, 0.6, 0.1], [0.1, 0.1, 0.8]])
    judged = Judged(np.array([0.0, 1.0, 0.0, 2.0]), scores)
    found = weighted_metrics(judged, None, np.array([[1.0, 1.0, 1.0, 0.0]]))
    aucs = [theirs.roc_auc_score([1, 0, 1], scores[:3, 0]), theirs.roc_auc_score([0, 1, 0], scores[:3, 1])]
    assert found["macro_roc_auc"][0] == pytest.approx(np.mean(aucs))
    assert found["macro_f1"][0] == pytest.approx(theirs.f1_score([0, 1, 0], [0, 1, 1], average="macro"))


def test_calibration_error_is_the_gap_in_tenths_of_the_rows() -> None:
    random = np.random.default_rng(0)
    scores = random.random(1_000)
    truth = (random.random(1_000) < scores**2).astype("float64")
    weights = random.integers(0, 3, size=(2, 1_000)).astype("float64")
    parts = np.array_split(np.argsort(scores), 10)
    for draw, weight in enumerate(weights):
        gaps = [abs(np.sum(weight[part] * (scores[part] - truth[part]))) for part in parts]
        assert calibration_error(truth, scores, weights)[draw] == pytest.approx(sum(gaps) / weight.sum())


def test_one_score_for_all_is_one_bin() -> None:
    error = calibration_error(np.array([1.0, 0.0, 0.0, 0.0]), np.full(4, 0.5), np.ones((1, 4)))
    assert error.tolist() == [0.25]


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30))
def test_whole_blocks_are_drawn(given_blocks: list[int]) -> None:
    blocks = np.unique(given_blocks, return_inverse=True)[1]
    weights = np.concatenate(list(resampled(blocks, Bootstrap(7, 0.9, seed=3))))
    assert weights.shape == (7, len(blocks))
    for block in range(blocks.max() + 1):
        assert (np.ptp(weights[:, blocks == block], axis=1) == 0).all()
    firsts = [np.flatnonzero(blocks == block)[0] for block in range(blocks.max() + 1)]
    assert (weights[:, firsts].sum(axis=1) == len(firsts)).all()


def test_draws_do_not_depend_on_how_many_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(resampled(np.arange(50), BOOTSTRAP)))
    monkeypatch.setattr("pipeline.metrics._CHUNK", 50 * 64)
    chunks = list(resampled(np.arange(50), BOOTSTRAP))
    assert [len(chunk) for chunk in chunks] == [64] * 6 + [16]
    np.testing.assert_array_equal(np.concatenate(chunks), whole)


def test_the_same_seed_gives_the_same_intervals() -> None:
    blocks = np.arange(N)
    assert estimates(binary(0), DECISION, blocks, BOOTSTRAP) == estimates(binary(0), DECISION, blocks, BOOTSTRAP)
    other = BOOTSTRAP._replace(seed=2)
    assert estimates(binary(0), DECISION, blocks, BOOTSTRAP) != estimates(binary(0), DECISION, blocks, other)


def test_two_models_are_judged_on_the_same_draws() -> None:
    judged = binary(0)
    better = Judged(judged.truth, (judged.scores + judged.truth[:, None]) / 2)
    weights = np.concatenate(list(resampled(np.arange(N), BOOTSTRAP)))
    drawn = [weighted_metrics(each, DECISION, weights)["brier"] for each in (judged, better)]
    assert (drawn[1] < drawn[0]).all()


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    held = 0
    for seed in range(60):
        truth = (np.random.default_rng(seed).random(200) < 0.3).astype("float64")
        found = estimates(Judged(truth, np.full((200, 1), 0.5)), DECISION, np.arange(200), BOOTSTRAP)["precision"]
        held += found.low <= 0.3 <= found.high
    assert 47 <= held <= 60  # 90% of 60 is 54


def test_rows_that_come_in_blocks_have_wider_intervals() -> None:
    random = np.random.default_rng(0)
    blocks = np.repeat(np.arange(30), 20)
    truth = np.repeat(random.random(30) < 0.4, 20).astype("float64")
    judged = Judged(truth, np.full((600, 1), 0.5))
    apart, together = (estimates(judged, DECISION, b, BOOTSTRAP)["precision"] for b in (np.arange(600), blocks))
    assert together.high - together.low > 3 * (apart.high - apart.low)
    assert together.value == apart.value


def test_what_is_not_defined_has_no_estimate() -> None:
    nobody = Decision(2.0, DECISION.costs)
    found = estimates(binary(0), nobody, np.arange(N), BOOTSTRAP)
    assert "precision" not in found
    assert found["recall"] == Estimate(0.0, 0.0, 0.0)


def test_a_report_has_six_digits() -> None:
    found = rounded({"x": Estimate(1 / 3, 0.1, 12345678.0)})
    assert found == {"x": {"value": 0.333333, "low": 0.1, "high": 12345700.0}}
