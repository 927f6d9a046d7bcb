import json
import os
from typing import Any

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from pipeline.archive import sklearn_scores
from pipeline.errors import InputError
from pipeline.prepared import Inputs, as_arrays, feature_spec, features_of, model_inputs
from pipeline.scoring import Feature, encode, onnx_model
from pipeline.train import TrainParams, calibrate, one_hot, train
from tests.synthetic import BEST, CANDIDATES, TASKS, features, make_bundle, make_contract, prepared, train_params


def run(
    task: str = "binary", *, params: TrainParams | None = None, made: Any = features, candidates: Any = CANDIDATES
) -> dict[str, bytes]:
    rows = prepared(task)
    return train(
        rows.train,
        rows.validation,
        contract=make_contract(task),
        features=made,
        candidates=candidates,
        best=BEST["boosting"],
        params=params or train_params(task),
        features_hash="made",
        lineage={},
    )


def described(task: str = "binary", candidate: str = "boosting") -> dict[str, Any]:
    contract: dict[str, Any] = json.loads(make_bundle(task, candidate)["contract.json"])
    return contract


def validation(task: str = "binary") -> tuple[np.ndarray, np.ndarray]:
    """The scores of the bundle on the validation rows, and what was true."""
    spec = [Feature.of(f["name"], f["categories"]) for f in described(task)["features"]]
    rows = prepared(task).validation
    scores = onnx_model(make_bundle(task)["model.onnx"])(encode(as_arrays(features_of(rows)), spec))
    return scores, rows["outcome"].to_numpy()


@pytest.mark.parametrize("task", TASKS)
def test_the_same_rows_give_the_same_bytes(task: str) -> None:
    assert run(task) == make_bundle(task)


@pytest.mark.parametrize("task", TASKS)
def test_a_bundle_on_onnx_holds_its_files(task: str) -> None:
    assert sorted(make_bundle(task)) == [
        "baseline.json",
        "contract.json",
        "golden.json",
        "lineage.json",
        "model.onnx",
        "reference.json",
    ]
    contract = described(task)
    assert (contract["runtime"], contract["runtime_reason"], contract["task"]) == ("onnx", "", task)
    assert contract["max_difference"] <= contract["tolerance"] == 1e-9


def test_a_model_that_onnx_cannot_express_runs_on_scikit_learn_and_says_why() -> None:
    assert "pipeline.skops" in make_bundle("binary", "forest")
    assert "model.onnx" not in make_bundle("binary", "forest")
    contract = described("binary", "forest")
    assert (contract["runtime"], contract["max_difference"]) == ("sklearn", None)
    assert "expected double" in contract["runtime_reason"]


def test_an_estimator_that_no_service_may_load_is_refused() -> None:
    step = FunctionTransformer(feature_names_out=os.path.basename)
    odd = CANDIDATES["forest"]._replace(build=lambda *given: make_pipeline(step, CANDIDATES["forest"].build(*given)))
    with pytest.raises(InputError, match=r"expected only trusted types; it holds posixpath\.basename"):
        run(candidates={"boosting": odd})


def test_a_graph_that_scores_otherwise_is_never_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = make_bundle("binary", "linear")["model.onnx"]
    monkeypatch.setattr("pipeline.train.to_onnx", lambda _model, _inputs: wrong)
    made = run()
    contract = json.loads(made["contract.json"])
    assert contract["runtime"] == "sklearn"
    assert contract["runtime_reason"].startswith("scores differ by up to")
    assert "model.onnx" not in made


def test_the_contract_says_what_a_service_must_know() -> None:
    contract = described()
    assert (contract["noun"], contract["target"], contract["lead_minutes"]) == ("readings", "outcome", 60)
    assert [entry["name"] for entry in contract["inputs"]] == [c.name for c in make_contract().inputs]
    assert [f["name"] for f in contract["features"]] == list(features_of(prepared().train))
    assert (contract["features_hash"], contract["costs"]) == ("made", {"missed": 3.0, "false_alarm": 1.0})
    assert contract["classes"] is None


@pytest.mark.parametrize("task", ["multiclass", "regression"])
def test_only_two_classes_have_threshold_and_costs(task: str) -> None:
    contract = described(task)
    assert (contract["threshold"], contract["costs"]) == (None, None)
    assert contract["classes"] == (["broken", "fine", "worn"] if task == "multiclass" else None)


def cost(threshold: float, scores: np.ndarray, truth: np.ndarray) -> float:
    called = scores >= threshold
    return float(3.0 * np.sum(~called & (truth == 1)) + np.sum(called & (truth == 0)))


def test_no_threshold_costs_less_on_validation() -> None:
    scores, truth = validation()
    candidates = [*scores[:, 0], *np.linspace(0, 1.01, 500)]
    assert cost(described()["threshold"], scores[:, 0], truth) == min(cost(t, scores[:, 0], truth) for t in candidates)


def test_a_dearer_miss_lowers_the_threshold() -> None:
    params = train_params(costs={"missed": 30.0, "false_alarm": 1.0})
    assert json.loads(run(params=params)["contract.json"])["threshold"] < described()["threshold"]


def test_the_baselines_have_thresholds_of_their_own() -> None:
    baselines = json.loads(make_bundle()["baseline.json"])
    truth = prepared().validation["outcome"].to_numpy()
    overall = baselines["naive"]["overall"][0]
    assert baselines["naive"]["groups"] == {}
    calls_all = overall >= baselines["naive"]["threshold"]
    assert calls_all == (3.0 * truth.sum() > (1 - truth).sum())
    assert baselines["simple"]["keys"] == ["site", "maker"]
    assert "threshold" not in json.loads(make_bundle("regression")["baseline.json"])["simple"]


def test_the_baseline_of_classes_knows_every_class() -> None:
    overall = json.loads(make_bundle("multiclass")["baseline.json"])["naive"]["overall"]
    shares = prepared("multiclass").train["outcome"].value_counts(normalize=True)
    assert overall == pytest.approx([shares["broken"], shares["fine"], shares["worn"]])


def test_outcomes_take_the_shape_of_scores() -> None:
    assert one_hot(np.array([1.0, 0.0]), "binary", None).tolist() == [[1.0], [0.0]]
    assert one_hot(np.array(["b", "a"], dtype=object), "multiclass", ["a", "b"]).tolist() == [[0, 1], [1, 0]]


@pytest.mark.parametrize("task", ["binary", "multiclass"])
def test_calibration_mends_scores_that_are_off_on_validation(task: str) -> None:
    contract, rows = make_contract(task), prepared(task)
    spec = feature_spec(features_of(rows.train))
    fit, judge = (model_inputs(part, contract, spec) for part in (rows.train, rows.validation))
    estimator = CANDIDATES["boosting"].build({"max_leaf_nodes": 30, "learning_rate": 1.0}, spec, task, 0)  # type: ignore[arg-type]
    estimator.fit(fit.matrix, fit.target)
    before = log_loss(judge.target, sklearn_scores(estimator, judge.matrix), labels=estimator.classes_)
    after = sklearn_scores(calibrate(estimator, judge, contract.task), judge.matrix)
    assert log_loss(judge.target, after, labels=estimator.classes_) < before - 0.03


def test_calibration_finds_the_sigmoid_that_was_there() -> None:
    random = np.random.default_rng(0)
    line = random.normal(size=(20_000, 1))
    truth = (random.random(20_000) < 1 / (1 + np.exp(1 - 2 * line[:, 0]))).astype("float64")
    off = LogisticRegression().fit(line[:100], line[:100, 0] > 0)
    judge = Inputs(line, (Feature("x"),), truth)
    scores = sklearn_scores(calibrate(off, judge, "binary"), np.array([[-1.0], [0.5], [2.0]]))[:, 0]
    assert scores == pytest.approx(1 / (1 + np.exp(1 - 2 * np.array([-1, 0.5, 2]))), abs=0.02)


def test_calibration_does_not_mind_rows_that_are_sorted_by_class() -> None:
    contract, rows = make_contract("multiclass"), prepared("multiclass")
    spec = feature_spec(features_of(rows.train))
    shuffled, by_class = rows.validation, rows.validation.sort_values("outcome", kind="stable")
    estimator = CANDIDATES["boosting"].build({"max_leaf_nodes": 4}, spec, "multiclass", 0)
    fit = model_inputs(rows.train, contract, spec)
    estimator.fit(fit.matrix, fit.target)
    one, other = (
        sklearn_scores(calibrate(estimator, model_inputs(part, contract, spec), "multiclass"), fit.matrix)
        for part in (shuffled, by_class)
    )
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_a_regression_is_left_as_it_is() -> None:
    estimator = LogisticRegression()
    assert calibrate(estimator, Inputs(np.zeros((1, 1)), (), np.zeros(1)), "regression") is estimator


@pytest.mark.parametrize(
    ("task", "costs", "message"),
    [
        ("binary", None, "a binary target needs costs of a missed positive and of a false alarm, got None"),
        ("regression", {"missed": 1.0, "false_alarm": 1.0}, r"a regression target needs no costs \(null\), got"),
        ("multiclass", {"missed": 1.0, "false_alarm": 1.0}, "a multiclass target needs no costs"),
    ],
)
def test_costs_that_do_not_fit_the_target_are_refused(task: str, costs: Any, message: str) -> None:
    with pytest.raises(InputError, match=rf"train\.costs: {message}"):
        run(task, params=train_params(task, costs=costs))


def test_an_unknown_baseline_key_is_refused() -> None:
    with pytest.raises(InputError, match=r"baseline_keys: \['colour'\] are no features; name some of \['site'"):
        run(params=train_params(baseline_keys=["site", "colour"]))


def test_a_feature_that_depends_on_other_rows_is_refused() -> None:
    def centred(columns: Any) -> dict[str, np.ndarray]:
        return features(columns) | {"cycles": columns["cycles"] - columns["cycles"].mean()}

    with pytest.raises(InputError, match="'cycles': expected the same for a few rows as for the whole table"):
        run(made=centred)


@pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning")
def test_a_feature_that_is_infinite_at_a_limit_of_the_contract_is_refused() -> None:
    def rate(columns: Any) -> dict[str, np.ndarray]:
        made = features(columns)
        cycles = np.where(columns["cycles"] > 999, np.inf, columns["cycles"])
        return made | {"cycles": cycles}

    with pytest.raises(InputError, match="'cycles': expected a finite number at the limits of the contract"):
        run(made=rate)


def test_the_reference_is_of_training_features_and_of_scores_that_were_not_fitted() -> None:
    found = json.loads(make_bundle()["reference.json"])
    assert found["rows"] == len(prepared().train)
    assert list(found["features"]) == list(features_of(prepared().train))
    assert found["scores"]["score"]["edges"][4] == pytest.approx(np.median(validation()[0]))
