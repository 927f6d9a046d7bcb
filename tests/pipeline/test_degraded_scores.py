import numpy as np
import pytest
from scipy.stats import spearmanr

from pipeline.evaluate import judged_rows
from pipeline.metrics import LESS_IS_BETTER, Judged, draws
from pipeline.resamples import blocks_of
from tests.synthetic import make_contract, make_scorer, splits

BLURS = [0.0, 0.25, 0.5, 1.0, 2.0, 4.0]  # standard deviations of the log odds


def blurred(judged: Judged, amount: float, noise: np.ndarray) -> Judged:
    """The same scores, less sure of what they say."""
    odds = np.log(judged.scores / (1 - judged.scores))
    return judged._replace(scores=1 / (1 + np.exp(-(odds + amount * odds.std() * noise))))


@pytest.mark.parametrize("metric", ["roc_auc", "pr_auc", "log_loss"])
def test_what_is_worse_by_the_metric_costs_more_in_decisions(metric: str) -> None:
    rows, contract = splits()["test"], make_contract()
    judged = judged_rows(rows, contract, make_scorer())
    blocks, _ = blocks_of(rows, contract)
    every, random = np.ones((1, blocks.max() + 1)), np.random.default_rng(0)
    noises = random.normal(size=(30, *judged.scores.shape))
    figures = []
    for amount in BLURS:
        found = [draws(blurred(judged, amount, n), blocks, every, only=(metric, "cost_per_1000")) for n in noises]
        figures.append([np.mean([each[name] for each in found]) for name in (metric, "cost_per_1000")])
    quality, cost = np.transpose(figures)
    assert spearmanr(quality, cost).statistic == pytest.approx(1 if metric in LESS_IS_BETTER else -1)
    assert cost[-1] > 1.3 * cost[0]  # the metric follows a difference that matters
