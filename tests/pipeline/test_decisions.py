import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.decisions import Costs, cheapest_threshold, cost_curve

COSTS = Costs(missed=3.0, false_alarm=1.0)
SCORES = [0.0, 0.1, 0.1 + 1e-16, 0.25, 0.5, 1 - 1e-16, 1.0]
ROWS = st.lists(st.tuples(st.booleans(), st.sampled_from(SCORES)), min_size=1)


def cost_at(threshold: float, truth: np.ndarray, scores: np.ndarray) -> float:
    """By counting."""
    called = scores >= threshold
    total = COSTS.missed * np.sum(~called & (truth == 1)) + COSTS.false_alarm * np.sum(called & (truth == 0))
    return float(1000 * total / len(truth))


def arrays(rows: list[tuple[bool, float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([float(truth) for truth, _ in rows]), np.array([score for _, score in rows])


@given(ROWS)
def test_the_cost_curve_is_the_count_at_every_threshold(rows: list[tuple[bool, float]]) -> None:
    truth, scores = arrays(rows)
    curve = cost_curve(truth, scores, COSTS)
    assert [cost_at(t, truth, scores) for t in curve["threshold"]] == pytest.approx(curve["cost_per_1000"].tolist())
    assert curve["threshold"].tolist()[1:] == sorted(set(scores), reverse=True)


@given(ROWS)
def test_no_threshold_is_cheaper_than_the_cheapest(rows: list[tuple[bool, float]]) -> None:
    truth, scores = arrays(rows)
    found = cost_at(cheapest_threshold(truth, scores, COSTS), truth, scores)
    assert found == pytest.approx(min(cost_at(t, truth, scores) for t in [*scores, 2.0]))


def test_the_threshold_lies_halfway_between_scores() -> None:
    assert cheapest_threshold(np.array([0.0, 0.0, 1.0]), np.array([0.1, 0.2, 0.4]), COSTS) == pytest.approx(0.3)


def test_nobody_is_called_where_nobody_is_positive() -> None:
    assert cheapest_threshold(np.zeros(3), np.array([0.1, 0.2, 0.9]), COSTS) > 0.9
    assert cheapest_threshold(np.zeros(2), np.array([0.5, 1.0]), COSTS) > 1


def test_everybody_is_called_where_everybody_is_positive() -> None:
    assert 0 < cheapest_threshold(np.ones(2), np.array([0.1, 0.9]), COSTS) < 0.1
