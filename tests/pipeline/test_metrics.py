import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as theirs

from pipeline.decisions import Costs
from pipeline.metrics import Decision, Judged, calibration_bins, calibration_error, draws, gain, summarised
from pipeline.resamples import Bootstrap, Estimate, times_drawn

DECISION = Decision(0.4, Costs(missed=3.0, false_alarm=1.0))
N, MANY = 300, 25
HOW = Bootstrap(resamples=4, confidence=0.9, seed=1)


def binary(seed: int) -> Judged:
    """Scores with many ties, and some that are certain."""
    random = np.random.default_rng(seed)
    truth = (random.random(N) < 0.3).astype("float64")
    scores = np.clip(random.normal(0.3 + 0.2 * truth, 0.3), 0, 1).round(1 if seed % 2 else 9)
    return Judged(truth, scores[:, None], DECISION)


def classes(seed: int) -> Judged:
    random = np.random.default_rng(seed)
    truth = random.integers(0, 3, N).astype("float64")
    scores = random.dirichlet([1, 1, 1], N) * 0.5 + 0.5 * np.eye(3)[random.integers(0, 3, N)]
    return Judged(truth, scores, None)


def number(seed: int) -> Judged:
    random = np.random.default_rng(seed)
    truth = 1e6 + random.normal(size=N)
    return Judged(truth, (truth + random.normal(size=N))[:, None], None)


def blocks_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(np.arange(N) % MANY)


def some_rows(seed: int) -> np.ndarray:
    """Rows of some blocks, neither of the first nor of the last."""
    blocks = blocks_of(seed)
    return np.flatnonzero((blocks > 2) & (blocks < MANY - 5) & (blocks != 10))


def expected_of(judged: Judged, weight: np.ndarray) -> dict[str, float]:
    """By scikit-learn, and by counting where it has no such metric."""
    truth, scores = judged.truth, judged.scores[:, 0]
    if judged.decision is not None:
        called = scores >= judged.decision.threshold
        (right, alarm), (missed, hit) = theirs.confusion_matrix(truth, called, sample_weight=weight)
        return {
            "roc_auc": theirs.roc_auc_score(truth, scores, sample_weight=weight),
            "pr_auc": theirs.average_precision_score(truth, scores, sample_weight=weight),
            "log_loss": theirs.log_loss(truth, scores, sample_weight=weight),
            "brier": theirs.brier_score_loss(truth, scores, sample_weight=weight),
            "precision": theirs.precision_score(truth, called, sample_weight=weight),
            "recall": theirs.recall_score(truth, called, sample_weight=weight),
            "f1": theirs.f1_score(truth, called, sample_weight=weight),
            "false_positive_rate": alarm / (alarm + right),
            "selection_rate": (alarm + hit) / weight.sum(),
            "cost_per_1000": 1000 * (3 * missed + alarm) / weight.sum(),
        }
    if judged.scores.shape[1] > 1:
        whole, called = judged.scores, judged.scores.argmax(axis=1)
        one_against_rest = [theirs.roc_auc_score(truth == k, whole[:, k], sample_weight=weight) for k in range(3)]
        squares = ((whole - np.eye(3)[truth.astype(int)]) ** 2).sum(axis=1)
        return {
            "accuracy": theirs.accuracy_score(truth, called, sample_weight=weight),
            "log_loss": theirs.log_loss(truth, whole, sample_weight=weight),
            "macro_f1": theirs.f1_score(truth, called, average="macro", sample_weight=weight),
            "macro_roc_auc": float(np.mean(one_against_rest)),
            "brier": float(np.average(squares, weights=weight)),
        }
    return {
        "rmse": theirs.root_mean_squared_error(truth, scores, sample_weight=weight),
        "mae": theirs.mean_absolute_error(truth, scores, sample_weight=weight),
        "r2": theirs.r2_score(truth, scores, sample_weight=weight),
        "bias": float(np.average(scores - truth, weights=weight)),
    }


@pytest.mark.parametrize("rows_of", [lambda _seed: np.arange(N), some_rows], ids=["all rows", "rows of some blocks"])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("made", [binary, classes, number])
def test_metrics_are_scikit_learns_where_each_row_weighs_what_its_block_does(made, seed: int, rows_of) -> None:
    rows, blocks = rows_of(seed), blocks_of(seed)
    times = times_drawn(blocks, HOW._replace(seed=seed))
    judged, inside = made(seed).at(rows), blocks[rows]
    found = draws(judged, inside, times)
    for draw, counts in enumerate(times):
        expected = expected_of(judged, counts[inside])
        assert {name: found[name][draw] for name in expected} == pytest.approx(expected)
    assert set(found) == {*expected, *(["calibration_error"] if made is not number else [])}
    without_weights = expected_of(judged, np.ones(len(rows)))
    assert {name: found[name][0] for name in without_weights} == pytest.approx(without_weights)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 3), st.integers(0, 4)), min_size=1, max_size=25))
def test_any_ranking_with_any_ties_is_judged_as_by_scikit_learn(rows: list[tuple[bool, int, int]]) -> None:
    truth, scores = (np.array([float(row[i]) for row in rows]) for i in (0, 1))
    blocks = np.array([row[2] for row in rows])
    times = np.vstack([np.ones(5), np.random.default_rng(0).integers(0, 3, size=(3, 5))]).astype("float64")
    found = draws(Judged(truth, scores[:, None] / 3, DECISION), blocks, times, only=("roc_auc", "pr_auc"))
    assert set(found) == (
        {"roc_auc", "pr_auc"} if 0 < truth.sum() < len(truth) else {"pr_auc"} if truth.all() else set()
    )
    for name, metric in (("roc_auc", theirs.roc_auc_score), ("pr_auc", theirs.average_precision_score)):
        for draw, weight in enumerate(times[:, blocks]):
            if name in found and len(np.unique(truth[weight > 0])) == 2:
                assert found[name][draw] == pytest.approx(metric(truth, scores, sample_weight=weight))


def test_what_a_resample_leaves_undefined_is_no_number() -> None:
    judged = Judged(np.array([1.0, 0.0, 0.0]), np.array([[0.9], [0.5], [0.1]]), DECISION)
    times = np.array([[1.0, 1, 1], [1, 0, 0], [0, 1, 1]])
    found = draws(judged, np.arange(3), times)
    assert np.isnan(found["roc_auc"]).tolist() == [False, True, True]
    assert np.isnan(found["recall"]).tolist() == [False, False, True]
    assert np.isnan(found["pr_auc"]).tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("judged", "undefined"),
    [
        (binary(0)._replace(decision=Decision(2.0, DECISION.costs)), {"precision"}),
        (binary(0)._replace(truth=np.zeros(N)), {"roc_auc", "pr_auc", "recall"}),
        (binary(0)._replace(truth=np.ones(N)), {"roc_auc", "false_positive_rate"}),
        (classes(0)._replace(truth=np.ones(N)), {"macro_roc_auc"}),
        (number(0)._replace(truth=np.full(N, 0.1)), {"r2"}),
    ],
    ids=["nobody called", "no positive", "no negative", "one class", "one number"],
)
def test_what_all_the_rows_leave_undefined_is_left_out(judged: Judged, undefined: set[str]) -> None:
    blocks = blocks_of(0)
    usual = number(0) if judged.scores[0, 0] > 1 else classes(0) if judged.scores.shape[1] > 1 else binary(0)
    found = draws(judged, blocks, times_drawn(blocks, HOW))
    assert set(draws(usual, blocks, times_drawn(blocks, HOW))) - set(found) == undefined
    assert all(np.isfinite(values[0]) for values in found.values())


def test_draws_of_a_single_number_have_no_r2_though_rounding_gives_it_a_variance() -> None:
    truth = np.array([0.2201951234700494, *[9.034701816518085] * 6])
    times = np.array([[1.0] * 7, [0, 1, 3, 3, 3, 1, 2]])
    found = draws(Judged(truth, truth[:, None] + 0.1, None), np.arange(7), times)["r2"]
    assert np.isnan(found).tolist() == [False, True]


def test_draws_of_a_single_number_have_no_r2_and_never_an_infinite_one() -> None:
    judged = Judged(np.array([0.1, 0.7, 0.7, 0.7]), np.array([[0.2], [0.6], [0.8], [0.3]]), None)
    times = np.array([[1.0, 1, 1, 1], [0, 2, 1, 1], [4, 0, 0, 0], [2, 2, 0, 0]])
    found = draws(judged, np.arange(4), times)["r2"]
    assert np.isnan(found).tolist() == [False, True, True, False]
    weight = times[3]
    assert found[3] == pytest.approx(theirs.r2_score(judged.truth, judged.scores[:, 0], sample_weight=weight))


def test_a_class_that_a_resample_lacks_is_left_out_of_the_mean() -> None:
    scores = np.array([[0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.3, 0.6, 0.1], [0.1, 0.1, 0.8]])
    judged = Judged(np.array([0.0, 1.0, 0.0, 2.0]), scores, None)
    found = draws(judged, np.arange(4), np.array([[1.0] * 4, [1, 1, 1, 0]]))
    aucs = [theirs.roc_auc_score([1, 0, 1], scores[:3, 0]), theirs.roc_auc_score([0, 1, 0], scores[:3, 1])]
    assert found["macro_roc_auc"][1] == pytest.approx(np.mean(aucs))
    assert found["macro_f1"][1] == pytest.approx(theirs.f1_score([0, 1, 0], [0, 1, 1], average="macro"))


def test_only_what_is_asked_for_is_drawn_and_the_same_as_with_all_the_others() -> None:
    blocks = blocks_of(0)
    times = times_drawn(blocks, HOW)
    found = draws(binary(0), blocks, times, only=["brier", "recall", "rmse"])
    assert list(found) == ["brier", "recall"]
    np.testing.assert_array_equal(found["brier"], draws(binary(0), blocks, times)["brier"])


def test_average_precision_does_not_depend_on_how_much_fits_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = blocks_of(0)
    times = times_drawn(blocks, HOW._replace(resamples=30))
    whole = draws(binary(0), blocks, times)["pr_auc"]
    for at_once in (1, 1000):
        monkeypatch.setattr("pipeline.metrics._AT_ONCE", at_once)
        np.testing.assert_allclose(draws(binary(0), blocks, times)["pr_auc"], whole, rtol=1e-12)


def test_calibration_error_is_the_gap_in_tenths_of_the_rows() -> None:
    random = np.random.default_rng(0)
    scores = random.random(1_000)
    truth = (random.random(1_000) < scores**2).astype("float64")
    blocks = random.integers(0, 20, 1_000)
    times = times_drawn(blocks, HOW)
    parts = np.array_split(np.argsort(scores), 10)
    for draw, weight in enumerate(times[:, blocks]):
        gaps = [abs(np.sum(weight[part] * (scores[part] - truth[part]))) for part in parts]
        assert calibration_error(truth, scores, blocks, times)[draw] == pytest.approx(sum(gaps) / weight.sum())
    assert [np.sum(calibration_bins(scores) == k) for k in range(10)] == [100] * 10


def test_classes_are_calibrated_where_the_called_one_is_as_often_right_as_it_says() -> None:
    judged, blocks = classes(1), blocks_of(1)
    right = (judged.scores.argmax(axis=1) == judged.truth).astype("float64")
    times = times_drawn(blocks, HOW)
    expected = calibration_error(right, judged.scores.max(axis=1), blocks, times)
    np.testing.assert_array_equal(draws(judged, blocks, times)["calibration_error"], expected)


def test_one_score_for_all_is_one_bin() -> None:
    error = calibration_error(np.array([1.0, 0.0, 0.0, 0.0]), np.full(4, 0.5), np.arange(4), np.ones((1, 4)))
    assert error.tolist() == [0.25]


def test_two_models_are_judged_on_the_same_draws_so_that_differences_are_sure() -> None:
    judged, blocks, how = binary(0), blocks_of(0), HOW._replace(resamples=400)
    better = judged._replace(scores=judged.scores + 0.02 * (judged.truth[:, None] - judged.scores))
    drawn = [draws(each, blocks, times_drawn(blocks, how))["brier"] for each in (judged, better)]
    assert (drawn[1] < drawn[0]).all()
    paired, others = (times_drawn(blocks, how._replace(seed=seed)) for seed in (1, 2))
    apart = gain("brier", draws(better, blocks, others)["brier"], draws(judged, blocks, paired)["brier"])
    assert apart[1:].min() < 0
    np.testing.assert_array_equal(draws(judged, blocks, paired)["brier"], drawn[0])


def test_a_gain_is_what_ours_is_better_by_whichever_way_the_metric_goes() -> None:
    ours, other = np.array([3.0, 5.0]), np.array([4.0, 1.0])
    assert gain("roc_auc", ours, other).tolist() == [-1.0, 4.0]
    assert gain("rmse", ours, other).tolist() == [1.0, -4.0]


def test_a_summary_takes_from_the_calibration_error_what_resampling_adds_to_it() -> None:
    random = np.random.default_rng(0)
    scores = random.random(2_000)
    truth = (random.random(2_000) < scores).astype("float64")
    judged, blocks = Judged(truth, scores[:, None], DECISION), np.arange(2_000) % 200
    drawn = draws(judged, blocks, times_drawn(blocks, HOW._replace(resamples=300)))
    found = summarised(drawn, 0.9)
    value, low, high = found["calibration_error"]
    assert low < value < high < np.quantile(drawn["calibration_error"][1:], 0.95)
    assert found["brier"] == pytest.approx(Estimate(drawn["brier"][0], *np.quantile(drawn["brier"][1:], [0.05, 0.95])))
    assert found["recall"].low < found["recall"].value < found["recall"].high
