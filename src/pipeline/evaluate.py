"""A bundle judged on rows that it never saw, beside the baselines. Change here to report more of a model."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field
from sklearn.metrics import precision_recall_curve, roc_curve

from pipeline.baselines import baseline_scores
from pipeline.canonical import csv_bytes, json_bytes
from pipeline.contract import Contract
from pipeline.decisions import Costs, cost_curve
from pipeline.errors import InputError
from pipeline.metrics import Blocks, Bootstrap, Decision, Estimate, Floats, Judged, calibration_bins, estimates, rounded
from pipeline.params import Params, Seed
from pipeline.plots import curves_plot
from pipeline.prepared import as_arrays, features_of
from pipeline.scoring import Scorer, encode

_POINTS = 200  # of a curve


class EvaluateParams(Params):
    """What `evaluate` may be told."""

    resamples: int = Field(ge=100)
    confidence: float = Field(gt=0.5, lt=1)
    seed: Seed


class Evaluation(NamedTuple):
    """Figures per judged model and metric, curves by file name, the number of rows, and what intervals rest on."""

    metrics: dict[str, dict[str, Estimate]]
    curves: dict[str, pd.DataFrame]
    rows: int
    intervals: str


def evaluate(
    test: pd.DataFrame,
    *,
    contract: Contract,
    scorer: Scorer,
    baselines: Mapping[str, Mapping[str, Any]],
    params: EvaluateParams,
) -> Evaluation:
    """Judge the bundle and its baselines on the test rows, all of them on the same resamples."""
    described = scorer.contract
    truth = _truth(test, contract, described["classes"])
    features = as_arrays(features_of(test))
    judged = {"model": scorer.model(encode(features, scorer.spec))}
    judged |= {name: baseline_scores(baselines[name], features) for name in ("simple", "naive")}
    _check_finite(judged["model"])
    blocks, block = _blocks(test, contract)
    bootstrap = Bootstrap(params.resamples, params.confidence, params.seed)
    decisions = {name: _decision({"model": described, **baselines}[name], described["costs"]) for name in judged}
    metrics = {
        name: estimates(Judged(truth, scores), decisions[name], blocks, bootstrap) for name, scores in judged.items()
    }
    decision = decisions["model"]
    if decision is not None:
        never = decision._replace(threshold=np.inf)
        nobody = estimates(Judged(truth, np.zeros((len(truth), 1))), never, blocks, bootstrap)
        metrics["no_model"] = {name: nobody[name] for name in ("recall", "cost_per_1000")}
    intervals = (
        f"{params.confidence:.0%} intervals, from {params.resamples:,} resamples of {blocks.max() + 1:,} {block}"
    )
    return Evaluation(metrics, _curves(truth, judged["model"], decision, described["classes"]), len(test), intervals)


def report_files(evaluation: Evaluation, contract: Contract) -> dict[str, bytes]:
    """An evaluation as files: `metrics.json`, a summary to read, the curves as pictures, and a CSV per curve."""
    curves = {f"curves/{name}.csv": csv_bytes(curve) for name, curve in evaluation.curves.items()}
    metrics = {name: rounded(found) for name, found in evaluation.metrics.items()}
    pictures = {"summary.md": summary(evaluation, contract).encode(), "curves.svg": curves_plot(evaluation.curves)}
    return {"metrics.json": json_bytes(metrics), **pictures, **curves}


def summary(evaluation: Evaluation, contract: Contract) -> str:
    """The figures as a Markdown table: a row per metric, a column per judged model."""
    judged = list(evaluation.metrics)
    lines = [
        f"# `{contract.target.name}` on {evaluation.rows:,} {contract.noun} that the model never saw",
        "",
        "| metric | " + " | ".join(name.replace("_", " ") for name in judged) + " |",
        "| --- |" + " --- |" * len(judged),
    ]
    for metric in evaluation.metrics["model"]:
        cells = [_cell(evaluation.metrics[name].get(metric)) for name in judged]
        lines.append(f"| {_title(metric, contract)} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", f"In brackets: {evaluation.intervals}."]) + "\n"


def _title(metric: str, contract: Contract) -> str:
    return metric.replace("per_1000", f"per_1,000_{contract.noun}").replace("_", " ")


def _cell(estimate: Estimate | None) -> str:
    if estimate is None:
        return ""
    return f"{estimate.value:.4g} ({estimate.low:.4g} to {estimate.high:.4g})"


def _truth(test: pd.DataFrame, contract: Contract, classes: list[str] | None) -> Floats:
    target = test[contract.target.name]
    if classes is None:
        return target.to_numpy(dtype="float64")
    return pd.Index(classes).get_indexer(pd.Index(target)).astype("float64")


def _check_finite(scores: Floats) -> None:
    bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(bad):
        raise InputError(
            f"bundle: expected finite scores, got {scores[bad[0]].tolist()} for test row {bad[0]} "
            f"and {len(bad) - 1} more; train again, or look for what the model was never shown"
        )


def _blocks(test: pd.DataFrame, contract: Contract) -> tuple[Blocks, str]:
    """The rows that are drawn together, and what they share: those of a day, or else of an entity, are too much alike
    to count as so many independent ones."""
    entities = contract.having("entity")
    if contract.time is not None:
        shared, name = test[contract.time.name].dt.floor("D"), f"days of {contract.time.name}"
    elif entities:
        shared, name = test[entities[0].name], f"values of {entities[0].name}"
    else:
        shared, name = pd.Series(np.arange(len(test))), "rows"
    blocks, found = pd.factorize(shared, use_na_sentinel=False)
    if len(found) < 2:
        raise InputError(
            f"expected test rows of two {name} at least, for intervals; got {len(found)}; widen the test split"
        )
    return blocks, name


def _decision(judged: Mapping[str, Any], costs: Mapping[str, float] | None) -> Decision | None:
    return Decision(judged["threshold"], Costs(**costs)) if costs else None


def _curves(
    truth: Floats, scores: Floats, decision: Decision | None, classes: list[str] | None
) -> dict[str, pd.DataFrame]:
    if decision is not None:
        return {
            "roc": _thinned(_roc(truth, scores[:, 0])),
            "precision_recall": _thinned(_precision_recall(truth, scores[:, 0])),
            "calibration": _calibration(truth, scores[:, 0]),
            "cost": _thinned(cost_curve(truth, scores[:, 0], decision.costs)),
            "confusion": pd.DataFrame({"actual": truth, "predicted": scores[:, 0] >= decision.threshold}).astype(
                "int64"
            ),
        }
    if classes is not None:
        names, called = np.array(classes), scores.argmax(axis=1)
        return {
            "calibration": _calibration((called == truth).astype("float64"), scores.max(axis=1)),
            "confusion": pd.DataFrame({"actual": names[truth.astype("int64")], "predicted": names[called]}),
        }
    return {
        "residuals": _thinned(
            pd.DataFrame({"predicted": scores[:, 0], "actual": truth}).sort_values("predicted", kind="stable")
        )
    }


def _roc(truth: Floats, scores: Floats) -> pd.DataFrame:
    false_positive_rate, true_positive_rate, _ = roc_curve(truth, scores)
    return pd.DataFrame({"false_positive_rate": false_positive_rate, "true_positive_rate": true_positive_rate})


def _precision_recall(truth: Floats, scores: Floats) -> pd.DataFrame:
    precision, recall, _ = precision_recall_curve(truth, scores)
    return pd.DataFrame({"recall": recall, "precision": precision})


def _calibration(truth: Floats, scores: Floats) -> pd.DataFrame:
    frame = pd.DataFrame({"mean_score": scores, "observed_rate": truth, "rows": 1.0})
    grouped = frame.groupby(calibration_bins(scores))
    return grouped.agg({"mean_score": "mean", "observed_rate": "mean", "rows": "size"}).reset_index(drop=True)


def _thinned(curve: pd.DataFrame) -> pd.DataFrame:
    kept = np.unique(np.linspace(0, len(curve) - 1, _POINTS).astype("int64"))
    return curve.iloc[kept]
