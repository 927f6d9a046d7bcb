"""Whether an exported graph answers as scikit-learn does, edges included. Change here to: try other kinds of row."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.base import is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline

from pipeline import trees
from pipeline.archive import sklearn_scores
from pipeline.scoring import onnx_model

Floats = npt.NDArray[np.float64]

BATCH_ROWS = 20_000
SINGLE_ROWS = 100  # scored one by one: onnxruntime then takes other paths, which are those of a service
MAX_SPLITS = 500  # of a tree model, three rows each
MAX_CODES = 256  # of one categorical column
HUGE = 1e30  # large, but finite in single precision too, which forests convert their input to


@dataclass(frozen=True)
class Parity:
    """How far the graph is from scikit-learn. `max_difference` is over the finite scores; for a regression it is
    relative to max(1, |prediction|). `reason` is None where every row agrees.
    """

    max_difference: float
    changed_decisions: int
    rows: int
    reason: str | None

    @property
    def passed(self) -> bool:
        return self.reason is None


def measure(model: Any, onnx_bytes: bytes, X: Floats, threshold: float | None, tolerance: float) -> Parity:
    """Score X [n, d] with both. A decision is score >= threshold (one score) or the first largest (three or more).

    A score that is not finite, on either side, fails; so does one changed decision.
    """
    exported = onnx_model(onnx_bytes)
    worst, changed, not_finite = 0.0, 0, 0
    for start in range(0, len(X), BATCH_ROWS):
        batch = np.ascontiguousarray(X[start : start + BATCH_ROWS], dtype=np.float64)
        expected, came = sklearn_scores(model, batch), exported(batch)
        if came.shape != expected.shape or came.dtype != np.float64:
            reason = f"expected float64 scores {expected.shape}, the graph gave {came.dtype} {came.shape}"
            return Parity(worst, changed, len(X), reason)
        if start == 0:
            came[:SINGLE_ROWS] = np.vstack([exported(row[np.newaxis]) for row in batch[:SINGLE_ROWS]])
        usable = np.isfinite(expected).all(axis=1) & np.isfinite(came).all(axis=1)
        not_finite += int(np.count_nonzero(~usable))
        expected, came = expected[usable], came[usable]
        scale = 1.0 if is_classifier(model) else np.maximum(1.0, np.abs(expected))
        worst = max(worst, float(np.max(np.abs(came - expected) / scale, initial=0.0)))
        changed += int(np.count_nonzero(_decisions(expected, threshold) != _decisions(came, threshold)))
    return Parity(worst, changed, len(X), _reason(worst, changed, not_finite, len(X), tolerance))


def _decisions(scores: Floats, threshold: float | None) -> npt.NDArray[Any]:
    if scores.shape[1] > 1:
        return np.asarray(scores.argmax(axis=1))
    return scores[:, 0] >= (np.inf if threshold is None else threshold)


def _reason(worst: float, changed: int, not_finite: int, rows: int, tolerance: float) -> str | None:
    if not_finite:
        return f"{not_finite} of {rows} rows have a score that is not finite"
    if not worst <= tolerance:
        return f"scores differ by up to {worst:.3g}, more than {tolerance:g}"
    return f"{changed} of {rows} decisions differ" if changed else None


def edge_rows(model: Any, X: Floats, category_sizes: Mapping[int, int], seed: int) -> Floats:
    """Made rows [m, d]: rows of X with one column moved to an edge. The same arguments give the same rows.

    Each column missing in turn, and all of them; each category and none; each number's extremes, a million times
    those, and huge; the values at a tree's splits and their two neighbours. `category_sizes` maps the column number of
    a categorical feature to its number of categories. Rows that scikit-learn itself refuses, or scores with
    no finite number, have nothing to be compared with, and are left out.
    """
    random = np.random.default_rng(seed)
    changes = [*_missing_and_extreme(X, category_sizes), *_around_splits(model, random)]
    columns, values = np.array([c for c, _ in changes], dtype=int), np.array([v for _, v in changes])
    rows = X[random.integers(0, len(X), len(changes))].astype(np.float64)
    rows[np.arange(len(changes)), columns] = values
    return _answered(model, np.vstack([rows, np.full((1, X.shape[1]), np.nan)]))


def _missing_and_extreme(X: Floats, category_sizes: Mapping[int, int]) -> Iterator[tuple[int, float]]:
    for column in range(X.shape[1]):
        yield column, np.nan
        if column in category_sizes:
            yield from ((column, float(code)) for code in range(min(category_sizes[column], MAX_CODES)))
            continue
        seen = X[~np.isnan(X[:, column]), column]
        low, high = (float(seen.min()), float(seen.max())) if len(seen) else (0.0, 0.0)
        far = 1e6 * max(1.0, abs(low), abs(high))
        yield from ((column, value) for value in (low, high, -far, far, -HUGE, HUGE))


def _around_splits(model: Any, random: np.random.Generator) -> Iterator[tuple[int, float]]:
    """Where a comparison in single precision, or with < for <=, would send a row the other way."""
    splits = np.array(sorted(set(_splits(model))))
    if len(splits) > MAX_SPLITS:
        splits = splits[np.sort(random.choice(len(splits), MAX_SPLITS, replace=False))]
    for column, value in splits:
        for near in (np.nextafter(value, -np.inf), value, np.nextafter(value, np.inf)):
            yield int(column), float(near)


def _splits(model: Any) -> Iterator[tuple[int, float]]:
    """(column of X, threshold) of each numeric split of a tree model that reads X directly."""
    estimator = model.calibrated_classifiers_[0].estimator if isinstance(model, CalibratedClassifierCV) else model
    estimator = estimator.estimator if isinstance(estimator, FrozenEstimator) else estimator
    if isinstance(estimator, Pipeline) and len(estimator) == 1:
        estimator = estimator[0]
    if isinstance(estimator, trees.BOOSTING):
        columns = trees.split_columns(estimator)
        for tree in (tree for iteration in estimator._predictors for tree in iteration):
            nodes = tree.nodes[(tree.nodes["is_leaf"] == 0) & (tree.nodes["is_categorical"] == 0)]
            yield from _finite(columns[nodes["feature_idx"]], nodes["num_threshold"])
    for each in [estimator, *np.ravel(getattr(estimator, "estimators_", []))]:
        if hasattr(each, "tree_"):
            inner = each.tree_.feature >= 0
            yield from _finite(each.tree_.feature[inner], each.tree_.threshold[inner])


def _finite(columns: npt.NDArray[Any], values: Floats) -> Iterator[tuple[int, float]]:
    # A split between missing and the rest has an infinite threshold.
    pairs = zip(columns.tolist(), values.tolist(), strict=True)
    return (pair for pair in pairs if np.isfinite(pair[1]))


def _answered(model: Any, rows: Floats) -> Floats:
    try:
        with np.errstate(all="ignore"):
            return rows[np.isfinite(sklearn_scores(model, rows)).all(axis=1)]
    except ValueError:  # a model without an imputer refuses missing values
        complete = rows[~np.isnan(rows).any(axis=1)]
        return _answered(model, complete) if len(complete) < len(rows) else rows[:0]
