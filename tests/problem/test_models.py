import numpy as np
import optuna
import pytest

from pipeline.export import to_onnx
from pipeline.featurize import featurize
from pipeline.parity import measure
from pipeline.prepared import Inputs, as_arrays, feature_spec
from pipeline.scoring import encode
from pipeline.train import calibrate
from problem import source
from problem.features import features
from problem.models import CANDIDATES
from problem.schema import CONTRACT


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    flights = source.read("2013-01", CONTRACT).dropna(subset="is_late").iloc[::20].reset_index(drop=True)
    made = featurize(flights, CONTRACT, features)
    spec = feature_spec(made)
    return Inputs(encode(as_arrays(made), spec), spec, flights["is_late"].to_numpy(dtype="float64"))


@pytest.mark.parametrize("name", CANDIDATES)
def test_every_candidate_learns_and_is_exact_on_onnx(inputs: Inputs, name: str) -> None:
    settings = CANDIDATES[name].space(optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)).ask())
    one, same = (CANDIDATES[name].build(settings, inputs.spec, CONTRACT.task, 1) for _ in range(2))
    one.fit(inputs.matrix, inputs.target)
    same.fit(inputs.matrix, inputs.target)
    np.testing.assert_array_equal(one.predict_proba(inputs.matrix), same.predict_proba(inputs.matrix))
    model = calibrate(one, inputs, CONTRACT.task)
    parity = measure(model, to_onnx(model, len(inputs.spec)), inputs.matrix, 0.25, 1e-9)
    assert parity.passed, parity
    scores = model.predict_proba(inputs.matrix)[:, 1]
    assert scores[inputs.target == 1].mean() > scores[inputs.target == 0].mean() + 0.02
