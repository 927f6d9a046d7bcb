"""Every metric as a function of how often each block of rows counts, so that one bootstrap serves all. Change here to
judge by another one."""

from collections.abc import Callable, Collection
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.decisions import Costs
from pipeline.resamples import Blocks, Draws, Estimate, Floats, estimate

MORE_IS_BETTER = {"roc_auc", "pr_auc", "precision", "recall", "f1", "accuracy", "macro_roc_auc", "macro_f1", "r2"}
LESS_IS_BETTER = {"log_loss", "brier", "calibration_error", "cost_per_1000", "rmse", "mae"}
_AT_ONCE = 500_000  # numbers held at once: they stay in the processor's cache
_BINS = 10
_SAME = 1e-12  # of the mean square: a variance below it is rounding
_LEAST = np.finfo("float64").eps  # a probability of 0 has no log loss; scikit-learn takes the same

Metric = Callable[[Floats], Floats]  # how often each block counts [b, blocks] -> the metric [b]; NaN where undefined


class Decision(NamedTuple):
    """How a score of two classes becomes a decision."""

    threshold: float
    costs: Costs


class Judged(NamedTuple):
    """What was true and what was said, for the same n rows: truth [n] (0 or 1, the position of the class, or the
    number), scores [n, k], and for two classes how they are decided."""

    truth: Floats
    scores: Floats
    decision: Decision | None

    def at(self, rows: NDArray[np.intp]) -> "Judged":
        """Some of the rows."""
        return Judged(self.truth[rows], self.scores[rows], self.decision)


def draws(judged: Judged, blocks: Blocks, times: Floats, only: Collection[str] = ()) -> dict[str, Draws]:
    """Each metric, or those named, under each row of `times` [b, blocks]; none that all the rows leave undefined."""
    with np.errstate(divide="ignore", invalid="ignore"):
        metrics = _metrics(judged, blocks)
        found = {name: metrics[name](times) for name in metrics if not only or name in only}
    return {name: values for name, values in found.items() if np.isfinite(values[0])}


def summarised(found: dict[str, Draws], confidence: float) -> dict[str, Estimate]:
    """The draws of each metric as its value and interval."""
    return {name: estimate(values, confidence, centred=name == "calibration_error") for name, values in found.items()}


def gain(metric: str, ours: Draws, theirs: Draws) -> Draws:
    """How much better ours is, in the units of the metric; the draws are of the same rows."""
    return theirs - ours if metric in LESS_IS_BETTER else ours - theirs


def _metrics(judged: Judged, blocks: Blocks) -> dict[str, Metric]:
    truth, scores, decision = judged
    if decision is not None:
        return _binary(truth, scores[:, 0], decision, blocks)
    if scores.shape[1] > 1:
        return _multiclass(truth, scores, blocks)
    return _regression(truth, scores[:, 0], blocks)


def _block_sums(blocks: Blocks, values: Floats) -> Floats:
    """The sum of values [n, m] over each block."""
    return np.stack([np.bincount(blocks, weights=column) for column in values.T], axis=1)


def _ratio(blocks: Blocks, above: Floats, below: Floats) -> Metric:
    sums = _block_sums(blocks, np.stack([above, below], axis=1))
    return lambda times: np.divide(*(times[:, : len(sums)] @ sums).T)


def _mean(blocks: Blocks, values: Floats) -> Metric:
    return _ratio(blocks, values, np.ones(len(values)))


def decided(truth: Floats, called: Floats, costs: Costs, blocks: Blocks) -> dict[str, Metric]:
    """What follows from yes-or-no decisions alone: `called` [n] is 1 where the row was called positive."""
    hit, alarm, missed = truth * called, (1 - truth) * called, truth * (1 - called)
    return {
        "precision": _ratio(blocks, hit, called),
        "recall": _ratio(blocks, hit, truth),
        "f1": _ratio(blocks, 2 * hit, 2 * hit + alarm + missed),
        "false_positive_rate": _ratio(blocks, alarm, 1 - truth),
        "selection_rate": _mean(blocks, called),
        "cost_per_1000": _mean(blocks, 1000 * (costs.missed * missed + costs.false_alarm * alarm)),
    }


def _binary(truth: Floats, scores: Floats, decision: Decision, blocks: Blocks) -> dict[str, Metric]:
    loss = -np.log(np.clip(np.where(truth == 1, scores, 1 - scores), _LEAST, 1))
    called = (scores >= decision.threshold).astype("float64")
    return {
        "roc_auc": partial(_roc_auc, truth, scores, blocks),
        "pr_auc": partial(_average_precision, truth, scores, blocks),
        "log_loss": _mean(blocks, loss),
        "brier": _mean(blocks, (scores - truth) ** 2),
        "calibration_error": partial(calibration_error, truth, scores, blocks),
        **decided(truth, called, decision.costs, blocks),
    }


def _roc_auc(truth: Floats, scores: Floats, blocks: Blocks, times: Floats) -> Floats:
    """ROC AUC, ties counted half (Hanley and McNeil, 1982), from how many positives of each block outrank how many
    negatives of each other one, since the weight of a pair of rows is the product of their blocks'."""
    order = np.argsort(scores, kind="stable")
    ranked, member = scores[order], np.eye(times.shape[1])[blocks[order]]
    positive = member * truth[order][:, None]
    below = np.vstack([np.zeros((1, times.shape[1])), np.cumsum(member - positive, axis=0)])
    first, last = np.searchsorted(ranked, ranked, "left"), np.searchsorted(ranked, ranked, "right")
    outranked = positive.T @ ((below[first] + below[last]) / 2)
    positives, negatives = times @ positive.sum(axis=0), times @ below[-1]
    auc: Floats = ((times @ outranked) * times).sum(axis=1) / (positives * negatives)
    return auc


def _average_precision(truth: Floats, scores: Floats, blocks: Blocks, times: Floats) -> Floats:
    order = np.argsort(-scores, kind="stable")
    ranked, member = scores[order], np.eye(times.shape[1])[blocks[order]]
    ends = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))
    caught, called = np.cumsum(member * truth[order][:, None], axis=0)[ends].T, np.cumsum(member, axis=0)[ends].T
    more = np.diff(caught, axis=1, prepend=0)
    counts = more.any(axis=0)  # elsewhere nothing is caught
    found = np.empty(len(times))
    at_once = max(1, _AT_ONCE // max(1, int(counts.sum())))
    for start in range(0, len(times), at_once):
        weights = times[start : start + at_once]
        everyone = weights @ called[:, counts]
        precision = weights @ caught[:, counts] / np.where(everyone > 0, everyone, 1)
        found[start : start + at_once] = (weights @ more[:, counts] * precision).sum(axis=1)
    return found / (times @ caught[:, -1])


def calibration_bins(scores: Floats) -> NDArray[np.intp]:
    """The bin of each row, [n]: ten bins of equally many rows."""
    edges = np.unique(np.quantile(scores, np.linspace(0, 1, _BINS + 1)[1:-1]))
    return np.searchsorted(edges, scores, side="right")


def calibration_error(truth: Floats, scores: Floats, blocks: Blocks, times: Floats) -> Floats:
    """Expected calibration error over bins of equally many rows (Naeini et al., 2015), [b]."""
    bins = np.eye(_BINS)[calibration_bins(scores)]
    gaps = _block_sums(blocks, bins * (scores - truth)[:, None])
    present = times[:, : len(gaps)]  # rows of a slice may lack the last blocks
    error: Floats = np.abs(present @ gaps).sum(axis=1) / (present @ np.bincount(blocks))
    return error


def _multiclass(truth: Floats, scores: Floats, blocks: Blocks) -> dict[str, Metric]:
    rows, labels = np.arange(len(truth)), truth.astype("int64")
    called, confidence = scores.argmax(axis=1), scores.max(axis=1)
    right, outcomes = (called == labels).astype("float64"), np.eye(scores.shape[1])[labels]
    classes = range(scores.shape[1])
    one_f1 = [decided(outcomes[:, k], (called == k).astype("float64"), Costs(1, 1), blocks)["f1"] for k in classes]
    one_auc: list[Metric] = [partial(_roc_auc, outcomes[:, k], scores[:, k], blocks) for k in classes]
    return {
        "accuracy": _mean(blocks, right),
        "log_loss": _mean(blocks, -np.log(np.clip(scores[rows, labels], _LEAST, 1))),
        "brier": _mean(blocks, ((scores - outcomes) ** 2).sum(axis=1)),
        "calibration_error": partial(calibration_error, right, confidence, blocks),
        "macro_roc_auc": partial(_mean_of_defined, one_auc),
        "macro_f1": partial(_mean_of_defined, one_f1),
    }


def _mean_of_defined(metrics: list[Metric], times: Floats) -> Floats:
    """Over the classes, each against the rest, without those that a resample lacks."""
    values = np.stack([metric(times) for metric in metrics])
    defined = np.isfinite(values)
    mean: Floats = np.where(defined, values, 0).sum(axis=0) / defined.sum(axis=0)
    return mean


def _regression(truth: Floats, predicted: Floats, blocks: Blocks) -> dict[str, Metric]:
    error, centred = predicted - truth, truth - truth.mean()
    square, centre, spread = (_mean(blocks, values) for values in (error**2, centred, centred**2))

    def r2(times: Floats) -> Floats:
        variance = spread(times) - centre(times) ** 2
        return 1 - square(times) / np.where(variance > _SAME * spread(times), variance, np.nan)

    return {
        "rmse": lambda times: np.sqrt(square(times)),
        "mae": _mean(blocks, np.abs(error)),
        "bias": _mean(blocks, error),
        "r2": r2,
    }
