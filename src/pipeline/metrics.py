"""Every metric as a function of row weights, so that one bootstrap serves all. Change here to judge by another one."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.decisions import Costs

Floats = NDArray[np.float64]
Blocks = NDArray[np.intp]  # [n]: the number of the block that each row belongs to, from 0
_CHUNK = 2_000_000  # weights held at once
_BINS = 10
_LEAST = np.finfo("float64").eps  # a probability of 0 has no log loss; scikit-learn takes the same


class Decision(NamedTuple):
    """How a score of two classes becomes a decision."""

    threshold: float
    costs: Costs


class Estimate(NamedTuple):
    """A metric with its interval."""

    value: float
    low: float
    high: float


class Judged(NamedTuple):
    """What was true and what was said, for the same n rows: truth [n] (0 or 1, the position of the class, or the
    number) and scores [n, k]."""

    truth: Floats
    scores: Floats


class Bootstrap(NamedTuple):
    """How intervals are made: draws, share of draws inside, seed."""

    resamples: int
    confidence: float
    seed: int


def estimates(judged: Judged, decision: Decision | None, blocks: Blocks, bootstrap: Bootstrap) -> dict[str, Estimate]:
    """Each metric on all rows, with a percentile interval from a bootstrap over blocks (Davison and Hinkley, 1997)."""
    rows = len(judged.truth)
    point = weighted_metrics(judged, decision, np.ones((1, rows)))
    drawn = [weighted_metrics(judged, decision, weights) for weights in resampled(blocks, bootstrap)]
    edges = [(1 - bootstrap.confidence) / 2, (1 + bootstrap.confidence) / 2]
    found = {}
    for name, value in point.items():
        if np.isfinite(value[0]):
            draws = np.concatenate([d[name] for d in drawn])
            if name == "calibration_error":  # noise adds to it, in every draw: Efron and Tibshirani (1993), chapter 10
                draws = np.maximum(draws - (np.nanmean(draws) - value[0]), 0)
            low, high = np.nanquantile(draws, edges)
            found[name] = Estimate(float(value[0]), float(low), float(high))
    return found


def resampled(blocks: Blocks, bootstrap: Bootstrap) -> Iterator[Floats]:
    """How often each row stands in each resample, [b, n] a time: whole blocks are drawn. The same seed gives the same
    draws, so that two models are compared on the same rows."""
    generator = np.random.default_rng(bootstrap.seed)
    drawable, at_once = int(blocks.max()) + 1, max(1, _CHUNK // len(blocks))
    for start in range(0, bootstrap.resamples, at_once):
        count = min(at_once, bootstrap.resamples - start)
        drawn = generator.integers(drawable, size=(count, drawable)) + drawable * np.arange(count)[:, None]
        times = np.bincount(drawn.ravel(), minlength=count * drawable).reshape(count, drawable)
        yield times[:, blocks].astype("float64")


def weighted_metrics(judged: Judged, decision: Decision | None, weights: Floats) -> dict[str, Floats]:
    """Each metric under each of b weightings of the rows [b, n], as [b]; NaN where it is not defined."""
    with np.errstate(divide="ignore", invalid="ignore"):
        if decision is not None:
            return _binary(judged.truth, judged.scores[:, 0], decision, weights)
        if judged.scores.shape[1] > 1:
            return _multiclass(judged.truth, judged.scores, weights)
        return _regression(judged.truth, judged.scores[:, 0], weights)


def decided(truth: Floats, called: Floats, costs: Costs, weights: Floats) -> dict[str, Floats]:
    """What follows from yes-or-no decisions alone: `called` [n] is 1 where the row was called positive."""
    outcomes = np.stack([truth * called, (1 - truth) * called, truth * (1 - called)], axis=1)
    hit, alarm, missed = (weights @ outcomes).T
    total = weights.sum(axis=1)
    return {
        "precision": hit / (hit + alarm),
        "recall": hit / (hit + missed),
        "f1": 2 * hit / (2 * hit + alarm + missed),
        "cost_per_1000": 1000 * (costs.missed * missed + costs.false_alarm * alarm) / total,
    }


def _binary(truth: Floats, scores: Floats, decision: Decision, weights: Floats) -> dict[str, Floats]:
    total = weights.sum(axis=1)
    loss = -np.log(np.clip(np.where(truth == 1, scores, 1 - scores), _LEAST, 1))
    called = (scores >= decision.threshold).astype("float64")
    return {
        **_ranking(truth, scores, weights),
        "log_loss": weights @ loss / total,
        "brier": weights @ (scores - truth) ** 2 / total,
        "calibration_error": calibration_error(truth, scores, weights),
        **decided(truth, called, decision.costs, weights),
    }


def _ranking(truth: Floats, scores: Floats, weights: Floats) -> dict[str, Floats]:
    """ROC AUC, ties counted half (Hanley and McNeil, 1982), and average precision."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
    ordered = weights[:, order]
    positives = np.add.reduceat(ordered * truth[order], starts, axis=1)
    everyone = np.add.reduceat(ordered, starts, axis=1)
    caught, called = np.cumsum(positives, axis=1), np.cumsum(everyone, axis=1)
    negatives = everyone - positives
    above = caught - positives / 2
    all_positive, all_negative = caught[:, -1], negatives.sum(axis=1)
    auc = (negatives * above).sum(axis=1) / (all_positive * all_negative)
    precision = np.where(called > 0, caught / np.where(called > 0, called, 1), 0)
    return {"roc_auc": auc, "pr_auc": (positives * precision).sum(axis=1) / all_positive}


def calibration_bins(scores: Floats) -> NDArray[np.intp]:
    """The bin of each row, [n]: ten bins of equally many rows."""
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, _BINS + 1)[1:-1]))
    return np.searchsorted(edges, scores, side="right")


def calibration_error(truth: Floats, scores: Floats, weights: Floats) -> Floats:
    """Expected calibration error over bins of equally many rows (Naeini et al., 2015), [b]."""
    bins = calibration_bins(scores)
    gaps = np.zeros((len(scores), int(bins.max()) + 1))
    gaps[np.arange(len(scores)), bins] = scores - truth
    error: Floats = np.abs(weights @ gaps).sum(axis=1) / weights.sum(axis=1)
    return error


def _multiclass(truth: Floats, scores: Floats, weights: Floats) -> dict[str, Floats]:
    total, rows = weights.sum(axis=1), np.arange(len(truth))
    labels = truth.astype("int64")
    called = scores.argmax(axis=1)
    confidence, right = scores.max(axis=1), (called == labels).astype("float64")
    outcomes = np.eye(scores.shape[1])[labels]
    per_class = [_one_class(outcomes[:, k], scores[:, k], called == k, weights) for k in range(scores.shape[1])]
    return {
        "accuracy": weights @ right / total,
        "log_loss": -(weights @ np.log(np.clip(scores[rows, labels], _LEAST, 1))) / total,
        "brier": weights @ ((scores - outcomes) ** 2).sum(axis=1) / total,
        "calibration_error": calibration_error(right, confidence, weights),
        **{name: _mean_of_defined(np.stack([found[name] for found in per_class])) for name in per_class[0]},
    }


def _mean_of_defined(values: Floats) -> Floats:
    """Over the classes [k, b], without those that a resample lacks."""
    defined = np.isfinite(values)
    mean: Floats = np.where(defined, values, 0).sum(axis=0) / defined.sum(axis=0)
    return mean


def _one_class(truth: Floats, scores: Floats, called: NDArray[np.bool_], weights: Floats) -> dict[str, Floats]:
    """One class against the rest; averaged over the classes these are the macro metrics."""
    decisions = decided(truth, called.astype("float64"), Costs(1, 1), weights)
    ranking = _ranking(truth, scores, weights)
    return {"macro_roc_auc": ranking["roc_auc"], "macro_f1": decisions["f1"]}


def _regression(truth: Floats, predicted: Floats, weights: Floats) -> dict[str, Floats]:
    total, error = weights.sum(axis=1), predicted - truth
    squares = weights @ error**2
    centred = truth - truth.mean()
    spread = weights @ centred**2 - (weights @ centred) ** 2 / total
    return {
        "rmse": np.sqrt(squares / total),
        "mae": weights @ np.abs(error) / total,
        "bias": weights @ error / total,
        "r2": 1 - squares / spread,
    }


def rounded(found: Mapping[str, Estimate]) -> dict[str, dict[str, float]]:
    """Estimates for a report, to six significant digits."""
    return {name: {k: float(f"{v:.6g}") for k, v in estimate._asdict().items()} for name, estimate in found.items()}
