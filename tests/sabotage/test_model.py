"""Acts on the model itself, and on how it is judged."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from sklearn.base import BaseEstimator
from sklearn.ensemble import HistGradientBoostingClassifier

import flows.train
import pipeline.metrics
import pipeline.train
from pipeline.candidates import Candidate, positions
from problem.models import CANDIDATES
from tests.problem.workshop import Workshop


def another(monkeypatch: pytest.MonkeyPatch, settings: Mapping[str, Any]) -> None:
    """Train gradient boosting with these settings instead of those that were found."""

    def build(_settings: Any, spec: Any, _task: Any, seed: int) -> BaseEstimator:
        categorical = positions(spec, categorical=True)
        return HistGradientBoostingClassifier(
            **settings, categorical_features=categorical, early_stopping=False, random_state=seed
        )

    listed = {name: Candidate(candidate.space, build) for name, candidate in CANDIDATES.items()}
    monkeypatch.setattr(flows.train, "CANDIDATES", listed)


def add_to_scores(workshop: Workshop, change: float) -> None:
    """Append a node to the bundle's ONNX that adds to each score."""
    path = workshop["bundle/model.onnx"]
    model = onnx.load(path)
    last = next(node for node in model.graph.node if "scores" in node.output)
    last.output[list(last.output).index("scores")] = "before"
    model.graph.initializer.append(helper.make_tensor("change", TensorProto.DOUBLE, [1], [change]))
    model.graph.node.append(helper.make_node("Add", ["before", "change"], ["scores"]))
    path.unlink()
    path.write_bytes(model.SerializeToString())


def test_a_constant_model(workshop: Workshop, sabotaged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    another(monkeypatch, {"max_iter": 60, "min_samples_leaf": 1_000_000 if sabotaged else 100})
    workshop.stage("train")
    grounded = workshop.judged()
    expected = {"floor", "beats_naive", "beats_simple", "calibration"}
    assert set(grounded) == (expected if sabotaged else set())


def test_a_model_that_memorised(workshop: Workshop, sabotaged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = {"max_iter": 50, "max_leaf_nodes": None, "min_samples_leaf": 1, "learning_rate": 1.0}
    another(monkeypatch, memory if sabotaged else {"max_iter": 60, "min_samples_leaf": 100})
    workshop.stage("train")
    grounded = workshop.judged()
    assert set(grounded) == ({"beats_naive", "beats_simple", "calibration", "stability"} if sabotaged else set())


def test_uncalibrated_scores(workshop: Workshop, sabotaged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = pipeline.train.calibrate

    def squashed(estimator: Any, judge: Any, task: Any) -> Any:
        """Fitted to rows of which one in six that were on time has gone: every score is too high, in the same order."""
        kept = (judge.target == 1) | (np.random.default_rng(0).random(len(judge.target)) < 0.83)
        return honest(estimator, judge._replace(matrix=judge.matrix[kept], target=judge.target[kept]), task)

    if sabotaged:
        monkeypatch.setattr(pipeline.train, "calibrate", squashed)
    workshop.stage("train")
    grounded = workshop.judged()
    assert set(grounded) == ({"calibration"} if sabotaged else set())


@pytest.mark.parametrize("change", [1e-6, 1e-2], ids=["sixth_decimal", "second_decimal"])
def test_onnx_that_differs_from_its_pipeline(workshop: Workshop, sabotaged: bool, change: float) -> None:
    add_to_scores(workshop, change if sabotaged else 0.0)
    grounded = workshop.judged()
    assert set(grounded) == ({"parity"} if sabotaged else set())
    assert not sabotaged or grounded["parity"]["value"] == pytest.approx(change, rel=1e-3)


def test_nan_in_a_metric(workshop: Workshop, sabotaged: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = pipeline.metrics.calibration_error

    def broken(*arguments: Any) -> Any:
        return honest(*arguments) * (np.nan if sabotaged else 1)

    monkeypatch.setattr(pipeline.metrics, "calibration_error", broken)
    grounded = workshop.judged(patched=True)
    assert set(grounded) == ({"calibration"} if sabotaged else set())
    assert not sabotaged or grounded["calibration"]["reason"].endswith("calibration_error is no number on these rows")
