"""A small problem of every kind: readings of machines. Change here to test the pipeline on something else."""

import json
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd
import pandera.pandas as pa
from sklearn.ensemble import (
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from pipeline.candidates import Candidate, positions
from pipeline.canonical import parquet_bytes, sha256
from pipeline.contract import Contract, column
from pipeline.evaluate import EvaluateParams, Evaluation, evaluate
from pipeline.prepared import SPLITS
from pipeline.preprocess import Prepared, PreprocessParams, preprocess
from pipeline.scoring import Scorer
from pipeline.train import TrainParams, train

TASKS = ("binary", "multiclass", "regression")
_TARGETS: dict[str, tuple[Any, dict[str, Any]]] = {
    "binary": (pd.BooleanDtype, {}),
    "multiclass": (str, {"isin": ["fine", "worn", "broken"]}),
    "regression": (float, {"ge": -100, "le": 100}),
}
BY_TIME = PreprocessParams.model_validate(
    {
        "split": {
            "method": "time",
            "train_from": "2020-01",
            "validation_from": "2020-04",
            "test_from": "2020-05-10",
            "test_until": "2020-07",
        },
        "suspicious_score": 0.99,
    }
)


@cache
def make_contract(task: str = "binary", *, timed: bool = True, entity: bool = True) -> Contract:
    """The contract, with a target of the kind that makes the task."""
    kind, checks = _TARGETS[task]

    moment: list[Any] = ["time", "key", "feature"] if timed else ["key", "feature"]

    class Readings(pa.DataFrameModel):
        """One row per reading of a machine."""

        read_at: datetime = column("When it was read", roles=moment)
        machine: str = column("Which machine", roles=["key", "entity"] if entity else ["key"], open_categories=True)
        site: str = column("Where it stands", roles=["feature", "slice"], isin=["north", "south"])
        maker: str = column("Who made it", roles=["feature"], open_categories=True, nullable=True)
        measured_at: datetime = column(
            "When it was measured", roles=["observed_at", "feature"] if timed else ["feature"], nullable=True
        )
        temperature: float = column(
            "Its temperature",
            unit="C",
            roles=["feature"],
            ge=-50,
            le=150,
            nullable=True,
            observed_at="measured_at" if timed else None,
        )
        cycles: int = column("Its cycles so far", roles=["feature", "slice"], ge=0, le=1000)
        guarded: bool = column("Whether it has a guard", roles=["feature", "sensitive"])
        repair_cost: float = column("What followed", roles=["ignored"], known="after", nullable=True)
        serial: int = column("Its number on paper", roles=["ignored"])
        outcome: kind = column("How it went", roles=["target"], known="after", nullable=True, **checks)

        class Config:
            """No other column."""

            strict = True

    return Contract.of(Readings, noun="readings", lead=timedelta(hours=1))


def make_table(rows: int = 600, task: str = "binary", seed: int = 0) -> pd.DataFrame:
    """Readings of January to June 2020: the warmer and the more used, the worse; some without outcome."""
    random = np.random.default_rng(seed)
    read_at = pd.Timestamp("2020-01-01") + pd.to_timedelta(np.arange(rows) * (181 * 24 * 60 // rows), unit="min")
    temperature = np.where(random.random(rows) < 0.2, np.nan, random.normal(20, 15, rows).round(1).clip(-40, 90))
    cycles = random.integers(0, 1000, rows)
    maker = random.choice(["acme", "bolt", "core"], rows)
    harm = np.nan_to_num(temperature, nan=30) / 15 + cycles / 500 + (maker == "bolt") + random.normal(size=rows)
    outcomes = {
        "binary": pd.array(harm > 4, dtype="boolean"),
        "multiclass": pd.array(np.array(["fine", "worn", "broken"])[np.digitize(harm, [2.5, 4.5])], dtype="str"),
        "regression": pd.array(harm, dtype="float64"),
    }
    table = pd.DataFrame(
        {
            "read_at": read_at.astype("datetime64[us]"),
            "machine": random.choice([f"m{i:02}" for i in range(40)], rows),
            "site": random.choice(["north", "south"], rows),
            "maker": maker,
            "measured_at": (read_at - pd.Timedelta("90min")).astype("datetime64[us]"),
            "temperature": temperature,
            "cycles": cycles,
            "guarded": random.random(rows) < 0.5,
            "repair_cost": np.where(random.random(rows) < 0.5, np.nan, harm),
            "serial": np.arange(rows),
            "outcome": outcomes[task],
        }
    )
    table.loc[random.random(rows) < 0.05, "maker"] = None
    table.loc[table.index % 50 == 7, "outcome"] = None
    return table


def features(columns: Any) -> dict[str, np.ndarray]:
    """The features of a reading."""
    return {
        "site": columns["site"],
        "maker": columns["maker"],
        "temperature": columns["temperature"],
        "cycles": columns["cycles"],
        "guarded": columns["guarded"],
        "age_min": (columns["read_at"] - columns["measured_at"]) / np.timedelta64(1, "m"),
    }


def _linear(settings: Any, _spec: Any, task: str, seed: int) -> Any:
    last = Ridge(alpha=settings["C"]) if task == "regression" else LogisticRegression(**settings, random_state=seed)
    return make_pipeline(SimpleImputer(), StandardScaler(), last)


def _boosting(settings: Any, spec: Any, task: str, seed: int) -> Any:
    kind = HistGradientBoostingRegressor if task == "regression" else HistGradientBoostingClassifier
    return kind(**settings, max_iter=5, categorical_features=positions(spec, categorical=True), random_state=seed)


def _forest(_settings: Any, _spec: Any, task: str, seed: int) -> Any:
    kind = RandomForestRegressor if task == "regression" else RandomForestClassifier
    return make_pipeline(SimpleImputer(), kind(3, max_depth=4, random_state=seed))


CANDIDATES = {
    "linear": Candidate(lambda trial: {"C": trial.suggest_float("C", 1e-2, 10, log=True)}, _linear),
    "boosting": Candidate(lambda trial: {"max_leaf_nodes": trial.suggest_int("max_leaf_nodes", 3, 15)}, _boosting),
    "forest": Candidate(lambda _trial: {}, _forest),  # which ONNX cannot express in double precision
}
BEST = {
    "linear": {"candidate": "linear", "params": {"C": 1.0}},
    "boosting": {"candidate": "boosting", "params": {"max_leaf_nodes": 7}},
    "forest": {"candidate": "forest", "params": {}},
}

TRIALS = pd.DataFrame(
    [
        {"number": 0, "candidate": "linear", "score": 0.6, "params": '{"C": 0.01}'},
        {"number": 1, "candidate": "linear", "score": 0.5, "params": '{"C": 1.0}'},
        {"number": 2, "candidate": "boosting", "score": 0.4, "params": '{"max_leaf_nodes": 7}'},
    ]
)
METRICS = {"binary": "roc_auc", "multiclass": "macro_roc_auc", "regression": "rmse"}


def write_partitions(folder: Path, table: pd.DataFrame) -> Path:
    """The table as a file a month and a manifest, as ingest leaves them."""
    folder.mkdir(exist_ok=True)
    periods = {}
    for period, rows in table.groupby(table["read_at"].dt.strftime("%Y-%m")):
        content = parquet_bytes(rows)
        (folder / f"{period}.parquet").write_bytes(content)
        periods[str(period)] = {"rows": len(rows), "quarantined": 0, "reasons": {}, "sha256": sha256(content)}
    (folder / "manifest.json").write_text(json.dumps({"source": "made", "periods": periods}))
    return folder


@cache
def prepared(task: str = "binary") -> Prepared:
    """The made readings, prepared with a split by time."""
    return preprocess(
        make_table(task=task),
        contract=make_contract(task),
        features=features,
        params=BY_TIME,
        locations=[(Path("made.parquet"), 600)],
        quarantined={},
    )


def train_params(task: str = "binary", **changed: Any) -> TrainParams:
    """Parameters of train, with costs where the task has them."""
    costs = {"missed": 3.0, "false_alarm": 1.0} if task == "binary" else None
    return TrainParams.model_validate({"seed": 0, "baseline_keys": ["site", "maker"], "costs": costs} | changed)


@cache
def make_bundle(task: str = "binary", candidate: str = "boosting") -> dict[str, bytes]:
    """A bundle trained on the prepared readings; not to be changed."""
    rows = prepared(task)
    return train(
        rows.train,
        rows.validation,
        contract=make_contract(task),
        features=features,
        candidates=CANDIDATES,
        best=BEST[candidate],
        params=train_params(task),
        features_hash="made",
        lineage={},
    )


def write_bundle(folder: Path, bundle: dict[str, bytes]) -> Path:
    """A bundle on disk."""
    folder.mkdir(exist_ok=True)
    for name, content in bundle.items():
        (folder / name).write_bytes(content)
    return folder


@cache
def make_scorer(task: str = "binary", candidate: str = "boosting") -> Scorer:
    """That bundle, loaded."""
    with TemporaryDirectory() as folder:
        return Scorer.load(write_bundle(Path(folder, "bundle"), make_bundle(task, candidate)), features)


def splits(task: str = "binary") -> dict[str, pd.DataFrame]:
    """The prepared readings by split."""
    return {name: getattr(prepared(task), name) for name in SPLITS}


def evaluate_params(task: str = "binary", **changed: Any) -> EvaluateParams:
    """Parameters of evaluate that the made bundles pass with."""
    less = task == "regression"
    limits = {
        "test_rows": 50,
        "single_feature": 0.9,
        "floor": 1.5 if less else 0.6,
        "gain_over_naive": 0.0,
        "gain_over_simple": 0.0,
        "slice_floor": 2.0 if less else 0.5,
        "group_gap": 0.6,
        "calibration": 0.3,
        "changed_by_noise": 0.05,
    }
    given = {
        "metric": METRICS[task],
        "margin": 0.01,
        "resamples": 100,
        "confidence": 0.9,
        "seed": 0,
        "slice_rows": 40,
        "noise": 0.01,
        "disturbed_share": 0.1,
        "refit_rows": 200,
        "limits": limits | changed.pop("limits", {}),
        "waived": {},
    }
    return EvaluateParams.model_validate(given | changed)


def make_evaluation(task: str = "binary", candidate: str = "boosting", **changed: Any) -> Evaluation:
    """An evaluation of a made bundle; `changed` are parameters, or arguments of `evaluate`."""
    arguments = ("splits", "contract", "scorer", "bundle", "candidates", "best", "trials")
    given = {name: changed.pop(name) for name in arguments if name in changed}
    made = make_bundle(task, candidate)
    usual = {
        "contract": make_contract(task),
        "scorer": make_scorer(task, candidate),
        "bundle": {name: json.loads(made[name]) for name in ("baseline.json", "golden.json")},
        "candidates": CANDIDATES,
        "best": BEST[candidate],
        "trials": TRIALS,
        "params": evaluate_params(task, **changed),
    }
    return evaluate(given.pop("splits", splits(task)), **usual | given)


@cache
def evaluation(task: str = "binary") -> Evaluation:
    """The evaluation of the made bundle; not to be changed."""
    return make_evaluation(task)
