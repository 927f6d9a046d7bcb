"""The estimators that compete, each with its search space. Change here to let another one compete."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sklearn.base import BaseEstimator
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from pipeline.candidates import Candidate, Settings, positions
from pipeline.contract import Task
from pipeline.scoring import Feature

if TYPE_CHECKING:
    import optuna  # only the search needs it


def _logistic_space(trial: "optuna.Trial") -> Settings:
    return {"C": trial.suggest_float("C", 1e-3, 10.0, log=True)}


def _logistic(settings: Settings, spec: Sequence[Feature], _task: Task, seed: int) -> BaseEstimator:
    numbers = make_pipeline(StandardScaler(), SimpleImputer(strategy="constant", fill_value=0.0))  # missing is average
    categories = make_pipeline(
        SimpleImputer(strategy="constant", fill_value=-1.0), OneHotEncoder(handle_unknown="ignore")
    )
    columns = ColumnTransformer(
        [
            ("numbers", numbers, positions(spec, categorical=False)),
            ("categories", categories, positions(spec, categorical=True)),
        ]
    )
    return make_pipeline(columns, LogisticRegression(**settings, max_iter=500, random_state=seed))


def _boosting_space(trial: "optuna.Trial") -> Settings:
    return {
        "learning_rate": trial.suggest_float("learning_rate", 0.03, 0.3, log=True),
        "max_iter": trial.suggest_int("max_iter", 20, 100, step=20),
        "max_leaf_nodes": trial.suggest_int("max_leaf_nodes", 7, 31, log=True),
        "min_samples_leaf": trial.suggest_int("min_samples_leaf", 20, 400, log=True),
        "l2_regularization": trial.suggest_float("l2_regularization", 1e-3, 30.0, log=True),
    }


def _boosting(settings: Settings, spec: Sequence[Feature], _task: Task, seed: int) -> BaseEstimator:
    return HistGradientBoostingClassifier(
        **settings, categorical_features=positions(spec, categorical=True), early_stopping=False, random_state=seed
    )


CANDIDATES = {
    "logistic_regression": Candidate(_logistic_space, _logistic),
    "gradient_boosting": Candidate(_boosting_space, _boosting),
}
