"""Scores into decisions, and what decisions cost. Change here to decide by something else than cost."""

from typing import NamedTuple

import numpy as np
import pandas as pd


class Costs(NamedTuple):
    """What a wrong decision costs, in one unit: a positive missed, and a false alarm."""

    missed: float
    false_alarm: float


def cost_curve(truth: np.ndarray, scores: np.ndarray, costs: Costs) -> pd.DataFrame:
    """The cost per 1,000 rows at every threshold that changes a decision: columns `threshold`, `cost_per_1000`.

    A row is called positive where its score is at least the threshold; `truth` is 0 or 1, both of length n. The first
    threshold is one that no probability reaches.
    """
    order = np.argsort(-scores, kind="stable")
    ranked, positive = scores[order], truth[order]
    called = np.concatenate([[0.0], np.cumsum(positive)])
    alarms = np.concatenate([[0.0], np.cumsum(1 - positive)])
    total = costs.missed * (positive.sum() - called) + costs.false_alarm * alarms
    last_of_its_score = np.concatenate([[True], np.append(ranked[1:] != ranked[:-1], True)])
    thresholds = np.concatenate([[np.nextafter(max(ranked[0], 1.0), np.inf)], ranked])
    curve = pd.DataFrame({"threshold": thresholds, "cost_per_1000": 1000 * total / len(truth)})
    return curve[last_of_its_score].reset_index(drop=True)


def cheapest_threshold(truth: np.ndarray, scores: np.ndarray, costs: Costs) -> float:
    """The threshold of least cost on these rows; halfway to the next lower score, so that none lies on it."""
    curve = cost_curve(truth, scores, costs)
    best = int(curve["cost_per_1000"].to_numpy().argmin())
    threshold = float(curve["threshold"][best])
    below = float(curve["threshold"][best + 1]) if best + 1 < len(curve) else 0.0
    middle = (threshold + below) / 2
    return middle if middle > below else threshold  # neighbouring doubles have no middle
