import json
from pathlib import Path
from typing import Any

import optuna

from pipeline.tune import TuneParams, tune
from tests.synthetic import CANDIDATES, make_contract, prepared


def space(trial: optuna.Trial) -> dict[str, Any]:
    return {
        "max_leaf_nodes": trial.suggest_int("max_leaf_nodes", 3, 15),
        "learning_rate": trial.suggest_float("learning_rate", 0.05, 0.5, log=True),
        "early_stopping": trial.suggest_categorical("early_stopping", [False, True]),
    }


def test_every_setting_of_every_candidate_is_varied(tmp_path: Path) -> None:
    candidates = {"linear": CANDIDATES["linear"], "boosting": CANDIDATES["boosting"]._replace(space=space)}
    params = TuneParams(candidates=[*candidates], trials=12, folds=2, seed=5)
    found = tune(
        prepared().train,
        contract=make_contract(),
        candidates=candidates,
        params=params,
        journal=tmp_path / "journal.log",
    )
    expected = {"linear": {"C"}, "boosting": {"max_leaf_nodes", "learning_rate", "early_stopping"}}
    for name, trials in found.trials.groupby("candidate"):
        tried = [json.loads(settings) for settings in trials["params"]]
        assert {key for key in tried[0] if len({each[key] for each in tried}) > 1} == expected.pop(str(name))
    assert expected == {}
    assert found.best["score"] == found.trials["score"].min()
