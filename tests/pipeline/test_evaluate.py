import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix, roc_auc_score

from pipeline.errors import InputError
from pipeline.evaluate import EvaluateParams, Evaluation, evaluate, report_files
from pipeline.prepared import as_arrays, features_of
from pipeline.scoring import Scorer, encode
from tests.synthetic import TASKS, features, make_bundle, make_contract, prepared, write_bundle

PARAMS = EvaluateParams(resamples=100, confidence=0.9, seed=0)


def judge(folder: Path, task: str = "binary", test: pd.DataFrame | None = None, **contract: Any) -> Evaluation:
    return evaluate(
        prepared(task).test if test is None else test,
        contract=make_contract(task, **contract),
        scorer=Scorer.load(write_bundle(folder / "bundle", make_bundle(task)), features),
        baselines=json.loads(make_bundle(task)["baseline.json"]),
        params=PARAMS,
    )


def curve(files: dict[str, bytes], name: str) -> pd.DataFrame:
    return pd.read_csv(io.BytesIO(files[f"curves/{name}.csv"]))


def scores_of(folder: Path) -> tuple[np.ndarray, np.ndarray, float]:
    scorer = Scorer.load(write_bundle(folder / "bundle", make_bundle()), features)
    rows = prepared().test
    scores = scorer.model(encode(as_arrays(features_of(rows)), scorer.spec))[:, 0]
    return rows["outcome"].to_numpy(), scores, scorer.contract["threshold"]


CURVES = {
    "binary": {"roc", "precision_recall", "calibration", "cost", "confusion"},
    "multiclass": {"calibration", "confusion"},
    "regression": {"residuals"},
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_has_its_files(tmp_path: Path, task: str) -> None:
    evaluation = judge(tmp_path, task)
    files = report_files(evaluation, make_contract(task))
    assert set(files) == {"metrics.json", "summary.md", "curves.svg", *(f"curves/{name}.csv" for name in CURVES[task])}
    metrics = json.loads(files["metrics.json"])
    assert list(metrics) == ["model", "simple", "naive", *(["no_model"] if task == "binary" else [])]
    for found in metrics.values():
        assert all(estimate["low"] <= estimate["high"] for estimate in found.values())
    assert report_files(judge(tmp_path, task), make_contract(task)) == files


def test_the_model_beats_the_baselines_on_what_was_made_to_be_learned(tmp_path: Path) -> None:
    metrics = judge(tmp_path).metrics
    assert metrics["model"]["roc_auc"].value > metrics["simple"]["roc_auc"].value > metrics["naive"]["roc_auc"].value
    assert metrics["naive"]["roc_auc"].value == 0.5


def test_figures_are_those_of_the_bundle_on_the_test_rows(tmp_path: Path) -> None:
    truth, scores, threshold = scores_of(tmp_path)
    metrics = judge(tmp_path).metrics
    assert metrics["model"]["roc_auc"].value == pytest.approx(roc_auc_score(truth, scores))
    (_, alarm), (missed, _) = confusion_matrix(truth, scores >= threshold)
    assert metrics["model"]["cost_per_1000"].value == pytest.approx(1000 * (3 * missed + alarm) / len(truth))


def test_without_a_model_every_positive_is_missed(tmp_path: Path) -> None:
    found = judge(tmp_path).metrics["no_model"]
    assert set(found) == {"recall", "cost_per_1000"}
    assert found["recall"].value == 0
    assert found["cost_per_1000"].value == pytest.approx(3000 * prepared().test["outcome"].mean())


def test_each_baseline_decides_by_its_own_threshold(tmp_path: Path) -> None:
    naive = json.loads(make_bundle()["baseline.json"])["naive"]
    calls_everyone = naive["overall"][0] >= naive["threshold"]
    assert judge(tmp_path).metrics["naive"]["recall"].value == float(calls_everyone)


def test_the_summary_has_a_row_per_metric_and_says_what_intervals_rest_on(tmp_path: Path) -> None:
    evaluation = judge(tmp_path)
    text = report_files(evaluation, make_contract())["summary.md"].decode()
    assert text.startswith("# `outcome` on 165 readings that the model never saw\n")
    assert "| metric | model | simple | naive | no model |" in text
    assert "| cost per 1,000 readings |" in text
    assert "| log loss |" in text
    assert "In brackets: 90% intervals, from 100 resamples of 51 days of read_at.\n" in text


def test_the_curves_end_where_they_must(tmp_path: Path) -> None:
    files = report_files(judge(tmp_path), make_contract())
    roc, cost = curve(files, "roc"), curve(files, "cost")
    assert roc.iloc[[0, -1]].to_numpy().tolist() == [[0, 0], [1, 1]]
    truth = prepared().test["outcome"]
    assert cost["cost_per_1000"].iloc[[0, -1]].tolist() == pytest.approx(
        [3000 * truth.mean(), 1000 * (1 - truth.mean())], rel=1e-5
    )
    assert curve(files, "precision_recall")["recall"].iloc[[0, -1]].tolist() == [1, 0]
    assert len(cost) <= 200


def test_the_calibration_curve_holds_every_row(tmp_path: Path) -> None:
    for task in ("binary", "multiclass"):
        calibration = curve(report_files(judge(tmp_path, task), make_contract(task)), "calibration")
        assert calibration["rows"].sum() == len(prepared(task).test)
        assert len(calibration) == 10


def test_the_confusion_matrix_is_that_of_the_decisions(tmp_path: Path) -> None:
    truth, scores, threshold = scores_of(tmp_path)
    confusion = curve(report_files(judge(tmp_path), make_contract()), "confusion")
    assert confusion["actual"].tolist() == truth.tolist()
    assert confusion["predicted"].tolist() == (scores >= threshold).tolist()
    classes = curve(report_files(judge(tmp_path, "multiclass"), make_contract("multiclass")), "confusion")
    assert classes["actual"].tolist() == prepared("multiclass").test["outcome"].tolist()
    assert (classes["actual"] == classes["predicted"]).mean() > 0.4


def test_residuals_are_sorted_by_prediction(tmp_path: Path) -> None:
    residuals = curve(report_files(judge(tmp_path, "regression"), make_contract("regression")), "residuals")
    assert residuals["predicted"].is_monotonic_increasing


def test_scores_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    scorer = Scorer.load(write_bundle(tmp_path / "bundle", make_bundle()), features)
    broken = Scorer(scorer.contract, features, scorer.spec, lambda matrix: np.where(matrix[:, :1] > 0, np.nan, 0.5))
    rows = prepared().test
    bad = np.flatnonzero(rows["site"] == "south")
    with pytest.raises(InputError, match=rf"got \[nan\] for test row {bad[0]} and {len(bad) - 1} more"):
        evaluate(
            rows,
            contract=make_contract(),
            scorer=broken,
            baselines=json.loads(make_bundle()["baseline.json"]),
            params=PARAMS,
        )


def test_intervals_rest_on_entities_where_there_is_no_time_and_else_on_rows(tmp_path: Path) -> None:
    assert judge(tmp_path, timed=False).intervals.endswith("40 values of machine")
    assert judge(tmp_path, timed=False, entity=False).intervals.endswith("165 rows")


def test_rows_of_one_day_alone_have_no_intervals(tmp_path: Path) -> None:
    day = prepared().test.assign(read_at=pd.Timestamp("2020-05-12"))
    with pytest.raises(InputError, match="expected test rows of two days of read_at at least, for intervals; got 1"):
        judge(tmp_path, test=day)
