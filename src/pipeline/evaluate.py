"""A bundle judged on rows that it never saw, beside the baselines. Change here to report more of a model."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field
from sklearn.metrics import precision_recall_curve, roc_curve

from pipeline.backtest import Past, backtest, simpler
from pipeline.baselines import baseline_scores
from pipeline.bundle import input_entries
from pipeline.candidates import Candidate
from pipeline.contract import Contract
from pipeline.decisions import Costs, cost_curve
from pipeline.errors import InputError
from pipeline.explain import importance, shap_values, worst_errors
from pipeline.featurize import raw_columns
from pipeline.gates import Limits, Waivers
from pipeline.leaks import single_feature_scores
from pipeline.metrics import (
    LESS_IS_BETTER,
    MORE_IS_BETTER,
    Decision,
    Judged,
    calibration_bins,
    draws,
    gain,
    summarised,
)  # fmt: skip
from pipeline.params import Params, Seed
from pipeline.prepared import SPLITS, as_arrays, features_of, model_inputs
from pipeline.resamples import Bootstrap, Draws, Estimate, Floats, blocks_of, estimate, times_drawn
from pipeline.scoring import TOLERANCE, Scorer, encode
from pipeline.slices import judge_groups, judge_slices
from pipeline.stability import judge_stability
from pipeline.verify import LATE, describe, violations

_POINTS = 200  # of a curve


class EvaluateParams(Params):
    """What `evaluate` may be told."""

    metric: str
    margin: float = Field(ge=0)
    resamples: int = Field(ge=100)
    confidence: float = Field(gt=0.5, lt=1)
    seed: Seed
    slice_rows: int = Field(ge=1)
    noise: float = Field(gt=0)
    disturbed_share: float = Field(gt=0, lt=1)
    refit_rows: int = Field(ge=100)
    limits: Limits
    waived: Waivers

    @property
    def bootstrap(self) -> Bootstrap:
        """How intervals are made."""
        return Bootstrap(self.resamples, self.confidence, self.seed)


class Evaluation(NamedTuple):
    """All that is known of a bundle: figures per judged model and metric; the gain over each baseline per metric;
    tables and curves by name; broken rules; how telling each feature is alone; the golden rows' largest difference; the
    deviation of the truth; how old the training data was at the end of the test."""

    rows: int
    intervals: str
    metric: str
    proper: str
    metrics: dict[str, dict[str, Estimate]]
    gains: dict[str, dict[str, Estimate]]
    tables: dict[str, pd.DataFrame]
    curves: dict[str, pd.DataFrame]
    shap: tuple[Floats, Floats]
    violations: list[str]
    late: list[str]
    single_features: dict[str, float]
    golden_gap: float
    tolerance: float
    deviation: float
    age_days: float | None


def evaluate(
    splits: Mapping[str, pd.DataFrame],
    *,
    contract: Contract,
    scorer: Scorer,
    bundle: Mapping[str, Any],
    candidates: Mapping[str, Candidate],
    best: Mapping[str, Any],
    trials: pd.DataFrame,
    params: EvaluateParams,
) -> Evaluation:
    """Judge a bundle and its baselines on the test rows, all of them on the same resamples. `bundle` holds the content
    of its JSON files by name, `best` and `trials` what the search found."""
    test, described, how = splits["test"], scorer.contract, params.bootstrap
    judged = judged_rows(test, contract, scorer)
    features = as_arrays(features_of(test))
    blocks, shared = blocks_of(test, contract)
    times = times_drawn(blocks, how)
    everyone = {"model": judged} | {
        name: _baseline(judged, bundle["baseline.json"][name], features) for name in ("simple", "naive")
    }
    drawn = {name: draws(each, blocks, times) for name, each in everyone.items()}
    _check_metric(params.metric, drawn["model"])
    metrics = {name: summarised(found, how.confidence) for name, found in drawn.items()}
    if judged.decision is not None:
        never = judged._replace(scores=0 * judged.scores, decision=judged.decision._replace(threshold=np.inf))
        nobody = draws(never, blocks, times, only=("recall", "cost_per_1000"))
        metrics["no_model"] = summarised(nobody, how.confidence)
    rows = pd.concat([splits[name] for name in SPLITS], ignore_index=True)
    past = _past(rows, contract, scorer, candidates, params)
    number = np.arange(len(rows))
    fit, asked = number[: len(splits["train"])], number[len(rows) - len(test) :]
    matrix = encode(features, scorer.spec)
    classes, metric = described["classes"], params.metric
    with ThreadPoolExecutor(1) as beside:  # half of the work is to refit, and leaves the second core to the rest
        waiting = beside.submit(backtest, past, best)
        as_good = beside.submit(simpler, past, best, trials, fit, asked, params.margin)
        tables = {
            "slices": judge_slices(test, judged, contract, metric, params.slice_rows, blocks, how),
            "groups": judge_groups(test, judged, contract, metric, params.slice_rows, blocks, how),
            "stability": judge_stability(
                test, scorer, contract, noise=params.noise, share=params.disturbed_share, seed=params.seed
            ),
            "importance": importance(matrix, judged, scorer.model, scorer.spec, metric=metric, blocks=blocks, how=how),
            "errors": worst_errors(test, judged, contract, classes),
        }
        found = _broken(rows, contract)
        late = found["reason"].str.startswith(LATE)
        alone = single_feature_scores(features_of(test), test[contract.target.name], contract.task)
        shap = shap_values(matrix, scorer.model, params.seed)
        tables["backtest"], tables["waiting"] = waiting.result()
        tables["simpler"] = as_good.result()
    prepared = [(Path(f"prepared/{name}.parquet"), len(splits[name])) for name in SPLITS]
    return Evaluation(
        rows=len(test),
        intervals=f"{how.confidence:.0%} intervals, from {how.resamples:,} resamples of {blocks.max() + 1:,} {shared}",
        metric=metric,
        proper="rmse" if contract.task == "regression" else "log_loss",
        metrics=metrics,
        gains={name: _gains(drawn["model"], drawn[name], how.confidence) for name in ("simple", "naive")},
        tables=tables,
        curves=_curves(judged.truth, judged.scores, judged.decision, classes),
        shap=shap,
        violations=_sentences(found[~late], rows, prepared) + _other_contract(contract, splits["train"], described),
        late=_sentences(found[late], rows, prepared),
        single_features=alone,
        golden_gap=scorer.golden_gap(bundle["golden.json"]),
        tolerance=TOLERANCE,
        deviation=float(judged.truth.std()),
        age_days=_age(splits, contract),
    )


def judged_rows(rows: pd.DataFrame, contract: Contract, scorer: Scorer) -> Judged:
    """What a bundle says of prepared rows, beside their truth; InputError where a score is not finite."""
    scores = scorer.score(raw_columns(rows, contract))
    _check_finite(scores)
    return Judged(_truth(rows, contract, scorer.contract["classes"]), scores, _decision(scorer.contract))


def _baseline(judged: Judged, baseline: Mapping[str, Any], features: Mapping[str, np.ndarray]) -> Judged:
    decision = judged.decision and judged.decision._replace(threshold=baseline["threshold"])
    return judged._replace(scores=baseline_scores(baseline, features), decision=decision)


def _gains(ours: Mapping[str, Draws], theirs: Mapping[str, Draws], confidence: float) -> dict[str, Estimate]:
    comparable = [name for name in ours if name in theirs and name in MORE_IS_BETTER | LESS_IS_BETTER]
    return {name: estimate(gain(name, ours[name], theirs[name]), confidence) for name in comparable}


def _check_metric(metric: str, found: Mapping[str, Draws]) -> None:
    known = [name for name in found if name in MORE_IS_BETTER | LESS_IS_BETTER]
    if metric not in known:
        raise InputError(
            f"evaluate.metric: expected one of {known} for this target, got '{metric}'; correct params.yaml"
        )


def _past(
    rows: pd.DataFrame, contract: Contract, scorer: Scorer, candidates: Mapping[str, Candidate], params: EvaluateParams
) -> Past:
    truth = _truth(rows, contract, scorer.contract["classes"])
    unscored = Judged(truth, np.zeros((len(rows), 1)), _decision(scorer.contract))
    inputs = model_inputs(rows, contract, scorer.spec)
    grouped = rows[[column.name for column in (*contract.having("time"), *contract.having("entity"))]]
    return Past(grouped, inputs, unscored, contract, candidates, params.metric, params.refit_rows, params.bootstrap)


def _broken(rows: pd.DataFrame, contract: Contract) -> pd.DataFrame:
    raw = contract.only([name for name in map(str, rows) if name != contract.target.name])
    return violations(rows[[column.name for column in raw.columns]], raw)


def _sentences(found: pd.DataFrame, rows: pd.DataFrame, files: list[tuple[Path, int]]) -> list[str]:
    return [describe(part, rows, files) for _, part in found.groupby(["column", "reason"], sort=False)]


def _other_contract(contract: Contract, train: pd.DataFrame, described: Mapping[str, Any]) -> list[str]:
    """What the bundle tells its clients otherwise than the contract."""
    expected = {entry["name"]: entry for entry in input_entries(contract, train)}
    told = {entry["name"]: entry for entry in described["inputs"]}
    different = [name for name in {**expected, **told} if expected.get(name) != told.get(name)]
    return [f"the bundle describes {different} otherwise than the contract; train again"] if different else []


def _age(splits: Mapping[str, pd.DataFrame], contract: Contract) -> float | None:
    if contract.time is None:
        return None
    span = splits["test"][contract.time.name].max() - splits["train"][contract.time.name].max()
    return float(round(span.total_seconds() / 86400, 1))


def _truth(rows: pd.DataFrame, contract: Contract, classes: list[str] | None) -> Floats:
    target = rows[contract.target.name]
    if classes is None:
        return target.to_numpy(dtype="float64")
    return pd.Index(classes).get_indexer(pd.Index(target)).astype("float64")


def _check_finite(scores: Floats) -> None:
    bad = np.flatnonzero(~np.isfinite(scores).all(axis=1))
    if len(bad):
        raise InputError(
            f"bundle: expected finite scores, got {scores[bad[0]].tolist()} for row {bad[0]} "
            f"and {len(bad) - 1} more; train again, or look for what the model was never shown"
        )


def _decision(described: Mapping[str, Any]) -> Decision | None:
    return Decision(described["threshold"], Costs(**described["costs"])) if described["costs"] else None


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
