import json
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pydantic import ValidationError
from sklearn.metrics import confusion_matrix, log_loss, roc_auc_score, roc_curve, root_mean_squared_error

from pipeline import gates
from pipeline.backtest import backtest, simpler
from pipeline.errors import InputError
from pipeline.evaluate import Evaluation, judged_rows
from pipeline.explain import importance, shap_values
from pipeline.leaks import single_feature_scores
from pipeline.prepared import as_arrays, features_of
from pipeline.resamples import blocks_of, times_drawn
from pipeline.scoring import encode
from pipeline.slices import judge_groups, judge_slices
from pipeline.stability import judge_stability
from tests.synthetic import (
    BEST,
    METRICS,
    TASKS,
    evaluate_params,
    evaluation,
    make_bundle,
    make_contract,
    make_evaluation,
    make_scorer,
    prepared,
    splits,
)

BUNDLE = {name: json.loads(make_bundle()[name]) for name in ("baseline.json", "golden.json")}


def matrix_of(task: str = "binary") -> np.ndarray:
    return encode(as_arrays(features_of(prepared(task).test)), make_scorer(task).spec)


def scored(task: str = "binary") -> tuple[np.ndarray, np.ndarray, float]:
    """What was true of the test rows, what the bundle says of them, and its threshold."""
    scores = make_scorer(task).model(matrix_of(task))
    return prepared(task).test["outcome"].to_numpy(), scores, make_scorer(task).contract["threshold"]


def same(one: Evaluation, other: Evaluation) -> bool:
    """Whether two evaluations hold the same, but for tables and pictures, whose frames compare by element."""
    bare = [each._replace(tables={}, curves={}, shap=(np.empty(0), np.empty(0))) for each in (one, other)]
    return (
        repr(bare[0]) == repr(bare[1])
        and all(one.tables[name].equals(other.tables[name]) for name in {*one.tables, *other.tables})
        and all(one.curves[name].equals(other.curves[name]) for name in {*one.curves, *other.curves})
        and all(np.array_equal(*pair, equal_nan=True) for pair in zip(one.shap, other.shap, strict=True))
    )


CURVES = {
    "binary": {"roc", "precision_recall", "calibration", "cost", "confusion"},
    "multiclass": {"calibration", "confusion"},
    "regression": {"residuals"},
}
TABLES = {"slices", "groups", "stability", "importance", "errors", "backtest", "waiting", "simpler"}


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_judged_in_all_ways_and_the_same_each_time(task: str) -> None:
    found = evaluation(task)
    assert set(found.tables) == TABLES
    assert not any(table.empty for table in found.tables.values())
    assert set(found.curves) == CURVES[task]
    assert list(found.metrics) == ["model", "simple", "naive", *(["no_model"] if task == "binary" else [])]
    for figures in found.metrics.values():
        assert all(each.low <= each.high for each in figures.values())
    assert (found.rows, found.metric) == (165, METRICS[task])
    assert found.proper == ("rmse" if task == "regression" else "log_loss")
    assert same(found, make_evaluation(task))
    assert not same(found, make_evaluation(task, seed=1))


def test_a_bundle_on_scikit_learn_is_judged_alike() -> None:
    found = make_evaluation("binary", "forest")
    assert found.metrics["model"]["roc_auc"].value > 0.6
    assert found.shap[0].shape == (165, 6)


def test_the_model_beats_the_baselines_on_what_was_made_to_be_learned() -> None:
    metrics = evaluation().metrics
    assert metrics["model"]["roc_auc"].value > metrics["simple"]["roc_auc"].value > metrics["naive"]["roc_auc"].value
    assert metrics["naive"]["roc_auc"].value == 0.5


def test_figures_are_those_of_the_bundle_on_the_test_rows() -> None:
    truth, scores, threshold = scored()
    found = evaluation().metrics["model"]
    assert found["roc_auc"].value == pytest.approx(roc_auc_score(truth, scores))
    (_, alarm), (missed, _) = confusion_matrix(truth, scores[:, 0] >= threshold)
    assert found["cost_per_1000"].value == pytest.approx(1000 * (3 * missed + alarm) / len(truth))
    truth, scores, _ = scored("multiclass")
    assert evaluation("multiclass").metrics["model"]["log_loss"].value == pytest.approx(log_loss(truth, scores))
    truth, scores, _ = scored("regression")
    expected = root_mean_squared_error(truth, scores)
    assert evaluation("regression").metrics["model"]["rmse"].value == pytest.approx(expected)
    assert evaluation("regression").deviation == pytest.approx(np.std(truth))


def test_a_gain_is_paired_on_the_resamples_of_both() -> None:
    truth, scores, _ = scored()
    rate = BUNDLE["baseline.json"]["naive"]["overall"][0]
    blocks = blocks_of(prepared().test, make_contract())[0]
    drawn = []
    for weight in times_drawn(blocks, evaluate_params().bootstrap)[:, blocks]:
        losses = [log_loss(truth, said, sample_weight=weight) for said in (np.full(len(truth), rate), scores[:, 0])]
        drawn.append(losses[0] - losses[1])
    found = evaluation().gains["naive"]["log_loss"]
    assert found == pytest.approx((drawn[0], *np.quantile(drawn[1:], [0.05, 0.95])))


def test_gains_are_of_every_metric_that_has_a_better_side_and_both_know() -> None:
    gains, metrics = evaluation().gains, evaluation().metrics
    assert set(metrics["model"]) - set(gains["simple"]) == {"selection_rate", "false_positive_rate"}
    assert "precision" not in metrics["naive"]  # it calls nobody
    assert set(gains["simple"]) - set(gains["naive"]) == {"precision"}
    for name, each in gains["simple"].items():
        apart = metrics["model"][name].value - metrics["simple"][name].value
        assert each.value == pytest.approx(-apart if name in gates.LESS_IS_BETTER else apart)
    assert set(evaluation("regression").gains["simple"]) == {"rmse", "mae", "r2"}


def test_without_a_model_every_positive_is_missed() -> None:
    found = evaluation().metrics["no_model"]
    assert set(found) == {"recall", "cost_per_1000"}
    assert found["recall"].value == 0
    assert found["cost_per_1000"].value == pytest.approx(3000 * prepared().test["outcome"].mean())


def test_each_baseline_decides_by_its_own_threshold() -> None:
    for threshold, recall in ((0.0, 1.0), (1.0, 0.0)):
        baselines = {**BUNDLE["baseline.json"], "naive": {**BUNDLE["baseline.json"]["naive"], "threshold": threshold}}
        found = make_evaluation(bundle={**BUNDLE, "baseline.json": baselines})
        assert found.metrics["naive"]["recall"].value == recall
        assert found.metrics["model"] == evaluation().metrics["model"]


def test_a_metric_that_the_target_does_not_have_is_refused_with_those_that_it_has() -> None:
    with pytest.raises(InputError, match=r"evaluate\.metric: expected one of \['rmse', 'mae', 'r2'\] .* got 'roc_auc'"):
        make_evaluation("regression", metric="roc_auc")
    with pytest.raises(InputError, match=r"'roc_auc', .*'cost_per_1000'\] for this target, got 'selection_rate'"):
        make_evaluation(metric="selection_rate")


def test_the_tables_are_made_with_the_parameters_given() -> None:
    params, test, contract, scorer = evaluate_params(), prepared().test, make_contract(), make_scorer()
    tables, how = evaluation().tables, params.bootstrap
    judged = judged_rows(test, contract, scorer)
    blocks = blocks_of(test, contract)[0]
    sliced = (test, judged, contract, "roc_auc", 40, blocks, how)
    pd.testing.assert_frame_equal(tables["slices"], judge_slices(*sliced))
    pd.testing.assert_frame_equal(tables["groups"], judge_groups(*sliced))
    disturbed = judge_stability(test, scorer, contract, noise=0.01, share=0.1, seed=0)
    pd.testing.assert_frame_equal(tables["stability"], disturbed)
    expected = importance(matrix_of(), judged, scorer.model, scorer.spec, metric="roc_auc", blocks=blocks, how=how)
    pd.testing.assert_frame_equal(tables["importance"], expected)
    np.testing.assert_array_equal(evaluation().shap, shap_values(matrix_of(), scorer.model, 0))


def test_the_past_is_all_the_rows_and_the_simpler_candidates_are_fitted_on_training_rows_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: dict[str, Any] = {}

    def looking(past: Any, best: Any) -> Any:
        looked["past"], looked["best"] = past, best
        return backtest(past, best)

    def comparing(past: Any, best: Any, trials: Any, fit: Any, test: Any, margin: float) -> Any:
        looked["fit"], looked["test"], looked["margin"] = fit, test, margin
        return simpler(past, best, trials, fit, test, margin)

    monkeypatch.setattr("pipeline.evaluate.backtest", looking)
    monkeypatch.setattr("pipeline.evaluate.simpler", comparing)
    found = make_evaluation("multiclass", margin=0.5)
    past, rows = looked["past"], pd.concat(splits("multiclass").values(), ignore_index=True)
    assert (past.metric, past.fitted, looked["best"], looked["margin"]) == ("macro_roc_auc", 200, BEST["boosting"], 0.5)
    pd.testing.assert_frame_equal(past.rows, rows[list(past.rows)])
    assert list(past.rows) == ["read_at", "machine"]
    np.testing.assert_array_equal(past.inputs.target, rows["outcome"])
    assert np.array(["broken", "fine", "worn"])[past.unscored.truth.astype(int)].tolist() == rows["outcome"].tolist()
    pd.testing.assert_frame_equal(rows.iloc[looked["fit"]], splits("multiclass")["train"])
    pd.testing.assert_frame_equal(rows.iloc[looked["test"]].reset_index(drop=True), splits("multiclass")["test"])
    assert found.tables["simpler"]["candidate"].tolist() == ["linear"]
    assert found.tables["simpler"]["as_good"].tolist() == [True]
    assert found.tables["backtest"]["scored"].max() == "2020-06"


def test_how_telling_each_feature_is_comes_from_the_test_rows() -> None:
    test = prepared().test
    assert evaluation().single_features == single_feature_scores(features_of(test), test["outcome"], "binary")
    told = test.assign(**{"feature.guarded": test["outcome"]})
    found = make_evaluation(splits={**splits(), "test": told})
    assert found.single_features["guarded"] == 1
    assert not gates.judge({"leak": lambda: gates.leak(found, evaluate_params().limits)}, {})[0].passed


def test_the_curves_end_where_they_must() -> None:
    truth, scores, threshold = scored()
    curves = evaluation().curves
    assert curves["roc"].iloc[[0, -1]].to_numpy().tolist() == [[0, 0], [1, 1]]
    false_positive, true_positive, _ = roc_curve(truth, scores[:, 0])
    np.testing.assert_array_equal(curves["roc"].to_numpy(), np.column_stack([false_positive, true_positive]))
    cost = curves["cost"]
    assert cost["cost_per_1000"].iloc[[0, -1]].tolist() == pytest.approx(
        [3000 * truth.mean(), 1000 * (1 - truth.mean())]
    )
    nearest = cost.iloc[(cost["threshold"] - threshold).abs().argmin()]
    assert nearest["cost_per_1000"] == pytest.approx(evaluation().metrics["model"]["cost_per_1000"].value, rel=0.1)
    assert curves["precision_recall"]["recall"].iloc[[0, -1]].tolist() == [1, 0]


def test_a_long_curve_is_thinned_and_keeps_its_ends() -> None:
    test = pd.concat([prepared("regression").test] * 3, ignore_index=True)
    test["machine"] = test["machine"] + np.repeat(["", "x", "y"], 165)
    scorer = make_scorer("regression")
    varied = replace(scorer, model=lambda matrix: scorer.model(matrix) + np.linspace(0, 1e-6, len(matrix))[:, None])
    found = make_evaluation("regression", splits={**splits("regression"), "test": test}, scorer=varied)
    residuals = found.curves["residuals"]
    assert len(residuals) == 200
    scores = judged_rows(test, make_contract("regression"), varied).scores
    assert residuals["predicted"].iloc[[0, -1]].tolist() == [scores.min(), scores.max()]
    assert residuals["predicted"].is_monotonic_increasing


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_the_calibration_curve_holds_every_row_in_tenths(task: str) -> None:
    calibration = evaluation(task).curves["calibration"]
    truth, scores, _ = scored(task)
    right, said = truth, scores[:, 0]
    if task == "multiclass":
        right = np.array(make_scorer(task).contract["classes"])[scores.argmax(axis=1)] == truth
        said = scores.max(axis=1)
    assert calibration["rows"].sum() == len(truth)
    assert len(calibration) == 10
    assert np.average(calibration["mean_score"], weights=calibration["rows"]) == pytest.approx(said.mean())
    assert np.average(calibration["observed_rate"], weights=calibration["rows"]) == pytest.approx(right.mean())
    gaps = (calibration["mean_score"] - calibration["observed_rate"]).abs()
    error = evaluation(task).metrics["model"]["calibration_error"].value
    assert np.average(gaps, weights=calibration["rows"]) == pytest.approx(error)


def test_the_confusion_matrix_is_that_of_the_decisions() -> None:
    truth, scores, threshold = scored()
    confusion = evaluation().curves["confusion"]
    assert confusion["actual"].tolist() == truth.tolist()
    assert confusion["predicted"].tolist() == (scores[:, 0] >= threshold).tolist()
    classes, (truth, scores, _) = evaluation("multiclass").curves["confusion"], scored("multiclass")
    assert classes["actual"].tolist() == truth.tolist()
    named = np.array(make_scorer("multiclass").contract["classes"])
    assert classes["predicted"].tolist() == named[scores.argmax(axis=1)].tolist()


def test_scores_that_are_no_numbers_are_refused() -> None:
    broken = replace(make_scorer(), model=lambda matrix: np.where(matrix[:, :1] > 0, np.nan, 0.5))
    bad = np.flatnonzero(prepared().test["site"] == "south")
    with pytest.raises(InputError, match=rf"got \[nan\] for row {bad[0]} and {len(bad) - 1} more; train again"):
        make_evaluation(scorer=broken)


def test_intervals_rest_on_days_or_on_entities_where_there_is_no_time_and_else_on_rows() -> None:
    assert evaluation().intervals == "90% intervals, from 100 resamples of 51 days of read_at"
    timeless = make_evaluation(contract=make_contract(timed=False))
    assert timeless.intervals.endswith("resamples of 40 values of machine")
    assert make_evaluation(contract=make_contract(timed=False, entity=False)).intervals.endswith("165 rows")


def test_without_time_there_is_no_age_and_no_looking_back() -> None:
    found = make_evaluation(contract=make_contract(timed=False))
    assert found.age_days is None
    assert found.tables["backtest"].empty
    assert found.tables["waiting"].empty
    assert len(found.tables["simpler"]) == 1


def test_the_age_runs_from_the_end_of_training_to_the_end_of_the_test() -> None:
    ends = [splits()[name]["read_at"].max() for name in ("train", "test")]
    assert evaluation().age_days == round((ends[1] - ends[0]).total_seconds() / 86400, 1)
    assert evaluation().age_days == 89.8


def test_rows_of_one_day_alone_have_no_intervals() -> None:
    day = prepared().test.assign(read_at=pd.Timestamp("2020-05-12").as_unit("us"))
    with pytest.raises(InputError, match="expected test rows of two days of read_at at least, for intervals; got 1"):
        make_evaluation(splits={**splits(), "test": day})


def broken(split: str, **changed: Any) -> Evaluation:
    """An evaluation with the second row of a split changed."""
    rows = splits()[split].copy()
    for name, value in changed.items():
        rows.loc[1, name] = value
    return make_evaluation(splits={**splits(), split: rows})


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_row_of_any_split_that_breaks_the_contract_is_told_with_its_file(split: str) -> None:
    assert evaluation().violations == evaluation().late == []
    found = broken(split, cycles=1001)
    assert found.late == []
    (sentence,) = found.violations
    assert sentence.startswith("column 'cycles' has 1 of 588 values that break the rule 'less_than_or_equal_to(1000)'")
    assert f"(first: prepared/{split}.parquet row 1, 1001)" in sentence


def test_every_broken_rule_has_a_sentence() -> None:
    found = broken("test", cycles=-1, site="west")
    assert [sentence.split("'")[1] for sentence in found.violations] == ["cycles", "site"]


def test_what_was_observed_too_late_is_told_apart() -> None:
    late = splits()["test"]["read_at"][1] - pd.Timedelta("30min")
    found = broken("test", measured_at=late)
    assert found.violations == []
    (sentence,) = found.late
    assert "column 'measured_at' has 1 of 588 values that break the rule 'observed at least 1:00:00 before" in sentence
    assert "(first: prepared/test.parquet row 1," in sentence


def test_a_row_of_the_test_that_was_trained_on_breaks_the_contract() -> None:
    test = pd.concat([prepared().test, prepared().train.iloc[[5]]], ignore_index=True)
    (sentence,) = make_evaluation(splits={**splits(), "test": test}).violations
    assert "column 'read_at+machine' has 1 of 589 values that break the rule 'each key stands once'" in sentence
    assert "prepared/test.parquet row 165" in sentence


@pytest.mark.parametrize(
    "changed",
    [
        lambda inputs: [{**entry, "maximum": 2000} if entry["name"] == "cycles" else entry for entry in inputs],
        lambda inputs: [entry for entry in inputs if entry["name"] != "cycles"],
        lambda inputs: [{**entry, "name": "turns"} if entry["name"] == "cycles" else entry for entry in inputs],
    ],
    ids=["another limit", "one too few", "another name"],
)
def test_a_bundle_that_tells_its_clients_otherwise_than_the_contract_is_found(changed: Any) -> None:
    scorer, golden = make_scorer(), BUNDLE["golden.json"]
    told = {**scorer.contract, "inputs": changed(scorer.contract["inputs"])}
    rows = {"turns": golden["rows"]["cycles"], **golden["rows"]}

    def with_cycles(columns: Any) -> dict[str, np.ndarray]:
        return scorer.features({"cycles": np.zeros(len(columns["site"])), **columns})

    found = make_evaluation(
        scorer=replace(scorer, contract=told, features=with_cycles),
        bundle={**BUNDLE, "golden.json": {**golden, "rows": rows}},
    )
    (sentence,) = found.violations
    assert sentence.startswith("the bundle describes ['cycles'")
    assert sentence.endswith("] otherwise than the contract; train again")


def test_golden_scores_that_are_not_those_of_the_model_are_measured() -> None:
    assert evaluation().golden_gap < 1e-12 < evaluation().tolerance
    scores = np.array(BUNDLE["golden.json"]["scores"])
    scores[3] += 1e-6
    golden = {**BUNDLE["golden.json"], "scores": scores.tolist()}
    found = make_evaluation(bundle={**BUNDLE, "golden.json": golden})
    assert found.golden_gap == pytest.approx(1e-6)
    assert not gates.judge({"parity": lambda: gates.parity(found, evaluate_params().limits)}, {})[0].passed


@pytest.mark.parametrize(
    ("changed", "key"),
    [
        ({"margin": -0.01}, "margin"),
        ({"resamples": 99}, "resamples"),
        ({"confidence": 1.0}, "confidence"),
        ({"confidence": 0.5}, "confidence"),
        ({"slice_rows": 0}, "slice_rows"),
        ({"noise": 0.0}, "noise"),
        ({"disturbed_share": 1.0}, "disturbed_share"),
        ({"refit_rows": 99}, "refit_rows"),
        ({"limits": {"test_rows": 0}}, r"limits\.test_rows"),
        ({"limits": {"single_feature": 1.1}}, r"limits\.single_feature"),
        ({"limits": {"group_gap": -0.1}}, r"limits\.group_gap"),
        ({"limits": {"changed_by_noise": 1.5}}, r"limits\.changed_by_noise"),
        ({"limits": {"floor": float("nan")}}, r"limits\.floor"),
        ({"limits": {"flor": 0.5}}, r"limits\.flor"),
    ],
)
def test_parameters_out_of_range_are_refused(changed: dict[str, Any], key: str) -> None:
    with pytest.raises(ValidationError, match=rf"(?m)^{key}$"):
        evaluate_params(**changed)
