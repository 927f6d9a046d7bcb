from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from pipeline import gates
from pipeline.featurize import raw_columns
from pipeline.scoring import Scorer
from pipeline.stability import judge_stability
from tests.synthetic import TASKS, evaluate_params, evaluation, features, make_contract, make_scorer, prepared

NOISE, MISSING, UNSEEN = 0, 1, 2  # the rows of the table
TEMPERATURE, CYCLES, MAKER = 2, 3, 1  # the columns of the model's input


def scored_by(model: Callable[[np.ndarray], np.ndarray], task: str = "binary") -> Scorer:
    """The made bundle with another model in it; its threshold is 0.5."""
    scorer = make_scorer(task)
    threshold = 0.5 if task == "binary" else None
    return replace(scorer, model=model, contract={**scorer.contract, "threshold": threshold})


def judge(scorer: Scorer, test: pd.DataFrame | None = None, task: str = "binary", **changed: Any) -> pd.DataFrame:
    rows = prepared(task).test if test is None else test
    return judge_stability(rows, scorer, make_contract(task), **{"noise": 0.01, "share": 0.3, "seed": 0} | changed)


def passes(table: pd.DataFrame) -> gates.Verdict:
    """What the gate makes of it."""
    found = evaluation()._replace(tables={"stability": table})
    return gates.judge({"stability": lambda: gates.stability(found, evaluate_params().limits)}, {})[0]


def warm() -> pd.DataFrame:
    """Readings of which nearly all lie at 20 degrees, on a step of the model."""
    test = prepared().test.copy()
    test["temperature"] = np.where(np.arange(len(test)) % 10 == 0, 60.0, 20.0)
    return test


def test_a_model_with_a_step_where_the_data_lies_is_unstable() -> None:
    found = judge(scored_by(lambda matrix: (matrix[:, [TEMPERATURE]] >= 20).astype("float64")), warm())
    assert found["disturbance"].tolist() == ["noise on every number", "values gone missing", "categories never seen"]
    assert found["size"].tolist() == [0.01, 0.3, 0.3]
    assert found["changed_decisions"][NOISE] == pytest.approx(0.45, abs=0.08)
    assert found["largest_move"][NOISE] == 1
    assert found["mean_move"][NOISE] == found["changed_decisions"][NOISE]
    assert not passes(found).passed


def test_the_same_step_away_from_the_data_is_stable() -> None:
    found = judge(scored_by(lambda matrix: (matrix[:, [TEMPERATURE]] >= 21).astype("float64")), warm())
    assert found.loc[NOISE, ["changed_decisions", "mean_move", "largest_move"]].tolist() == [0, 0, 0]
    assert found["changed_decisions"][MISSING] == pytest.approx(0.1 * 0.3, abs=0.03)
    assert passes(found).passed


@pytest.mark.parametrize("task", TASKS)
def test_a_constant_model_changes_nothing(task: str) -> None:
    scores = {"binary": [0.7], "multiclass": [0.2, 0.3, 0.5], "regression": [3.0]}[task]
    found = judge(scored_by(lambda matrix: np.tile(scores, (len(matrix), 1)), task), task=task)
    assert (found[["changed_decisions", "mean_move", "largest_move"]] == 0).all(axis=None)


def test_scores_that_are_no_numbers_give_none_and_ground() -> None:
    def breaks(matrix: np.ndarray) -> np.ndarray:
        return np.where(np.isnan(matrix[:, [MAKER]]), np.inf, 0.5)

    test = prepared().test
    found = judge(scored_by(breaks), test[test["maker"].notna()])
    figures = found[["changed_decisions", "mean_move", "largest_move"]]
    assert figures.loc[NOISE].tolist() == [0, 0, 0]
    assert figures.loc[[MISSING, UNSEEN]].isna().all(axis=None)
    verdict = passes(found)
    assert not verdict.passed
    assert verdict.reason.startswith("no number came of it: noise on every number")


def test_a_linear_score_moves_by_the_noise_and_by_the_size_given() -> None:
    test = prepared().test
    weights = np.array([0.0, 0, 0.01, 0, 0, 0])
    known = test[test["temperature"].notna()]
    scorer = scored_by(lambda matrix: np.nan_to_num(matrix) @ weights[:, None], "regression")
    found = {noise: judge(scorer, known, "regression", noise=noise) for noise in (0.01, 0.02)}
    expected = 0.01 * 0.01 * known["temperature"].std(ddof=0) * np.sqrt(2 / np.pi)
    assert found[0.01]["mean_move"][NOISE] == pytest.approx(expected, rel=0.15)
    assert found[0.02]["mean_move"][NOISE] == pytest.approx(2 * found[0.01]["mean_move"][NOISE], rel=0.01)


def test_the_move_of_a_row_is_that_of_the_score_that_moves_most() -> None:
    def model(matrix: np.ndarray) -> np.ndarray:
        return np.where(np.isnan(matrix[:, [TEMPERATURE]]), [0.5, 0.25, 0.25], [0.2, 0.4, 0.4])

    test = prepared("multiclass").test
    found = judge(scored_by(model, "multiclass"), test[test["temperature"].notna()], "multiclass")
    assert found["largest_move"][MISSING] == pytest.approx(0.3)
    assert found["mean_move"][MISSING] == pytest.approx(0.3 * found["changed_decisions"][MISSING])


@pytest.mark.parametrize("task", TASKS)
def test_what_counts_as_another_decision(task: str) -> None:
    """The called class, the side of the threshold, or a prediction that moved a tenth of their deviation."""

    def model(matrix: np.ndarray) -> np.ndarray:
        gone = np.isnan(matrix[:, [TEMPERATURE]])
        if task == "multiclass":
            return np.where(gone, [0.3, 0.3, 0.4], [0.3, 0.4, 0.3])
        small = np.where(matrix[:, [CYCLES]] < 500, 0.009, 0.011)  # a tenth of the deviation of the site is 0.01
        if task == "regression":
            return 0.2 * (np.arange(len(matrix))[:, None] % 2) + small * gone
        return np.where(gone, 0.5, 0.499)

    test = prepared(task).test
    known = test[test["temperature"].notna()]
    known = known.iloc[: len(known) // 2 * 2]
    found = judge(scored_by(model, task), known, task, share=0.4)
    gone = 0.4 * (np.mean(known["cycles"] >= 500) if task == "regression" else 1)
    assert found["changed_decisions"][MISSING] == pytest.approx(gone, abs=0.1)
    assert 0 < found["changed_decisions"][MISSING]
    assert found["changed_decisions"][NOISE] == found["changed_decisions"][UNSEEN] == 0


def seen(test: pd.DataFrame, **changed: Any) -> list[dict[str, np.ndarray]]:
    """The raw columns that are scored: as they came, and under each disturbance."""
    asked = []

    def recorded(columns: Any) -> dict[str, np.ndarray]:
        asked.append({name: values.copy() for name, values in columns.items()})
        return features(columns)

    judge(replace(make_scorer(), features=recorded), test, **changed)
    return asked


def test_disturbed_numbers_keep_the_limits_and_the_kind_of_the_contract() -> None:
    test = prepared().test.copy()
    test["cycles"] = np.where(np.arange(len(test)) % 2, 0, 1000)
    test["temperature"] = np.where(np.arange(len(test)) % 2, -50.0, 150.0)
    _, noisy, *_ = seen(test, noise=0.5)
    assert (noisy["cycles"].min(), noisy["cycles"].max()) == (0, 1000)
    assert (noisy["temperature"].min(), noisy["temperature"].max()) == (-50, 150)
    assert (noisy["cycles"] == noisy["cycles"].round()).all()
    assert np.mean(noisy["cycles"] != test["cycles"]) > 0.3
    assert np.mean(noisy["temperature"] != noisy["temperature"].round()) > 0.3


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return pd.Series(one).equals(pd.Series(other))


def test_noise_is_on_every_number_alone() -> None:
    test = prepared().test
    came, noisy, *_ = seen(test)
    assert same(came["temperature"], raw_columns(test, make_contract())["temperature"])
    changed = {name for name in came if not same(came[name], noisy[name])}
    assert changed == {"temperature", "cycles"}
    assert np.isnan(noisy["temperature"]).sum() == test["temperature"].isna().sum()
    moved = noisy["temperature"] - came["temperature"]
    assert np.nanstd(moved) == pytest.approx(0.01 * np.nanstd(came["temperature"]), rel=0.2)
    assert abs(np.nanmean(moved)) < 0.05


def test_noise_far_below_one_still_moves_whole_numbers_as_often_as_keeps_its_size() -> None:
    test = prepared().test.assign(cycles=np.arange(len(prepared().test)) % 5 + 10)
    _, noisy, *_ = seen(test, noise=0.05)
    moved = noisy["cycles"] - test["cycles"]
    assert set(moved) == {-1, 0, 1}
    assert np.mean(moved != 0) == pytest.approx(0.07 * np.sqrt(2 / np.pi), abs=0.04)


def test_values_go_missing_where_they_may_and_are_never_seen_where_the_category_is_open() -> None:
    came, _, gone, unseen = seen(prepared().test, share=0.3)
    assert {name for name in came if not same(came[name], gone[name])} == {"maker", "measured_at", "temperature"}
    lost = np.isnat(gone["measured_at"]) & ~np.isnat(came["measured_at"])
    assert lost.mean() == pytest.approx(0.3, abs=0.1)
    assert sum(value is None for value in gone["maker"]) > sum(value is None for value in came["maker"])
    assert np.isnan(gone["temperature"]).sum() > np.isnan(came["temperature"]).sum()
    assert {name for name in came if not same(came[name], unseen[name])} == {"maker"}
    assert np.mean(unseen["maker"] == "~") == pytest.approx(0.3, abs=0.1)
    assert set(unseen["maker"]) - {"~"} == set(came["maker"])


def test_the_same_seed_disturbs_alike() -> None:
    one, again, other = (judge(make_scorer(), seed=seed) for seed in (0, 0, 1))
    pd.testing.assert_frame_equal(one, again)
    assert not one.equals(other)


def test_a_column_without_a_value_is_left_as_it_is() -> None:
    test = prepared().test.assign(temperature=np.nan, measured_at=pd.NaT)
    test["measured_at"] = test["measured_at"].astype("datetime64[us]")
    found = judge(make_scorer(), test)
    assert found.notna().all(axis=None)


def test_many_rows_are_sampled_over_the_whole_test(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.stability._SAMPLE", 50)
    test = prepared().test
    came, *_ = seen(test)
    assert came["cycles"].tolist() == test["cycles"].tolist()[::3]
