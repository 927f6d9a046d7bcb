"""Features that know too much. Change here to look for leaks in other ways."""

import numpy as np
import pandas as pd
from sklearn.metrics import r2_score, roc_auc_score
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from pipeline.contract import Task
from pipeline.errors import InputError

_SAMPLE = 10_000


def check_single_features(features: pd.DataFrame, target: pd.Series, task: Task, limit: float) -> None:
    """Refuse a feature that alone scores above `limit`: on real problems, the target under another name."""
    for name, score in single_feature_scores(features, target, task).items():
        if score > limit:
            raise InputError(
                f"feature '{name}' alone scores {score:.4f}, above preprocess.suspicious_score = {limit}: expected no "
                "feature to give the target away; remove it from the features, or raise the limit if it is honest"
            )


def single_feature_scores(features: pd.DataFrame, target: pd.Series, task: Task) -> dict[str, float]:
    """How well each feature predicts alone: the score of a tree, fitted on every other row of a sample (as many of
    each class) and judged on the rest. ROC AUC for a binary target, balanced accuracy for classes, R2 for a number.
    """
    outcome = target.to_numpy()
    fit, judge = _sample(outcome, task)
    scores = {}
    for name, values in features.items():
        numbers = _by_outcome(values, fit, outcome) if values.dtype == "str" else values
        column = numbers.to_numpy(dtype="float64")[:, None]
        scores[str(name)] = _score(column[fit], outcome[fit], column[judge], outcome[judge], task)
    return scores


def _by_outcome(values: pd.Series, fit: np.ndarray, outcome: np.ndarray) -> pd.Series:
    """Categories as the mean outcome of the rows to fit to, so that a tree splits between any two sets of them."""
    means = pd.Series(pd.factorize(outcome, sort=True)[0][fit]).groupby(values.iloc[fit].to_numpy()).mean()
    return values.map(means)


def _sample(outcome: np.ndarray, task: Task) -> tuple[np.ndarray, np.ndarray]:
    """The rows to fit to, and those to judge by."""
    groups = [np.arange(len(outcome))]
    if task != "regression":
        groups = [np.flatnonzero(outcome == name) for name in np.unique(outcome)]
    size = _SAMPLE // len(groups) + 1
    sampled = [rows[:: max(1, len(rows) // size)] for rows in groups]
    return np.concatenate([rows[::2] for rows in sampled]), np.concatenate([rows[1::2] for rows in sampled])


def _score(known: np.ndarray, outcome: np.ndarray, asked: np.ndarray, truth: np.ndarray, task: Task) -> float:
    if task == "regression":
        regressor = DecisionTreeRegressor(random_state=0).fit(known, outcome)
        return float(r2_score(truth, regressor.predict(asked)))
    tree = DecisionTreeClassifier(random_state=0).fit(known, outcome)
    if len(np.unique(truth)) < 2:  # a class of one row
        return 0.0
    if task == "multiclass":
        return float(np.mean([np.mean(tree.predict(asked[truth == name]) == name) for name in np.unique(truth)]))
    return float(roc_auc_score(truth, tree.predict_proba(asked)[:, -1]))
