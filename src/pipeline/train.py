"""The chosen candidate fitted, calibrated, given a threshold and exported. Change here to make a bundle otherwise."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field
from sklearn.base import BaseEstimator
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import KFold

from pipeline.archive import from_skops, sklearn_scores, to_skops
from pipeline.baselines import baseline_scores, fit_baseline
from pipeline.bundle import golden_positions, golden_rows, input_entries
from pipeline.candidates import Candidate
from pipeline.canonical import json_bytes
from pipeline.contract import Contract, Task
from pipeline.decisions import Costs, cheapest_threshold
from pipeline.errors import InputError
from pipeline.export import NotExpressible, to_onnx
from pipeline.params import Params, Seed
from pipeline.parity import edge_rows, measure
from pipeline.prepared import Inputs, as_arrays, feature_spec, features_of, model_inputs
from pipeline.reference import reference
from pipeline.scoring import TOLERANCE, Feature, Features, encode, parse_columns


class CostParams(Params):
    """What a wrong decision costs, in one unit of your choice."""

    missed: float = Field(gt=0)
    false_alarm: float = Field(gt=0)


class TrainParams(Params):
    """What `train` may be told."""

    seed: Seed
    baseline_keys: list[str]
    costs: CostParams | None


class Exported(NamedTuple):
    """The model in the form that the bundle ships, and why in that form."""

    files: dict[str, bytes]
    runtime: str
    reason: str
    max_difference: float | None


def train(
    train_rows: pd.DataFrame,
    validation_rows: pd.DataFrame,
    *,
    contract: Contract,
    features: Features,
    candidates: Mapping[str, Candidate],
    best: Mapping[str, Any],
    params: TrainParams,
    features_hash: str,
    lineage: Mapping[str, Any],
) -> dict[str, bytes]:
    """The bundle, file name to content: fitted on the training rows, calibrated and given a threshold on the
    validation rows. `best` is what `tune` found, `lineage` what the bundle is made from."""
    costs = _costs(params, contract.task)
    learned, judged = as_arrays(features_of(train_rows)), as_arrays(features_of(validation_rows))
    keys = {"naive": [], "simple": _known(params.baseline_keys, learned)}
    spec = feature_spec(features_of(train_rows))
    fit, judge = (model_inputs(rows, contract, spec) for rows in (train_rows, validation_rows))
    estimator = candidates[best["candidate"]].build(best["params"], spec, contract.task, params.seed)
    estimator.fit(fit.matrix, fit.target)
    model = calibrate(estimator, judge, contract.task)
    scores = sklearn_scores(model, judge.matrix)
    threshold = cheapest_threshold(judge.target, scores[:, 0], costs) if costs else None
    exported = export(model, judge, threshold, params.seed)
    inputs = input_entries(contract, train_rows)
    positions = golden_positions(len(validation_rows))
    rows = golden_rows(validation_rows.iloc[positions], inputs)
    matrix = encode(features(parse_columns(rows, inputs)), spec)
    _check_features(matrix, judge.matrix[positions], spec)
    golden = sklearn_scores(model, matrix)
    classes = [str(name) for name in model.classes_] if contract.task == "multiclass" else None
    described = {
        "task": contract.task,
        "noun": contract.noun,
        "target": contract.target.name,
        "classes": classes,
        "lead_minutes": contract.lead.total_seconds() / 60,
        "inputs": inputs,
        "features": [{"name": f.name, "categories": None if f.codes is None else [*f.codes]} for f in spec],
        "features_hash": features_hash,
        "threshold": threshold,
        "costs": costs and costs._asdict(),
        "runtime": exported.runtime,
        "runtime_reason": exported.reason,
        "tolerance": TOLERANCE,
        "max_difference": exported.max_difference,
    }
    outcomes = one_hot(fit.target, contract.task, classes)
    baselines = {name: fit_baseline(learned, outcomes, by) for name, by in keys.items()}
    if costs:
        for baseline in baselines.values():
            baseline["threshold"] = cheapest_threshold(judge.target, baseline_scores(baseline, judged)[:, 0], costs)
    files = {
        "contract.json": described,
        "golden.json": {"rows": rows, "scores": golden.tolist()},
        "baseline.json": baselines,
        "reference.json": reference(learned, scores, classes),
        "lineage.json": lineage,
    }
    return {name: json_bytes(content) for name, content in files.items()} | exported.files


def calibrate(estimator: BaseEstimator, judge: Inputs, task: Task) -> BaseEstimator:
    """The estimator with its scores fitted to the validation rows: Platt (1999) for two classes, temperature scaling
    (Guo et al., 2017) for more, nothing for a regression."""
    if task == "regression":
        return estimator
    method = "sigmoid" if task == "binary" else "temperature"
    # The estimator is frozen: the folds only order the rows that the calibration is fitted to.
    calibrated = CalibratedClassifierCV(FrozenEstimator(estimator), method=method, cv=KFold(2))
    fitted: BaseEstimator = calibrated.fit(judge.matrix, judge.target)
    fitted.cv = None  # only fitting needs it, and skops trusts no KFold
    return fitted


def export(model: BaseEstimator, judge: Inputs, threshold: float | None, seed: int) -> Exported:
    """The model as ONNX where that scores every validation row and made row alike, else as scikit-learn's own."""
    sizes = {i: len(f.codes) for i, f in enumerate(judge.spec) if f.codes is not None}
    # The made rows first: `measure` scores the first rows one by one, as a service does.
    rows = np.concatenate([edge_rows(model, judge.matrix, sizes, seed), judge.matrix])
    try:
        graph = to_onnx(model, len(judge.spec))
    except NotExpressible as error:
        return _on_sklearn(model, str(error))
    parity = measure(model, graph, rows, threshold, TOLERANCE)
    if parity.reason:
        return _on_sklearn(model, parity.reason)
    return Exported({"model.onnx": graph}, "onnx", "", parity.max_difference)


def _on_sklearn(model: BaseEstimator, reason: str) -> Exported:
    data = to_skops(model)
    from_skops(data)  # refuses here, rather than in the service, a type that is not trusted
    return Exported({"pipeline.skops": data}, "sklearn", reason, None)


def one_hot(target: np.ndarray, task: Task, classes: list[str] | None) -> np.ndarray:
    """The outcomes in the shape of scores, float64 [n, k]."""
    if task == "multiclass":
        return np.array([[float(value == name) for name in classes or []] for value in target])
    return target.astype("float64")[:, None]


def _costs(params: TrainParams, task: Task) -> Costs | None:
    if (params.costs is None) != (task != "binary"):
        expected = "costs of a missed positive and of a false alarm" if task == "binary" else "no costs (null)"
        raise InputError(f"train.costs: a {task} target needs {expected}, got {params.costs}; correct params.yaml")
    return Costs(params.costs.missed, params.costs.false_alarm) if params.costs else None


def _check_features(made: np.ndarray, expected: np.ndarray, spec: tuple[Feature, ...]) -> None:
    """The features of a few rows, made as a service makes them, are those that preprocess made of the whole table; and
    the limits of the contract give finite ones."""
    same = np.isclose(made[: len(expected)], expected, rtol=1e-9, atol=0, equal_nan=True).all(axis=0)
    for feature, is_same, values in zip(spec, same, made.T, strict=True):
        if not is_same:
            raise InputError(
                f"feature '{feature.name}': expected the same for a few rows as for the whole table, got another; it "
                "must depend on its own row alone; correct src/problem/features.py"
            )
        if np.isinf(values).any():
            raise InputError(
                f"feature '{feature.name}': expected a finite number at the limits of the contract, got infinity; "
                "guard it in src/problem/features.py"
            )


def _known(keys: list[str], features: Mapping[str, np.ndarray]) -> list[str]:
    unknown = [key for key in keys if key not in features]
    if unknown:
        raise InputError(
            f"train.baseline_keys: {unknown} are no features; name some of {list(features)} in params.yaml"
        )
    return keys
