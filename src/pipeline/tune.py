"""The search for the best candidate and its settings. Change here to search otherwise, or to score otherwise."""

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
import pandas as pd
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from pydantic import Field
from sklearn.metrics import log_loss, root_mean_squared_error
from sklearn.model_selection import GroupKFold, KFold, StratifiedKFold

from pipeline.archive import sklearn_scores
from pipeline.candidates import Candidate
from pipeline.contract import Contract
from pipeline.errors import InputError
from pipeline.params import Params, Seed
from pipeline.prepared import Inputs, feature_spec, features_of, model_inputs

_FOLDS_AT_ONCE = 2

Folds = list[tuple[np.ndarray, np.ndarray]]


class TuneParams(Params):
    """What `tune` may be told."""

    candidates: list[str] = Field(min_length=1)
    trials: int = Field(ge=1)
    folds: int = Field(ge=2)
    seed: Seed


class Tuning(NamedTuple):
    """The best candidate with its settings and score (lower is better), and a table with a row per trial."""

    best: dict[str, Any]
    trials: pd.DataFrame


def tune(
    train: pd.DataFrame,
    *,
    contract: Contract,
    candidates: Mapping[str, Candidate],
    params: TuneParams,
    journal: Path,
    after_trial: Callable[[], object] = lambda: None,
) -> Tuning:
    """Search with TPE (Bergstra et al., 2011) on the training rows; every trial is scored by the mean log loss (or
    RMSE, for a regression) over the folds.

    `journal` keeps the trials of a search that was broken off: the search goes on there with the same result, since
    each trial draws from a generator seeded by its number. `after_trial` is called after each one, kept ones too.
    """
    unknown = sorted(set(params.candidates) - set(candidates))
    if unknown:
        raise InputError(
            f"tune.candidates names {unknown}; expected names out of {sorted(candidates)} (src/problem/models.py)"
        )
    folds = make_folds(train, contract, params.folds, params.seed)
    inputs = model_inputs(train, contract, feature_spec(features_of(train)))
    study = _resume(journal)
    for _ in study.trials:
        after_trial()
    while len(study.trials) < params.trials:
        study.sampler = optuna.samplers.TPESampler(seed=params.seed + len(study.trials), n_startup_trials=4)
        trial = study.ask()
        scores = _score(trial, inputs, folds, contract, candidates, params)
        trial.set_user_attr("folds", scores)
        study.tell(trial, float(np.mean(scores)))
        after_trial()
    return _summary(study, contract)


def make_folds(train: pd.DataFrame, contract: Contract, count: int, seed: int) -> Folds:
    """Positions of fitting and scoring rows per fold.

    With a time column by rolling origin (Tashman, 2000): the rows are cut into 2 * count equal spans of time, the
    last `count` are scored one by one, each by what came before it. Otherwise grouped by entity, stratified by class,
    or plain K-fold. InputError where a fold has nothing to fit or score.
    """
    rows, target = np.zeros(len(train)), train[contract.target.name].to_numpy()
    features = features_of(train)
    groups = contract.having("entity")
    try:
        if contract.time is not None:
            folds = list(_rolling_origin(train[contract.time.name], count))
        elif groups:
            folds = list(GroupKFold(count).split(rows, groups=train[groups[0].name].astype("str").fillna("")))
        elif contract.task == "regression":
            folds = list(KFold(count, shuffle=True, random_state=seed).split(rows))
        else:
            folds = list(StratifiedKFold(count, shuffle=True, random_state=seed).split(rows, target))
    except ValueError as error:  # fewer rows, groups or members of a class than folds
        raise InputError(f"expected training rows for {count} folds ({error}); lower tune.folds") from error
    for number, (fit, scored) in enumerate(folds, start=1):
        values = np.unique(target[fit])
        empty = [name for name, column in features.items() if column.iloc[fit].isna().all()]
        if empty:
            raise InputError(
                f"fold {number} of {count}: expected values of every feature to fit, got none of {empty} in "
                f"{len(fit):,} rows; lower tune.folds, or train on a longer period"
            )
        if not len(scored) or len(values) < 2:
            raise InputError(
                f"fold {number} of {count}: expected rows to score, and two values of '{contract.target.name}' to fit, "
                f"got {len(scored)} rows and {values.tolist()}; change tune.folds, or train on a longer period"
            )
    return folds


def _rolling_origin(moments: pd.Series, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    edges = pd.date_range(moments.min(), moments.max(), periods=2 * count + 1)
    for start, end in zip(edges[count:-1], edges[count + 1 :], strict=True):
        last = end == edges[-1]
        scored = (moments >= start) & ((moments <= end) if last else (moments < end))
        yield np.flatnonzero(moments < start), np.flatnonzero(scored)


def _resume(journal: Path) -> optuna.Study:
    """A study over the journal, holding the trials that were completed before a break; a broken one is forgotten, so
    that its number is tried again."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    completed: list[optuna.trial.FrozenTrial] = []
    journal.with_name(journal.name + ".lock").unlink(missing_ok=True)  # left by a killed process
    if journal.exists():
        with suppress(KeyError):  # broken off before the study stood in it
            before = optuna.load_study(study_name="tune", storage=JournalStorage(JournalFileBackend(str(journal))))
            completed = [t for t in before.trials if t.state == TrialState.COMPLETE]
        journal.unlink()
    study = optuna.create_study(study_name="tune", storage=JournalStorage(JournalFileBackend(str(journal))))
    study.add_trials(completed)
    return study


def _score(
    trial: optuna.Trial,
    inputs: Inputs,
    folds: Folds,
    contract: Contract,
    candidates: Mapping[str, Candidate],
    params: TuneParams,
) -> list[float]:
    name = trial.suggest_categorical("candidate", params.candidates)
    settings = candidates[name].space(trial)

    def scored(fold: tuple[np.ndarray, np.ndarray]) -> float:
        fit, score = fold
        estimator = candidates[name].build(settings, inputs.spec, contract.task, params.seed)
        estimator.fit(inputs.matrix[fit], inputs.target[fit])
        predicted = sklearn_scores(estimator, inputs.matrix[score])
        if contract.task == "regression":
            return float(root_mean_squared_error(inputs.target[score], predicted[:, 0]))
        return _log_loss(inputs, score, predicted, estimator.classes_)

    with ThreadPoolExecutor(_FOLDS_AT_ONCE) as pool:  # each on a thread of its own: the same scores, sooner
        return list(pool.map(scored, folds))


def _log_loss(inputs: Inputs, rows: np.ndarray, predicted: np.ndarray, known: np.ndarray) -> float:
    """A class that the fold did not fit is given no probability, and costs as much as `log_loss` lets it."""
    classes = np.unique(inputs.target)
    shares = np.column_stack([1 - predicted, predicted]) if len(known) == 2 else predicted
    whole = np.zeros((len(rows), len(classes)))
    whole[:, np.searchsorted(classes, known)] = shares
    return float(log_loss(inputs.target[rows], whole, labels=classes))


def _summary(study: optuna.Study, contract: Contract) -> Tuning:
    rows = []
    for trial in study.trials:
        settings = dict(trial.params)
        row = {"number": trial.number, "candidate": settings.pop("candidate"), "score": trial.value}
        folds = {f"fold_{i}": score for i, score in enumerate(trial.user_attrs["folds"], start=1)}
        rows.append(row | folds | {"params": json.dumps(settings, sort_keys=True)})
    table = pd.DataFrame(rows)
    best = table.iloc[int(table["score"].to_numpy().argmin())]
    metric = "rmse" if contract.task == "regression" else "log_loss"
    found = {"candidate": best["candidate"], "params": json.loads(best["params"])}
    return Tuning(found | {"metric": metric, "score": float(best["score"])}, table)
