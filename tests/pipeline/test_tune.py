import json
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from pipeline.candidates import Candidate
from pipeline.errors import InputError
from pipeline.tune import TuneParams, Tuning, make_folds, tune
from tests.synthetic import CANDIDATES, TASKS, make_contract, prepared

PARAMS = TuneParams(candidates=["linear", "boosting"], trials=6, folds=2, seed=5)


def search(journal: Path, task: str = "binary", params: TuneParams = PARAMS, **changed: Any) -> Tuning:
    given = {"contract": make_contract(task), "candidates": CANDIDATES, "params": params, "journal": journal}
    return tune(prepared(task).train, **given | changed)


class Broken(Exception):
    """The power goes out."""


def breaking_after(trials: int) -> dict[str, Candidate]:
    """Candidates that fail in the middle of the trial after so many."""
    built = iter(range(trials * PARAMS.folds + 1))

    def build(*arguments: Any) -> Any:
        if next(built) == trials * PARAMS.folds:
            raise Broken
        return CANDIDATES["linear"].build(*arguments)

    def build_boosting(*arguments: Any) -> Any:
        build({"C": 1.0}, *arguments[1:])
        return CANDIDATES["boosting"].build(*arguments)

    return {
        "linear": CANDIDATES["linear"]._replace(build=build),
        "boosting": CANDIDATES["boosting"]._replace(build=build_boosting),
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Tuning:
    return search(tmp_path_factory.mktemp("whole") / "journal.log")


def as_bytes(tuning: Tuning) -> tuple[str, str]:
    return tuning.trials.to_csv(index=False), json.dumps(tuning.best)


def test_every_trial_is_a_row(whole: Tuning) -> None:
    assert list(whole.trials) == ["number", "candidate", "score", "fold_1", "fold_2", "params"]
    assert whole.trials["number"].tolist() == list(range(6))
    assert set(whole.trials["candidate"]) == {"linear", "boosting"}
    assert whole.trials[["fold_1", "fold_2"]].mean(axis=1).to_numpy() == pytest.approx(whole.trials["score"].to_numpy())


def test_the_best_is_the_trial_of_least_score(whole: Tuning) -> None:
    row = whole.trials.loc[whole.trials["score"].idxmin()]
    assert whole.best == {
        "candidate": row["candidate"],
        "params": json.loads(row["params"]),
        "metric": "log_loss",
        "score": row["score"],
    }


def test_the_score_is_the_mean_log_loss_of_the_folds(whole: Tuning) -> None:
    row = whole.trials[whole.trials["candidate"] == "linear"].iloc[0]
    rows = prepared().train
    matrix = np.column_stack(
        [
            (rows["site"] == "south").astype(float),
            rows["maker"].map({"acme": 0.0, "bolt": 1.0, "core": 2.0}),
            *(rows[f"feature.{name}"] for name in ("temperature", "cycles", "guarded", "age_min")),
        ]
    )
    fit, scored = make_folds(rows, make_contract(), 2, 5)[0]
    estimator = CANDIDATES["linear"].build(json.loads(row["params"]), [], "binary", 5)
    estimator.fit(matrix[fit], rows["outcome"].iloc[fit])
    expected = log_loss(rows["outcome"].iloc[scored], estimator.predict_proba(matrix[scored])[:, 1])
    assert row["fold_1"] == pytest.approx(expected)


@pytest.mark.parametrize("task", TASKS)
def test_the_same_search_gives_the_same_bytes(tmp_path: Path, task: str) -> None:
    params = PARAMS.model_copy(update={"trials": 3, "candidates": ["linear", "boosting", "forest"]})
    one, other = (search(tmp_path / name, task, params) for name in ("one.log", "other.log"))
    assert as_bytes(one) == as_bytes(other)
    assert one.best["metric"] == ("rmse" if task == "regression" else "log_loss")


def test_another_seed_searches_elsewhere(tmp_path: Path, whole: Tuning) -> None:
    other = search(tmp_path / "journal.log", params=PARAMS.model_copy(update={"seed": 6, "trials": 2}))
    assert other.trials["params"].tolist() != whole.trials["params"].tolist()[:2]


@pytest.mark.parametrize("trials", [0, 1, 4])
def test_a_search_broken_in_the_middle_of_a_trial_ends_as_if_it_were_not(
    tmp_path: Path, whole: Tuning, trials: int
) -> None:
    journal = tmp_path / "journal.log"
    with pytest.raises(Broken):
        search(journal, candidates=breaking_after(trials))
    seen: list[int] = []
    assert as_bytes(search(journal, after_trial=lambda: seen.append(1))) == as_bytes(whole)
    assert len(seen) == 6


@pytest.mark.parametrize("left", [b"", b'{"op_code": 0, "worker'])
def test_a_journal_of_a_search_that_never_began_is_begun_again(tmp_path: Path, whole: Tuning, left: bytes) -> None:
    (tmp_path / "journal.log").write_bytes(left)
    (tmp_path / "journal.log.lock").symlink_to("journal.log")
    assert as_bytes(search(tmp_path / "journal.log")) == as_bytes(whole)


def test_a_trial_left_running_in_the_journal_is_tried_again(tmp_path: Path, whole: Tuning) -> None:
    journal = tmp_path / "journal.log"
    with pytest.raises(Broken):
        search(journal, candidates=breaking_after(2))
    left = optuna.load_study(study_name="tune", storage=JournalStorage(JournalFileBackend(str(journal))))
    assert [trial.state.name for trial in left.trials] == ["COMPLETE", "COMPLETE", "RUNNING"]
    with journal.open("ab") as file:
        file.write(b'{"op_code": 6, "wor')  # and cut off in the middle of a line
    assert as_bytes(search(journal)) == as_bytes(whole)


def test_an_unknown_candidate_is_refused(tmp_path: Path) -> None:
    params = PARAMS.model_copy(update={"candidates": ["linear", "magic"]})
    with pytest.raises(InputError, match=r"tune\.candidates names \['magic'\]; expected names out of \['boosting', "):
        search(tmp_path / "journal.log", params=params)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_folds_of_a_rolling_origin_never_fit_what_comes_at_or_after_what_they_score(count: int) -> None:
    rows = prepared().train.sample(frac=1, random_state=0)
    folds = make_folds(rows, make_contract(), count, seed=0)
    moments = rows["read_at"].to_numpy()
    assert len(folds) == count
    scored = np.concatenate([score for _, score in folds])
    assert len(set(scored)) == len(scored)
    middle = moments.min() + (moments.max() - moments.min()) / 2
    assert set(scored) == set(np.flatnonzero(moments >= middle))
    for fit, score in folds:
        assert moments[fit].max() < moments[score].min()
        assert set(fit) == set(np.flatnonzero(moments < moments[score].min()))


def test_folds_by_group_part_no_group() -> None:
    rows = prepared().train
    for fit, score in make_folds(rows, make_contract(timed=False), 3, seed=0):
        assert not set(rows["machine"].iloc[fit]) & set(rows["machine"].iloc[score])
        assert len(fit) + len(score) == len(rows)


def test_stratified_folds_keep_the_balance_of_classes() -> None:
    rows = prepared("multiclass").train
    folds = make_folds(rows, make_contract("multiclass", timed=False, entity=False), 4, seed=0)
    shares = [(rows["outcome"].iloc[score] == "fine").mean() for _, score in folds]
    assert np.ptp(shares) < 0.03


def test_plain_folds_score_every_row_once() -> None:
    rows = prepared("regression").train
    folds = make_folds(rows, make_contract("regression", timed=False, entity=False), 4, seed=0)
    assert sorted(np.concatenate([score for _, score in folds])) == list(range(len(rows)))


def test_a_fold_without_rows_to_score_is_refused() -> None:
    rows = prepared().train
    gap = rows[(rows["read_at"] < "2020-01-20") | (rows["read_at"] > "2020-03-20")]
    with pytest.raises(InputError, match=r"fold 1 of 3: .*got 0 rows and \[0\.0, 1\.0\]; change tune\.folds"):
        make_folds(gap, make_contract(), 3, seed=0)


def test_a_fold_of_one_class_is_refused() -> None:
    rows = prepared().train.assign(outcome=lambda t: (t["read_at"] > "2020-03-01").astype(float))
    with pytest.raises(InputError, match=r"fold 1 of 3: .* rows and \[0\.0\]; change tune\.folds"):
        make_folds(rows, make_contract(), 3, seed=0)


def test_more_folds_than_rows_of_a_class_are_refused() -> None:
    with pytest.raises(InputError, match=r"expected training rows for 41 folds \(.*lower tune\.folds"):
        make_folds(prepared().train, make_contract(timed=False), 41, seed=0)


def test_a_class_that_a_fold_has_not_seen_yet_costs_alike_in_every_trial(tmp_path: Path) -> None:
    rows = prepared("multiclass").train.copy()
    rows.loc[(rows["outcome"] == "broken") & (rows["read_at"] < "2020-02-25"), "outcome"] = "worn"
    params = PARAMS.model_copy(update={"trials": 2, "candidates": ["linear"]})
    found = tune(
        rows, contract=make_contract("multiclass"), candidates=CANDIDATES, params=params, journal=tmp_path / "j.log"
    )
    assert (found.trials["fold_1"] > 1).all()
    assert np.isfinite(found.trials["score"]).all()


def test_settings_may_be_of_every_kind(tmp_path: Path) -> None:
    def space(trial: optuna.Trial) -> dict[str, Any]:
        return {
            "C": trial.suggest_float("C", 1, 2),
            "fit_intercept": trial.suggest_categorical("fit_intercept", [True, False]),
            "max_iter": trial.suggest_int("max_iter", 200, 300),
        }

    def build(settings: Any, *_: object) -> LogisticRegression:
        linear = CANDIDATES["linear"].build({"C": settings["C"]}, [], "binary", 0)
        return linear.set_params(**{f"logisticregression__{k}": v for k, v in settings.items()})

    params = PARAMS.model_copy(update={"candidates": ["mine"], "trials": 2})
    found = search(tmp_path / "j.log", params=params, candidates={"mine": Candidate(space, build)})
    assert set(found.best["params"]) == {"C", "fit_intercept", "max_iter"}
    assert isinstance(pd.Series(found.best["params"])["fit_intercept"], bool)


def test_a_feature_without_a_value_in_an_early_fold_is_named() -> None:
    rows = prepared().train
    early = rows["read_at"] <= rows["read_at"].quantile(0.9)
    rows = rows.assign(**{"feature.temperature": rows["feature.temperature"].mask(early)})
    with pytest.raises(
        InputError, match=r"fold 1 of 2: expected values of every feature to fit, got none of \['temper"
    ):
        make_folds(rows, make_contract(), 2, seed=0)
