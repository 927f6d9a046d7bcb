import numpy as np
import pytest

from pipeline.baselines import baseline_scores, fit_baseline

FEATURES = {
    "maker": np.array(["acme"] * 30 + ["bolt"] * 10 + [None] * 10, dtype=object),
    "hour": np.array([5.0] * 30 + [6.5] * 10 + [np.nan] * 10),
}
OUTCOMES = np.array([[1.0]] * 30 + [[0.0]] * 20)


def test_the_naive_baseline_says_the_overall_rate_to_everyone() -> None:
    naive = fit_baseline(FEATURES, OUTCOMES, [])
    assert naive == {"keys": [], "overall": [0.6], "groups": {}}
    assert baseline_scores(naive, FEATURES).tolist() == [[0.6]] * 50


def test_the_simple_baseline_pulls_each_groups_rate_to_the_overall_one() -> None:
    simple = fit_baseline(FEATURES, OUTCOMES, ["maker", "hour"])
    assert simple["groups"] == {
        "acme|5": pytest.approx([(30 + 20 * 0.6) / 50]),
        "bolt|6.5": pytest.approx([(0 + 20 * 0.6) / 30]),
        "None|nan": pytest.approx([(0 + 20 * 0.6) / 30]),
    }
    assert baseline_scores(simple, FEATURES)[[0, 49], 0] == pytest.approx([0.84, 0.4])


def test_a_group_never_seen_gets_the_overall_rate() -> None:
    simple = fit_baseline(FEATURES, OUTCOMES, ["maker"])
    unseen = {"maker": np.array(["dune", "acme"], dtype=object)}
    assert baseline_scores(simple, unseen)[:, 0] == pytest.approx([0.6, 0.84])


def test_large_numbers_stay_apart() -> None:
    features = {"serial": np.array([1_234_567.0, 1_234_568.0])}
    assert list(fit_baseline(features, np.array([[0.0], [1.0]]), ["serial"])["groups"]) == ["1234567", "1234568"]


def test_every_class_has_its_rate() -> None:
    outcomes = np.eye(3)[np.arange(50) % 3]
    scores = baseline_scores(fit_baseline(FEATURES, outcomes, ["maker"]), FEATURES)
    assert scores.shape == (50, 3)
    assert scores.sum(axis=1) == pytest.approx(np.ones(50))
